//! A volume of some nodes in one thread: their tasks, the messages between their sets, their deaths and
//! returns. What happens next is drawn from a seed, so that a seed is a history.

use super::calls::serve_client;
use super::network::{Cargo, Flying, NodeWorld, Shared};
use super::rng::Rng;
use super::shape::{Shape, root_inode, volume_map};
use crate::brick::effect::Effect;
use crate::brick::meta::Position;
use crate::brick::set::SetEngine;
use crate::brick::store::model::ModelStore;
use crate::brick::store::model::disk::{Process, SharedDisks};
use crate::brick::volume::recover::{drop_unchanged, first_seq, redo_last, untold};
use crate::brick::volume::{BoxFuture, Ran, Slot, Volume, World as _};
use brickfs_common::cluster::map::VolumeMap;
use brickfs_common::errno::Errno;
use brickfs_common::fop::{CallHeader, Fop};
use brickfs_common::ids::{ClientId, Gfid, SetId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};

/// A node's process, if it is up.
pub struct Node {
    pub volume: Option<Arc<Volume<ModelStore>>>,
    pub process: Arc<Process>,
    /// It has recovered and serves clients.
    pub is_serving: Arc<AtomicBool>,
    pub is_paused: bool,
    /// Power was lost since it was last looked through.
    pub lost_power: Arc<AtomicBool>,
}

/// Whether a task can go on.
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Task {
    node: usize,
    what: String,
    future: BoxFuture<()>,
    flag: Arc<Flag>,
}

/// Number of a client's call.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct CallId(pub u64);

/// What became of a client's call.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // one lives at a time
pub enum Back {
    Ran(Ran),
    /// The node died while it ran, or is not there.
    Lost,
}

/// A client's call as the client numbers it.
#[derive(Clone, Debug)]
pub struct Call {
    pub client: ClientId,
    pub request: u64,
    pub set: SetId,
    pub fop: Fop,
}

pub struct Cluster {
    pub shape: Shape,
    pub shared: Arc<Shared>,
    pub disks: SharedDisks,
    pub nodes: Vec<Node>,
    pub rng: Rng,
    map: VolumeMap,
    tasks: Vec<Task>,
    running: BTreeMap<CallId, usize>,
    next_call: u64,
    /// Records of commits that a restart loses, for who wants to see the oracle notice.
    pub loses_commits: bool,
    pub steps: u64,
}

impl Cluster {
    /// New bricks, all nodes up.
    pub fn new(shape: Shape) -> Cluster {
        let disks = SharedDisks::default();
        disks.lock().keeps_history = shape.keeps_history;
        for (index, node) in shape.node_of.iter().enumerate() {
            let set = SetId(index as u16);
            let device = *node as u64 * 100 + if shape.shares_device { 0 } else { index as u64 };
            disks.lock().add(set, device, root_inode(set, shape.root_home));
        }
        let node_count = shape.node_of.iter().max().map_or(0, |last| last + 1);
        let node = |_| Node {
            volume: None,
            process: Arc::default(),
            is_serving: Arc::default(),
            is_paused: false,
            lost_power: Arc::default(),
        };
        let mut cluster = Cluster {
            shared: Arc::new(Shared::new(shape.seed)),
            map: volume_map(&shape),
            rng: Rng::new(shape.seed),
            disks,
            nodes: (0..node_count).map(node).collect(),
            tasks: Vec::new(),
            running: BTreeMap::new(),
            next_call: 0,
            loses_commits: false,
            steps: 0,
            shape,
        };
        for node in 0..node_count {
            cluster.start_node(node);
        }
        cluster.settle();
        cluster
    }

    pub fn node_of(&self, set: SetId) -> usize {
        self.shape.node_of[usize::from(set.0)]
    }

    pub fn set_ids(&self) -> impl Iterator<Item = SetId> + use<> {
        (0..self.shape.node_of.len() as u16).map(SetId)
    }

    pub fn is_up(&self, node: usize) -> bool {
        self.nodes[node].volume.is_some()
    }

    pub fn is_serving(&self, node: usize) -> bool {
        self.is_up(node) && self.nodes[node].is_serving.load(Ordering::Relaxed)
    }

    /// The set of a name.
    pub fn dentry_set(&self, parent: Gfid, name: &brickfs_common::name::Name) -> SetId {
        self.map.layout.dentry_set(&parent, name)
    }

    /// Opens a node's bricks as `open_volume` does; it and all others recover, as after a reconnect.
    pub fn start_node(&mut self, node: usize) {
        assert!(!self.is_up(node), "a node is started once");
        self.nodes[node].process = Arc::default();
        self.nodes[node].is_serving = Arc::default();
        self.nodes[node].is_paused = false;
        self.shared.note(|| format!("node {node} starts"));
        let Some((volume, last)) = self.open(node) else { return };
        self.nodes[node].volume = Some(volume.clone());
        let is_serving = self.nodes[node].is_serving.clone();
        let lost_power = self.nodes[node].lost_power.clone();
        let recover = async move {
            volume.recover(last).await;
            is_serving.store(true, Ordering::Relaxed);
            if lost_power.load(Ordering::Relaxed) && volume.mend().await.is_done {
                lost_power.store(false, Ordering::Relaxed);
            }
        };
        self.spawn(node, "recover".into(), Box::pin(recover));
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            self.recover(other);
        }
    }

    /// A live node settles what it can again.
    pub fn recover(&mut self, node: usize) {
        if let Some(volume) = self.nodes[node].volume.clone() {
            self.spawn(node, "recover again".into(), Box::pin(async move { volume.recover(Vec::new()).await }));
        }
    }

    /// A live node looks for what a loss of power has left.
    pub fn mend(&mut self, node: usize) {
        if let Some(volume) = self.nodes[node].volume.clone() {
            self.spawn(
                node,
                "mend".into(),
                Box::pin(async move {
                    volume.mend().await;
                }),
            );
        }
    }

    /// A live node passes its barriers, as its ticker does.
    pub fn pass_barriers(&mut self, node: usize) {
        if let Some(volume) = self.nodes[node].volume.clone() {
            self.spawn(node, "barriers".into(), Box::pin(async move { volume.pass_barriers().await }));
        }
    }

    /// `None`: the process died on the way.
    #[allow(clippy::type_complexity)]
    fn open(&mut self, node: usize) -> Option<(Arc<Volume<ModelStore>>, Vec<(SetId, Effect)>)> {
        let process = self.nodes[node].process.clone();
        let world = NodeWorld { node, process: process.clone(), shared: self.shared.clone() };
        let (mut last, mut results) = (Vec::new(), Vec::new());
        let mut slots = Vec::new();
        let keeps_dirs = self.rng.is_one_in(2);
        for set in self.set_ids() {
            if self.node_of(set) != node {
                slots.push(Slot::Elsewhere);
                continue;
            }
            if self.loses_commits {
                self.disks.lock().change(set, |fs| fs.commits.clear());
            }
            let mut effects = self.disks.lock().log(set);
            let mut store = ModelStore::open(set, self.disks.clone(), process.clone(), keeps_dirs);
            redo_last(&mut store, &mut effects, self.nodes[node].lost_power.load(Ordering::Relaxed));
            let dropped = drop_unchanged(&mut store, set);
            let seq = first_seq(&effects, world.now());
            if process.is_dead() {
                return None;
            }
            dropped.expect("the model reads its records");
            let position = Position { epoch: 1, seq };
            let engine = SetEngine::new(set, store, position).expect("the model reads its records");
            last.extend(untold(&effects).map(|effect| (set, effect.clone())));
            results.extend(effects.into_iter().map(|effect| (set, effect)));
            slots.push(Slot::Open(Box::new(engine)));
        }
        let volume = Volume::new(self.map.clone(), slots, Arc::new(world));
        {
            let mut state = volume.lock();
            for (set, effect) in &results {
                state.clients.remember(*set, effect);
            }
        }
        Some((volume, last))
    }

    /// The process of a node is gone with all that it was doing.
    pub fn kill(&mut self, node: usize) {
        self.shared.note(|| format!("node {node} dies"));
        self.nodes[node].process.die_after(0);
        self.nodes[node].process.call().ok();
        self.tasks.retain(|task| task.node != node);
        self.nodes[node].volume = None;
        let shared = &self.shared;
        self.running.retain(|call, on| {
            if *on == node {
                shared.lock().backs.push((*call, Back::Lost));
            }
            *on != node
        });
    }

    /// All disks are flushed.
    pub fn flush(&mut self) {
        let devices: Vec<u64> = self.set_ids().map(|set| self.disks.lock().device(set)).collect();
        for device in devices {
            self.disks.lock().flush(device);
        }
    }

    /// The node dies and its disks forget what they have not flushed.
    pub fn lose_power(&mut self, node: usize) {
        self.kill(node);
        let mut devices: Vec<u64> =
            self.set_ids().filter(|set| self.node_of(*set) == node).map(|set| self.disks.lock().device(set)).collect();
        devices.dedup();
        for device in devices {
            let rng = &mut self.rng;
            self.disks.lock().lose_power(device, |count| rng.below(count));
        }
        self.nodes[node].lost_power.store(true, Ordering::Relaxed);
        self.shared.note(|| format!("node {node} has lost power"));
    }

    fn spawn(&mut self, node: usize, what: String, future: BoxFuture<()>) {
        let flag = Arc::new(Flag(AtomicBool::new(true)));
        self.tasks.push(Task { node, what, future, flag });
    }

    /// A client's call reaches the node of a set.
    pub fn call(&mut self, call: &Call) -> CallId {
        self.next_call += 1;
        let id = CallId(self.next_call);
        let node = self.node_of(call.set);
        self.shared.note(|| format!("{id:?} {call:?} at node {node}"));
        let volume = match &self.nodes[node].volume {
            Some(volume) if self.is_serving(node) => volume.clone(),
            _ => {
                self.shared.lock().backs.push((id, Back::Lost));
                return id;
            }
        };
        let header = CallHeader {
            request: call.request,
            lowest_unanswered: call.request,
            set: call.set.0,
            generation: 1,
            epoch: 1,
            ..CallHeader::default()
        };
        let (shared, process, call) = (self.shared.clone(), self.nodes[node].process.clone(), call.clone());
        let run = async move {
            let ran = serve_client(&volume, &header, call).await;
            if !process.is_dead() {
                shared.note(|| format!("{id:?} -> {:?}", ran.as_ref().map(|reply| &reply.result)));
                shared.lock().backs.push((id, Back::Ran(ran)));
            }
        };
        self.running.insert(id, node);
        self.spawn(node, format!("{id:?}"), Box::pin(run));
        id
    }

    /// What has come back for clients.
    pub fn take_backs(&mut self) -> Vec<(CallId, Back)> {
        let backs = std::mem::take(&mut self.shared.lock().backs);
        for (id, _) in &backs {
            self.running.remove(id);
        }
        backs
    }

    /// One thing happens: a task goes on or a message arrives. `false`: nothing can happen by itself.
    pub fn step(&mut self) -> bool {
        let spawned = std::mem::take(&mut self.shared.lock().spawned);
        for (node, process, future) in spawned {
            if !process.is_dead() {
                self.spawn(node, "background".into(), future);
            }
        }
        let is_paused: Vec<bool> = self.nodes.iter().map(|node| node.is_paused).collect();
        let runnable = |task: &Task| task.flag.0.load(Ordering::Relaxed) && !is_paused[task.node];
        let ready: Vec<usize> = (0..self.tasks.len()).filter(|index| runnable(&self.tasks[*index])).collect();
        let arriving = self.shared.arriving(|to| is_paused[to], &self.shape.node_of);
        let count = ready.len() + arriving.len();
        if count == 0 {
            return false;
        }
        self.steps += 1;
        match self.rng.below(count) {
            index if index < ready.len() => self.poll(ready[index]),
            index => {
                let flying = self.shared.take(arriving[index - ready.len()]);
                self.arrive(flying);
            }
        }
        for node in 0..self.nodes.len() {
            if self.is_up(node) && self.nodes[node].process.is_dead() {
                self.kill(node);
            }
        }
        true
    }

    /// Lets happen what happens by itself.
    pub fn settle(&mut self) {
        const STEPS_MAX: u64 = 200_000;
        let end = self.steps + STEPS_MAX;
        while self.step() {
            assert!(self.steps < end, "no end of it:\n{}", self.shared.history());
        }
    }

    fn poll(&mut self, index: usize) {
        let task = &mut self.tasks[index];
        task.flag.0.store(false, Ordering::Relaxed);
        let waker = Waker::from(task.flag.clone());
        if task.future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            self.tasks.swap_remove(index);
        }
    }

    fn arrive(&mut self, flying: Flying) {
        let (to, call) = match flying.cargo {
            Cargo::Reply(result) => {
                self.shared.note(|| format!("   <- {result:?}"));
                drop(flying.answer.map(|answer| answer.send(result)));
                return;
            }
            Cargo::Call(to, call) => (to, call),
        };
        let node = self.node_of(to);
        let fate = self.shared.choose_fate();
        self.shared.note(|| format!("{} -> set {to}: {call:?} {fate:?}", flying.from));
        let mut answer = flying.answer;
        if fate.is_call_lost || !self.is_up(node) {
            drop(answer.map(|answer| answer.send(Err(Errno::EIO))));
            return;
        }
        if fate.is_reply_lost {
            drop(answer.take().map(|answer| answer.send(Err(Errno::EIO))));
        }
        let meddled = match &self.shared.lock().meddle {
            Some(meddle) => meddle(call),
            None => Ok(call),
        };
        let call = match meddled {
            Ok(call) => call,
            Err(reply) => return drop(answer.map(|answer| answer.send(Ok(reply)))),
        };
        let volume = self.nodes[node].volume.clone().expect("the node is up");
        let (shared, process) = (self.shared.clone(), self.nodes[node].process.clone());
        let what = format!("serves {call:?}");
        let serve = async move {
            let result = volume.serve_peer(to, call).await;
            if !process.is_dead() {
                shared.lock().flying.push(Flying { from: node, cargo: Cargo::Reply(result), answer });
            }
        };
        // What has arrived is carried out as far as it goes.
        self.spawn(node, what, Box::pin(serve));
        self.poll(self.tasks.len() - 1);
    }

    /// What waits, for a report of a hang.
    pub fn waiting(&self) -> Vec<String> {
        let mut lines: Vec<String> =
            self.tasks.iter().map(|task| format!("node {}: {}", task.node, task.what)).collect();
        for volume in self.nodes.iter().filter_map(|node| node.volume.as_ref()) {
            for engine in volume.lock().open_sets() {
                for (tx, coordinator) in engine.held.decided_elsewhere(SetId(u16::MAX)) {
                    let items = engine.held.get(&tx).map(|holding| (holding.is_finished, holding.items.clone()));
                    lines.push(format!("set {} holds {items:?} for set {coordinator}, {tx}", engine.id));
                }
                for (tx, committed) in &engine.committed {
                    lines
                        .push(format!("set {} has committed {tx}: {:?}", engine.id, committed.commitment.participants));
                }
                lines.extend(engine.undecided.iter().map(|tx| format!("set {} has not decided {tx}", engine.id)));
            }
        }
        lines
    }
}
