//! fuser's replies as the closures that the file system answers into.

use super::convert::{file_attr, file_type, fuse_errno};
use crate::fs::{Item, Listing, Opened, Reply, Told};
use brickfs_common::attr::{Kind, StatFs};
use brickfs_common::errno::Errno;
use brickfs_common::locks::{HeldLock, LockKind, LockRange};
use bytes::Bytes;
use fuser::{
    FileAttr, FileHandle, FopenFlags, Generation, INodeNo, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLock, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::time::{Duration, SystemTime};

/// Generation of inode numbers: gfids are never used again.
const GENERATION: Generation = Generation(0);
/// Size of the blocks that statfs(2) counts in, in bytes.
const STAT_BLOCK_BYTES: u32 = 4096;
/// Longest name, in bytes.
const NAME_MAX: u32 = 255;

pub fn entry(reply: ReplyEntry) -> Reply<Told> {
    Box::new(move |result| match result {
        Ok(told) => reply.entry(&told.ttl, &file_attr(told.ino, &told.attr), GENERATION),
        Err(errno) => reply.error(fuse_errno(errno)),
    })
}

pub fn attr(reply: ReplyAttr) -> Reply<Told> {
    Box::new(move |result| match result {
        Ok(told) => reply.attr(&told.ttl, &file_attr(told.ino, &told.attr)),
        Err(errno) => reply.error(fuse_errno(errno)),
    })
}

pub fn empty(reply: ReplyEmpty) -> Reply<()> {
    Box::new(move |result| match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(fuse_errno(errno)),
    })
}

pub fn data(reply: ReplyData) -> Reply<Bytes> {
    Box::new(move |result| match result {
        Ok(data) => reply.data(&data),
        Err(errno) => reply.error(fuse_errno(errno)),
    })
}

pub fn written(reply: ReplyWrite) -> Reply<u32> {
    Box::new(move |result| match result {
        Ok(count) => reply.written(count),
        Err(errno) => reply.error(fuse_errno(errno)),
    })
}

pub fn offset(reply: ReplyLseek) -> Reply<u64> {
    Box::new(move |result| match result {
        Ok(found) => reply.offset(found as i64),
        Err(errno) => reply.error(fuse_errno(errno)),
    })
}

/// An xattr reply of at most `size` bytes; 0 asks for the length.
pub fn xattr(reply: ReplyXattr, size: u32) -> Reply<Bytes> {
    Box::new(move |result| match result {
        Ok(data) if size == 0 => reply.size(data.len() as u32),
        Ok(data) if data.len() > size as usize => reply.error(fuser::Errno::ERANGE),
        Ok(data) => reply.data(&data),
        Err(errno) => reply.error(fuse_errno(errno)),
    })
}

pub fn space(reply: ReplyStatfs) -> Reply<StatFs> {
    Box::new(move |result| match result {
        Ok(s) => {
            let blocks = |bytes: u64| bytes / u64::from(STAT_BLOCK_BYTES);
            let (total, free, available) = (blocks(s.total_bytes), blocks(s.free_bytes), blocks(s.available_bytes));
            let (unit, inodes, free_inodes) = (STAT_BLOCK_BYTES, s.total_inodes, s.free_inodes);
            reply.statfs(total, free, available, inodes, free_inodes, unit, NAME_MAX, unit);
        }
        Err(errno) => reply.error(fuse_errno(errno)),
    })
}

/// The lock that is in the way, or F_UNLCK.
pub fn in_the_way(reply: ReplyLock) -> Reply<Option<HeldLock>> {
    Box::new(move |result| match result {
        Ok(Some(lock)) => {
            let typ = match lock.kind {
                LockKind::Shared => libc::F_RDLCK,
                LockKind::Exclusive => libc::F_WRLCK,
            };
            reply.locked(lock.range.first(), lock.range.last(), typ, lock.pid);
        }
        Ok(None) => reply.locked(0, LockRange::END, libc::F_UNLCK, 0),
        Err(errno) => reply.error(fuse_errno(errno)),
    })
}

pub fn opened(reply: ReplyOpen) -> Reply<Opened> {
    Box::new(move |result| match result {
        Ok(opened) => reply.opened(FileHandle(opened.handle), open_flags(&opened)),
        Err(errno) => reply.error(fuse_errno(errno)),
    })
}

pub fn created(reply: ReplyCreate) -> Reply<(Told, Opened)> {
    Box::new(move |result| match result {
        Ok((told, opened)) => {
            let attr = file_attr(told.ino, &told.attr);
            reply.created(&told.ttl, &attr, GENERATION, FileHandle(opened.handle), open_flags(&opened));
        }
        Err(errno) => reply.error(fuse_errno(errno)),
    })
}

/// Appends are written through, and what the kernel caches at its own idea of the end would be wrong
/// (PROTOCOL 31); O_DIRECT writes go side by side (7 times as many at depth 16).
fn open_flags(opened: &Opened) -> FopenFlags {
    match opened.file {
        file if file.append => FopenFlags::FOPEN_DIRECT_IO,
        file if file.direct => FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES,
        _ => FopenFlags::empty(),
    }
}

/// A listing of names.
pub struct Names(pub ReplyDirectory);

impl Listing for Names {
    fn add(&mut self, item: &Item<'_>) -> bool {
        self.0.add(INodeNo(item.ino), item.offset, file_type(item.kind), OsStr::from_bytes(item.name))
    }

    fn finish(self: Box<Self>, result: Result<(), Errno>) {
        match result {
            Ok(()) => self.0.ok(),
            Err(errno) => self.0.error(fuse_errno(errno)),
        }
    }
}

/// A listing of names with attributes.
pub struct NamesPlus(pub ReplyDirectoryPlus);

impl Listing for NamesPlus {
    fn add(&mut self, item: &Item<'_>) -> bool {
        let (attr, ttl) = match item.attr {
            Some((attr, ttl)) => (file_attr(item.ino, attr), ttl),
            None => (no_attr(item.ino, item.kind), Duration::ZERO),
        };
        let ino = INodeNo(item.ino);
        self.0.add(ino, item.offset, OsStr::from_bytes(item.name), &ttl, &attr, GENERATION)
    }

    fn finish(self: Box<Self>, result: Result<(), Errno>) {
        match result {
            Ok(()) => self.0.ok(),
            Err(errno) => self.0.error(fuse_errno(errno)),
        }
    }
}

/// An entry without attributes. fuser has no way to leave the node id out; but with a size that cannot be,
/// the kernel lists the name, takes no attributes (`fuse_invalid_attr`) and forgets the lookup that we count.
fn no_attr(ino: u64, kind: Kind) -> FileAttr {
    let t = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(ino),
        size: u64::MAX,
        blocks: 0,
        atime: t,
        mtime: t,
        ctime: t,
        crtime: t,
        kind: file_type(kind),
        perm: 0,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: STAT_BLOCK_BYTES,
        flags: 0,
    }
}
