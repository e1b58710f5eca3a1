//! What the members agree on, in openraft's terms: the content of an entry and what applying it gave.

use crate::manager::CommandId;
use brickfs_common::cluster::command::Command;
use brickfs_common::cluster::state::ClusterState;
use brickfs_common::ids::NodeId;
use serde::{Deserialize, Serialize};
use std::io::Cursor;

openraft::declare_raft_types!(
    /// The types of this project's Raft. Addresses are in the cluster state, so a node has no data here.
    pub Types:
        D = Change,
        R = Outcome,
        NodeId = NodeId,
        Node = openraft::EmptyNode,
        SnapshotData = Cursor<Vec<u8>>,
);

pub type Entry = openraft::Entry<Types>;
pub type LogId = openraft::LogId<NodeId>;
pub type Vote = openraft::Vote<NodeId>;
pub type StoredMembership = openraft::StoredMembership<NodeId, openraft::EmptyNode>;
pub type SnapshotMeta = openraft::SnapshotMeta<NodeId, openraft::EmptyNode>;
pub type Snapshot = openraft::Snapshot<Types>;
pub type StorageError = openraft::StorageError<NodeId>;
pub type StorageIOError = openraft::StorageIOError<NodeId>;
pub type LogFlushed = openraft::storage::LogFlushed<Types>;

/// A command as it is proposed. The leader sets the time, so that applying it needs no clock.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proposal {
    /// Made by who asks; a command with a known one is answered without running again.
    pub id: CommandId,
    /// What to change.
    pub command: Command,
    /// The leader's clock, milliseconds since 1970.
    pub time_ms: u64,
}

/// What an entry changes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// The first state of a new cluster. It is an entry, so that a member that follows the log from its
    /// beginning gets it like one that installs a snapshot. Without effect where a state is.
    Found(Box<ClusterState>),
    /// A command.
    Run(Proposal),
}

/// What applying a command gave, the same on every member and for every repetition of the command.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// How many commands had made the state when this one was applied, itself included.
    pub number: u64,
    /// Why the command was refused, in one line; `None` if it was done.
    pub refusal: Option<String>,
}
