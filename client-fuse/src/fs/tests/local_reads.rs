//! Reading from the brick's own file.

use super::*;
use brickfs_common::fop::Descriptor;
use std::io::Write as _;

/// A reply with a file of this content.
fn passing(content: &[u8], reply: FopReply) -> FopReply {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    FopReply { descriptor: Some(Descriptor(Arc::new(file.into()))), ..reply }
}

fn rig() -> Rig {
    let rig = Rig::new();
    rig.brick.has_lease.store(true, Ordering::Relaxed);
    rig
}

fn read(rig: &Rig, ino: u64, handle: u64) -> Answered<bytes::Bytes> {
    rig.ask(|fs, a| fs.read(ME, ino, handle, (0, 10), a))
}

fn answer_read(rig: &Rig, data: &'static [u8]) -> Fop {
    rig.answer(FopReply { result: Ok(Answer::Data(bytes::Bytes::from_static(data))), ..done() })
}

#[test]
fn the_file_that_an_open_brings_is_read_without_asking() {
    let rig = rig();
    let ino = rig.file(7);
    let opened = rig.open(ino, libc::O_RDONLY);
    let open = rig.answer(passing(b"local", done()));
    assert!(matches!(open, Fop::Open { wants_descriptor: true, .. }));
    let handle = opened.take().unwrap().handle;
    assert_eq!(read(&rig, ino, handle).take().unwrap(), "local");
    rig.open(ino, libc::O_WRONLY).take().unwrap();
    assert!(rig.waiting().is_empty());
}

#[test]
fn the_first_read_brings_the_file_where_the_open_did_not() {
    let rig = rig();
    let (ino, handle) = rig.open_file(7);
    let first = read(&rig, ino, handle);
    let data = Ok(Answer::Data(bytes::Bytes::from_static(b"asked")));
    let asked = rig.answer(passing(b"local", FopReply { result: data, ..done() }));
    assert!(matches!(asked, Fop::Read { wants_descriptor: true, .. }));
    assert_eq!(first.take().unwrap(), "asked");
    assert_eq!(read(&rig, ino, handle).take().unwrap(), "local");
}

#[test] // PROTOCOL 16, 32
fn without_a_lease_in_another_session_and_behind_own_writes_the_brick_is_asked() {
    let rig = rig();
    let ino = rig.file(7);
    let opened = rig.open(ino, libc::O_RDWR);
    rig.answer(passing(b"local", done()));
    let handle = opened.take().unwrap().handle;
    rig.write(ino, handle, 2, b"X").take().unwrap();
    let behind = read(&rig, ino, handle);
    assert!(!behind.is_there());
    rig.answer(FopReply { result: Ok(Answer::Written { count: 1, offset: 2 }), ..done() });
    assert_eq!(behind.take().unwrap(), "local", "after the write");

    rig.brick.has_lease.store(false, Ordering::Relaxed);
    let asked = read(&rig, ino, handle);
    assert!(matches!(answer_read(&rig, b"asked"), Fop::Read { .. }));
    assert_eq!(asked.take().unwrap(), "asked");

    rig.brick.has_lease.store(true, Ordering::Relaxed);
    rig.brick.session.store(9, Ordering::Relaxed);
    let asked = read(&rig, ino, handle);
    assert!(matches!(answer_read(&rig, b"asked"), Fop::Read { wants_descriptor: true, .. }));
    assert_eq!(asked.take().unwrap(), "asked");
}

#[test]
fn the_file_is_closed_with_the_hold() {
    let rig = rig();
    let ino = rig.file(7);
    let opened = rig.open(ino, libc::O_RDONLY);
    let file = Arc::new(tempfile::tempfile().unwrap().into());
    rig.answer(FopReply { descriptor: Some(Descriptor(Arc::clone(&file))), ..done() });
    rig.fs.release(ino, opened.take().unwrap().handle);
    assert_eq!(Arc::strong_count(&file), 2);
    rig.fs.tick(std::time::Instant::now() + std::time::Duration::from_secs(2));
    assert_eq!(Arc::strong_count(&file), 1);
}

#[test]
fn where_files_are_opened_that_are_looked_up_the_next_lookup_brings_the_file() {
    let rig = rig();
    let first = rig.file(7);
    rig.open_by_brick(first, libc::O_RDONLY);
    let second = rig.look_up(ROOT, "file8");
    let found = FopReply { opened: true, ..with(attr(8, Kind::File, 5)) };
    assert!(matches!(rig.answer(passing(b"local", found)), Fop::LookupOpen { .. }));
    let second = second.take().unwrap().ino;
    let handle = rig.open(second, libc::O_RDONLY).take().unwrap().handle;
    assert_eq!(read(&rig, second, handle).take().unwrap(), "local");
    assert!(rig.waiting().is_empty(), "neither the open nor the read asks the brick");
    rig.look_up(ROOT, "file9");
    rig.answer(passing(b"local", FopReply { opened: true, ..with(attr(9, Kind::File, 5)) }));
    rig.look_up(ROOT, "file10");
    assert!(matches!(rig.answer(refused(Errno::ENOENT)), Fop::Lookup { .. }), "the last one was only looked at");
    rig.fs.tick(std::time::Instant::now() + std::time::Duration::from_secs(1));
    assert_eq!(rig.waiting(), ["Release"], "what nobody opened is let go");
    assert_eq!(rig.count_of("open"), 2);
}
