//! Locks: what is asked of the brick and when, and when the kernel is told.

use super::*;
use crate::fs::Locking;
use brickfs_common::locks::{HeldLock, LockKind, LockRange};

fn locking(ino: u64, handle: u64, owner: u64, kind: Option<LockKind>) -> Locking {
    Locking { ino, handle, owner, range: LockRange::ALL, kind, pid: 9, waits: true }
}

impl Rig {
    pub(super) fn lock(&self, ino: u64, handle: u64, owner: u64, kind: Option<LockKind>) -> Answered<()> {
        self.ask(|fs, reply| fs.set_lock(ME, locking(ino, handle, owner, kind), reply))
    }

    fn locked(&self, ino: u64, handle: u64, owner: u64) {
        let answered = self.lock(ino, handle, owner, Some(LockKind::Exclusive));
        self.answer(done());
        self.drop_pages(ino);
        answered.take().unwrap();
    }

    /// The kernel drops the pages that it was asked to.
    fn drop_pages(&self, ino: u64) {
        let (asked, then) = self.fs.invalidations.next().unwrap();
        assert_eq!(asked, ino);
        then.into_iter().for_each(|then| then());
    }

    /// Owner and range of the locks that are given back, in order; all that waits is answered.
    fn given_back(&self) -> Vec<u64> {
        let mut owners = Vec::new();
        while !self.waiting().is_empty() {
            match self.answer(done()) {
                Fop::Lock { owner, range: LockRange::ALL, kind: None, .. } => owners.push(owner),
                Fop::Release { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        owners
    }
}

#[test]
fn who_gets_a_lock_is_told_when_the_kernel_has_dropped_what_it_had() {
    let rig = Rig::new();
    let (ino, handle) = rig.open_file(7);
    let answered = rig.lock(ino, handle, OWNER, Some(LockKind::Shared));
    rig.answer(done());
    assert!(!answered.is_there());
    rig.drop_pages(ino);
    assert_eq!(answered.take(), Ok(()));
    let answered = rig.lock(ino, handle, OWNER, Some(LockKind::Exclusive));
    rig.answer(refused(Errno::EDEADLK));
    assert_eq!(answered.take(), Err(Errno::EDEADLK));
}

#[test] // PROTOCOL 16, 32
fn giving_a_lock_back_waits_for_what_was_written_under_it() {
    let rig = Rig::new();
    let (ino, handle) = rig.open_file(7);
    rig.locked(ino, handle, OWNER);
    rig.write(ino, handle, 0, b"under the lock").take().unwrap();
    let answered = rig.lock(ino, handle, OWNER, None);
    assert_eq!(rig.waiting(), ["Write"]);
    rig.answer(FopReply { result: Ok(Answer::Written { count: 14, offset: 0 }), ..done() });
    assert_eq!(rig.waiting(), ["Lock"]);
    rig.answer(done());
    assert_eq!(answered.take(), Ok(()));
    assert_eq!(rig.count_of("lock_owners"), 0);
    // Who has none gives back none.
    assert_eq!(rig.lock(ino, handle, OWNER, None).take(), Ok(()));
    assert!(rig.waiting().is_empty());
}

#[test]
fn a_close_gives_back_the_locks_of_its_process_and_the_last_one_those_of_the_open_file() {
    let rig = Rig::new();
    let (ino, one) = rig.open_file(7);
    let two = rig.open(ino, libc::O_RDWR).take().unwrap().handle;
    let (process, other_process, file) = (OWNER, OWNER + 1, OWNER + 2);
    rig.locked(ino, one, process);
    rig.locked(ino, one, other_process);
    rig.locked(ino, two, file);
    // By any descriptor of the file, as POSIX has it.
    let close = rig.ask(|fs, a| fs.flush(ME, ino, (two, process), a));
    assert!(!close.is_there(), "another one may ask for it once close has returned");
    assert_eq!(rig.given_back(), [process]);
    assert_eq!(close.take(), Ok(()));
    rig.fs.release(ino, two);
    assert_eq!(rig.given_back(), [file]);
    rig.fs.release(ino, one);
    assert_eq!(rig.given_back(), [other_process]);
    assert_eq!(rig.count_of("lock_owners"), 0);
}

#[test]
fn a_lock_in_the_way_is_told() {
    let rig = Rig::new();
    let (ino, handle) = rig.open_file(7);
    let ask = || rig.ask(|fs, a| fs.test_lock(ME, locking(ino, handle, OWNER, Some(LockKind::Exclusive)), a));
    let lock = HeldLock { range: LockRange::new(5, 9).unwrap(), kind: LockKind::Shared, pid: 3 };
    for in_the_way in [Some(lock), None] {
        let answered = ask();
        rig.answer(FopReply { result: Ok(Answer::InTheWay(in_the_way)), ..done() });
        assert_eq!(answered.take(), Ok(in_the_way));
    }
}

#[test] // PROTOCOL 16
fn a_descriptor_whose_locks_were_lost_is_of_no_use_any_more() {
    let rig = Rig::new();
    let (ino, handle) = rig.open_file(7);
    rig.locked(ino, handle, OWNER);
    let (other_ino, other) = rig.open_file(8);
    for offset in [0, 2, 4] {
        // The second and the third wait for the first: they overlap it.
        rig.write(ino, handle, offset, b"lost").take().unwrap();
    }
    assert_eq!(rig.waiting(), ["Write"]);
    rig.fs.lose_locks(&[ObjectRef { gfid: Gfid([7; 16]), home: SetId(0) }]);
    rig.answer(refused(Errno::EIO));
    assert!(rig.waiting().is_empty(), "nothing that was written under the lock is sent any more");
    assert_eq!(rig.write(ino, handle, 0, b"x").take(), Err(Errno::EIO));
    assert_eq!(rig.ask(|fs, a| fs.read(ME, ino, handle, (0, 1), a)).take(), Err(Errno::EIO));
    assert_eq!(rig.lock(ino, handle, OWNER, Some(LockKind::Shared)).take(), Err(Errno::EIO));
    assert_eq!(rig.lock(ino, handle, OWNER, None).take(), Ok(()));
    assert_eq!(rig.ask(|fs, a| fs.flush(ME, ino, (handle, OWNER), a)).take(), Err(Errno::EIO));
    // Others go on, and so does the file when it is opened anew.
    rig.write(other_ino, other, 0, b"x").take().unwrap();
    let anew = rig.open(ino, libc::O_RDWR).take().unwrap().handle;
    rig.write(ino, anew, 0, b"x").take().unwrap();
}

#[test]
fn beside_a_locked_file_nothing_that_is_told_holds() {
    let rig = Rig::new();
    let (ino, handle) = rig.open_file(7);
    let journal = rig.file(8);
    let answered = rig.lock(ino, handle, OWNER, Some(LockKind::Shared));
    rig.answer(done());
    rig.drop_pages(journal);
    assert_eq!(rig.fs.invalidations.names_of(journal), [(ROOT, (*b"file8").into())]);
    assert!(!answered.is_there(), "what was told of the journal before might be used");
    rig.drop_pages(ino);
    assert_eq!(answered.take(), Ok(()));
    let told = |n: u8| {
        let found = rig.look_up(ROOT, &format!("file{n}"));
        rig.answer(with(attr(n, Kind::File, 0)));
        found.take().unwrap()
    };
    assert!(told(8).ttl.is_zero() && told(9).ttl.is_zero());
    assert!(!told(7).ttl.is_zero(), "it is dropped with each lock");
    let set = rig.ask(|fs, a| fs.set_attr(ME, journal, Default::default(), a));
    rig.answer(with(attr(8, Kind::File, 0)));
    assert!(set.take().unwrap().ttl.is_zero());
    assert!(!rig.get_attr(journal).is_there());
    rig.answer(with(attr(8, Kind::File, 0)));
    let directory = rig.look_up(ROOT, "directory");
    rig.answer(with(attr(10, Kind::Directory, 0)));
    assert!(!directory.take().unwrap().ttl.is_zero());
    rig.locked(ino, handle, OWNER + 1); // and nothing else is dropped
}

#[test] // PROTOCOL 32
fn a_lock_for_reading_in_place_of_one_for_writing_waits_for_what_was_written() {
    let rig = Rig::new();
    let (ino, handle) = rig.open_file(7);
    rig.locked(ino, handle, OWNER);
    rig.write(ino, handle, 0, b"for all to see").take().unwrap();
    let weaker = rig.lock(ino, handle, OWNER, Some(LockKind::Shared));
    assert_eq!(rig.waiting(), ["Write"]);
    rig.answer(FopReply { result: Ok(Answer::Written { count: 14, offset: 0 }), ..done() });
    rig.answer(done());
    rig.drop_pages(ino);
    assert_eq!(weaker.take(), Ok(()));
}

#[test]
fn a_lock_that_a_thread_gets_after_another_has_given_all_back_is_given_back_too() {
    let rig = Rig::new();
    let (ino, handle) = rig.open_file(7);
    let waiting = rig.lock(ino, handle, OWNER, Some(LockKind::Exclusive));
    let unlock = rig.lock(ino, handle, OWNER, None);
    assert_eq!(rig.waiting(), ["Lock", "Lock"]);
    rig.answer(done());
    rig.answer(done());
    rig.drop_pages(ino);
    assert_eq!((waiting.take(), unlock.take()), (Ok(()), Ok(())));
    let close = rig.ask(|fs, a| fs.flush(ME, ino, (handle, OWNER), a));
    assert_eq!(rig.given_back(), [OWNER]);
    assert_eq!(close.take(), Ok(()));
}

#[test] // PROTOCOL 16
fn what_is_queued_of_a_closed_descriptor_is_not_sent_once_its_locks_are_lost() {
    let rig = Rig::new();
    let (ino, handle) = rig.open_file(7);
    rig.locked(ino, handle, OWNER);
    for _ in 0..2 {
        rig.write(ino, handle, 0, b"lost").take().unwrap();
    }
    rig.fs.release(ino, handle);
    rig.fs.lose_locks(&[ObjectRef { gfid: Gfid([7; 16]), home: SetId(0) }]);
    rig.answer(refused(Errno::EIO));
    assert!(!rig.waiting().contains(&"Write".to_owned()), "{:?}", rig.waiting());
}
