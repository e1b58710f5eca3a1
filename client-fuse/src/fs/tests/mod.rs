//! The file system against a brick whose answers the test gives by hand: one file for each kind of question.

mod caching;
mod listing;
mod local_reads;
mod locks;
mod made;
mod opens;
mod ranges;
mod writes;

use super::backend::Backend;
use super::{Fs, Opened, Reply, Told, Writing, lock};
use brickfs_client::volume::{Caller, Done};
use brickfs_common::attr::{Attr, Kind, Timestamp};
use brickfs_common::errno::Errno;
use brickfs_common::fop::{Answer, Fop, FopReply, ObjectRef};
use brickfs_common::ids::{Gfid, SetId};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Calls that the brick has not answered.
#[derive(Default)]
struct Brick {
    calls: Mutex<VecDeque<(Fop, Done)>>,
    session: AtomicU64,
    /// The session is there, and its lease is good for a while.
    has_lease: AtomicBool,
}

struct Link(Arc<Brick>);

impl Backend for Link {
    fn drive(&self) {}

    fn is_crowded(&self) -> bool {
        false
    }

    fn submit(&self, _caller: Caller, fop: Fop, done: Done) {
        lock(&self.0.calls).push_back((fop, done));
    }

    fn submit_to(&self, _set: SetId, caller: Caller, fop: Fop, done: Done) {
        self.submit(caller, fop, done);
    }

    fn set_count(&self) -> usize {
        2
    }

    fn session(&self) -> u64 {
        self.0.session.load(Ordering::Relaxed)
    }

    fn session_with_lease(&self) -> Option<u64> {
        self.0.has_lease.load(Ordering::Relaxed).then(|| self.session())
    }
}

/// A mount and its brick.
struct Rig {
    fs: Arc<Fs>,
    brick: Arc<Brick>,
}

/// The answer to a question, when it has come.
struct Answered<T>(Arc<Mutex<Option<Result<T, Errno>>>>);

impl<T: Send + 'static> Answered<T> {
    fn new() -> (Answered<T>, Reply<T>) {
        let slot = Arc::new(Mutex::new(None));
        let theirs = slot.clone();
        let reply = move |result| {
            let before = lock(&theirs).replace(result);
            assert!(before.is_none(), "answered twice");
        };
        (Answered(slot), Box::new(reply))
    }

    fn is_there(&self) -> bool {
        lock(&self.0).is_some()
    }

    fn take(&self) -> Result<T, Errno> {
        lock(&self.0).take().expect("no answer yet")
    }
}

const ME: Caller = Caller { uid: 0, gid: 0, pid: 0 };
const ROOT: u64 = 1;
/// A process, as the kernel numbers it for locks.
const OWNER: u64 = 77;

fn attr(n: u8, kind: Kind, size: u64) -> Attr {
    let t = Timestamp { sec: 100, nsec: 0 };
    Attr {
        gfid: Gfid([n; 16]),
        home: SetId(0),
        kind,
        perm: 0o644,
        uid: 0,
        gid: 0,
        nlink: if kind == Kind::Directory { 2 } else { 1 },
        size,
        blocks: 0,
        rdev: 0,
        atime: t,
        mtime: t,
        ctime: t,
        btime: t,
        project: 0,
        has_capability: false,
        has_acl: false,
        change: 0,
    }
}

fn root_attr(change: u64) -> Attr {
    Attr { gfid: Gfid::ROOT, change, ..attr(0, Kind::Directory, 0) }
}

fn done() -> FopReply {
    FopReply::done(0)
}

fn with(attr: Attr) -> FopReply {
    FopReply { attr: Some(attr), ..done() }
}

fn refused(errno: Errno) -> FopReply {
    FopReply::failed(0, errno)
}

impl Rig {
    fn new() -> Rig {
        Rig::with_strict(false)
    }

    fn with_strict(is_strict: bool) -> Rig {
        let brick = Arc::new(Brick::default());
        let root = ObjectRef { gfid: Gfid::ROOT, home: SetId(0) };
        Rig { fs: Fs::new(Link(brick.clone()), root, is_strict), brick }
    }

    /// Names of the calls that wait for the brick.
    fn waiting(&self) -> Vec<String> {
        let name = |fop: &Fop| format!("{fop:?}").split([' ', '{']).next().unwrap_or_default().to_owned();
        lock(&self.brick.calls).iter().map(|(fop, _)| name(fop)).collect()
    }

    /// The brick answers its oldest call.
    fn answer(&self, reply: FopReply) -> Fop {
        let (fop, done) = lock(&self.brick.calls).pop_front().expect("no call waits");
        done(reply);
        fop
    }

    fn ask<T: Send + 'static>(&self, question: impl FnOnce(&Arc<Fs>, Reply<T>)) -> Answered<T> {
        let (answered, reply) = Answered::new();
        question(&self.fs, reply);
        answered
    }

    fn look_up(&self, parent: u64, name: &str) -> Answered<Told> {
        self.ask(|fs, reply| fs.look_up(ME, parent, name.as_bytes(), reply))
    }

    fn get_attr(&self, ino: u64) -> Answered<Told> {
        self.ask(|fs, reply| fs.get_attr(ME, ino, reply))
    }

    fn open(&self, ino: u64, flags: i32) -> Answered<Opened> {
        self.ask(|fs, reply| fs.open(ME, ino, flags, reply))
    }

    fn write(&self, ino: u64, handle: u64, offset: u64, data: &[u8]) -> Answered<u32> {
        let writing = Writing { ino, handle, offset, data, kill_priv: false, is_writeback: false };
        self.ask(|fs, reply| fs.write(ME, writing, reply))
    }

    /// A file that the kernel knows.
    fn file(&self, n: u8) -> u64 {
        let found = self.look_up(ROOT, &format!("file{n}"));
        self.answer(with(attr(n, Kind::File, 0)));
        found.take().unwrap().ino
    }

    /// An open file.
    fn open_file(&self, n: u8) -> (u64, u64) {
        let ino = self.file(n);
        (ino, self.open_by_brick(ino, libc::O_RDWR))
    }

    fn open_by_brick(&self, ino: u64, flags: i32) -> u64 {
        let opened = self.open(ino, flags);
        self.answer(done());
        opened.take().unwrap().handle
    }

    fn count_of(&self, what: &str) -> usize {
        self.fs.counts().iter().find(|(name, _)| *name == what).unwrap().1
    }
}
