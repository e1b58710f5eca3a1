//! What lies between the nodes of a simulated volume: clock, randomness, messages and their fates.

use super::cluster::{Back, CallId};
use super::rng::Rng;
use crate::brick::store::model::disk::Process;
use crate::brick::volume::{BoxFuture, PeerCall, PeerReply, World};
use brickfs_common::attr::Timestamp;
use brickfs_common::errno::Errno;
use brickfs_common::ids::SetId;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// Lines of history that a failure shows.
const HISTORY_LINES: usize = 4000;

/// What a message carries.
pub enum Cargo {
    Call(SetId, PeerCall),
    Reply(Result<PeerReply, Errno>),
}

/// A message on its way.
pub struct Flying {
    pub from: usize,
    pub cargo: Cargo,
    /// `None`: the caller has given up.
    pub answer: Option<oneshot::Sender<Result<PeerReply, Errno>>>,
}

/// What becomes of a call: it may not arrive; or it runs and its caller never learns what came of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fate {
    pub is_call_lost: bool,
    pub is_reply_lost: bool,
}

/// Which calls stay on their way until they are let go.
type Holds = Box<dyn Fn(SetId, &PeerCall) -> bool + Send>;

/// What happens to calls behind the product's back, to see the oracle notice.
pub type Meddle = Box<dyn Fn(PeerCall) -> Result<PeerCall, PeerReply> + Send>;

pub struct Inner {
    pub rng: Rng,
    micros: i64,
    pub flying: Vec<Flying>,
    pub spawned: Vec<(usize, Arc<Process>, BoxFuture<()>)>,
    pub backs: Vec<(CallId, Back)>,
    /// A message in so many is lost; 0 for none.
    pub loses_one_in: usize,
    pub holds: Option<Holds>,
    pub meddle: Option<Meddle>,
    lines: VecDeque<String>,
}

/// What all nodes share.
pub struct Shared(Mutex<Inner>, bool);

impl Shared {
    pub fn new(seed: u64) -> Shared {
        let inner = Inner {
            rng: Rng::new(seed ^ 0x5eed),
            micros: 1_700_000_000_000_000,
            flying: Vec::new(),
            spawned: Vec::new(),
            backs: Vec::new(),
            loses_one_in: 0,
            holds: None,
            meddle: None,
            lines: VecDeque::new(),
        };
        Shared(Mutex::new(inner), std::env::var_os("BRICKFS_SIM_SEED").is_some())
    }

    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A line of history, where one is wanted.
    pub fn note(&self, line: impl FnOnce() -> String) {
        if !self.1 {
            return;
        }
        let line = line();
        let mut inner = self.lock();
        if inner.lines.len() == HISTORY_LINES {
            inner.lines.pop_front();
        }
        inner.lines.push_back(line);
    }

    pub fn history(&self) -> String {
        self.lock().lines.iter().fold(String::new(), |text, line| text + line + "\n")
    }

    /// The messages that may arrive now.
    pub fn arriving(&self, is_paused: impl Fn(usize) -> bool, node_of: &[usize]) -> Vec<usize> {
        let inner = self.lock();
        let may = |flying: &Flying| match &flying.cargo {
            Cargo::Reply(_) => true,
            Cargo::Call(to, call) => {
                !is_paused(node_of[usize::from(to.0)]) && !inner.holds.as_ref().is_some_and(|holds| holds(*to, call))
            }
        };
        (0..inner.flying.len()).filter(|index| may(&inner.flying[*index])).collect()
    }

    pub fn take(&self, index: usize) -> Flying {
        self.lock().flying.swap_remove(index)
    }

    pub fn choose_fate(&self) -> Fate {
        let mut inner = self.lock();
        let one_in = inner.loses_one_in;
        if one_in == 0 || !inner.rng.is_one_in(one_in) {
            return Fate::default();
        }
        let is_call_lost = inner.rng.is_one_in(2);
        Fate { is_call_lost, is_reply_lost: !is_call_lost }
    }
}

/// The world of one node.
pub struct NodeWorld {
    pub node: usize,
    pub process: Arc<Process>,
    pub shared: Arc<Shared>,
}

impl World for NodeWorld {
    fn now(&self) -> Timestamp {
        let mut inner = self.shared.lock();
        inner.micros += 1;
        let micros = inner.micros;
        Timestamp { sec: micros / 1_000_000, nsec: (micros % 1_000_000) as u32 * 1000 }
    }

    fn random_id(&self) -> [u8; 16] {
        let mut inner = self.shared.lock();
        let mut id = [0; 16];
        id[..8].copy_from_slice(&inner.rng.next().to_be_bytes());
        id[8..].copy_from_slice(&inner.rng.next().to_be_bytes());
        id
    }

    fn send(&self, to: SetId, call: PeerCall) -> BoxFuture<Result<PeerReply, Errno>> {
        let (sender, receiver) = oneshot::channel();
        // What a process says after its death nobody hears.
        if !self.process.is_dead() {
            let cargo = Cargo::Call(to, call);
            self.shared.lock().flying.push(Flying { from: self.node, cargo, answer: Some(sender) });
        }
        Box::pin(async move { receiver.await.unwrap_or(Err(Errno::EIO)) })
    }

    fn spawn(&self, task: BoxFuture<()>) {
        self.shared.lock().spawned.push((self.node, self.process.clone(), task));
    }
}
