//! Listings: pages of all sets, attributes that may be told, errors.

use super::*;
use crate::fs::{Item, Listing};
use brickfs_common::fop::DirEntry;
use brickfs_common::layout::slots::COOKIE_ORDINAL_BITS;
use brickfs_common::name::Name;

type Got = Arc<Mutex<Vec<(String, bool)>>>;
type Outcome = Arc<Mutex<Option<Result<(), Errno>>>>;

/// A reply with room for some entries: names, and whether they came with attributes.
struct Sheet {
    room: usize,
    got: Got,
    outcome: Outcome,
}

impl Listing for Sheet {
    fn add(&mut self, item: &Item<'_>) -> bool {
        if self.room == 0 {
            return true;
        }
        self.room -= 1;
        lock(&self.got).push((String::from_utf8_lossy(item.name).into_owned(), item.attr.is_some()));
        false
    }

    fn finish(self: Box<Self>, result: Result<(), Errno>) {
        *lock(&self.outcome) = Some(result);
    }
}

fn page(entries: &[(u64, u8)]) -> FopReply {
    let entry = |(cookie, n): &(u64, u8)| DirEntry {
        name: Name::new(format!("file{n}").into_bytes()).unwrap(),
        cookie: cookie << COOKIE_ORDINAL_BITS,
        gfid: Gfid([*n; 16]),
        kind: Kind::File,
        attr: Some(attr(*n, Kind::File, 0)),
    };
    let entries = entries.iter().map(entry).collect();
    FopReply { result: Ok(Answer::Entries { entries, end: true }), ..done() }
}

impl Rig {
    fn list(&self, handle: u64, offset: u64, room: usize) -> (Got, Outcome) {
        let sheet = Sheet { room, got: Arc::default(), outcome: Arc::default() };
        let watched = (sheet.got.clone(), sheet.outcome.clone());
        self.fs.list(ME, handle, (offset, true), Box::new(sheet));
        watched
    }
}

fn names(got: &Got) -> Vec<String> {
    lock(got).iter().map(|(name, _)| name.clone()).collect()
}

#[test]
fn a_listing_merges_the_sets_and_goes_on_where_it_was_full() {
    let rig = Rig::new();
    let handle = rig.fs.open_dir(ROOT).unwrap();
    let (got, outcome) = rig.list(handle, 0, 4);
    assert_eq!(rig.waiting(), ["ReadDir", "ReadDir"]);
    rig.answer(page(&[(5, 10), (9, 12)]));
    assert!(lock(&outcome).is_none());
    rig.answer(page(&[(6, 11)]));
    assert_eq!(names(&got), [".", "..", "file10", "file11"]);
    assert_eq!(*lock(&outcome), Some(Ok(())));
    assert_eq!(rig.count_of("inodes"), 3, "what did not fit is no lookup");
    let (got, outcome) = rig.list(handle, 6 << COOKIE_ORDINAL_BITS, 9);
    assert_eq!((names(&got), *lock(&outcome)), (vec!["file12".to_owned()], Some(Ok(()))));
    rig.fs.release_dir(handle);
    assert_eq!(rig.count_of("dirs"), 0);
}

#[test]
fn attributes_that_an_own_write_has_made_old_are_left_out() {
    let rig = Rig::new();
    let (ino, handle) = rig.open_file(10);
    let dir = rig.fs.open_dir(ROOT).unwrap();
    let (got, _) = rig.list(dir, 0, 9);
    rig.write(ino, handle, 0, b"x").take().unwrap();
    rig.answer(page(&[(5, 10), (6, 11)]));
    rig.answer(page(&[]));
    assert_eq!(lock(&got)[2..], [("file10".to_owned(), false), ("file11".to_owned(), true)]);
    assert_eq!(rig.count_of("inodes"), 3);
    rig.fs.forget(ino, 1); // as the kernel does for an entry without attributes
    assert!(lock(&rig.fs.tables).object(ino).is_some());
}

#[test] // PROTOCOL 34
fn a_set_that_fails_is_an_error_and_never_a_shorter_list() {
    let rig = Rig::new();
    let handle = rig.fs.open_dir(ROOT).unwrap();
    let (got, outcome) = rig.list(handle, 2, 9);
    rig.answer(page(&[(5, 10)]));
    rig.answer(refused(Errno::EIO));
    assert_eq!((names(&got).len(), *lock(&outcome)), (0, Some(Err(Errno::EIO))));
    let (_, outcome) = rig.list(99, 0, 9);
    assert_eq!(*lock(&outcome), Some(Err(Errno::EBADF)));
}
