//! The file system as the kernel sees it, callable without a mount: questions by inode number come in,
//! operations on a volume go out, answers go into the closures that came along.
//!
//! No method but `drive` blocks: an answer that is not known here goes out where the session is driven.
//!
//! Locks: `tables`, `files`, `holds`, `dirs`, `writes` and `lock_owners` are each held for a few lines, never two at once,
//! and never while an operation is submitted or an answer is given.

mod attrs;
mod backend;
mod data;
mod dir_stream;
mod files;
mod invalidations;
mod listing;
mod locks;
mod names;
mod ranges;
mod removing;
#[cfg(test)]
mod tests;

use crate::tables::handles::{Handles, OpenFile};
use crate::tables::holds::{Holds, Releases};
use crate::tables::{Asked, Tables};
use backend::Backend;
use brickfs_client::volume::Caller;
use brickfs_client::write_behind::{Range, Waiter, WriteQueues};
use brickfs_client::{open_files, signals};
use brickfs_common::attr::{Attr, Kind};
use brickfs_common::errno::Errno;
use brickfs_common::fop::{Fop, FopReply, ObjectRef};
use brickfs_common::name::Name;
pub use data::Writing;
pub use files::Creating;
pub use invalidations::Invalidations;
use listing::OpenDir;
pub use listing::{Item, Listing};
use locks::LockOwners;
pub use locks::Locking;
pub use ranges::End;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long what a reply says answers the kernel's questions, and how long a closed file is held open.
const TIMEOUT: Duration = Duration::from_secs(1);
/// A thread that has waited this long for writes is looked after: it may have been sent a signal.
const PATIENCE: Duration = Duration::from_millis(200);

/// An object as the kernel is told of it: its number, attributes, and how long they hold.
#[derive(Clone, PartialEq, Debug)]
pub struct Told {
    /// The inode number that this mount shows.
    pub ino: u64,
    /// Its attributes.
    pub attr: Attr,
    /// How long they, and the name that led to them, hold.
    pub ttl: Duration,
}

/// An opened file as the kernel is told of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opened {
    /// Its number.
    pub handle: u64,
    /// How it was opened.
    pub file: OpenFile,
    /// Nothing can be written through it.
    pub is_read_only: bool,
}

impl Opened {
    /// Whether what is written through it goes into the write-behind queue.
    fn is_write_behind(&self) -> bool {
        let OpenFile { append, direct, sync, is_cut_off, .. } = self.file;
        !(self.is_read_only || append || direct || sync || is_cut_off)
    }
}

/// Answers a question. Runs once, on any thread, and must not block.
pub type Reply<T> = Box<dyn FnOnce(Result<T, Errno>) + Send>;

/// A mounted volume.
pub struct Fs {
    backend: Box<dyn Backend>,
    tables: Mutex<Tables>,
    files: Mutex<Handles<OpenFile>>,
    holds: Mutex<Holds>,
    dirs: Mutex<Handles<Arc<Mutex<OpenDir>>>>,
    writes: Mutex<WriteQueues<Reply<u32>>>,
    lock_owners: Mutex<LockOwners>,
    /// Some descriptors have lost the locks of their files.
    has_cut_off: AtomicBool,
    /// What the kernel has cached and is wrong.
    pub invalidations: Invalidations,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The attributes of the object that a reply leads to.
fn attr_of(reply: FopReply) -> Result<Attr, Errno> {
    reply.result?;
    reply.attr.ok_or(Errno::ESTALE)
}

impl Fs {
    /// A mount of `root`, a directory of the volume. With `is_strict` nothing is answered from memory.
    pub fn new(backend: impl Backend + 'static, root: ObjectRef, is_strict: bool) -> Arc<Fs> {
        let timeout = if is_strict { Duration::ZERO } else { TIMEOUT };
        Arc::new(Fs {
            backend: Box::new(backend),
            tables: Mutex::new(Tables::new(root, timeout)),
            files: Mutex::default(),
            holds: Mutex::new(Holds::new(timeout, open_files::for_caches())),
            dirs: Mutex::default(),
            writes: Mutex::default(),
            lock_owners: Mutex::default(),
            has_cut_off: AtomicBool::new(false),
            invalidations: Invalidations::default(),
        })
    }

    fn object(&self, ino: u64) -> Result<ObjectRef, Errno> {
        lock(&self.tables).object(ino).ok_or(Errno::ESTALE)
    }

    /// An open file through which may be read and written: EBADF, or EIO if the locks of its file were lost.
    fn usable_file(&self, handle: u64) -> Result<OpenFile, Errno> {
        let file = lock(&self.files).get(handle).ok_or(Errno::EBADF)?;
        if file.is_cut_off { Err(Errno::EIO) } else { Ok(file) }
    }

    fn named(&self, parent: u64, name: &[u8]) -> Result<(ObjectRef, Name), Errno> {
        Ok((self.object(parent)?, Name::new(name.to_vec())?))
    }

    fn asked(&self) -> Asked {
        let now = Instant::now();
        lock(&self.tables).asked(now)
    }

    /// Submits an operation; `done` gets the reply and when it was asked for.
    fn submit(
        self: &Arc<Self>,
        caller: Caller,
        fop: Fop,
        done: impl FnOnce(&Arc<Fs>, FopReply, Asked) + Send + 'static,
    ) {
        let (fs, asked) = (self.clone(), self.asked());
        self.backend.submit(caller, fop, Box::new(move |reply| done(&fs, reply, asked)));
    }

    /// Runs `then` when the writes of the inode that are queued now and touch the range are done.
    fn after_writes(
        self: &Arc<Self>,
        ino: u64,
        range: Range,
        pid: u32,
        then: impl FnOnce(&Arc<Fs>, Result<(), Errno>) + Send + 'static,
    ) {
        let mut writes = lock(&self.writes);
        if !writes.is_busy(ino) {
            drop(writes);
            return then(self, Ok(()));
        }
        let fs = self.clone();
        let answer: Reply<u32> = Box::new(move |result| then(&fs, result.map(|_| ())));
        let actions = writes.wait(ino, Waiter { range, pid, since: Instant::now(), answer });
        drop(writes);
        self.perform(actions);
    }

    /// Runs `then`, which submits an operation on the inode, when all writes of it that are queued now come before that
    /// at the brick: once they are sent, since a stream keeps its order, and calls of one set run in it (PROTOCOL 32).
    fn behind_writes(
        self: &Arc<Self>,
        ino: u64,
        pid: u32,
        then: impl FnOnce(&Arc<Fs>, Result<(), Errno>) + Send + 'static,
    ) {
        let actions = lock(&self.writes).send_queued(ino);
        self.perform(actions);
        let are_sent = lock(&self.writes).is_sent(ino);
        if are_sent { then(self, Ok(())) } else { self.after_writes(ino, Range::ALL, pid, then) }
    }

    fn is_busy(&self, ino: u64) -> bool {
        lock(&self.writes).is_busy(ino)
    }

    /// Tells the kernel of the object that a name leads to.
    fn enter(
        self: &Arc<Self>,
        caller: Caller,
        (parent, name): (u64, &[u8]),
        (reply, asked): (FopReply, Asked),
        done: Reply<Told>,
    ) {
        let attr = match attr_of(reply) {
            Ok(attr) => attr,
            Err(errno) => return done(Err(errno)),
        };
        let ino = lock(&self.tables).ino(&attr.gfid);
        let is_busy = attr.kind == Kind::File && self.is_busy(ino);
        if !is_busy && lock(&self.tables).is_current(&attr, asked) {
            return done(Ok(self.told(parent, name, attr, asked)));
        }
        // Decided before a write of ours, or older than what the kernel has been told: newer ones first.
        let (name, object) = (name.to_vec(), ObjectRef { gfid: attr.gfid, home: attr.home });
        self.after_writes(ino, Range::ALL, caller.pid, move |fs, waited| match waited {
            Err(errno) => done(Err(errno)),
            Ok(()) => fs.submit(caller, Fop::GetAttr { object }, move |fs, reply, asked| {
                done(attr_of(reply).map(|attr| fs.told(parent, &name, attr, asked)));
            }),
        });
    }

    /// Counts the kernel's lookup of an object.
    fn told(&self, parent: u64, name: &[u8], attr: Attr, asked: Asked) -> Told {
        let now = Instant::now();
        let mut tables = lock(&self.tables);
        let key = tables.key(parent, name);
        let ino = tables.enter(key, &attr, asked);
        let ttl = tables.tell(ino, attr.kind, Some((parent, name)), asked, now);
        Told { ino, ttl, attr }
    }

    /// Keeps what a reply says of an object beside its answer.
    fn learn(&self, attr: Option<&Attr>, asked: Asked) {
        let Some(attr) = attr else { return };
        let ino = lock(&self.tables).ino(&attr.gfid);
        if attr.kind == Kind::File && self.is_busy(ino) {
            return; // decided before a write that is not done
        }
        lock(&self.tables).learn(attr, asked);
    }

    /// Called by a thread that has asked and would only wait: see `Backend::drive`.
    pub fn drive(&self) {
        self.backend.drive();
    }

    /// The kernel forgets `count` lookups of an inode.
    pub fn forget(&self, ino: u64, count: u64) {
        lock(&self.tables).forget(ino, count);
    }

    fn send_releases(&self, releases: Releases) {
        for (object, count) in releases {
            for _ in 0..count {
                self.backend.submit(Caller::default(), Fop::Release { object }, Box::new(|_| ()));
            }
        }
    }

    /// Called several times a second: ends holds, and the waiting of threads that have a signal to act on.
    pub fn tick(self: &Arc<Self>, now: Instant) {
        let due = lock(&self.holds).take_due(now);
        self.send_releases(due);
        let Some(before) = now.checked_sub(PATIENCE) else { return };
        let waiting = lock(&self.writes).waiting_pids(before);
        let interrupted: Vec<u32> = waiting.into_iter().filter(|pid| signals::is_interrupted(*pid)).collect();
        if !interrupted.is_empty() {
            let actions = lock(&self.writes).interrupt(&interrupted);
            self.perform(actions);
        }
    }

    /// Sizes of what this mount remembers, for the log and tests.
    pub fn counts(&self) -> Vec<(&'static str, usize)> {
        let [inodes, names, attrs, known_names, made] = lock(&self.tables).counts();
        let (files, dirs) = (lock(&self.files).len(), lock(&self.dirs).len());
        let (open, busy) = (lock(&self.holds).len(), lock(&self.writes).busy().count());
        vec![
            ("inodes", inodes),
            ("names", names),
            ("attrs", attrs),
            ("known_names", known_names),
            ("made", made),
            ("files", files),
            ("dirs", dirs),
            ("open", open),
            ("busy", busy),
            ("lock_owners", lock(&self.lock_owners).len()),
        ]
    }
}
