//! Opens the bricks of a volume: identity, log, what the last effect left half done; then the volume over
//! them, recovered before it is served.

use crate::brick::effect::Effect;
use crate::brick::format::{BrickIdentity, DOT_DIR, read_identity};
use crate::brick::log::EffectLog;
use crate::brick::meta::Position;
use crate::brick::set::SetEngine;
use crate::brick::store::posix::PosixStore;
use crate::brick::volume::recover::{drop_unchanged, first_seq, redo_last, untold};
use crate::brick::volume::{BoxFuture, PeerCall, PeerReply, Slot, Volume, World};
use anyhow::{Context as _, ensure};
use brickfs_common::attr::Timestamp;
use brickfs_common::cluster::map::{SetMap, VolumeMap};
use brickfs_common::errno::Errno;
use brickfs_common::ids::{NodeId, SetId, VolumeId};
use futures::executor::block_on;
use std::path::Path;
use std::sync::Arc;

/// Asks a set of a volume on another node.
pub type AskNode = Arc<dyn Fn(NodeId, VolumeId, SetId, PeerCall) -> BoxFuture<Result<PeerReply, Errno>> + Send + Sync>;

/// The clock and the randomness of this node, and the nodes of the volume's other sets.
struct ThisNode {
    volume: VolumeId,
    /// The node of each set.
    nodes: Vec<Option<NodeId>>,
    ask: AskNode,
}

fn now() -> Timestamp {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    Timestamp { sec: now.tv_sec, nsec: now.tv_nsec as u32 }
}

impl World for ThisNode {
    fn now(&self) -> Timestamp {
        now()
    }

    fn random_id(&self) -> [u8; 16] {
        rand::random()
    }

    fn send(&self, to: SetId, call: PeerCall) -> BoxFuture<Result<PeerReply, Errno>> {
        match self.nodes.get(usize::from(to.0)) {
            Some(Some(node)) => (self.ask)(*node, self.volume, to, call),
            _ => Box::pin(std::future::ready(Err(Errno::EIO))),
        }
    }

    fn spawn(&self, task: BoxFuture<()>) {
        // The thread of leases and barriers has no runtime of its own.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(task)),
            Err(_) => drop(std::thread::spawn(move || block_on(task))),
        }
    }
}

/// Opens this node's bricks of a volume. A brick that does not open is reported; the others are served.
pub fn open_volume(map: VolumeMap, node: NodeId, ask: AskNode) -> Arc<Volume<PosixStore>> {
    let mut last = Vec::new();
    let mut results = Vec::new();
    let is_elsewhere = |set: &SetMap| set.members.first().is_some_and(|member| member.node != node);
    let mut open = |set: &SetMap| match open_set(&map, set) {
        Ok((engine, effects)) => {
            last.extend(untold(&effects).map(|effect| (set.id, effect.clone())));
            results.extend(effects.into_iter().map(|effect| (set.id, effect)));
            Slot::Open(Box::new(engine))
        }
        Err(error) => {
            let line = format!("{error:#}");
            tracing::error!(volume = %map.name, set = %set.id, "brick is not served: {line}");
            Slot::Failed(line)
        }
    };
    let mut slot = |set: &SetMap| if is_elsewhere(set) { Slot::Elsewhere } else { open(set) };
    let sets = map.sets.iter().map(&mut slot).collect();
    let nodes = map.sets.iter().map(|set| set.members.first().map(|member| member.node)).collect();
    let volume = Volume::new(map.clone(), sets, Arc::new(ThisNode { volume: map.id, nodes, ask }));
    {
        let mut state = volume.lock();
        for (set, effect) in &results {
            state.clients.remember(*set, effect);
        }
        let mut noted = Vec::new();
        for engine in state.open_sets() {
            match engine.store.noted_clients() {
                Ok(ids) => noted.extend(ids),
                Err(error) => tracing::error!(set = %engine.id, "its clients cannot be listed: {error}"),
            }
        }
        state.clients.expect(noted);
        state.look_at_grace();
    }
    block_on(volume.recover(last));
    volume
}

/// Opens the brick of a set of one; it must be the brick that the map names (R7).
fn open_set(map: &VolumeMap, set: &SetMap) -> anyhow::Result<(SetEngine<PosixStore>, Vec<Effect>)> {
    let member = set.members.first().context("the set has no brick")?;
    let path = Path::new(&member.path);
    let found = read_identity(path)?
        .with_context(|| format!("{} has no .brickfs: is its disk mounted? Nothing was made in it", path.display()))?;
    let is_root_home = map.root_home == set.id;
    let expected = BrickIdentity {
        cluster: map.cluster,
        volume: map.id,
        volume_name: found.volume_name.clone(),
        brick: member.brick,
        incarnation: member.incarnation,
        set: set.id,
        is_root_home,
    };
    ensure!(
        found == expected,
        "{} is brick {} of volume {}, expected brick {}",
        path.display(),
        found.brick,
        found.volume_name,
        member.brick
    );
    let (log, mut effects) = EffectLog::open(&path.join(DOT_DIR).join("log"))?;
    let open_error = |error| anyhow::anyhow!("cannot open {}: {error}", path.display());
    let mut store = PosixStore::open(path, set.id, log).map_err(open_error)?;
    let lost_power = store.lost_power();
    redo_last(&mut store, &mut effects, lost_power);
    drop_unchanged(&mut store, set.id).map_err(open_error)?;
    let seq = first_seq(&effects, now());
    let position = Position { epoch: u32::try_from(set.epoch).context("the epoch is out of range")?, seq };
    let engine = SetEngine::new(set.id, store, position).map_err(open_error)?;
    Ok((engine, effects))
}
