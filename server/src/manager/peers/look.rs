//! What a node tells another of itself: its release, how its Raft member stands, and which nodes it reaches.

use crate::manager::peers::reach::Sight;
use crate::manager::raft::RaftStatus;
use brickfs_common::ids::NodeId;
use serde::{Deserialize, Serialize};

/// One node, as it sees itself. Nodes of other releases may send more or less of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Look {
    /// The node.
    pub node: NodeId,
    /// Version of its `brickd`.
    pub version: String,
    /// Whether it has the authority's key.
    pub has_key: bool,
    /// Its Raft member.
    pub raft: RaftStatus,
    /// How many commands have made its state.
    pub commands: u64,
    /// How it sees the others.
    pub sights: Vec<Sight>,
}
