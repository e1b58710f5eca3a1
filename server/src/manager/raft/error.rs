//! Why a command has no outcome, and why the members were not changed.

use brickfs_common::ids::NodeId;
use openraft::EmptyNode;
use openraft::error::{ChangeMembershipError, ClientWriteError, RaftError};

/// Why a command has no outcome.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProposeError {
    /// This member does not lead. The command was not done and never will be by this call.
    #[error("this node does not lead the cluster")]
    NotLeader {
        /// Who does, as far as this member knows.
        leader: Option<NodeId>,
    },
    /// The deadline passed and a quorum does not answer. The command may still be done.
    #[error("too few voters answer")]
    NoQuorum,
    /// The deadline passed. The command may still be done.
    #[error("the cluster did not answer in time")]
    Deadline,
    /// The member has ended. The command may still be done.
    #[error("the Raft member of this node has ended")]
    Stopped,
}

/// Why the members were not changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ChangeError {
    /// As of a command.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// Another change is not committed yet.
    #[error("another change of the members is under way")]
    InProgress,
    /// A voter has to be a learner first.
    #[error("node {0} is no learner")]
    NoLearner(NodeId),
    /// No cluster without voters.
    #[error("a cluster needs a voter")]
    NoVoters,
}

/// What openraft says of a change of the members.
pub fn change_error(error: RaftError<NodeId, ClientWriteError<NodeId, EmptyNode>>) -> ChangeError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
            ProposeError::NotLeader { leader: forward.leader_id }.into()
        }
        RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => match error {
            ChangeMembershipError::InProgress(_) => ChangeError::InProgress,
            ChangeMembershipError::LearnerNotFound(missing) => ChangeError::NoLearner(missing.node_id),
            ChangeMembershipError::EmptyMembership(_) => ChangeError::NoVoters,
        },
        RaftError::Fatal(_) => ProposeError::Stopped.into(),
    }
}
