//! Calls that wait for their answers: numbers, resending order, deadlines. No I/O.

use brickfs_common::fop::FopReply;
use brickfs_proto::v1;
use std::collections::BTreeMap;
use std::time::Instant;

/// Called once with the reply, on the session's thread; must not block.
pub type Done = Box<dyn FnOnce(FopReply) + Send>;

/// A call without an answer.
pub struct PendingCall {
    /// The call as it was sent, kept to send it again after a lost session.
    pub call: v1::Call,
    /// Who waits.
    pub done: Done,
    /// When to give up; `None` for never.
    pub deadline: Option<Instant>,
}

/// All calls without an answer, by request number.
#[derive(Default)]
pub struct PendingTable {
    calls: BTreeMap<u64, PendingCall>,
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
        self.calls.len()
    }

    /// Adds a call under its number.
    pub fn insert(&mut self, pending: PendingCall) {
        self.calls.insert(pending.call.request, pending);
    }

    /// Takes the call that a reply belongs to; `None` if it was given up or answered before.
    pub fn take(&mut self, request: u64) -> Option<PendingCall> {
        self.calls.remove(&request)
    }

    /// All waiting calls in number order, to be sent again.
    pub fn resend(&self) -> impl Iterator<Item = &v1::Call> {
        self.calls.values().map(|pending| &pending.call)
    }

    /// Takes the calls whose deadline has passed.
    pub fn take_expired(&mut self, now: Instant) -> Vec<PendingCall> {
        let expired = |pending: &PendingCall| pending.deadline.is_some_and(|deadline| deadline <= now);
        let requests: Vec<u64> = self.calls.iter().filter(|(_, p)| expired(p)).map(|(r, _)| *r).collect();
        requests.into_iter().filter_map(|request| self.calls.remove(&request)).collect()
    }

    /// Takes all calls.
    pub fn take_all(&mut self) -> Vec<PendingCall> {
        std::mem::take(&mut self.calls).into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn add(table: &mut PendingTable, deadline: Option<Instant>) -> u64 {
        let (request, _) = table.next_numbers();
        let call = v1::Call { request, ..v1::Call::default() };
        table.insert(PendingCall { call, done: Box::new(|_| ()), deadline });
        request
    }

    #[test] // PROTOCOL 13
    fn calls_are_sent_again_in_order_and_the_lowest_unanswered_moves_on() {
        let mut table = PendingTable::default();
        for expected in 1..=4 {
            assert_eq!(add(&mut table, None), expected);
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
    fn only_calls_past_their_deadline_expire() {
        let now = Instant::now();
        let mut table = PendingTable::default();
        add(&mut table, Some(now));
        add(&mut table, None);
        add(&mut table, Some(now + Duration::from_secs(1)));
        assert_eq!(table.take_expired(now).iter().map(|p| p.call.request).collect::<Vec<_>>(), [1]);
        assert_eq!(table.len(), 2);
    }
}
