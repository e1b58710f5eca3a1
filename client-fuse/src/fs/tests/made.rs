//! Owner, mode and times of files that were made here and are being written, as the kernel sees them.

use super::*;
use crate::fs::Creating;
use brickfs_common::attr::{SetAttr, SetTime};
use brickfs_common::locks::LockKind;
use std::time::Duration;

const TIME: Timestamp = Timestamp { sec: 7, nsec: 8 };

fn times() -> SetAttr {
    SetAttr { mtime: Some(SetTime::At(TIME)), ..SetAttr::default() }
}

fn mode(perm: u32) -> SetAttr {
    SetAttr { perm: Some(perm), ..SetAttr::default() }
}

fn owner(uid: u32, gid: u32) -> SetAttr {
    SetAttr { uid: Some(uid), gid: Some(gid), ..SetAttr::default() }
}

impl Rig {
    fn create(&self, n: u8, flags: i32) -> (u64, u64) {
        let creating = Creating { parent: ROOT, name: b"new", perm: 0o600, umask: 0, flags: flags | libc::O_CREAT };
        let created = self.ask(|fs, a| fs.create(ME, creating, a));
        self.answer(FopReply { parent: Some(root_attr(1)), ..with(attr(n, Kind::File, 0)) });
        let (told, opened) = created.take().unwrap();
        (told.ino, opened.handle)
    }

    fn set(&self, caller: Caller, ino: u64, set: SetAttr) -> Answered<Told> {
        self.ask(|fs, a| fs.set_attr(caller, ino, set, a))
    }
}

fn written(count: u32) -> FopReply {
    FopReply { result: Ok(Answer::Written { count, offset: 0 }), ..done() }
}

#[test]
fn what_is_unpacked_is_answered_from_here_until_it_is_closed() {
    let rig = Rig::new();
    let (ino, handle) = rig.create(7, libc::O_WRONLY | libc::O_EXCL);
    rig.write(ino, handle, 0, b"hello").take().unwrap();
    let told = rig.set(ME, ino, times()).take().unwrap();
    assert_eq!((told.attr.size, told.attr.mtime, told.ttl), (5, TIME, Duration::ZERO), "the ctime is not known");
    let capability = rig.ask(|fs, a| fs.get_xattr(ME, ino, b"security.capability", a));
    assert_eq!(capability.take(), Err(Errno::ENODATA), "asked by the kernel before each change of owner");
    rig.set(ME, ino, owner(0, 0)).take().unwrap();
    let told = rig.set(ME, ino, mode(0o4755)).take().unwrap().attr;
    assert_eq!((told.perm, told.mtime), (0o4755, TIME));
    assert_eq!(rig.waiting(), ["Write"]);
    let close = rig.ask(|fs, a| fs.flush(ME, ino, (handle, OWNER), a));
    assert_eq!(rig.waiting(), ["Write", "SetAttr"], "all three in one");
    rig.answer(written(5));
    assert!(!close.is_there());
    let set = rig.answer(with(attr(7, Kind::File, 5)));
    assert!(matches!(set, Fop::SetAttr { set, .. } if set.perm == Some(0o4755) && set.uid == Some(0)));
    assert_eq!(close.take(), Ok(()));
    rig.fs.release(ino, handle);
    assert_eq!(rig.count_of("made"), 0);
    rig.set(ME, ino, times());
    assert_eq!(rig.waiting(), ["SetAttr"]);
}

#[test]
fn stat_comes_behind_a_change_and_a_close_reports_its_error() {
    let rig = Rig::new();
    let (ino, handle) = rig.create(7, libc::O_RDWR);
    rig.set(ME, ino, mode(0o664)).take().unwrap();
    rig.set(ME, ino, mode(0o666)).take().unwrap();
    let stat = rig.get_attr(ino);
    let acl = rig.ask(|fs, a| fs.get_xattr(ME, ino, b"system.posix_acl_access", a));
    assert_eq!(rig.waiting(), ["SetAttr", "SetAttr", "GetAttr", "GetXattr"]);
    assert!(!acl.is_there());
    rig.answer(with(attr(7, Kind::File, 0)));
    rig.answer(refused(Errno::EROFS));
    assert!(!stat.is_there());
    assert_eq!(rig.ask(|fs, a| fs.flush(ME, ino, (handle, OWNER), a)).take(), Err(Errno::EROFS));
    assert_eq!(rig.count_of("made"), 0, "it is not as was thought");
}

#[test]
fn the_brick_is_asked_where_it_may_refuse_or_others_must_see() {
    let asks = |rig: &Rig, caller, ino, set| {
        let told = rig.set(caller, ino, set);
        assert!(!told.is_there() && rig.waiting() == ["SetAttr"]);
        rig.answer(with(attr(7, Kind::File, 0)));
    };
    let other = Caller { uid: 6, ..ME };
    let rig = Rig::new();
    let (ino, _) = rig.create(7, libc::O_RDWR);
    asks(&rig, other, ino, mode(0o666));
    let (ino, _) = rig.create(7, libc::O_RDWR);
    asks(&rig, ME, ino, SetAttr { size: Some(3), ..SetAttr::default() });
    asks(&rig, ME, ino, mode(0o666)); // cut: how it is now is not known
    for flags in [libc::O_RDONLY, libc::O_WRONLY | libc::O_APPEND, libc::O_WRONLY | libc::O_SYNC] {
        let rig = Rig::new();
        let (ino, _) = rig.create(7, flags);
        asks(&rig, ME, ino, mode(0o666));
    }
    let rig = Rig::with_strict(true);
    let (ino, _) = rig.create(7, libc::O_RDWR);
    asks(&rig, ME, ino, mode(0o666));
    let rig = Rig::new();
    let (ino, _) = rig.open_file(7);
    asks(&rig, ME, ino, mode(0o666));
    // What shuts somebody out must be so before anything is written behind it, and the kernel would take a new owner at
    // our word; what another thread does, that one wants to hear of.
    for (caller, set) in [(ME, mode(0o600)), (ME, owner(5, 0)), (ME, owner(0, 5)), (Caller { pid: 9, ..ME }, times())] {
        let rig = Rig::new();
        let (ino, _) = rig.create(7, libc::O_RDWR);
        asks(&rig, caller, ino, set);
    }
    // Who was told of another size than the one known here would lose what lies beyond that.
    let rig = Rig::new();
    let (ino, _) = rig.create(7, libc::O_RDWR);
    let found = rig.look_up(ROOT, "new");
    rig.answer(with(attr(7, Kind::File, 1000)));
    assert_eq!(found.take().unwrap().attr.size, 1000);
    asks(&rig, ME, ino, times());
    let rig = Rig::new();
    let (ino, handle) = rig.create(7, libc::O_RDWR);
    rig.ask(|fs, a| fs.flush(ME, ino, (handle, OWNER), a)).take().unwrap();
    asks(&rig, ME, ino, times()); // no close would tell an error
}

#[test]
fn a_file_that_others_may_look_for_under_a_lock_is_asked_for() {
    let rig = Rig::new();
    let (locked, handle) = rig.open_file(9);
    let (ino, _) = rig.create(7, libc::O_RDWR);
    rig.lock(locked, handle, OWNER, Some(LockKind::Exclusive));
    rig.answer(done());
    assert!(!rig.set(ME, ino, mode(0o666)).is_there());
}
