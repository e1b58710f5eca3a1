//! Access to a BrickFS volume without a mount: placement of names, one session with a node, retries that
//! run once. The mount (`client-fuse`) is a thin adapter over it.

mod pending;
mod session;
pub mod volume;
