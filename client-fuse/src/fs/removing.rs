//! Names that go or move: unlink, rmdir, rename.

use super::names::outcome_of;
use super::{Fs, Reply, lock};
use crate::tables::{Asked, DentryKey};
use brickfs_client::volume::Caller;
use brickfs_client::write_behind::Range;
use brickfs_common::errno::Errno;
use brickfs_common::fop::{Fop, FopReply, ObjectRef, RenameFlags};
use std::sync::Arc;

/// What goes on when all writes are done, in a box since it is handed from one wait to the next.
type Then = Box<dyn FnOnce(&Arc<Fs>, Result<(), Errno>) + Send>;

impl Fs {
    /// Removes a name of what is not a directory.
    pub fn unlink(self: &Arc<Self>, caller: Caller, parent: u64, name: &[u8], done: Reply<()>) {
        match self.named(parent, name) {
            Ok((object, name)) => {
                let fop = Fop::Unlink { parent: object, name: name.clone() };
                self.remove(caller, (parent, name.as_bytes()), fop, done);
            }
            Err(errno) => done(Err(errno)),
        }
    }

    /// Removes an empty directory.
    pub fn rmdir(self: &Arc<Self>, caller: Caller, parent: u64, name: &[u8], done: Reply<()>) {
        match self.named(parent, name) {
            Ok((object, name)) => {
                let fop = Fop::Rmdir { parent: object, name: name.clone() };
                self.remove(caller, (parent, name.as_bytes()), fop, done);
            }
            Err(errno) => done(Err(errno)),
        }
    }

    fn remove(self: &Arc<Self>, caller: Caller, (parent, name): (u64, &[u8]), fop: Fop, done: Reply<()>) {
        let session = self.backend.session();
        let (key, target, object) = {
            let mut tables = lock(&self.tables);
            tables.in_session(session);
            let key = tables.key(parent, name);
            let target = tables.find(key);
            if let Some(ino) = target {
                tables.changed(ino);
            }
            tables.begin_change(parent, None);
            (key, target, target.and_then(|ino| tables.object(ino)))
        };
        self.end_holds(&[object]);
        self.submit(caller, fop, move |fs, reply, asked| {
            fs.removed(key, target, &reply, asked);
            done(reply.result.map(|_| ()));
        });
    }

    fn removed(&self, key: DentryKey, target: Option<u64>, reply: &FopReply, asked: Asked) {
        {
            let mut tables = lock(&self.tables);
            let outcome = outcome_of(reply, reply.parent.as_ref().map(|attr| attr.change), asked);
            tables.end_change(key.parent, outcome, None, Some(key));
            if reply.result.is_ok() {
                tables.unname(key);
            }
            if let Some(attr) = &reply.parent {
                tables.learn(attr, asked);
            }
            if let Some(ino) = target.filter(|_| reply.result.is_ok() && reply.attr.is_none()) {
                tables.changed(ino); // gone, or nobody knows
            }
        }
        self.learn(reply.attr.as_ref(), asked);
    }

    /// Releases objects that are about to lose a name and are only held; all that are held where one of
    /// them is not known.
    fn end_holds(&self, objects: &[Option<ObjectRef>]) {
        let releases = {
            let mut holds = lock(&self.holds);
            match objects.iter().all(Option::is_some) {
                true => objects.iter().flatten().flat_map(|object| holds.take_idle_object(&object.gfid)).collect(),
                false => holds.take_idle(),
            }
        };
        self.send_releases(releases);
    }

    /// Renames. The writes of the object that moves come first, so that nobody finds the new name short of
    /// data, and those of what it replaces, whose last descriptor may report them.
    pub fn rename(
        self: &Arc<Self>,
        caller: Caller,
        (parent, name): (u64, &[u8]),
        (new_parent, new_name): (u64, &[u8]),
        flags: RenameFlags,
        done: Reply<()>,
    ) {
        let named = self.named(parent, name).and_then(|old| Ok((old, self.named(new_parent, new_name)?)));
        let (old, new) = match named {
            Ok(named) => named,
            Err(errno) => return done(Err(errno)),
        };
        let (old_key, new_key, source, target) = {
            let tables = lock(&self.tables);
            let (old_key, new_key) = (tables.key(parent, name), tables.key(new_parent, new_name));
            (old_key, new_key, tables.find(old_key), tables.find(new_key))
        };
        let fop = Fop::Rename { parent: old.0, name: old.1, new_parent: new.0, new_name: new.1, flags };
        self.after_all_writes(caller, self.busy_among(source, target), move |fs, waited| match waited {
            Ok(()) => fs.rename_now(caller, (old_key, new_key), (fop, flags), done),
            Err(errno) => done(Err(errno)),
        });
    }

    /// The inodes whose writes a rename waits for: those of the two names, and busy ones that may have names
    /// which are not known here.
    fn busy_among(&self, source: Option<u64>, target: Option<u64>) -> Vec<u64> {
        let busy: Vec<u64> = lock(&self.writes).busy().collect();
        if busy.is_empty() {
            return busy;
        }
        let tables = lock(&self.tables);
        let is_meant = |ino: &u64| Some(*ino) == source || Some(*ino) == target || tables.is_linked(*ino);
        busy.into_iter().filter(is_meant).collect()
    }

    fn after_all_writes(
        self: &Arc<Self>,
        caller: Caller,
        mut inos: Vec<u64>,
        then: impl FnOnce(&Arc<Fs>, Result<(), Errno>) + Send + 'static,
    ) {
        let Some(ino) = inos.pop() else { return then(self, Ok(())) };
        let then: Then = Box::new(then);
        self.after_writes(ino, Range::ALL, caller.pid, move |fs, waited| match waited {
            Ok(()) => fs.after_all_writes(caller, inos, then),
            Err(errno) => then(fs, Err(errno)),
        });
    }

    fn rename_now(
        self: &Arc<Self>,
        caller: Caller,
        (old_key, new_key): (DentryKey, DentryKey),
        (fop, flags): (Fop, RenameFlags),
        done: Reply<()>,
    ) {
        let session = self.backend.session();
        let targets = {
            let mut tables = lock(&self.tables);
            tables.in_session(session);
            let (source, target) = (tables.find(old_key), tables.find(new_key));
            for ino in [source, target].into_iter().flatten() {
                tables.changed(ino);
            }
            tables.begin_change(new_key.parent, (!flags.exchange).then_some(new_key));
            if old_key.parent != new_key.parent {
                tables.begin_change(old_key.parent, None);
            }
            target.map(|ino| tables.object(ino))
        };
        self.end_holds(targets.as_slice());
        self.submit(caller, fop, move |fs, reply, asked| {
            fs.renamed((old_key, new_key), flags, &reply, asked);
            done(reply.result.map(|_| ()));
        });
    }

    fn renamed(&self, (old, new): (DentryKey, DentryKey), flags: RenameFlags, reply: &FopReply, asked: Asked) {
        {
            let mut tables = lock(&self.tables);
            let (old_change, new_change) = (
                reply.parent.as_ref().map(|attr| attr.change),
                reply.new_parent.as_ref().or(reply.parent.as_ref()).map(|attr| attr.change),
            );
            let adds = (!flags.exchange).then_some(new);
            let leaves = (!flags.exchange && !flags.whiteout).then_some(old);
            let new_outcome = outcome_of(reply, new_change, asked);
            if old.parent == new.parent {
                tables.end_change(new.parent, new_outcome, adds, leaves);
            } else {
                tables.end_change(new.parent, new_outcome, adds, None);
                tables.end_change(old.parent, outcome_of(reply, old_change, asked), None, leaves);
            }
            // What took part may have changed since the attributes that were kept meanwhile.
            for ino in [tables.find(old), tables.find(new)].into_iter().flatten() {
                if reply.attr.as_ref().is_none_or(|attr| tables.ino(&attr.gfid) != ino) {
                    tables.changed(ino);
                }
            }
            if reply.result.is_ok() {
                tables.renamed(old, new, flags.exchange);
            }
            for attr in [&reply.parent, &reply.new_parent].into_iter().flatten() {
                tables.learn(attr, asked);
            }
        }
        self.learn(reply.attr.as_ref(), asked);
    }
}
