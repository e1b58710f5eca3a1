//! Calls that a set did not run: because another set is the one to run them, or because it could not ask another one.

use super::wheel::Wheel;
use super::{Shared, State, placed_by};
use crate::pending::PendingCall;
use brickfs_common::errno::Errno;
use brickfs_common::fop::FopReply;
use brickfs_common::ids::SetId;
use std::sync::{Arc, Weak};
use std::time::Instant;

impl Shared {
    /// Sends a call that did not run here to the set that is to run it.
    pub(super) fn send_on(self: &Arc<Self>, pending: PendingCall, reply: FopReply) {
        let siblings = self.siblings.get().and_then(Weak::upgrade);
        match (reply.go_to, siblings) {
            (Some(set), Some(siblings)) => siblings.of_set(set).adopt(pending, set),
            (Some(set), None) => self.adopt(pending, set),
            (None, _) => (pending.done)(reply),
        }
    }

    /// Takes over a call that was a set's of another session, under a new number.
    pub(crate) fn adopt(&self, mut pending: PendingCall, set: SetId) {
        let mut state = self.lock();
        if state.is_shut_down {
            drop(state);
            return (pending.done)(FopReply::failed(0, Errno::EIO));
        }
        let (generation, epoch) = placed_by(state.map.as_deref(), set);
        let (request, lowest_unanswered) = state.pending.next_numbers();
        let call = &mut pending.call;
        (call.request, call.lowest_unanswered, call.set) = (request, lowest_unanswered, u32::from(set.0));
        (call.generation, call.epoch) = (generation, epoch);
        pending.hops += 1;
        state.outgoing.push(pending.call.clone());
        state.last_sent = Some(Instant::now());
        state.pending.insert(pending);
        // Who has submitted it drives another session: this one's thread looks after it.
        let waker = if state.wheel == Wheel::Taken { state.outgoing.take_waker() } else { None };
        let is_free = state.wheel == Wheel::Free;
        if is_free {
            state.wheel = Wheel::Left;
        }
        drop(state);
        if is_free {
            self.wheel_left.notify_one();
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Sends again what a set could not run, under its old numbers.
    pub(super) fn send_later(&self) {
        let mut state = self.lock();
        if state.later.is_empty() || !state.outgoing.is_open() {
            return;
        }
        let State { later, pending, outgoing, .. } = &mut *state;
        for request in std::mem::take(later) {
            if let Some(call) = pending.call(request) {
                outgoing.push(call.clone());
            }
        }
        let waker = state.outgoing.take_waker();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
