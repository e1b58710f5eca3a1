//! Inodes whose pages the kernel must drop: a write that it believes written has failed. Telling it may
//! wait for a page that is being read through this very mount, so a thread that serves nothing does it.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, PoisonError};

#[derive(Default)]
struct State {
    wanted: BTreeSet<u64>,
    is_over: bool,
}

/// The inodes, each once however often it is asked for: bounded by the inodes that have failed writes.
#[derive(Default)]
pub struct Invalidations {
    state: Mutex<State>,
    changed: Condvar,
}

impl Invalidations {
    /// Asks for an inode.
    pub fn ask(&self, ino: u64) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).wanted.insert(ino);
        self.changed.notify_one();
    }

    /// Waits for the next inode; `None` when the mount is over.
    pub fn next(&self) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if state.is_over {
                return None;
            }
            if let Some(ino) = state.wanted.pop_first() {
                return Some(ino);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends the waiting for good.
    pub fn end(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).is_over = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_is_asked_for_once_until_it_is_done() {
        let wanted = Invalidations::default();
        wanted.ask(7);
        wanted.ask(7);
        wanted.ask(3);
        assert_eq!((wanted.next(), wanted.next()), (Some(3), Some(7)));
        wanted.ask(7);
        assert_eq!(wanted.next(), Some(7));
        wanted.end();
        assert_eq!(wanted.next(), None);
    }
}
