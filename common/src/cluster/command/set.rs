//! Replica sets: one change of one set, and the loss of a node for all its sets at once.

use crate::cluster::command::Refusal;
use crate::cluster::map::SetMap;
use crate::cluster::state::ClusterState;
use crate::ids::{NodeId, SetId, VolumeId};
use crate::membership::transition::{SetChange, apply_change, apply_node_loss};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Most sets of one command; a node with more bricks is lost in several.
pub const SETS_PER_COMMAND_MAX: usize = 16_384;

/// A change of one set's membership.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeSet {
    /// The set, in the epoch that the change was decided in. In another epoch it is refused.
    #[serde(rename = "at")]
    pub set: SetAt,
    /// The change.
    pub change: SetChange,
}

/// A set in one of its epochs. The volume is named by its id: another of the same name is another.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetAt {
    /// The volume.
    pub volume: VolumeId,
    /// The set.
    pub set: SetId,
    /// Its epoch.
    pub epoch: u64,
}

/// The loss of a node: one command for all its sets (PROTOCOL, cost 7).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeLost {
    /// The node.
    pub node: NodeId,
    /// The sets with bricks there, as the sender saw them. One that is in another epoch by now is passed
    /// over: the sender looks again.
    pub sets: Vec<SetAt>,
    /// The nodes that may take over.
    pub reachable: BTreeSet<NodeId>,
}

impl NodeLost {
    /// The loss of a node as this state has it, with at most so many sets as a command may have.
    pub fn of(state: &ClusterState, node: NodeId, reachable: BTreeSet<NodeId>) -> NodeLost {
        let volumes = state.volumes.values().map(|volume| &volume.map);
        let sets = volumes.flat_map(|map| map.sets.iter().map(|set| (map.id, set)));
        let sets = sets.filter(|(_, set)| apply_node_loss(set, node, &reachable) != **set);
        let at = |(volume, set): (VolumeId, &SetMap)| SetAt { volume, set: set.id, epoch: set.epoch };
        NodeLost { node, sets: sets.map(at).take(SETS_PER_COMMAND_MAX).collect(), reachable }
    }
}

pub(super) fn change(state: &mut ClusterState, change: &ChangeSet) -> Result<(), Refusal> {
    let SetAt { volume: id, set, epoch } = change.set;
    let volume = state.volumes.values_mut().find(|volume| volume.map.id == id);
    let volume = volume.ok_or(Refusal::NoSuchSet { volume: id, set })?;
    let index = usize::from(set.0);
    let old = volume.map.sets.get(index).ok_or(Refusal::NoSuchSet { volume: id, set })?;
    let refused = |reason| Refusal::Set { volume: volume.map.name.clone(), set, reason };
    let next = apply_change(old, epoch, &change.change).map_err(refused)?;
    Arc::make_mut(volume).map.sets[index] = next;
    Ok(())
}

pub(super) fn node_lost(state: &mut ClusterState, lost: &NodeLost) -> Result<(), Refusal> {
    if lost.sets.len() > SETS_PER_COMMAND_MAX {
        return Err(Refusal::TooManySets);
    }
    let mut by_volume: BTreeMap<VolumeId, Vec<&SetAt>> = BTreeMap::new();
    for at in &lost.sets {
        by_volume.entry(at.volume).or_default().push(at);
    }
    for volume in state.volumes.values_mut() {
        for at in by_volume.get(&volume.map.id).into_iter().flatten() {
            let index = usize::from(at.set.0);
            let Some(old) = volume.map.sets.get(index).filter(|set| set.epoch == at.epoch) else { continue };
            let next = apply_node_loss(old, lost.node, &lost.reachable);
            if next != *old {
                Arc::make_mut(volume).map.sets[index] = next;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::command::{Command, CreateVolume, NewBrick, apply};
    use crate::cluster::state::{NodeState, VolumeState};
    use crate::ids::{BrickId, ClusterId};
    use crate::membership::set::LeaveReason;
    use crate::membership::transition::SetRefusal;

    const NODES: [NodeId; 3] = [NodeId([1; 16]), NodeId([2; 16]), NodeId([3; 16])];

    /// Volumes of three sets, each set with a member on each node. Made by hand: a volume with replicas
    /// cannot be created yet.
    fn replicated(volumes: u16) -> ClusterState {
        let mut state = ClusterState::of_one_node(ClusterId([9; 16]), NODES[0], "n0");
        state.nodes = NODES.iter().map(|id| (*id, NodeState::first(&id.to_string(), Vec::new()))).collect();
        for v in 0..volumes {
            let mut raw = [0; 16];
            raw[..2].copy_from_slice(&v.to_be_bytes());
            let brick = |i: u8| {
                let raw = [raw[0], raw[1], i, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                NewBrick { brick: BrickId(raw), node: NODES[usize::from(i % 3)], path: format!("/{v}/{i}"), weight: 1 }
            };
            let create = CreateVolume {
                name: format!("v{v}"),
                id: VolumeId(raw),
                replica: 1,
                stripe: 1,
                force: false,
                bricks: (0..9).map(brick).collect(),
            };
            state = apply(&state, &Command::CreateVolume(create)).unwrap();
            let volume: &mut VolumeState = Arc::make_mut(state.volumes.get_mut(&format!("v{v}")).unwrap());
            let members: Vec<_> = volume.members().cloned().collect();
            let chunks = members.chunks(3).enumerate();
            volume.map.sets = chunks.map(|(i, set)| SetMap::first(SetId(i as u16), set.to_vec())).collect();
        }
        state
    }

    #[test] // R2, R3
    fn a_set_is_changed_in_the_epoch_of_the_decision() {
        let state = replicated(1);
        let map = &state.volumes["v0"].map;
        let at = SetAt { volume: map.id, set: SetId(1), epoch: 1 };
        let brick = map.sets[1].in_sync[2];
        let change = SetChange::RemoveMember { brick, reason: LeaveReason::Slow, successor: None };
        let command = Command::ChangeSet(ChangeSet { set: at, change });
        let text = serde_json::to_string(&command).unwrap();
        assert!(
            text.contains(r#""change":{"remove_member":{"brick":"#) && text.contains(r#""reason":"slow""#),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<Command>(&text).unwrap(), command);
        let next = apply(&state, &command).unwrap();
        assert_eq!((next.volumes["v0"].map.sets[1].epoch, next.volumes["v0"].map.sets[0].epoch), (2, 1));
        let reason = SetRefusal::StaleEpoch { decided: 1, current: 2 };
        assert_eq!(apply(&next, &command), Err(Refusal::Set { volume: "v0".to_owned(), set: SetId(1), reason }));
        for wrong in [SetAt { set: SetId(3), ..at }, SetAt { volume: VolumeId([7; 16]), ..at }] {
            let command = Command::ChangeSet(ChangeSet { set: wrong, change });
            assert!(matches!(apply(&state, &command), Err(Refusal::NoSuchSet { .. })));
        }
    }

    #[test] // PROTOCOL, cost 7
    fn a_node_is_lost_for_all_its_sets_at_once() {
        let state = replicated(100);
        let reachable = BTreeSet::from([NODES[1], NODES[2]]);
        let mut lost = NodeLost::of(&state, NODES[0], reachable.clone());
        assert_eq!(lost.sets.len(), 300);
        lost.sets[0].epoch = 7;
        let next = apply(&state, &Command::NodeLost(lost)).unwrap();
        let sets: Vec<&SetMap> = next.volumes.values().flat_map(|volume| &volume.map.sets).collect();
        assert_eq!(sets.iter().filter(|set| set.epoch == 2 && set.in_sync.len() == 2).count(), 299);
        assert!(sets.iter().filter(|set| set.epoch == 2).all(|set| set.member(set.primary).unwrap().node != NODES[0]));
        assert_eq!(NodeLost::of(&next, NODES[0], reachable).sets.len(), 1, "what was passed over is left");
    }
}
