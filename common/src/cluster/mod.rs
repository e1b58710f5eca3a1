//! The cluster's configuration: its state, the commands that change it, and the map that clients hold.

pub mod map;
