//! The bricks of this node follow the cluster state: each change of it is taken to the host once, by whoever comes
//! first, the watcher of the state or a command that answers how things are after it.

use crate::brick::host::{BrickStatus, Host};
use crate::manager::follow::{Step, plan_steps};
use crate::manager::raft::Published;
use brickfs_common::cluster::state::{ClusterState, NodeState};
use brickfs_common::ids::{NodeId, VolumeId};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// The host, and the state that it follows.
pub struct Bricks {
    host: Arc<Host>,
    /// Held while the host is brought to another state.
    followed: Mutex<Followed>,
}

#[derive(Default)]
struct Followed {
    /// The last state that was followed.
    state: Option<ClusterState>,
    /// Nothing is followed any more.
    is_stopped: bool,
}

impl Bricks {
    /// Nothing is served.
    pub fn new(host: Arc<Host>) -> Arc<Bricks> {
        Arc::new(Bricks { host, followed: Mutex::default() })
    }

    /// Brings the host to a state, unless it follows a newer one. May wait for disks.
    pub fn follow(&self, state: &ClusterState) {
        // A panic while a volume was opened has been reported; the next state is followed all the same.
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = followed.state.as_ref().is_some_and(|followed| followed.applied >= state.applied);
        if is_known || followed.is_stopped {
            return;
        }
        let addresses = |(id, node): (&NodeId, &NodeState)| (*id, node.addresses.clone());
        self.host.update_nodes(state.nodes.iter().map(addresses).collect());
        let nothing = ClusterState { volumes: BTreeMap::new(), ..state.clone() };
        for step in plan_steps(followed.state.as_ref().unwrap_or(&nothing), state) {
            match step {
                Step::Stop(volume) => self.host.stop_volume(volume),
                Step::Update(map) => self.host.update_map(map),
                Step::Start(map) => {
                    let name = map.name.clone();
                    self.host.start_volume(map).iter().for_each(|brick| report_brick(&name, brick));
                }
            }
        }
        followed.state = Some(state.clone());
    }

    /// Follows every change of the state, until it is dropped.
    pub async fn follow_all(self: Arc<Self>, mut watched: watch::Receiver<Published>) {
        loop {
            let state = watched.borrow_and_update().clone();
            if let Some(state) = state {
                let bricks = self.clone();
                let followed = tokio::task::spawn_blocking(move || bricks.follow(&state)).await;
                if followed.is_err() {
                    tracing::error!("the bricks could not follow a change of the cluster's state");
                }
            }
            if watched.changed().await.is_err() {
                return;
            }
        }
    }

    /// Closes the bricks of every volume that is served.
    pub fn stop(&self) {
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        followed.is_stopped = true;
        for volume in followed.state.take().iter().flat_map(|state| state.volumes.values()) {
            self.host.stop_volume(volume.map.id);
        }
    }

    /// How many clients this node serves a volume to.
    pub fn clients_count(&self, volume: VolumeId) -> usize {
        self.host.clients_count(volume)
    }

    /// The bricks of a volume that this node serves.
    pub fn status(&self, volume: VolumeId) -> Vec<BrickStatus> {
        self.host.volume_status(volume)
    }
}

fn report_brick(volume: &str, brick: &BrickStatus) {
    if !brick.online {
        let error = brick.error.as_deref().unwrap_or("unknown");
        tracing::error!(volume, set = brick.set.0, path = brick.path, error, "brick is not served");
    }
    for damage in &brick.damage {
        tracing::error!(volume, set = brick.set.0, path = brick.path, damage, "brick is damaged");
    }
}
