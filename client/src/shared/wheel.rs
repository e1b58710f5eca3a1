//! Who has the wheel, see `driving`: taken, left, and waited for under the lock of what callers and session share.

use super::{Shared, State};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// While locks are waited for, the session's thread looks after a wheel that was free for so long.
const WATCH_AFTER: Duration = Duration::from_millis(2);

/// Who runs the session's tasks, see `driving`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Wheel {
    /// Nobody does.
    #[default]
    Free,
    /// Somebody does.
    Taken,
    /// Nobody does, and calls wait: the session's thread has to.
    Left,
}

impl Shared {
    /// Takes the wheel for a thread that waits for calls, if there are any and nobody has it.
    pub(crate) fn take_wheel(&self) -> bool {
        let mut state = self.lock();
        let is_free = !state.is_shut_down && state.pending.due_len() > 0 && state.wheel == Wheel::Free;
        if is_free {
            (state.wheel, state.has_served) = (Wheel::Taken, true);
        }
        is_free
    }

    /// Leaves the wheel if no answer is due. While locks are waited for, who serves no calls keeps it: nobody else would
    /// hear that one is granted.
    pub(crate) fn leave_wheel_when_quiet(&self) -> bool {
        let mut state = self.lock();
        let watches = state.pending.has_settled() && !state.has_served;
        let is_quiet = state.is_shut_down || (state.pending.due_len() == 0 && !watches);
        if is_quiet {
            state.wheel = Wheel::Free;
            state.free_since = Some(Instant::now());
        }
        is_quiet
    }

    /// Whether locks are waited for that may be granted soon.
    pub(crate) fn expects_locks(&self) -> bool {
        self.lock().pending.has_unsettled()
    }

    /// They were not granted soon.
    pub(crate) fn settle_locks(&self) {
        self.lock().pending.settle();
    }

    /// Leaves the wheel to the session's thread: what waits may wait for long.
    pub(crate) fn leave_wheel(&self) {
        let mut state = self.lock();
        state.wheel = Wheel::Left;
        state.pending.settle();
        drop(state);
        self.wheel_left.notify_one();
    }

    /// Waits until the wheel is left, or has been free for so long (while locks are waited for, `WATCH_AFTER`), and takes
    /// it; false on shutdown.
    pub(crate) fn wait_for_wheel(&self, patience: Duration) -> bool {
        let mut state = self.lock();
        loop {
            let watches = state.pending.has_settled();
            let patience = if watches { WATCH_AFTER } else { patience };
            let waits = |state: &mut State| state.wheel != Wheel::Left && !state.is_shut_down;
            let waited = self.wheel_left.wait_timeout_while(state, patience, waits);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            if state.is_shut_down {
                return false;
            }
            let is_due = match state.wheel {
                Wheel::Taken => false,
                Wheel::Left => true,
                Wheel::Free => !watches || state.free_since.is_none_or(|since| since.elapsed() >= WATCH_AFTER),
            };
            if is_due {
                (state.wheel, state.has_served) = (Wheel::Taken, false);
                return true;
            }
        }
    }
}
