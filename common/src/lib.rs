//! Domain types and pure decisions of BrickFS. Nothing here does I/O, reads a clock or draws a random
//! number: time and randomness come in as arguments, so that every decision can be tested and simulated.
//!
//! Start with `fop` (what a client can ask), `layout` (where a name lives), `namespace` (transactions
//! between sets), `cluster` (the configuration and its commands) and `membership` (who leads a set, who is in
//! sync, and for how long).

pub mod acl;
pub mod attr;
pub mod cluster;
pub mod errno;
pub mod fop;
pub mod ids;
pub mod layout;
pub mod locks;
pub mod membership;
pub mod name;
pub mod volume_spec;
