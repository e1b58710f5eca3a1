//! The calls that are on their way to the stream, in order. The queue outlives sessions: the stream of a
//! session takes from it for as long as its greeting is the newest one.
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
    /// The newest greeting's number while its session is meant or lives, else 0.
    greeting: u64,
    is_open: bool,
    waker: Option<Waker>,
}

impl Outgoing {
    /// A greeting was sent: its stream is the one that takes, once the queue is open.
    pub fn greeted(&mut self, greeting: u64) {
        self.greeting = greeting;
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
        self.greeting = 0;
    }

    /// Whether there is a session.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// Calls that the stream has not taken.
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// Adds a call; without a session it is not kept.
    pub fn push(&mut self, call: Call) {
        if self.is_open {
            self.calls.push_back(call);
        }
    }

    /// Who waits for calls, to be woken when no lock is held.
    pub fn take_waker(&mut self) -> Option<Waker> {
        self.waker.take()
    }

    /// The next call for the stream of a greeting; `None` once another greeting is the newest.
    pub fn poll_next(&mut self, greeting: u64, cx: &mut Context<'_>) -> Poll<Option<Call>> {
        if greeting != self.greeting {
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

    fn taken(outgoing: &mut Outgoing, greeting: u64) -> Poll<Option<u64>> {
        let polled = outgoing.poll_next(greeting, &mut Context::from_waker(Waker::noop()));
        polled.map(|call| call.map(|call| call.request))
    }

    #[test]
    fn calls_go_to_the_newest_session_in_order_what_was_sent_again_first() {
        let mut outgoing = Outgoing::default();
        outgoing.push(call(1));
        outgoing.greeted(1);
        assert_eq!(taken(&mut outgoing, 1), Poll::Pending, "there is no session yet");
        outgoing.open([call(1), call(2)].into_iter());
        outgoing.push(call(3));
        assert_eq!(taken(&mut outgoing, 1), Poll::Ready(Some(1)));
        outgoing.close();
        assert_eq!(taken(&mut outgoing, 1), Poll::Ready(None));
        outgoing.push(call(4));
        outgoing.greeted(2);
        outgoing.greeted(3);
        outgoing.open([call(2), call(3), call(4)].into_iter());
        assert_eq!(taken(&mut outgoing, 2), Poll::Ready(None));
        for expected in 2..=4 {
            assert_eq!(taken(&mut outgoing, 3), Poll::Ready(Some(expected)));
        }
        assert_eq!(taken(&mut outgoing, 3), Poll::Pending);
        assert!(outgoing.take_waker().is_some() && outgoing.take_waker().is_none());
    }
}
