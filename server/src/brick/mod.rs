//! The bricks of this node: format, store, effects, the engine of a volume, sessions with clients.

pub mod effect;
pub mod format;
pub mod held;
pub mod host;
pub mod log;
pub mod meta;
pub mod open;
pub mod session;
pub mod set;
pub mod store;
pub mod volume;
