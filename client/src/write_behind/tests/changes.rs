//! Changes of attributes between writes: their place on the stream, merging, waiters and errors.

use super::*;

fn change(handle: u64, perm: u32) -> Change {
    Change {
        ino: INO,
        handle,
        object: ObjectRef { gfid: Gfid::ROOT, home: SetId(0) },
        caller: Caller { uid: 0, gid: 0, pid: 3 },
        set: SetAttr { perm: Some(perm), ..SetAttr::default() },
    }
}

fn owner(handle: u64) -> Change {
    let set = SetAttr { uid: Some(5), gid: Some(5), ..SetAttr::default() };
    Change { set, ..change(handle, 0) }
}

impl Rig {
    fn change(&mut self, change: Change) {
        let actions = self.queues.change(change).expect("there is room");
        self.act(actions);
    }

    fn brick_sets(&mut self, result: Result<(), Errno>) {
        let setting = self.settings.remove(0);
        let actions = self.queues.set(INO, setting.number, result);
        self.act(actions);
    }
}

#[test]
fn changes_are_merged_while_something_is_unanswered_and_sent_for_who_waits() {
    let mut rig = Rig::new();
    rig.push(write(1, 0, 100, "w"));
    rig.take_answers();
    rig.change(owner(1));
    rig.change(change(1, 0o4755));
    assert!(rig.settings.is_empty(), "it may grow");
    rig.wait(Range::new(500, 10), "read");
    assert_eq!(rig.take_answers(), [("read", Ok(0))], "it changes no bytes");
    rig.wait(Range::ALL, "close");
    let sent = rig.settings[0].change;
    assert_eq!(sent.set, SetAttr { perm: Some(0o4755), ..owner(1).set }, "one call");
    assert_eq!((sent.caller.pid, rig.settings.len()), (0, 1), "no signal ends it");
    rig.brick_answers(0, Ok(100));
    assert!(rig.take_answers().is_empty());
    rig.brick_sets(Ok(()));
    assert_eq!(rig.take_answers(), [("close", Ok(0))]);
    assert!(!rig.queues.is_busy(INO));
}

#[test]
fn a_change_that_is_alone_goes_at_once_and_the_next_when_it_is_answered() {
    let mut rig = Rig::new();
    rig.change(change(1, 0o600));
    rig.change(change(1, 0o640));
    assert_eq!(rig.settings.len(), 1);
    rig.brick_sets(Ok(()));
    assert_eq!(rig.settings[0].change.set.perm, Some(0o640));
    assert!(rig.queues.is_sent(INO));
    rig.brick_sets(Ok(()));
    assert!(rig.queues.queues.is_empty());
}

#[test]
fn what_cannot_be_one_change_is_sent_in_its_order() {
    let mut rig = Rig::new();
    rig.push(write(1, 0, 100, "w"));
    rig.change(change(1, 0o4755));
    rig.change(owner(1)); // takes setuid away
    rig.change(change(2, 0o600)); // another descriptor reports its error
    rig.wait(Range::ALL, "close");
    let sent: Vec<_> = rig.settings.iter().map(|setting| (setting.change.handle, setting.change.set)).collect();
    let expected = [change(1, 0o4755), owner(1), change(2, 0o600)];
    assert_eq!(sent, expected.map(|change| (change.handle, change.set)));
}

#[test] // PROTOCOL 32
fn a_write_is_not_merged_into_one_that_came_before_a_change() {
    let mut rig = Rig::new();
    rig.push(write(1, 0, 10, "sent"));
    rig.push(write(1, 10, 10, "held back"));
    rig.change(change(1, 0o600));
    rig.push(write(1, 20, 10, "after"));
    assert_eq!((rig.offsets(), rig.settings.len()), (vec![(0, 10), (10, 10)], 1));
    rig.wait(Range::ALL, "close");
    assert_eq!(rig.offsets(), [(0, 10), (10, 10), (20, 10)]);
}

#[test] // PROTOCOL 32
fn what_a_thread_still_has_in_hand_is_overtaken_by_nothing() {
    let mut queues: WriteQueues<&str> = WriteQueues::default();
    let sent = |actions: &[Action<&str>]| actions.iter().filter(|a| !matches!(a, Action::Answer(..))).count();
    let first = queues.push(write(1, 0, 10, "w"), Instant::now());
    let Some(Action::Send(piece)) = first.first() else { panic!("it overlaps nothing") };
    queues.wait(INO, Waiter { range: Range::ALL, pid: 0, since: Instant::now(), answer: "close" });
    assert_eq!(sent(&queues.change(change(1, 0o600)).unwrap()), 0, "the write is not on the stream yet");
    let second = queues.submitted(INO, piece.id);
    let [Action::Set(setting)] = &second[..] else { panic!("now it is") };
    assert_eq!(sent(&queues.push(write(1, 100, 10, "later"), Instant::now())), 0, "the change is not");
    assert!(!queues.is_sent(INO));
    let third = queues.set_submitted(INO, setting.number);
    assert!(matches!(&third[..], [Action::Send(piece)] if piece.offset == 100));
}

#[test]
fn a_change_that_fails_is_reported_as_a_write_is() {
    let mut rig = Rig::new();
    rig.push(write(2, 0, 10, "w"));
    rig.change(change(1, 0o600));
    rig.brick_answers(0, Ok(10));
    rig.brick_sets(Err(Errno::EROFS));
    assert_eq!((rig.queues.take_error(1), rig.queues.take_error(1)), (Some(Errno::EROFS), None));
    assert_eq!(rig.invalidated, 1);
}

#[test]
fn changes_are_bounded() {
    let mut rig = Rig::new();
    let mut count = 0;
    while let Some(actions) = rig.queues.change(change(count, 0o600)) {
        rig.act(actions);
        count += 1;
    }
    assert!((WINDOW_WRITES as u64..WINDOW_WRITES as u64 + 3).contains(&count), "{count}");
}

/// Threads that each have something in hand: what was answered comes to the stream before what was asked for later,
/// where one of both is a change.
#[test]
fn writes_and_changes_keep_their_order_on_the_stream() {
    for seed in 0..300 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut queues: WriteQueues<u32> = WriteQueues::default();
        let (mut in_hand, mut stream) = (Vec::<VecDeque<Action<u32>>>::new(), Vec::new());
        let (mut open, mut answered_before) = (Vec::new(), HashMap::<u32, Vec<u32>>::new());
        let mut answered = Vec::new();
        for step in 0..40u32 {
            answered_before.insert(step, answered.clone());
            let is_change = rng.random_bool(0.4);
            let actions = if is_change {
                queues.change(change(1, step)).unwrap()
            } else {
                let Write { ino, handle, object, caller, flags, .. } = write(1, 0, 1, "");
                let (offset, data) = (u64::from(step), Bytes::from_static(b"x"));
                let (piece_bytes, answered) = (usize::MAX, Answered::Queued);
                let write =
                    Write { ino, handle, object, caller, flags, offset, data, piece_bytes, answered, answer: step };
                queues.push(write, Instant::now())
            };
            let mut actions = VecDeque::from(actions);
            if is_change {
                actions.push_back(Action::Answer(step, Ok(0)));
            }
            in_hand.push(actions);
            for _ in 0..rng.random_range(0..6) {
                let index = rng.random_range(0..in_hand.len());
                let Some(action) = in_hand[index].pop_front() else { continue };
                let more = match action {
                    Action::Answer(step, _) => {
                        answered.push(step);
                        Vec::new()
                    }
                    Action::Send(piece) => {
                        stream.push((false, piece.offset as u32, piece.data.len() as u32));
                        open.push((Some(piece.id), 0));
                        queues.submitted(INO, piece.id)
                    }
                    Action::Set(setting) => {
                        stream.push((true, setting.change.set.perm.unwrap_or_default(), 0));
                        open.push((None, setting.number));
                        queues.set_submitted(INO, setting.number)
                    }
                    Action::Invalidate(_) => panic!("nothing fails"),
                };
                in_hand[index].extend(more);
            }
            if rng.random_bool(0.3) && !open.is_empty() {
                let more = match open.swap_remove(rng.random_range(0..open.len())) {
                    (Some(id), _) => queues.answered(INO, id, Ok(1)),
                    (None, number) => queues.set(INO, number, Ok(())),
                };
                in_hand.push(more.into());
            }
        }
        check_order(seed, &stream, &answered_before);
    }
}

/// Where a step came to the stream: a write in the piece that has its byte, a change in the first one that is as new.
fn check_order(seed: u64, stream: &[(bool, u32, u32)], answered_before: &HashMap<u32, Vec<u32>>) {
    let write_at = |step: u32| stream.iter().position(|(set, at, len)| !set && (*at..at + len).contains(&step));
    let is_write = |step: u32| write_at(step).is_some();
    let mut checked = 0;
    for (index, (_, newest, _)) in stream.iter().enumerate().filter(|(_, entry)| entry.0) {
        for earlier in answered_before[newest].iter().filter(|step| is_write(**step)) {
            assert!(write_at(*earlier).unwrap() < index, "seed {seed}: write {earlier}, change {newest}");
            checked += 1;
        }
        for later in answered_before.keys().filter(|step| answered_before[step].contains(newest)) {
            if let Some(at) = write_at(*later) {
                assert!(at > index, "seed {seed}: change {newest}, write {later}");
                checked += 1;
            }
        }
    }
    assert!(checked > 0 || stream.len() < 10, "seed {seed}: {stream:?}");
}
