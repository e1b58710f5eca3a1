//! Directories whose names are all known: this mount made them, and nobody else has changed them since. The
//! kernel looks a name up before it makes it; here such a question is answered without the brick.
//!
//! Nobody else: a directory's `change` counts every change of its entries. It must be what it was when the
//! directory was made plus the number of own changes; a reply that says otherwise ends the knowledge. An
//! answer holds for the entry timeout after the last question whose reply confirmed the count, as if the
//! kernel had cached it.

use super::names::DentryKey;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Most directories, and most names of all of them together; above it the oldest ones are dropped.
const DIRS_MAX: usize = 4096;
const NAMES_MAX: usize = 512 * 1024;

/// What a change of names came to.
#[derive(Clone, Copy, Debug)]
pub enum Outcome {
    /// It was made; the directory's count of changes after it, and when it was asked for.
    Made(u64, Instant),
    /// It was refused: nothing has changed.
    Refused,
    /// Nobody knows: the answer was not waited for, or does not say how the directory is.
    Unknown,
}

struct Known {
    /// How many names of this hash may exist. A name that does not exist may be in here, never the reverse.
    names: HashMap<u64, u32>,
    /// The directory's count of changes when it was made here, and own changes since.
    change: u64,
    own: u64,
    /// Own changes that are not answered yet.
    in_flight: u32,
    /// The highest count that a reply has said.
    seen: u64,
    /// Until when absence may be answered.
    until: Option<Instant>,
}

/// See the file's head.
pub struct KnownDirs {
    dirs: HashMap<u64, Known>,
    /// In the order in which they were made; may hold some that are dropped.
    order: VecDeque<u64>,
    name_count: usize,
    session: u64,
    ttl: Duration,
}

impl Known {
    /// Takes note of a count that a reply said; false if somebody else has changed the directory.
    fn saw(&mut self, change: u64, asked: Instant, ttl: Duration) -> bool {
        self.seen = self.seen.max(change);
        let expected = self.change + self.own;
        if self.seen == expected {
            let until = asked + ttl;
            self.until = Some(self.until.map_or(until, |known| known.max(until)));
            return true;
        }
        // Replies to own changes may come in another order than the changes were made in.
        self.until = None;
        self.in_flight > 0 && self.seen > expected && self.seen <= expected + u64::from(self.in_flight)
    }
}

impl KnownDirs {
    /// No directories.
    pub fn new(ttl: Duration) -> KnownDirs {
        KnownDirs { dirs: HashMap::new(), order: VecDeque::new(), name_count: 0, session: 0, ttl }
    }

    /// A directory was made here; its count of changes then.
    pub fn made(&mut self, ino: u64, change: u64, asked: Instant, session: u64) {
        self.in_session(session);
        if self.ttl.is_zero() {
            return;
        }
        self.forget(ino);
        while self.dirs.len() >= DIRS_MAX || self.order.len() >= 2 * DIRS_MAX {
            self.drop_oldest();
        }
        let until = Some(asked + self.ttl);
        let known = Known { names: HashMap::new(), change, own: 0, in_flight: 0, seen: change, until };
        self.dirs.insert(ino, known);
        self.order.push_back(ino);
    }

    fn drop_oldest(&mut self) {
        if let Some(oldest) = self.order.pop_front() {
            self.forget(oldest);
        }
    }

    /// Drops all knowledge of another session than this: the counts start anew when a brick opens.
    pub fn in_session(&mut self, session: u64) {
        if session != self.session {
            let ttl = self.ttl;
            *self = KnownDirs { session, ..KnownDirs::new(ttl) };
        }
    }

    /// Drops what is known of a directory.
    pub fn forget(&mut self, ino: u64) {
        if let Some(known) = self.dirs.remove(&ino) {
            self.name_count -= known.names.len();
        }
    }

    /// Whether the name is known not to exist.
    pub fn lacks(&self, key: DentryKey, now: Instant) -> bool {
        let Some(known) = self.dirs.get(&key.parent) else { return false };
        known.until.is_some_and(|until| now < until) && !known.names.contains_key(&key.hash)
    }

    /// An own change is about to be sent.
    pub fn begin(&mut self, parent: u64, adds: Option<DentryKey>) {
        let Some(known) = self.dirs.get_mut(&parent) else { return };
        known.in_flight += 1;
        if let Some(key) = adds {
            self.name_count += usize::from(!known.names.contains_key(&key.hash));
            *known.names.entry(key.hash).or_default() += 1;
        }
        while self.name_count > NAMES_MAX {
            self.drop_oldest();
        }
    }

    /// It was answered.
    pub fn end(&mut self, parent: u64, outcome: Outcome, adds: Option<DentryKey>, removes: Option<DentryKey>) {
        let Some(known) = self.dirs.get_mut(&parent) else { return };
        // Known again since the change was sent: it counts in what was then said of the directory.
        let Some(in_flight) = known.in_flight.checked_sub(1) else { return self.forget(parent) };
        known.in_flight = in_flight;
        let is_whole = match outcome {
            Outcome::Made(change, asked) => {
                known.own += 1;
                self.remove_name(parent, removes);
                let ttl = self.ttl;
                self.dirs.get_mut(&parent).is_some_and(|known| known.saw(change, asked, ttl))
            }
            Outcome::Refused => {
                let is_whole = known.in_flight > 0 || known.seen == known.change + known.own;
                self.remove_name(parent, adds);
                is_whole
            }
            Outcome::Unknown => false,
        };
        if !is_whole {
            self.forget(parent);
        }
    }

    fn remove_name(&mut self, parent: u64, name: Option<DentryKey>) {
        let (Some(known), Some(key)) = (self.dirs.get_mut(&parent), name) else { return };
        let Some(count) = known.names.get_mut(&key.hash) else { return };
        *count -= 1;
        if *count == 0 {
            known.names.remove(&key.hash);
            self.name_count -= 1;
        }
    }

    /// A reply has said a directory's count of changes.
    pub fn saw(&mut self, ino: u64, change: u64, asked: Instant) {
        let ttl = self.ttl;
        if self.dirs.get_mut(&ino).is_some_and(|known| !known.saw(change, asked, ttl)) {
            self.forget(ino);
        }
    }

    /// A name was found: it is known here, or somebody else made it.
    pub fn saw_name(&mut self, key: DentryKey) {
        if self.dirs.get(&key.parent).is_some_and(|known| !known.names.contains_key(&key.hash)) {
            self.forget(key.parent);
        }
    }

    /// Names of all directories.
    pub fn name_count(&self) -> usize {
        self.name_count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIR: u64 = 9;
    const TTL: Duration = Duration::from_secs(1);

    fn key(hash: u64) -> DentryKey {
        DentryKey { parent: DIR, hash }
    }

    fn made(now: Instant) -> KnownDirs {
        let mut dirs = KnownDirs::new(TTL);
        dirs.made(DIR, 100, now, 1);
        dirs
    }

    #[test]
    fn a_name_is_absent_until_it_may_exist() {
        let now = Instant::now();
        let mut dirs = made(now);
        assert!(dirs.lacks(key(1), now));
        dirs.begin(DIR, Some(key(1)));
        assert!(!dirs.lacks(key(1), now) && dirs.lacks(key(2), now));
        dirs.end(DIR, Outcome::Made(101, now), Some(key(1)), None);
        assert!(!dirs.lacks(key(1), now));
        dirs.begin(DIR, None);
        dirs.end(DIR, Outcome::Made(102, now), None, Some(key(1)));
        assert!(dirs.lacks(key(1), now));
        dirs.begin(DIR, Some(key(3)));
        dirs.end(DIR, Outcome::Refused, Some(key(3)), None);
        assert!(dirs.lacks(key(3), now));
        assert_eq!(dirs.name_count(), 0);
    }

    #[test]
    fn an_absence_holds_for_the_timeout_after_the_last_confirmation() {
        let now = Instant::now();
        let mut dirs = made(now);
        assert!(!dirs.lacks(key(1), now + TTL));
        dirs.saw(DIR, 100, now + TTL);
        assert!(dirs.lacks(key(1), now + TTL * 3 / 2));
        let mut strict = KnownDirs::new(Duration::ZERO);
        strict.made(DIR, 100, now, 1);
        assert!(!strict.lacks(key(1), now));
    }

    #[test]
    fn a_change_by_somebody_else_ends_the_knowledge() {
        let now = Instant::now();
        let mut dirs = made(now);
        dirs.saw(DIR, 101, now);
        assert!(!dirs.lacks(key(1), now));
        let mut dirs = made(now);
        dirs.begin(DIR, Some(key(1)));
        dirs.end(DIR, Outcome::Made(102, now), Some(key(1)), None);
        assert!(!dirs.lacks(key(2), now));
        let mut dirs = made(now);
        dirs.saw_name(key(7));
        assert!(!dirs.lacks(key(8), now), "a name that we have not made");
        let mut dirs = made(now);
        dirs.begin(DIR, Some(key(1)));
        dirs.end(DIR, Outcome::Unknown, Some(key(1)), None);
        assert!(!dirs.lacks(key(2), now));
        let mut dirs = made(now);
        dirs.in_session(2);
        assert!(!dirs.lacks(key(2), now));
    }

    #[test]
    fn replies_may_come_in_another_order_than_the_changes() {
        let now = Instant::now();
        let mut dirs = made(now);
        dirs.begin(DIR, Some(key(1)));
        dirs.begin(DIR, Some(key(2)));
        dirs.end(DIR, Outcome::Made(102, now), Some(key(2)), None);
        assert!(!dirs.lacks(key(3), now), "the other one may be somebody else's");
        dirs.end(DIR, Outcome::Made(101, now), Some(key(1)), None);
        assert!(dirs.lacks(key(3), now));
        dirs.begin(DIR, Some(key(3)));
        dirs.begin(DIR, Some(key(4)));
        dirs.end(DIR, Outcome::Made(104, now), Some(key(4)), None);
        dirs.end(DIR, Outcome::Refused, Some(key(3)), None);
        assert!(!dirs.lacks(key(5), now), "somebody else made the change that ours was refused for");
        assert_eq!(dirs.name_count(), 0);
    }

    #[test]
    fn what_is_known_is_bounded() {
        let now = Instant::now();
        let mut dirs = KnownDirs::new(TTL);
        for ino in 0..3 * DIRS_MAX as u64 {
            dirs.made(ino, 1, now, 1);
            dirs.begin(ino, Some(DentryKey { parent: ino, hash: 5 }));
        }
        assert!(dirs.dirs.len() <= DIRS_MAX && dirs.order.len() <= 2 * DIRS_MAX);
        assert_eq!(dirs.name_count(), dirs.dirs.len());
        for hash in 0..NAMES_MAX as u64 + 10 {
            dirs.begin(3 * DIRS_MAX as u64 - 1, Some(DentryKey { parent: 0, hash }));
        }
        assert!(dirs.name_count() <= NAMES_MAX);
    }
}
