//! What goes wrong, and what stays so when the storm is over.

use super::check::show;
use super::world::{Event, World, index_of};
use crate::membership::transition::SetChange;
use std::collections::BTreeSet;

impl World {
    /// The outcome of a join is where most can go wrong (PROTOCOL 18): who asks for it loses the manager, or
    /// the joiner, or dies and starts again, while the question is on its way.
    pub(super) fn trouble_a_join(&mut self, asker: usize, joiner: usize) {
        let manager = self.members.len();
        if self.rng.is_one_in(4) {
            self.cut.insert((manager, asker));
        }
        if self.rng.is_one_in(4) {
            self.cut.extend([(asker, joiner), (joiner, asker)]);
        }
        if self.rng.is_one_in(4) {
            let (dies, lives) = (self.rng.between(0, 300), self.rng.between(300, 1500));
            self.after(dies, Event::Crash(asker));
            self.after(lives, Event::Restart(asker));
        }
    }

    pub(super) fn fault(&mut self) {
        if !self.is_stormy {
            return;
        }
        let next = self.rng.between(200, 1800);
        self.after(next, Event::Fault);
        let all = self.members.len() as u64;
        let (i, other) = (self.rng.below(all) as usize, self.rng.below(all + 1) as usize);
        let kind = self.rng.below(13);
        self.trace(|| format!("fault {kind} at {i} with {other}"));
        match kind {
            0 => self.members[i].crash(),
            1 | 2 => self.restart(i),
            3 | 4 if self.members[i].is_up => {
                self.members[i].is_paused = true;
                let pause = self.rng.between(100, 8000);
                self.after(pause, Event::Resume(i));
            }
            // A node alone, with or without its way to the manager.
            5 => self.cut.extend((0..=all as usize).flat_map(|j| [(i, j), (j, i)])),
            6 => self.cut.extend((0..all as usize).flat_map(|j| [(i, j), (j, i)])),
            // One link, in both directions or in one.
            7 => self.cut.extend([(i, other), (other, i)]),
            8 => drop(self.cut.insert((i, other))),
            9 | 10 => self.cut.clear(),
            11 => {
                self.manager.is_away = true;
                let away = self.rng.between(500, 6000);
                self.after(away, Event::ManagerBack);
            }
            12 => self.wipe(i),
            _ => (),
        }
    }

    /// A dead member comes back with an empty disk (R7), where the set can do without what it had.
    fn wipe(&mut self, i: usize) {
        if self.members[i].is_up {
            return;
        }
        let brick = self.members[i].id;
        let set = self.manager.set.clone();
        let successor =
            set.successors(brick).map(|member| member.brick).find(|other| self.members[index_of(*other)].is_up);
        let incarnation = set.member(brick).map_or(0, |member| member.incarnation);
        if self.manager.renew(SetChange::RenewBrick { brick, incarnation, successor }) {
            self.trace(|| format!("wiped {i}: {}", show(&self.manager.set)));
            self.members[i].wipe(self.manager.index, self.manager.set.clone());
            self.epochs_seen[i] = 0;
            self.restart(i);
            self.send_of_manager();
        }
    }

    pub(super) fn restart(&mut self, i: usize) {
        if self.members[i].is_up {
            return;
        }
        // A machine that starts again has a new clock.
        if self.rng.is_one_in(3) {
            let base_ms = self.rng.below(5000);
            let clock = &mut self.members[i].clock;
            (clock.base_ms, clock.since_ms) = (base_ms, self.now_ms);
        }
        let now_ms = self.local_ms(i);
        self.members[i].restart(now_ms);
    }

    /// The storm is over. Some stay dead, as many as a set survives: the least number lives, and one of the
    /// last members in sync.
    pub fn calm(&mut self) {
        self.is_stormy = false;
        self.cut.clear();
        self.manager.is_away = false;
        let all = self.members.len();
        let dead: BTreeSet<usize> = (0..all).filter(|_| self.rng.is_one_in(3)).collect();
        let in_sync_lives = self.manager.set.in_sync.iter().any(|brick| !dead.contains(&index_of(*brick)));
        let may_stay_dead = all - dead.len() >= self.manager.set.min_in_sync() && in_sync_lives;
        for i in 0..all {
            if may_stay_dead && dead.contains(&i) {
                self.members[i].crash();
            } else {
                self.resume(i);
                self.restart(i);
            }
        }
        self.trace(|| format!("calm; dead stay {dead:?}: {may_stay_dead}"));
    }

    /// Whether a member of the last in_sync is there.
    pub fn in_sync_lives(&self) -> bool {
        self.manager.set.in_sync.iter().any(|brick| self.members[index_of(*brick)].is_up)
    }
}
