//! The commands, one file a group.

pub mod backup;
pub mod cluster;
pub mod peer;
pub mod volume;
