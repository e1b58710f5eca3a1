//! Counts of the changes of directories' entries. A mount knows a directory that it has made by heart for as long as
//! the count is what its own changes come to, so each directory counts by one, whatever happens in others.
//!
//! A count has never been lower, not in an earlier process either: it begins at the clock, and where a directory was
//! dropped from this cache it goes on above all others. Nothing of it is on the disk.

use brickfs_common::ids::Gfid;
use lru::LruCache;
use std::num::NonZeroUsize;
use std::time::{SystemTime, UNIX_EPOCH};

/// See the file's head.
pub struct Changes {
    counts: LruCache<Gfid, u64>,
    /// The highest of them, also of those that were dropped.
    highest: u64,
}

/// Where a process that starts at this time begins: the clock in microseconds is above all that an earlier one has counted.
fn first_count(now: SystemTime) -> u64 {
    now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

impl Changes {
    /// Counts of this many directories.
    pub fn new(capacity: NonZeroUsize) -> Changes {
        Changes { counts: LruCache::new(capacity), highest: first_count(SystemTime::now()) }
    }

    /// The count of a directory.
    pub fn of(&mut self, gfid: &Gfid) -> u64 {
        let highest = self.highest;
        *self.counts.get_or_insert(*gfid, || highest)
    }

    /// An entry of the directory has changed.
    pub fn count(&mut self, gfid: &Gfid) {
        let count = self.of(gfid) + 1;
        self.counts.put(*gfid, count);
        self.highest = self.highest.max(count);
    }

    /// The directory is gone.
    pub fn forget(&mut self, gfid: &Gfid) {
        self.counts.pop(gfid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Gfid = Gfid([1; 16]);
    const B: Gfid = Gfid([2; 16]);

    #[test]
    fn each_directory_counts_its_own_changes_by_one() {
        let mut changes = Changes::new(NonZeroUsize::new(8).unwrap());
        let (a, b) = (changes.of(&A), changes.of(&B));
        for _ in 0..5 {
            changes.count(&A);
            changes.count(&B);
            changes.count(&B);
        }
        assert_eq!((changes.of(&A) - a, changes.of(&B) - b), (5, 10));
    }

    #[test]
    fn a_count_never_goes_back() {
        let mut changes = Changes::new(NonZeroUsize::new(1).unwrap());
        let first = changes.of(&A);
        (0..3).for_each(|_| changes.count(&A));
        assert!(changes.of(&B) >= first + 3, "which drops the other");
        assert!(changes.of(&A) >= first + 3);
        changes.count(&A);
        let last = changes.of(&A);
        changes.forget(&A);
        assert!(changes.of(&A) >= last);
        assert!(first_count(SystemTime::now() + std::time::Duration::from_millis(1)) > last, "a later process");
    }
}
