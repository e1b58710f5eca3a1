//! The Raft member of this node: what the rest of the manager asks of it, with deadlines and in this
//! project's types. It is opened on the manager thread; every other call may come from any tokio runtime.

use crate::manager::cluster_db::ClusterDb;
use crate::manager::raft::error::{ChangeError, ProposeError, change_error};
use crate::manager::raft::log_store::LogStore;
use crate::manager::raft::network::{self, Network, PeerLink, RaftCall, ReceiveError};
use crate::manager::raft::reset::finish_forgetting;
use crate::manager::raft::state_machine::{Published, StateMachine};
use crate::manager::raft::status::{RaftStatus, compute_status, known_leader};
use crate::manager::raft::timing::{Timing, config_of};
use crate::manager::raft::types::{Change, Outcome, Proposal, Types};
use anyhow::Context as _;
use brickfs_common::cluster::state::ClusterState;
use brickfs_common::ids::NodeId;
use bytes::Bytes;
use openraft::error::{CheckIsLeaderError, ClientWriteError, InitializeError, RaftError};
use openraft::{ChangeMembers, EmptyNode, Raft, RaftMetrics, ServerState};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::timeout_at;

/// `leader` depends on the clock: how often those that wait for one look again without a change.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The member. Clones share it.
#[derive(Clone)]
pub struct RaftMember {
    raft: Raft<Types>,
    node: NodeId,
    log: LogStore,
    published: watch::Receiver<Published>,
    quorum_age_max_ms: u64,
}

type Metrics = RaftMetrics<NodeId, EmptyNode>;

impl RaftMember {
    /// Opens the member of `node` from its database, on the manager thread; its tasks run there.
    /// `json_path` is where the readable copy of the state goes. A member that was never founded nor added
    /// to a cluster only waits.
    pub async fn open(
        db: &ClusterDb,
        node: NodeId,
        json_path: PathBuf,
        link: Arc<dyn PeerLink>,
        timing: Timing,
    ) -> anyhow::Result<RaftMember> {
        finish_forgetting(db).await?;
        let config = Arc::new(config_of(timing)?);
        let log = LogStore::open(db)?;
        let machine = StateMachine::open(db, json_path)?;
        let published = machine.watch();
        let raft =
            Raft::new(node, config, Network::new(link), log.clone(), machine).await.context("cannot start Raft")?;
        let member = RaftMember { raft, node, log, published, quorum_age_max_ms: 2 * timing.election_max_ms };
        member.lead_if_alone().await?;
        Ok(member)
    }

    /// The only voter need not wait for an election.
    async fn lead_if_alone(&self) -> anyhow::Result<()> {
        let node = self.node;
        let elects = self.raft.with_raft_state(move |state| {
            let voters: Vec<NodeId> = state.membership_state.effective().voter_ids().collect();
            voters == [node] && state.server_state != ServerState::Leader
        });
        if elects.await? {
            self.raft.trigger().elect().await?;
        }
        Ok(())
    }

    /// Makes a new cluster of this node alone, with this first state. Without effect for a member of a
    /// cluster; may be repeated after a crash or an error.
    pub async fn found(&self, state: ClusterState, deadline: Instant) -> Result<(), ProposeError> {
        match self.raft.initialize(BTreeSet::from([self.node])).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => (),
            Err(RaftError::APIError(InitializeError::NotInMembers(_)) | RaftError::Fatal(_)) => {
                return Err(ProposeError::Stopped);
            }
        }
        let alone = BTreeSet::from([self.node]);
        let is_elsewhere = |status: &RaftStatus| !status.voters.is_empty() && status.voters != alone;
        let leads = |status: &RaftStatus| status.leader == Some(status.node) || is_elsewhere(status);
        let status = self.wait_for(deadline, leads).await.ok_or(ProposeError::Deadline)?;
        if is_elsewhere(&status) || self.state().is_some() {
            return Ok(());
        }
        self.write(Change::Found(Box::new(state)), deadline).await.map(drop)
    }

    /// Proposes a command and waits until it is applied here. Only on the leader.
    pub async fn propose(&self, proposal: Proposal, deadline: Instant) -> Result<Outcome, ProposeError> {
        self.write(Change::Run(proposal), deadline).await
    }

    async fn write(&self, change: Change, deadline: Instant) -> Result<Outcome, ProposeError> {
        match timeout_at(deadline.into(), self.raft.client_write(change)).await {
            Ok(Ok(reply)) => Ok(reply.data),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward)))) => {
                Err(ProposeError::NotLeader { leader: forward.leader_id })
            }
            // Commands do not change members.
            Ok(Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(_)) | RaftError::Fatal(_))) => {
                Err(ProposeError::Stopped)
            }
            Err(_) => Err(self.late()),
        }
    }

    /// Waits until everything that was committed anywhere before this call is in `state()`, and makes sure
    /// that this member still leads. Only on the leader.
    #[cfg_attr(not(test), expect(dead_code, reason = "for answers that may not be old; nobody asks for one yet"))]
    pub async fn read_barrier(&self, deadline: Instant) -> Result<(), ProposeError> {
        match timeout_at(deadline.into(), self.raft.ensure_linearizable()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(forward)))) => {
                Err(ProposeError::NotLeader { leader: forward.leader_id })
            }
            Ok(Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_)))) => Err(ProposeError::NoQuorum),
            Ok(Err(RaftError::Fatal(_))) => Err(ProposeError::Stopped),
            Err(_) => Err(self.late()),
        }
    }

    /// Lets a node follow without a vote. Does not wait until it has caught up: see `RaftStatus::followers`.
    pub async fn add_learner(&self, node: NodeId, deadline: Instant) -> Result<(), ChangeError> {
        self.change(ChangeMembers::AddNodes(BTreeMap::from([(node, EmptyNode {})])), deadline).await
    }

    /// Removes a node that has no vote.
    pub async fn remove_learner(&self, node: NodeId, deadline: Instant) -> Result<(), ChangeError> {
        self.change(ChangeMembers::RemoveNodes(BTreeSet::from([node])), deadline).await
    }

    /// Sets who votes; each has to be a learner or a voter. A voter that is left out becomes a learner. A
    /// change that was cut short (`RaftStatus::is_changing_voters`) is ended by asking for the same again.
    pub async fn change_voters(&self, voters: BTreeSet<NodeId>, deadline: Instant) -> Result<(), ChangeError> {
        self.change(ChangeMembers::ReplaceAllVoters(voters), deadline).await
    }

    async fn change(&self, change: ChangeMembers<NodeId, EmptyNode>, deadline: Instant) -> Result<(), ChangeError> {
        match timeout_at(deadline.into(), self.raft.change_membership(change, true)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(change_error(error)),
            Err(_) => Err(self.late().into()),
        }
    }

    /// A deadline that passed: whose fault it was.
    fn late(&self) -> ProposeError {
        let metrics = self.raft.metrics().borrow().clone();
        match metrics.running_state {
            Err(_) => ProposeError::Stopped,
            Ok(()) if known_leader(&metrics, self.quorum_age_max_ms).is_none() => ProposeError::NoQuorum,
            Ok(()) => ProposeError::Deadline,
        }
    }

    /// The leader this member knows; itself only while a quorum answers it.
    pub fn leader(&self) -> Option<NodeId> {
        known_leader(&self.raft.metrics().borrow(), self.quorum_age_max_ms)
    }

    /// Who votes.
    pub fn voters(&self) -> BTreeSet<NodeId> {
        self.raft.metrics().borrow().membership_config.membership().voter_ids().collect()
    }

    /// Why this member has ended, if it has.
    pub fn fault(&self) -> Option<String> {
        self.raft.metrics().borrow().running_state.as_ref().err().map(ToString::to_string)
    }

    /// Waits for a leader.
    pub async fn wait_leader(&self, deadline: Instant) -> Option<NodeId> {
        self.wait_for(deadline, |status| status.leader.is_some()).await?.leader
    }

    /// The applied state; none before the cluster was founded or this node has heard of it.
    pub fn state(&self) -> Published {
        self.published.borrow().clone()
    }

    /// Follows the applied state. What is seen is on this node's disk.
    pub fn watch(&self) -> watch::Receiver<Published> {
        self.published.clone()
    }

    /// Handles a message of another member. Who sent it was checked by the caller.
    pub async fn receive(&self, call: RaftCall, body: Bytes) -> Result<Bytes, ReceiveError> {
        network::receive(&self.raft, call, &body).await
    }

    /// How the member stands.
    pub async fn status(&self) -> RaftStatus {
        let committed = self.raft.with_raft_state(|state| state.committed.map(|log_id| log_id.index)).await;
        let metrics = self.raft.metrics().borrow().clone();
        self.status_of(&metrics, self.log.last_term(), committed.unwrap_or_default())
    }

    fn status_of(&self, metrics: &Metrics, last_term: Option<u64>, committed: Option<u64>) -> RaftStatus {
        compute_status(metrics, last_term, committed, self.quorum_age_max_ms)
    }

    /// Waits until the status is as wanted; none if the deadline passes first or the member ends.
    /// `committed` is not known here and shown as `applied`, nor is the last entry's term.
    pub async fn wait_for(
        &self,
        deadline: Instant,
        mut is_wanted: impl FnMut(&RaftStatus) -> bool + Send,
    ) -> Option<RaftStatus> {
        let mut metrics = self.raft.metrics();
        loop {
            let seen = metrics.borrow_and_update().clone();
            let status = self.status_of(&seen, None, seen.last_applied.map(|log_id| log_id.index));
            if is_wanted(&status) {
                return Some(status);
            }
            if Instant::now() >= deadline {
                return None;
            }
            let until = deadline.min(Instant::now() + LOOK_AGAIN);
            if let Ok(Err(_)) = timeout_at(until.into(), metrics.changed()).await {
                return None;
            }
        }
    }

    /// Ends the member. What it acknowledged is on the disk in any case.
    pub async fn stop(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::error!(%error, "the Raft member did not end well");
        }
    }
}
