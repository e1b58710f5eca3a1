//! The Raft member of a node: the log, the vote and the applied cluster state in sled, and the messages to
//! the other members. openraft's types stop here; what other modules see is below.
//!
//! ```text
//! propose ─▶ member ─▶ openraft ─▶ log_store ─▶ ClusterDb (durable before it is acknowledged)
//!                        │  ▲
//!          PeerLink ◀─ network (append, vote, snapshot) ─▶ other members
//!                        │ committed
//!                        ▼
//!                   state_machine ─▶ applied (pure) ─▶ ClusterDb ─▶ watch, cluster.json
//! ```
//!
//! Invariants: no vote, entry or state is acknowledged before it is on the disk; the log has no hole; a
//! command id runs once; every member has the same state and the same outcomes after the same entry.

mod applied;
mod error;
mod log_store;
mod member;
mod network;
mod reset;
mod state_machine;
mod status;
#[cfg(test)]
mod tests;
mod thread;
mod timing;
mod types;

pub use error::{ChangeError, ProposeError};
pub use member::RaftMember;
#[cfg(test)]
pub use network::ReceiveError;
pub use network::{LinkError, MESSAGE_MAX_BYTES, PeerLink, RaftCall};
pub use reset::forget_cluster;
pub use state_machine::Published;
#[cfg(test)]
pub use status::Follower;
pub use status::{RaftStatus, Role};
pub use thread::ManagerThread;
pub use timing::Timing;
pub use types::{Outcome, Proposal};
