//! The cluster's configuration: its state, the commands that change it, and the map that clients hold.

pub mod address;
pub mod admin;
pub mod backup;
pub mod command;
pub mod map;
pub mod report;
pub mod restore;
pub mod state;
pub mod stored;
pub mod token;
pub mod voters;
