//! What the callers of a volume and its session share: the calls that wait, the map, the stream.
//!
//! Lock order: `map` and `state` are each held for a few lines; `map` may be taken first, never second. No
//! reply is handed out while either is held.

mod elsewhere;
mod neighbours;
mod wheel;

use crate::lent::Borrowed;
use crate::links::Links;
use crate::locks::{HeldLocks, LockCall};
use crate::opens::{OpenEffect, Opens};
use crate::outgoing::Outgoing;
use crate::pending::{Done, PendingCall, PendingTable};
use crate::polling::Activity;
use crate::signals;
use crate::volume::{Caller, ConnectError, ConnectOptions};
use brickfs_common::cluster::map::VolumeMap;
use brickfs_common::errno::Errno;
use brickfs_common::fop::{CallHeader, FEATURE_LENT_DATA, Fop, FopReply, Hello, ObjectRef, PROTOCOL_VERSION, Welcome};
use brickfs_common::ids::{ClientId, NodeId, SetId};
use brickfs_proto::convert::fops::call_to_wire;
use brickfs_proto::v1::{self, Op};
use neighbours::Neighbours;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use wheel::Wheel;

/// Most calls that wait for answers, or to be sent; above it a call fails at once.
const PENDING_MAX: usize = 65536;
/// A thread that has waited this long is looked after: it may have been sent a signal.
const PATIENCE: Duration = Duration::from_millis(200);
/// How often a call may be sent on: what is where changes while it is on its way.
const HOPS_MAX: u8 = 16;
/// Threads looked at in one tick: each costs two reads of /proc, some 50 us together.
const LOOKS_MAX: usize = 512;

#[derive(Default)]
struct State {
    pending: PendingTable,
    opens: Opens,
    locks: HeldLocks,
    /// The same map as `Shared::map`, for who holds this.
    map: Option<Arc<VolumeMap>>,
    outgoing: Outgoing,
    /// Why there is no session.
    trouble: String,
    /// Since when.
    lost_since: Option<Instant>,
    last_sent: Option<Instant>,
    /// When the last greeting was sent.
    greeted: Option<Instant>,
    /// When the newest call was sent that the node has answered: the lease runs from then on at least.
    confirmed: Option<Instant>,
    lease: Duration,
    /// What the node has passed over this session is not to be read any more.
    are_files_void: bool,
    /// Memory of the node for data on its way, in this session.
    borrowed: Option<Borrowed>,
    wheel: Wheel,
    /// Calls that a set could not run because it could not ask another one: sent again at the next tick.
    later: BTreeSet<u64>,
    /// Since when the wheel has been free.
    free_since: Option<Instant>,
    /// Calls were answered since the wheel was taken.
    has_served: bool,
    is_shut_down: bool,
}

/// Called on the thread that drives the session several times a second; must not block.
pub type OnTick = Box<dyn Fn(Instant) + Send + Sync>;

/// Called with the files of which this client has lost its locks, before any further call is sent; must not block.
pub type OnLocksLost = Box<dyn Fn(&[ObjectRef]) + Send + Sync>;

/// See the file's head.
pub struct Shared {
    pub(crate) options: ConnectOptions,
    /// No call waits any more, or the volume is shut down.
    pub(crate) quiet: Notify,
    /// The wheel was left with calls waiting, or the volume is shut down.
    wheel_left: Condvar,
    pub(crate) activity: Activity,
    client: ClientId,
    /// The node that this is a session with, once it is known: no other one may answer.
    node: OnceLock<NodeId>,
    /// What it said of the others.
    neighbours: Mutex<Neighbours>,
    /// Takes calls that belong to sets of other nodes.
    siblings: OnceLock<Weak<Links>>,
    map: RwLock<Option<Arc<VolumeMap>>>,
    state: Mutex<State>,
    session: AtomicU64,
    ticks: AtomicU64,
    on_tick: OnceLock<OnTick>,
    on_locks_lost: OnceLock<OnLocksLost>,
}

impl Shared {
    pub(crate) fn new(options: ConnectOptions, client: ClientId) -> Shared {
        Shared {
            options,
            quiet: Notify::new(),
            wheel_left: Condvar::new(),
            activity: Activity::new(),
            client,
            node: OnceLock::new(),
            neighbours: Mutex::default(),
            siblings: OnceLock::new(),
            map: RwLock::new(None),
            state: Mutex::new(State::default()),
            session: AtomicU64::new(0),
            ticks: AtomicU64::new(0),
            on_tick: OnceLock::new(),
            on_locks_lost: OnceLock::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn known_map(&self) -> Option<Arc<VolumeMap>> {
        self.map.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Number of the newest session.
    pub(crate) fn session(&self) -> u64 {
        self.session.load(Ordering::Acquire)
    }

    pub(crate) fn set_on_tick(&self, on_tick: OnTick) {
        // A second one is not taken: the volume has one user.
        self.on_tick.set(on_tick).ok();
    }

    pub(crate) fn set_on_locks_lost(&self, on_locks_lost: OnLocksLost) {
        // As above.
        self.on_locks_lost.set(on_locks_lost).ok();
    }

    pub(crate) fn shut_down(&self) {
        self.lock().is_shut_down = true;
        self.quiet.notify_one();
        self.wheel_left.notify_all();
    }

    /// The session, if there is one and the lease is good for a while yet: until two thirds of it are over what is
    /// this machine's may be read without asking (PROTOCOL 16).
    pub(crate) fn session_with_lease(&self, now: Instant) -> Option<u64> {
        let state = self.lock();
        let good = |confirmed| now.saturating_duration_since(confirmed) < state.lease * 2 / 3;
        let may_read = state.outgoing.is_open() && !state.are_files_void && state.confirmed.is_some_and(good);
        may_read.then(|| self.session())
    }

    /// The node wants to be asked for all that is read over this session from now on.
    pub(crate) fn void_files(&self) {
        self.lock().are_files_void = true;
    }

    /// Whether small calls share the stream with bulk.
    pub(crate) fn is_crowded(&self) -> bool {
        self.lock().outgoing.is_crowded()
    }

    /// The next greeting: one session number higher, with all that is open.
    pub(crate) fn hello(&self) -> (u64, v1::Call) {
        let map = self.known_map();
        let mut state = self.lock();
        let session = self.session.fetch_add(1, Ordering::AcqRel) + 1;
        state.outgoing.greet(session);
        state.greeted = Some(Instant::now());
        let hello = Hello {
            protocol_min: PROTOCOL_VERSION,
            protocol_max: PROTOCOL_VERSION,
            features: FEATURE_LENT_DATA,
            cluster: map.as_ref().map(|map| map.cluster),
            volume: self.options.volume.clone(),
            volume_id: map.as_ref().map(|map| map.id),
            client: self.client,
            session,
            open_objects: state.opens.announce(),
            locks: state.locks.announce(),
            lowest_unanswered: state.pending.lowest_unanswered(),
        };
        drop(state);
        self.wake_stream(); // the stream of a greeting that nobody answered ends
        (session, hello.into())
    }

    /// The next call for the stream of a session. Its data may lie in memory that the node has lent.
    pub(crate) fn poll_outgoing(&self, session: u64, cx: &mut Context<'_>) -> Poll<Option<v1::Call>> {
        let (mut call, slot) = {
            let mut state = self.lock();
            let Some(call) = ready!(state.outgoing.poll_next(session, cx)) else { return Poll::Ready(None) };
            let takes = call.op() == Op::Write;
            let borrowed = state.borrowed.as_mut().filter(|_| takes);
            let slot = borrowed.and_then(|borrowed| borrowed.take_slot(call.request, call.data.len()));
            (call, slot)
        };
        if let Some(slot) = slot {
            let data = std::mem::take(&mut call.data);
            slot.fill(&data);
            (call.lent_offset, call.lent_length) = (slot.offset, data.len() as u32);
        }
        Poll::Ready(Some(call))
    }

    /// Lets the stream look for calls. Called by who drives, from within the runtime.
    pub(crate) fn wake_stream(&self) {
        let waker = self.lock().outgoing.take_waker();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The node has greeted, and may have lent memory for data.
    pub(crate) fn welcomed(&self, welcome: &Welcome, borrowed: Option<Borrowed>) -> Result<(), ConnectError> {
        self.note_nodes(welcome)?;
        let map: VolumeMap = serde_json::from_slice(&welcome.map_json)?;
        let map = Some(Arc::new(map));
        self.map.write().unwrap_or_else(PoisonError::into_inner).clone_from(&map);
        {
            let mut state = self.lock();
            state.map = map;
            state.borrowed = borrowed;
            state.lease = Duration::from_millis(u64::from(welcome.lease_ms));
            state.confirmed = state.greeted;
            state.are_files_void = false;
        }
        if welcome.locks_lost {
            self.lose_locks();
        }
        Ok(())
    }

    /// This client was away for longer than its lease: what it would still do under its locks must not happen
    /// (PROTOCOL 16).
    fn lose_locks(&self) {
        let (lost, given_up) = {
            let mut state = self.lock();
            let lost = state.locks.lose_all();
            let given_up = state.pending.take_io_on(&lost);
            for call in given_up.iter().filter_map(|pending| pending.lock.as_ref()) {
                state.locks.answered(call, &FopReply::failed(0, Errno::EIO));
            }
            (lost, given_up)
        };
        let files: Vec<String> = lost.iter().take(8).map(|object| object.gfid.to_string()).collect();
        let volume = &self.options.volume;
        tracing::error!(%volume, count = lost.len(), ?files, "the lease of this client has ended: its locks are lost");
        if let Some(on_locks_lost) = self.on_locks_lost.get() {
            on_locks_lost(&lost);
        }
        answer_all(given_up, Errno::EIO);
    }

    /// Sends all that waits again, in order, and lets new calls follow.
    pub(crate) fn resume(&self) {
        {
            let mut state = self.lock();
            let State { pending, outgoing, trouble, later, .. } = &mut *state;
            outgoing.open(pending.resend().cloned());
            trouble.clear();
            later.clear();
            state.lost_since = None;
        }
        self.wake_stream();
    }

    /// There is no session, and why.
    pub(crate) fn lost_session(&self, trouble: String) {
        {
            let mut state = self.lock();
            state.outgoing.close();
            state.borrowed = None;
            state.trouble = trouble;
            state.lost_since.get_or_insert_with(Instant::now);
        }
        self.wake_stream();
    }

    /// Hands a reply to who waits for it.
    pub(crate) fn finish(self: &Arc<Self>, reply: FopReply) {
        let mut state = self.lock();
        let waker = state.outgoing.answered(reply.request);
        if let Some(borrowed) = &mut state.borrowed {
            borrowed.give_back(reply.request);
        }
        self.hand_out(state, reply);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn hand_out(self: &Arc<Self>, mut state: MutexGuard<'_, State>, reply: FopReply) {
        match state.pending.take(reply.request) {
            Some(pending) if reply.result == Err(Errno::EHOSTDOWN) => {
                state.confirmed = state.confirmed.max(Some(pending.since));
                state.later.insert(reply.request);
                state.pending.insert(pending);
            }
            Some(pending) if reply.go_to.is_some() && pending.hops < HOPS_MAX => {
                state.confirmed = state.confirmed.max(Some(pending.since));
                state.has_served = true;
                if state.pending.due_len() == 0 {
                    self.quiet.notify_one();
                }
                drop(state);
                self.send_on(pending, reply);
            }
            Some(pending) => {
                state.confirmed = state.confirmed.max(Some(pending.since));
                state.opens.answered(pending.open_effect, &reply);
                let to_ask = pending.lock.map_or(Vec::new(), |call| state.locks.answered(&call, &reply));
                if let OpenEffect::Releases(object) = pending.open_effect
                    && !state.opens.is_open(&object.gfid)
                {
                    state.locks.forget_file(&object.gfid);
                }
                state.has_served = true;
                if state.pending.due_len() == 0 {
                    self.quiet.notify_one();
                }
                self.ask_for_locks(state, to_ask);
                (pending.done)(reply);
            }
            None => {
                let opened = state.opens.answered_late(&reply);
                let to_ask = state.locks.answered_late(&reply);
                self.ask_for_locks(state, to_ask);
                if let Some(object) = opened {
                    let fop = Fop::Release { object };
                    self.submit_to(object.home, Caller::default(), fop, Box::new(|_| ()));
                }
            }
        }
    }

    /// Calls about locks that follow from an answer; nothing may come between.
    fn ask_for_locks(&self, mut state: MutexGuard<'_, State>, fops: Vec<Fop>) {
        let mut waker = None;
        for fop in fops {
            let (Fop::Lock { object, .. } | Fop::CancelLock { object, .. }) = &fop else { continue };
            let set = object.home;
            let placed = placed_by(state.map.as_deref(), set);
            let new = NewCall { set, placed, caller: Caller::default(), fop };
            waker = self.push(&mut state, new, None, Box::new(|_| ())).or(waker);
        }
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Fails all calls.
    pub(crate) fn fail_all(&self) {
        let all = self.lock().pending.take_all();
        for pending in all {
            let request = pending.call.request;
            (pending.done)(FopReply::failed(request, Errno::EIO));
        }
    }

    /// Looks after the calls that have waited long, keeps the lease, and lets the volume's user do the same.
    pub(crate) fn tick(self: &Arc<Self>, now: Instant) {
        self.expire(now);
        self.interrupt(now);
        self.send_later();
        self.renew(now);
        if let Some(on_tick) = self.on_tick.get() {
            on_tick(now);
        }
    }

    /// Fails the calls that have waited too long.
    fn expire(&self, now: Instant) {
        let (expired, trouble) = {
            let mut state = self.lock();
            let mut expired = state.pending.take_expired(now);
            let is_long_lost = |since: &Instant| self.options.timeout.is_some_and(|t| *since + t <= now);
            if state.lost_since.as_ref().is_some_and(is_long_lost) {
                expired.extend(state.pending.take_waiting_for_locks());
            }
            let trouble = state.trouble.clone();
            self.abandon(state, &expired);
            (expired, trouble)
        };
        let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
        for pending in &expired {
            *counts.entry(pending.call.set).or_default() += 1;
        }
        let reason = if trouble.is_empty() { "connected, but no answer came in time" } else { &trouble };
        for (set, calls) in counts {
            tracing::warn!(volume = %self.options.volume, set, calls, "operations failed with EIO: {reason}");
        }
        answer_all(expired, Errno::EIO);
    }

    /// Gives up the calls whose threads have a signal to act on. Such a call may have run, or run later:
    /// who is interrupted does not know, as after any interrupted system call.
    fn interrupt(&self, now: Instant) {
        let Some(before) = now.checked_sub(PATIENCE) else { return };
        let waiting: Vec<u32> = self.lock().pending.waiting_pids(before).into_iter().collect();
        if waiting.is_empty() {
            return;
        }
        let turn = self.ticks.fetch_add(1, Ordering::Relaxed) as usize * LOOKS_MAX % waiting.len();
        let looked_at = waiting.iter().cycle().skip(turn).take(waiting.len().min(LOOKS_MAX));
        let interrupted: Vec<u32> = looked_at.copied().filter(|pid| signals::is_interrupted(*pid)).collect();
        if interrupted.is_empty() {
            return;
        }
        let taken = {
            let mut state = self.lock();
            let taken = state.pending.take_of(&interrupted, before);
            self.abandon(state, &taken);
            taken
        };
        answer_all(taken, Errno::EINTR);
    }

    fn abandon(&self, mut state: MutexGuard<'_, State>, given_up: &[PendingCall]) {
        let mut to_ask = Vec::new();
        for pending in given_up {
            let request = pending.call.request;
            let was_sent = !state.outgoing.take_back(request);
            if was_sent {
                state.opens.abandon(request, pending.open_effect);
            }
            if let Some(call) = &pending.lock {
                to_ask.extend(state.locks.abandon(request, call, was_sent));
            }
        }
        if state.pending.due_len() == 0 {
            self.quiet.notify_one();
        }
        self.ask_for_locks(state, to_ask);
    }

    /// Any message keeps the client's lease; a silent client sends one.
    fn renew(self: &Arc<Self>, now: Instant) {
        let is_due = {
            let state = self.lock();
            let silent = state.last_sent.is_none_or(|at| now.saturating_duration_since(at) > state.lease / 3);
            silent && state.outgoing.is_open()
        };
        if is_due {
            self.submit_to(SetId(0), Caller::default(), Fop::Renew, Box::new(|_| ()));
        }
    }

    /// Numbers, keeps and sends a call to a set.
    pub(crate) fn submit_to(&self, set: SetId, caller: Caller, fop: Fop, done: Done) {
        let placed = {
            let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
            placed_by(map.as_deref(), set)
        };
        self.send(set, placed, caller, fop, done);
    }

    /// The order of numbers is the order on the stream for calls on one object, see `outgoing`.
    fn send(&self, set: SetId, placed: (u64, u64), caller: Caller, fop: Fop, done: Done) {
        let lock = LockCall::of(&fop);
        // A release is owed for as long as it takes: given up, the object would stay open on the server. Who waits for
        // a lock waits as long as there is a server.
        let is_patient = matches!(fop, Fop::Release { .. }) || lock.is_some_and(|call| call.waits);
        let timeout = self.options.timeout.filter(|_| !is_patient);
        let mut state = self.lock();
        if state.is_shut_down || state.pending.len().max(state.outgoing.len()) >= PENDING_MAX {
            drop(state);
            return done(FopReply::failed(0, Errno::EIO));
        }
        let waker = self.push(&mut state, NewCall { set, placed, caller, fop }, timeout, done);
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Files are passed within a machine alone.
    fn without_descriptor(&self, mut fop: Fop) -> Fop {
        if let Fop::Open { wants_descriptor, .. } | Fop::Read { wants_descriptor, .. } = &mut fop {
            *wants_descriptor &= !self.options.is_remote();
        }
        fop
    }

    /// Numbers and keeps a call; answers whom to wake to have it sent.
    fn push(&self, state: &mut State, new: NewCall, timeout: Option<Duration>, done: Done) -> Option<Waker> {
        let NewCall { set, placed: (generation, epoch), caller, fop } = new;
        let (open_effect, lock) = (OpenEffect::of(&fop), LockCall::of(&fop));
        let since = Instant::now();
        let (request, lowest_unanswered) = state.pending.next_numbers();
        let header = CallHeader {
            request,
            lowest_unanswered,
            set: set.0,
            generation,
            epoch,
            deadline_ms: timeout.map_or(0, |t| t.as_millis() as u32),
            uid: caller.uid,
            gid: caller.gid,
            fence: 0,
        };
        let call = call_to_wire(&header, self.without_descriptor(fop));
        state.outgoing.push(call.clone());
        state.last_sent = Some(since);
        let deadline = timeout.map(|t| since + t);
        if let Some(call) = &lock {
            state.locks.asked(call);
        }
        if lock.as_ref().is_some_and(|call| call.waits) && state.wheel == Wheel::Taken {
            self.quiet.notify_one(); // the session's thread looks when it has waited long enough
        }
        let lock = lock.map(Box::new);
        state.pending.insert(PendingCall { call, done, since, deadline, pid: caller.pid, open_effect, lock, hops: 0 });
        // Where nobody drives, who takes the wheel next wakes the stream.
        if state.wheel == Wheel::Taken { state.outgoing.take_waker() } else { None }
    }
}

/// A call to be numbered.
struct NewCall {
    set: SetId,
    /// Generation and epoch.
    placed: (u64, u64),
    caller: Caller,
    fop: Fop,
}

fn answer_all(calls: Vec<PendingCall>, errno: Errno) {
    for pending in calls {
        let request = pending.call.request;
        (pending.done)(FopReply::failed(request, errno));
    }
}

/// Generation and epoch that a call to the set carries.
fn placed_by(map: Option<&VolumeMap>, set: SetId) -> (u64, u64) {
    map.map_or((0, 0), |map| (map.layout.generation, map.sets.get(usize::from(set.0)).map_or(0, |s| s.epoch)))
}

/// The set that an operation belongs to: the dentry set of a name, else the home of the object.
pub(crate) fn choose_set(map: &VolumeMap, fop: &Fop) -> SetId {
    let home = |object: &ObjectRef| object.home;
    match fop {
        Fop::Lookup { parent, name }
        | Fop::LookupOpen { parent, name }
        | Fop::Make { parent, name, .. }
        | Fop::Unlink { parent, name }
        | Fop::Rmdir { parent, name }
        | Fop::Rename { parent, name, .. } => map.layout.dentry_set(&parent.gfid, name),
        Fop::GetAttr { object }
        | Fop::SetAttr { object, .. }
        | Fop::ReadLink { object }
        | Fop::Link { object, .. }
        | Fop::Open { object, .. }
        | Fop::Release { object }
        | Fop::Read { object, .. }
        | Fop::Write { object, .. }
        | Fop::Fallocate { object, .. }
        | Fop::CopyRange { object, .. }
        | Fop::Seek { object, .. }
        | Fop::Fsync { object, .. }
        | Fop::SetXattr { object, .. }
        | Fop::GetXattr { object, .. }
        | Fop::ListXattr { object }
        | Fop::RemoveXattr { object, .. }
        | Fop::Lock { object, .. }
        | Fop::TestLock { object, .. }
        | Fop::CancelLock { object, .. } => home(object),
        Fop::ReadDir { directory, .. } => home(directory),
        Fop::StatFs | Fop::Renew => SetId(0),
    }
}
