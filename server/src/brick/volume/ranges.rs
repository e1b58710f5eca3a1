//! What is done to ranges of files whose bytes do not come with the call: allocating, freeing and zeroing, copying
//! between files of one set, looking for data and holes.
//!
//! Under the volume's lock, so what may take long is done in pieces: the answer says how far it went, and the client
//! asks for the rest.

use super::attrs::of;
use super::data::{FILE_SIZE_MAX, has_blocks, mark_read};
use super::{Ask, State, done};
use crate::brick::effect::{Outcome, Step};
use crate::brick::store::BrickStore as _;
use crate::brick::store::posix::{Allocation, PosixStore, copy_range, errno};
use brickfs_common::attr::{Kind, Timestamp};
use brickfs_common::errno::Errno;
use brickfs_common::fop::{Answer, FopReply, ObjectRef};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Most bytes that one call copies: some milliseconds where both files are in memory.
const COPY_BYTES_MAX: u64 = 4 << 20;

/// Bytes of a file.
#[derive(Clone, Copy)]
pub struct Span {
    /// The file.
    pub object: ObjectRef,
    /// First byte.
    pub offset: u64,
}

/// What a change of data does to times.
fn touch(object: ObjectRef, time: Timestamp) -> Step {
    Step::SetAttr { gfid: object.gfid.0, perm: None, uid: None, gid: None, size: None, atime: None, mtime: Some(time) }
}

impl State<PosixStore> {
    pub(super) fn fallocate(
        &mut self,
        ask: &Ask,
        object: ObjectRef,
        mode: i32,
        (offset, length): (u64, u64),
    ) -> Result<FopReply, Errno> {
        if self.attr_at_home(object)?.kind != Kind::File {
            return Err(Errno::ENODEV);
        }
        let allocation = Allocation::of(mode)?;
        if length == 0 {
            return Err(Errno::EINVAL);
        }
        if offset.saturating_add(length) > FILE_SIZE_MAX {
            return Err(Errno::EFBIG);
        }
        let file = self.set(object.home)?.store.file(&object.gfid)?;
        // All of it, also where it is done in pieces: who is refused has changed nothing.
        if allocation.takes_space()
            && let Err(full) = self.check_space(object.home, length)
            && !has_blocks(&file, offset, length)?
        {
            return Err(full);
        }
        if ask.uid != 0 {
            self.kill_priv(object)?;
        }
        let piece = length.min(self.set(object.home)?.store.allocation_piece(allocation));
        // What is all done says no more than that.
        let written = u32::try_from(piece).ok().filter(|_| piece < length).map(|count| (count, offset));
        let time = self.now();
        let allocate = Step::Fallocate { gfid: object.gfid.0, mode, offset, length: piece };
        let outcome = Outcome { written, ..of(object) };
        self.commit(object.home, Some(ask.asker), time, vec![allocate, touch(object, time)], outcome)?;
        let answer = written.map_or(Answer::Done, |(count, offset)| Answer::Written { count, offset });
        Ok(FopReply { result: Ok(answer), attr: Some(self.attr_at_home(object)?), ..done(ask.asker.request) })
    }

    /// Copies bytes between two files of a set. In the log it is a write: its bytes are not there, and a client that
    /// has no answer asks again. What was copied to its end has the effect's position in its record.
    pub(super) fn copy_range(&mut self, ask: &Ask, target: Span, source: Span, length: u64) -> Result<FopReply, Errno> {
        if source.object.home != target.object.home {
            return Err(Errno::EOPNOTSUPP);
        }
        let (from, to) = (self.file_to_copy(source.object)?, self.file_to_copy(target.object)?);
        let size = rustix::fs::fstat(&*from).map_err(errno)?.st_size as u64;
        let length = length.min(size.saturating_sub(source.offset));
        if source.object == target.object && source.offset.abs_diff(target.offset) < length {
            return Err(Errno::EINVAL);
        }
        let length = length.min(COPY_BYTES_MAX);
        if target.offset.saturating_add(length) > FILE_SIZE_MAX {
            return Err(Errno::EFBIG);
        }
        if length == 0 {
            return self.copied(ask, target, 0);
        }
        if let Err(full) = self.check_space(target.object.home, length)
            && !has_blocks(&to, target.offset, length)?
        {
            return Err(full);
        }
        if ask.uid != 0 {
            self.kill_priv(target.object)?;
        }
        let count = self.copy_logged(ask, (&to, target), (&from, source), length as u32)?;
        let ctime = self.set(source.object.home)?.store.meta(&source.object.gfid)?.ctime;
        mark_read(&from, self.atime, ctime);
        self.copied(ask, target, count)
    }

    fn file_to_copy(&mut self, object: ObjectRef) -> Result<Arc<OwnedFd>, Errno> {
        match self.attr_at_home(object)?.kind {
            Kind::File => self.set(object.home)?.store.file(&object.gfid),
            Kind::Directory => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        }
    }

    fn copied(&mut self, ask: &Ask, target: Span, count: u32) -> Result<FopReply, Errno> {
        let answer = Answer::Written { count, offset: target.offset };
        let attr = Some(self.attr_at_home(target.object)?);
        Ok(FopReply { result: Ok(answer), attr, ..done(ask.asker.request) })
    }

    fn copy_logged(
        &mut self,
        ask: &Ask,
        (to, target): (&OwnedFd, Span),
        (from, source): (&OwnedFd, Span),
        length: u32,
    ) -> Result<u32, Errno> {
        let (object, asker, time) = (target.object, Some(ask.asker), self.now());
        let write = |length| Step::Write { gfid: object.gfid.0, offset: target.offset, length, append: false };
        let outcome = |count| Outcome { written: Some((count, target.offset)), ..of(object) };
        let touched = touch(object, time);
        let engine = self.set(object.home)?;
        let mut effect = engine.log(asker, time, vec![write(length), touched.clone()], outcome(length))?;
        let copied = copy_range((from, source.offset), (to, target.offset), u64::from(length)).and_then(|count| {
            let count = count as u32;
            if count < length {
                // A disk that is full or fails in the middle: what a retry is answered with has to say so.
                effect = engine.log(asker, time, vec![write(count), touched.clone()], outcome(count))?;
            }
            engine.store.apply(&touched, &effect.stamp()).map(|()| count)
        });
        match copied {
            Ok(_) => self.clients.remember(object.home, &effect),
            Err(_) => engine.log_aborted(asker, time),
        }
        copied
    }

    pub(super) fn seek(
        &mut self,
        request: u64,
        object: ObjectRef,
        offset: u64,
        whence: i32,
    ) -> Result<FopReply, Errno> {
        use rustix::fs::SeekFrom;
        // Beyond what lseek(2) takes there is nothing.
        if i64::try_from(offset).is_err() {
            return Err(Errno::ENXIO);
        }
        let from = match whence {
            libc::SEEK_DATA => SeekFrom::Data(offset),
            libc::SEEK_HOLE => SeekFrom::Hole(offset),
            libc::SEEK_SET => SeekFrom::Start(offset),
            _ => return Err(Errno::EINVAL),
        };
        let engine = self.set(object.home)?;
        let file = engine.store.file(&object.gfid)?;
        let found = engine.store.seek(&file, from)?;
        Ok(FopReply { result: Ok(Answer::Offset(found)), ..done(request) })
    }
}
