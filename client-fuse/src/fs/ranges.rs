//! What is done to ranges of a file without their bytes passing through the mount: allocating, freeing, zeroing,
//! copying on the brick, looking for data and holes. All of it waits for the writes that are queued.

use super::{Fs, Reply, lock};
use crate::tables::handles::OpenFile;
use brickfs_client::volume::Caller;
use brickfs_client::write_behind::Range;
use brickfs_common::errno::Errno;
use brickfs_common::fop::{Answer, Fop, FopReply};
use std::sync::Arc;

/// One end of a copy as the kernel names it.
#[derive(Clone, Copy)]
pub struct End {
    /// The inode.
    pub ino: u64,
    /// The open file.
    pub handle: u64,
    /// First byte.
    pub offset: u64,
}

impl Fs {
    /// Allocates, frees or zeroes a range.
    pub fn fallocate(
        self: &Arc<Self>,
        caller: Caller,
        (ino, handle): (u64, u64),
        range: (u64, u64),
        mode: i32,
        done: Reply<()>,
    ) {
        self.after_writes(ino, Range::ALL, caller.pid, move |fs, waited| match waited {
            Ok(()) => fs.allocate(caller, (ino, handle), range, mode, done),
            Err(errno) => done(Err(errno)),
        });
    }

    /// Asks for a range. The brick does as much of it at once as holds up nobody else, and is asked for the rest.
    fn allocate(
        self: &Arc<Self>,
        caller: Caller,
        (ino, handle): (u64, u64),
        (offset, length): (u64, u64),
        mode: i32,
        done: Reply<()>,
    ) {
        // Its locks may have been lost since the last piece.
        let file = match self.usable_file(handle) {
            Ok(file) => file,
            Err(errno) => return done(Err(errno)),
        };
        lock(&self.tables).changed(ino);
        let fop = Fop::Fallocate { object: file.object, mode, offset, length };
        self.submit(caller, fop, move |fs, reply, asked| {
            fs.learn(reply.attr.as_ref(), asked);
            match reply.result {
                Ok(Answer::Written { count, .. }) if count > 0 && u64::from(count) < length => {
                    let count = u64::from(count);
                    fs.allocate(caller, (ino, handle), (offset + count, length - count), mode, done);
                }
                Ok(_) => fs.sync_if_asked(caller, file, done),
                Err(errno) => done(Err(known_to_kernel(errno))),
            }
        });
    }

    /// Copies bytes between two files on their brick; answers how many. EOPNOTSUPP where that cannot be: the kernel
    /// then reads and writes them.
    pub fn copy_range(self: &Arc<Self>, caller: Caller, from: End, to: End, length: u64, done: Reply<u32>) {
        if let Err(errno) = self.files_to_copy(from, to) {
            return done(Err(errno));
        }
        self.after_writes(from.ino, Range::new(from.offset, length), caller.pid, move |fs, waited| match waited {
            Err(errno) => done(Err(errno)),
            Ok(()) => fs.after_writes(to.ino, Range::ALL, caller.pid, move |fs, waited| match waited {
                Err(errno) => done(Err(errno)),
                Ok(()) => fs.copy_written(caller, from, to, length, done),
            }),
        });
    }

    fn files_to_copy(&self, from: End, to: End) -> Result<(OpenFile, OpenFile), Errno> {
        let (source, target) = (self.usable_file(from.handle)?, self.usable_file(to.handle)?);
        if source.object.home == target.object.home { Ok((source, target)) } else { Err(Errno::EOPNOTSUPP) }
    }

    fn copy_written(self: &Arc<Self>, caller: Caller, from: End, to: End, length: u64, done: Reply<u32>) {
        // Locks may have been lost while writes were waited for.
        let (source, target) = match self.files_to_copy(from, to) {
            Ok(files) => files,
            Err(errno) => return done(Err(errno)),
        };
        lock(&self.tables).changed(to.ino);
        let fop = Fop::CopyRange {
            object: target.object,
            offset: to.offset,
            source: source.object,
            source_offset: from.offset,
            length,
        };
        self.submit(caller, fop, move |fs, reply, asked| {
            fs.learn(reply.attr.as_ref(), asked);
            match copied(&reply) {
                Ok(0) => done(Ok(0)),
                Ok(count) => fs.sync_if_asked(caller, target, Box::new(move |synced| done(synced.map(|()| count)))),
                Err(errno) => done(Err(known_to_kernel(errno))),
            }
        });
    }

    /// Through a descriptor with O_SYNC or O_DSYNC a change is answered when it is on the disk.
    fn sync_if_asked(self: &Arc<Self>, caller: Caller, file: OpenFile, done: Reply<()>) {
        if !file.sync {
            return done(Ok(()));
        }
        let fop = Fop::Fsync { object: file.object, data_only: true };
        self.submit(caller, fop, move |_, reply, _| done(reply.result.map(|_| ())));
    }

    /// Finds data or a hole.
    pub fn seek(self: &Arc<Self>, caller: Caller, (ino, handle): (u64, u64), at: (i64, i32), done: Reply<u64>) {
        let Some(file) = lock(&self.files).get(handle) else { return done(Err(Errno::EBADF)) };
        let Ok(offset) = u64::try_from(at.0) else { return done(Err(Errno::ENXIO)) };
        let (object, whence) = (file.object, at.1);
        self.after_writes(ino, Range::ALL, caller.pid, move |fs, waited| {
            if let Err(errno) = waited {
                return done(Err(errno));
            }
            fs.submit(caller, Fop::Seek { object, offset, whence }, move |_, reply, _| {
                done(match reply.result {
                    Ok(Answer::Offset(found)) => Ok(found),
                    Ok(_) => Err(Errno::EIO),
                    Err(errno) => Err(known_to_kernel(errno)),
                });
            });
        });
    }
}

fn copied(reply: &FopReply) -> Result<u32, Errno> {
    match &reply.result {
        Ok(Answer::Written { count, .. }) => Ok(*count),
        Ok(_) => Err(Errno::EIO),
        Err(errno) => Err(*errno),
    }
}

/// ENOSYS from a brick's file system would switch the operation off for the whole mount.
fn known_to_kernel(errno: Errno) -> Errno {
    if errno == Errno::ENOSYS { Errno::EOPNOTSUPP } else { errno }
}
