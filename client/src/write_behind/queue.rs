//! The queue of one inode: what waits, what is in flight, who waits for it.

use super::changes::Changes;
use super::{Action, Answered, Change, Piece, PieceId, Range, WINDOW_BYTES, WINDOW_WRITES, Waiter, Write};
use crate::volume::Caller;
use brickfs_common::errno::Errno;
use brickfs_common::fop::{ObjectRef, PIECE_BYTES, WriteFlags};
use bytes::{Bytes, BytesMut};
use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

/// A smaller write that follows one in flight is held back, so that the next ones can be merged into it: at
/// this size a call costs less than its bytes.
const HELD_BYTES: usize = 128 << 10;

/// A write that has not been sent.
struct Waiting<A> {
    number: u64,
    range: Range,
    handle: u64,
    object: ObjectRef,
    caller: Caller,
    offset: u64,
    data: Bytes,
    flags: WriteFlags,
    /// Begins where an earlier one of the queue ends.
    follows: bool,
    /// Answers the caller with the result; `None` if it was answered already.
    answer: Option<A>,
}

impl<A> Waiting<A> {
    /// Keeps the first bytes of a write whose caller is answered; gives the rest.
    fn split_off(&mut self, length: usize) -> Waiting<A> {
        let (data, offset) = (self.data.split_off(length), self.offset + length as u64);
        let range = Range::new(offset, data.len() as u64);
        self.range.end = offset;
        Waiting { range, offset, data, follows: true, answer: None, ..*self }
    }
}

/// A write that has been sent and not answered.
struct Flight<A> {
    number: u64,
    range: Range,
    bytes: usize,
    /// The driver has put it on the stream.
    is_submitted: bool,
    answer: Option<A>,
}

/// An answer withheld until there is room.
struct Withheld<A> {
    answer: A,
    count: u32,
    pid: u32,
    since: Instant,
}

/// See the module.
pub struct Queue<A> {
    ino: u64,
    /// By first byte; they never overlap.
    flights: BTreeMap<u64, Flight<A>>,
    /// In order of arrival.
    waiting: VecDeque<Waiting<A>>,
    changes: Changes,
    withheld: VecDeque<Withheld<A>>,
    /// With the number of the first write that they do not wait for.
    waiters: Vec<(u64, Waiter<A>)>,
    /// Descriptors that had writes answered before they were done, since the queue was last empty.
    handles: Vec<u64>,
    bytes: usize,
}

impl<A> Queue<A> {
    /// The empty queue of an inode.
    pub fn new(ino: u64) -> Queue<A> {
        Queue {
            ino,
            flights: BTreeMap::new(),
            waiting: VecDeque::new(),
            changes: Changes::default(),
            withheld: VecDeque::new(),
            waiters: Vec::new(),
            handles: Vec::new(),
            bytes: 0,
        }
    }

    /// Bytes queued and in flight.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether further writes are answered only when there is room.
    pub fn is_full(&self) -> bool {
        let count = self.flights.len() + self.waiting.len() + self.changes.count();
        self.bytes > WINDOW_BYTES || count > WINDOW_WRITES
    }

    /// Whether nothing is left of it.
    pub fn is_empty(&self) -> bool {
        self.flights.is_empty() && self.waiting.is_empty() && self.changes.count() == 0
    }

    /// Whether all of it is on the stream. Another thread may have a piece in hand.
    pub fn is_sent(&self) -> bool {
        let none_waits = self.waiting.is_empty() && self.changes.next_number().is_none();
        none_waits && self.are_flights_submitted() && self.changes.are_submitted()
    }

    fn are_flights_submitted(&self) -> bool {
        self.flights.values().all(|flight| flight.is_submitted)
    }

    /// Queues a change of attributes.
    pub fn change(&mut self, change: Change, number: u64) {
        if !self.handles.contains(&change.handle) {
            self.handles.push(change.handle);
        }
        let newest_write = self.waiting.back().map_or(0, |waiting| waiting.number);
        let may_merge = self.changes.next_number().is_some_and(|number| newest_write < number);
        self.changes.push(change, number, may_merge);
    }

    /// A change was put on the stream.
    pub fn set_submitted(&mut self, number: u64) {
        self.changes.submitted(number);
    }

    /// A change was answered; gives back the error that sticks to the descriptors.
    pub fn set(&mut self, number: u64, result: Result<(), Errno>) -> Option<Errno> {
        if self.changes.answered(number) { result.err() } else { None }
    }

    /// Whether changes are queued and not answered: they, or writes behind them, may wait for what is put on the stream.
    pub fn has_changes(&self) -> bool {
        self.changes.count() > 0
    }

    /// A piece was put on the stream; it may have been answered already.
    pub fn submitted(&mut self, id: PieceId) {
        if let Some(flight) = self.flights.get_mut(&id.start).filter(|flight| flight.number == id.number) {
            flight.is_submitted = true;
        }
    }

    /// The descriptors that an error sticks to.
    pub fn handles(&self) -> &[u64] {
        &self.handles
    }

    /// Forgets a descriptor.
    pub fn forget_handle(&mut self, handle: u64) {
        self.handles.retain(|known| *known != handle);
    }

    /// Queues a write; gives back the answer that is due now, with who waits for it.
    pub fn push(&mut self, write: Write<A>, number: u64) -> Option<(A, u32)> {
        let (pid, is_behind) = (write.caller.pid, write.answered == Answered::Queued);
        if is_behind && !self.handles.contains(&write.handle) {
            self.handles.push(write.handle);
        }
        let size = write.data.len();
        if is_behind && self.merge(&write) {
            return Some((write.answer, pid));
        }
        self.bytes += size;
        let piece_bytes = if is_behind { write.piece_bytes.max(1) } else { size.max(1) };
        let (answer, due) = if is_behind { (None, Some((write.answer, pid))) } else { (Some(write.answer), None) };
        let mut waiting = Waiting {
            number,
            range: if write.flags.append { Range::ALL } else { Range::new(write.offset, size as u64) },
            handle: write.handle,
            object: write.object,
            // Who was answered is not waiting: no signal ends this write.
            caller: if is_behind { write.caller.unattended() } else { write.caller },
            offset: write.offset,
            data: write.data,
            flags: write.flags,
            follows: is_behind && self.ends_at(write.offset),
            answer,
        };
        while waiting.data.len() > piece_bytes {
            let rest = waiting.split_off(piece_bytes);
            self.waiting.push_back(std::mem::replace(&mut waiting, rest));
        }
        self.waiting.push_back(waiting);
        due
    }

    /// Whether a write of the queue ends where one of `offset` begins.
    fn ends_at(&self, offset: u64) -> bool {
        let before = self.flights.range(..offset).next_back();
        before.is_some_and(|(_, flight)| flight.range.end == offset)
            || self.waiting.back().is_some_and(|waiting| waiting.range.end == offset)
    }

    /// Puts the bytes of a write into the newest one that waits, where both are one range of the same
    /// descriptor. Nothing between them can be overtaken: it is the newest.
    fn merge(&mut self, write: &Write<A>) -> bool {
        if self.changes.next_number().is_some() {
            return false; // it came after that write
        }
        let Some(last) = self.waiting.back_mut() else { return false };
        let is_same = last.answer.is_none()
            && last.handle == write.handle
            && last.flags == write.flags
            && last.caller == write.caller.unattended();
        let (old_len, size) = (last.data.len(), write.data.len());
        let touches = write.offset >= last.offset && write.offset <= last.range.end;
        let from = write.offset.saturating_sub(last.offset) as usize;
        let merged_len = old_len.max(from + size);
        if !is_same || !touches || size == 0 || old_len == 0 || merged_len > PIECE_BYTES {
            return false;
        }
        let mut data = BytesMut::from(std::mem::take(&mut last.data));
        data.resize(merged_len, 0);
        data[from..from + size].copy_from_slice(&write.data);
        last.data = data.freeze();
        last.range.end = last.offset + merged_len as u64;
        self.bytes += merged_len - old_len;
        true
    }

    /// Withholds an answer until there is room.
    pub fn withhold(&mut self, answer: A, count: u32, pid: u32, since: Instant) {
        self.withheld.push_back(Withheld { answer, count, pid, since });
    }

    fn conflicts(&self, range: &Range) -> bool {
        let last = self.flights.range(..range.end).next_back();
        last.is_some_and(|(_, flight)| flight.range.overlaps(range))
    }

    /// Sends what overlaps nothing older, but holds small writes back while they may grow.
    pub fn send_ready(&mut self, actions: &mut Vec<Action<A>>) {
        let may_hold = self.waiters.is_empty();
        self.send(may_hold, actions);
    }

    /// Sends what overlaps nothing older.
    pub fn send_all_ready(&mut self, actions: &mut Vec<Action<A>>) {
        self.send(false, actions);
    }

    fn send(&mut self, may_hold: bool, actions: &mut Vec<Action<A>>) {
        if !self.changes.are_submitted() {
            return; // what follows a change must not overtake it on the way to the stream
        }
        self.send_writes(may_hold, self.changes.next_number().unwrap_or(u64::MAX), actions);
        let Some(number) = self.changes.next_number() else { return };
        let is_held = may_hold && self.waiting.is_empty() && (!self.flights.is_empty() || self.changes.is_any_out());
        let is_next = self.waiting.front().is_none_or(|oldest| oldest.number > number) && self.are_flights_submitted();
        if is_next && !is_held {
            self.changes.launch(actions);
        }
    }

    /// Sends writes of numbers below `end`.
    fn send_writes(&mut self, may_hold: bool, end: u64, actions: &mut Vec<Action<A>>) {
        let mut index = 0;
        while let Some(next) = self.waiting.get(index).filter(|next| next.number < end) {
            let is_followed = self.changes.next_number().is_some();
            let is_held =
                may_hold && next.follows && next.data.len() < HELD_BYTES && !self.flights.is_empty() && !is_followed; // nothing is merged into it any more
            let overlaps_older = || self.waiting.iter().take(index).any(|older| older.range.overlaps(&next.range));
            if is_held || self.conflicts(&next.range) || overlaps_older() {
                index += 1;
                continue;
            }
            let Some(next) = self.waiting.remove(index) else { return };
            actions.push(Action::Send(self.launch(next)));
        }
    }

    fn launch(&mut self, next: Waiting<A>) -> Piece {
        let id = PieceId { start: next.range.start, number: next.number };
        let flight = Flight {
            number: next.number,
            range: next.range,
            bytes: next.data.len(),
            is_submitted: false,
            answer: next.answer,
        };
        let met = self.flights.insert(id.start, flight);
        assert!(met.is_none(), "overlapping writes are never in flight together (PROTOCOL 32)");
        Piece {
            ino: self.ino,
            id,
            handle: next.handle,
            object: next.object,
            caller: next.caller,
            offset: next.offset,
            data: next.data,
            flags: next.flags,
        }
    }

    /// A piece was answered; gives back the error that sticks to the descriptors.
    pub fn answered(&mut self, id: PieceId, result: Result<u32, Errno>, actions: &mut Vec<Action<A>>) -> Option<Errno> {
        if self.flights.get(&id.start).is_none_or(|flight| flight.number != id.number) {
            return None;
        }
        let flight = self.flights.remove(&id.start)?;
        self.bytes -= flight.bytes;
        match flight.answer {
            Some(answer) => {
                actions.push(Action::Answer(answer, result));
                None
            }
            None => result.err(),
        }
    }

    /// Whether writes of numbers below `next_number` that touch the range are queued or in flight.
    pub fn is_busy(&self, range: &Range, next_number: u64) -> bool {
        let waits_for = |number: u64, touched: &Range| number < next_number && touched.overlaps(range);
        (*range == Range::ALL && self.changes.is_busy(next_number))
            || self.flights.values().any(|flight| waits_for(flight.number, &flight.range))
            || self.waiting.iter().any(|waiting| waits_for(waiting.number, &waiting.range))
    }

    /// Adds a waiter for what is queued now.
    pub fn wait(&mut self, waiter: Waiter<A>, next_number: u64) {
        self.waiters.push((next_number, waiter));
    }

    /// Answers what there is room for, and the waiters whose writes are done.
    pub fn answer_waiters(&mut self, total_has_room: bool, actions: &mut Vec<Action<A>>) {
        // An empty queue withholds nothing, whatever the others hold: nothing would come to answer it.
        if self.is_empty() || (total_has_room && !self.is_full()) {
            let room = self.withheld.drain(..).map(|held| Action::Answer(held.answer, Ok(held.count)));
            actions.extend(room);
        }
        if self.waiters.is_empty() {
            return;
        }
        let waiters = std::mem::take(&mut self.waiters);
        for (next_number, waiter) in waiters {
            if self.is_busy(&waiter.range, next_number) {
                self.waiters.push((next_number, waiter));
            } else {
                actions.push(Action::Answer(waiter.answer, Ok(0)));
            }
        }
    }

    /// The threads that have waited since `before` or longer.
    pub fn waiting_pids(&self, before: Instant) -> impl Iterator<Item = u32> + '_ {
        let waiters = self.waiters.iter().map(|(_, waiter)| (waiter.pid, waiter.since));
        let withheld = self.withheld.iter().map(|held| (held.pid, held.since));
        waiters.chain(withheld).filter(move |(pid, since)| *pid != 0 && *since <= before).map(|(pid, _)| pid)
    }

    /// Ends the waiting of these threads.
    pub fn interrupt(&mut self, pids: &[u32], actions: &mut Vec<Action<A>>) {
        let is_meant = |pid: u32| pid != 0 && pids.contains(&pid);
        for (next_number, waiter) in std::mem::take(&mut self.waiters) {
            if is_meant(waiter.pid) {
                actions.push(Action::Answer(waiter.answer, Err(Errno::EINTR)));
            } else {
                self.waiters.push((next_number, waiter));
            }
        }
        for held in std::mem::take(&mut self.withheld) {
            if is_meant(held.pid) {
                actions.push(Action::Answer(held.answer, Ok(held.count)));
            } else {
                self.withheld.push_back(held);
            }
        }
        for mut waiting in std::mem::take(&mut self.waiting) {
            match waiting.answer.take_if(|_| is_meant(waiting.caller.pid)) {
                Some(answer) => {
                    self.bytes -= waiting.data.len();
                    actions.push(Action::Answer(answer, Err(Errno::EINTR)));
                }
                None => self.waiting.push_back(waiting),
            }
        }
    }
}
