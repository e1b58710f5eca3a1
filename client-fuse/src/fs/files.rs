//! Opening, closing and flushing files.

use super::{Fs, Opened, Reply, Told, lock};
use crate::tables::Asked;
use crate::tables::handles::OpenFile;
use brickfs_client::volume::Caller;
use brickfs_client::write_behind::Range;
use brickfs_common::attr::SetAttr;
use brickfs_common::errno::Errno;
use brickfs_common::fop::{Fop, FopReply, Making, ObjectRef};
use std::sync::Arc;
use std::time::Instant;

/// A file to create, as the kernel asks for it.
pub struct Creating<'a> {
    /// The directory.
    pub parent: u64,
    /// The name.
    pub name: &'a [u8],
    /// Permission bits asked for.
    pub perm: u32,
    /// The process's umask.
    pub umask: u32,
    /// Flags of open(2).
    pub flags: i32,
}

impl Fs {
    /// Opens a file. What the brick counts as open already is opened without asking it.
    pub fn open(self: &Arc<Self>, caller: Caller, ino: u64, flags: i32, done: Reply<Opened>) {
        let object = match self.object(ino) {
            Ok(object) => object,
            Err(errno) => return done(Err(errno)),
        };
        let truncate = flags & libc::O_TRUNC != 0;
        lock(&self.tables).opens(&object.gfid);
        if !truncate && lock(&self.holds).open_again(&object.gfid) {
            return done(Ok(self.opened(object, flags)));
        }
        if !self.has_room_to_open() {
            return done(Err(Errno::ENFILE));
        }
        if !truncate {
            return self.open_on_brick(caller, (ino, object), flags, done);
        }
        self.after_writes(ino, Range::ALL, caller.pid, move |fs, waited| match waited {
            Err(errno) => done(Err(errno)),
            Ok(()) => {
                lock(&fs.tables).changed(ino);
                fs.open_on_brick(caller, (ino, object), flags, done);
            }
        });
    }

    fn open_on_brick(
        self: &Arc<Self>,
        caller: Caller,
        (ino, object): (u64, ObjectRef),
        flags: i32,
        done: Reply<Opened>,
    ) {
        let truncate = flags & libc::O_TRUNC != 0;
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
        let reads = flags & libc::O_ACCMODE != libc::O_WRONLY;
        let wants_descriptor = reads && lock(&self.holds).has_room_for_files();
        let fop = Fop::Open { object, truncate, writes, wants_descriptor };
        self.submit(caller, fop, move |fs, mut reply, asked| match reply.result {
            Ok(_) => {
                fs.learn(reply.attr.as_ref(), asked);
                lock(&fs.holds).opened(object);
                fs.keep_file(&object, &mut reply);
                done(Ok(fs.opened(object, flags)));
            }
            Err(errno) => {
                if errno == Errno::ESTALE {
                    lock(&fs.tables).gone(ino);
                }
                done(Err(errno));
            }
        });
    }

    /// Keeps the file that a lookup has brought open, for the open that will probably follow.
    pub(super) fn opened_ahead(&self, reply: &mut FopReply) {
        let Some(attr) = reply.attr.as_ref().filter(|_| reply.opened) else { return };
        let object = ObjectRef { gfid: attr.gfid, home: attr.home };
        let due = lock(&self.holds).opened_ahead(object, Instant::now());
        self.keep_file(&object, reply);
        self.send_releases(due);
    }

    /// Whether another object may be open; ends the holds if not.
    fn has_room_to_open(&self) -> bool {
        let (has_room, idle) = {
            let mut holds = lock(&self.holds);
            let idle = if holds.has_room() { Vec::new() } else { holds.take_idle() };
            (holds.has_room(), idle)
        };
        self.send_releases(idle);
        has_room
    }

    fn opened(&self, object: ObjectRef, flags: i32) -> Opened {
        let file = OpenFile::new(object, flags);
        let is_read_only = flags & libc::O_ACCMODE == libc::O_RDONLY;
        Opened { handle: lock(&self.files).open(file), file, is_read_only }
    }

    /// Makes a file, or opens the one that is there, and opens it.
    pub fn create(self: &Arc<Self>, caller: Caller, creating: Creating<'_>, done: Reply<(Told, Opened)>) {
        let Creating { parent, name, perm, umask, flags } = creating;
        if !self.has_room_to_open() {
            return done(Err(Errno::ENFILE));
        }
        let has = |flag: i32| flags & flag != 0;
        let making = Making::File { open: true, exclusive: has(libc::O_EXCL), truncate: has(libc::O_TRUNC) };
        self.make_with(caller, (parent, name), (making, perm, umask), move |fs, name, reply, asked| {
            fs.created(caller, (parent, name), (reply, asked), flags, done);
        });
    }

    fn created(
        self: &Arc<Self>,
        caller: Caller,
        name: (u64, &[u8]),
        (reply, asked): (FopReply, Asked),
        flags: i32,
        done: Reply<(Told, Opened)>,
    ) {
        let object = reply.attr.as_ref().map(|attr| ObjectRef { gfid: attr.gfid, home: attr.home });
        let object = object.filter(|_| reply.result.is_ok());
        if let Some(object) = object {
            lock(&self.holds).opened(object);
        }
        let (fs, at) = (self.clone(), asked.at);
        let with_handle = move |told: Result<Told, Errno>| match (told, object) {
            (Ok(told), Some(object)) => {
                let opened = fs.opened(object, flags);
                if opened.is_write_behind() {
                    let maker = (opened.handle, caller.pid);
                    lock(&fs.tables).made_file(told.ino, maker, told.attr.clone(), at);
                }
                done(Ok((told, opened)));
            }
            (Ok(_), None) => done(Err(Errno::EIO)),
            (Err(errno), object) => {
                if let Some(object) = object {
                    fs.let_go(object);
                }
                done(Err(errno));
            }
        };
        let late = object.filter(|_| flags & libc::O_TRUNC != 0).map(|object| lock(&self.tables).ino(&object.gfid));
        let Some(ino) = late.filter(|ino| self.is_busy(*ino)) else {
            return self.enter(caller, name, (reply, asked), Box::new(with_handle));
        };
        // Somebody else has given a file of ours this name just now, and what was written to it before may come to the
        // brick after this has cut it: it is cut once more.
        let (fs, parent, name) = (self.clone(), name.0, name.1.to_vec());
        let cut = SetAttr { size: Some(0), ..SetAttr::default() };
        let then = move |cut: Result<Told, Errno>| match cut {
            Ok(_) => fs.enter(caller, (parent, &name), (reply, asked), Box::new(with_handle)),
            Err(errno) => with_handle(Err(errno)),
        };
        self.set_attr(caller, ino, cut, Box::new(then));
    }

    /// A descriptor is gone.
    fn let_go(&self, object: ObjectRef) {
        let due = lock(&self.holds).closed(&object.gfid, Instant::now());
        self.send_releases(due);
    }

    /// A close by a process: answered when what was written is on the brick and the process's locks are given back,
    /// with the error that the descriptor has to report.
    pub fn flush(self: &Arc<Self>, caller: Caller, ino: u64, (handle, owner): (u64, u64), done: Reply<()>) {
        let object = lock(&self.files).get(handle).map(|file| file.object);
        lock(&self.tables).closed(ino, handle); // whoever has it still asks
        self.after_writes(ino, Range::ALL, caller.pid, move |fs, waited| {
            let Some(object) = object else { return done(waited) };
            match waited {
                Ok(()) => {
                    let result = lock(&fs.writes).take_error(handle).map_or(Ok(()), Err);
                    fs.end_locks_of(caller, (ino, object, owner), move || done(result));
                }
                Err(errno) => {
                    // What the descriptor has to report stays with it, and the locks stay until all is written.
                    done(Err(errno));
                    fs.after_writes(ino, Range::ALL, 0, move |fs, _| {
                        fs.end_locks_of(caller, (ino, object, owner), || ())
                    });
                }
            }
        });
    }

    /// The last close of a descriptor.
    pub fn release(self: &Arc<Self>, ino: u64, handle: u64) {
        let Some(file) = lock(&self.files).get(handle) else { return };
        self.after_writes(ino, Range::ALL, 0, move |fs, _| {
            lock(&fs.files).close(handle);
            if let Some(errno) = lock(&fs.writes).forget_handle(ino, handle) {
                tracing::error!(gfid = %file.object.gfid, "a write failed and nobody was left to be told: {errno}");
            }
            fs.end_locks_through(ino, handle, file.object);
            fs.let_go(file.object);
        });
    }

    /// Makes durable what was written.
    pub fn fsync(self: &Arc<Self>, caller: Caller, (ino, handle): (u64, u64), data_only: bool, done: Reply<()>) {
        let Some(file) = lock(&self.files).get(handle) else { return done(Err(Errno::EBADF)) };
        let object = file.object;
        self.after_writes(ino, Range::ALL, caller.pid, move |fs, waited| {
            if let Err(errno) = waited {
                return done(Err(errno));
            }
            let failed = lock(&fs.writes).take_error(handle);
            fs.submit(caller, Fop::Fsync { object, data_only }, move |_, reply, _| {
                done(failed.map_or(reply.result.map(|_| ()), Err));
            });
        });
    }

    /// Makes the names of a directory durable.
    pub fn fsync_dir(self: &Arc<Self>, caller: Caller, ino: u64, data_only: bool, done: Reply<()>) {
        match self.object(ino) {
            Err(errno) => done(Err(errno)),
            Ok(object) => self.submit(caller, Fop::Fsync { object, data_only }, move |_, reply, _| {
                done(reply.result.map(|_| ()));
            }),
        }
    }
}
