//! Open files that `brickd` passes to a client of its own machine, beside the replies of a session (SCM_RIGHTS,
//! unix(7)): what a program reads then comes from the brick's file itself, without a round trip.
//!
//! The files of a connection are numbered from 1 in the order in which they are passed, and a reply names the
//! number of its file. A file goes with the next bytes that are written after it, so it has arrived when its reply is
//! read. Only who asks for a file gets one, only open for reading, and only over a Unix socket.

use std::collections::VecDeque;
use std::io::{self, ErrorKind::WouldBlock};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Most files that go with one write: fewer than SCM_MAX_FD (253).
pub const PASSED_MAX: usize = 64;

/// Files that wait for the next bytes of a connection.
#[derive(Default, Debug)]
pub struct Outbox(Mutex<Waiting>);

#[derive(Default, Debug)]
struct Waiting {
    files: Vec<OwnedFd>,
    /// Number of the last file.
    last: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Outbox {
    /// Has a file go with the next bytes. Answers its number; none if too many wait.
    pub fn pass(&self, file: OwnedFd) -> Option<u64> {
        let mut waiting = lock(&self.0);
        if waiting.files.len() >= PASSED_MAX {
            return None;
        }
        waiting.files.push(file);
        waiting.last += 1;
        Some(waiting.last)
    }

    /// Writes bytes with all files that wait. They go on waiting if there is no room for the bytes; the write must not
    /// block.
    pub(crate) fn send(&self, write: impl FnOnce(&[OwnedFd]) -> io::Result<usize>) -> io::Result<usize> {
        let mut waiting = lock(&self.0);
        let written = write(&waiting.files);
        if !waiting.files.is_empty() && written.as_ref().map_or_else(|e| e.kind() != WouldBlock, |_| true) {
            waiting.files.clear();
        }
        written
    }
}

/// Files that have come over a connection and whose replies have not been read.
#[derive(Default)]
pub struct Inbox(Mutex<Arrived>);

#[derive(Default)]
struct Arrived {
    files: VecDeque<OwnedFd>,
    /// Files that came before the first of these.
    before: u64,
    /// Some were lost on the way: no number is certain.
    is_lost: bool,
}

impl Inbox {
    /// Files came with what was read.
    pub(crate) fn received(&self, files: impl IntoIterator<Item = OwnedFd>) {
        let mut arrived = lock(&self.0);
        arrived.files.extend(files);
        // Nobody asked for so many.
        while arrived.files.len() > 2 * PASSED_MAX {
            arrived.files.pop_front();
            arrived.before += 1;
        }
    }

    /// It is not known how many files came: none is taken from now on.
    pub(crate) fn lost_count(&self) {
        let mut arrived = lock(&self.0);
        arrived.is_lost = true;
        arrived.files.clear();
    }

    /// The file of a number. Those before it are closed.
    pub fn take(&self, number: u64) -> Option<OwnedFd> {
        let mut arrived = lock(&self.0);
        if arrived.is_lost {
            arrived.files.clear();
            return None;
        }
        while arrived.before + 1 < number && arrived.files.pop_front().is_some() {
            arrived.before += 1;
        }
        if arrived.before + 1 != number {
            return None;
        }
        let file = arrived.files.pop_front()?;
        arrived.before = number;
        Some(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> OwnedFd {
        std::fs::File::open("/").unwrap().into()
    }

    #[test]
    fn files_wait_in_their_order_and_no_more_than_go_at_once() {
        let outbox = Outbox::default();
        let numbers: Vec<Option<u64>> = (0..=PASSED_MAX).map(|_| outbox.pass(file())).collect();
        assert_eq!((numbers[0], numbers[PASSED_MAX - 1], numbers[PASSED_MAX]), (Some(1), Some(64), None));
        let full = outbox.send(|files| {
            assert_eq!(files.len(), PASSED_MAX);
            Err(WouldBlock.into())
        });
        assert!(full.is_err() && outbox.pass(file()).is_none());
        outbox.send(|files| Ok(files.len())).unwrap();
        assert_eq!((outbox.pass(file()), outbox.send(|files| Ok(files.len())).unwrap()), (Some(65), 1));
        assert_eq!(outbox.send(|files| Ok(files.len())).unwrap(), 0);
    }

    #[test]
    fn a_file_is_taken_by_its_number_once() {
        let inbox = Inbox::default();
        inbox.received((0..4).map(|_| file()));
        assert!(inbox.take(2).is_some());
        assert!(inbox.take(1).is_none() && inbox.take(2).is_none() && inbox.take(9).is_none(), "closed, and not there");
        inbox.received((0..2 * PASSED_MAX + 3).map(|_| file()));
        assert_eq!(lock(&inbox.0).files.len(), 2 * PASSED_MAX, "bounded");
    }

    #[test]
    fn after_a_loss_no_number_is_trusted() {
        let inbox = Inbox::default();
        inbox.received((0..2).map(|_| file()));
        inbox.lost_count();
        inbox.received((0..2).map(|_| file()));
        assert!(inbox.take(1).is_none() && inbox.take(3).is_none());
        assert!(lock(&inbox.0).files.is_empty());
    }
}
