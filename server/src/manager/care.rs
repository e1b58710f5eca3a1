//! What the leader does without being asked: it lets new members follow, gives the nodes that are to vote the
//! authority's key and then their vote, takes both from those that are not, and lets go of removed nodes. Each turn
//! does at most one step; what is to be done next follows from the state, from Raft's members and from who can be
//! reached alone, so another leader goes on where this one ended.

use crate::manager::node::{CommandError, Node};
use crate::manager::peers::describe;
use crate::manager::raft::{ChangeError, ProposeError, RaftStatus};
use crate::security::authority::Authority;
use brickfs_common::cluster::state::ClusterState;
use brickfs_common::cluster::voters::{VoterChange, apply_step, choose_voters, next_step};
use brickfs_common::ids::NodeId;
use brickfs_proto::v1::TakeAuthorityKeyRequest;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};

/// Between two turns; after one that has done something the next comes at once.
const INTERVAL: Duration = Duration::from_millis(500);
/// How far behind a node may be that is given a vote, in entries.
const LAG_MAX: u64 = 100;
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a node keeps the authority's key without a vote.
const KEY_WITHOUT_VOTE: Duration = Duration::from_secs(10);

/// One step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// End a change of voters that was cut short.
    Finish(BTreeSet<NodeId>),
    /// Let a member follow.
    Follow(NodeId),
    /// Set who votes; `new` gets the key before that.
    Vote { voters: BTreeSet<NodeId>, new: Option<NodeId> },
    /// Give a voter the key that it does not have.
    GiveKey(NodeId),
    /// Let go of a node that is not a member any more and has no vote.
    Drop(NodeId),
}

/// The next step of a leader, if any.
pub fn plan_step(
    state: &ClusterState,
    raft: &RaftStatus,
    reachable: &BTreeSet<NodeId>,
    keyless: &BTreeSet<NodeId>,
) -> Option<Step> {
    if raft.is_changing_voters {
        // Old and new voters are shown together; what is wanted is decided again once this is over.
        return Some(Step::Finish(raft.voters.clone()));
    }
    let in_raft: BTreeSet<NodeId> = raft.voters.union(&raft.learners).copied().collect();
    if let Some(node) = state.nodes.keys().find(|node| !in_raft.contains(node)) {
        return Some(Step::Follow(*node));
    }
    if let Some(node) = raft.voters.intersection(keyless).find(|node| reachable.contains(node)) {
        return Some(Step::GiveKey(*node));
    }
    let wanted = choose_voters(&state.nodes, &raft.voters, reachable);
    let has_caught_up = |node: &NodeId| {
        *node == raft.node || raft.followers.get(node).is_some_and(|at| at.matched.is_some() && at.lag <= LAG_MAX)
    };
    let able: BTreeSet<NodeId> =
        reachable.iter().copied().filter(|node| raft.voters.contains(node) || has_caught_up(node)).collect();
    match next_step(&raft.voters, &wanted, &able) {
        Some(step) => {
            let voters = apply_step(&raft.voters, step);
            let new = match step {
                VoterChange::Add(node) => Some(node),
                VoterChange::Remove(_) => None,
            };
            Some(Step::Vote { voters, new })
        }
        None => raft.learners.iter().find(|node| !state.nodes.contains_key(node)).map(|node| Step::Drop(*node)),
    }
}

impl Node {
    /// Cares for the members while this node leads, until it is dropped.
    pub async fn care(self: Arc<Self>) {
        let mut keyless_since = None;
        loop {
            let status = self.member.status().await;
            self.drop_key_without_vote(&status, &mut keyless_since);
            if let Some(fault) = &status.fault {
                tracing::error!(fault, "the Raft member of this node has ended: it follows no command any more");
                return;
            }
            if matches!(self.state(), Err(CommandError::Removed)) {
                tracing::error!("this node was removed from its cluster: its Raft member ends");
                return self.member.stop().await;
            }
            let is_leading = status.leader == Some(self.id);
            let step = match self.state() {
                Ok(state) if is_leading => plan_step(&state, &status, &self.reachable(&state), &self.peers.keyless()),
                _ => None,
            };
            match step {
                None => sleep(INTERVAL).await,
                Some(step) => {
                    if let Err(error) = self.take_step(&step).await {
                        tracing::info!(?step, error, "a change of the members has to wait");
                        sleep(INTERVAL).await;
                    }
                }
            }
        }
    }

    /// The authority's key is on voters only: a node that has lost its vote deletes it. Not at once, for a node that is to
    /// get a vote has the key before.
    fn drop_key_without_vote(&self, status: &RaftStatus, since: &mut Option<Instant>) {
        let has_vote = status.voters.is_empty() || status.voters.contains(&self.id);
        if has_vote || status.leader.is_none() || self.authority().is_none() {
            *since = None;
        } else if since.get_or_insert_with(Instant::now).elapsed() > KEY_WITHOUT_VOTE {
            match Authority::drop_key(&self.state_dir) {
                Ok(()) => self.set_authority(None),
                Err(error) => tracing::error!("the authority's key cannot be deleted: {error:#}"),
            }
        }
    }

    fn reachable(&self, state: &ClusterState) -> BTreeSet<NodeId> {
        state.nodes.keys().copied().filter(|node| *node == self.id || self.peers.is_reachable(*node)).collect()
    }

    async fn take_step(&self, step: &Step) -> Result<(), String> {
        let deadline = Instant::now() + STEP_TIMEOUT;
        let text = |error: ChangeError| error.to_string();
        match step {
            Step::Follow(node) => self.member.add_learner(*node, deadline).await.map_err(text),
            Step::GiveKey(node) => self.give_key(*node).await,
            Step::Drop(node) => self.member.remove_learner(*node, deadline).await.map_err(text),
            Step::Finish(voters) => self.member.change_voters(voters.clone(), deadline).await.map_err(text),
            Step::Vote { voters, new } => {
                if let Some(node) = new {
                    self.give_key(*node).await?;
                }
                tracing::info!(?voters, "the voters change");
                self.member.change_voters(voters.clone(), deadline).await.map_err(text)
            }
        }
    }

    async fn give_key(&self, node: NodeId) -> Result<(), String> {
        if node == self.id {
            return Ok(());
        }
        let authority = self.authority().ok_or("this node does not have the authority's key")?;
        let mut client = self.peers.client(node).ok_or("it has no address")?;
        let (certificate, key) = (authority.certificate().pem(), authority.key_pem().to_string());
        let given =
            timeout(STEP_TIMEOUT, client.take_authority_key(TakeAuthorityKeyRequest { certificate, key })).await;
        match given {
            Ok(Ok(_)) => {
                self.peers.note_key(node);
                Ok(())
            }
            Ok(Err(status)) => Err(describe(&status)),
            Err(_) => Err(ProposeError::Deadline.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manager::raft::{Follower, Role};
    use brickfs_common::cluster::state::NodeState;
    use brickfs_common::ids::ClusterId;

    fn id(number: u64) -> NodeId {
        NodeId::from(number)
    }

    fn ids(numbers: &[u64]) -> BTreeSet<NodeId> {
        numbers.iter().map(|number| id(*number)).collect()
    }

    fn state(nodes: u64) -> ClusterState {
        let mut state = ClusterState::of_one_node(ClusterId([9; 16]), id(1), "n1");
        for number in 2..=nodes {
            state.nodes.insert(id(number), NodeState::first(&format!("n{number}"), Vec::new()));
        }
        state
    }

    /// Node 1 leads; the others have caught up.
    fn raft(voters: &[u64], learners: &[u64]) -> RaftStatus {
        let followers = voters.iter().chain(learners).filter(|node| **node != 1);
        RaftStatus {
            node: id(1),
            term: 1,
            voted_for: Some(id(1)),
            leader: Some(id(1)),
            role: Role::Leader,
            last_log: Some(10),
            last_log_term: Some(1),
            committed: Some(10),
            applied: Some(10),
            snapshot: None,
            purged: None,
            voters: ids(voters),
            learners: ids(learners),
            is_changing_voters: false,
            quorum_age_ms: Some(0),
            followers: followers.map(|node| (id(*node), Follower { matched: Some(10), lag: 0 })).collect(),
            fault: None,
        }
    }

    fn step(state: &ClusterState, raft: &RaftStatus, reachable: &BTreeSet<NodeId>) -> Option<Step> {
        plan_step(state, raft, reachable, &BTreeSet::new())
    }

    #[test]
    fn a_voter_without_the_key_gets_it() {
        let (state, raft, all) = (state(3), raft(&[1, 2, 3], &[]), ids(&[1, 2, 3]));
        assert_eq!(plan_step(&state, &raft, &all, &ids(&[3, 4])), Some(Step::GiveKey(id(3))));
        assert_eq!(plan_step(&state, &raft, &ids(&[1, 2]), &ids(&[3])), None, "it cannot be reached");
    }

    #[test]
    fn a_new_member_follows_first_and_votes_only_when_three_can() {
        let all = ids(&[1, 2, 3]);
        assert_eq!(step(&state(2), &raft(&[1], &[]), &all), Some(Step::Follow(id(2))));
        assert_eq!(step(&state(2), &raft(&[1], &[2]), &all), None, "two nodes have one voter");
        let vote = |voters: &[u64], new| Some(Step::Vote { voters: ids(voters), new: Some(id(new)) });
        assert_eq!(step(&state(3), &raft(&[1], &[2, 3]), &all), vote(&[1, 2], 2));
        assert_eq!(step(&state(3), &raft(&[1, 2], &[3]), &all), vote(&[1, 2, 3], 3));
        assert_eq!(step(&state(3), &raft(&[1, 2, 3], &[]), &all), None);
    }

    #[test]
    fn who_is_behind_or_away_gets_no_vote() {
        let mut behind = raft(&[1], &[2, 3]);
        behind.followers.insert(id(2), Follower { matched: Some(10), lag: LAG_MAX + 1 });
        assert_eq!(step(&state(3), &behind, &ids(&[1, 2, 3])), None);
        assert_eq!(step(&state(3), &raft(&[1], &[2, 3]), &ids(&[1, 3])), None);
    }

    #[test]
    fn a_removed_node_loses_its_vote_and_is_let_go() {
        // Four nodes, of which number 2 was removed.
        let mut three = state(4);
        three.nodes.remove(&id(2));
        let all = ids(&[1, 3, 4]);
        let replaced = step(&three, &raft(&[1, 2, 3], &[4]), &all);
        assert_eq!(replaced, Some(Step::Vote { voters: ids(&[1, 2, 3, 4]), new: Some(id(4)) }));
        let removed = step(&three, &raft(&[1, 2, 3, 4], &[]), &all);
        assert_eq!(removed, Some(Step::Vote { voters: ids(&[1, 3, 4]), new: None }));
        assert_eq!(step(&three, &raft(&[1, 3, 4], &[2]), &all), Some(Step::Drop(id(2))));
        assert_eq!(step(&three, &raft(&[1, 3, 4], &[]), &all), None);
    }

    #[test]
    fn a_change_that_was_cut_short_is_ended_first() {
        let cut = RaftStatus { is_changing_voters: true, ..raft(&[1, 2], &[]) };
        assert_eq!(step(&state(3), &cut, &ids(&[1, 2])), Some(Step::Finish(ids(&[1, 2]))));
    }
}
