//! The window, overlaps, merging, waiters, errors and interruption of the write-behind queues.

mod changes;

use super::*;
use brickfs_common::ids::{Gfid, SetId};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use std::collections::VecDeque;

const INO: u64 = 7;

struct Rig {
    queues: WriteQueues<&'static str>,
    in_flight: Vec<Piece>,
    settings: Vec<Setting>,
    answers: Vec<(&'static str, Result<u32, Errno>)>,
    invalidated: usize,
}

fn write(handle: u64, offset: u64, size: usize, answer: &'static str) -> Write<&'static str> {
    Write {
        ino: INO,
        handle,
        object: ObjectRef { gfid: Gfid::ROOT, home: SetId(0) },
        caller: Caller { uid: 0, gid: 0, pid: handle as u32 },
        offset,
        data: Bytes::from(vec![handle as u8; size]),
        flags: WriteFlags::default(),
        answered: Answered::Queued,
        piece_bytes: usize::MAX,
        answer,
    }
}

fn through(write: Write<&'static str>) -> Write<&'static str> {
    Write { answered: Answered::Done, ..write }
}

impl Rig {
    fn new() -> Rig {
        Rig {
            queues: WriteQueues::default(),
            in_flight: Vec::new(),
            settings: Vec::new(),
            answers: Vec::new(),
            invalidated: 0,
        }
    }

    /// Does what a driver does: what is to be sent is on the stream then.
    fn act(&mut self, actions: Vec<Action<&'static str>>) {
        let mut actions = VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Send(piece) => {
                    actions.extend(self.queues.submitted(INO, piece.id));
                    self.in_flight.push(piece);
                }
                Action::Set(setting) => {
                    actions.extend(self.queues.set_submitted(INO, setting.number));
                    self.settings.push(setting);
                }
                Action::Answer(who, result) => self.answers.push((who, result)),
                Action::Invalidate(ino) => {
                    assert_eq!(ino, INO);
                    self.invalidated += 1;
                }
            }
        }
    }

    fn push(&mut self, write: Write<&'static str>) {
        let actions = self.queues.push(write, Instant::now());
        self.act(actions);
    }

    fn wait(&mut self, range: Range, answer: &'static str) {
        let actions = self.queues.wait(INO, Waiter { range, pid: 99, since: Instant::now(), answer });
        self.act(actions);
    }

    /// The brick answers the piece at this place of the list of those in flight.
    fn brick_answers(&mut self, index: usize, result: Result<u32, Errno>) {
        let piece = self.in_flight.remove(index);
        let actions = self.queues.answered(INO, piece.id, result);
        self.act(actions);
    }

    fn offsets(&self) -> Vec<(u64, usize)> {
        self.in_flight.iter().map(|piece| (piece.offset, piece.data.len())).collect()
    }

    fn take_answers(&mut self) -> Vec<(&'static str, Result<u32, Errno>)> {
        std::mem::take(&mut self.answers)
    }
}

#[test]
fn a_large_write_goes_in_pieces_where_it_should_and_counts_as_one() {
    let mut rig = Rig::new();
    let (k, size) = (CROWDED_PIECE_BYTES, 2 * CROWDED_PIECE_BYTES + 3);
    let at = |piece: usize| (piece * k) as u64;
    rig.push(Write { piece_bytes: k, ..write(1, 0, size, "a") });
    assert_eq!((rig.offsets(), rig.take_answers()), (vec![(0, k), (at(1), k)], vec![("a", Ok(size as u32))]));
    rig.wait(Range::ALL, "flush");
    assert_eq!(rig.offsets(), [(0, k), (at(1), k), (at(2), 3)], "the small rest is held back no longer");
    rig.brick_answers(1, Ok(k as u32));
    rig.brick_answers(1, Err(Errno::ENOSPC));
    assert!(rig.take_answers().is_empty());
    rig.brick_answers(0, Ok(k as u32));
    assert_eq!(rig.take_answers(), [("flush", Ok(0))]);
    assert_eq!((rig.queues.take_error(1), rig.invalidated), (Some(Errno::ENOSPC), 1));
    assert!(!rig.queues.is_busy(INO));
    rig.push(through(Write { piece_bytes: k, ..write(1, 0, size, "b") }));
    assert_eq!(rig.offsets(), [(0, size)], "answered with its own result");
}

#[test] // PROTOCOL 32
fn what_a_thread_still_has_in_hand_is_not_on_the_stream() {
    let mut queues = WriteQueues::default();
    let mut pieces = Vec::new();
    for action in queues.push(write(1, 0, 10, "w"), Instant::now()) {
        if let Action::Send(piece) = action {
            pieces.push(piece);
        }
    }
    queues.push(write(1, 10, 10, "held back"), Instant::now());
    assert!(!queues.is_sent(INO));
    queues.submitted(INO, pieces[0].id);
    assert!(!queues.is_sent(INO), "one is held back");
    let held: Vec<PieceId> = queues
        .send_queued(INO)
        .into_iter()
        .filter_map(|action| match action {
            Action::Send(piece) => Some(piece.id),
            _ => None,
        })
        .collect();
    assert!(held.len() == 1 && !queues.is_sent(INO), "it was taken and may not be on the stream");
    queues.submitted(INO, held[0]);
    assert!(queues.is_sent(INO));
    queues.answered(INO, pieces[0].id, Ok(10));
    queues.answered(INO, held[0], Ok(10));
    queues.submitted(INO, held[0]);
    assert!(queues.is_sent(INO) && !queues.is_busy(INO), "it was answered before the thread came to say so");
}

#[test] // PROTOCOL 32
fn a_write_is_sent_before_its_caller_is_answered() {
    let mut queues = WriteQueues::default();
    let actions = queues.push(write(1, 0, 10, "w"), Instant::now());
    assert!(matches!(&actions[..], [Action::Send(_), Action::Answer("w", Ok(10))]));
}

#[test] // PROTOCOL 32
fn overlapping_writes_are_never_in_flight_together() {
    let mut rig = Rig::new();
    rig.push(write(1, 0, 100, "a"));
    rig.push(write(2, 50, 100, "b"));
    rig.push(write(3, 120, 10, "c overlaps only the one that waits"));
    rig.push(write(4, 500, 10, "d"));
    assert_eq!(rig.offsets(), [(0, 100), (500, 10)]);
    assert_eq!(rig.take_answers().len(), 4, "all are queued");
    rig.brick_answers(0, Ok(100));
    assert_eq!(rig.offsets(), [(500, 10), (50, 100)]);
    rig.brick_answers(1, Ok(100));
    assert_eq!(rig.offsets(), [(500, 10), (120, 10)]);
}

#[test]
fn beyond_the_window_answers_are_withheld_until_there_is_room() {
    let mut rig = Rig::new();
    let size = WINDOW_BYTES / 4;
    for index in 0..4 {
        rig.push(write(1, index * size as u64, size, "in"));
    }
    assert_eq!(rig.take_answers().len(), 4);
    rig.push(write(1, 4 * size as u64, size, "out"));
    assert!(rig.take_answers().is_empty());
    assert_eq!(rig.in_flight.len(), 5, "sent all the same");
    rig.brick_answers(0, Ok(size as u32));
    assert_eq!(rig.take_answers(), [("out", Ok(size as u32))]);
}

#[test]
fn all_inodes_together_have_a_bound() {
    let mut queues = WriteQueues::default();
    let mut answered = 0;
    let mut pieces = Vec::new();
    for ino in 0..20 {
        let big = Write { ino, ..write(1, 0, WINDOW_BYTES / 2, "w") };
        for action in queues.push(big, Instant::now()) {
            match action {
                Action::Send(piece) => pieces.push(piece),
                _ => answered += 1,
            }
        }
    }
    assert_eq!(answered, 16);
    for piece in pieces {
        let actions = queues.answered(piece.ino, piece.id, Ok(0));
        answered += actions.len();
    }
    assert_eq!((answered, queues.total_bytes, queues.queues.len()), (20, 0, 0));
}

#[test]
fn small_writes_that_follow_are_merged_while_one_is_in_flight() {
    let mut rig = Rig::new();
    for index in 0..5 {
        rig.push(write(1, index * 10, 10, "w"));
    }
    rig.push(write(1, 25, 10, "over what waits"));
    assert_eq!(rig.offsets(), [(0, 10)]);
    rig.brick_answers(0, Ok(10));
    assert_eq!(rig.offsets(), [(10, 40)]);
    rig.push(write(2, 50, 10, "another descriptor is not merged"));
    rig.push(write(1, 60, 10, "nor this one"));
    rig.wait(Range::ALL, "fsync");
    assert_eq!(rig.offsets(), [(10, 40), (50, 10), (60, 10)], "nothing is held back from who waits");
    for _ in 0..3 {
        assert!(!rig.answers.contains(&("fsync", Ok(0))));
        rig.brick_answers(0, Ok(0));
    }
    assert!(rig.answers.contains(&("fsync", Ok(0))));
    assert!(!rig.queues.is_busy(INO));
}

#[test]
fn a_waiter_waits_for_what_was_queued_before_it_and_touches_its_range() {
    let mut rig = Rig::new();
    rig.wait(Range::ALL, "nothing to wait for");
    assert_eq!(rig.take_answers(), [("nothing to wait for", Ok(0))]);
    rig.push(write(1, 0, 100, "w"));
    rig.push(write(1, 1000, 100, "w"));
    rig.take_answers();
    rig.wait(Range::new(500, 10), "read elsewhere");
    assert_eq!(rig.take_answers(), [("read elsewhere", Ok(0))]);
    rig.wait(Range::new(1050, 10), "read");
    rig.wait(Range::ALL, "stat");
    rig.push(write(1, 5000, 100, "later"));
    rig.take_answers();
    rig.brick_answers(1, Ok(100));
    assert_eq!(rig.take_answers(), [("read", Ok(0))]);
    rig.brick_answers(0, Ok(100));
    assert_eq!(rig.take_answers(), [("stat", Ok(0))], "it does not wait for the later write");
}

#[test] // PROTOCOL 32
fn an_error_is_reported_once_on_each_descriptor_that_had_writes_queued() {
    let mut rig = Rig::new();
    rig.push(write(1, 0, 10, "w"));
    rig.push(write(2, 1000, 10, "w"));
    rig.push(through(write(3, 2000, 10, "sees its own result")));
    rig.brick_answers(0, Err(Errno::ENOSPC));
    assert_eq!(rig.invalidated, 1);
    assert_eq!(rig.queues.take_error(1), Some(Errno::ENOSPC));
    assert_eq!(rig.queues.take_error(1), None);
    assert_eq!(rig.queues.take_error(3), None);
    rig.brick_answers(0, Err(Errno::EIO));
    assert_eq!(rig.queues.take_error(2), Some(Errno::ENOSPC), "the first one");
    assert_eq!(rig.queues.take_error(1), Some(Errno::EIO));
    rig.brick_answers(0, Err(Errno::EFBIG));
    assert_eq!(rig.answers.last(), Some(&("sees its own result", Err(Errno::EFBIG))));
    assert_eq!(rig.invalidated, 2);
}

#[test]
fn a_descriptor_that_is_gone_leaves_nothing_behind() {
    let mut rig = Rig::new();
    rig.push(write(1, 0, 10, "w"));
    rig.push(write(2, 100, 10, "w"));
    assert_eq!(rig.queues.forget_handle(INO, 1), None);
    rig.brick_answers(0, Err(Errno::EIO));
    assert_eq!(rig.queues.errors.len(), 1);
    assert_eq!(rig.queues.forget_handle(INO, 2), Some(Errno::EIO));
    rig.brick_answers(0, Ok(10));
    assert!(rig.queues.errors.is_empty() && rig.queues.queues.is_empty());
}

#[test] // PROTOCOL 31
fn an_append_is_alone_and_answered_with_its_result() {
    let mut rig = Rig::new();
    let append = |answer| {
        let flags = WriteFlags { append: true, ..WriteFlags::default() };
        through(Write { flags, ..write(2, 0, 10, answer) })
    };
    rig.push(write(1, 5000, 10, "w"));
    rig.push(append("first"));
    rig.push(append("second"));
    rig.push(write(1, 90, 10, "w"));
    assert_eq!(rig.offsets(), [(5000, 10)]);
    rig.take_answers();
    rig.brick_answers(0, Ok(10));
    assert_eq!(rig.in_flight.len(), 1);
    rig.brick_answers(0, Ok(10));
    assert_eq!(rig.take_answers(), [("first", Ok(10))]);
    rig.brick_answers(0, Err(Errno::EIO));
    assert_eq!(rig.take_answers(), [("second", Err(Errno::EIO))]);
    assert_eq!(rig.offsets(), [(90, 10)]);
    assert_eq!(rig.queues.take_error(2), None);
}

#[test]
fn a_signal_ends_waiting_but_no_write_that_was_answered() {
    let mut rig = Rig::new();
    let size = WINDOW_BYTES + 1;
    rig.push(write(5, 0, size, "queued"));
    rig.push(through(write(6, 10, 10, "not sent")));
    rig.wait(Range::ALL, "close");
    assert!(rig.answers.is_empty());
    let long_after = Instant::now() + std::time::Duration::from_secs(1);
    assert_eq!(rig.queues.waiting_pids(long_after), [5, 99]);
    assert_eq!(rig.in_flight[0].caller.pid, 0, "no signal ends it");
    let actions = rig.queues.interrupt(&[5, 6, 99]);
    rig.act(actions);
    let mut answers = rig.take_answers();
    answers.sort_by_key(|answer| answer.0);
    let eintr = Err(Errno::EINTR);
    assert_eq!(answers, [("close", eintr), ("not sent", eintr), ("queued", Ok(size as u32))]);
    rig.brick_answers(0, Ok(size as u32));
    assert!(rig.in_flight.is_empty() && rig.queues.queues.is_empty());
    assert_eq!(rig.queues.total_bytes, 0);
}

/// Whatever the order of answers, the file ends as if all writes had been done one after the other.
#[test]
fn the_file_ends_as_the_writes_came() {
    for seed in 0..300 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut rig = Rig::new();
        let (mut expected, mut brick) = (vec![0u8; 512], vec![0u8; 512]);
        for step in 0..60u8 {
            let (start, size) = (rng.random_range(0..400), rng.random_range(1..100));
            let data = vec![step + 1; size];
            expected[start..start + size].copy_from_slice(&data);
            let mut next = write(rng.random_range(1..3), start as u64, size, "w");
            next.data = Bytes::from(data);
            rig.push(if rng.random_bool(0.2) { through(next) } else { next });
            while rng.random_bool(0.4) && !rig.in_flight.is_empty() {
                apply_one(&mut rig, &mut rng, &mut brick);
            }
        }
        rig.wait(Range::ALL, "drained");
        while !rig.in_flight.is_empty() {
            apply_one(&mut rig, &mut rng, &mut brick);
        }
        assert_eq!(rig.answers.last(), Some(&("drained", Ok(0))), "seed {seed}");
        assert_eq!(brick, expected, "seed {seed}");
        assert_eq!((rig.queues.total_bytes, rig.answers.len()), (0, 61), "seed {seed}");
    }
}

/// The brick applies and answers any one of the pieces in flight: their order is not known.
fn apply_one(rig: &mut Rig, rng: &mut StdRng, brick: &mut [u8]) {
    let ranges: Vec<Range> = rig.in_flight.iter().map(|p| Range::new(p.offset, p.data.len() as u64)).collect();
    for (index, range) in ranges.iter().enumerate() {
        assert!(ranges[index + 1..].iter().all(|other| !other.overlaps(range)));
    }
    let index = rng.random_range(0..rig.in_flight.len());
    let piece = &rig.in_flight[index];
    brick[piece.offset as usize..][..piece.data.len()].copy_from_slice(&piece.data);
    let count = piece.data.len() as u32;
    rig.brick_answers(index, Ok(count));
}
