//! Generated types from and to domain types: `TryFrom` validates what was received, `From` cannot fail.

mod attr;
pub mod fops;
mod replies;
