//! Inodes whose pages the kernel must drop: a write that it believes written has failed. Telling it may
//! wait for a page that is being read through this very mount, so a thread that serves nothing does it.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, PoisonError};

/// Runs once the pages are dropped.
pub type Dropped = Box<dyn FnOnce() + Send>;

/// A directory and a name in it.
pub type NameIn = (u64, Box<[u8]>);

#[derive(Default)]
struct State {
    /// Names that lead to an inode and are to be looked up again.
    names: BTreeMap<u64, Vec<NameIn>>,
    wanted: BTreeMap<u64, Vec<Dropped>>,
    is_over: bool,
}

/// The inodes, each once however often it is asked for: bounded by the inodes that have failed writes or are being
/// locked.
#[derive(Default)]
pub struct Invalidations {
    state: Mutex<State>,
    changed: Condvar,
}

impl Invalidations {
    /// Asks for an inode.
    pub fn ask(&self, ino: u64) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).wanted.entry(ino).or_default();
        self.changed.notify_one();
    }

    /// Asks for an inode, and for `then` to run after it. Without a kernel to tell it runs now.
    pub fn ask_and(&self, ino: u64, then: Dropped) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.is_over {
            drop(state);
            return then();
        }
        state.wanted.entry(ino).or_default().push(then);
        self.changed.notify_one();
    }

    /// When the inode comes, the kernel is to look this name of it up again, too. To be asked for before the inode.
    pub fn ask_name(&self, ino: u64, name: NameIn) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).names.entry(ino).or_default().push(name);
    }

    /// Takes the names of the inode that `next` gave.
    pub fn names_of(&self, ino: u64) -> Vec<NameIn> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).names.remove(&ino).unwrap_or_default()
    }

    /// Waits for the next inode, with what is to be run after it; `None` when the mount is over.
    pub fn next(&self) -> Option<(u64, Vec<Dropped>)> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if state.is_over {
                return None;
            }
            if let Some(next) = state.wanted.pop_first() {
                return Some(next);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends the waiting for good.
    pub fn end(&self) {
        let left = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.is_over = true;
            state.names.clear();
            std::mem::take(&mut state.wanted)
        };
        self.changed.notify_all();
        left.into_values().flatten().for_each(|then| then());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn an_inode_is_asked_for_once_until_it_is_done() {
        let wanted = Invalidations::default();
        let runs = Arc::new(AtomicU64::new(0));
        let run = || -> Dropped {
            let runs = runs.clone();
            Box::new(move || {
                runs.fetch_add(1, Ordering::Relaxed);
            })
        };
        wanted.ask(7);
        wanted.ask_and(7, run());
        wanted.ask_and(7, run());
        wanted.ask(3);
        let next = || wanted.next().map(|(ino, then)| (ino, then.into_iter().map(|then| then()).count()));
        assert_eq!((next(), next()), (Some((3, 0)), Some((7, 2))));
        wanted.ask(7);
        assert_eq!(next(), Some((7, 0)));
        wanted.ask_and(7, run());
        wanted.end();
        assert_eq!(next(), None);
        wanted.ask_and(7, run());
        assert_eq!(runs.load(Ordering::Relaxed), 4, "what waits is let go at the end");
    }
}
