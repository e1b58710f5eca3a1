//! Write-behind (PROTOCOL 32): one queue for each inode. A write is on its way before the kernel is
//! answered; beyond the window the answer is withheld. An error sticks to every handle that had writes
//! queued and is reported once on each.

use brickfs_common::errno::Errno;
use fuser::ReplyWrite;
use std::collections::{HashMap, VecDeque};

/// Bytes of one inode that may be on their way unanswered.
const WINDOW_BYTES: usize = 16 << 20;

type Waiter = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    in_flight: usize,
    bytes: usize,
    waiters: Vec<Waiter>,
    withheld: VecDeque<(ReplyWrite, u32)>,
    /// Handles with writes in this queue since it was last empty.
    handles: Vec<u64>,
}

/// The queues of all inodes that have writes on their way, and errors not yet reported.
#[derive(Default)]
pub struct WriteBehind {
    queues: HashMap<u64, Queue>,
    errors: HashMap<u64, Errno>,
}

impl WriteBehind {
    /// Counts a write that is about to be sent.
    pub fn queued(&mut self, ino: u64, handle: u64, size: usize) {
        let queue = self.queues.entry(ino).or_default();
        queue.in_flight += 1;
        queue.bytes += size;
        if !queue.handles.contains(&handle) {
            queue.handles.push(handle);
        }
    }

    /// The write was sent: answers the kernel now, or later when the window has room. The queue is gone
    /// where the brick was faster.
    pub fn sent(&mut self, ino: u64, size: usize, reply: ReplyWrite) {
        match self.queues.get_mut(&ino) {
            Some(queue) if queue.bytes > WINDOW_BYTES => queue.withheld.push_back((reply, size as u32)),
            _ => reply.written(size as u32),
        }
    }

    /// A write was answered. What this returns must be run after the lock is released.
    pub fn answered(&mut self, ino: u64, size: usize, result: Result<(), Errno>) -> Vec<Waiter> {
        let Some(queue) = self.queues.get_mut(&ino) else { return Vec::new() };
        queue.in_flight -= 1;
        queue.bytes -= size;
        if let Err(errno) = result {
            for handle in &queue.handles {
                self.errors.insert(*handle, errno);
            }
        }
        if queue.bytes <= WINDOW_BYTES {
            for (reply, size) in queue.withheld.drain(..) {
                reply.written(size);
            }
        }
        if queue.in_flight > 0 {
            return Vec::new();
        }
        self.queues.remove(&ino).map(|queue| queue.waiters).unwrap_or_default()
    }

    /// Runs `waiter` when no write of the inode is on its way: returned if that is now.
    pub fn when_drained(&mut self, ino: u64, waiter: Waiter) -> Option<Waiter> {
        match self.queues.get_mut(&ino) {
            None => Some(waiter),
            Some(queue) => {
                queue.waiters.push(waiter);
                None
            }
        }
    }

    /// Takes the error that a handle has to report.
    pub fn take_error(&mut self, handle: u64) -> Option<Errno> {
        self.errors.remove(&handle)
    }
}
