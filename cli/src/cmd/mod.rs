//! The commands, one file a group.

pub mod volume;
