//! A volume as programs use it: operations go in, replies come back; where they go is decided here.

use crate::driving;
pub use crate::pending::Done;
use crate::session;
use crate::shared::Shared;
use brickfs_common::cluster::map::VolumeMap;
use brickfs_common::errno::Errno;
use brickfs_common::fop::{Fop, FopReply, ObjectRef};
use brickfs_common::ids::SetId;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// Where a volume is and how long to wait for it.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// Unix sockets of `brickd`, tried in order.
    pub sockets: Vec<PathBuf>,
    /// The volume; empty for the only one that the node serves.
    pub volume: String,
    /// How long an operation waits for its set; `None` for ever.
    pub timeout: Option<Duration>,
    /// Look for the next message for a moment before sleeping, where nobody else wants the CPU.
    pub poll: bool,
}

/// On whose behalf an operation runs, and who waits for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The thread that waits: a signal to it ends its waiting with EINTR. 0 if none does.
    pub pid: u32,
}

impl Caller {
    /// The same user and group, with nobody waiting.
    pub fn unattended(self) -> Caller {
        Caller { pid: 0, ..self }
    }
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
pub struct Volume {
    shared: Arc<Shared>,
    runtime: Arc<Runtime>,
}

impl Volume {
    /// Connects and greets; fails at once when no server answers or it refuses.
    pub fn connect(options: ConnectOptions) -> Result<Volume, ConnectError> {
        let shared = Arc::new(Shared::new(options));
        let (sender, greeted) = mpsc::channel();
        let theirs = shared.clone();
        std::thread::Builder::new()
            .name("brickfs-session".into())
            .spawn(move || session::run(&theirs, &sender))
            .map_err(ConnectError::Runtime)?;
        let gone = || ConnectError::Refused("the session ended before it began".into());
        let runtime = greeted.recv().map_err(|_| gone())??;
        Ok(Volume { shared, runtime })
    }

    /// The newest volume map.
    pub fn map(&self) -> Arc<VolumeMap> {
        self.shared.known_map().expect("a connected volume has been sent its map")
    }

    /// Counts the sessions: what was learned in an earlier one may have changed meanwhile.
    pub fn session(&self) -> u64 {
        self.shared.session()
    }

    /// The session, if there is one and this client's lease is good for a while yet: until then what the brick has
    /// passed over it may be read without asking.
    pub fn session_with_lease(&self) -> Option<u64> {
        self.shared.session_with_lease(Instant::now())
    }

    /// Sends an operation to the set that it belongs to; never blocks. `done` runs on the thread that
    /// drives the session, or here if the call fails at once, and must not block either. The operation
    /// goes out when somebody drives: who submits and is not called by the session calls `drive` after it.
    pub fn submit(&self, caller: Caller, fop: Fop, done: Done) {
        self.shared.submit(caller, fop, done);
    }

    /// Sends an operation to a set.
    pub fn submit_to(&self, set: SetId, caller: Caller, fop: Fop, done: Done) {
        self.shared.submit_to(set, caller, fop, done);
    }

    /// Whether small operations share the session with bulk, so that writes should be sent in pieces of
    /// `write_behind::CROWDED_PIECE_BYTES`.
    pub fn is_crowded(&self) -> bool {
        self.shared.is_crowded()
    }

    /// Runs the session on this thread until no operation waits, for a few milliseconds at most, unless
    /// another thread does. Not for what the session calls.
    pub fn drive(&self) {
        driving::drive(&self.shared, &self.runtime);
    }

    /// Sends an operation and waits for its reply. Not for what the session calls.
    pub fn call(&self, caller: Caller, fop: Fop) -> FopReply {
        let (sender, reply) = mpsc::channel();
        let done = move |reply| {
            sender.send(reply).ok();
        };
        self.submit(caller, fop, Box::new(done));
        self.drive();
        reply.recv().unwrap_or_else(|_| FopReply::failed(0, Errno::EIO))
    }

    /// Runs `on_tick` on the thread that drives the session several times a second, also while no server answers; it
    /// must not block. The first one stays.
    pub fn on_tick(&self, on_tick: impl Fn(Instant) + Send + Sync + 'static) {
        self.shared.set_on_tick(Box::new(on_tick));
    }

    /// Runs `on_locks_lost` with the files of which the locks are lost because this client was away for longer than its
    /// lease: what was written or is to be written under them fails. It must not block. The first one stays.
    pub fn on_locks_lost(&self, on_locks_lost: impl Fn(&[ObjectRef]) + Send + Sync + 'static) {
        self.shared.set_on_locks_lost(Box::new(on_locks_lost));
    }

    /// Ends the session; calls that wait fail with EIO.
    pub fn shutdown(&self) {
        self.shared.shut_down();
    }
}
