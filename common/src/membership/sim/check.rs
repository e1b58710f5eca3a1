//! What must hold at every instant.

use super::world::{World, index_of};
use crate::cluster::map::SetMap;
use crate::ids::BrickId;

impl World {
    fn serves(&self, i: usize) -> bool {
        let member = &self.members[i];
        member.is_up && !member.is_paused && member.may_serve(self.local_ms(i))
    }

    pub(super) fn find_violation(&mut self) -> Option<String> {
        for (i, member) in self.members.iter().enumerate() {
            if member.map.epoch < self.epochs_seen[i] {
                return Some(format!("R2: the epoch of member {i} went back to {}", member.map.epoch));
            }
            self.epochs_seen[i] = member.map.epoch;
        }
        if self.manager.set.epoch < self.epochs {
            return Some(format!("R2: the epoch of the set went back to {}", self.manager.set.epoch));
        }
        self.epochs = self.manager.set.epoch;
        let serving: Vec<usize> = (0..self.members.len()).filter(|i| self.serves(*i)).collect();
        if serving.len() > 1 {
            let maps: Vec<String> = serving.iter().map(|i| show(&self.members[*i].map)).collect();
            return Some(format!("R5: members {serving:?} serve at once: {maps:?}"));
        }
        let i = *serving.first()?;
        for other in self.members[i].map.in_sync.iter().map(|brick| index_of(*brick)).filter(|other| *other != i) {
            if self.members[other].is_up && self.members[other].lease.own_grants_are_over(self.local_ms(other)) {
                return Some(format!("R5: member {i} serves, and {other} thinks that it granted nothing"));
            }
        }
        let lost = self.acked.first_not_in(&self.members[i].writes)?;
        Some(format!("R1, R3, R4: member {i} serves without write {lost}: {}", show(&self.members[i].map)))
    }
}

/// A set on one line.
pub(super) fn show(set: &SetMap) -> String {
    let ids = |bricks: &mut dyn Iterator<Item = &BrickId>| bricks.map(|b| index_of(*b)).collect::<Vec<_>>();
    format!(
        "epoch {} primary {} in_sync {:?} catching up {:?} held {:?}",
        set.epoch,
        index_of(set.primary),
        ids(&mut set.in_sync.iter()),
        ids(&mut set.catching_up.iter()),
        ids(&mut set.held.keys())
    )
}
