//! Write-behind (PROTOCOL 32) as a machine without I/O: writes, answers and waiters go in, actions come out.
//!
//! One queue for each inode. A write that overlaps one in flight, or one that itself waits, waits in the
//! queue: overlapping writes of this client are never in flight together, so that a retry of the older one
//! cannot land second. Whoever shows or changes size, data or times waits for the writes that were queued
//! before it. An error sticks to every descriptor that had writes queued and is reported once on each.
//!
//! ```text
//!              push                  nothing overlaps it             answered
//!   (caller) ───────▶ waiting ─────────────────────────▶ in flight ─────────────▶ gone
//!                        ▲                                   │
//!                        └── a small write that follows one in flight waits to be merged
//! ```
//!
//! The caller of a write is answered when it is queued, or, beyond the window, when there is room again.
//! A write that must be answered with its own result (O_DIRECT, O_SYNC, O_APPEND, the kernel's writeback of
//! mapped pages) is ordered here like any other, never merged and never held back.
//!
//! Owner, mode and times of a file that is being written may be changed through the queue as well (`changes.rs`): what
//! unpacks or copies files sets all three of each before it closes it. What shows them, and the close, waits.

mod changes;
mod queue;
#[cfg(test)]
mod tests;

use crate::volume::Caller;
use brickfs_common::attr::SetAttr;
use brickfs_common::errno::Errno;
use brickfs_common::fop::{ObjectRef, WriteFlags};
use bytes::Bytes;
use queue::Queue;
use std::collections::HashMap;
use std::time::Instant;

/// Bytes, and writes, of one inode that may be queued or in flight while further ones are answered at once.
pub const WINDOW_BYTES: usize = 16 << 20;
/// See `WINDOW_BYTES`.
pub const WINDOW_WRITES: usize = 1024;
/// Bytes of all inodes together: beyond it no write is answered before there is room.
pub const TOTAL_BYTES: usize = 128 << 20;

/// Bytes of a piece while small operations share the session with bulk: what one of them finds in front of it is on
/// its way for as long as its own handovers take.
pub const CROWDED_PIECE_BYTES: usize = 128 << 10;

/// When the caller of a write is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answered {
    /// When it is queued.
    Queued,
    /// With its own result.
    Done,
}

/// A write that comes in. `A` answers its caller.
pub struct Write<A> {
    /// The inode, for the queue.
    pub ino: u64,
    /// The descriptor that errors stick to.
    pub handle: u64,
    /// Where it goes.
    pub object: ObjectRef,
    /// On whose behalf, and who waits for the answer.
    pub caller: Caller,
    /// First byte; of no meaning for an append.
    pub offset: u64,
    /// The bytes.
    pub data: Bytes,
    /// How it is written.
    pub flags: WriteFlags,
    /// When the caller is answered.
    pub answered: Answered,
    /// Sent in pieces of so many bytes at most; one that is answered with its own result is one piece.
    pub piece_bytes: usize,
    /// Answers the caller.
    pub answer: A,
}

/// A write to send.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    /// The inode.
    pub ino: u64,
    /// Tells the answer to this one from others.
    pub id: PieceId,
    /// The descriptor through which it was written.
    pub handle: u64,
    /// Where it goes.
    pub object: ObjectRef,
    /// On whose behalf; who waits only if the caller is answered with the result.
    pub caller: Caller,
    /// First byte.
    pub offset: u64,
    /// The bytes.
    pub data: Bytes,
    /// How it is written.
    pub flags: WriteFlags,
}

/// Identity of a piece in flight: its first byte, and a number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PieceId {
    start: u64,
    number: u64,
}

/// A change of attributes that comes in. Its caller is answered when it is queued.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Change {
    /// The inode.
    pub ino: u64,
    /// The descriptor that an error sticks to.
    pub handle: u64,
    /// Whose attributes.
    pub object: ObjectRef,
    /// On whose behalf; nobody waits.
    pub caller: Caller,
    /// What changes; never the size.
    pub set: SetAttr,
}

/// A change of attributes to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Setting {
    /// Tells the answer to this one from others.
    pub number: u64,
    /// The change.
    pub change: Change,
}

/// What the driver has to do, in this order.
#[derive(PartialEq, Eq, Debug)]
pub enum Action<A> {
    /// Send the piece; its answer goes into `WriteQueues::answered`.
    Send(Piece),
    /// Send the change of attributes; its answer goes into `WriteQueues::set`.
    Set(Setting),
    /// Answer a caller or waiter: bytes written (0 for a waiter), or an error.
    Answer(A, Result<u32, Errno>),
    /// A write that the kernel believes written has failed: its cached pages of the inode are wrong.
    Invalidate(u64),
}

/// The bytes that an operation touches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    start: u64,
    end: u64,
}

impl Range {
    /// The whole file.
    pub const ALL: Range = Range { start: 0, end: u64::MAX };

    /// `length` bytes from `start`; an empty range touches one byte.
    pub fn new(start: u64, length: u64) -> Range {
        Range { start, end: start.saturating_add(length.max(1)) }
    }

    fn overlaps(&self, other: &Range) -> bool {
        self.start < other.end && other.start < self.end
    }
}

/// Who waits for writes.
pub struct Waiter<A> {
    /// The bytes whose writes are waited for.
    pub range: Range,
    /// The thread that waits, 0 if none does.
    pub pid: u32,
    /// Since when.
    pub since: Instant,
    /// Answers it.
    pub answer: A,
}

/// The queues of all inodes that have writes queued or in flight, and errors not yet reported.
pub struct WriteQueues<A> {
    queues: HashMap<u64, Queue<A>>,
    errors: HashMap<u64, Errno>,
    total_bytes: usize,
    next_number: u64,
}

impl<A> Default for WriteQueues<A> {
    fn default() -> Self {
        WriteQueues { queues: HashMap::new(), errors: HashMap::new(), total_bytes: 0, next_number: 0 }
    }
}

impl<A> WriteQueues<A> {
    /// Takes a write. `now` is when it came.
    pub fn push(&mut self, write: Write<A>, now: Instant) -> Vec<Action<A>> {
        self.next_number += 1;
        let size = write.data.len();
        let mut actions = Vec::with_capacity(2);
        let ino = write.ino;
        let queue = self.queues.entry(ino).or_insert_with(|| Queue::new(ino));
        let before = queue.bytes();
        let answer = queue.push(write, self.next_number);
        queue.send_ready(&mut actions);
        self.total_bytes = self.total_bytes + queue.bytes() - before;
        if let Some((answer, pid)) = answer {
            if queue.is_full() || self.total_bytes > TOTAL_BYTES {
                queue.withhold(answer, size as u32, pid, now);
            } else {
                actions.push(Action::Answer(answer, Ok(size as u32)));
            }
        }
        actions
    }

    /// Takes a change of attributes behind the writes of its inode; `None` if there is no room for it.
    pub fn change(&mut self, change: Change) -> Option<Vec<Action<A>>> {
        let ino = change.ino;
        let queue = self.queues.entry(ino).or_insert_with(|| Queue::new(ino));
        if queue.is_full() {
            return None;
        }
        self.next_number += 1;
        let mut actions = Vec::new();
        queue.change(Change { caller: change.caller.unattended(), ..change }, self.next_number);
        queue.send_ready(&mut actions);
        Some(actions)
    }

    /// A piece was answered.
    pub fn answered(&mut self, ino: u64, id: PieceId, result: Result<u32, Errno>) -> Vec<Action<A>> {
        self.on_answer(ino, |queue, actions| queue.answered(id, result, actions))
    }

    /// A change of attributes was answered.
    pub fn set(&mut self, ino: u64, number: u64, result: Result<(), Errno>) -> Vec<Action<A>> {
        self.on_answer(ino, |queue, _| queue.set(number, result))
    }

    fn on_answer(
        &mut self,
        ino: u64,
        take: impl FnOnce(&mut Queue<A>, &mut Vec<Action<A>>) -> Option<Errno>,
    ) -> Vec<Action<A>> {
        let Some(queue) = self.queues.get_mut(&ino) else { return Vec::new() };
        let mut actions = Vec::new();
        let before = queue.bytes();
        let failure = take(queue, &mut actions);
        self.total_bytes = self.total_bytes + queue.bytes() - before;
        if let Some(errno) = failure {
            for handle in queue.handles() {
                self.errors.entry(*handle).or_insert(errno);
            }
            actions.push(Action::Invalidate(ino));
        }
        queue.send_ready(&mut actions);
        queue.answer_waiters(self.total_bytes <= TOTAL_BYTES, &mut actions);
        if queue.is_empty() {
            self.queues.remove(&ino);
        }
        actions
    }

    /// Waits for the writes of the inode that are queued now and touch the range: answered `Ok(0)` then,
    /// here if that is now.
    pub fn wait(&mut self, ino: u64, waiter: Waiter<A>) -> Vec<Action<A>> {
        let next_number = self.next_number + 1;
        let Some(queue) = self.queues.get_mut(&ino).filter(|queue| queue.is_busy(&waiter.range, next_number)) else {
            return vec![Action::Answer(waiter.answer, Ok(0))];
        };
        queue.wait(waiter, next_number);
        let mut actions = Vec::new();
        queue.send_ready(&mut actions); // nothing is held back from who waits
        actions
    }

    /// Whether the inode has writes queued or in flight.
    pub fn is_busy(&self, ino: u64) -> bool {
        self.queues.contains_key(&ino)
    }

    /// The inodes that have writes queued or in flight.
    pub fn busy(&self) -> impl Iterator<Item = u64> + '_ {
        self.queues.keys().copied()
    }

    /// Sends what the inode has queued as far as it may go now.
    pub fn send_queued(&mut self, ino: u64) -> Vec<Action<A>> {
        let mut actions = Vec::new();
        if let Some(queue) = self.queues.get_mut(&ino) {
            queue.send_all_ready(&mut actions);
        }
        actions
    }

    /// A piece was put on the stream: a change of attributes that waited for that may follow.
    pub fn submitted(&mut self, ino: u64, id: PieceId) -> Vec<Action<A>> {
        self.on_submitted(ino, |queue| queue.submitted(id))
    }

    /// A change of attributes was put on the stream: writes that came after it may follow.
    pub fn set_submitted(&mut self, ino: u64, number: u64) -> Vec<Action<A>> {
        self.on_submitted(ino, |queue| queue.set_submitted(number))
    }

    fn on_submitted(&mut self, ino: u64, note: impl FnOnce(&mut Queue<A>)) -> Vec<Action<A>> {
        let mut actions = Vec::new();
        if let Some(queue) = self.queues.get_mut(&ino) {
            note(queue);
            if queue.has_changes() {
                queue.send_ready(&mut actions);
            }
        }
        actions
    }

    /// Whether all that the inode has queued is on the stream: what is submitted from now on comes behind it.
    pub fn is_sent(&self, ino: u64) -> bool {
        self.queues.get(&ino).is_none_or(Queue::is_sent)
    }

    /// Sends small writes that are held back to be merged.
    pub fn send_held(&mut self) -> Vec<Action<A>> {
        let mut actions = Vec::new();
        for queue in self.queues.values_mut() {
            queue.send_all_ready(&mut actions);
        }
        actions
    }

    /// Takes the error that a descriptor has to report.
    pub fn take_error(&mut self, handle: u64) -> Option<Errno> {
        self.errors.remove(&handle)
    }

    /// A descriptor is gone: what it had to report and nobody asked for.
    pub fn forget_handle(&mut self, ino: u64, handle: u64) -> Option<Errno> {
        if let Some(queue) = self.queues.get_mut(&ino) {
            queue.forget_handle(handle);
        }
        self.errors.remove(&handle)
    }

    /// The threads that have waited since `before` or longer, for writes or for room.
    pub fn waiting_pids(&self, before: Instant) -> Vec<u32> {
        let mut pids: Vec<u32> = self.queues.values().flat_map(|queue| queue.waiting_pids(before)).collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Ends the waiting of these threads with EINTR. A write that only waits for room is queued and says
    /// so; one that waits for its own result and has not been sent never will be.
    pub fn interrupt(&mut self, pids: &[u32]) -> Vec<Action<A>> {
        let mut actions = Vec::new();
        for queue in self.queues.values_mut() {
            let before = queue.bytes();
            queue.interrupt(pids, &mut actions);
            self.total_bytes = self.total_bytes + queue.bytes() - before;
            queue.send_ready(&mut actions);
            queue.answer_waiters(self.total_bytes <= TOTAL_BYTES, &mut actions);
        }
        self.queues.retain(|_, queue| !queue.is_empty());
        actions
    }
}
