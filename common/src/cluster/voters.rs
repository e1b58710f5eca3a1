//! Which nodes vote in Raft, and by which steps the voters get there (DESIGN section 4). Follows from the
//! state and from who is reachable alone, so every leader comes to the same answer.

use crate::cluster::state::{NodeRole, NodeState};
use crate::ids::NodeId;
use std::collections::{BTreeMap, BTreeSet};

/// One step of the voters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VoterChange {
    /// This node becomes a voter, as soon as it has caught up.
    Add(NodeId),
    /// This one is a voter no more.
    Remove(NodeId),
}

/// How many of so many nodes vote: an odd number, since an even one survives no more losses than the odd
/// one below it.
pub fn count_voters(nodes: usize) -> usize {
    match nodes {
        0 => 0,
        1 | 2 => 1,
        3 | 4 => 3,
        _ => 5,
    }
}

/// Chooses the voters. Of the nodes that are reachable witnesses come first, then those that vote already,
/// then by id: the choice stays as it is unless there is a reason. After them come the voters that are not
/// reachable: such a one stays until another node can take its place. Last are nodes that do not vote and
/// are not reachable: chosen only where there are not enough others, and never added before they are
/// reachable (`next_step`).
pub fn choose_voters(
    nodes: &BTreeMap<NodeId, NodeState>,
    current: &BTreeSet<NodeId>,
    reachable: &BTreeSet<NodeId>,
) -> BTreeSet<NodeId> {
    let mut ranked: Vec<_> = nodes
        .iter()
        .map(|(id, node)| {
            let is_witness = node.role == NodeRole::Witness;
            let votes = current.contains(id);
            let rank = match (reachable.contains(id), is_witness, votes) {
                (true, true, true) => 0,
                (true, true, false) => 1,
                (true, false, true) => 2,
                (true, false, false) => 3,
                (false, true, true) => 4,
                (false, false, true) => 5,
                (false, true, false) => 6,
                (false, false, false) => 7,
            };
            (rank, *id)
        })
        .collect();
    ranked.sort_unstable();
    ranked.into_iter().take(count_voters(nodes.len())).map(|(_, id)| id).collect()
}

/// The next step from the voters there are to the wanted ones, `None` where nothing is to be done now.
///
/// Voters are added before others are removed, since a set that grows from odd to even survives as many
/// losses as before, and one that shrinks to even survives one less; voters that are not reachable are
/// removed first. A step is taken only if a majority of the voters after it is reachable, and only a
/// reachable node is added. No step leads from an odd number to an even one where the step after it
/// would have to wait: with two voters either one's loss stops the cluster.
pub fn next_step(
    current: &BTreeSet<NodeId>,
    wanted: &BTreeSet<NodeId>,
    reachable: &BTreeSet<NodeId>,
) -> Option<VoterChange> {
    let adds: Vec<NodeId> = wanted.difference(current).copied().filter(|id| reachable.contains(id)).collect();
    let mut removes: Vec<NodeId> = current.difference(wanted).copied().collect();
    removes.sort_by_key(|id| reachable.contains(id));
    let add = adds.first().map(|id| VoterChange::Add(*id));
    let remove = removes.first().map(|id| VoterChange::Remove(*id));
    let can_follow = current.len().is_multiple_of(2) || adds.len() >= 2 || !removes.is_empty();
    let step = match (add, remove) {
        (Some(add), _) if current.len() <= wanted.len() && can_follow => add,
        // What is to take its place cannot be added yet: the old voter stays until it can, unless the
        // voters are too many anyway.
        (_, Some(remove)) if current.len() > wanted.len() => remove,
        _ => return None,
    };
    is_alive(&apply_step(current, step), reachable).then_some(step)
}

/// The voters after a step.
pub fn apply_step(current: &BTreeSet<NodeId>, step: VoterChange) -> BTreeSet<NodeId> {
    let mut next = current.clone();
    match step {
        VoterChange::Add(id) => next.insert(id),
        VoterChange::Remove(id) => next.remove(&id),
    };
    next
}

fn is_alive(voters: &BTreeSet<NodeId>, reachable: &BTreeSet<NodeId>) -> bool {
    voters.intersection(reachable).count() > voters.len() / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, prop};
    use proptest::{prop_assert, prop_assert_eq, prop_assume, proptest};

    /// Nodes 0, 1, ...; 'w' is a witness.
    fn nodes(roles: &str) -> BTreeMap<NodeId, NodeState> {
        let node = |(i, role)| {
            let role = if role == 'w' { NodeRole::Witness } else { NodeRole::Server };
            (NodeId([i as u8; 16]), NodeState { role, ..NodeState::first(&format!("n{i}"), Vec::new()) })
        };
        roles.chars().enumerate().map(node).collect()
    }

    fn ids(ids: &[u8]) -> BTreeSet<NodeId> {
        ids.iter().map(|id| NodeId([*id; 16])).collect()
    }

    fn choose(roles: &str, current: &[u8], reachable: &[u8]) -> BTreeSet<NodeId> {
        choose_voters(&nodes(roles), &ids(current), &ids(reachable))
    }

    /// All steps, until there is none.
    fn walk(
        current: &BTreeSet<NodeId>,
        wanted: &BTreeSet<NodeId>,
        reachable: &BTreeSet<NodeId>,
    ) -> Vec<BTreeSet<NodeId>> {
        let mut path = vec![current.clone()];
        while let Some(step) = next_step(&path[path.len() - 1], wanted, reachable) {
            path.push(apply_step(&path[path.len() - 1], step));
            assert!(path.len() < 30, "{current:?} to {wanted:?} goes in circles");
        }
        path
    }

    #[test]
    fn two_servers_and_a_witness_are_three_voters() {
        assert_eq!(choose("s", &[], &[0]), ids(&[0]));
        assert_eq!(choose("ss", &[1], &[0, 1]), ids(&[1]));
        assert_eq!(choose("ss", &[1], &[0]), ids(&[0]));
        assert_eq!(choose("ssw", &[0], &[0, 1, 2]), ids(&[0, 1, 2]));
        assert_eq!(choose("sssw", &[0, 1, 2], &[0, 1, 2, 3]), ids(&[0, 1, 3]));
        assert_eq!(choose("ssssss", &[1, 3, 5], &[0, 1, 2, 3, 4, 5]), ids(&[0, 1, 2, 3, 5]));
    }

    #[test]
    fn a_voter_that_is_gone_is_replaced_and_does_not_come_back_for_its_return() {
        assert_eq!(choose("ssss", &[0, 1, 2], &[0, 1, 3]), ids(&[0, 1, 3]));
        assert_eq!(choose("ssss", &[0, 1, 3], &[0, 1, 2, 3]), ids(&[0, 1, 3]));
        assert_eq!(choose("sss", &[0, 1, 2], &[0, 1]), ids(&[0, 1, 2]));
        assert_eq!(choose("ssss", &[0, 1, 2], &[0, 1]), ids(&[0, 1, 2]));
    }

    #[test]
    fn a_dead_voter_goes_before_a_living_one() {
        // Node 2 leaves the cluster while node 1 is away: with 1 and 0 alone nothing could be committed.
        let path = walk(&ids(&[0, 1, 2]), &ids(&[0]), &ids(&[0, 2]));
        assert_eq!(path, [ids(&[0, 1, 2]), ids(&[0, 2]), ids(&[0])]);
    }

    #[test]
    fn two_voters_do_not_wait_for_a_third() {
        assert_eq!(next_step(&ids(&[0]), &ids(&[0, 1, 2]), &ids(&[0, 1])), None);
        assert_eq!(walk(&ids(&[0]), &ids(&[0, 1, 2]), &ids(&[0, 1, 2])).len(), 3);
        assert_eq!(next_step(&ids(&[0, 1]), &ids(&[0, 1, 2]), &ids(&[0, 1])), None);
    }

    proptest! {
        #[test]
        fn voters_are_odd_and_witnesses_first(
            roles in prop::collection::vec(any::<bool>(), 1..12),
            current in prop::collection::btree_set(0u8..12, 0..6),
            reachable in prop::collection::btree_set(0u8..12, 0..12),
        ) {
            let roles: String = roles.iter().map(|is_witness| if *is_witness { 'w' } else { 's' }).collect();
            let nodes = nodes(&roles);
            let (current, reachable) = (current.into_iter().collect::<Vec<_>>(), reachable.into_iter().collect::<Vec<_>>());
            let (current, reachable) = (ids(&current), ids(&reachable));
            let chosen = choose_voters(&nodes, &current, &reachable);
            prop_assert_eq!(chosen.len(), count_voters(nodes.len()));
            prop_assert!(!chosen.len().is_multiple_of(2) && chosen.iter().all(|id| nodes.contains_key(id)));
            let left_out: Vec<_> = nodes.keys().filter(|id| !chosen.contains(id)).collect();
            let is_witness = |id: &NodeId| nodes[id].role == NodeRole::Witness;
            for out in left_out.iter().filter(|id| reachable.contains(id)) {
                // Nobody is newly chosen who cannot be reached while another can, nor a server for a witness.
                prop_assert!(chosen.iter().all(|id| reachable.contains(id)));
                prop_assert!(!is_witness(out) || chosen.iter().all(is_witness));
            }
            for out in left_out.iter().filter(|id| current.contains(id) && reachable.contains(id)) {
                // A voter makes room only for a witness or another voter.
                prop_assert!(chosen.iter().all(|id| current.contains(id) || (is_witness(id) && !is_witness(out))));
            }
            prop_assert_eq!(&choose_voters(&nodes, &chosen, &reachable), &chosen, "not stable");
        }

        #[test]
        fn steps_reach_what_is_wanted_and_keep_a_majority(
            current in prop::collection::btree_set(0u8..12, 1..6),
            wanted in prop::collection::btree_set(0u8..12, 1..6),
            dead in prop::collection::btree_set(0u8..12, 0..6),
        ) {
            let current = ids(&current.into_iter().collect::<Vec<_>>());
            let wanted = ids(&wanted.into_iter().collect::<Vec<_>>());
            let dead = ids(&dead.into_iter().collect::<Vec<_>>());
            let reachable: BTreeSet<_> = ids(&(0..12).collect::<Vec<_>>()).difference(&dead).copied().collect();
            prop_assume!(!current.len().is_multiple_of(2) && !wanted.len().is_multiple_of(2) && is_alive(&current, &reachable));
            let path = walk(&current, &wanted, &reachable);
            let losses = |voters: &BTreeSet<NodeId>| (voters.len() - 1) / 2;
            let least = losses(&current).min(losses(&wanted));
            for voters in &path {
                prop_assert!(is_alive(voters, &reachable), "{path:?}");
                prop_assert!(losses(voters) >= least, "{path:?}");
                prop_assert!(voters.len() <= current.len().max(wanted.len()) + 1);
            }
            for step in path.windows(2) {
                prop_assert_eq!(step[0].symmetric_difference(&step[1]).count(), 1);
            }
            let end = &path[path.len() - 1];
            if wanted.is_subset(&reachable) {
                prop_assert_eq!(end, &wanted);
            }
        }
    }
}
