//! Names that come: lookup, the makes, link.

use super::{Fs, Reply, Told, lock};
use crate::tables::{Asked, DentryKey, Outcome};
use brickfs_client::volume::Caller;
use brickfs_client::write_behind::Range;
use brickfs_common::attr::Kind;
use brickfs_common::errno::Errno;
use brickfs_common::fop::{Fop, FopReply, Making};
use std::sync::Arc;
use std::time::Instant;

impl Fs {
    /// Finds the object of a name.
    pub fn look_up(self: &Arc<Self>, caller: Caller, parent: u64, name: &[u8], done: Reply<Told>) {
        let (object, wire_name) = match self.named(parent, name) {
            Ok(named) => named,
            Err(errno) => return done(Err(errno)),
        };
        let session = self.backend.session();
        let (lacks_name, expects_open) = {
            let mut tables = lock(&self.tables);
            tables.in_session(session);
            (tables.lacks_name(tables.key(parent, name), Instant::now()), tables.expects_open(parent))
        };
        if lacks_name {
            return done(Err(Errno::ENOENT));
        }
        let (parent_ref, name) = (object, wire_name);
        let fop = match expects_open && lock(&self.holds).has_room() {
            true => Fop::LookupOpen { parent: parent_ref, name: name.clone() },
            false => Fop::Lookup { parent: parent_ref, name: name.clone() },
        };
        self.submit(caller, fop, move |fs, mut reply, asked| {
            let name = name.as_bytes();
            fs.opened_ahead(&mut reply);
            {
                let mut tables = lock(&fs.tables);
                if reply.result.is_ok() {
                    let key = tables.key(parent, name);
                    tables.saw_name(key);
                }
                if let Some(attr) = reply.attr.as_ref().filter(|attr| attr.kind == Kind::File) {
                    tables.found_file(parent, attr.gfid);
                }
                if let Some(attr) = &reply.parent {
                    tables.saw_directory(attr, asked);
                }
            }
            fs.enter(caller, (parent, name), (reply, asked), done);
        });
    }

    /// Makes a file, a directory, a symbolic link or a record.
    pub fn make(self: &Arc<Self>, caller: Caller, name: (u64, &[u8]), making: (Making, u32, u32), done: Reply<Told>) {
        let parent = name.0;
        let is_directory = making.0 == Making::Directory;
        self.make_with(caller, name, making, move |fs, name, reply, asked| {
            let change = reply.attr.as_ref().filter(|_| is_directory && reply.result.is_ok()).map(|attr| attr.change);
            let session = fs.backend.session();
            let theirs = fs.clone();
            let tell = move |told: Result<Told, Errno>| {
                if let (Ok(told), Some(change)) = (&told, change) {
                    lock(&theirs.tables).made_directory(told.ino, change, asked, session);
                }
                done(told);
            };
            fs.enter(caller, (parent, name), (reply, asked), Box::new(tell));
        });
    }

    /// Submits a make and keeps the books of its directory; `then` gets the name and the reply.
    pub(super) fn make_with(
        self: &Arc<Self>,
        caller: Caller,
        (parent, name): (u64, &[u8]),
        (making, perm, umask): (Making, u32, u32),
        then: impl FnOnce(&Arc<Fs>, &[u8], FopReply, Asked) + Send + 'static,
    ) {
        let (object, wire_name) = match self.named(parent, name) {
            Ok(named) => named,
            Err(errno) => return then(self, name, FopReply::failed(0, errno), self.asked()),
        };
        let key = self.begin_adding(parent, name);
        let fop = Fop::Make { parent: object, name: wire_name.clone(), making, perm, umask };
        self.submit(caller, fop, move |fs, reply, asked| {
            fs.end_adding(key, &reply, asked);
            then(fs, wire_name.as_bytes(), reply, asked);
        });
    }

    /// Gives a file another name. The reply's attributes are those of the file: its writes come first.
    pub fn link(self: &Arc<Self>, caller: Caller, ino: u64, new_name: (u64, &[u8]), done: Reply<Told>) {
        let (parent, name) = (new_name.0, new_name.1.to_vec());
        self.after_writes(ino, Range::ALL, caller.pid, move |fs, waited| {
            let objects = waited.and_then(|()| Ok((fs.object(ino)?, fs.named(parent, &name)?)));
            let (object, (new_parent, new_name)) = match objects {
                Ok(objects) => objects,
                Err(errno) => return done(Err(errno)),
            };
            lock(&fs.tables).changed(ino);
            let key = fs.begin_adding(parent, &name);
            fs.submit(caller, Fop::Link { object, new_parent, new_name }, move |fs, reply, asked| {
                fs.end_adding(key, &reply, asked);
                fs.enter(caller, (parent, &name), (reply, asked), done);
            });
        });
    }

    fn begin_adding(&self, parent: u64, name: &[u8]) -> DentryKey {
        let session = self.backend.session();
        let mut tables = lock(&self.tables);
        tables.in_session(session);
        let key = tables.key(parent, name);
        tables.begin_change(parent, Some(key));
        key
    }

    fn end_adding(&self, key: DentryKey, reply: &FopReply, asked: Asked) {
        let mut tables = lock(&self.tables);
        let outcome = outcome_of(reply, reply.parent.as_ref().map(|attr| attr.change), asked);
        tables.end_change(key.parent, outcome, Some(key), None);
        if let Some(attr) = &reply.parent {
            tables.learn(attr, asked);
        }
    }
}

/// What a change of names came to, for what is known of a directory. EINTR and EIO leave it open: the call
/// may have run, or run later.
pub(super) fn outcome_of(reply: &FopReply, change: Option<u64>, asked: Asked) -> Outcome {
    match (&reply.result, change) {
        (Ok(_), Some(change)) => Outcome::Made(change, asked.at),
        (Ok(_), None) | (Err(Errno::EINTR | Errno::EIO | Errno::EEXIST), _) => Outcome::Unknown,
        (Err(_), _) => Outcome::Refused,
    }
}
