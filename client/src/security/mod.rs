//! Connections between nodes and clients that know whom they talk to: the cluster's own authority, the certificates of
//! nodes and clients, TLS with a certificate on both sides, join tokens and client bundles. Both sides of a connection
//! are here; who may do what over it is `brickd`'s affair.
//!
//! ```text
//! role.rs        what a certificate says: cluster, role, id, serial number, end
//! authority.rs   signs (voters have its key)         identity.rs  the own key and certificate on disk
//! verify.rs      whom a side of a connection believes tls.rs       the settings of both sides, the own certificate
//! accept.rs      TCP in, connections with a known other end out; and the connecting side
//! link.rs        a connection that ends with the right to it     places.rs   how many there are
//! connect.rs    the way to a node by its addresses
//! token.rs       what an operator carries to a new node           bundle.rs  what an operator carries to a client
//! revocation.rs  serial numbers that are refused                  allowance.rs  so many in a second
//! pem.rs, files.rs  texts, and files that nobody else may read
//! ```
//!
//! Nothing here knows Raft or the cluster state: what is decided there (serial numbers, revocations, tokens)
//! comes in as data.

pub mod accept;
pub mod allowance;
pub mod authority;
pub mod bundle;
pub mod connect;
pub mod files;
pub mod identity;
pub mod link;
mod pem;
mod places;
pub mod revocation;
pub mod role;
pub mod tls;
pub mod token;
mod verify;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tls_tests;
