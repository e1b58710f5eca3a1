//! Opening, holding and closing files.

use super::*;
use crate::fs::Creating;
use brickfs_common::fop::RenameFlags;
use std::time::{Duration, Instant};

#[test]
fn a_file_that_is_held_is_opened_without_asking() {
    let rig = Rig::new();
    let (ino, handle) = rig.open_file(7);
    assert!(rig.open(ino, libc::O_RDONLY).take().unwrap().is_read_only);
    rig.fs.release(ino, handle);
    let truncating = rig.open(ino, libc::O_RDWR | libc::O_TRUNC);
    assert!(!truncating.is_there());
    assert!(matches!(rig.answer(done()), Fop::Open { truncate: true, .. }));
    truncating.take().unwrap();
    let strict = Rig::with_strict(true);
    let (ino, _) = strict.open_file(7);
    assert!(!strict.open(ino, libc::O_RDONLY).is_there());
}

#[test]
fn a_hold_ends_after_a_second_and_before_its_name_goes() {
    let rig = Rig::new();
    let (ino, handle) = rig.open_file(7);
    rig.fs.release(ino, handle);
    rig.fs.tick(Instant::now());
    assert!(rig.waiting().is_empty());
    rig.fs.tick(Instant::now() + Duration::from_secs(1));
    assert_eq!(rig.waiting(), ["Release"]);
    rig.answer(done());
    let handle = rig.open_by_brick(ino, libc::O_RDONLY);
    rig.fs.release(ino, handle);
    rig.ask(|fs, a| fs.unlink(ME, ROOT, b"file7", a));
    assert_eq!(rig.waiting(), ["Release", "Unlink"]);
    let rig = Rig::new();
    let (ino, handle) = rig.open_file(7);
    rig.fs.release(ino, handle);
    rig.ask(|fs, a| fs.rename(ME, (ROOT, b"new"), (ROOT, b"file7"), RenameFlags::default(), a));
    assert_eq!(rig.waiting(), ["Release", "Rename"]);
}

#[test] // PROTOCOL 32
fn a_file_that_is_cut_by_a_new_name_stays_without_what_was_written_before() {
    let rig = Rig::new();
    let (ino, handle) = rig.open_file(7);
    rig.write(ino, handle, 0, b"hello").take().unwrap();
    let flags = libc::O_RDWR | libc::O_TRUNC;
    let creating = Creating { parent: ROOT, name: b"other", perm: 0o644, umask: 0, flags };
    let created = rig.ask(|fs, a| fs.create(ME, creating, a));
    assert_eq!(rig.waiting(), ["Write", "Make"]);
    let (write, answer_write) = lock(&rig.brick.calls).pop_front().unwrap();
    rig.answer(FopReply { parent: Some(root_attr(1)), ..with(attr(7, Kind::File, 0)) });
    assert!(matches!(write, Fop::Write { .. }) && rig.waiting().is_empty() && !created.is_there());
    answer_write(FopReply { result: Ok(Answer::Written { count: 5, offset: 0 }), ..done() });
    let cut = rig.answer(with(attr(7, Kind::File, 0)));
    assert!(matches!(cut, Fop::SetAttr { set, .. } if set.size == Some(0)));
    rig.answer(with(attr(7, Kind::File, 0)));
    assert_eq!(created.take().unwrap().0.attr.size, 0);
}

#[test]
fn an_unlinked_file_stays_open() {
    let rig = Rig::new();
    let (ino, handle) = rig.open_file(7);
    let unlink = rig.ask(|fs, a| fs.unlink(ME, ROOT, b"file7", a));
    assert_eq!(rig.waiting(), ["Unlink"]);
    rig.answer(FopReply { parent: Some(root_attr(1)), ..with(Attr { nlink: 0, ..attr(7, Kind::File, 0) }) });
    unlink.take().unwrap();
    rig.ask(|fs, a| fs.read(ME, ino, handle, (0, 10), a));
    assert_eq!(rig.waiting(), ["Read"]);
}

#[test]
fn a_created_file_is_open_and_one_that_cannot_be_told_is_closed() {
    let rig = Rig::new();
    let create = |flags| {
        let creating = Creating { parent: ROOT, name: b"new", perm: 0o644, umask: 0, flags };
        rig.ask(|fs, a| fs.create(ME, creating, a))
    };
    let created = create(libc::O_CREAT | libc::O_EXCL | libc::O_RDWR);
    rig.answer(FopReply { parent: Some(root_attr(1)), ..with(attr(8, Kind::File, 0)) });
    let (told, opened) = created.take().unwrap();
    assert_eq!((rig.count_of("open"), rig.count_of("files")), (1, 1));
    rig.write(told.ino, opened.handle, 0, b"x").take().unwrap();
    let again = create(libc::O_CREAT | libc::O_RDWR);
    let write = lock(&rig.brick.calls).pop_front().unwrap();
    rig.answer(with(attr(8, Kind::File, 0)));
    write.1(refused(Errno::EIO));
    rig.answer(refused(Errno::ESTALE)); // the attributes that are told instead of those before the write
    assert_eq!(again.take(), Err(Errno::ESTALE));
    rig.fs.release(told.ino, opened.handle);
    assert_eq!(rig.count_of("files"), 0);
    rig.fs.tick(Instant::now() + Duration::from_secs(2));
    assert_eq!(rig.waiting(), ["Release", "Release"], "as often as the brick has opened it");
}

#[test]
fn what_is_gone_is_stale_and_looked_up_again() {
    let rig = Rig::new();
    let ino = rig.file(7);
    let opened = rig.open(ino, libc::O_RDONLY);
    rig.answer(refused(Errno::ESTALE));
    assert_eq!(opened.take(), Err(Errno::ESTALE));
    let stat = rig.get_attr(ino);
    rig.answer(refused(Errno::ESTALE));
    assert_eq!(stat.take(), Err(Errno::ESTALE));
    assert!(rig.get_attr(12345).is_there(), "a number that is not known");
    rig.look_up(ROOT, "file7");
    assert_eq!(rig.waiting(), ["LookupOpen"]);
}
