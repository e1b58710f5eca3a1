//! The world: real time, and the network between members and manager. After each step it is checked.

use super::check::show;
use super::clock::Clock;
use super::manager::Manager;
use super::member::Member;
use super::message::{Message, To, Writes};
use super::rng::Rng;
use super::{Sabotage, TICK_MS};
use crate::cluster::map::{MemberMap, SetMap};
use crate::ids::{BrickId, NodeId, SetId};
use crate::membership::transition::SetChange;
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::rc::Rc;

/// What happens next.
pub(super) enum Event {
    Deliver(To, Message),
    MemberTick(usize),
    ManagerTick,
    Write,
    Resume(usize),
    Crash(usize),
    Restart(usize),
    ManagerBack,
    Fault,
}

pub struct World {
    pub now_ms: u64,
    pub rng: Rng,
    pub members: Vec<Member>,
    pub manager: Manager,
    events: BinaryHeap<Reverse<(u64, u64)>>,
    waiting: std::collections::HashMap<u64, Event>,
    events_made: u64,
    /// Ordered pairs that cannot talk; the manager is the last number.
    pub(super) cut: BTreeSet<(usize, usize)>,
    pub is_stormy: bool,
    /// One message in so many is lost, late or doubled while it is stormy.
    lost_one_in: u64,
    late_one_in: u64,
    twice_one_in: u64,
    /// How seldom the manager suspects a living member.
    suspects_one_in: u64,
    writes_made: u32,
    /// Every acknowledged write.
    pub(super) acked: Writes,
    pub acked_count: u64,
    pub(super) epochs_seen: Vec<u64>,
    pub epochs: u64,
    pub violation: Option<String>,
    traces: bool,
}

pub fn index_of(brick: BrickId) -> usize {
    usize::from(brick.0[0])
}

fn new_set(members: u64) -> SetMap {
    let member = |i: u64| MemberMap {
        brick: BrickId([i as u8; 16]),
        incarnation: 1,
        node: NodeId([i as u8; 16]),
        node_name: String::new(),
        path: String::new(),
    };
    SetMap::first(SetId(0), (0..members).map(member).collect())
}

impl World {
    pub fn new(seed: u64, sabotage: Sabotage, traces: bool) -> World {
        let mut rng = Rng::new(seed);
        // The margin of a tenth covers two clocks that are wrong by a little less than a twentieth each.
        let drift_ppm = if sabotage == Sabotage::HasWildClocks { 300_000 } else { 45_000 };
        let set = Rc::new(new_set([2, 2, 3, 3, 4, 5][rng.below(6) as usize]));
        let members: Vec<Member> = (0..set.members.len())
            .map(|i| {
                let clock = Clock {
                    base_ms: rng.below(100_000),
                    since_ms: 0,
                    rate_ppm: 1_000_000 + rng.below(2 * drift_ppm) - drift_ppm,
                };
                Member::new(BrickId([i as u8; 16]), clock, set.clone(), sabotage)
            })
            .collect();
        let mut odds = || [4, 10, 30, 100][rng.below(4) as usize];
        let (lost_one_in, late_one_in, twice_one_in) = (odds(), odds(), odds());
        let suspects_one_in = [15, 40, 120][rng.below(3) as usize];
        let mut world = World {
            now_ms: 0,
            rng,
            epochs_seen: vec![1; members.len()],
            members,
            manager: Manager::new(set, sabotage),
            events: BinaryHeap::new(),
            waiting: std::collections::HashMap::new(),
            events_made: 0,
            cut: BTreeSet::new(),
            is_stormy: true,
            lost_one_in,
            late_one_in,
            twice_one_in,
            suspects_one_in,
            writes_made: 0,
            acked: Writes::default(),
            acked_count: 0,
            epochs: 1,
            violation: None,
            traces,
        };
        for i in 0..world.members.len() {
            world.after(1 + i as u64, Event::MemberTick(i));
        }
        world.after(5, Event::ManagerTick);
        world.after(50, Event::Write);
        world.after(4000, Event::Fault);
        world
    }

    pub(super) fn after(&mut self, delay_ms: u64, event: Event) {
        self.events_made += 1;
        self.events.push(Reverse((self.now_ms + delay_ms, self.events_made)));
        self.waiting.insert(self.events_made, event);
    }

    pub(super) fn trace(&self, what: impl FnOnce() -> String) {
        if self.traces {
            eprintln!("{:>7} {}", self.now_ms, what());
        }
    }

    pub fn step(&mut self) {
        let Some(Reverse((at_ms, number))) = self.events.pop() else { return };
        self.now_ms = at_ms;
        // Leases run out between events: look before and after.
        self.check();
        match self.waiting.remove(&number) {
            Some(Event::Deliver(to, message)) => self.deliver(to, message),
            Some(Event::MemberTick(i)) => self.member_tick(i),
            Some(Event::ManagerTick) => self.manager_tick(),
            Some(Event::Write) => self.client_writes(),
            Some(Event::Resume(i)) => self.resume(i),
            Some(Event::Crash(i)) if self.is_stormy => self.members[i].crash(),
            Some(Event::Restart(i)) if self.is_stormy => self.restart(i),
            Some(Event::Crash(_) | Event::Restart(_)) => (),
            Some(Event::ManagerBack) => self.manager.is_away = false,
            Some(Event::Fault) => self.fault(),
            None => (),
        }
        self.check();
    }

    pub(super) fn local_ms(&self, i: usize) -> u64 {
        self.members[i].clock.at(self.now_ms)
    }

    fn deliver(&mut self, to: To, message: Message) {
        match to {
            To::Manager if self.manager.is_away => (),
            To::Manager => {
                let before = self.manager.index;
                self.manager.receive(self.now_ms, &message);
                self.note_commit(before, &message);
                self.send_of_manager();
            }
            To::Member(brick) => {
                let i = index_of(brick);
                let now_ms = self.local_ms(i);
                let member = &mut self.members[i];
                match (member.is_up, member.is_paused) {
                    (false, _) => (),
                    // It waits in the socket.
                    (true, true) => member.inbox.push(message),
                    (true, false) => member.receive(now_ms, message),
                }
                self.send_of_member(i);
            }
        }
    }

    fn note_commit(&self, before: u64, why: &Message) {
        if self.manager.index != before {
            self.trace(|| format!("commit {:?} by {why:?}", show(&self.manager.set)));
        }
    }

    fn member_tick(&mut self, i: usize) {
        let jitter = self.rng.below(TICK_MS / 2);
        self.after(TICK_MS * 3 / 4 + jitter, Event::MemberTick(i));
        let now_ms = self.local_ms(i);
        if self.members[i].is_up && !self.members[i].is_paused {
            self.members[i].tick(now_ms);
            self.send_of_member(i);
        }
    }

    fn manager_tick(&mut self) {
        self.after(TICK_MS, Event::ManagerTick);
        if !self.manager.is_away {
            let before = self.manager.index;
            let suspects_one_in = self.is_stormy.then_some(self.suspects_one_in);
            self.manager.tick(self.now_ms, suspects_one_in, &mut self.rng);
            if self.manager.index != before {
                self.trace(|| format!("commit {:?} by itself", show(&self.manager.set)));
            }
            self.send_of_manager();
        }
    }

    /// A client tries everybody: who may serve takes the write.
    fn client_writes(&mut self) {
        let pause = self.rng.between(40, 300);
        self.after(pause, Event::Write);
        for i in 0..self.members.len() {
            let now_ms = self.local_ms(i);
            let member = &mut self.members[i];
            if member.is_up && !member.is_paused && member.write(now_ms, self.writes_made) {
                self.writes_made += 1;
                self.send_of_member(i);
                // Another one may have a lease as well only by a mistake, which `check` has found.
            }
        }
    }

    pub(super) fn resume(&mut self, i: usize) {
        let now_ms = self.local_ms(i);
        let member = &mut self.members[i];
        if member.is_up && member.is_paused {
            member.is_paused = false;
            for message in std::mem::take(&mut member.inbox) {
                member.receive(now_ms, message);
            }
            self.send_of_member(i);
            self.trace(|| format!("resume {i}"));
        }
    }

    fn send_of_member(&mut self, i: usize) {
        let acked = std::mem::take(&mut self.members[i].acked);
        for write in &acked {
            self.acked.insert(*write);
            self.acked_count += 1;
            let set = &self.members[i].map;
            if set.in_sync.len() < set.min_in_sync() {
                self.violation = Some(format!("write {write} acknowledged below min-in-sync: {}", show(set)));
            }
        }
        for (to, message) in std::mem::take(&mut self.members[i].out) {
            self.send(i, to, message);
        }
    }

    pub(super) fn send_of_manager(&mut self) {
        let manager = self.members.len();
        for (to, message) in std::mem::take(&mut self.manager.out) {
            self.send(manager, to, message);
        }
    }

    /// Late, lost or twice.
    fn send(&mut self, from: usize, to: To, message: Message) {
        let link = match to {
            To::Member(brick) => (from, index_of(brick)),
            To::Manager => (from, self.members.len()),
        };
        if self.cut.contains(&link) || (self.is_stormy && self.rng.is_one_in(self.lost_one_in)) {
            return;
        }
        if self.is_stormy
            && let Message::Ask { change: SetChange::JoinInSync { brick, .. }, .. } = &message
        {
            self.trouble_a_join(from, index_of(*brick));
        }
        let copies = if self.is_stormy && self.rng.is_one_in(self.twice_one_in) { 2 } else { 1 };
        for _ in 0..copies {
            let is_late = self.is_stormy && self.rng.is_one_in(self.late_one_in);
            let delay_ms = if is_late && matches!(message, Message::Ask { .. }) {
                self.rng.between(100, 7000)
            } else if is_late {
                self.rng.between(100, 4000)
            } else {
                self.rng.between(1, 25)
            };
            self.after(delay_ms, Event::Deliver(to, message.clone()));
        }
    }

    fn check(&mut self) {
        if self.violation.is_none() {
            self.violation = self.find_violation();
        }
    }
}
