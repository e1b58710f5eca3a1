//! The replicated state and how one entry changes it: pure, so that all members come to the same.

use crate::manager::CommandId;
use crate::manager::raft::types::{Change, Entry, LogId, Outcome, Proposal, StoredMembership};
use brickfs_common::cluster::command::apply;
use brickfs_common::cluster::state::ClusterState;
use openraft::EntryPayload;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::Arc;

/// How many commands are remembered so that a repeated one is not run again: more than three nodes take in the 30 s for
/// which one may be repeated (some 300 a second with disks that sync in milliseconds).
pub const DONE_COMMANDS_MAX: usize = 16_384;

/// Everything that the applied entries made.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Applied {
    /// The cluster state; none before the cluster was founded or this node has heard of it.
    pub state: Option<Arc<ClusterState>>,
    /// The last entry in it.
    pub last: Option<LogId>,
    /// The members that the entries up to `last` set.
    pub membership: StoredMembership,
    /// The last commands, oldest first.
    pub done: VecDeque<Arc<Done>>,
}

/// A command that was run, refused or not.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Done {
    /// Index of its entry.
    pub index: u64,
    /// Its id.
    pub id: CommandId,
    /// What every repetition is answered.
    pub outcome: Outcome,
}

impl Applied {
    /// Applies the next entry.
    pub fn apply(&mut self, entry: Entry) -> Outcome {
        self.last = Some(entry.log_id);
        match entry.payload {
            EntryPayload::Blank => (),
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
            }
            EntryPayload::Normal(Change::Found(state)) => {
                if self.state.is_none() {
                    self.state = Some(Arc::new(*state));
                }
            }
            EntryPayload::Normal(Change::Run(proposal)) => return self.run(entry.log_id.index, proposal),
        }
        self.done_outcome()
    }

    fn run(&mut self, index: u64, proposal: Proposal) -> Outcome {
        // Newest first: a repetition comes soon after the first try.
        if let Some(done) = self.done.iter().rev().find(|done| done.id == proposal.id) {
            return done.outcome.clone();
        }
        let outcome = match &self.state {
            None => Outcome { number: 0, refusal: Some("the cluster has no state yet: try again".to_owned()) },
            Some(state) => match apply(state, &proposal.command) {
                Ok(next) => {
                    self.state = Some(Arc::new(next));
                    self.done_outcome()
                }
                Err(refusal) => Outcome { number: state.applied, refusal: Some(refusal.to_string()) },
            },
        };
        self.done.push_back(Arc::new(Done { index, id: proposal.id, outcome: outcome.clone() }));
        if self.done.len() > DONE_COMMANDS_MAX {
            self.done.pop_front();
        }
        outcome
    }

    fn done_outcome(&self) -> Outcome {
        Outcome { number: self.state.as_ref().map_or(0, |state| state.applied), refusal: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use brickfs_common::cluster::command::Command;
    use brickfs_common::ids::{ClusterId, NodeId};
    use openraft::CommittedLeaderId;

    fn entry(index: u64, change: Change) -> Entry {
        let log_id = LogId::new(CommittedLeaderId::new(1, NodeId::from(1)), index);
        Entry { log_id, payload: EntryPayload::Normal(change) }
    }

    fn rename(id: u64, name: &str) -> Change {
        let command = Command::RenameNode { node: NodeId::from(1), name: name.to_owned() };
        Change::Run(Proposal { id: u128::from(id).to_be_bytes(), command, time_ms: 5 })
    }

    fn founded() -> Applied {
        let state = ClusterState::of_one_node(ClusterId([9; 16]), NodeId::from(1), "node-1");
        let mut applied = Applied::default();
        applied.apply(entry(1, Change::Found(Box::new(state))));
        applied
    }

    #[test]
    fn a_repeated_command_is_answered_as_the_first_time_and_not_run() {
        let mut applied = founded();
        let first = applied.apply(entry(2, rename(1, "alpha")));
        assert_eq!(first, Outcome { number: 1, refusal: None });
        let refused = applied.apply(entry(3, rename(2, "a:b")));
        assert!(refused.refusal.is_some() && refused.number == 1);
        applied.apply(entry(4, rename(3, "beta")));
        assert_eq!(applied.apply(entry(5, rename(1, "alpha"))), first);
        assert_eq!(applied.apply(entry(6, rename(2, "a:b"))), refused);
        let state = applied.state.clone().unwrap();
        assert_eq!((state.nodes[&NodeId::from(1)].name.as_str(), state.applied), ("beta", 2));
    }

    #[test]
    fn the_oldest_commands_are_forgotten() {
        let mut applied = founded();
        let max = DONE_COMMANDS_MAX as u64;
        for i in 0..=max {
            applied.apply(entry(2 + i, rename(i, "alpha")));
        }
        assert_eq!(applied.done.len(), DONE_COMMANDS_MAX);
        assert_eq!(applied.apply(entry(max + 3, rename(1, "alpha"))).number, 2);
        assert_eq!(applied.apply(entry(max + 4, rename(0, "alpha"))).number, max + 2);
    }

    #[test]
    fn a_second_first_state_changes_nothing_and_a_command_before_it_is_refused() {
        let mut applied = Applied::default();
        assert!(applied.apply(entry(1, rename(1, "alpha"))).refusal.is_some());
        let mut applied = founded();
        let state = applied.state.clone();
        let other = ClusterState::of_one_node(ClusterId([8; 16]), NodeId::from(2), "other");
        applied.apply(entry(2, Change::Found(Box::new(other))));
        assert_eq!(applied.state, state);
    }
}
