//! The data of files: reads, and writes through the write-behind queues.

use super::attrs::data_of;
use super::{Asked, Fs, Reply, lock};
use crate::local_file::LocalFile;
use brickfs_client::volume::Caller;
use brickfs_client::write_behind::{
    Action, Answered, CROWDED_PIECE_BYTES, Change, Piece, PieceId, Range, Setting, Write,
};
use brickfs_common::errno::Errno;
use brickfs_common::fop::{Answer, Fop, FopReply, ObjectRef, PIECE_BYTES, WriteFlags};
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// A write as the kernel asks for it.
pub struct Writing<'a> {
    /// The inode.
    pub ino: u64,
    /// The open file.
    pub handle: u64,
    /// First byte; of no meaning for an append.
    pub offset: u64,
    /// The bytes.
    pub data: &'a [u8],
    /// Drop setuid, setgid and capabilities.
    pub kill_priv: bool,
    /// The kernel writes pages back that somebody has mapped: it notes an error itself.
    pub is_writeback: bool,
}

impl Fs {
    /// Reads; own writes show.
    pub fn read(self: &Arc<Self>, caller: Caller, ino: u64, handle: u64, at: (u64, u32), done: Reply<Bytes>) {
        let (offset, size) = at;
        let object = match self.usable_file(handle) {
            Ok(file) => Ok(file.object),
            Err(Errno::EBADF) => self.object(ino),
            Err(errno) => Err(errno),
        };
        let object = match object {
            Ok(object) => object,
            Err(errno) => return done(Err(errno)),
        };
        if !self.is_busy(ino) {
            return self.read_written(caller, object, at, done);
        }
        let range = Range::new(offset, u64::from(size));
        self.after_writes(ino, range, caller.pid, move |fs, waited| match waited {
            Ok(()) => fs.read_beside_writes(caller, (ino, object), at, done),
            Err(errno) => done(Err(errno)),
        });
    }

    /// Reads where other bytes of the file are being written. What comes up short may do so because the file has not
    /// grown yet; the kernel would take that for its end, and has told programs of a later one. Then all writes that
    /// are queued are waited for, and it is read again.
    fn read_beside_writes(
        self: &Arc<Self>,
        caller: Caller,
        (ino, object): (u64, ObjectRef),
        at: (u64, u32),
        done: Reply<Bytes>,
    ) {
        let fs = self.clone();
        let look = move |read: Result<Bytes, Errno>| match read {
            Ok(data) if data.len() < at.1 as usize => {
                fs.after_writes(ino, Range::ALL, caller.pid, move |fs, waited| match waited {
                    Ok(()) => fs.read_written(caller, object, at, done),
                    Err(errno) => done(Err(errno)),
                });
            }
            other => done(other),
        };
        self.read_written(caller, object, at, Box::new(look));
    }

    /// Reads what the brick has: from its file where that is here, else it is asked, and may pass the file then.
    fn read_written(
        self: &Arc<Self>,
        caller: Caller,
        object: ObjectRef,
        (offset, size): (u64, u32),
        done: Reply<Bytes>,
    ) {
        let local = self.local_file(&object);
        if let Some(data) = local.as_ref().and_then(|local| local.read(offset, size as usize)) {
            return done(Ok(data));
        }
        let wants_descriptor = local.is_none() && lock(&self.holds).has_room_for_files();
        let fop = Fop::Read { object, offset, size, wants_descriptor };
        self.submit(caller, fop, move |fs, mut reply, _| {
            fs.keep_file(&object, &mut reply);
            done(data_of(reply));
        });
    }

    fn local_file(&self, object: &ObjectRef) -> Option<Arc<LocalFile>> {
        let session = self.backend.session_with_lease()?;
        lock(&self.holds).local_file(&object.gfid, session)
    }

    /// Keeps the file that came with a reply.
    pub(super) fn keep_file(&self, object: &ObjectRef, reply: &mut FopReply) {
        if let Some(file) = reply.descriptor.take() {
            let local = LocalFile::new(file, self.backend.session());
            lock(&self.holds).keep_file(&object.gfid, local);
        }
    }

    /// Writes: answered when the write is queued, or with its result where the descriptor asks for that.
    pub fn write(self: &Arc<Self>, caller: Caller, write: Writing<'_>, done: Reply<u32>) {
        let file = match self.usable_file(write.handle) {
            Ok(file) => file,
            Err(errno) => return done(Err(errno)),
        };
        let is_through = file.append || file.direct || file.sync || write.is_writeback;
        let data = Bytes::copy_from_slice(write.data);
        let is_large = data.len() > CROWDED_PIECE_BYTES;
        let is_split = is_large && self.backend.is_crowded();
        let mut writes = lock(&self.writes);
        if let Some(errno) = writes.take_error(write.handle) {
            drop(writes);
            return done(Err(errno));
        }
        let write = Write {
            ino: write.ino,
            handle: write.handle,
            object: file.object,
            caller,
            offset: write.offset,
            data,
            flags: WriteFlags { append: file.append, kill_priv: write.kill_priv, sync: file.sync },
            piece_bytes: if is_split { CROWDED_PIECE_BYTES } else { PIECE_BYTES },
            answered: if is_through { Answered::Done } else { Answered::Queued },
            answer: done,
        };
        let (ino, end) = (write.ino, write.offset.saturating_add(write.data.len() as u64));
        let actions = writes.push(write, Instant::now());
        drop(writes);
        if is_through {
            lock(&self.tables).changed(ino)
        } else {
            lock(&self.tables).wrote(ino, end)
        }
        self.perform(actions);
    }

    /// Does what the write-behind queues want done.
    pub(super) fn perform(self: &Arc<Self>, actions: Vec<Action<Reply<u32>>>) {
        let mut actions = VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Send(piece) if self.is_cut_off(piece.handle) => {
                    actions.extend(lock(&self.writes).answered(piece.ino, piece.id, Err(Errno::EIO)));
                }
                Action::Send(piece) => actions.extend(self.send(piece)),
                Action::Set(Setting { number, change }) if self.is_cut_off(change.handle) => {
                    actions.extend(lock(&self.writes).set(change.ino, number, Err(Errno::EIO)));
                }
                Action::Set(setting) => actions.extend(self.send_change(setting)),
                Action::Answer(answer, result) => answer(result),
                Action::Invalidate(ino) => self.invalidations.ask(ino),
            }
        }
    }

    fn send(self: &Arc<Self>, piece: Piece) -> Vec<Action<Reply<u32>>> {
        let Piece { ino, id, object, caller, offset, data, flags, .. } = piece;
        self.submit(caller, Fop::Write { object, offset, data, flags }, move |fs, reply, asked| {
            fs.piece_answered(ino, id, reply, asked);
        });
        lock(&self.writes).submitted(ino, id)
    }

    fn send_change(self: &Arc<Self>, Setting { number, change }: Setting) -> Vec<Action<Reply<u32>>> {
        let Change { ino, object, caller, set, .. } = change;
        self.submit(caller, Fop::SetAttr { object, set }, move |fs, reply, asked| {
            let result = reply.result.map(|_| ());
            let actions = lock(&fs.writes).set(ino, number, result);
            match reply.attr {
                Some(attr) if result.is_ok() => fs.learn(Some(&attr), asked),
                _ => lock(&fs.tables).changed(ino),
            }
            fs.perform(actions);
        });
        lock(&self.writes).set_submitted(ino, number)
    }

    fn piece_answered(self: &Arc<Self>, ino: u64, id: PieceId, reply: FopReply, asked: Asked) {
        let result = match reply.result {
            Ok(Answer::Written { count, .. }) => Ok(count),
            Ok(_) => Err(Errno::EIO),
            Err(errno) => Err(errno),
        };
        let actions = lock(&self.writes).answered(ino, id, result);
        match reply.attr {
            // Decided with the write, and nothing else is on its way.
            Some(attr) if result.is_ok() => self.learn(Some(&attr), asked),
            _ if result.is_ok() => lock(&self.tables).wrote(ino, 0),
            _ => lock(&self.tables).changed(ino),
        }
        self.perform(actions);
    }
}
