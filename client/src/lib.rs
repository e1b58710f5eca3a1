//! Access to a BrickFS volume without a mount: placement of names, one session with a node, retries that
//! run once, the write-behind queues. The mount (`client-fuse`) is a thin adapter over it.

pub mod descriptors;
mod driving;
pub mod lent;
mod links;
mod locks;
pub mod open_files;
mod opens;
mod outgoing;
mod pending;
pub mod polling;
pub mod quiet_socket;
pub mod security;
mod session;
mod shared;
pub mod signals;
pub mod volume;
pub mod write_behind;
