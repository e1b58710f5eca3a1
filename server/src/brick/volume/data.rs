//! The data of files: open, read, write, allocate, seek, flush.

use super::attrs::{of, without_suidgid};
use super::namespace::known;
use super::{Asker, Reply, Volume, done};
use crate::brick::effect::{Outcome, Step};
use crate::brick::meta::HAS_CAPABILITY;
use crate::brick::store::errno;
use brickfs_common::attr::{Kind, SetAttr};
use brickfs_common::errno::Errno;
use brickfs_common::fop::{Answer, FopReply, ObjectRef, WriteFlags};
use brickfs_common::ids::SetId;
use bytes::Bytes;
use rustix::io::ReadWriteFlags;
use std::collections::HashSet;
use std::io::IoSliceMut;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Least size of a file that a write may reach: what ext4 with 4 KiB blocks takes.
const FILE_SIZE_MAX: u64 = 16 << 40;

impl Volume {
    pub(super) fn open_file(&mut self, asker: Asker, object: ObjectRef, truncate: bool) -> Result<FopReply, Errno> {
        let meta = self.meta(object)?;
        match meta.kind {
            Kind::File => {}
            Kind::Directory => return Err(Errno::EISDIR),
            Kind::Symlink => return Err(Errno::ELOOP),
            _ => return Err(Errno::ENXIO),
        }
        if truncate {
            let cut = SetAttr { size: Some(0), ..SetAttr::default() };
            self.set_attr(asker, object, cut)?;
        }
        self.store(object.home)?.file(&object.gfid)?;
        self.count_open(asker.client, object, 1);
        Ok(FopReply { attr: Some(self.attr(object)?), ..done(asker.request) })
    }

    pub(super) fn release(&mut self, asker: Asker, object: ObjectRef) -> Result<FopReply, Errno> {
        let is_open = self.clients.get(&asker.client).is_some_and(|c| c.opens.contains_key(&object.gfid));
        if is_open {
            self.count_open(asker.client, object, -1);
        }
        Ok(done(asker.request))
    }

    pub(super) fn read(&mut self, request: u64, object: ObjectRef, offset: u64, size: u32) -> Reply {
        let file = match self.store(object.home).and_then(|store| store.file(&object.gfid)) {
            Ok(file) => file,
            Err(error) => return Reply::Now(FopReply::failed(request, error)),
        };
        match read_cached(&file, offset, size as usize) {
            Ok(Some(data)) => Reply::Now(FopReply { result: Ok(Answer::Data(data)), ..done(request) }),
            Ok(None) => Reply::Later(Box::new(move || match read_all(&file, offset, size as usize) {
                Ok(data) => FopReply { result: Ok(Answer::Data(data)), ..done(request) },
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
        data: Bytes,
        flags: WriteFlags,
    ) -> Reply {
        match self.write_now(asker, object, offset, &data, flags) {
            Err(error) => Reply::Now(FopReply::failed(asker.request, error)),
            Ok((reply, file)) if flags.sync => Reply::Later(Box::new(move || match rustix::fs::fdatasync(&*file) {
                Ok(()) => reply,
                Err(error) => FopReply::failed(reply.request, errno(error)),
            })),
            Ok((reply, _)) => Reply::Now(reply),
        }
    }

    fn write_now(
        &mut self,
        asker: Asker,
        object: ObjectRef,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
    ) -> Result<(FopReply, Arc<OwnedFd>), Errno> {
        self.check_space(object.home, data.len() as u64)?;
        let file = self.store(object.home)?.file(&object.gfid)?;
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
        let effect = self.log(asker, object.home, vec![(object.home, step)], outcome)?;
        let written = write_all(&file, offset, data);
        if let Err(error) = written {
            if flags.append {
                rustix::fs::ftruncate(&*file, offset).map_err(errno)?;
            }
            let aborted = Outcome { aborted: true, ..Outcome::default() };
            self.log(asker, object.home, Vec::new(), aborted)?;
            return Err(error);
        }
        self.remember(object.home, &effect);
        let answer = Answer::Written { count: length, offset };
        let attr = if flags.append { self.attr(object).ok() } else { None };
        Ok((FopReply { result: Ok(answer), attr, ..done(asker.request) }, file))
    }

    /// Drops setuid, setgid and capabilities before a write of somebody who may not keep them.
    fn kill_priv(&mut self, object: ObjectRef) -> Result<(), Errno> {
        let attr = self.attr(object)?;
        let nobody = Asker { client: brickfs_common::ids::ClientId([0; 16]), request: 0 };
        if let Some(perm) = without_suidgid(attr.perm) {
            self.set_attr(nobody, object, SetAttr { perm: Some(perm), ..SetAttr::default() })?;
        }
        if self.meta(object)?.flags & HAS_CAPABILITY != 0 {
            self.set_xattr(nobody, object, &Bytes::from_static(b"security.capability"), None, 0)?;
        }
        Ok(())
    }

    pub(super) fn fallocate(
        &mut self,
        asker: Asker,
        object: ObjectRef,
        mode: i32,
        offset: u64,
        length: u64,
    ) -> Result<FopReply, Errno> {
        if self.meta(object)?.kind != Kind::File {
            return Err(Errno::ENODEV);
        }
        if length == 0 {
            return Err(Errno::EINVAL);
        }
        if offset.saturating_add(length) > FILE_SIZE_MAX {
            return Err(Errno::EFBIG);
        }
        const PUNCH_HOLE: i32 = 2;
        if mode & PUNCH_HOLE == 0 {
            self.check_space(object.home, length)?;
        }
        let step = Step::Fallocate { gfid: object.gfid.0, mode, offset, length };
        let time = self.now();
        let touch = Step::SetAttr {
            gfid: object.gfid.0,
            perm: None,
            uid: None,
            gid: None,
            size: None,
            atime: None,
            mtime: Some(time),
            time,
        };
        let outcome = Outcome { object: known(object), ..Outcome::default() };
        self.commit(asker, object.home, vec![(object.home, step), (object.home, touch)], outcome)?;
        Ok(FopReply { attr: Some(self.attr(object)?), ..done(asker.request) })
    }

    pub(super) fn seek(
        &mut self,
        asker: Asker,
        object: ObjectRef,
        offset: u64,
        whence: i32,
    ) -> Result<FopReply, Errno> {
        use rustix::fs::SeekFrom;
        let from = match whence {
            libc::SEEK_DATA => SeekFrom::Data(offset),
            libc::SEEK_HOLE => SeekFrom::Hole(offset),
            libc::SEEK_SET => SeekFrom::Start(offset),
            _ => return Err(Errno::EINVAL),
        };
        let file = self.store(object.home)?.file(&object.gfid)?;
        let found = rustix::fs::seek(&*file, from).map_err(errno)?;
        Ok(FopReply { result: Ok(Answer::Offset(found)), ..done(asker.request) })
    }

    /// Flushes an object, and the file systems of other bricks on which its names depend (PROTOCOL 35).
    pub(super) fn fsync(&mut self, request: u64, object: ObjectRef, data_only: bool) -> Reply {
        let prepared = self.prepare_fsync(object);
        let (own, others) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return Reply::Now(FopReply::failed(request, error)),
        };
        Reply::Later(Box::new(move || {
            let flushed = others.iter().try_for_each(|fd| rustix::fs::syncfs(&**fd)).and_then(|()| match data_only {
                true => rustix::fs::fdatasync(&*own),
                false => rustix::fs::fsync(&*own),
            });
            match flushed {
                Ok(()) => done(request),
                Err(error) => FopReply::failed(request, errno(error)),
            }
        }))
    }

    /// The descriptor to flush, and one of each other file system that has namespace changes which no
    /// flush has been asked to cover.
    #[allow(clippy::type_complexity)] // used once, next to its caller
    fn prepare_fsync(&mut self, object: ObjectRef) -> Result<(Arc<OwnedFd>, Vec<Arc<OwnedFd>>), Errno> {
        let kind = self.meta(object)?.kind;
        let store = self.store(object.home)?;
        let own = if kind == Kind::Directory { store.dir(&object.gfid)? } else { store.file(&object.gfid)? };
        let mut devices = HashSet::from([store.device]);
        let mut others = Vec::new();
        for index in 0..self.sets.len() {
            let Ok(store) = self.store(SetId(index as u16)) else { continue };
            if store.changes_count != store.flushed_count && devices.insert(store.device) {
                others.push(store.root_fd());
            }
        }
        Ok((own, others))
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
