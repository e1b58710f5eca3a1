//! How a cluster is, as `brickctl cluster status` and `cluster raft` show it.

use crate::cluster::state::NodeRole;
use crate::ids::{ClusterId, NodeId};
use serde::{Deserialize, Serialize};

/// The cluster as one node sees it, with what the nodes that it can reach say of each other.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterReport {
    /// The cluster.
    pub cluster: ClusterId,
    /// The cluster version: which commands may be used.
    pub version: u32,
    /// Name of the node that answers.
    pub answered_by: String,
    /// Name of the node that leads; none while nobody does.
    pub leader: Option<String>,
    /// Whether somebody leads, all nodes reach each other, Raft works on all that answer, and as many vote as should.
    pub healthy: bool,
    /// Its nodes by name.
    pub nodes: Vec<NodeReport>,
}

/// One node of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeReport {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: NodeId,
    /// What it is for.
    pub role: NodeRole,
    /// `host:port` where other nodes reach it.
    pub addresses: Vec<String>,
    /// Whether it votes.
    pub is_voter: bool,
    /// Whether the node that answers reaches it.
    pub is_reachable: bool,
    /// The nodes that do not reach it, by name. Nodes that the answering one cannot ask say nothing.
    pub unreachable_from: Vec<Unreachable>,
    /// Version of its `brickd`, where it answers.
    pub version: Option<String>,
    /// When its certificate ends, in milliseconds since 1970; none without one.
    pub certificate_ends_ms: Option<u64>,
}

/// A node does not reach another.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unreachable {
    /// Name of the node that says it.
    pub from: String,
    /// For how long, in milliseconds; none where it was never reached since that node has started.
    pub for_ms: Option<u64>,
    /// Why, in one line.
    pub reason: String,
}

/// Raft as each node that can be reached sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RaftReport {
    /// The nodes by name; of one that did not answer `raft` is none.
    pub nodes: Vec<RaftNode>,
}

/// One node of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RaftNode {
    /// Name of the node.
    pub name: String,
    /// How its member stands.
    pub raft: Option<RaftMemberReport>,
    /// Entries that the leader has and that are not known to be on its disk; none if nobody leads or it does itself.
    pub lag: Option<u64>,
}

/// What a node does in Raft.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RaftRole {
    /// It leads.
    Leader,
    /// It votes and follows.
    Follower,
    /// It wants to lead.
    Candidate,
    /// It follows without a vote.
    Learner,
    /// It has ended.
    Stopped,
}

impl RaftRole {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            RaftRole::Leader => "leader",
            RaftRole::Follower => "follower",
            RaftRole::Candidate => "candidate",
            RaftRole::Learner => "learner",
            RaftRole::Stopped => "stopped",
        }
    }
}

/// How a member of Raft stands. Entries are given by their indexes in the log, from 0; none is none.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RaftMemberReport {
    /// What it does.
    pub role: RaftRole,
    /// Its term.
    pub term: u64,
    /// Name, or id, of the node that its vote of this term went to.
    pub voted_for: Option<String>,
    /// Name, or id, of the node that it takes for the leader.
    pub leader: Option<String>,
    /// The last entry of its log.
    pub last_log: Option<u64>,
    /// The term of that entry.
    pub last_log_term: Option<u64>,
    /// The last entry that it knows to be committed.
    pub committed: Option<u64>,
    /// The last entry in its state.
    pub applied: Option<u64>,
    /// The last entry in its snapshot.
    pub snapshot: Option<u64>,
    /// How many commands have made its state.
    pub commands: u64,
    /// Why it ended, if it did.
    pub fault: Option<String>,
}
