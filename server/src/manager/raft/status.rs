//! How a member stands, in this project's terms.

use brickfs_common::ids::NodeId;
use openraft::{LogId, RaftMetrics, ServerState};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What a member is at the moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It proposes.
    Leader,
    /// It asks for votes.
    Candidate,
    /// It follows and may vote.
    Follower,
    /// It follows without a vote, or knows no cluster yet.
    Learner,
    /// It has ended.
    Stopped,
}

/// Another member, as the leader sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Follower {
    /// The last entry that is known to be on its disk; none before its first reply.
    pub matched: Option<u64>,
    /// Entries of the leader's log that are not known to be there.
    pub lag: u64,
}

/// How a member stands. Entries are given by their indexes, from 0.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RaftStatus {
    /// This node.
    pub node: NodeId,
    /// The term of its vote.
    pub term: u64,
    /// Whom it voted for in this term; in the term's beginning nobody.
    pub voted_for: Option<NodeId>,
    /// The leader it knows. A leader that no quorum answers any more knows none.
    pub leader: Option<NodeId>,
    /// What it is.
    pub role: Role,
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
    /// The last entry that is no longer in its log.
    pub purged: Option<u64>,
    /// Who votes; in a change of voters, the old and the new ones.
    pub voters: BTreeSet<NodeId>,
    /// Who follows without a vote.
    pub learners: BTreeSet<NodeId>,
    /// Whether a change of voters is under way, or was cut short: changing to the same voters again ends it.
    pub is_changing_voters: bool,
    /// Milliseconds since a quorum last answered this leader; none elsewhere.
    pub quorum_age_ms: Option<u64>,
    /// The other members, where this one leads.
    pub followers: BTreeMap<NodeId, Follower>,
    /// Why it ended, if it did.
    pub fault: Option<String>,
}

/// Puts a status together. A leader whose quorum is silent for longer than `quorum_age_max_ms` is not shown
/// as one.
pub fn compute_status(
    metrics: &RaftMetrics<NodeId, openraft::EmptyNode>,
    last_log_term: Option<u64>,
    committed: Option<u64>,
    quorum_age_max_ms: u64,
) -> RaftStatus {
    let index = |log_id: Option<LogId<NodeId>>| log_id.map(|log_id| log_id.index);
    let membership = metrics.membership_config.membership();
    let follower = |matched: &Option<LogId<NodeId>>| {
        let matched = index(*matched);
        let length = |last: Option<u64>| last.map_or(0, |last| last + 1);
        Follower { matched, lag: length(metrics.last_log_index).saturating_sub(length(matched)) }
    };
    let replication = metrics.replication.iter().flatten();
    RaftStatus {
        node: metrics.id,
        term: metrics.current_term,
        voted_for: metrics.vote.leader_id().voted_for(),
        leader: known_leader(metrics, quorum_age_max_ms),
        role: role_of(metrics),
        last_log: metrics.last_log_index,
        last_log_term,
        committed,
        applied: index(metrics.last_applied),
        snapshot: index(metrics.snapshot),
        purged: index(metrics.purged),
        voters: membership.voter_ids().collect(),
        learners: membership.learner_ids().collect(),
        is_changing_voters: membership.get_joint_config().len() > 1,
        quorum_age_ms: metrics.millis_since_quorum_ack,
        followers: replication
            .filter(|(node, _)| **node != metrics.id)
            .map(|(node, matched)| (*node, follower(matched)))
            .collect(),
        fault: metrics.running_state.as_ref().err().map(ToString::to_string),
    }
}

/// The leader that a member knows. One that is the leader itself but was not answered by a quorum for too
/// long may have been replaced without knowing: it knows none.
pub fn known_leader(metrics: &RaftMetrics<NodeId, openraft::EmptyNode>, quorum_age_max_ms: u64) -> Option<NodeId> {
    let leads = metrics.current_leader == Some(metrics.id);
    let is_cut_off = leads && metrics.millis_since_quorum_ack.is_some_and(|age| age > quorum_age_max_ms);
    let has_ended = metrics.running_state.is_err();
    metrics.current_leader.filter(|_| !is_cut_off && !has_ended)
}

fn role_of(metrics: &RaftMetrics<NodeId, openraft::EmptyNode>) -> Role {
    if metrics.running_state.is_err() {
        return Role::Stopped;
    }
    match metrics.state {
        ServerState::Leader => Role::Leader,
        ServerState::Candidate => Role::Candidate,
        ServerState::Follower => Role::Follower,
        ServerState::Learner => Role::Learner,
        ServerState::Shutdown => Role::Stopped,
    }
}
