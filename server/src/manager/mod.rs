//! The cluster manager of a node: it answers `brickctl`, turns orders into commands, has them applied by the cluster
//! and lets the bricks of this node follow the state.
//!
//! ```text
//! brickctl ─▶ service ─▶ Manager ─▶ Node::run ─▶ Raft (here or on the leader)
//!                          │                        │ applied
//!                          ▼                        ▼
//!                        answer               Bricks::follow ─▶ Host
//! ```
//!
//! What waits for a disk or for other nodes runs on the manager thread; the calls of `brickctl` on threads of the
//! blocking pool.

mod backup;
mod brick_orders;
mod brick_path;
mod bricks;
mod care;
mod certificates;
mod cluster_db;
mod create;
mod figures;
mod follow;
mod join;
pub mod node;
mod old_store;
pub mod peers;
mod raft;
mod records;
mod reports;
mod restore;
pub mod service;
pub mod startup;

pub use certificates::CERTIFICATE_LIFE_S;
pub use join::DEFAULT_PORT;

use crate::brick::host::Host;
use crate::manager::join::Wish;
use crate::manager::raft::ManagerThread;
use anyhow::{Context as _, bail};
use brickfs_common::cluster::admin::{AdminCall, AdminResult, VolumeInfo, option_values};
use brickfs_common::cluster::command::{Command, Refusal};
use brickfs_common::cluster::state::{ClusterState, NodeRole, VolumeState};
use brickfs_common::ids::{NodeId, VolumeId};
use brickfs_common::volume_spec::shorten;
use bricks::Bricks;
use node::{CommandError, Node, now_ms};
use records::Records;
use startup::Opened;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// The identity that a client gives a change, so that a retried one runs once.
pub type CommandId = [u8; 16];

/// What a node does for `brickctl`.
pub struct Manager {
    node: Arc<Node>,
    bricks: Arc<Bricks>,
    records: Records,
    thread: Arc<ManagerThread>,
    /// As what this node would join another cluster.
    role: NodeRole,
    addresses: Vec<String>,
    /// Held while a create looks at disks and makes bricks, so that two do not take the same directory.
    creating: Mutex<()>,
}

impl Manager {
    /// A manager whose bricks are not served yet: see `serve_bricks`.
    pub fn start(opened: &Opened, host: Arc<Host>, role: NodeRole, addresses: Vec<String>) -> Arc<Manager> {
        let (node, records, thread) = (opened.node.clone(), opened.records.clone(), opened.thread.clone());
        let bricks = Bricks::new(host);
        let creating = Mutex::new(());
        drop(thread.run(brick_orders::end_interrupted_creates(node.clone(), records.clone())));
        Arc::new(Manager { node, bricks, records, thread, role, addresses, creating })
    }

    /// Serves the bricks of the volumes that are started, and lets them follow the state from then on. A brick that
    /// does not open is reported and the others are served. May wait for disks.
    pub fn serve_bricks(&self) {
        if let Some(state) = self.node.member.state() {
            self.bricks.follow(&state);
        }
        drop(self.thread.run(self.bricks.clone().follow_all(self.node.member.watch())));
    }

    /// Closes the bricks of every started volume. They are served again at the next start.
    pub fn stop(&self) {
        self.bricks.stop();
    }

    /// The applied state.
    pub fn state(&self) -> Result<Arc<ClusterState>, CommandError> {
        self.node.state()
    }

    /// Runs one call, on a thread that may block. A change that this `id` already made is not made again: the answer
    /// is then how things are now. `caller` is for what the state remembers of who asked.
    pub fn run(&self, id: Option<CommandId>, call: AdminCall, caller: &str) -> anyhow::Result<AdminResult> {
        if !call.is_change() {
            return self.answer(call, caller);
        }
        let Some(id) = id else { bail!("a change needs a command id of 16 bytes") };
        match &call {
            AdminCall::VolumeCreate { name, replica, stripe, force, bricks } => {
                let order = create::Order { name, replica: *replica, stripe: *stripe, force: *force, bricks };
                self.create(&id, &order)?;
            }
            AdminCall::ClusterRestore { .. } => return self.restore(id, &call),
            _ => self.command(id, self.command_of(&call)?)?,
        }
        self.answer(call, caller)
    }

    fn command_of(&self, call: &AdminCall) -> anyhow::Result<Command> {
        Ok(match call.clone() {
            AdminCall::VolumeStart { name } => Command::StartVolume { name },
            AdminCall::VolumeStop { name } => Command::StopVolume { name },
            AdminCall::VolumeDelete { name } => Command::DeleteVolume { name },
            AdminCall::VolumeSet { name, key, value } => Command::SetOption { name, key, value },
            AdminCall::VolumeReset { name, key } => Command::ResetOption { name, key },
            AdminCall::PeerRemove { node } => {
                // A repetition finds no such node any more; its id says that it was done.
                let state = self.state()?;
                let found = state.node_by_name(&node).unwrap_or_default();
                if state.nodes.len() > 1 && self.node.member.voters() == BTreeSet::from([found]) {
                    // Once it is removed nobody listens to it any more, and nobody but it could give the vote away.
                    bail!(
                        "'{node}' is the only voter, and the cluster ends with it: let a third node join first, at \
                         least a witness, so that others vote as well"
                    );
                }
                let known = found != NodeId::default();
                let removed = if known { found } else { node.parse().unwrap_or_default() };
                Command::RemoveNode { node: removed, now_ms: now_ms() }
            }
            AdminCall::VolumeCreate { .. } => bail!("a create is more than a command"),
            AdminCall::Node {} | AdminCall::VolumeList {} | AdminCall::VolumeInfo { .. } => bail!("not a change"),
            AdminCall::VolumeStatus { .. } | AdminCall::VolumeGet { .. } | AdminCall::PeerList {} => {
                bail!("not a change")
            }
            AdminCall::ClusterStatus {} | AdminCall::ClusterRaft {} => bail!("not a change"),
            AdminCall::PeerToken { .. } | AdminCall::PeerJoin { .. } => bail!("not a change"),
            AdminCall::ClusterBackup { .. } => bail!("not a change"),
            AdminCall::ClusterRestore { .. } => bail!("a restore is no command"),
        })
    }

    /// Has a command applied and this node's bricks follow it.
    fn command(&self, id: CommandId, command: Command) -> anyhow::Result<()> {
        let node = self.node.clone();
        let outcome = self.block_on(async move { node.run(id, command).await })??;
        if let Some(refusal) = outcome.refusal {
            bail!("{refusal}");
        }
        self.bricks.follow(&*self.state()?);
        Ok(())
    }

    fn block_on<F>(&self, future: F) -> anyhow::Result<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.thread.block_on(future).context("brickd is stopping")
    }

    fn create(&self, id: &CommandId, order: &create::Order<'_>) -> anyhow::Result<()> {
        // A panic in one call must not end administration: what a create leaves is put away by its record.
        let _creating = self.creating.lock().unwrap_or_else(PoisonError::into_inner);
        // An earlier try of the same command, whose outcome was not known.
        let pending = self.records.pending()?.into_iter().find(|pending| pending.command == Some(*id));
        if let Some(pending) = pending {
            let (node, records) = (self.node.clone(), self.records.clone());
            self.block_on(async move { brick_orders::end_create_in_doubt(&node, &records, &pending).await })??;
        }
        let (state, volume) = (self.state()?, VolumeId(*id));
        if state.volumes.get(order.name).is_some_and(|made| made.map.id == volume) {
            return Ok(());
        }
        let (create, nodes) = self.prepare_create(&state, id, order)?;
        let (node, id) = (self.node.clone(), *id);
        let outcome = self.block_on(async move { node.run(id, Command::CreateVolume(create)).await })?;
        match outcome {
            // Not known: the records stay, and are looked at again when the cluster answers.
            Err(error) => Err(error.into()),
            Ok(outcome) => {
                self.end_create(volume, &nodes, outcome.refusal.is_none());
                outcome.refusal.map_or(Ok(()), |refusal| bail!("{refusal}"))
            }
        }
    }

    /// How things are, as the answer to a call; for a change, after it.
    fn answer(&self, call: AdminCall, caller: &str) -> anyhow::Result<AdminResult> {
        let node = self.node.clone();
        Ok(match call {
            AdminCall::Node {} => AdminResult::Node(self.node_info()),
            AdminCall::VolumeList {} => {
                let state = self.state()?;
                AdminResult::Volumes(state.volumes.values().map(|volume| VolumeInfo::from(&**volume)).collect())
            }
            AdminCall::VolumeInfo { name } | AdminCall::VolumeCreate { name, .. } => {
                AdminResult::Volume(VolumeInfo::from(&*self.volume(&name)?))
            }
            AdminCall::VolumeStatus { name } | AdminCall::VolumeStart { name } => {
                AdminResult::Status(self.volume_status(&*self.volume(&name)?)?)
            }
            AdminCall::VolumeGet { name, key } => {
                AdminResult::Options(option_values(&self.volume(&name)?.map.options, key.as_deref())?)
            }
            AdminCall::VolumeStop { .. } | AdminCall::VolumeDelete { .. } => AdminResult::Done {},
            AdminCall::VolumeSet { .. } | AdminCall::VolumeReset { .. } => AdminResult::Done {},
            AdminCall::PeerRemove { .. } | AdminCall::ClusterRestore { .. } => AdminResult::Done {},
            AdminCall::ClusterBackup { passphrase } => AdminResult::Backup(self.backup(passphrase.as_ref())?),
            AdminCall::ClusterStatus {} => {
                AdminResult::Cluster(self.block_on(async move { node.cluster_report().await })??)
            }
            AdminCall::ClusterRaft {} => AdminResult::Raft(self.block_on(async move { node.raft_report().await })??),
            AdminCall::PeerList {} => AdminResult::Peers(self.node.peer_list()?),
            AdminCall::PeerToken { valid_s } => {
                let made_by = caller.to_owned();
                AdminResult::Token(self.block_on(async move { node.make_token(valid_s, made_by).await })??)
            }
            AdminCall::PeerJoin { address, token } => {
                let wish = Wish { addresses: self.addresses.clone(), role: self.role };
                let join = async move { node.join(address.as_deref(), &token, wish).await };
                AdminResult::Joined(self.block_on(join)??)
            }
        })
    }

    fn volume(&self, name: &str) -> anyhow::Result<Arc<VolumeState>> {
        let state = self.state()?;
        let volume = state.volumes.get(name).cloned();
        Ok(volume.ok_or_else(|| Refusal::NoSuchVolume(shorten(name)))?)
    }
}
