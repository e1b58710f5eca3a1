//! Calls that wait for their answers: numbers, resending order, deadlines, who waits. No I/O.

use crate::locks::LockCall;
use crate::opens::OpenEffect;
use brickfs_common::fop::{FopReply, ObjectRef};
use brickfs_proto::v1::{self, Op};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// Called once with the reply, on the thread that drives the session; must not block.
pub type Done = Box<dyn FnOnce(FopReply) + Send>;

/// A call without an answer.
pub struct PendingCall {
    /// The call as it was sent, kept to send it again after a lost session.
    pub call: v1::Call,
    /// Who waits.
    pub done: Done,
    /// When it was submitted.
    pub since: Instant,
    /// When to give up; `None` for never.
    pub deadline: Option<Instant>,
    /// The thread that waits for the answer, 0 if none does.
    pub pid: u32,
    /// What its success does to the objects that are open.
    pub open_effect: OpenEffect,
    /// What it asks of locks.
    pub lock: Option<Box<LockCall>>,
    /// How often it was sent on to another set.
    pub hops: u8,
}

/// All calls without an answer, by request number.
#[derive(Default)]
pub struct PendingTable {
    calls: BTreeMap<u64, PendingCall>,
    /// Those that wait for a lock, for ever perhaps: no results are kept for their sake.
    waiting: BTreeMap<u64, PendingCall>,
    /// Of those, the ones up to this number have waited so long that an answer is not expected soon.
    settled: u64,
    next: u64,
}

impl PendingTable {
    /// The next request number, from 1, and the lowest one without an answer (itself if none waits).
    pub fn next_numbers(&mut self) -> (u64, u64) {
        self.next += 1;
        (self.next, self.calls.first_key_value().map_or(self.next, |(request, _)| *request))
    }

    /// The lowest request number without an answer.
    pub fn lowest_unanswered(&self) -> u64 {
        self.calls.first_key_value().map_or(self.next + 1, |(request, _)| *request)
    }

    /// Number of calls that wait.
    pub fn len(&self) -> usize {
        self.calls.len() + self.waiting.len()
    }

    /// Number of calls whose answers are expected soon.
    pub fn due_len(&self) -> usize {
        self.calls.len() + self.waiting.range(self.settled + 1..).count()
    }

    /// The locks that are waited for now are somebody else's.
    pub fn settle(&mut self) {
        self.settled = self.next;
    }

    /// Whether locks are waited for of which that is known.
    pub fn has_settled(&self) -> bool {
        self.waiting.first_key_value().is_some_and(|(request, _)| *request <= self.settled)
    }

    /// Whether locks are waited for of which that is not known.
    pub fn has_unsettled(&self) -> bool {
        self.waiting.last_key_value().is_some_and(|(request, _)| *request > self.settled)
    }

    /// Adds a call under its number.
    pub fn insert(&mut self, pending: PendingCall) {
        let waits = pending.lock.as_ref().is_some_and(|call| call.waits);
        let calls = if waits { &mut self.waiting } else { &mut self.calls };
        calls.insert(pending.call.request, pending);
    }

    /// Takes the call that a reply belongs to; `None` if it was given up or answered before.
    pub fn take(&mut self, request: u64) -> Option<PendingCall> {
        self.calls.remove(&request).or_else(|| self.waiting.remove(&request))
    }

    /// A call that waits.
    pub fn call(&self, request: u64) -> Option<&v1::Call> {
        self.calls.get(&request).or_else(|| self.waiting.get(&request)).map(|pending| &pending.call)
    }

    /// All waiting calls in number order, to be sent again.
    pub fn resend(&self) -> impl Iterator<Item = &v1::Call> {
        let mut calls: Vec<&v1::Call> = self.all().map(|pending| &pending.call).collect();
        calls.sort_unstable_by_key(|call| call.request);
        calls.into_iter()
    }

    fn all(&self) -> impl Iterator<Item = &PendingCall> {
        self.calls.values().chain(self.waiting.values())
    }

    /// Takes the calls whose deadline has passed.
    pub fn take_expired(&mut self, now: Instant) -> Vec<PendingCall> {
        self.take_where(|pending| pending.deadline.is_some_and(|deadline| deadline <= now))
    }

    /// Takes the calls that wait for locks.
    pub fn take_waiting_for_locks(&mut self) -> Vec<PendingCall> {
        self.take_where(|pending| pending.lock.as_ref().is_some_and(|call| call.waits))
    }

    /// Takes the calls that read, change or lock the contents of these objects.
    pub fn take_io_on(&mut self, objects: &[ObjectRef]) -> Vec<PendingCall> {
        let is_io = |op| matches!(op, Op::Read | Op::Write | Op::Fallocate | Op::CopyRange | Op::Setattr | Op::Lock);
        // A copy has its source as the second one; the others have none.
        let names = |call: &v1::Call, gfid: &[u8]| call.gfid == gfid || call.gfid2 == gfid;
        let is_on = |call: &v1::Call| objects.iter().any(|object| names(call, &object.gfid.0));
        self.take_where(|pending| is_io(pending.call.op()) && is_on(&pending.call))
    }

    /// The threads that have waited since `before` or longer.
    pub fn waiting_pids(&self, before: Instant) -> BTreeSet<u32> {
        // In number order, which is the order of time.
        let old = |calls: &'_ BTreeMap<u64, PendingCall>| -> Vec<u32> {
            calls.values().take_while(|pending| pending.since <= before).map(|pending| pending.pid).collect()
        };
        old(&self.calls).into_iter().chain(old(&self.waiting)).filter(|pid| *pid != 0).collect()
    }

    /// Takes the calls that these threads have waited for since `before` or longer.
    pub fn take_of(&mut self, pids: &[u32], before: Instant) -> Vec<PendingCall> {
        self.take_where(|pending| pending.since <= before && pids.contains(&pending.pid))
    }

    /// Takes all calls.
    pub fn take_all(&mut self) -> Vec<PendingCall> {
        let waiting = std::mem::take(&mut self.waiting).into_values();
        std::mem::take(&mut self.calls).into_values().chain(waiting).collect()
    }

    fn take_where(&mut self, is_wanted: impl Fn(&PendingCall) -> bool) -> Vec<PendingCall> {
        let requests: Vec<u64> = self.all().filter(|pending| is_wanted(pending)).map(|p| p.call.request).collect();
        requests.into_iter().filter_map(|request| self.take(request)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use brickfs_common::fop::Fop;
    use brickfs_common::ids::{Gfid, SetId};
    use brickfs_common::locks::{LockKind, LockRange};
    use std::time::Duration;

    fn add(table: &mut PendingTable, pid: u32, since: Instant, deadline: Option<Instant>) -> u64 {
        let (request, _) = table.next_numbers();
        let call = v1::Call { request, ..v1::Call::default() };
        table.insert(PendingCall {
            call,
            done: Box::new(|_| ()),
            since,
            deadline,
            pid,
            open_effect: OpenEffect::None,
            lock: None,
            hops: 0,
        });
        request
    }

    fn numbers(taken: &[PendingCall]) -> Vec<u64> {
        taken.iter().map(|pending| pending.call.request).collect()
    }

    #[test] // PROTOCOL 13
    fn calls_are_sent_again_in_order_and_the_lowest_unanswered_moves_on() {
        let mut table = PendingTable::default();
        for expected in 1..=4 {
            assert_eq!(add(&mut table, 0, Instant::now(), None), expected);
        }
        assert!(table.take(2).is_some());
        assert!(table.take(2).is_none(), "a second reply belongs to nobody");
        assert_eq!(table.resend().map(|c| c.request).collect::<Vec<_>>(), [1, 3, 4]);
        assert_eq!(table.lowest_unanswered(), 1);
        table.take(1);
        assert_eq!(table.next_numbers(), (5, 3));
        table.take_all();
        assert_eq!((table.len(), table.lowest_unanswered()), (0, 6));
    }

    #[test]
    fn a_lock_that_is_waited_for_is_not_due_for_ever() {
        let mut table = PendingTable::default();
        let wait = |table: &mut PendingTable| {
            let request = add(table, 0, Instant::now(), None);
            let mut pending = table.take(request).unwrap();
            let object = ObjectRef { gfid: Gfid::ROOT, home: SetId(0) };
            let kind = Some(LockKind::Exclusive);
            let fop = Fop::Lock { object, owner: 1, range: LockRange::ALL, kind, pid: 0, waits: true };
            pending.lock = LockCall::of(&fop).map(Box::new);
            table.insert(pending);
        };
        wait(&mut table);
        assert_eq!((table.due_len(), table.has_unsettled(), table.has_settled()), (1, true, false));
        table.settle();
        assert_eq!((table.due_len(), table.len(), table.has_unsettled(), table.has_settled()), (0, 1, false, true));
        wait(&mut table);
        add(&mut table, 0, Instant::now(), None);
        assert_eq!((table.due_len(), table.len(), table.has_unsettled(), table.has_settled()), (2, 3, true, true));
    }

    #[test]
    fn only_calls_past_their_deadline_expire() {
        let now = Instant::now();
        let mut table = PendingTable::default();
        add(&mut table, 0, now, Some(now));
        add(&mut table, 0, now, None);
        add(&mut table, 0, now, Some(now + Duration::from_secs(1)));
        assert_eq!(numbers(&table.take_expired(now)), [1]);
        assert_eq!(table.len(), 2);
    }

    #[test]
    fn only_calls_that_have_waited_are_given_up_for_a_signal() {
        let now = Instant::now();
        let old = now - Duration::from_secs(1);
        let mut table = PendingTable::default();
        for (pid, since) in [(7, old), (0, old), (8, old), (7, old), (7, now), (9, now)] {
            add(&mut table, pid, since, None);
        }
        assert_eq!(table.waiting_pids(old), BTreeSet::from([7, 8]));
        assert_eq!(numbers(&table.take_of(&[7], old)), [1, 4]);
        assert_eq!(table.len(), 4);
    }
}
