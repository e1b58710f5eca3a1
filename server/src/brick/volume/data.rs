//! The data of files: open, read, write, flush.

use super::attrs::of;
use super::{Ask, State, Volume, done};
use crate::brick::effect::{Outcome, Step};
use crate::brick::set::Asker;
use crate::brick::store::BrickStore as _;
use crate::brick::store::posix::{PosixStore, errno};
use brickfs_common::attr::{Kind, Timestamp, without_suidgid};
use brickfs_common::errno::Errno;
use brickfs_common::fop::{Answer, Descriptor, FopReply, ObjectRef, WriteFlags};
use brickfs_common::ids::SetId;
use brickfs_common::volume_spec::Atime;
use bytes::Bytes;
use rustix::io::ReadWriteFlags;
use std::io::IoSliceMut;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Least size of a file that a write may reach: what ext4 with 4 KiB blocks takes.
pub(super) const FILE_SIZE_MAX: u64 = 16 << 40;

/// What a call is answered with: at once, or by work that may sleep and runs elsewhere.
#[allow(clippy::large_enum_variant)] // made and taken apart once a call: a box would cost more
pub enum Reply {
    /// The reply.
    Now(FopReply),
    /// Computes the reply; may sleep on the disk.
    Later(Box<dyn FnOnce() -> FopReply + Send>),
}

impl Reply {
    /// From a result that is there.
    pub fn of(request: u64, result: Result<FopReply, Errno>) -> Reply {
        Reply::Now(result.unwrap_or_else(|errno| FopReply::failed(request, errno)))
    }
}

impl State<PosixStore> {
    pub(super) fn open_file(
        &mut self,
        ask: &Ask,
        object: ObjectRef,
        truncate: bool,
        wants_descriptor: bool,
    ) -> Result<FopReply, Errno> {
        let engine = self.set(object.home)?;
        match engine.store.meta(&object.gfid)?.kind {
            Kind::File => {}
            Kind::Directory => return Err(Errno::EISDIR),
            Kind::Symlink => return Err(Errno::ELOOP),
            _ => return Err(Errno::ENXIO),
        }
        let descriptor = if wants_descriptor { self.descriptor(object) } else { None };
        if descriptor.is_none() {
            self.set(object.home)?.store.file(&object.gfid)?;
        }
        Ok(FopReply { descriptor, ..self.open_existing(ask, object, truncate)? })
    }

    /// Opens the file that was found for a client on this machine, which will probably ask for that next.
    pub(super) fn open_found(&mut self, ask: &Ask, found: FopReply) -> FopReply {
        let file = found.attr.as_ref().filter(|attr| attr.kind == Kind::File);
        let Some(object) = file.map(|attr| ObjectRef { gfid: attr.gfid, home: attr.home }) else { return found };
        let Some(descriptor) = self.descriptor(object) else { return found };
        self.clients.count_open(ask.asker.client, object.gfid, object.home, 1);
        FopReply { descriptor: Some(descriptor), opened: true, ..found }
    }

    /// The file for a client on this machine to read from, where its reads leave the access time that the volume's
    /// option asks for.
    fn descriptor(&mut self, object: ObjectRef) -> Option<Descriptor> {
        let policy = self.atime;
        let engine = self.set(object.home).ok()?;
        let file = engine.store.file_to_read(&object.gfid, policy).ok()??;
        Some(Descriptor(Arc::new(file)))
    }

    pub(super) fn release(&mut self, asker: Asker, object: ObjectRef) -> FopReply {
        let is_open = self.clients.by_id.get(&asker.client).is_some_and(|c| c.opens.contains_key(&object.gfid));
        if is_open {
            let is_last = self.clients.count_open(asker.client, object.gfid, object.home, -1);
            if !self.clients.by_id[&asker.client].opens.contains_key(&object.gfid) {
                self.locks.end_file(asker.client, object.gfid);
            }
            if is_last {
                self.delete_if_orphan(object);
            }
        }
        done(asker.request)
    }

    pub(super) fn read(
        &mut self,
        request: u64,
        object: ObjectRef,
        (offset, size): (u64, u32),
        wants_descriptor: bool,
    ) -> Reply {
        let opened = self.set(object.home).and_then(|engine| {
            let ctime = engine.store.meta(&object.gfid)?.ctime;
            Ok((engine.store.file(&object.gfid)?, ctime))
        });
        let (file, ctime) = match opened {
            Ok(opened) => opened,
            Err(error) => return Reply::Now(FopReply::failed(request, error)),
        };
        let descriptor = if wants_descriptor { self.descriptor(object) } else { None };
        let (atime, size) = (self.atime, size as usize);
        let read = move |file: &OwnedFd, data| {
            match &descriptor {
                Some(passed) => read_through(passed, offset),
                None => mark_read(file, atime, ctime),
            }
            FopReply { result: Ok(Answer::Data(data)), descriptor, ..done(request) }
        };
        match read_cached(&file, offset, size) {
            Ok(Some(data)) => Reply::Now(read(&file, data)),
            Ok(None) => Reply::Later(Box::new(move || match read_all(&file, offset, size) {
                Ok(data) => read(&file, data),
                Err(error) => FopReply::failed(request, error),
            })),
            Err(error) => Reply::Now(FopReply::failed(request, error)),
        }
    }

    pub(super) fn write(
        &mut self,
        asker: Asker,
        object: ObjectRef,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
    ) -> Result<FopReply, Errno> {
        let file = self.set(object.home)?.store.file(&object.gfid)?;
        if let Err(full) = self.check_space(object.home, data.len() as u64)
            && (flags.append || !has_blocks(&file, offset, data.len() as u64)?)
        {
            return Err(full);
        }
        if flags.kill_priv {
            self.kill_priv(object)?;
        }
        let offset = match flags.append {
            true => rustix::fs::fstat(&*file).map_err(errno)?.st_size as u64,
            false => offset,
        };
        if offset.saturating_add(data.len() as u64) > FILE_SIZE_MAX {
            return Err(Errno::EFBIG);
        }
        let length = data.len() as u32;
        let step = Step::Write { gfid: object.gfid.0, offset, length, append: flags.append };
        let outcome = Outcome { written: Some((length, offset)), ..of(object) };
        let time = self.now();
        let effect = self.set(object.home)?.log(Some(asker), time, vec![step], outcome)?;
        if let Err(error) = write_all(&file, offset, data) {
            if flags.append {
                // If that fails too, part of the record stays, as on a local disk.
                rustix::fs::ftruncate(&*file, offset).ok();
            }
            self.set(object.home)?.log_aborted(Some(asker), time);
            return Err(error);
        }
        self.clients.remember(object.home, &effect);
        let answer = Answer::Written { count: length, offset };
        let attr = if flags.append { self.set(object.home)?.store.attr(&object.gfid).ok() } else { None };
        Ok(FopReply { result: Ok(answer), attr, ..done(asker.request) })
    }

    /// Drops setuid, setgid and capabilities before a write of somebody who may not keep them.
    pub(super) fn kill_priv(&mut self, object: ObjectRef) -> Result<(), Errno> {
        let attr = self.attr_at_home(object)?;
        let time = self.now();
        let mut steps = Vec::new();
        if let Some(perm) = without_suidgid(attr.perm) {
            steps.push(Step::SetAttr {
                gfid: object.gfid.0,
                perm: Some(perm),
                uid: None,
                gid: None,
                size: None,
                atime: None,
                mtime: None,
            });
        }
        if attr.has_capability {
            steps.push(Step::Xattr { gfid: object.gfid.0, name: b"security.capability".to_vec(), value: None });
        }
        if !steps.is_empty() {
            self.commit(object.home, None, time, steps, Outcome::default())?;
        }
        Ok(())
    }
}

type Flusher = Box<dyn FnOnce() -> Result<(), Errno> + Send>;

/// What a flush of one object takes.
struct FlushPlan {
    own: Arc<OwnedFd>,
    /// Other file systems with effects that no barrier has passed.
    others: Vec<DeviceFlush>,
}

/// The flush of one file system.
struct DeviceFlush {
    device: u64,
    /// Its sets with the counts of effects that the flush will have covered.
    covered: Vec<(SetId, u64)>,
    flush: Flusher,
}

impl Volume<PosixStore> {
    /// Flushes an object, and the file systems of other bricks on which its names depend (PROTOCOL 35).
    pub(super) fn fsync(self: &Arc<Self>, request: u64, object: ObjectRef, data_only: bool) -> Reply {
        let plan = match self.lock().plan_flush(object) {
            Ok(plan) => plan,
            Err(error) => return Reply::Now(FopReply::failed(request, error)),
        };
        let me = self.clone();
        Reply::Later(Box::new(move || match me.flush(plan, object, data_only) {
            Ok(()) => done(request),
            Err(error) => FopReply::failed(request, error),
        }))
    }

    fn flush(&self, plan: FlushPlan, object: ObjectRef, data_only: bool) -> Result<(), Errno> {
        for other in plan.others {
            let flushed = (other.flush)();
            let mut state = self.lock();
            for (set, applied) in other.covered {
                let engine = state.set(set)?;
                match flushed {
                    Ok(()) => engine.flushed = engine.flushed.max(applied),
                    Err(error) => engine.fail("a flush of the brick's file system", error),
                }
            }
            flushed?;
        }
        let flushed = if data_only { rustix::fs::fdatasync(&*plan.own) } else { rustix::fs::fsync(&*plan.own) };
        flushed.map_err(errno).inspect_err(|error| {
            if let Ok(engine) = self.lock().set(object.home) {
                engine.fail("a flush", *error);
            }
        })
    }

    /// A write that is answered when it is on the disk.
    pub(super) fn write_through(
        self: &Arc<Self>,
        asker: Asker,
        object: ObjectRef,
        offset: u64,
        data: &Bytes,
        flags: WriteFlags,
    ) -> Reply {
        let (reply, plan) = {
            let mut state = self.lock();
            let written = state.write(asker, object, offset, data, flags);
            match written.and_then(|reply| Ok((reply, state.plan_flush(object)?))) {
                Ok(done) => done,
                Err(error) => return Reply::Now(FopReply::failed(asker.request, error)),
            }
        };
        let me = self.clone();
        Reply::Later(Box::new(move || match me.flush(plan, object, true) {
            Ok(()) => reply,
            Err(error) => FopReply::failed(reply.request, error),
        }))
    }
}

impl State<PosixStore> {
    fn plan_flush(&mut self, object: ObjectRef) -> Result<FlushPlan, Errno> {
        let engine = self.set(object.home)?;
        if engine.failed.is_some() {
            return Err(Errno::EIO);
        }
        let own_device = engine.store.device();
        let own = match engine.store.meta(&object.gfid)?.kind {
            Kind::Directory => engine.store.dir(&object.gfid)?,
            Kind::File => engine.store.file(&object.gfid)?,
            // Its name is all there is to it: the file system's journal is flushed.
            _ => engine.store.root_fd(),
        };
        let mut others: Vec<DeviceFlush> = Vec::new();
        for engine in self.open_sets().filter(|engine| engine.applied != engine.flushed) {
            // A name above the file may be among what its disk has lost.
            if engine.failed.is_some() {
                return Err(Errno::EIO);
            }
            let (device, covered) = (engine.store.device(), (engine.id, engine.applied));
            match others.iter_mut().find(|other| other.device == device) {
                Some(other) => other.covered.push(covered),
                None if device == own_device => {}
                None => {
                    let flush = engine.store.flusher();
                    others.push(DeviceFlush { device, covered: vec![covered], flush });
                }
            }
        }
        Ok(FlushPlan { own, others })
    }
}

/// Reads through a descriptor that is passed on, so that its kernel keeps the access time from this read on. Were it
/// set here, the ctime that moves with it would be the later one, and the next read through it would count again.
fn read_through(passed: &Descriptor, offset: u64) {
    // What cannot be read now has been read before, through another one.
    rustix::io::pread(&*passed.0, &mut [0; 1][..], offset).ok();
}

/// Changes a file's access time after a read, if the volume's option says so. The local ctime does not
/// count: setting the access time moves it.
pub(super) fn mark_read(file: &OwnedFd, policy: Atime, ctime: Timestamp) {
    const DAY_S: i64 = 24 * 3600;
    let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    let is_due = match policy {
        Atime::Noatime => false,
        Atime::Strict => true,
        Atime::Relatime => rustix::fs::fstat(file).is_ok_and(|stat| {
            let atime = (stat.st_atime, stat.st_atime_nsec);
            let changed = (ctime.sec, u64::from(ctime.nsec)).max((stat.st_mtime, stat.st_mtime_nsec));
            atime <= changed || stat.st_atime + DAY_S < now.tv_sec
        }),
    };
    if is_due {
        let omit = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT as _ };
        // A read is good also where its time cannot be kept: a full or read-only disk.
        rustix::fs::futimens(file, &rustix::fs::Timestamps { last_access: now, last_modification: omit }).ok();
    }
}

/// Reads what the page cache holds without sleeping; `None` if the disk must be asked.
fn read_cached(file: &OwnedFd, offset: u64, size: usize) -> Result<Option<Bytes>, Errno> {
    let mut data = vec![0u8; size];
    match rustix::io::preadv2(file, &mut [IoSliceMut::new(&mut data)], offset, ReadWriteFlags::NOWAIT) {
        Ok(n) if n == size => Ok(Some(Bytes::from(data))),
        Ok(n) => {
            let end = rustix::fs::fstat(file).map_err(errno)?.st_size as u64;
            if offset + n as u64 >= end {
                data.truncate(n);
                Ok(Some(Bytes::from(data)))
            } else {
                Ok(None)
            }
        }
        Err(rustix::io::Errno::AGAIN) => Ok(None),
        Err(rustix::io::Errno::OPNOTSUPP) => read_all(file, offset, size).map(Some),
        Err(error) => Err(errno(error)),
    }
}

/// Reads up to `size` bytes, fewer only at the end of the file.
fn read_all(file: &OwnedFd, offset: u64, size: usize) -> Result<Bytes, Errno> {
    let mut data = vec![0u8; size];
    let mut filled = 0;
    while filled < size {
        match rustix::io::pread(file, &mut data[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(errno(error)),
        }
    }
    data.truncate(filled);
    Ok(Bytes::from(data))
}

/// Whether a write stays within what a file without holes has already: it needs no room.
pub(super) fn has_blocks(file: &OwnedFd, offset: u64, length: u64) -> Result<bool, Errno> {
    let stat = rustix::fs::fstat(file).map_err(errno)?;
    let size = stat.st_size as u64;
    Ok(offset.saturating_add(length) <= size && stat.st_blocks as u64 * 512 >= size)
}

fn write_all(file: &OwnedFd, offset: u64, data: &[u8]) -> Result<(), Errno> {
    let mut written = 0;
    while written < data.len() {
        match rustix::io::pwrite(file, &data[written..], offset + written as u64) {
            Ok(0) => return Err(Errno::EIO),
            Ok(n) => written += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(errno(error)),
        }
    }
    Ok(())
}
