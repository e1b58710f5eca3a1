//! A volume as programs use it: operations go in, replies come back; where they go is decided here.

use crate::links::Links;
pub use crate::pending::Done;
pub use crate::shared::Shared;
use brickfs_common::cluster::map::VolumeMap;
use brickfs_common::errno::Errno;
use brickfs_common::fop::{Fop, FopReply, ObjectRef};
use brickfs_common::ids::{NodeId, SetId};
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// How a node is reached.
#[derive(Clone)]
pub enum Target {
    /// By these Unix sockets of its `brickd`, tried in order.
    Sockets(Vec<PathBuf>),
    /// Over TLS, by what the node of another session has told of it.
    Beside(Arc<Shared>),
}

/// Where a volume is and how long to wait for it.
#[derive(Clone)]
pub struct ConnectOptions {
    /// The node to ask.
    pub target: Target,
    /// The volume; empty for the only one that the node serves.
    pub volume: String,
    /// How long an operation waits for its set; `None` for ever.
    pub timeout: Option<Duration>,
    /// Look for the next message for a moment before sleeping, where nobody else wants the CPU.
    pub poll: bool,
}

impl ConnectOptions {
    /// Whether the node is reached over the network.
    pub(crate) fn is_remote(&self) -> bool {
        matches!(self.target, Target::Beside(_))
    }
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
    /// A node does not answer over the network.
    #[error("node {node} does not answer: {reason}")]
    NoNode {
        /// The node.
        node: NodeId,
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

/// A connected volume. Clones share the sessions.
#[derive(Clone)]
pub struct Volume {
    links: Arc<Links>,
}

impl Volume {
    /// Connects and greets; fails at once when no server answers or it refuses.
    pub fn connect(options: ConnectOptions) -> Result<Volume, ConnectError> {
        Ok(Volume { links: Links::connect(options)? })
    }

    /// The newest volume map.
    pub fn map(&self) -> Arc<VolumeMap> {
        self.links.map()
    }

    /// Counts the sessions: what was learned in an earlier one may have changed meanwhile.
    pub fn session(&self) -> u64 {
        self.links.all().map(|link| link.shared.session()).sum()
    }

    /// The session, if there is one with the node on this machine and this client's lease there is good for a while
    /// yet: until then what the brick has passed over it may be read without asking.
    pub fn session_with_lease(&self) -> Option<u64> {
        self.links.first().session_with_lease(Instant::now()).map(|_| self.session())
    }

    /// Sends an operation to the set that it belongs to; never blocks. `done` runs on the thread that
    /// drives the session, or here if the call fails at once, and must not block either. The operation
    /// goes out when somebody drives: who submits and is not called by the session calls `drive` after it.
    pub fn submit(&self, caller: Caller, fop: Fop, done: Done) {
        self.links.submit(caller, fop, done);
    }

    /// Sends an operation to a set.
    pub fn submit_to(&self, set: SetId, caller: Caller, fop: Fop, done: Done) {
        self.links.of_set(set).submit_to(set, caller, fop, done);
    }

    /// Whether small operations share the session with bulk, so that writes should be sent in pieces of
    /// `write_behind::CROWDED_PIECE_BYTES`.
    pub fn is_crowded(&self) -> bool {
        self.links.all().any(|link| link.shared.is_crowded())
    }

    /// Runs the sessions on this thread until no operation waits, each for a few milliseconds at most, unless
    /// another thread does. Not for what the session calls.
    pub fn drive(&self) {
        self.links.drive();
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
        self.links.first().set_on_tick(Box::new(on_tick));
    }

    /// Runs `on_locks_lost` with the files of which the locks are lost because this client was away for longer than its
    /// lease: what was written or is to be written under them fails. It must not block. The first one stays.
    pub fn on_locks_lost(&self, on_locks_lost: impl Fn(&[ObjectRef]) + Send + Sync + 'static) {
        let on_locks_lost = Arc::new(on_locks_lost);
        for link in self.links.all() {
            let on_locks_lost = on_locks_lost.clone();
            link.shared.set_on_locks_lost(Box::new(move |lost| on_locks_lost(lost)));
        }
    }

    /// Ends the session; calls that wait fail with EIO.
    pub fn shutdown(&self) {
        self.links.shut_down();
    }
}
