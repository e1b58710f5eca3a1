//! The cluster state on disk: a sled tree that is flushed before a change is acknowledged, and the
//! readable `cluster.json` beside it for disaster recovery.
//!
//! Keys: `node` (16 bytes), `state` (JSON), `done/<command id>` (order number), `order/<number>`
//! (command id; the oldest are dropped), `pending/<volume id>` (a create under way, JSON).

use crate::manager::CommandId;
use anyhow::{Context as _, bail};
use brickfs_common::cluster::command::{Command, apply};
use brickfs_common::cluster::state::ClusterState;
use brickfs_common::cluster::stored;
use brickfs_common::ids::{ClusterId, NodeId, VolumeId};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// How many commands are remembered so that a repeated one is not run again.
const DONE_COMMANDS_MAX: u64 = 1024;
const CACHE_BYTES: u64 = 8 << 20;
const NODE_KEY: &[u8] = b"node";
const STATE_KEY: &[u8] = b"state";

/// A create under way: what to put away if it does not end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingCreate {
    /// The volume that is being made.
    pub volume: VolumeId,
    /// Its bricks on this node.
    pub bricks: Vec<PendingBrick>,
}

/// One brick of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingBrick {
    /// The brick directory.
    pub path: PathBuf,
    /// The directory's mode if it was there before; `None` if the create makes it.
    pub old_mode: Option<u32>,
}

/// The store of one node.
pub struct Store {
    db: sled::Db,
    path: PathBuf,
    json_path: PathBuf,
    node: NodeId,
    state: ClusterState,
}

impl Store {
    /// Opens the store in a state directory; the first time it makes a cluster of this one node. Without
    /// `node_name` a known node keeps its name and a new one is called `default_name`.
    pub fn open(dir: &Path, node_name: Option<&str>, default_name: &str) -> anyhow::Result<Store> {
        let path = dir.join("cluster.sled");
        let db = sled::Config::new()
            .path(&path)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(None)
            .open()
            .with_context(|| format!("cannot open the cluster store {}", path.display()))?;
        let json_path = dir.join("cluster.json");
        if db.get(STATE_KEY)?.is_none() {
            if json_path.exists() {
                bail!(
                    "{} has no cluster state but {} exists: bring the store back from a backup, or move {} away to \
                     start a new, empty cluster",
                    path.display(),
                    json_path.display(),
                    json_path.display()
                );
            }
            make_cluster(&db, &path, node_name.unwrap_or(default_name))?;
        }
        let (node, state) = read_state(&db).with_context(|| format!("the cluster store {}", path.display()))?;
        let mut store = Store { db, path, json_path, node, state };
        match node_name {
            Some(name) if name != store.node_name() => {
                let next = apply(&store.state, &Command::RenameNode { node, name: name.to_owned() })?;
                store.commit(None, next, None)?;
            }
            _ => store.write_json()?,
        }
        Ok(store)
    }

    /// The state in force.
    pub fn state(&self) -> &ClusterState {
        &self.state
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// This node's name.
    pub fn node_name(&self) -> &str {
        self.state.nodes.get(&self.node).map_or("", |node| node.name.as_str())
    }

    /// Whether a command with this id was committed.
    pub fn is_done(&self, id: &CommandId) -> anyhow::Result<bool> {
        Ok(self.db.contains_key(done_key(id))?)
    }

    /// Commits the state that a command made, and ends a pending create. On return it is on the disk.
    pub fn commit(
        &mut self,
        id: Option<&CommandId>,
        next: ClusterState,
        ended: Option<VolumeId>,
    ) -> anyhow::Result<()> {
        let mut batch = sled::Batch::default();
        batch.insert(STATE_KEY, serde_json::to_vec(&next)?);
        if let Some(id) = id {
            batch.insert(done_key(id), &next.applied.to_be_bytes());
            batch.insert(order_key(next.applied), id.as_slice());
        }
        if let Some(oldest) = next.applied.checked_sub(DONE_COMMANDS_MAX)
            && let Some(old) = self.db.get(order_key(oldest))?
        {
            batch.remove(order_key(oldest));
            batch.remove([b"done/".as_slice(), &old].concat());
        }
        if let Some(volume) = ended {
            batch.remove(pending_key(&volume));
        }
        self.db.apply_batch(batch)?;
        self.sync()?;
        self.state = next;
        // The store has it: a copy that cannot be written is a fault to look at, not a failed command.
        if let Err(error) = self.write_json() {
            tracing::error!(error = format!("{error:#}"), "the readable copy of the cluster state is old");
        }
        Ok(())
    }

    /// Remembers a create that is about to touch its bricks.
    pub fn put_pending(&self, pending: &PendingCreate) -> anyhow::Result<()> {
        self.db.insert(pending_key(&pending.volume), serde_json::to_vec(pending)?)?;
        self.sync()?;
        Ok(())
    }

    /// Forgets a create that was undone.
    pub fn drop_pending(&self, volume: &VolumeId) -> anyhow::Result<()> {
        self.db.remove(pending_key(volume))?;
        self.sync()?;
        Ok(())
    }

    /// The creates that were under way when the store was last closed.
    pub fn pending(&self) -> anyhow::Result<Vec<PendingCreate>> {
        let records = self.db.scan_prefix(b"pending/").values();
        records.map(|record| Ok(serde_json::from_slice(&record?)?)).collect()
    }

    fn sync(&self) -> anyhow::Result<()> {
        sync(&self.db, &self.path).with_context(|| format!("cannot sync the cluster store {}", self.path.display()))
    }

    fn write_json(&self) -> anyhow::Result<()> {
        let mut text = serde_json::to_vec_pretty(&self.state)?;
        text.push(b'\n');
        replace_file(&self.json_path, &text)
    }
}

/// Makes what was written durable. sled's own flush ends in sync_file_range(2), which empties no disk's cache and writes
/// no size of a file, and leaves out large values, which are files of their own (see `cluster_db`).
fn sync(db: &sled::Db, path: &Path) -> anyhow::Result<()> {
    db.flush()?;
    let values = path.join("blobs");
    for directory in [values.as_path(), path].into_iter().filter(|directory| directory.is_dir()) {
        for entry in fs::read_dir(directory)? {
            match File::open(entry?.path()) {
                Ok(file) => file.sync_all()?,
                Err(error) if error.kind() == ErrorKind::NotFound => {} // replaced meanwhile
                Err(error) => return Err(error.into()),
            }
        }
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

fn done_key(id: &CommandId) -> Vec<u8> {
    [b"done/".as_slice(), id].concat()
}

fn order_key(number: u64) -> Vec<u8> {
    [b"order/".as_slice(), &number.to_be_bytes()].concat()
}

fn pending_key(volume: &VolumeId) -> Vec<u8> {
    [b"pending/".as_slice(), &volume.0].concat()
}

fn make_cluster(db: &sled::Db, path: &Path, name: &str) -> anyhow::Result<()> {
    let node = NodeId(rand::random());
    let state = ClusterState::of_one_node(ClusterId(rand::random()), node, name);
    let mut batch = sled::Batch::default();
    batch.insert(NODE_KEY, node.0.as_slice());
    batch.insert(STATE_KEY, serde_json::to_vec(&state)?);
    db.apply_batch(batch)?;
    sync(db, path)?;
    tracing::info!(cluster = %state.cluster, name, "made a new cluster of one node");
    Ok(())
}

fn read_state(db: &sled::Db) -> anyhow::Result<(NodeId, ClusterState)> {
    let node = db.get(NODE_KEY)?.and_then(|bytes| NodeId::from_slice(&bytes)).context("does not name its node")?;
    let text = db.get(STATE_KEY)?.context("has no state")?;
    let state = stored::read_state(&text)?;
    if !state.nodes.contains_key(&node) {
        bail!("does not list its own node {node}");
    }
    Ok((node, state))
}

/// Replaces a file so that a crash leaves the old or the new contents.
pub(super) fn replace_file(path: &Path, contents: &[u8]) -> anyhow::Result<()> {
    let tmp = path.with_extension("json.tmp");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&tmp)
        .with_context(|| format!("cannot write {}", tmp.display()))?;
    file.write_all(contents)?;
    file.sync_all()?;
    fs::rename(&tmp, path).with_context(|| format!("cannot replace {}", path.display()))?;
    if let Some(dir) = path.parent() {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn comment(store: &Store, node: NodeId, name: &str) -> ClusterState {
        apply(store.state(), &Command::RenameNode { node, name: name.to_owned() }).unwrap()
    }

    #[test]
    fn a_committed_state_is_there_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path(), None, "node-1").unwrap();
        let (cluster, node) = (store.state().cluster, store.node());
        let next = comment(&store, node, "alpha");
        store.commit(Some(&[7; 16]), next, None).unwrap();
        drop(store);
        let store = Store::open(dir.path(), None, "other").unwrap();
        assert_eq!((store.state().cluster, store.node(), store.node_name()), (cluster, node, "alpha"));
        assert!(store.is_done(&[7; 16]).unwrap() && !store.is_done(&[8; 16]).unwrap());
        let json = fs::read(dir.path().join("cluster.json")).unwrap();
        assert_eq!(&serde_json::from_slice::<ClusterState>(&json).unwrap(), store.state());
        drop(store);
        let store = Store::open(dir.path(), Some("beta"), "other").unwrap();
        assert_eq!(store.node_name(), "beta");
    }

    #[test]
    fn old_command_ids_are_dropped_and_young_ones_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path(), None, "node-1").unwrap();
        let id = |i: u64| u128::from(i).to_be_bytes();
        for i in 1..=DONE_COMMANDS_MAX + 2 {
            let mut next = store.state().clone();
            next.applied = i;
            let mut batch = sled::Batch::default();
            batch.insert(done_key(&id(i)), &i.to_be_bytes());
            batch.insert(order_key(i), id(i).as_slice());
            store.db.apply_batch(batch).unwrap();
            store.state = next;
        }
        let mut next = store.state().clone();
        next.applied += 1;
        store.commit(Some(&[9; 16]), next, None).unwrap();
        assert!(!store.is_done(&id(3)).unwrap() && store.is_done(&id(4)).unwrap());
        assert!(store.is_done(&[9; 16]).unwrap());
    }

    #[test]
    fn a_lost_store_is_not_taken_for_a_new_cluster() {
        let dir = tempfile::tempdir().unwrap();
        drop(Store::open(dir.path(), None, "node-1").unwrap());
        fs::remove_dir_all(dir.path().join("cluster.sled")).unwrap();
        let error = Store::open(dir.path(), None, "node-1").err().unwrap().to_string();
        assert!(error.contains("cluster.json"), "{error}");
    }

    #[test]
    fn pending_creates_are_remembered_until_they_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path(), None, "node-1").unwrap();
        let brick = PendingBrick { path: "/b".into(), old_mode: None };
        let pending = PendingCreate { volume: VolumeId([3; 16]), bricks: vec![brick] };
        store.put_pending(&pending).unwrap();
        assert_eq!(store.pending().unwrap(), std::slice::from_ref(&pending));
        let next = comment(&store, store.node(), "alpha");
        store.commit(None, next, Some(pending.volume)).unwrap();
        assert!(store.pending().unwrap().is_empty());
    }
}
