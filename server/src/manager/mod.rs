//! The cluster manager of a node: it answers `brickctl`, turns orders into commands, commits them to the
//! store and lets the bricks follow. One order runs at a time.

pub mod brick_path;
#[cfg_attr(not(test), expect(dead_code, reason = "used by the Raft member alone until the manager moves onto it"))]
mod cluster_db;
mod create;
#[cfg_attr(not(test), expect(dead_code, unused_imports, reason = "the manager moves onto it next"))]
mod raft;
pub mod service;
pub mod store;

use crate::brick::host::{BrickStatus, Host};
use anyhow::bail;
use brickfs_common::cluster::admin::{
    AdminCall, AdminResult, BrickReport, NodeInfo, VolumeInfo, VolumeStatus, option_values,
};
use brickfs_common::cluster::command::{Command, Refusal, apply};
use brickfs_common::cluster::state::{ClusterState, VolumeState};
use brickfs_common::volume_spec::shorten;
use std::sync::Arc;
use store::Store;

/// The identity that a client gives a change, so that a retried one runs once.
pub type CommandId = [u8; 16];

/// The state of the cluster and the bricks that follow it.
pub struct Manager {
    store: Store,
    host: Arc<Host>,
}

impl Manager {
    /// Takes over a store: puts away what an interrupted create left, and starts the volumes that are to
    /// run. A brick that does not open is reported and the others are served.
    pub fn start(mut store: Store, host: Arc<Host>) -> anyhow::Result<Manager> {
        create::clean_interrupted(&mut store)?;
        let manager = Manager { store, host };
        for volume in manager.state().volumes.values().filter(|volume| volume.started) {
            for brick in manager.host.start_volume(volume.map.clone()) {
                report_brick(&volume.map.name, &brick);
            }
        }
        Ok(manager)
    }

    /// Closes the bricks of every started volume. They are served again at the next start.
    pub fn stop(&self) {
        for volume in self.state().volumes.values().filter(|volume| volume.started) {
            self.host.stop_volume(volume.map.id);
        }
    }

    /// The cluster state in force.
    pub fn state(&self) -> &ClusterState {
        self.store.state()
    }

    /// Runs one call. A change that this `id` already made is not made again: the answer is then how
    /// things are now.
    pub fn run(&mut self, id: Option<CommandId>, call: AdminCall) -> anyhow::Result<AdminResult> {
        if call.is_change() {
            let Some(id) = id else { bail!("a change needs a command id of 16 bytes") };
            if !self.store.is_done(&id)? {
                return self.change(&id, call);
            }
            tracing::info!("a repeated command was answered without running it again");
        }
        self.answer(call)
    }

    fn change(&mut self, id: &CommandId, call: AdminCall) -> anyhow::Result<AdminResult> {
        let command = match &call {
            AdminCall::VolumeCreate { name, replica, stripe, force, bricks } => {
                let order = create::Order { name, replica: *replica, stripe: *stripe, force: *force, bricks };
                create::create_volume(&mut self.store, id, &order)?;
                return self.answer(call);
            }
            AdminCall::VolumeStart { name } => Command::StartVolume { name: name.clone() },
            AdminCall::VolumeStop { name } => Command::StopVolume { name: name.clone() },
            AdminCall::VolumeDelete { name } => Command::DeleteVolume { name: name.clone() },
            AdminCall::VolumeSet { name, key, value } => {
                Command::SetOption { name: name.clone(), key: key.clone(), value: value.clone() }
            }
            AdminCall::VolumeReset { name, key } => Command::ResetOption { name: name.clone(), key: key.clone() },
            AdminCall::Node {} | AdminCall::VolumeList {} | AdminCall::VolumeInfo { .. } => return self.answer(call),
            AdminCall::VolumeStatus { .. } | AdminCall::VolumeGet { .. } => return self.answer(call),
        };
        let next = apply(self.state(), &command)?;
        self.store.commit(Some(id), next, None)?;
        self.follow(&command);
        self.answer(call)
    }

    /// Lets the bricks follow a committed command.
    fn follow(&self, command: &Command) {
        match command {
            Command::StartVolume { name } => {
                if let Some(volume) = self.state().volumes.get(name) {
                    let bricks = self.host.start_volume(volume.map.clone());
                    bricks.iter().for_each(|brick| report_brick(name, brick));
                }
            }
            Command::StopVolume { name } => {
                if let Some(volume) = self.state().volumes.get(name) {
                    self.host.stop_volume(volume.map.id);
                }
            }
            Command::SetOption { name, .. } | Command::ResetOption { name, .. } => {
                if let Some(volume) = self.state().volumes.get(name).filter(|volume| volume.started) {
                    self.host.update_map(volume.map.clone());
                }
            }
            Command::CreateVolume(_) | Command::DeleteVolume { .. } | Command::RenameNode { .. } => (),
            // Nothing of these reaches a brick.
            Command::AddToken(_) | Command::AddNode(_) | Command::SetAddresses { .. } => (),
            Command::RemoveNode { .. } | Command::RenewCertificate(_) | Command::SetSupports { .. } => (),
            Command::RaiseVersion { .. } | Command::AddClient(_) | Command::RemoveClient { .. } => (),
            Command::DropEnded { .. } => (),
            // Nobody proposes these before there are replicas.
            Command::ChangeSet(_) | Command::NodeLost(_) => (),
        }
    }

    /// How things are, as the answer to a call; for a change, after it.
    fn answer(&self, call: AdminCall) -> anyhow::Result<AdminResult> {
        Ok(match call {
            AdminCall::Node {} => AdminResult::Node(self.node_info()),
            AdminCall::VolumeList {} => {
                AdminResult::Volumes(self.state().volumes.values().map(|volume| VolumeInfo::from(&**volume)).collect())
            }
            AdminCall::VolumeInfo { name } | AdminCall::VolumeCreate { name, .. } => {
                AdminResult::Volume(VolumeInfo::from(self.volume(&name)?))
            }
            AdminCall::VolumeStatus { name } | AdminCall::VolumeStart { name } => {
                AdminResult::Status(self.volume_status(self.volume(&name)?))
            }
            AdminCall::VolumeGet { name, key } => {
                AdminResult::Options(option_values(&self.volume(&name)?.map.options, key.as_deref())?)
            }
            AdminCall::VolumeStop { .. } | AdminCall::VolumeDelete { .. } => AdminResult::Done {},
            AdminCall::VolumeSet { .. } | AdminCall::VolumeReset { .. } => AdminResult::Done {},
        })
    }

    fn volume(&self, name: &str) -> Result<&VolumeState, Refusal> {
        self.state().volumes.get(name).map(Arc::as_ref).ok_or_else(|| Refusal::NoSuchVolume(shorten(name)))
    }

    fn node_info(&self) -> NodeInfo {
        let node = self.store.node();
        NodeInfo {
            cluster: self.state().cluster,
            node,
            name: self.store.node_name().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
        }
    }

    fn volume_status(&self, volume: &VolumeState) -> VolumeStatus {
        let served = if volume.started { self.host.volume_status(volume.map.id) } else { Vec::new() };
        let absent = if volume.started { "not opened" } else { "the volume is stopped" };
        let mut bricks = Vec::new();
        for set in &volume.map.sets {
            for member in &set.members {
                let status = served.iter().find(|status| status.brick == member.brick);
                bricks.push(BrickReport {
                    node: member.node_name.clone(),
                    path: member.path.clone(),
                    set: set.id,
                    brick: member.brick,
                    online: status.is_some_and(|status| status.online),
                    error: match status {
                        Some(status) => status.error.clone(),
                        None => Some(absent.to_owned()),
                    },
                    total_bytes: status.map_or(0, |status| status.total_bytes),
                    free_bytes: status.map_or(0, |status| status.free_bytes),
                    damage: status.map_or_else(Vec::new, |status| status.damage.clone()),
                    mending: status.is_some_and(|status| status.is_mending),
                });
            }
        }
        let healthy = volume.started && bricks.iter().all(|b| b.online && b.error.is_none() && b.damage.is_empty());
        VolumeStatus { name: volume.map.name.clone(), started: volume.started, healthy, bricks }
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
