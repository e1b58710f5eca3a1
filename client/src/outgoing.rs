//! The calls that are on their way to the stream, in order. One queue serves all sessions, one after the
//! other: a session's stream takes from it for as long as the session is the newest one and lives.
//!
//! Who adds a call does not wake the stream where nobody drives the session (`driving`): a wake-up from
//! outside the runtime is a system call there, and one more that takes it in. The driver wakes it from
//! within.

use brickfs_proto::v1::Call;
use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};

/// See the file's head.
#[derive(Default)]
pub struct Outgoing {
    calls: VecDeque<Call>,
    /// Number of the session that takes: the newest one from its greeting to its loss, else 0.
    session: u64,
    is_open: bool,
    waker: Option<Waker>,
}

impl Outgoing {
    /// A session is being greeted: its stream is the one that takes, once the queue is open.
    pub fn greet(&mut self, session: u64) {
        self.session = session;
    }

    /// The session lives; these calls go first.
    pub fn open(&mut self, first: impl Iterator<Item = Call>) {
        self.calls = first.collect();
        self.is_open = true;
    }

    /// The session is lost: its stream ends, and nothing is queued before the next one.
    pub fn close(&mut self) {
        self.calls.clear();
        self.is_open = false;
        self.session = 0;
    }

    /// Whether there is a session.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// Calls that the stream has not taken.
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// Adds a call. Without a session it is not: what waits for an answer is sent at the next one's begin.
    pub fn push(&mut self, call: Call) {
        if self.is_open {
            self.calls.push_back(call);
        }
    }

    /// Takes a call back that nobody waits for any more; false if it has been sent.
    pub fn take_back(&mut self, request: u64) -> bool {
        let found = self.calls.binary_search_by_key(&request, |call| call.request);
        found.is_ok_and(|index| self.calls.remove(index).is_some())
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
        if let Some(call) = self.calls.pop_front() {
            return Poll::Ready(Some(call));
        }
        if !self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
