//! One member: its durable state, its process, and a simple model of replicated writes around the lease.
//! A write is applied by the primary and sent to the others; it is acknowledged when all have it (R1).

use super::clock::Clock;
use super::message::{Message, Stream, To, Writes};
use super::{LEASE, SILENT_MS, Sabotage};
use crate::cluster::map::SetMap;
use crate::ids::BrickId;
use crate::membership::lease::Lease;
use crate::membership::set::{LeaveReason, Standing};
use crate::membership::transition::SetChange;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// What a primary knows of another member in its stream.
pub(super) struct Target {
    /// What it had when the stream began.
    pub writes: Rc<Writes>,
    pub synced: bool,
    /// Writes since then that the member has not said to have.
    pub owed: BTreeSet<u32>,
    /// It had everything once: from then on nothing is acknowledged without it, and nothing served without its
    /// grant (PROTOCOL 18).
    pub clean: bool,
    pub heard_ms: u64,
}

pub struct Member {
    pub id: BrickId,
    pub clock: Clock,
    pub is_up: bool,
    pub is_paused: bool,
    pub inbox: Vec<Message>,
    /// Durable: the newest map, and the state of which stream with which writes it has.
    pub index: u64,
    pub map: Rc<SetMap>,
    pub writes: Writes,
    pub(super) stream: Stream,
    /// The process.
    pub run: u64,
    pub lease: Lease,
    pub(super) targets: BTreeMap<BrickId, Target>,
    pub(super) pending: BTreeSet<u32>,
    pub out: Vec<(To, Message)>,
    /// Acknowledged since somebody looked.
    pub acked: Vec<u32>,
    pub sabotage: Sabotage,
}

impl Member {
    pub fn new(id: BrickId, clock: Clock, map: Rc<SetMap>, sabotage: Sabotage) -> Member {
        let lease = Lease::new(id, LEASE, 1, clock.at(0), &map);
        Member {
            id,
            clock,
            is_up: true,
            is_paused: false,
            inbox: Vec::new(),
            index: 0,
            map,
            writes: Writes::default(),
            stream: (0, 0),
            run: 1,
            lease,
            targets: BTreeMap::new(),
            pending: BTreeSet::new(),
            out: Vec::new(),
            acked: Vec::new(),
            sabotage,
        }
    }

    /// Dies: what the process knew is gone.
    pub fn crash(&mut self) {
        (self.is_up, self.is_paused) = (false, false);
        self.inbox.clear();
        self.targets.clear();
        self.pending.clear();
    }

    pub fn restart(&mut self, now_ms: u64) {
        self.is_up = true;
        self.run += 1;
        self.lease = match self.sabotage {
            // As if nobody was catching up.
            Sabotage::ForgetsJoinerAtStart => {
                let map = SetMap { catching_up: Vec::new(), ..SetMap::clone(&self.map) };
                Lease::new(self.id, LEASE, self.run, now_ms, &map)
            }
            _ => Lease::new(self.id, LEASE, self.run, now_ms, &self.map),
        };
    }

    /// Another disk: nothing of before is there, but what the manager says.
    pub fn wipe(&mut self, index: u64, map: Rc<SetMap>) {
        (self.index, self.map, self.stream, self.writes) = (index, map, (0, 0), Writes::default());
    }

    pub fn leads(&self) -> bool {
        self.map.primary == self.id
    }

    /// R5, or what a mistake leaves of it.
    pub fn may_serve(&self, now_ms: u64) -> bool {
        match self.sabotage {
            Sabotage::ServesWithoutGrants => self.leads() && self.lease.own_grants_are_over(now_ms),
            Sabotage::LeadsBeforeOwnGrantIsOver => self.leads() && self.lease.holds_grants(now_ms),
            _ => self.lease.may_serve(now_ms),
        }
    }

    /// Every other member in sync has its state in this epoch (PROTOCOL 3).
    pub fn is_reconciled(&self) -> bool {
        self.others().all(|brick| self.targets.get(&brick).is_some_and(|target| target.synced))
    }

    fn others(&self) -> impl Iterator<Item = BrickId> {
        self.map.in_sync.iter().copied().filter(|brick| *brick != self.id)
    }

    /// A client's write.
    pub fn write(&mut self, now_ms: u64, write: u32) -> bool {
        if !self.may_serve(now_ms) || !self.is_reconciled() || self.map.is_read_only() {
            return false;
        }
        self.writes.insert(write);
        self.pending.insert(write);
        let stream = self.my_stream();
        for (brick, target) in &mut self.targets {
            target.owed.insert(write);
            self.out.push((To::Member(*brick), Message::Apply { stream, from: self.id, write }));
        }
        self.acknowledge(now_ms);
        true
    }

    pub(super) fn my_stream(&self) -> Stream {
        (self.map.epoch, self.run)
    }

    /// R1: what every member in sync has, and every joiner that had everything once.
    pub(super) fn acknowledge(&mut self, now_ms: u64) {
        let waits_for = |brick: &BrickId, target: &Target| match (self.map.in_sync.contains(brick), self.sabotage) {
            (true, Sabotage::AcksWithoutSilentMember) => now_ms - target.heard_ms < 700,
            (true, _) => true,
            (false, Sabotage::AcksWithoutJoiner) => false,
            (false, _) => target.clean || self.lease.needs(*brick),
        };
        let waited: Vec<_> = self.targets.iter().filter(|(brick, target)| waits_for(brick, target)).collect();
        let done = |write: &u32| waited.iter().all(|(_, target)| target.synced && !target.owed.contains(write));
        let acked: Vec<u32> = self.pending.iter().copied().filter(done).collect();
        self.pending.retain(|write| !acked.contains(write));
        self.acked.extend(acked);
    }

    pub fn tick(&mut self, now_ms: u64) {
        self.out.push((To::Manager, Message::Ping { from: self.id }));
        if !self.leads() {
            return;
        }
        if let Some(request) = self.lease.request(now_ms) {
            let asked = self.others().chain(self.map.catching_up.iter().copied());
            self.out.extend(asked.map(|brick| (To::Member(brick), Message::Request(request))).collect::<Vec<_>>());
        }
        self.follow_members(now_ms);
        self.send_owed();
        self.ask_changes(now_ms);
    }

    fn follow_members(&mut self, now_ms: u64) {
        let wanted: BTreeSet<BrickId> = self.others().chain(self.map.catching_up.iter().copied()).collect();
        self.targets.retain(|brick, _| wanted.contains(brick));
        let writes = Rc::new(self.writes.clone());
        for brick in wanted {
            self.targets.entry(brick).or_insert_with(|| Target {
                writes: writes.clone(),
                synced: false,
                owed: BTreeSet::new(),
                clean: false,
                heard_ms: now_ms,
            });
        }
    }

    fn send_owed(&mut self) {
        let (stream, from) = (self.my_stream(), self.id);
        for (brick, target) in &self.targets {
            if !target.synced {
                self.out.push((To::Member(*brick), Message::Sync { stream, from, writes: target.writes.clone() }));
            }
            for write in target.owed.iter().copied().take(20) {
                self.out.push((To::Member(*brick), Message::Apply { stream, from, write }));
            }
        }
    }

    /// Who is silent leaves (R3), who is out catches up, who has everything joins.
    fn ask_changes(&mut self, now_ms: u64) {
        let mut ask = |change| self.out.push((To::Manager, Message::Ask { epoch: self.map.epoch, change }));
        for (brick, target) in &self.targets {
            let brick = *brick;
            if now_ms - target.heard_ms > SILENT_MS {
                ask(SetChange::RemoveMember { brick, reason: LeaveReason::Lost, successor: None });
            } else if target.clean && !self.map.in_sync.contains(&brick) {
                let incarnation = self.map.member(brick).map_or(0, |member| member.incarnation);
                ask(SetChange::JoinInSync { brick, incarnation });
            }
        }
        for member in &self.map.members {
            if self.map.standing(member.brick) == Some(Standing::Out) {
                ask(SetChange::StartCatchUp { brick: member.brick, incarnation: member.incarnation });
            }
        }
    }
}
