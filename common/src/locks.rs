//! Byte-range locks of one file, as fcntl(2) has them: an owner's locks never overlap, setting one replaces what the
//! owner had in that range, and equal neighbours are one. A lock of flock(2) is one over the whole file, as on NFS. Used
//! by the set that grants locks and by the mount that remembers its own.

use crate::errno::Errno;
use std::collections::BTreeMap;

/// Most locks of one file, of all owners; beyond it ENOLCK.
pub const LOCKS_MAX: usize = 65_536;

/// How a range is locked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum LockKind {
    /// For reading: others may too.
    Shared,
    /// For writing.
    Exclusive,
}

/// First and last byte; `LockRange::END` as the last one is the end of the file, wherever that is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LockRange {
    first: u64,
    last: u64,
}

impl LockRange {
    /// The last byte that a file can have (`OFFSET_MAX` of Linux).
    pub const END: u64 = i64::MAX as u64;
    /// The whole file.
    pub const ALL: LockRange = LockRange { first: 0, last: LockRange::END };

    /// A range; EINVAL if it ends before it begins or where no file can be.
    pub fn new(first: u64, last: u64) -> Result<LockRange, Errno> {
        if first > last || last > LockRange::END { Err(Errno::EINVAL) } else { Ok(LockRange { first, last }) }
    }

    /// Its first byte.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// Its last byte.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// The bytes that both have.
    pub fn common(&self, other: &LockRange) -> Option<LockRange> {
        LockRange::new(self.first.max(other.first), self.last.min(other.last)).ok()
    }

    /// Whether both have a byte in common.
    pub fn overlaps(&self, other: &LockRange) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    fn touches(&self, other: &LockRange) -> bool {
        self.first <= other.last + 1 && other.first <= self.last + 1
    }

    /// What is left of the range before and behind another one.
    fn without(&self, other: &LockRange) -> [Option<LockRange>; 2] {
        if !self.overlaps(other) {
            return [Some(*self), None];
        }
        let before = (self.first < other.first).then(|| LockRange { first: self.first, last: other.first - 1 });
        let behind = (self.last > other.last).then(|| LockRange { first: other.last + 1, last: self.last });
        [before, behind]
    }
}

/// A lock that is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeldLock {
    /// Where.
    pub range: LockRange,
    /// How.
    pub kind: LockKind,
    /// The process that asked for it, for F_GETLK.
    pub pid: u32,
}

/// The locks of one file, by owner.
#[derive(Clone, Debug)]
pub struct FileLocks<O> {
    by_owner: BTreeMap<O, Vec<HeldLock>>,
    count: usize,
}

impl<O> Default for FileLocks<O> {
    fn default() -> Self {
        FileLocks { by_owner: BTreeMap::new(), count: 0 }
    }
}

impl<O: Ord + Copy> FileLocks<O> {
    /// The locks of others that are in the way of one, with their owners.
    pub fn conflicts(&self, owner: O, range: LockRange, kind: LockKind) -> impl Iterator<Item = (O, HeldLock)> {
        let others = self.by_owner.iter().filter(move |(other, _)| **other != owner);
        let all = others.flat_map(|(other, held)| held.iter().map(|lock| (*other, *lock)));
        all.filter(move |(_, lock)| {
            lock.range.overlaps(&range) && (kind == LockKind::Exclusive || lock.kind == LockKind::Exclusive)
        })
    }

    /// Sets or, with `None`, takes away an owner's lock, in place of what it has in the range. Does not look at others.
    /// ENOLCK if the file would have too many locks.
    pub fn set(&mut self, owner: O, range: LockRange, kind: Option<LockKind>, pid: u32) -> Result<(), Errno> {
        let before = self.by_owner.get(&owner).map_or(&[] as &[HeldLock], Vec::as_slice);
        let mut after = Vec::with_capacity(before.len() + 2);
        let mut new = kind.map(|kind| HeldLock { range, kind, pid });
        for lock in before {
            if let Some(new) = &mut new
                && new.kind == lock.kind
                && new.range.touches(&lock.range)
            {
                new.range.first = new.range.first.min(lock.range.first);
                new.range.last = new.range.last.max(lock.range.last);
                continue;
            }
            let rest = lock.range.without(&range).into_iter().flatten();
            after.extend(rest.map(|range| HeldLock { range, ..*lock }));
        }
        after.extend(new);
        after.sort_unstable_by_key(|lock| lock.range);
        let count = self.count - before.len() + after.len();
        // Taking away must always work, though it may leave two locks of one.
        if count > LOCKS_MAX && kind.is_some() {
            return Err(Errno::ENOLCK);
        }
        self.count = count;
        if after.is_empty() {
            self.by_owner.remove(&owner);
        } else {
            self.by_owner.insert(owner, after);
        }
        Ok(())
    }

    /// Whether taking a range away leaves two of one of the owner's locks.
    pub fn splits(&self, owner: O, range: LockRange) -> bool {
        self.of(owner).iter().any(|lock| lock.range.first < range.first && range.last < lock.range.last)
    }

    /// How many locks there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// The locks of one owner, in order.
    pub fn of(&self, owner: O) -> &[HeldLock] {
        self.by_owner.get(&owner).map_or(&[], Vec::as_slice)
    }

    /// All locks.
    pub fn all(&self) -> impl Iterator<Item = (O, HeldLock)> {
        self.by_owner.iter().flat_map(|(owner, held)| held.iter().map(|lock| (*owner, *lock)))
    }

    /// Takes away the locks of all owners that are like this; answers how many there were.
    pub fn drop_owners(&mut self, mut is_meant: impl FnMut(&O) -> bool) -> usize {
        let before = self.count;
        self.by_owner.retain(|owner, _| !is_meant(owner));
        self.count = self.by_owner.values().map(Vec::len).sum();
        before - self.count
    }

    /// Whether nobody has a lock.
    pub fn is_empty(&self) -> bool {
        self.by_owner.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use LockKind::{Exclusive, Shared};

    fn range(first: u64, last: u64) -> LockRange {
        LockRange::new(first, last).unwrap()
    }

    /// What one owner has, as (first, last, kind).
    fn of(locks: &FileLocks<u8>, owner: u8) -> Vec<(u64, u64, LockKind)> {
        locks.of(owner).iter().map(|lock| (lock.range.first, lock.range.last, lock.kind)).collect()
    }

    #[test]
    fn a_lock_replaces_what_its_owner_has_there() {
        let mut locks = FileLocks::default();
        locks.set(1, range(10, 29), Some(Shared), 0).unwrap();
        locks.set(1, range(15, 19), Some(Exclusive), 0).unwrap();
        assert_eq!(of(&locks, 1), [(10, 14, Shared), (15, 19, Exclusive), (20, 29, Shared)]);
        locks.set(1, range(12, 17), None, 0).unwrap();
        assert_eq!(of(&locks, 1), [(10, 11, Shared), (18, 19, Exclusive), (20, 29, Shared)]);
        locks.set(1, LockRange::ALL, Some(Shared), 0).unwrap();
        assert_eq!(of(&locks, 1), [(0, LockRange::END, Shared)]);
        locks.set(1, range(5, LockRange::END), None, 0).unwrap();
        assert_eq!(of(&locks, 1), [(0, 4, Shared)]);
        locks.set(1, LockRange::ALL, None, 0).unwrap();
        assert!(locks.is_empty());
    }

    #[test]
    fn equal_neighbours_are_one_lock() {
        let mut locks = FileLocks::default();
        for (first, last) in [(0, 4), (10, 14), (5, 9)] {
            locks.set(1, range(first, last), Some(Exclusive), 0).unwrap();
        }
        assert_eq!(of(&locks, 1), [(0, 14, Exclusive)]);
        locks.set(1, range(15, LockRange::END), Some(Shared), 0).unwrap();
        assert_eq!(of(&locks, 1), [(0, 14, Exclusive), (15, LockRange::END, Shared)]);
    }

    #[test]
    fn only_what_others_hold_is_in_the_way() {
        let mut locks = FileLocks::default();
        locks.set(1, range(0, 9), Some(Shared), 11).unwrap();
        locks.set(2, range(20, 29), Some(Exclusive), 12).unwrap();
        let first = |owner, first, last, kind| {
            locks.conflicts(owner, range(first, last), kind).next().map(|(owner, lock)| (owner, lock.pid))
        };
        assert_eq!(first(3, 0, 19, Shared), None);
        assert_eq!(first(3, 0, 19, Exclusive), Some((1, 11)));
        assert_eq!(first(3, 29, 40, Shared), Some((2, 12)));
        assert_eq!(first(2, 10, 40, Exclusive), None);
        assert_eq!(first(1, 0, 19, Exclusive), None);
    }

    #[test]
    fn a_range_does_not_end_before_it_begins() {
        assert_eq!(LockRange::new(1, 0), Err(Errno::EINVAL));
        assert_eq!(LockRange::new(0, LockRange::END + 1), Err(Errno::EINVAL));
        assert!(LockRange::new(LockRange::END, LockRange::END).is_ok());
    }

    #[test]
    fn a_file_has_so_many_locks_and_no_more_but_they_can_be_taken_away() {
        let mut locks = FileLocks::default();
        for n in 0..LOCKS_MAX as u64 {
            locks.set(n % 7, range(2 * n, 2 * n), Some(Exclusive), 0).unwrap();
        }
        assert_eq!(locks.set(9, range(1, 1), Some(Exclusive), 0), Err(Errno::ENOLCK));
        assert!(locks.drop_owners(|owner| *owner == 3) > 0);
        assert_eq!(locks.drop_owners(|owner| *owner == 3), 0);
        locks.set(9, range(1, 1), Some(Exclusive), 0).unwrap();
    }

    /// Against a table of single bytes.
    #[test]
    fn any_sequence_is_like_a_table_of_bytes() {
        const BYTES: u64 = 12;
        let mut seed = 1u64;
        let mut draw = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        for _ in 0..400 {
            let mut locks = FileLocks::default();
            let mut bytes = [[None; BYTES as usize]; 3];
            for _ in 0..30 {
                let (owner, first) = (draw(3) as usize, draw(BYTES));
                let last = first + draw(BYTES - first);
                let kind = [None, Some(Shared), Some(Exclusive)][draw(3) as usize];
                let is_free = kind.is_none_or(|kind| locks.conflicts(owner, range(first, last), kind).next().is_none());
                let in_way = |other: usize| {
                    other != owner
                        && (first..=last).any(|at| {
                            let held = bytes[other][at as usize];
                            held.is_some() && (kind == Some(Exclusive) || held == Some(Exclusive))
                        })
                };
                assert_eq!(is_free, kind.is_none() || !(0..3).any(in_way));
                if is_free {
                    locks.set(owner, range(first, last), kind, 0).unwrap();
                    (first..=last).for_each(|at| bytes[owner][at as usize] = kind);
                }
                for (owner, bytes) in bytes.iter().enumerate() {
                    let mut shown = [None; BYTES as usize];
                    for lock in locks.of(owner) {
                        (lock.range.first..=lock.range.last).for_each(|at| shown[at as usize] = Some(lock.kind));
                    }
                    assert_eq!(&shown, bytes);
                    let merged = locks.of(owner).windows(2).all(|pair| {
                        pair[0].range.last < pair[1].range.first
                            && (pair[0].kind != pair[1].kind || pair[0].range.last + 1 < pair[1].range.first)
                    });
                    assert!(merged);
                }
            }
        }
    }
}
