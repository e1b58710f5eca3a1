//! The volumes that this node serves, and the clients that talk to them: greeting, sessions, leases.
//!
//! Locks: `Host::volumes` guards the table, each volume has its own lock; the table's is taken first and
//! never while a volume's is held. `Host::nodes` is taken last.

use crate::brick::open::{AskNode, open_volume};
use crate::brick::store::BrickStore as _;
use crate::brick::store::posix::PosixStore;
use crate::brick::volume::clients::CLIENT_LEASE;
use crate::brick::volume::dispatch::Outcome;
use crate::brick::volume::mend::Mended;
use crate::brick::volume::{PeerCall, PeerReply, Slot, Volume};
use brickfs_common::cluster::map::VolumeMap;
use brickfs_common::errno::Errno;
use brickfs_common::fop::{CallHeader, Fop, Hello, OwnedLock, PROTOCOL_VERSION, Welcome};
use brickfs_common::ids::{BrickId, ClientId, ClusterId, Gfid, NodeId, SetId, VolumeId};
use bytes::Bytes;
use futures::executor::block_on;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::time::Duration;
use tokio::sync::watch;

/// How often leases are looked at, and barriers are passed where transactions wait for one.
const TICK: Duration = Duration::from_secs(1);

/// The volumes of this node.
pub struct Host {
    cluster: ClusterId,
    node: NodeId,
    /// Its key and certificate, for mounts on this machine.
    identity_path: String,
    ask: AskNode,
    /// Where the nodes of the cluster are reached; taken alone.
    nodes: Mutex<BTreeMap<NodeId, Vec<String>>>,
    volumes: Mutex<HashMap<VolumeId, Served>>,
    /// Dropping them ends the ticking threads.
    _tickers: [mpsc::Sender<()>; 2],
}

/// A volume, and whether it is served no more.
struct Served {
    volume: Arc<Volume<PosixStore>>,
    is_stopped: watch::Sender<bool>,
}

/// One brick as `volume status` shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BrickStatus {
    /// The brick.
    pub brick: BrickId,
    /// Its set.
    pub set: SetId,
    /// Its directory.
    pub path: String,
    /// Whether it is served.
    pub online: bool,
    /// Why not.
    pub error: Option<String>,
    /// Size of its file system in bytes.
    pub total_bytes: u64,
    /// Free bytes of its file system.
    pub free_bytes: u64,
    /// What was found damaged.
    pub damage: Vec<String>,
    /// It is being looked through for what a loss of power left.
    pub is_mending: bool,
}

/// A client's session with one volume.
#[derive(Clone)]
pub struct SessionHandle {
    volume: Arc<Volume<PosixStore>>,
    client: ClientId,
    session: u64,
    is_stopped: watch::Receiver<bool>,
}

impl SessionHandle {
    /// Ends when the volume is served no more.
    pub fn stopped(&self) -> impl Future<Output = ()> + use<> {
        let mut is_stopped = self.is_stopped.clone();
        async move {
            // An error: the host is gone, and the volume with it.
            is_stopped.wait_for(|is_stopped| *is_stopped).await.ok();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic in an operation has been reported; the log makes the state whole at the next start.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Host {
    /// A host without volumes. Clears the umask. `identity_path` is the file with the node's key and certificate,
    /// `ask` the way to sets of other nodes.
    pub fn new(cluster: ClusterId, node: NodeId, identity_path: String, ask: AskNode) -> Arc<Host> {
        rustix::process::umask(rustix::fs::Mode::empty());
        let (ticker, ticks) = mpsc::channel::<()>();
        let (barrier_ticker, barrier_ticks) = mpsc::channel::<()>();
        let (nodes, volumes, _tickers) = (Mutex::default(), Mutex::new(HashMap::new()), [ticker, barrier_ticker]);
        let host = Arc::new(Host { cluster, node, identity_path, ask, nodes, volumes, _tickers });
        let tick = |volume: &Arc<Volume<PosixStore>>| {
            volume.tick();
            forget_ended(volume);
        };
        // Apart: a barrier waits for disks and other nodes, and a lease must end in time.
        let pass = |volume: &Arc<Volume<PosixStore>>| block_on(volume.pass_barriers());
        start_ticking("brick-tick", &host, ticks, tick);
        start_ticking("brick-barrier", &host, barrier_ticks, pass);
        host
    }

    /// Takes over where nodes are reached.
    pub fn update_nodes(&self, nodes: BTreeMap<NodeId, Vec<String>>) {
        *lock(&self.nodes) = nodes;
    }

    /// Answers a set of another node. May sleep on the disk.
    pub async fn serve_peer(&self, id: VolumeId, to: SetId, call: PeerCall) -> Result<PeerReply, Errno> {
        let volume = lock(&self.volumes).get(&id).map(|served| served.volume.clone());
        match volume {
            Some(volume) => volume.serve_peer(to, call).await,
            // Not yet, or not any more: who asks tries again.
            None => Err(Errno::EHOSTDOWN),
        }
    }

    /// Opens and recovers this node's bricks of a volume and serves them.
    pub fn start_volume(&self, map: VolumeMap) -> Vec<BrickStatus> {
        let id = map.id;
        let volume = open_volume(map, self.node, self.ask.clone());
        mend_beside(&volume);
        lock(&self.volumes).insert(id, Served { volume, is_stopped: watch::Sender::new(false) });
        self.volume_status(id)
    }

    /// Stops serving a volume: its sessions fail from then on.
    pub fn stop_volume(&self, id: VolumeId) {
        if let Some(Served { volume, is_stopped }) = lock(&self.volumes).remove(&id) {
            is_stopped.send_replace(true);
            let mut state = volume.lock();
            state.is_stopped = true;
            state.clients.by_id.clear();
            state.locks.clear();
            for engine in state.open_sets().filter(|engine| engine.failed.is_none()) {
                engine.store.note_clean();
            }
            for slot in &mut state.sets {
                *slot = Slot::Failed("the volume is stopped".into());
            }
        }
    }

    /// Takes over a changed map.
    pub fn update_map(&self, map: VolumeMap) {
        let volume = lock(&self.volumes).get(&map.id).map(|served| served.volume.clone());
        if let Some(volume) = volume {
            volume.lock().update_map(map);
        }
    }

    /// The bricks of a served volume.
    pub fn volume_status(&self, id: VolumeId) -> Vec<BrickStatus> {
        let volume = lock(&self.volumes).get(&id).map(|served| served.volume.clone());
        let Some(volume) = volume else { return Vec::new() };
        let state = volume.lock();
        let map = state.map.clone();
        let report = |(set, slot): (_, &Slot<PosixStore>)| brick_status(set, slot);
        map.sets.iter().zip(&state.sets).filter_map(report).collect()
    }

    /// How many clients have a session with a served volume.
    pub fn clients_count(&self, id: VolumeId) -> usize {
        let volume = lock(&self.volumes).get(&id).map(|served| served.volume.clone());
        volume.map_or(0, |volume| volume.lock().clients.sessions_count())
    }

    fn find_volume(&self, hello: &Hello) -> Result<(Arc<Volume<PosixStore>>, watch::Receiver<bool>), String> {
        let volumes = lock(&self.volumes);
        let mut named = volumes.values().filter(|served| {
            let map = served.volume.lock().map.clone();
            (hello.volume.is_empty() || map.name == hello.volume) && hello.volume_id.is_none_or(|id| id == map.id)
        });
        match (named.next(), named.next()) {
            (Some(served), None) => Ok((served.volume.clone(), served.is_stopped.subscribe())),
            (Some(_), Some(_)) => Err("this node serves several volumes: name one, as in HOST:/VOLUME".into()),
            (None, _) if hello.volume.is_empty() => Err("this node serves no volume".into()),
            (None, _) => Err(format!("volume '{}' does not exist here or is not started", hello.volume)),
        }
    }

    /// Greets a client: its sessions of lower numbers are refused from then on, what it says it has
    /// open counts as open.
    pub fn hello(&self, hello: &Hello) -> Result<(Welcome, SessionHandle), String> {
        if !(hello.protocol_min..=hello.protocol_max).contains(&PROTOCOL_VERSION) {
            return Err(format!(
                "the client speaks protocol {} to {}, this brickd speaks {PROTOCOL_VERSION}",
                hello.protocol_min, hello.protocol_max
            ));
        }
        if hello.cluster.is_some_and(|cluster| cluster != self.cluster) {
            return Err(format!("this node belongs to cluster {}", self.cluster));
        }
        let (volume, is_stopped) = self.find_volume(hello)?;
        let mut state = volume.lock();
        let known = state.clients.by_id.get(&hello.client).map_or(0, |client| client.session);
        if hello.session <= known {
            return Err(format!("session {} of this client is over, {known} is newer", hello.session));
        }
        let is_known = state.clients.has_lease(&hello.client);
        let map_json = serde_json::to_vec(&*state.map).map_err(|error| error.to_string())?;
        let mut welcome = Welcome {
            protocol: PROTOCOL_VERSION,
            features: 0,
            lease_ms: CLIENT_LEASE.as_millis() as u32,
            map_json: Bytes::from(map_json),
            locks_lost: false,
            node: self.node,
            nodes: self.nodes_of(&state.map),
            identity_path: String::new(),
        };
        if !is_known && !hello.locks.is_empty() {
            // It was away for longer than its lease. It is not known before it has heard that, and greets without them.
            welcome.locks_lost = true;
            drop(state);
            return Ok((welcome, SessionHandle { volume, client: hello.client, session: hello.session, is_stopped }));
        }
        if !is_known {
            for engine in state.open_sets() {
                if let Err(error) = engine.store.note_client(&hello.client) {
                    let brick = engine.store.path.display();
                    tracing::warn!(client = %hello.client, %brick, "a restart will not wait for this client: {error}");
                }
            }
        }
        let opens = hello.open_objects.iter().map(|(object, count)| (object.gfid, (object.home, *count))).collect();
        let closed = state.clients.announce(hello.client, opens);
        let client = state.clients.client(hello.client);
        client.session = hello.session;
        client.seen(hello.lowest_unanswered);
        let open: HashSet<Gfid> = hello.open_objects.iter().map(|(object, _)| object.gfid).collect();
        let locks: Vec<OwnedLock> = hello.locks.iter().filter(|owned| open.contains(&owned.gfid)).copied().collect();
        state.locks.announce(hello.client, &locks);
        state.look_at_grace();
        for (gfid, home) in closed {
            state.delete_if_orphan(brickfs_common::fop::ObjectRef { gfid, home });
        }
        drop(state);
        let (client, session) = (hello.client, hello.session);
        Ok((welcome, SessionHandle { volume, client, session, is_stopped }))
    }

    fn nodes_of(&self, map: &VolumeMap) -> Vec<(NodeId, Vec<String>)> {
        let nodes = lock(&self.nodes);
        let members = map.sets.iter().flat_map(|set| &set.members);
        let having: BTreeSet<NodeId> = members.map(|member| member.node).collect();
        having.into_iter().map(|node| (node, nodes.get(&node).cloned().unwrap_or_default())).collect()
    }

    /// The file with the node's key and certificate.
    pub fn identity_path(&self) -> &str {
        &self.identity_path
    }

    /// Runs one call of a session.
    pub fn call(&self, session: &SessionHandle, header: &CallHeader, fop: Fop) -> Outcome {
        session.volume.call(session.client, session.session, header, fop)
    }

    /// A session's stream ended: nothing ends with it, the client's lease decides.
    pub fn session_ended(&self, session: SessionHandle) {
        tracing::info!(client = %session.client, session = session.session, "session ended");
    }
}

/// Looks through a volume on a thread of its own, if power may have been lost.
fn mend_beside(volume: &Arc<Volume<PosixStore>>) {
    if !volume.lock().open_sets().any(|engine| engine.store.lost_power()) {
        return;
    }
    let volume = volume.clone();
    let mend = move || {
        tracing::info!("power may have been lost: the bricks are looked through");
        let Mended { total, is_done } = block_on(volume.mend());
        if !is_done {
            tracing::warn!(mended = total, "the bricks are looked through again at the next start");
            return;
        }
        tracing::info!(mended = total, "the bricks have been looked through");
        for engine in volume.lock().open_sets() {
            engine.store.note_mended();
        }
    };
    if let Err(error) = std::thread::Builder::new().name("brick-mend".into()).spawn(mend) {
        tracing::error!("no thread to look through the bricks: {error}");
    }
}

/// Clients that are gone are no more waited for after a restart.
fn forget_ended(volume: &Volume<PosixStore>) {
    let mut state = volume.lock();
    for id in state.clients.ended.clone() {
        for engine in state.open_sets() {
            if let Err(error) = engine.store.forget_client(&id) {
                tracing::warn!(client = %id, set = %engine.id, "its record stays: {error}");
            }
        }
        // After its record: were it the other way round, a restart in between would believe its greeting.
        state.locks.end_client(id);
    }
    state.clients.ended.clear();
    state.look_at_grace();
}

fn brick_status(set: &brickfs_common::cluster::map::SetMap, slot: &Slot<PosixStore>) -> Option<BrickStatus> {
    let member = set.members.first()?;
    let store = match slot {
        Slot::Open(engine) => Ok(&engine.store),
        Slot::Failed(reason) => Err(reason.clone()),
        Slot::Elsewhere => return None,
    };
    let failed = match slot {
        Slot::Open(engine) => engine.failed.clone(),
        Slot::Failed(_) | Slot::Elsewhere => None,
    };
    let space = store.as_ref().ok().and_then(|store| store.space().ok()).unwrap_or_default();
    Some(BrickStatus {
        brick: member.brick,
        set: set.id,
        path: member.path.clone(),
        online: store.is_ok(),
        total_bytes: space.total_bytes,
        free_bytes: space.available_bytes,
        damage: store.as_ref().map(|store| store.damage.clone()).unwrap_or_default(),
        is_mending: store.as_ref().is_ok_and(|store| store.lost_power()),
        error: store.err().or(failed),
    })
}

fn start_ticking(
    name: &str,
    host: &Arc<Host>,
    ticks: mpsc::Receiver<()>,
    tick: impl Fn(&Arc<Volume<PosixStore>>) + Send + 'static,
) {
    let host = Arc::downgrade(host);
    let started = std::thread::Builder::new().name(name.into()).spawn(move || tick_until_dropped(&host, &ticks, tick));
    started.map_or_else(|error| tracing::error!("no thread for leases and barriers: {error}"), |_| ());
}

fn tick_until_dropped(host: &Weak<Host>, ticks: &mpsc::Receiver<()>, tick: impl Fn(&Arc<Volume<PosixStore>>)) {
    while let Err(mpsc::RecvTimeoutError::Timeout) = ticks.recv_timeout(TICK) {
        let Some(host) = host.upgrade() else { return };
        let volumes: Vec<_> = lock(&host.volumes).values().map(|served| served.volume.clone()).collect();
        drop(host);
        volumes.iter().for_each(&tick);
    }
}
