//! The calls that are on their way to the stream. One queue serves all sessions, one after the other: a
//! session's stream takes from it for as long as the session is the newest one and lives.
//!
//! Small calls overtake bulk: writes of much data wait here, a few of them are on their way at once, and what
//! comes meanwhile goes ahead. So a small call waits for a piece or two of a large copy and not for all that
//! is queued of it. The order of calls on one object stays (PROTOCOL 32): whatever concerns an object that bulk
//! waits for waits behind it. To the node it makes no difference: a call says which one was the lowest without
//! an answer when it was numbered, and bulk that is overtaken has none.
//!
//! ```text
//!  push ──▶ small calls ─────────────────────────────▶ stream      what is sent again after a loss of the
//!       └─▶ bulk, and what follows it on its objects ──▶ stream      session goes first, in the old order
//!             while less than BULK_BYTES are unanswered; one after SMALL_MAX small calls at the latest
//! ```
//!
//! Who adds a call does not wake the stream where nobody drives the session (`driving`): a wake-up from
//! outside the runtime is a system call there, and one more that takes it in. The driver wakes it from
//! within.

use crate::write_behind::CROWDED_PIECE_BYTES;
use brickfs_proto::convert::fops::is_bulk;
use brickfs_proto::v1::Call;
use bytes::Bytes;
use std::collections::{HashMap, VecDeque};
use std::task::{Context, Poll, Waker};

/// Bytes of bulk on their way at once: enough to keep both sides busy (more is not faster), and all that a small
/// call may find in front of it.
const BULK_BYTES: usize = 1 << 20;
/// The same while there are small calls, too: a fifth slower for whom the stream is not enough.
const BULK_BYTES_CROWDED: usize = CROWDED_PIECE_BYTES;
/// For so many pieces after a small call there may be another one.
const CROWDED_PIECES: u32 = 128;
/// Small calls that go ahead of bulk that waits, one after the other.
const SMALL_MAX: u32 = 16;

/// See the file's head.
#[derive(Default)]
pub struct Outgoing {
    /// What is sent again.
    again: VecDeque<Call>,
    small: VecDeque<Call>,
    bulk: Bulk,
    /// Small calls taken since bulk was.
    small_count: u32,
    /// Number of the session that takes: the newest one from its greeting to its loss, else 0.
    session: u64,
    is_open: bool,
    waker: Option<Waker>,
}

/// Bulk, and what has to follow it.
#[derive(Default)]
struct Bulk {
    calls: VecDeque<Call>,
    /// How many of them concern each object, by gfid.
    objects: HashMap<Bytes, u32>,
    /// Bytes of what is sent and not answered, by request.
    in_flight: HashMap<u64, usize>,
    in_flight_bytes: usize,
    /// So many pieces from now on there may be small calls beside.
    crowded: u32,
}

impl Bulk {
    fn push(&mut self, call: Call) {
        for gfid in [&call.gfid, &call.gfid2] {
            *self.objects.entry(gfid.clone()).or_default() += 1;
        }
        self.calls.push_back(call);
    }

    /// Whether a call has to follow what waits: it concerns an object of that.
    fn is_followed_by(&self, call: &Call) -> bool {
        let is_known = |gfid: &Bytes| !gfid.is_empty() && self.objects.contains_key(gfid);
        !self.calls.is_empty() && (is_known(&call.gfid) || is_known(&call.gfid2))
    }

    fn remove(&mut self, index: usize) -> Option<Call> {
        let call = self.calls.remove(index)?;
        for gfid in [&call.gfid, &call.gfid2] {
            if let Some(count) = self.objects.get_mut(gfid) {
                *count -= 1;
                if *count == 0 {
                    self.objects.remove(gfid);
                }
            }
        }
        Some(call)
    }

    /// Whether the first one may go.
    fn may_go(&self) -> bool {
        let limit = if self.crowded > 0 { BULK_BYTES_CROWDED } else { BULK_BYTES };
        let fits = |call: &Call| !is_bulk(call) || self.in_flight_bytes + call.data.len() <= limit;
        self.calls.front().is_some_and(|call| self.in_flight.is_empty() || fits(call))
    }

    fn sent(&mut self, call: &Call) {
        if is_bulk(call) {
            self.crowded = self.crowded.saturating_sub(1);
            self.in_flight_bytes += call.data.len();
            self.in_flight.insert(call.request, call.data.len());
        }
    }

    fn answered(&mut self, request: u64) -> bool {
        let bytes = self.in_flight.remove(&request);
        self.in_flight_bytes -= bytes.unwrap_or(0);
        bytes.is_some()
    }
}

impl Outgoing {
    /// A session is being greeted: its stream is the one that takes, once the queue is open.
    pub fn greet(&mut self, session: u64) {
        self.session = session;
    }

    /// The session lives; these calls go first.
    pub fn open(&mut self, first: impl Iterator<Item = Call>) {
        self.clear();
        self.again = first.collect();
        self.is_open = true;
    }

    /// The session is lost: its stream ends, and nothing is queued before the next one.
    pub fn close(&mut self) {
        self.clear();
        self.is_open = false;
        self.session = 0;
    }

    fn clear(&mut self) {
        self.again.clear();
        self.small.clear();
        self.bulk = Bulk::default();
    }

    /// Whether there is a session.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// Whether bulk and small calls share the stream: bulk should come in small pieces.
    pub fn is_crowded(&self) -> bool {
        self.bulk.crowded > 0
    }

    /// Calls that the stream has not taken.
    pub fn len(&self) -> usize {
        self.again.len() + self.small.len() + self.bulk.calls.len()
    }

    /// Adds a call. Without a session it is not: what waits for an answer is sent at the next one's begin.
    pub fn push(&mut self, call: Call) {
        if !self.is_open {
            return;
        }
        if is_bulk(&call) || self.bulk.is_followed_by(&call) {
            self.bulk.push(call);
        } else {
            self.small.push_back(call);
        }
    }

    /// Takes a call back that nobody waits for any more; false if it has been sent.
    pub fn take_back(&mut self, request: u64) -> bool {
        let find = |calls: &VecDeque<Call>| calls.binary_search_by_key(&request, |call| call.request).ok();
        if let Some(index) = find(&self.bulk.calls) {
            return self.bulk.remove(index).is_some();
        }
        let mut queues = [&mut self.again, &mut self.small].into_iter();
        queues.any(|calls| find(calls).is_some_and(|index| calls.remove(index).is_some()))
    }

    /// A call was answered; gives whom to wake, with no lock held, if bulk has room now.
    pub fn answered(&mut self, request: u64) -> Option<Waker> {
        if self.bulk.answered(request) && self.bulk.may_go() { self.take_waker() } else { None }
    }

    /// Who waits for calls, to be woken when no lock is held.
    pub fn take_waker(&mut self) -> Option<Waker> {
        self.waker.take()
    }

    /// The next call for the stream of a session; `None` once that is lost or another is the newest.
    pub fn poll_next(&mut self, session: u64, cx: &mut Context<'_>) -> Poll<Option<Call>> {
        if session != self.session {
            return Poll::Ready(None);
        }
        if let Some(call) = self.take_next() {
            self.bulk.sent(&call);
            return Poll::Ready(Some(call));
        }
        if !self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    fn take_next(&mut self) -> Option<Call> {
        if let Some(call) = self.again.pop_front() {
            return Some(call);
        }
        // Bulk never overtakes: a small call before it may concern the same object.
        let is_older = |small: &Call| self.bulk.calls.front().is_some_and(|bulk| bulk.request < small.request);
        let is_bulk_s_turn = self.small.front().is_none_or(|small| self.small_count >= SMALL_MAX && is_older(small));
        if is_bulk_s_turn && self.bulk.may_go() {
            self.small_count = 0;
            return self.bulk.remove(0);
        }
        let call = self.small.pop_front()?;
        self.small_count = self.small_count.saturating_add(1);
        self.bulk.crowded = CROWDED_PIECES;
        Some(call)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use brickfs_common::fop::PIECE_BYTES;
    use brickfs_proto::v1::Op;

    fn call(request: u64) -> Call {
        Call { request, ..Call::default() }
    }

    fn taken(outgoing: &mut Outgoing, session: u64) -> Poll<Option<u64>> {
        let polled = outgoing.poll_next(session, &mut Context::from_waker(Waker::noop()));
        polled.map(|call| call.map(|call| call.request))
    }

    #[test]
    fn calls_go_to_the_newest_session_in_order_what_was_sent_again_first() {
        let mut outgoing = Outgoing::default();
        outgoing.push(call(1));
        outgoing.greet(1);
        assert_eq!(taken(&mut outgoing, 1), Poll::Pending, "there is no session yet");
        outgoing.open([call(1), call(2)].into_iter());
        outgoing.push(call(3));
        assert_eq!(taken(&mut outgoing, 1), Poll::Ready(Some(1)));
        outgoing.close();
        assert_eq!(taken(&mut outgoing, 1), Poll::Ready(None));
        outgoing.push(call(4));
        outgoing.greet(2);
        outgoing.greet(3);
        outgoing.open([call(2), call(3), call(4)].into_iter());
        assert_eq!(taken(&mut outgoing, 2), Poll::Ready(None));
        for expected in 2..=4 {
            assert_eq!(taken(&mut outgoing, 3), Poll::Ready(Some(expected)));
        }
        assert_eq!(taken(&mut outgoing, 3), Poll::Pending);
        assert!(outgoing.take_waker().is_some() && outgoing.take_waker().is_none());
    }

    #[test]
    fn what_nobody_waits_for_is_taken_back_unless_it_has_been_sent() {
        let mut outgoing = Outgoing::default();
        outgoing.greet(1);
        outgoing.open([call(3), call(7), call(8)].into_iter());
        assert_eq!(taken(&mut outgoing, 1), Poll::Ready(Some(3)));
        assert_eq!([3, 7, 7].map(|request| outgoing.take_back(request)), [false, true, false]);
        assert_eq!(taken(&mut outgoing, 1), Poll::Ready(Some(8)));
        assert_eq!(outgoing.len(), 0);
    }

    fn write(request: u64, object: u8) -> Call {
        let mut call = Call { request, data: vec![0; PIECE_BYTES].into(), ..about(request, object) };
        call.set_op(Op::Write);
        call
    }

    fn about(request: u64, object: u8) -> Call {
        Call { request, gfid: vec![object; 16].into(), ..Call::default() }
    }

    fn all_taken(outgoing: &mut Outgoing) -> Vec<u64> {
        let mut requests = Vec::new();
        while let Poll::Ready(Some(request)) = taken(outgoing, 1) {
            requests.push(request);
        }
        requests
    }

    fn opened() -> Outgoing {
        let mut outgoing = Outgoing::default();
        outgoing.greet(1);
        outgoing.open([].into_iter());
        outgoing
    }

    #[test] // PROTOCOL 32
    fn small_calls_overtake_bulk_of_other_objects_only() {
        let mut outgoing = opened();
        (1..=3).for_each(|request| outgoing.push(write(request, 7)));
        outgoing.push(about(4, 7));
        outgoing.push(about(5, 8));
        // A copy from that object to another one.
        outgoing.push(Call { gfid2: vec![7; 16].into(), ..about(6, 9) });
        assert_eq!(all_taken(&mut outgoing), [5, 1], "one piece at a time");
        outgoing.push(about(7, 10));
        assert_eq!(all_taken(&mut outgoing), [7]);
        assert!(outgoing.answered(5).is_none() && outgoing.answered(1).is_some());
        assert_eq!(all_taken(&mut outgoing), [2]);
        outgoing.answered(2);
        assert_eq!(all_taken(&mut outgoing), [3, 4, 6], "in order on their object");
        outgoing.push(about(8, 7));
        outgoing.push(write(9, 7));
        assert_eq!(all_taken(&mut outgoing), [8], "nothing of it waits any more");
        assert_eq!(outgoing.len(), 1);
        outgoing.answered(3);
        assert_eq!(all_taken(&mut outgoing), [9]);
        assert!(outgoing.bulk.objects.is_empty());
    }

    #[test]
    fn bulk_has_its_turn_among_many_small_calls() {
        let mut outgoing = opened();
        outgoing.push(write(1, 7));
        (2..=3 + u64::from(SMALL_MAX)).for_each(|request| outgoing.push(about(request, 8)));
        let order = all_taken(&mut outgoing);
        assert_eq!(order.iter().position(|request| *request == 1), Some(SMALL_MAX as usize));
    }

    #[test] // PROTOCOL 32
    fn bulk_overtakes_nothing_that_was_there_before() {
        let mut outgoing = opened();
        let before = 2 * u64::from(SMALL_MAX);
        (1..=before).for_each(|request| outgoing.push(about(request, 7)));
        outgoing.push(write(before + 1, 7));
        outgoing.push(about(before + 2, 8));
        let order = all_taken(&mut outgoing);
        assert_eq!(order, (1..=before + 2).collect::<Vec<_>>());
    }

    #[test]
    fn bulk_that_is_given_up_or_lost_leaves_no_trace() {
        let mut outgoing = opened();
        (1..=4).for_each(|request| outgoing.push(write(request, 7)));
        assert_eq!(all_taken(&mut outgoing), [1, 2]);
        assert_eq!([1, 3, 4, 4].map(|request| outgoing.take_back(request)), [false, true, true, false]);
        outgoing.push(about(5, 7));
        assert_eq!(all_taken(&mut outgoing), [5]);
        outgoing.push(write(6, 7));
        outgoing.close();
        outgoing.greet(1);
        outgoing.open([write(1, 7), write(2, 7), write(6, 7), about(7, 7)].into_iter());
        outgoing.push(about(8, 7));
        assert_eq!(all_taken(&mut outgoing), [1, 2, 6, 7, 8], "in the old order, whatever their size");
    }
}
