//! Backup and restore of the cluster's state.
//!
//! A restore makes this node, which is alone, one of the nodes of the backup: the same cluster, the same node, so that
//! the bricks on its disks are its own, and a Raft that begins anew with the restored state. What it becomes is written
//! to `restore.json` first; from then on each start goes on where the last one ended (`startup`), and the file goes once
//! the state is in Raft. Before that file is there nothing has changed.

use crate::manager::backup::{Backup, write_backup};
use crate::manager::cluster_db::ClusterDb;
use crate::manager::node::now_ms;
use crate::manager::raft::forget_cluster;
use crate::manager::records::{Own, Records};
use crate::manager::{CommandId, Manager};
use crate::security::authority::Authority;
use crate::security::files;
use crate::security::identity::Identity;
use anyhow::{Context as _, bail};
use brickfs_common::cluster::admin::{AdminCall, AdminResult};
use brickfs_common::cluster::backup::{BackupText, Passphrase, Restored};
use brickfs_common::cluster::restore::{choose_node, others, restored_state};
use brickfs_common::cluster::state::ClusterState;
use brickfs_common::ids::NodeId;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::PoisonError;
use std::time::SystemTime;
use zeroize::Zeroizing;

const FILE: &str = "restore.json";

/// A restore under way: what this node becomes. Its file has the authority's key, as `tls` does.
pub struct Restoring {
    /// The first state.
    pub state: ClusterState,
    command: CommandId,
    node: NodeId,
    authority: Authority,
}

/// Its file.
#[derive(Serialize, Deserialize)]
struct Stored<S> {
    state: S,
    command: CommandId,
    node: NodeId,
    certificate: String,
    key: String,
}

impl Restoring {
    /// What a restore left that has not ended, if there is one.
    pub fn load(dir: &Path) -> anyhow::Result<Option<Restoring>> {
        let path = dir.join(FILE);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            text => Zeroizing::new(text.with_context(|| format!("cannot read {}", path.display()))?),
        };
        let read = || -> anyhow::Result<Restoring> {
            let stored: Stored<ClusterState> = serde_json::from_str(&text)?;
            let key = Zeroizing::new(stored.key);
            let authority = Authority::from_pem(&stored.certificate, &key)?;
            Ok(Restoring { state: stored.state, command: stored.command, node: stored.node, authority })
        };
        read().map(Some).with_context(|| format!("the restore under way in {}", path.display()))
    }

    /// Writes it down: this is the moment from which it is done sooner or later.
    fn store(&self, dir: &Path) -> anyhow::Result<()> {
        let (certificate, key) = (self.authority.certificate().pem(), self.authority.key_pem());
        let stored =
            Stored { state: &self.state, command: self.command, node: self.node, certificate, key: key.to_string() };
        let text = Zeroizing::new(serde_json::to_vec(&stored)?);
        drop(Zeroizing::new(stored.key));
        files::write(&dir.join(FILE), &text)
    }

    /// Whether this command is under way already; a refusal where another one is.
    fn is_under_way(dir: &Path, id: CommandId) -> anyhow::Result<bool> {
        match Restoring::load(dir)? {
            None => Ok(false),
            Some(restoring) if restoring.command == id => Ok(true),
            Some(_) => bail!("another restore is under way on this node"),
        }
    }

    /// Makes this node what it becomes, but for the state. May be done again after a crash at any place.
    pub fn begin(&self, dir: &Path, db: &ClusterDb, records: &Records) -> anyhow::Result<()> {
        tracing::info!(cluster = %self.state.cluster, node = %self.node, "restoring a backup");
        self.authority.store(dir)?;
        Identity::remove(dir)?;
        futures::executor::block_on(forget_cluster(db))?;
        records.set_own(Own { node: self.node, cluster: self.state.cluster, is_founding: true })
    }

    /// Ends it, once the state is in Raft.
    pub fn end(self, dir: &Path, records: &Records) -> anyhow::Result<()> {
        records.set_restored(self.command)?;
        files::remove(&dir.join(FILE))
    }
}

impl Manager {
    /// A backup of the state as this node has it; with a passphrase the authority is in it, which only voters have.
    pub(super) fn backup(&self, passphrase: Option<&Passphrase>) -> anyhow::Result<BackupText> {
        let state = self.state()?;
        let authority = self.node.authority();
        let sealed = match (passphrase, &authority) {
            (None, _) => None,
            (Some(passphrase), Some(authority)) => Some((&**authority, passphrase.0.as_str())),
            (Some(_), None) => {
                let voters = self.node.member.voters();
                let names = voters.iter().filter_map(|voter| Some(state.nodes.get(voter)?.name.as_str()));
                let names = names.collect::<Vec<_>>().join(", ");
                bail!("the authority's key is on voters only: make a backup with it on one of {names}");
            }
        };
        Ok(BackupText {
            text: write_backup(&state, sealed, now_ms())?,
            cluster: state.cluster,
            nodes_count: state.nodes.len(),
            volumes_count: state.volumes.len(),
            has_key: sealed.is_some(),
        })
    }

    /// Begins a cluster with the state of a backup, on a node that is alone. Everything on it starts anew then; asked
    /// again, it says that it is done.
    pub(super) fn restore(&self, id: CommandId, call: &AdminCall) -> anyhow::Result<AdminResult> {
        let AdminCall::ClusterRestore { text, passphrase, as_node, new_authority } = call else {
            bail!("this is no restore");
        };
        let backup = Backup::read(text)?;
        let state = &backup.state;
        // Neither a create nor a repetition of this call comes between what is looked at and what is written.
        let _alone = self.creating.lock().unwrap_or_else(PoisonError::into_inner);
        let is_done = self.records.restored()? == Some(id);
        let node = match is_done {
            true => self.node.id,
            false => choose_node(state, as_node.as_deref(), &self.node.name())?,
        };
        let (waits_for, dropped) = others(state, node);
        let name = state.nodes.get(&node).map_or_else(String::new, |node| node.name.clone());
        let keeps_authority = passphrase.is_some();
        if !is_done && !Restoring::is_under_way(&self.node.state_dir, id)? {
            self.node.check_alone()?;
            if !waits_for.is_empty() && self.addresses.is_empty() {
                bail!(
                    "other nodes have to join, and this one listens on its own socket alone: start brickd with --listen"
                );
            }
            let authority = authority_of(&backup, passphrase.as_ref(), *new_authority)?;
            let state = restored_state(state, node, self.addresses.clone(), keeps_authority, now_ms());
            Restoring { state, command: id, node, authority }.store(&self.node.state_dir)?;
            tracing::info!(made_ms = backup.made_ms, name, "a backup is restored, starting anew");
            self.node.set_rejoined();
        }
        let (cluster, volumes_count) = (state.cluster, state.volumes.len());
        let restored = Restored { cluster, name, volumes_count, waits_for, dropped, keeps_authority, is_done };
        Ok(AdminResult::Restored(restored))
    }
}

/// The authority of the restored cluster: the old one, or, where the operator says so or there is none, a new one.
fn authority_of(backup: &Backup, passphrase: Option<&Passphrase>, wants_new: bool) -> anyhow::Result<Authority> {
    match passphrase {
        Some(_) if wants_new => bail!("a new authority and the passphrase of the old one do not go together"),
        Some(passphrase) => backup.open_authority(&passphrase.0),
        None if backup.has_authority() && !wants_new => bail!(
            "the authority's key is in the backup: give its --passphrase-file, or --new-authority to do without it"
        ),
        None => Authority::make(backup.state.cluster, SystemTime::now()),
    }
}

#[cfg(test)]
#[path = "restore_tests.rs"]
mod tests;
