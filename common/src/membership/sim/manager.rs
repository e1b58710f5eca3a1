//! The manager: one total order of commits, as Raft gives it. It may be away, and it suspects members that
//! are not dead.

use super::message::{Message, To};
use super::rng::Rng;
use super::{SILENT_MS, Sabotage};
use crate::cluster::map::SetMap;
use crate::ids::{BrickId, NodeId};
use crate::membership::set::LeaveReason;
use crate::membership::transition::{SetChange, apply_change, apply_node_loss};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

pub struct Manager {
    pub index: u64,
    pub set: Rc<SetMap>,
    heard_ms: BTreeMap<BrickId, u64>,
    pub is_away: bool,
    pub out: Vec<(To, Message)>,
    sabotage: Sabotage,
}

impl Manager {
    pub fn new(set: Rc<SetMap>, sabotage: Sabotage) -> Manager {
        let heard_ms = set.members.iter().map(|member| (member.brick, 0)).collect();
        Manager { index: 0, set, heard_ms, is_away: false, out: Vec::new(), sabotage }
    }

    pub fn receive(&mut self, now_ms: u64, message: &Message) {
        match message {
            Message::Ping { from } => drop(self.heard_ms.insert(*from, now_ms)),
            Message::Ask { epoch, change } => self.asked(now_ms, *epoch, change),
            _ => unreachable!("only these are for the manager"),
        }
    }

    fn asked(&mut self, now_ms: u64, epoch: u64, change: &SetChange) {
        if let SetChange::StartCatchUp { brick, .. } = change
            && !self.is_heard(now_ms, *brick)
        {
            return;
        }
        if let Ok(next) = apply_change(&self.set, epoch, change) {
            self.commit(next);
        }
    }

    fn is_heard(&self, now_ms: u64, brick: BrickId) -> bool {
        now_ms - self.heard_ms[&brick] <= SILENT_MS
    }

    /// Looks who is there. Once in so many looks it takes a living member for lost, or promotes another one
    /// without need.
    pub fn tick(&mut self, now_ms: u64, suspects_one_in: Option<u64>, rng: &mut Rng) {
        let members: Vec<(BrickId, NodeId)> = self.set.members.iter().map(|m| (m.brick, m.node)).collect();
        let heard = |brick: &BrickId| self.is_heard(now_ms, *brick);
        let reachable: BTreeSet<NodeId> = members.iter().filter(|(b, _)| heard(b)).map(|(_, node)| *node).collect();
        for (brick, node) in &members {
            let is_suspect = suspects_one_in.is_some_and(|count| rng.is_one_in(count));
            if is_suspect || !self.is_heard(now_ms, *brick) {
                self.commit(self.lose(*node, &reachable, rng));
            } else if self.set.held.get(brick) == Some(&LeaveReason::Lost) {
                self.try_change(SetChange::MemberBack { brick: *brick });
            }
        }
        let waits = self.set.held.contains_key(&self.set.primary);
        if waits || suspects_one_in.is_some_and(|count| rng.is_one_in(count)) {
            let fit: Vec<BrickId> = self.set.in_sync.iter().copied().filter(|b| self.is_heard(now_ms, *b)).collect();
            if !fit.is_empty() {
                self.try_change(SetChange::PromotePrimary { brick: fit[rng.below(fit.len() as u64) as usize] });
            }
        }
        self.publish();
    }

    fn lose(&self, node: NodeId, reachable: &BTreeSet<NodeId>, rng: &mut Rng) -> SetMap {
        let leads = self.set.member(self.set.primary).is_some_and(|member| member.node == node);
        if self.sabotage == Sabotage::PromotesAnybody && leads {
            let there: Vec<_> =
                self.set.members.iter().filter(|m| m.node != node && reachable.contains(&m.node)).collect();
            if !there.is_empty() {
                let brick = there[rng.below(there.len() as u64) as usize].brick;
                let mut next = SetMap::clone(&self.set);
                next.catching_up.retain(|other| *other != brick);
                next.in_sync.retain(|other| *other != brick);
                next.in_sync.push(brick);
                next.held.remove(&brick);
                (next.primary, next.epoch) = (brick, next.epoch + 1);
                return next;
            }
        }
        apply_node_loss(&self.set, node, reachable)
    }

    fn try_change(&mut self, change: SetChange) {
        if let Ok(next) = apply_change(&self.set, self.set.epoch, &change) {
            self.commit(next);
        }
    }

    /// A disk is another one, if the set can do without what it had.
    pub fn renew(&mut self, change: SetChange) -> bool {
        let before = self.index;
        self.try_change(change);
        self.index != before
    }

    fn commit(&mut self, next: SetMap) {
        if next != *self.set {
            self.index += 1;
            self.set = Rc::new(next);
            self.publish();
        }
    }

    fn publish(&mut self) {
        for member in &self.set.members {
            let map = Message::Map { index: self.index, set: self.set.clone() };
            self.out.push((To::Member(member.brick), map));
        }
    }
}
