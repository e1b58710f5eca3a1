//! The FUSE adapter: decodes, calls the file system, replies. fuser's types stop here.

mod convert;
mod replies;

use crate::fs::{Creating, End, Fs, Locking, Writing};
use brickfs_client::volume::Caller;
use brickfs_common::attr::{Kind, SetAttr};
use brickfs_common::errno::Errno;
use brickfs_common::fop::{Making, PIECE_BYTES, RenameFlags};
use brickfs_common::locks::{LockKind, LockRange};
use bytes::Bytes;
use convert::{fuse_errno, set_time};
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, FopenFlags, INodeNo, InitFlags, IoctlFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
};
use std::ffi::OsStr;
use std::io;
use std::ops::Deref;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Readahead asked of the kernel in bytes.
const READAHEAD_BYTES: u32 = 1 << 20;
/// Requests that the kernel may have in the background.
const BACKGROUND_MAX: u16 = 128;

/// A mounted volume.
pub struct Mount(pub Arc<Fs>);

impl Mount {
    fn fs(&self) -> Attended<'_> {
        Attended(&self.0)
    }
}

/// The file system for one request: at its end this thread drives the session, if nobody does.
struct Attended<'a>(&'a Arc<Fs>);

impl Deref for Attended<'_> {
    type Target = Arc<Fs>;

    fn deref(&self) -> &Arc<Fs> {
        self.0
    }
}

impl Drop for Attended<'_> {
    fn drop(&mut self) {
        self.0.drive();
    }
}

fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), pid: request.pid() }
}

fn at(directory: INodeNo, name: &OsStr) -> (u64, &[u8]) {
    (directory.0, name.as_bytes())
}

fn locking(
    (ino, fh, owner): (INodeNo, FileHandle, LockOwner),
    (first, last): (u64, u64),
    typ: i32,
    pid: u32,
    waits: bool,
) -> Result<Locking, Errno> {
    let kind = match typ {
        libc::F_RDLCK => Some(LockKind::Shared),
        libc::F_WRLCK => Some(LockKind::Exclusive),
        libc::F_UNLCK => None,
        _ => return Err(Errno::EINVAL),
    };
    let range = LockRange::new(first, last)?;
    Ok(Locking { ino: ino.0, handle: fh.0, owner: owner.0, range, kind, pid, waits })
}

impl Filesystem for Mount {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Not FUSE_ATOMIC_O_TRUNC: with it the kernel has a file truncated by open(O_RDONLY | O_TRUNC) before it finds
        // that the file is a program that runs, and refuses only then.
        let wanted = InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_POSIX_ACL
            | InitFlags::FUSE_DONT_MASK
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_POSIX_LOCKS
            | InitFlags::FUSE_FLOCK_LOCKS;
        for flag in wanted.iter() {
            if config.add_capabilities(flag).is_err() {
                tracing::info!("the kernel lacks {flag:?}");
            }
        }
        // Both answer with the nearest allowed value, which is what holds then.
        config.set_max_write(PIECE_BYTES as u32).ok();
        config.set_max_readahead(READAHEAD_BYTES).ok();
        config.set_max_background(BACKGROUND_MAX).ok();
        config.set_time_granularity(Duration::from_nanos(1)).ok();
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.fs().look_up(caller(req), parent.0, name.as_bytes(), replies::entry(reply));
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.fs().forget(ino.0, nlookup);
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.fs().get_attr(caller(req), ino.0, replies::attr(reply));
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if size.is_some() && fh.is_some_and(|fh| self.fs().is_cut_off(fh.0)) {
            return reply.error(fuse_errno(Errno::EIO));
        }
        let set = SetAttr {
            perm: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
            kill_suidgid: size.is_some() && req.uid() != 0,
        };
        self.fs().set_attr(caller(req), ino.0, set, replies::attr(reply));
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        self.fs().read_link(caller(req), ino.0, replies::data(reply));
    }

    fn mknod(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32, reply: ReplyEntry) {
        let making = match Kind::from_mode(mode) {
            Some(Kind::File) => Making::File { open: false, exclusive: true, truncate: false },
            Some(kind) => Making::Record(kind, rdev),
            None => return reply.error(fuse_errno(Errno::EINVAL)),
        };
        self.fs().make(caller(req), at(parent, name), (making, mode & 0o7777, umask), replies::entry(reply));
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let making = (Making::Directory, mode & 0o7777, umask);
        self.fs().make(caller(req), at(parent, name), making, replies::entry(reply));
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.fs().unlink(caller(req), parent.0, name.as_bytes(), replies::empty(reply));
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.fs().rmdir(caller(req), parent.0, name.as_bytes(), replies::empty(reply));
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = Bytes::copy_from_slice(target.as_os_str().as_bytes());
        self.fs().make(caller(req), at(parent, name), (Making::Symlink(target), 0o777, 0), replies::entry(reply));
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: fuser::RenameFlags,
        reply: ReplyEmpty,
    ) {
        match RenameFlags::from_bits(flags.bits()) {
            Ok(flags) => {
                let (old, new) = (at(parent, name), at(newparent, newname));
                self.fs().rename(caller(req), old, new, flags, replies::empty(reply));
            }
            Err(errno) => reply.error(fuse_errno(errno)),
        }
    }

    fn link(&self, req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        self.fs().link(caller(req), ino.0, at(newparent, newname), replies::entry(reply));
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.fs().open(caller(req), ino.0, flags.0, replies::opened(reply));
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (parent, name) = at(parent, name);
        let creating = Creating { parent, name, perm: mode & 0o7777, umask, flags };
        self.fs().create(caller(req), creating, replies::created(reply));
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.fs().read(caller(req), ino.0, fh.0, (offset, size), replies::data(reply));
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: fuser::WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let kill_priv = write_flags.contains(fuser::WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let is_writeback = write_flags.contains(fuser::WriteFlags::FUSE_WRITE_CACHE);
        let writing = Writing { ino: ino.0, handle: fh.0, offset, data, kill_priv, is_writeback };
        self.fs().write(caller(req), writing, replies::written(reply));
    }

    fn flush(&self, req: &Request, ino: INodeNo, fh: FileHandle, lock_owner: LockOwner, reply: ReplyEmpty) {
        self.fs().flush(caller(req), ino.0, (fh.0, lock_owner.0), replies::empty(reply));
    }

    fn getlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        match locking((ino, fh, lock_owner), (start, end), typ, pid, false) {
            Ok(locking) => self.fs().test_lock(caller(req), locking, replies::in_the_way(reply)),
            Err(errno) => reply.error(fuse_errno(errno)),
        }
    }

    fn setlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        match locking((ino, fh, lock_owner), (start, end), typ, pid, sleep) {
            Ok(locking) => self.fs().set_lock(caller(req), locking, replies::empty(reply)),
            Err(errno) => reply.error(fuse_errno(errno)),
        }
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        // Nobody waits for it: the kernel sends it in the background.
        reply.ok();
        self.fs().release(ino.0, fh.0);
    }

    fn fsync(&self, req: &Request, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.fs().fsync(caller(req), (ino.0, fh.0), datasync, replies::empty(reply));
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.fs().open_dir(ino.0) {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            Err(errno) => reply.error(fuse_errno(errno)),
        }
    }

    fn readdir(&self, req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.fs().list(caller(req), fh.0, (offset, false), Box::new(replies::Names(reply)));
    }

    fn readdirplus(&self, req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectoryPlus) {
        self.fs().list(caller(req), fh.0, (offset, true), Box::new(replies::NamesPlus(reply)));
    }

    fn releasedir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        reply.ok();
        self.fs().release_dir(fh.0);
    }

    fn fsyncdir(&self, req: &Request, ino: INodeNo, _fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.fs().fsync_dir(caller(req), ino.0, datasync, replies::empty(reply));
    }

    fn statfs(&self, req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.fs().stat_fs(caller(req), replies::space(reply));
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let value = Some((value, flags as u32));
        self.fs().set_xattr(caller(req), ino.0, name.as_bytes(), value, replies::empty(reply));
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.fs().get_xattr(caller(req), ino.0, name.as_bytes(), replies::xattr(reply, size));
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.fs().list_xattr(caller(req), ino.0, replies::xattr(reply, size));
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.fs().set_xattr(caller(req), ino.0, name.as_bytes(), None, replies::empty(reply));
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.fs().fallocate(caller(req), (ino.0, fh.0), (offset, length), mode, replies::empty(reply));
    }

    fn copy_file_range(
        &self,
        req: &Request,
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        if !flags.is_empty() {
            return reply.error(fuser::Errno::EINVAL);
        }
        let from = End { ino: ino_in.0, handle: fh_in.0, offset: offset_in };
        let to = End { ino: ino_out.0, handle: fh_out.0, offset: offset_out };
        self.fs().copy_range(caller(req), from, to, len, replies::written(reply));
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(fuser::Errno::ENOTTY);
    }

    fn lseek(&self, req: &Request, ino: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        self.fs().seek(caller(req), (ino.0, fh.0), (offset, whence), replies::offset(reply));
    }
}
