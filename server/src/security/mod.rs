//! Who may do what between nodes and clients: the cluster's own authority, the certificates of nodes and
//! clients, TLS between them, join tokens, client bundles, the table of rules, and the audit log.
//!
//! ```text
//! role.rs        what a certificate says: cluster, role, id, serial number, end
//! authority.rs   signs (voters have its key)         identity.rs  the own key and certificate on disk
//! verify.rs      whom a side of a connection believes tls.rs       the settings of both sides, the own certificate
//! accept.rs      TCP in, connections with a known other end out; and the connecting side
//! link.rs        a connection that ends with the right to it     places.rs   how many there are
//! token.rs       what an operator carries to a new node           bundle.rs  what an operator carries to a client
//! rules.rs       RPC and caller in, verdict out      revocation.rs  serial numbers that are refused
//! audit.rs       the log of refusals and changes             allowance.rs  so many in a second
//! pem.rs, files.rs  texts, and files that nobody else may read
//! ```
//!
//! Nothing here knows Raft or the cluster state: what is decided there (serial numbers, revocations, tokens)
//! comes in as data.

pub mod accept;
mod allowance;
pub mod audit;
pub mod authority;
#[cfg_attr(not(test), expect(dead_code, reason = "mounts on other machines come next"))]
pub mod bundle;
pub mod files;
pub mod identity;
pub mod layer;
pub mod link;
mod pem;
mod places;
pub mod revocation;
pub mod role;
pub mod rules;
pub mod tls;
pub mod token;
mod verify;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tls_tests;
