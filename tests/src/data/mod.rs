//! A checker of files' data: random operations on a few files over one mount or several, each read and each report
//! compared with what must be there. A wrong one is told with the operations that came before it.

mod appends;
mod checker;
mod operation;
mod oracle;

pub use appends::{append_records, check_records};
pub use checker::{Checker, HandOver, Traits};
pub use oracle::Oracle;
