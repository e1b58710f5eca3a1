//! Locks of files: POSIX locks, whose owner is a process, and flock and OFD locks, whose owner is an open file. All go to
//! the file's home, where both kinds share one table, as on NFS.
//!
//! The kernel tells of the end of a process's locks with FLUSH, which carries the owner; what is left when the last
//! descriptor of an open file is closed was that file's own. Who has got a lock sees all that was written before it was
//! given back elsewhere: the kernel drops what it has of the file before it is told, and what was told of other files of
//! the directory holds no longer from the first lock on (see `tables`).

use super::{Fs, Reply, lock};
use crate::tables::ToldFile;
use brickfs_client::volume::Caller;
use brickfs_client::write_behind::Range;
use brickfs_common::errno::Errno;
use brickfs_common::fop::{Answer, Fop, ObjectRef};
use brickfs_common::locks::{HeldLock, LockKind, LockRange};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// A lock as the kernel asks for it.
#[derive(Clone, Copy)]
pub struct Locking {
    /// The inode.
    pub ino: u64,
    /// The open file.
    pub handle: u64,
    /// The kernel's number for the process or open file.
    pub owner: u64,
    /// Where.
    pub range: LockRange,
    /// How; `None` takes it away.
    pub kind: Option<LockKind>,
    /// The process, for F_GETLK.
    pub pid: u32,
    /// Until it is free.
    pub waits: bool,
}

/// Who may have locks, by inode: owners with the open file that they used last.
#[derive(Default)]
pub struct LockOwners(HashMap<u64, Vec<(u64, u64)>>);

impl LockOwners {
    fn note(&mut self, ino: u64, owner: u64, handle: u64) {
        let owners = self.0.entry(ino).or_default();
        match owners.iter_mut().find(|(known, _)| *known == owner) {
            Some((_, last)) => *last = handle,
            None => owners.push((owner, handle)),
        }
    }

    fn has(&self, ino: u64, owner: u64) -> bool {
        self.0.get(&ino).is_some_and(|owners| owners.iter().any(|(known, _)| *known == owner))
    }

    /// Takes the owners that are like this: (owner, handle).
    fn take(&mut self, ino: u64, is_meant: impl Fn(&(u64, u64)) -> bool) -> Vec<u64> {
        let Some(owners) = self.0.get_mut(&ino) else { return Vec::new() };
        let (taken, kept): (Vec<_>, Vec<_>) = owners.drain(..).partition(is_meant);
        *owners = kept;
        if owners.is_empty() {
            self.0.remove(&ino);
        }
        taken.into_iter().map(|(owner, _)| owner).collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }
}

impl Fs {
    /// Sets or takes away a lock.
    pub fn set_lock(self: &Arc<Self>, caller: Caller, locking: Locking, done: Reply<()>) {
        let Locking { ino, handle, owner, range, kind, pid, waits } = locking;
        let object = match self.usable_file(handle) {
            Ok(file) => file.object,
            Err(Errno::EIO) if kind.is_none() => return done(Ok(())), // there is nothing left to give back
            Err(errno) => return done(Err(errno)),
        };
        let fop = Fop::Lock { object, owner, range, kind, pid, waits };
        if kind.is_some() {
            lock(&self.lock_owners).note(ino, owner, handle);
        } else if !lock(&self.lock_owners).has(ino, owner) {
            return done(Ok(()));
        }
        if kind == Some(LockKind::Exclusive) {
            return self.ask_for_lock(caller, locking, fop, done);
        }
        // What was written under a lock is on the brick before others may see the file again.
        self.after_writes(ino, Range::ALL, caller.pid, move |fs, waited| match (waited, kind) {
            (Err(errno), _) => done(Err(errno)),
            (Ok(()), Some(_)) => fs.ask_for_lock(caller, locking, fop, done),
            (Ok(()), None) => {
                if range == LockRange::ALL {
                    lock(&fs.lock_owners).take(ino, |(known, _)| *known == owner);
                }
                fs.submit(caller, fop, move |_, reply, _| done(reply.result.map(|_| ())));
            }
        });
    }

    fn ask_for_lock(self: &Arc<Self>, caller: Caller, locking: Locking, fop: Fop, done: Reply<()>) {
        let Locking { ino, owner, handle, .. } = locking;
        self.submit(caller, fop, move |fs, reply, asked| match reply.result {
            Ok(_) => {
                // Another thread of the process may have given all back meanwhile.
                lock(&fs.lock_owners).note(ino, owner, handle);
                let others = {
                    let mut tables = lock(&fs.tables);
                    tables.changed(ino);
                    tables.locked(ino, Instant::now())
                };
                fs.learn(reply.attr.as_ref(), asked);
                if !others.is_empty() {
                    // What is held only for a next open may have been replaced elsewhere.
                    let idle = lock(&fs.holds).take_idle();
                    fs.send_releases(idle);
                }
                fs.take_back(others, ino, done);
            }
            Err(errno) => done(Err(errno)),
        });
    }

    /// Has the kernel drop what it knows of these files, then of the locked one, and tells who has got the lock.
    fn take_back(self: &Arc<Self>, mut others: Vec<ToldFile>, locked: u64, done: Reply<()>) {
        let Some(other) = others.pop() else {
            return self.invalidations.ask_and(locked, Box::new(move || done(Ok(()))));
        };
        if let Some(name) = other.name {
            self.invalidations.ask_name(other.ino, (other.parent, name));
        }
        let fs = self.clone();
        self.invalidations.ask_and(other.ino, Box::new(move || fs.take_back(others, locked, done)));
    }

    /// The first lock that is in the way of one.
    pub fn test_lock(self: &Arc<Self>, caller: Caller, locking: Locking, done: Reply<Option<HeldLock>>) {
        let Locking { handle, owner, range, kind, .. } = locking;
        let (object, kind) = match (self.usable_file(handle), kind) {
            (Ok(file), Some(kind)) => (file.object, kind),
            (Ok(_), None) => return done(Err(Errno::EINVAL)),
            (Err(errno), _) => return done(Err(errno)),
        };
        self.submit(caller, Fop::TestLock { object, owner, range, kind }, move |_, reply, _| {
            done(match reply.result {
                Ok(Answer::InTheWay(lock)) => Ok(lock),
                Ok(Answer::Done) => Ok(None),
                Ok(_) => Err(Errno::EIO),
                Err(errno) => Err(errno),
            });
        });
    }

    /// A process has closed a descriptor of the file: its locks on the file are given back, then `then` runs.
    pub(super) fn end_locks_of(
        self: &Arc<Self>,
        caller: Caller,
        (ino, object, owner): (u64, ObjectRef, u64),
        then: impl FnOnce() + Send + 'static,
    ) {
        if lock(&self.lock_owners).take(ino, |(known, _)| *known == owner).is_empty() {
            return then();
        }
        // An error means that the server is gone, or the lease: then the locks are too.
        self.submit(caller.unattended(), all_of(object, owner), move |_, _, _| then());
    }

    /// An open file is closed for good: what is left was its own.
    pub(super) fn end_locks_through(self: &Arc<Self>, ino: u64, handle: u64, object: ObjectRef) {
        for owner in lock(&self.lock_owners).take(ino, |(_, last)| *last == handle) {
            self.submit(Caller::default(), all_of(object, owner), |_, _, _| ());
        }
    }

    /// The locks of these files are others' by now: no descriptor that is open on them is of use any more.
    pub fn lose_locks(&self, objects: &[ObjectRef]) {
        self.has_cut_off.store(true, Ordering::Release);
        for file in lock(&self.files).all_mut().filter(|file| objects.contains(&file.object)) {
            file.is_cut_off = true;
        }
        for object in objects {
            let ino = lock(&self.tables).ino(&object.gfid);
            lock(&self.lock_owners).take(ino, |_| true);
            self.invalidations.ask(ino);
        }
    }

    /// Whether a descriptor has lost the locks of its file.
    pub fn is_cut_off(&self, handle: u64) -> bool {
        self.has_cut_off.load(Ordering::Acquire) && lock(&self.files).get(handle).is_some_and(|file| file.is_cut_off)
    }
}

fn all_of(object: ObjectRef, owner: u64) -> Fop {
    Fop::Lock { object, owner, range: LockRange::ALL, kind: None, pid: 0, waits: false }
}
