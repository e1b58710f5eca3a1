//! This node as a member of its cluster: its Raft member, its connections, its certificate, and the way of a command
//! to the leader and back.

use crate::manager::CommandId;
use crate::manager::peers::look::Look;
use crate::manager::peers::{Peers, describe};
use crate::manager::raft::{Outcome, Proposal, ProposeError, RaftMember};
use crate::security::audit::Audit;
use crate::security::authority::Authority;
use crate::security::tls::Credentials;
use brickfs_common::cluster::command::Command;
use brickfs_common::cluster::state::ClusterState;
use brickfs_common::ids::NodeId;
use brickfs_proto::v1::propose_reply::Result as Answer;
use brickfs_proto::v1::{ProposeReply, ProposeRequest};
use bytes::Bytes;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// How long a command may take: an election and the retry after it fit several times.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a leader is waited for before others are asked whether they know one.
const LEADER_PATIENCE: Duration = Duration::from_millis(2_500);
/// Between two tries, while the nodes agree on a new leader.
const TRY_AGAIN: Duration = Duration::from_millis(50);

/// Why a command has no outcome.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CommandError {
    /// There is no leader.
    #[error("no leader: {reachable} of {voters} voters are reachable from here; see 'brickctl cluster status'")]
    NoLeader {
        /// How many voters this node reaches, itself counted.
        reachable: usize,
        /// How many there are.
        voters: usize,
    },
    /// It may be done or not, now or later.
    #[error("whether the command was done is not known ({0}): look before you try again")]
    Unknown(String),
    /// The node's Raft member has ended.
    #[error("the Raft member of this node has ended ({0}): see the log, mend the cause and start brickd again")]
    Ended(String),
    /// This node was removed from its cluster.
    #[error("this node was removed from its cluster: stop brickd, remove its state directory, start it and join again")]
    Removed,
    /// This node has no state of its cluster yet.
    #[error("this node waits for its cluster: no other node has sent it the state yet; see 'brickctl cluster status'")]
    NoState,
}

/// What a node works with. The main thread and the manager thread share it.
pub struct Node {
    /// The node.
    pub id: NodeId,
    /// Its name as long as the state does not say it.
    pub given_name: String,
    /// Its state directory.
    pub state_dir: PathBuf,
    /// Its Raft member.
    pub member: RaftMember,
    /// The other nodes.
    pub peers: Arc<Peers>,
    /// Its certificate, and whom it refuses.
    pub credentials: Arc<Credentials>,
    /// The audit log.
    pub audit: Arc<Audit>,
    /// How long the certificates last that it signs.
    pub certificate_life: Duration,
    /// The authority with its key, on a voter.
    pub(super) authority: Mutex<Option<Arc<Authority>>>,
    /// Set once the node has joined another cluster: everything starts anew.
    pub(super) is_rejoined: watch::Sender<bool>,
}

impl Node {
    /// The applied state.
    pub fn state(&self) -> Result<Arc<ClusterState>, CommandError> {
        let state = self.member.state().ok_or(CommandError::NoState)?;
        if state.nodes.contains_key(&self.id) { Ok(state) } else { Err(CommandError::Removed) }
    }

    /// This node's name.
    pub fn name(&self) -> String {
        let state = self.member.state();
        let own = state.as_ref().and_then(|state| state.nodes.get(&self.id));
        own.map_or_else(|| self.given_name.clone(), |own| own.name.clone())
    }

    /// The authority, if this node has its key.
    pub fn authority(&self) -> Option<Arc<Authority>> {
        self.authority_slot().clone()
    }

    /// Takes over or gives up the authority's key; the files are the caller's matter.
    pub fn set_authority(&self, authority: Option<Authority>) {
        *self.authority_slot() = authority.map(Arc::new);
    }

    fn authority_slot(&self) -> MutexGuard<'_, Option<Arc<Authority>>> {
        self.authority.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that the node has joined another cluster.
    pub fn set_rejoined(&self) {
        self.is_rejoined.send_replace(true);
    }

    /// Ends when it has.
    pub fn rejoined(&self) -> impl Future<Output = ()> + use<> {
        let mut is_rejoined = self.is_rejoined.subscribe();
        async move {
            if is_rejoined.wait_for(|is_rejoined| *is_rejoined).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// This node as it shows itself to others.
    pub async fn look(&self) -> Look {
        Look {
            node: self.id,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            has_key: self.authority().is_some(),
            raft: self.member.status().await,
            commands: self.member.state().map_or(0, |state| state.applied),
            sights: self.peers.sights(),
        }
    }

    /// Has a command applied, whoever leads, and waits until this node's state has it. Sent again under its id until
    /// its outcome is known: it runs once.
    pub async fn run(&self, id: CommandId, command: Command) -> Result<Outcome, CommandError> {
        let deadline = Instant::now() + COMMAND_TIMEOUT;
        let outcome = self.find_outcome(id, command, deadline).await?;
        let mut watched = self.member.watch();
        let has_it = watched.wait_for(|state| state.as_ref().is_some_and(|state| state.applied >= outcome.number));
        // Done is done: a node that follows too slowly answers with an older state.
        let _ = timeout(deadline.saturating_duration_since(Instant::now()), has_it).await;
        Ok(outcome)
    }

    async fn find_outcome(&self, id: CommandId, command: Command, deadline: Instant) -> Result<Outcome, CommandError> {
        let mut doubt = None;
        loop {
            let known_by = deadline.min(Instant::now() + LEADER_PATIENCE);
            let tried = match self.member.wait_leader(known_by).await {
                Some(leader) if leader == self.id => self.propose_here(id, command.clone(), deadline).await,
                Some(leader) => self.propose_there(leader, id, &command, deadline, false).await,
                None => self.propose_through_others(id, &command, deadline).await,
            };
            match tried {
                Ok(outcome) => return Ok(outcome),
                Err(Tried::NotDone) => (),
                Err(Tried::Unknown(reason)) => doubt = Some(reason),
            }
            if Instant::now() >= deadline || self.member.fault().is_some() {
                break;
            }
            sleep(TRY_AGAIN).await;
        }
        if let Some(fault) = self.member.fault() {
            return Err(CommandError::Ended(fault));
        }
        Err(doubt.map_or_else(|| self.no_leader(), CommandError::Unknown))
    }

    /// Applies a command for another node: only where this one leads.
    pub async fn propose_here(&self, id: CommandId, command: Command, deadline: Instant) -> Result<Outcome, Tried> {
        let proposal = Proposal { id, command, time_ms: now_ms() };
        match self.member.propose(proposal, deadline).await {
            Ok(outcome) => Ok(outcome),
            Err(ProposeError::NotLeader { .. }) => Err(Tried::NotDone),
            Err(error) => Err(Tried::Unknown(error.to_string())),
        }
    }

    /// This node hears of no leader; another one that it reaches may (a cut need not be whole).
    async fn propose_through_others(
        &self,
        id: CommandId,
        command: &Command,
        deadline: Instant,
    ) -> Result<Outcome, Tried> {
        for node in self.peers.others().into_iter().filter(|node| self.peers.is_reachable(*node)) {
            match self.propose_there(node, id, command, deadline, true).await {
                Err(Tried::NotDone) => (),
                known => return known,
            }
        }
        Err(Tried::NotDone)
    }

    /// Passes a command of a node that knows no leader on to the one that this node knows.
    pub async fn pass_on(&self, id: CommandId, command: Command, deadline: Instant) -> Result<Outcome, Tried> {
        match self.member.leader() {
            Some(leader) if leader == self.id => self.propose_here(id, command, deadline).await,
            Some(leader) => self.propose_there(leader, id, &command, deadline, false).await,
            None => Err(Tried::NotDone),
        }
    }

    async fn propose_there(
        &self,
        leader: NodeId,
        id: CommandId,
        command: &Command,
        deadline: Instant,
        may_pass_on: bool,
    ) -> Result<Outcome, Tried> {
        let Some(mut client) = self.peers.client(leader) else { return Err(Tried::NotDone) };
        let left = deadline.saturating_duration_since(Instant::now());
        let json = serde_json::to_vec(command).map_err(|error| Tried::Unknown(error.to_string()))?;
        let timeout_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
        let request = ProposeRequest { id: Bytes::copy_from_slice(&id), command: json.into(), timeout_ms, may_pass_on };
        match timeout(left, client.propose(request)).await {
            Ok(Ok(reply)) => read_reply(reply.into_inner()),
            Ok(Err(status)) => Err(Tried::Unknown(describe(&status))),
            Err(_) => Err(Tried::Unknown("the leader did not answer in time".to_owned())),
        }
    }

    fn no_leader(&self) -> CommandError {
        let voters = self.member.voters();
        let is_reachable = |voter: &&NodeId| **voter == self.id || self.peers.is_reachable(**voter);
        CommandError::NoLeader { reachable: voters.iter().filter(is_reachable).count(), voters: voters.len() }
    }
}

/// Why one try gave no outcome.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Tried {
    /// Another node leads: nothing was done.
    NotDone,
    /// It may be done: the next try, under the same id, finds out.
    Unknown(String),
}

/// The answer of the leader to another node.
pub fn write_reply(outcome: Result<Outcome, Tried>) -> ProposeReply {
    match outcome {
        Ok(Outcome { number, refusal }) => {
            ProposeReply { result: Answer::Applied.into(), number, refusal, reason: String::new() }
        }
        Err(Tried::NotDone) => ProposeReply { result: Answer::NotLeader.into(), ..ProposeReply::default() },
        Err(Tried::Unknown(reason)) => {
            ProposeReply { result: Answer::Unknown.into(), reason, ..ProposeReply::default() }
        }
    }
}

fn read_reply(reply: ProposeReply) -> Result<Outcome, Tried> {
    match reply.result() {
        Answer::Applied => Ok(Outcome { number: reply.number, refusal: reply.refusal }),
        Answer::NotLeader => Err(Tried::NotDone),
        Answer::Unknown | Answer::Unspecified => Err(Tried::Unknown(reply.reason)),
    }
}

/// This node's clock, in milliseconds since 1970.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_is_read_as_the_leader_wrote_it() {
        let refused = Outcome { number: 7, refusal: Some("no".to_owned()) };
        for outcome in [Ok(refused), Ok(Outcome { number: 0, refusal: None }), Err(Tried::NotDone)] {
            assert_eq!(read_reply(write_reply(outcome.clone())), outcome);
        }
        let doubt = Err(Tried::Unknown("late".to_owned()));
        assert_eq!(read_reply(write_reply(doubt.clone())), doubt);
        assert!(matches!(read_reply(ProposeReply::default()), Err(Tried::Unknown(_))), "of another release");
    }
}
