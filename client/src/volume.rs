//! A volume as programs use it: operations go in, replies come back; where they go is decided here.

use crate::pending::{Done, PendingCall, PendingTable};
use crate::session;
use brickfs_common::cluster::map::VolumeMap;
use brickfs_common::errno::Errno;
use brickfs_common::fop::{CallHeader, Fop, FopReply, Hello, ObjectRef, PROTOCOL_VERSION, Welcome};
use brickfs_common::ids::{ClientId, Gfid, SetId};
use brickfs_common::name::Name;
use brickfs_proto::convert::fops::call_to_wire;
use brickfs_proto::v1;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, mpsc};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;

/// Most calls that wait for answers; above it a call fails at once.
const PENDING_MAX: usize = 65536;

/// Where a volume is and how long to wait for it.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// Unix sockets of `brickd`, tried in order.
    pub sockets: Vec<PathBuf>,
    /// The volume; empty for the only one that the node serves.
    pub volume: String,
    /// How long an operation waits for its set; `None` for ever.
    pub timeout: Option<Duration>,
}

/// On whose behalf an operation runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Why a volume could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No `brickd` answers.
    #[error("no brickd answers at {}: {reason}", path.display())]
    NoServer {
        /// The socket.
        path: PathBuf,
        /// What happened.
        reason: String,
    },
    /// The node refused.
    #[error("{0}")]
    Refused(String),
    /// The node sent a map that is not understood.
    #[error("the volume map is not understood: {0}")]
    BadMap(#[from] serde_json::Error),
    /// This process could not start what it needs.
    #[error("cannot start the session: {0}")]
    Runtime(std::io::Error),
}

/// A connected volume. Clones share the session.
#[derive(Clone)]
pub struct Volume(Arc<Shared>);

#[derive(Default)]
struct State {
    pending: PendingTable,
    sender: Option<UnboundedSender<v1::Call>>,
    opens: HashMap<Gfid, (ObjectRef, u32)>,
    session: u64,
    is_shut_down: bool,
}

/// What the volume and its session thread share.
pub struct Shared {
    pub(crate) options: ConnectOptions,
    pub(crate) stop: Notify,
    client: ClientId,
    map: RwLock<Option<Arc<VolumeMap>>>,
    state: Mutex<State>,
}

/// The next greeting: one session number higher, with all that is open.
pub(crate) fn wire_hello(shared: &Shared) -> v1::Call {
    let mut state = shared.lock();
    state.session += 1;
    Hello {
        protocol_min: PROTOCOL_VERSION,
        protocol_max: PROTOCOL_VERSION,
        features: 0,
        cluster: shared.known_map().map(|map| map.cluster),
        volume: shared.options.volume.clone(),
        volume_id: shared.known_map().map(|map| map.id),
        client: shared.client,
        session: state.session,
        open_objects: state.opens.values().copied().collect(),
        lowest_unanswered: state.pending.lowest_unanswered(),
    }
    .into()
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known_map(&self) -> Option<Arc<VolumeMap>> {
        self.map.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn is_shut_down(&self) -> bool {
        self.lock().is_shut_down
    }

    pub(crate) fn welcomed(&self, welcome: &Welcome) -> Result<(), ConnectError> {
        let map: VolumeMap = serde_json::from_slice(&welcome.map_json)?;
        *self.map.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(map));
        Ok(())
    }

    /// Sends all that waits again, in order, and lets new calls follow.
    pub(crate) fn resume(&self, sender: &UnboundedSender<v1::Call>) {
        let mut state = self.lock();
        for call in state.pending.resend() {
            sender.send(call.clone()).ok();
        }
        state.sender = Some(sender.clone());
    }

    pub(crate) fn lost_session(&self) {
        self.lock().sender = None;
    }

    pub(crate) fn take(&self, request: u64) -> Option<PendingCall> {
        self.lock().pending.take(request)
    }

    pub(crate) fn take_all(&self) -> Vec<PendingCall> {
        self.lock().pending.take_all()
    }

    /// Fails the calls that have waited too long.
    pub(crate) fn expire(&self, now: Instant) {
        let expired = self.lock().pending.take_expired(now);
        for pending in expired {
            let call = &pending.call;
            tracing::warn!(request = call.request, set = call.set, op = ?call.op(), "no answer in time: EIO");
            let request = call.request;
            (pending.done)(FopReply::failed(request, Errno::EIO));
        }
    }

    /// Numbers, keeps and sends a call. The order of numbers is the order on the stream.
    pub(crate) fn submit(&self, set: u16, caller: Caller, fop: Fop, done: Done) {
        let map = self.known_map();
        let timeout = self.options.timeout;
        let mut state = self.lock();
        if state.is_shut_down || state.pending.len() >= PENDING_MAX {
            drop(state);
            return done(FopReply::failed(0, Errno::EIO));
        }
        let (request, lowest_unanswered) = state.pending.next_numbers();
        let header = CallHeader {
            request,
            lowest_unanswered,
            set,
            generation: map.as_ref().map_or(0, |map| map.layout.generation),
            epoch: map.and_then(|map| map.sets.get(usize::from(set)).map(|s| s.epoch)).unwrap_or(0),
            deadline_ms: timeout.map_or(0, |t| t.as_millis() as u32),
            uid: caller.uid,
            gid: caller.gid,
            fence: 0,
        };
        let call = call_to_wire(&header, fop);
        if let Some(sender) = &state.sender {
            sender.send(call.clone()).ok();
        }
        state.pending.insert(PendingCall { call, done, deadline: timeout.map(|t| Instant::now() + t) });
    }
}

impl Volume {
    /// Connects and greets; fails at once when no server answers or it refuses.
    pub fn connect(options: ConnectOptions) -> Result<Volume, ConnectError> {
        let shared = Arc::new(Shared {
            options,
            stop: Notify::new(),
            client: ClientId(rand::random()),
            map: RwLock::new(None),
            state: Mutex::new(State::default()),
        });
        let (sender, greeted) = mpsc::channel();
        let theirs = shared.clone();
        std::thread::Builder::new()
            .name("brickfs-session".into())
            .spawn(move || session::run(&theirs, &sender))
            .map_err(ConnectError::Runtime)?;
        let gone = || ConnectError::Refused("the session ended before it began".into());
        greeted.recv().map_err(|_| gone())??;
        Ok(Volume(shared))
    }

    /// The newest volume map.
    pub fn map(&self) -> Arc<VolumeMap> {
        self.0.known_map().expect("a connected volume has been sent its map")
    }

    /// The set that answers for (parent, name).
    pub fn dentry_set(&self, parent: &Gfid, name: &Name) -> SetId {
        self.map().layout.dentry_set(parent, name)
    }

    /// Sends an operation to the set that it belongs to; never blocks. `done` runs on the session's
    /// thread and must not block either.
    pub fn submit(&self, caller: Caller, fop: Fop, done: impl FnOnce(FopReply) + Send + 'static) {
        let set = self.choose_set(&fop);
        self.submit_to(set, caller, fop, done);
    }

    /// Sends an operation to a set.
    pub fn submit_to(&self, set: SetId, caller: Caller, fop: Fop, done: impl FnOnce(FopReply) + Send + 'static) {
        self.0.submit(set.0, caller, fop, Box::new(done));
    }

    /// Sends an operation and waits for its reply. Not for the session's thread.
    pub fn call(&self, caller: Caller, fop: Fop) -> FopReply {
        let (sender, reply) = mpsc::channel();
        self.submit(caller, fop, move |reply| {
            sender.send(reply).ok();
        });
        reply.recv().unwrap_or_else(|_| FopReply::failed(0, Errno::EIO))
    }

    /// Tells that an object was opened (+1) or closed (-1): announced again after a lost session.
    pub fn open_count(&self, object: ObjectRef, delta: i32) {
        let mut state = self.0.lock();
        let entry = state.opens.entry(object.gfid).or_insert((object, 0));
        entry.1 = entry.1.saturating_add_signed(delta);
        if entry.1 == 0 {
            state.opens.remove(&object.gfid);
        }
    }

    /// Ends the session; calls that wait fail with EIO.
    pub fn shutdown(&self) {
        self.0.lock().is_shut_down = true;
        self.0.stop.notify_one();
    }

    fn choose_set(&self, fop: &Fop) -> SetId {
        match fop {
            Fop::Lookup { parent, name }
            | Fop::Make { parent, name, .. }
            | Fop::Unlink { parent, name }
            | Fop::Rmdir { parent, name }
            | Fop::Rename { parent, name, .. } => self.dentry_set(&parent.gfid, name),
            Fop::GetAttr { object }
            | Fop::SetAttr { object, .. }
            | Fop::ReadLink { object }
            | Fop::Link { object, .. }
            | Fop::Open { object, .. }
            | Fop::Release { object }
            | Fop::Read { object, .. }
            | Fop::Write { object, .. }
            | Fop::Fallocate { object, .. }
            | Fop::Seek { object, .. }
            | Fop::Fsync { object, .. }
            | Fop::SetXattr { object, .. }
            | Fop::GetXattr { object, .. }
            | Fop::ListXattr { object }
            | Fop::RemoveXattr { object, .. } => object.home,
            Fop::ReadDir { directory, .. } => directory.home,
            Fop::StatFs | Fop::Renew => SetId(0),
        }
    }
}
