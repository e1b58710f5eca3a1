//! Write-behind as the kernel sees it (PROTOCOL 31, 32).

use super::*;
use brickfs_common::attr::SetAttr;
use brickfs_common::fop::RenameFlags;

fn written(count: u32) -> FopReply {
    FopReply { result: Ok(Answer::Written { count, offset: 0 }), ..done() }
}

#[test]
fn a_write_is_answered_when_it_is_on_its_way_and_stat_comes_behind_it() {
    let rig = Rig::new();
    let (ino, handle) = rig.open_file(7);
    assert_eq!(rig.write(ino, handle, 0, b"hello").take(), Ok(5));
    let stat = rig.get_attr(ino);
    assert_eq!(rig.waiting(), ["Write", "GetAttr"], "behind it on the stream, without waiting for its answer");
    rig.answer(written(5));
    rig.answer(with(attr(7, Kind::File, 5)));
    assert_eq!(stat.take().unwrap().attr.size, 5);
    assert_eq!(rig.count_of("busy"), 0);
}

#[test]
fn what_is_asked_behind_a_write_that_may_not_be_sent_yet_waits() {
    let rig = Rig::new();
    let (ino, handle) = rig.open_file(7);
    rig.write(ino, handle, 0, b"first").take().unwrap();
    rig.write(ino, handle, 2, b"overlaps").take().unwrap();
    let stat = rig.get_attr(ino);
    let times = rig.ask(|fs, a| fs.set_attr(ME, ino, Default::default(), a));
    assert_eq!(rig.waiting(), ["Write"]);
    rig.answer(written(5));
    assert_eq!(rig.waiting(), ["Write"]);
    rig.answer(written(8));
    assert_eq!(rig.waiting(), ["GetAttr", "SetAttr"]);
    assert!(!stat.is_there() && !times.is_there());
}

#[test]
fn a_small_write_that_is_held_back_is_sent_before_what_comes_behind_it() {
    let rig = Rig::new();
    let (ino, handle) = rig.open_file(7);
    rig.write(ino, handle, 0, b"first").take().unwrap();
    rig.write(ino, handle, 5, b"follows").take().unwrap();
    assert_eq!(rig.waiting(), ["Write"], "it may grow");
    rig.ask(|fs, a| fs.set_attr(ME, ino, Default::default(), a));
    assert_eq!(rig.waiting(), ["Write", "Write", "SetAttr"]);
}

#[test]
fn whatever_shows_or_changes_size_data_or_times_waits() {
    let waits = |question: &dyn Fn(&Rig, u64, u64)| {
        let rig = Rig::new();
        let (ino, handle) = rig.open_file(7);
        rig.write(ino, handle, 0, b"hello").take().unwrap();
        question(&rig, ino, handle);
        let before = rig.waiting();
        rig.answer(written(5));
        (before, rig.waiting())
    };
    let ask = |question: &dyn Fn(&Rig, u64, u64)| {
        let (before, after) = waits(question);
        assert_eq!(before, ["Write"]);
        after
    };
    let cut = SetAttr { size: Some(3), ..SetAttr::default() };
    assert_eq!(ask(&|r, i, _| drop(r.ask(|fs, a| fs.set_attr(ME, i, cut, a)))), ["SetAttr"]);
    assert_eq!(ask(&|r, i, h| drop(r.ask(|fs, a| fs.fsync(ME, (i, h), true, a)))), ["Fsync"]);
    assert_eq!(ask(&|r, i, h| drop(r.ask(|fs, a| fs.seek(ME, (i, h), (0, libc::SEEK_DATA), a)))), ["Seek"]);
    assert_eq!(ask(&|r, i, h| drop(r.ask(|fs, a| fs.fallocate(ME, (i, h), (0, 9), 0, a)))), ["Fallocate"]);
    assert_eq!(ask(&|r, i, h| drop(r.ask(|fs, a| fs.read(ME, i, h, (4, 9), a)))), ["Read"]);
    assert_eq!(ask(&|r, i, _| drop(r.ask(|fs, a| fs.link(ME, i, (ROOT, b"l"), a)))), ["Link"]);
    assert_eq!(ask(&|r, i, _| drop(r.open(i, libc::O_TRUNC))), ["Open"]);
    let flags = RenameFlags::default();
    let rename = |from: &'static [u8], to: &'static [u8]| {
        move |r: &Rig, _: u64, _: u64| drop(r.ask(|fs, a| fs.rename(ME, (ROOT, from), (ROOT, to), flags, a)))
    };
    assert_eq!(ask(&rename(b"file7", b"new")), ["Rename"], "what moves");
    assert_eq!(ask(&rename(b"other", b"file7")), ["Rename"], "what is replaced");
    let exchange = RenameFlags { exchange: true, ..flags };
    assert_eq!(
        ask(&move |r, _, _| drop(r.ask(|fs, a| fs.rename(ME, (ROOT, b"x"), (ROOT, b"file7"), exchange, a)))),
        ["Rename"]
    );
    assert_eq!(waits(&rename(b"other", b"new")).0, ["Write", "Rename"], "others do not wait");
    assert_eq!(waits(&|r, i, h| drop(r.ask(|fs, a| fs.read(ME, i, h, (5, 9), a)))).0, ["Write", "Read"]);
}

#[test]
fn what_shows_or_changes_ctime_and_capabilities_waits() {
    type Question = fn(&Rig, u64);
    let questions: [(Question, &str); 4] = [
        (|r, i| drop(r.ask(|fs, a| fs.set_xattr(ME, i, b"security.capability", Some((b"c", 0)), a))), "SetXattr"),
        (|r, i| drop(r.ask(|fs, a| fs.set_xattr(ME, i, b"user.x", None, a))), "RemoveXattr"),
        (|r, i| drop(r.ask(|fs, a| fs.get_xattr(ME, i, b"security.capability", a))), "GetXattr"),
        (|r, i| drop(r.ask(|fs, a| fs.list_xattr(ME, i, a))), "ListXattr"),
    ];
    for (question, name) in questions {
        let rig = Rig::new();
        let found = rig.look_up(ROOT, "file7");
        rig.answer(with(Attr { has_capability: true, ..attr(7, Kind::File, 0) }));
        let ino = found.take().unwrap().ino;
        let handle = rig.open_by_brick(ino, libc::O_RDWR);
        rig.write(ino, handle, 0, b"hello").take().unwrap();
        question(&rig, ino);
        assert_eq!(rig.waiting(), ["Write"], "{name}");
        rig.answer(written(5));
        assert_eq!(rig.waiting(), [name]);
    }
    let rig = Rig::new();
    let (ino, handle) = rig.open_file(7);
    rig.write(ino, handle, 0, b"hello").take().unwrap();
    let value = rig.ask(|fs, a| fs.get_xattr(ME, ino, b"user.x", a));
    assert_eq!((value.is_there(), rig.waiting().len()), (false, 2), "no write changes it");
}

#[test]
fn names_of_a_file_that_is_not_known_to_have_one_name_wait() {
    let rig = Rig::new();
    let found = rig.look_up(ROOT, "file7");
    rig.answer(with(Attr { nlink: 2, ..attr(7, Kind::File, 0) }));
    let ino = found.take().unwrap().ino;
    let handle = rig.open_by_brick(ino, libc::O_RDWR);
    rig.write(ino, handle, 0, b"hello").take().unwrap();
    let flags = RenameFlags::default();
    let rename = rig.ask(|fs, a| fs.rename(ME, (ROOT, b"another"), (ROOT, b"and another"), flags, a));
    assert_eq!(rig.waiting(), ["Write"], "one of the two may be its other name");
    rig.answer(written(5));
    assert_eq!((rename.is_there(), rig.waiting()), (false, vec!["Rename".to_owned()]));
}

#[test]
fn an_error_waits_for_the_next_write_fsync_or_close_whatever_else_is_asked() {
    let rig = Rig::new();
    let (ino, handle) = rig.open_file(7);
    rig.write(ino, handle, 0, b"1").take().unwrap();
    rig.answer(refused(Errno::ENOSPC));
    let truncate = rig.ask(|fs, a| fs.set_attr(ME, ino, Default::default(), a));
    rig.answer(with(attr(7, Kind::File, 0)));
    assert!(truncate.take().is_ok());
    let read = rig.ask(|fs, a| fs.read(ME, ino, handle, (0, 1), a));
    rig.answer(FopReply { result: Ok(Answer::Data(Default::default())), ..done() });
    assert!(read.take().is_ok());
    // Another descriptor, opened since, has nothing to report.
    let later = rig.open(ino, libc::O_RDWR).take().unwrap().handle;
    assert_eq!(rig.ask(|fs, a| fs.flush(ME, ino, (later, OWNER), a)).take(), Ok(()));
    assert_eq!(rig.ask(|fs, a| fs.flush(ME, ino, (handle, OWNER), a)).take(), Err(Errno::ENOSPC));
}

#[test]
fn a_close_waits_and_reports_an_error_once_on_each_descriptor() {
    let rig = Rig::new();
    let (ino, one) = rig.open_file(7);
    let two = rig.open(ino, libc::O_RDWR).take().unwrap().handle;
    let idle = rig.open(ino, libc::O_RDWR).take().unwrap().handle;
    rig.write(ino, one, 0, b"1").take().unwrap();
    rig.write(ino, two, 100, b"2").take().unwrap();
    let closes = [one, two, idle].map(|handle| rig.ask(|fs, a| fs.flush(ME, ino, (handle, OWNER), a)));
    assert!(closes.iter().all(|close| !close.is_there()));
    rig.answer(refused(Errno::ENOSPC));
    rig.answer(written(1));
    let results = closes.map(|close| close.take());
    assert_eq!(results, [Err(Errno::ENOSPC), Err(Errno::ENOSPC), Ok(())]);
    for handle in [one, two] {
        assert_eq!(rig.ask(|fs, a| fs.flush(ME, ino, (handle, OWNER), a)).take(), Ok(()));
    }
    assert_eq!(rig.fs.invalidations.next().map(|(ino, _)| ino), Some(ino), "the kernel's pages are wrong");
}

#[test]
fn the_next_write_or_fsync_reports_it_too() {
    let rig = Rig::new();
    let (ino, handle) = rig.open_file(7);
    rig.write(ino, handle, 0, b"1").take().unwrap();
    rig.answer(refused(Errno::EIO));
    assert_eq!(rig.write(ino, handle, 0, b"1").take(), Err(Errno::EIO));
    assert!(rig.waiting().is_empty());
    rig.write(ino, handle, 0, b"1").take().unwrap();
    rig.answer(refused(Errno::ENOSPC));
    let fsync = rig.ask(|fs, a| fs.fsync(ME, (ino, handle), false, a));
    rig.answer(refused(Errno::EINTR));
    assert_eq!(fsync.take(), Err(Errno::ENOSPC), "never hidden by another one");
}

#[test] // PROTOCOL 31
fn appends_sync_writes_and_writeback_are_answered_with_their_result() {
    for flags in [libc::O_APPEND, libc::O_DIRECT, libc::O_SYNC, libc::O_DSYNC] {
        let rig = Rig::new();
        let ino = rig.file(7);
        let handle = rig.open_by_brick(ino, libc::O_RDWR | flags);
        let write = rig.write(ino, handle, 0, b"hello");
        assert!(!write.is_there());
        rig.answer(refused(Errno::ENOSPC));
        assert_eq!(write.take(), Err(Errno::ENOSPC));
        let close = rig.ask(|fs, a| fs.flush(ME, ino, (handle, OWNER), a));
        assert_eq!(close.take(), Ok(()), "reported already");
    }
    let rig = Rig::new();
    let (ino, handle) = rig.open_file(7);
    let page = Writing { ino, handle, offset: 0, data: b"page", kill_priv: false, is_writeback: true };
    let write = rig.ask(|fs, a| fs.write(ME, page, a));
    assert!(!write.is_there());
    rig.answer(written(4));
    assert_eq!(write.take(), Ok(4));
}

#[test]
fn attributes_decided_before_an_own_write_are_never_told() {
    let rig = Rig::new();
    let (ino, handle) = rig.open_file(7);
    let found = rig.look_up(ROOT, "file7");
    rig.write(ino, handle, 0, b"hello").take().unwrap();
    rig.answer(with(attr(7, Kind::File, 0)));
    assert!(!found.is_there(), "the size of before the write");
    rig.answer(written(5));
    rig.answer(with(attr(7, Kind::File, 5)));
    assert_eq!(found.take().unwrap().attr.size, 5);
    // What an unlink says of a file that is still being written is not kept either.
    rig.write(ino, handle, 0, b"hello").take().unwrap();
    let unlink = rig.ask(|fs, a| fs.unlink(ME, ROOT, b"file7", a));
    let write = lock(&rig.brick.calls).pop_front().unwrap();
    rig.answer(with(attr(7, Kind::File, 5)));
    unlink.take().unwrap();
    write.1(written(5));
    let stat = rig.get_attr(ino);
    assert_eq!((stat.is_there(), rig.waiting()), (false, vec!["GetAttr".to_owned()]));
}

#[test]
fn an_append_answers_the_stat_that_follows() {
    let rig = Rig::new();
    let ino = rig.file(7);
    let handle = rig.open_by_brick(ino, libc::O_WRONLY | libc::O_APPEND);
    let write = rig.write(ino, handle, 0, b"hello");
    rig.answer(FopReply { attr: Some(attr(7, Kind::File, 5)), ..written(5) });
    assert_eq!(write.take(), Ok(5));
    assert_eq!(rig.get_attr(ino).take().unwrap().attr.size, 5);
}

#[test]
fn the_last_close_leaves_nothing_behind() {
    let rig = Rig::new();
    let (ino, handle) = rig.open_file(7);
    rig.write(ino, handle, 0, b"hello").take().unwrap();
    rig.fs.release(ino, handle);
    rig.answer(refused(Errno::EIO));
    assert_eq!(rig.count_of("files"), 0);
    assert_eq!(lock(&rig.fs.writes).take_error(handle), None);
    rig.fs.forget(ino, 1);
    let due = std::time::Instant::now() + std::time::Duration::from_secs(2);
    rig.fs.tick(due);
    assert_eq!(rig.waiting(), ["Release"]);
    assert_eq!(rig.fs.counts().iter().map(|(_, count)| count).sum::<usize>(), 1, "the root alone");
}
