//! The locks that this client holds, as far as it knows. A greeting announces them, and the server takes that as the
//! whole truth (PROTOCOL 16); calls sent again after it count on top. So a lock counts from its answer on, and is given
//! up when the call that gives it up is made.
//!
//! A call that was given up while it waited for a lock may have got it all the same. Its answer tells; then the server
//! is told again what this owner holds, once no other of its calls is on the way.

use brickfs_common::fop::{Fop, FopReply, LOCKS_OF_CLIENT_MAX, ObjectRef, OwnedLock};
use brickfs_common::ids::Gfid;
use brickfs_common::locks::{FileLocks, LockKind, LockRange};
use std::collections::{HashMap, HashSet};

/// A call that asks for a lock or gives one up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LockCall {
    object: ObjectRef,
    owner: u64,
    range: LockRange,
    kind: Option<LockKind>,
    pid: u32,
    /// It is answered when the lock is free, whenever that is.
    pub waits: bool,
}

/// A file and an owner.
type Key = (Gfid, u64);

impl LockCall {
    /// The call of an operation on locks.
    pub fn of(fop: &Fop) -> Option<LockCall> {
        match *fop {
            Fop::Lock { object, owner, range, kind, pid, waits } => {
                Some(LockCall { object, owner, range, kind, pid, waits })
            }
            _ => None,
        }
    }

    fn key(&self) -> Key {
        (self.object.gfid, self.owner)
    }
}

/// See the file's head.
#[derive(Default)]
pub struct HeldLocks {
    files: HashMap<Gfid, (ObjectRef, FileLocks<u64>)>,
    /// Calls on their way, by file and owner.
    asking: HashMap<Key, usize>,
    /// Calls that were given up, until their answers come.
    abandoned: HashMap<u64, LockCall>,
    /// Whom the server may have given more than is known here.
    in_doubt: HashSet<Key>,
}

impl HeldLocks {
    /// A call is made.
    pub fn asked(&mut self, call: &LockCall) {
        *self.asking.entry(call.key()).or_default() += 1;
        match call.kind {
            None if !self.splits_too_far(call) => self.set(call),
            // What it had more is given up, too.
            Some(LockKind::Shared) => self.weaken(call),
            _ => {}
        }
    }

    /// The server refuses to leave two locks of one where there are too many.
    fn splits_too_far(&self, call: &LockCall) -> bool {
        let splits = |(_, locks): &(ObjectRef, FileLocks<u64>)| locks.splits(call.owner, call.range);
        self.files.get(&call.object.gfid).is_some_and(splits)
            && self.files.values().map(|(_, locks)| locks.len()).sum::<usize>() >= LOCKS_OF_CLIENT_MAX
    }

    /// Locks for writing in the range become locks for reading.
    fn weaken(&mut self, call: &LockCall) {
        let Some((_, locks)) = self.files.get_mut(&call.object.gfid) else { return };
        let strong = locks.of(call.owner).iter().filter(|lock| lock.kind == LockKind::Exclusive);
        let ranges: Vec<LockRange> = strong.filter_map(|lock| lock.range.common(&call.range)).collect();
        for range in ranges {
            // Too many are refused before.
            locks.set(call.owner, range, Some(LockKind::Shared), call.pid).ok();
        }
    }

    /// Nothing of a file is open any more, so nothing of it is locked.
    pub fn forget_file(&mut self, gfid: &Gfid) {
        self.files.remove(gfid);
    }

    /// It was answered. Answers what is to be asked now.
    pub fn answered(&mut self, call: &LockCall, reply: &FopReply) -> Vec<Fop> {
        // An unlock too: a lock that was asked for before it may have been answered since.
        if reply.result.is_ok() {
            self.set(call);
        }
        self.is_over(call)
    }

    /// Nobody waits for it any more; `was_sent`: the server may have it. Answers what is to be asked now.
    pub fn abandon(&mut self, request: u64, call: &LockCall, was_sent: bool) -> Vec<Fop> {
        if !was_sent {
            if call.kind.is_none() {
                // Given up here, and still to be given up there.
                self.in_doubt.insert(call.key());
            }
            return self.is_over(call);
        }
        self.abandoned.insert(request, *call);
        vec![Fop::CancelLock { object: call.object, request }]
    }

    /// An answer came that nobody waits for. Answers what is to be asked now.
    pub fn answered_late(&mut self, reply: &FopReply) -> Vec<Fop> {
        let Some(call) = self.abandoned.remove(&reply.request) else { return Vec::new() };
        if reply.result.is_ok() && call.kind.is_some() {
            self.in_doubt.insert(call.key());
        }
        self.is_over(&call)
    }

    fn set(&mut self, call: &LockCall) {
        let (_, locks) = self.files.entry(call.object.gfid).or_insert_with(|| (call.object, FileLocks::default()));
        // The server refuses what is too much before it is known here.
        locks.set(call.owner, call.range, call.kind, call.pid).ok();
        if locks.is_empty() {
            self.files.remove(&call.object.gfid);
        }
    }

    fn is_over(&mut self, call: &LockCall) -> Vec<Fop> {
        let key = call.key();
        if let Some(count) = self.asking.get_mut(&key) {
            *count -= 1;
            if *count > 0 {
                return Vec::new();
            }
            self.asking.remove(&key);
        }
        if self.in_doubt.remove(&key) { self.tell(call.object, call.owner) } else { Vec::new() }
    }

    /// What makes the server's view of an owner that of this client; none of it can be refused, for it only gives back.
    fn tell(&self, object: ObjectRef, owner: u64) -> Vec<Fop> {
        let set = |range, kind, pid| Fop::Lock { object, owner, range, kind, pid, waits: false };
        let mut fops = Vec::new();
        let mut at = Some(0);
        let held = self.files.get(&object.gfid).map_or(&[][..], |(_, locks)| locks.of(owner));
        for lock in held {
            if let Some(first) = at.filter(|first| *first < lock.range.first())
                && let Ok(gap) = LockRange::new(first, lock.range.first() - 1)
            {
                fops.push(set(gap, None, 0));
            }
            fops.push(set(lock.range, Some(lock.kind), lock.pid));
            at = lock.range.last().checked_add(1).filter(|next| *next <= LockRange::END);
        }
        if let Some(Ok(rest)) = at.map(|first| LockRange::new(first, LockRange::END)) {
            fops.push(set(rest, None, 0));
        }
        fops
    }

    /// What a greeting announces. It tells the server of no call that was given up.
    pub fn announce(&mut self) -> Vec<OwnedLock> {
        for call in std::mem::take(&mut self.abandoned).into_values() {
            self.is_over(&call);
        }
        self.in_doubt.clear();
        let all =
            self.files.iter().flat_map(|(gfid, (_, locks))| locks.all().map(|(owner, lock)| (*gfid, owner, lock)));
        all.map(|(gfid, owner, lock)| OwnedLock { gfid, owner, lock }).collect()
    }

    /// All locks were lost; answers the files.
    pub fn lose_all(&mut self) -> Vec<ObjectRef> {
        self.in_doubt.clear();
        std::mem::take(&mut self.files).into_values().map(|(object, _)| object).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use LockKind::{Exclusive, Shared};
    use brickfs_common::errno::Errno;
    use brickfs_common::ids::SetId;

    const OBJECT: ObjectRef = ObjectRef { gfid: Gfid([1; 16]), home: SetId(0) };

    fn lock(first: u64, last: u64, kind: Option<LockKind>) -> LockCall {
        let range = LockRange::new(first, last).unwrap();
        LockCall { object: OBJECT, owner: 1, range, kind, pid: 9, waits: true }
    }

    fn fop(first: u64, last: u64, kind: Option<LockKind>, pid: u32) -> Fop {
        let range = LockRange::new(first, last).unwrap();
        Fop::Lock { object: OBJECT, owner: 1, range, kind, pid, waits: false }
    }

    fn done(request: u64) -> FopReply {
        FopReply::done(request)
    }

    fn announced(held: &mut HeldLocks) -> Vec<(u64, u64, LockKind)> {
        let all = held.announce();
        all.iter().map(|owned| (owned.lock.range.first(), owned.lock.range.last(), owned.lock.kind)).collect()
    }

    #[test] // PROTOCOL 16
    fn a_lock_counts_from_its_answer_until_it_is_given_up() {
        let mut held = HeldLocks::default();
        let (take, give) = (lock(0, 9, Some(Exclusive)), lock(5, 9, None));
        held.asked(&take);
        assert!(announced(&mut held).is_empty());
        held.answered(&take, &done(1));
        assert_eq!(announced(&mut held), [(0, 9, Exclusive)]);
        held.asked(&give);
        assert_eq!(announced(&mut held), [(0, 4, Exclusive)], "before its answer");
        held.answered(&give, &done(2));
        held.asked(&take);
        held.answered(&take, &FopReply::failed(3, Errno::EAGAIN));
        assert_eq!(announced(&mut held), [(0, 4, Exclusive)]);
        assert_eq!(held.lose_all(), [OBJECT]);
        assert!(announced(&mut held).is_empty() && held.asking.is_empty());
    }

    #[test]
    fn what_a_call_given_up_has_got_is_given_back() {
        let mut held = HeldLocks::default();
        let read = lock(10, 19, Some(Shared));
        held.asked(&read);
        held.answered(&read, &done(1));
        let write = lock(0, 29, Some(Exclusive));
        held.asked(&write);
        assert_eq!(held.abandon(2, &write, true), [Fop::CancelLock { object: OBJECT, request: 2 }]);
        // The same owner asks again before the answer comes.
        let again = lock(0, 4, Some(Shared));
        held.asked(&again);
        assert!(held.answered_late(&done(2)).is_empty(), "another call is on its way");
        let told = held.answered(&again, &done(3));
        assert_eq!(
            told,
            [
                fop(0, 4, Some(Shared), 9),
                fop(5, 9, None, 0),
                fop(10, 19, Some(Shared), 9),
                fop(20, LockRange::END, None, 0),
            ]
        );
        assert!(held.in_doubt.is_empty() && held.asking.is_empty());
    }

    #[test]
    fn a_call_given_up_that_got_nothing_leaves_nothing_to_do() {
        let mut held = HeldLocks::default();
        let call = lock(0, LockRange::END, Some(Exclusive));
        held.asked(&call);
        held.abandon(1, &call, true);
        assert!(held.answered_late(&FopReply::failed(1, Errno::EINTR)).is_empty());
        held.asked(&call);
        assert!(held.abandon(2, &call, false).is_empty(), "it was never sent");
        held.asked(&call);
        held.abandon(3, &call, true);
        assert!(announced(&mut held).is_empty());
        assert!(held.answered_late(&done(3)).is_empty(), "a greeting has said what is held");
        assert!(held.asking.is_empty() && held.abandoned.is_empty());
        // A lock to the end of the file leaves no rest behind it.
        held.asked(&call);
        held.answered(&call, &done(4));
        assert_eq!(held.tell(OBJECT, 1), [fop(0, LockRange::END, Some(Exclusive), 9)]);
    }

    #[test] // PROTOCOL 16
    fn a_lock_for_reading_in_place_of_one_for_writing_counts_from_the_call_on() {
        let mut held = HeldLocks::default();
        let write = lock(0, 9, Some(Exclusive));
        held.asked(&write);
        held.answered(&write, &done(1));
        let read = lock(5, 19, Some(Shared));
        held.asked(&read);
        assert_eq!(announced(&mut held), [(0, 4, Exclusive), (5, 9, Shared)], "others may read there by now");
        held.answered(&read, &done(2));
        assert_eq!(announced(&mut held), [(0, 4, Exclusive), (5, 19, Shared)]);
    }

    #[test]
    fn an_unlock_that_overtakes_the_answer_to_a_lock_leaves_nothing() {
        let mut held = HeldLocks::default();
        let (take, give) = (lock(0, 9, Some(Exclusive)), lock(0, 9, None));
        held.asked(&take);
        held.asked(&give);
        held.answered(&take, &done(1));
        held.answered(&give, &done(2));
        assert!(announced(&mut held).is_empty());
        held.asked(&take);
        held.answered(&take, &done(3));
        held.forget_file(&OBJECT.gfid);
        assert!(announced(&mut held).is_empty());
    }

    #[test]
    fn an_unlock_that_was_never_sent_is_told_all_the_same() {
        let mut held = HeldLocks::default();
        let (take, give) = (lock(0, 9, Some(Exclusive)), lock(0, 4, None));
        held.asked(&take);
        held.answered(&take, &done(1));
        held.asked(&give);
        let told = held.abandon(2, &give, false);
        let expected = [fop(0, 4, None, 0), fop(5, 9, Some(Exclusive), 9), fop(10, LockRange::END, None, 0)];
        assert_eq!(told, expected);
    }
}
