//! Ranges that the brick works on by itself, and reads beside writes.

use super::*;
use crate::fs::End;
use bytes::Bytes;

fn written(count: u32) -> FopReply {
    FopReply { result: Ok(Answer::Written { count, offset: 0 }), ..done() }
}

fn data(bytes: &'static [u8]) -> FopReply {
    FopReply { result: Ok(Answer::Data(Bytes::from_static(bytes))), ..done() }
}

fn end(ino: u64, handle: u64, offset: u64) -> End {
    End { ino, handle, offset }
}

#[test] // PROTOCOL 32
fn a_short_read_beside_a_write_further_on_is_read_again_behind_it() {
    let rig = Rig::new();
    let (ino, handle) = rig.open_file(7);
    rig.write(ino, handle, 1000, b"far").take().unwrap();
    let read = rig.ask(|fs, a| fs.read(ME, ino, handle, (10, 5), a));
    assert_eq!(rig.waiting(), ["Write", "Read"], "other bytes: it need not wait");
    let write = lock(&rig.brick.calls).pop_front().unwrap();
    rig.answer(data(b""));
    assert!(!read.is_there(), "the file is longer than that");
    write.1(written(3));
    assert_eq!(rig.waiting(), ["Read"]);
    rig.answer(data(b"\0\0\0\0\0"));
    assert_eq!(read.take().unwrap(), "\0\0\0\0\0");
    // What is whole is answered at once, and what is short without writes ends the file.
    rig.write(ino, handle, 1000, b"far").take().unwrap();
    let whole = rig.ask(|fs, a| fs.read(ME, ino, handle, (10, 2), a));
    let write = lock(&rig.brick.calls).pop_front().unwrap();
    rig.answer(data(b"ab"));
    assert_eq!(whole.take().unwrap(), "ab");
    write.1(written(3));
    let at_end = rig.ask(|fs, a| fs.read(ME, ino, handle, (1000, 9), a));
    rig.answer(data(b"far"));
    assert_eq!(at_end.take().unwrap(), "far");
}

#[test]
fn what_the_brick_allocates_in_pieces_is_asked_for_to_the_end() {
    let rig = Rig::new();
    let (ino, handle) = rig.open_file(7);
    let allocate = |rig: &Rig| rig.ask(|fs, a| fs.fallocate(ME, (ino, handle), (5, 100), 0, a));
    let whole = allocate(&rig);
    let mut asked = Vec::new();
    for reply in [written(60), written(39), done()] {
        assert!(!whole.is_there());
        let Fop::Fallocate { offset, length, .. } = rig.answer(reply) else { panic!("something else is asked") };
        asked.push((offset, length));
    }
    assert_eq!(asked, [(5, 100), (65, 40), (104, 1)]);
    assert_eq!(whole.take(), Ok(()));
    let refused_later = allocate(&rig);
    rig.answer(written(60));
    rig.answer(refused(Errno::ENOSPC));
    assert_eq!(refused_later.take(), Err(Errno::ENOSPC));
    let not_there = allocate(&rig);
    rig.answer(refused(Errno::ENOSYS));
    assert_eq!(not_there.take(), Err(Errno::EOPNOTSUPP), "ENOSYS would switch it off");
    let stuck = allocate(&rig);
    rig.answer(written(0));
    assert_eq!((stuck.take(), rig.waiting().len()), (Ok(()), 0), "nobody asks for ever");
}

#[test] // PROTOCOL 32
fn a_copy_waits_for_what_is_queued_on_both_files() {
    let rig = Rig::new();
    let ((a, from), (b, to)) = (rig.open_file(7), rig.open_file(8));
    rig.write(a, from, 0, b"hello").take().unwrap();
    rig.write(b, to, 500, b"hello").take().unwrap();
    let copy = rig.ask(|fs, reply| fs.copy_range(ME, end(a, from, 2), end(b, to, 9), 1 << 40, reply));
    assert_eq!(rig.waiting(), ["Write", "Write"]);
    rig.answer(written(5));
    rig.answer(written(5));
    let asked = rig.answer(FopReply { attr: Some(attr(8, Kind::File, 12)), ..written(3) });
    let Fop::CopyRange { object, offset: 9, source, source_offset: 2, length } = asked else { panic!("{asked:?}") };
    assert_eq!((object.gfid, source.gfid, length), (Gfid([8; 16]), Gfid([7; 16]), 1 << 40));
    assert_eq!(copy.take(), Ok(3));
    assert_eq!(rig.get_attr(b).take().unwrap().attr.size, 12, "what the copy has said");
}

#[test]
fn files_of_different_sets_are_copied_by_the_kernel() {
    let rig = Rig::new();
    let (a, from) = rig.open_file(7);
    let found = rig.look_up(ROOT, "file8");
    rig.answer(with(Attr { home: SetId(1), ..attr(8, Kind::File, 0) }));
    let b = found.take().unwrap().ino;
    let to = rig.open_by_brick(b, libc::O_RDWR);
    let copy = |rig: &Rig, handle| rig.ask(|fs, a_| fs.copy_range(ME, end(a, from, 0), end(b, handle, 0), 9, a_));
    assert_eq!(copy(&rig, to).take(), Err(Errno::EOPNOTSUPP));
    assert_eq!(copy(&rig, 999).take(), Err(Errno::EBADF));
    assert!(rig.waiting().is_empty());
}

#[test]
fn through_a_synced_descriptor_ranges_are_on_the_disk_when_they_are_answered() {
    let rig = Rig::new();
    let (a, from) = rig.open_file(7);
    let b = rig.file(8);
    let to = rig.open_by_brick(b, libc::O_RDWR | libc::O_DSYNC);
    let allocate = rig.ask(|fs, a| fs.fallocate(ME, (b, to), (0, 9), 0, a));
    rig.answer(done());
    assert!(!allocate.is_there());
    assert!(matches!(rig.answer(done()), Fop::Fsync { data_only: true, .. }));
    assert_eq!(allocate.take(), Ok(()));
    let copy = rig.ask(|fs, reply| fs.copy_range(ME, end(a, from, 0), end(b, to, 0), 9, reply));
    rig.answer(written(9));
    assert!(!copy.is_there());
    rig.answer(refused(Errno::EIO));
    assert_eq!(copy.take(), Err(Errno::EIO));
    let nothing = rig.ask(|fs, reply| fs.copy_range(ME, end(a, from, 0), end(b, to, 0), 9, reply));
    rig.answer(written(0));
    assert_eq!(nothing.take(), Ok(0));
}
