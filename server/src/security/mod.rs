//! Who may do what: the table of rules in front of every service, and the audit log. Certificates and the connections
//! that show them are in `brickfs_client::security`, for mounts have them too.
//!
//! ```text
//! rules.rs  RPC and caller in, verdict out     layer.rs  asks it for every call
//! audit.rs  the log of refusals and changes
//! ```

pub mod audit;
pub mod layer;
pub mod rules;

pub use brickfs_client::security::{
    accept, allowance, authority, connect, files, identity, revocation, role, tls, token,
};
