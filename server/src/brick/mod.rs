//! The bricks of this node: format, store, effects, the engine of a volume, sessions with clients.

pub mod effect;
pub mod format;
pub mod host;
pub mod log;
pub mod meta;
pub mod session;
pub mod store;
pub mod volume;
