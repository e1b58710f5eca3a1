//! What a member does with a message.

use super::Sabotage;
use super::member::{Member, Target};
use super::message::{Message, Stream, To, Writes};
use crate::cluster::map::SetMap;
use crate::ids::BrickId;
use crate::membership::lease::{Grant, NoGrant};
use std::rc::Rc;

impl Member {
    pub fn receive(&mut self, now_ms: u64, message: Message) {
        match message {
            Message::Map { index, set } => self.take_map(index, set),
            Message::Request(request) => {
                let granted = match self.lease.on_request(now_ms, &request) {
                    Err(NoGrant::Stale { .. }) if self.sabotage == Sabotage::TakesLowerEpochs => {
                        let (epoch, run, sent_ms) = (request.epoch, request.run, request.sent_ms);
                        Ok(Grant { epoch, from: self.id, run, sent_ms })
                    }
                    granted => granted,
                };
                if let Ok(grant) = granted {
                    self.out.push((To::Member(request.from), Message::Grant(grant)));
                }
            }
            Message::Grant(grant) => {
                self.lease.on_grant(now_ms, &grant);
                self.hear(now_ms, grant.from);
            }
            Message::Sync { stream, from, writes } => self.sync(stream, from, &writes),
            Message::Apply { stream, from, write } => {
                if self.takes(stream, from) && self.stream == stream {
                    self.writes.insert(write);
                    self.out.push((To::Member(from), Message::Applied { stream, from: self.id, write }));
                }
            }
            Message::Synced { stream, from } => self.progress(now_ms, stream, from, |target| target.synced = true),
            Message::Applied { stream, from, write } => {
                self.progress(now_ms, stream, from, |target| target.owed.retain(|owed| *owed != write));
            }
            Message::Ping { .. } | Message::Ask { .. } => unreachable!("these are for the manager"),
        }
    }

    fn take_map(&mut self, index: u64, set: Rc<SetMap>) {
        if index <= self.index {
            return;
        }
        self.index = index;
        if set.epoch != self.map.epoch {
            self.targets.clear();
            // In doubt for ever: what of it the new primary has, it has.
            self.pending.clear();
        }
        self.lease.on_map(&set);
        self.map = set;
    }

    /// R2: effects of this epoch from its primary, and of no other.
    fn takes(&self, stream: Stream, from: BrickId) -> bool {
        let is_current = stream.0 == self.map.epoch && from == self.map.primary && from != self.id;
        is_current || (self.sabotage == Sabotage::TakesLowerEpochs && stream.0 < self.map.epoch)
    }

    /// A stream begins once: a repetition of its beginning says nothing of what came after.
    fn sync(&mut self, stream: Stream, from: BrickId, writes: &Writes) {
        if !self.takes(stream, from) {
            return;
        }
        if stream > self.stream || self.sabotage == Sabotage::TakesLowerEpochs && stream.0 < self.stream.0 {
            self.stream = stream;
            self.writes = writes.clone();
        }
        if self.stream == stream {
            self.out.push((To::Member(from), Message::Synced { stream, from: self.id }));
        }
    }

    fn progress(&mut self, now_ms: u64, stream: Stream, from: BrickId, note: impl FnOnce(&mut Target)) {
        if !self.leads() || stream != self.my_stream() {
            return;
        }
        self.hear(now_ms, from);
        if let Some(target) = self.targets.get_mut(&from) {
            note(target);
            if target.synced && target.owed.is_empty() && !target.clean {
                target.clean = true;
                if self.sabotage != Sabotage::ServesWithoutJoinersGrant {
                    self.lease.expect(from);
                }
            }
        }
        self.acknowledge(now_ms);
    }

    fn hear(&mut self, now_ms: u64, from: BrickId) {
        if let Some(target) = self.targets.get_mut(&from) {
            target.heard_ms = now_ms;
        }
    }
}
