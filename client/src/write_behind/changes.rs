//! Changes of attributes in the queue of an inode. One that is queued comes to the brick after every write that was
//! queued before it and before every later one: the stream keeps its order, so being sent is enough.
//!
//! ```text
//!          push          all that came before is on the stream           answered
//!   (caller) ──▶ waiting ────────────────────────────────────▶ out ─────────────────▶ gone
//!                  ▲  merged with the next one while anything of the inode is unanswered
//! ```

use super::{Action, Change, Setting};
use std::collections::VecDeque;

/// A change that has not been sent.
struct Waiting {
    number: u64,
    change: Change,
}

/// A change that has been sent and not answered.
struct Out {
    number: u64,
    /// The driver has put it on the stream.
    is_submitted: bool,
}

/// See the file's head.
#[derive(Default)]
pub struct Changes {
    /// By number, which is the order in which they came.
    waiting: VecDeque<Waiting>,
    out: Vec<Out>,
}

impl Changes {
    /// Queues a change. `may_merge` is false if a write came after the newest one that waits.
    pub fn push(&mut self, change: Change, number: u64, may_merge: bool) {
        let merged = self.waiting.back_mut().filter(|_| may_merge).and_then(|last| {
            let is_same = last.change.handle == change.handle && last.change.caller == change.caller;
            let set = last.change.set.followed_by(&change.set).filter(|_| is_same)?;
            Some((last, set))
        });
        match merged {
            Some((last, set)) => last.change.set = set,
            None => self.waiting.push_back(Waiting { number, change }),
        }
    }

    /// The number of the oldest one that waits: writes of a higher one wait for it.
    pub fn next_number(&self) -> Option<u64> {
        self.waiting.front().map(|waiting| waiting.number)
    }

    /// Changes queued and not answered.
    pub fn count(&self) -> usize {
        self.waiting.len() + self.out.len()
    }

    /// Whether one is sent and not answered.
    pub fn is_any_out(&self) -> bool {
        !self.out.is_empty()
    }

    /// Whether all that were sent are on the stream. Another thread may have one in hand.
    pub fn are_submitted(&self) -> bool {
        self.out.iter().all(|out| out.is_submitted)
    }

    /// Whether one of a number below `next_number` is not answered.
    pub fn is_busy(&self, next_number: u64) -> bool {
        let waiting = self.waiting.iter().map(|waiting| waiting.number);
        waiting.chain(self.out.iter().map(|out| out.number)).any(|number| number < next_number)
    }

    /// Sends the oldest one.
    pub fn launch<A>(&mut self, actions: &mut Vec<Action<A>>) {
        let Some(Waiting { number, change }) = self.waiting.pop_front() else { return };
        self.out.push(Out { number, is_submitted: false });
        actions.push(Action::Set(Setting { number, change }));
    }

    /// It was put on the stream; it may have been answered already.
    pub fn submitted(&mut self, number: u64) {
        if let Some(out) = self.out.iter_mut().find(|out| out.number == number) {
            out.is_submitted = true;
        }
    }

    /// It was answered; false if it is not one of these.
    pub fn answered(&mut self, number: u64) -> bool {
        let before = self.out.len();
        self.out.retain(|out| out.number != number);
        self.out.len() < before
    }
}
