//! What this node alone knows, in its database beside Raft's: who it is, which cluster it is a member of, and the
//! creates under way that have touched its disks.
//!
//! Tree `node`: `id` and `cluster` (16 bytes each), `founding` (there while the first state of an own cluster is not
//! known to be in Raft), `restored` (id of the command that restored a backup here, 16 bytes), `pending/<volume id>`
//! (JSON of a `PendingCreate`).

use crate::manager::CommandId;
use crate::manager::cluster_db::ClusterDb;
use anyhow::Context as _;
use brickfs_common::ids::{ClusterId, NodeId, VolumeId};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

const ID: &str = "id";
const CLUSTER: &str = "cluster";
const FOUNDING: &str = "founding";
const RESTORED: &str = "restored";

/// A create under way: what to put away if it does not end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingCreate {
    /// The volume that is being made.
    pub volume: VolumeId,
    /// The id of its command.
    #[serde(default)]
    pub command: Option<CommandId>,
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

/// The records of a node. Clones share them.
#[derive(Clone)]
pub struct Records {
    db: ClusterDb,
    tree: sled::Tree,
}

/// Who a node is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Own {
    /// The node.
    pub node: NodeId,
    /// The cluster that it is a member of.
    pub cluster: ClusterId,
    /// Whether the cluster is one of its own whose first state may not be in Raft yet.
    pub is_founding: bool,
}

impl Records {
    /// The records in a database.
    pub fn open(db: &ClusterDb) -> anyhow::Result<Records> {
        Ok(Records { db: db.clone(), tree: db.tree("node")? })
    }

    /// Who this node is; `None` at its first start.
    pub fn own(&self) -> anyhow::Result<Option<Own>> {
        let Some(node) = self.tree.get(ID)? else { return Ok(None) };
        let node = NodeId::from_slice(&node).context("the node's id is damaged")?;
        let cluster = self.tree.get(CLUSTER)?.and_then(|bytes| ClusterId::from_slice(&bytes));
        let cluster = cluster.context("the cluster's id is damaged")?;
        Ok(Some(Own { node, cluster, is_founding: self.tree.contains_key(FOUNDING)? }))
    }

    /// Writes down who this node is from now on.
    pub fn set_own(&self, own: Own) -> anyhow::Result<()> {
        let mut batch = sled::Batch::default();
        batch.insert(ID, own.node.0.as_slice());
        batch.insert(CLUSTER, own.cluster.0.as_slice());
        match own.is_founding {
            true => batch.insert(FOUNDING, b"".as_slice()),
            false => batch.remove(FOUNDING),
        }
        self.tree.apply_batch(batch)?;
        self.sync()
    }

    /// Remembers the command that restored a backup here.
    pub fn set_restored(&self, id: CommandId) -> anyhow::Result<()> {
        self.tree.insert(RESTORED, &id)?;
        self.sync()
    }

    /// The last command that restored a backup here.
    pub fn restored(&self) -> anyhow::Result<Option<CommandId>> {
        let id = self.tree.get(RESTORED)?;
        Ok(id.and_then(|id| CommandId::try_from(id.as_ref()).ok()))
    }

    /// Remembers a create that is about to touch its bricks.
    pub fn put_pending(&self, pending: &PendingCreate) -> anyhow::Result<()> {
        self.tree.insert(pending_key(&pending.volume), serde_json::to_vec(pending)?)?;
        self.sync()
    }

    /// Forgets a create that has ended, one way or the other.
    pub fn drop_pending(&self, volume: &VolumeId) -> anyhow::Result<()> {
        if self.tree.remove(pending_key(volume))?.is_some() {
            self.sync()?;
        }
        Ok(())
    }

    /// The creates that are not known to have ended.
    pub fn pending(&self) -> anyhow::Result<Vec<PendingCreate>> {
        let records = self.tree.scan_prefix(b"pending/").values();
        records.map(|record| Ok(serde_json::from_slice(&record?)?)).collect()
    }

    fn sync(&self) -> anyhow::Result<()> {
        let synced = self.db.sync_blocking();
        synced.with_context(|| format!("cannot sync the cluster store {}", self.db.path().display()))
    }
}

fn pending_key(volume: &VolumeId) -> Vec<u8> {
    [b"pending/".as_slice(), &volume.0].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_there_after_reopening_until_they_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let own = Own { node: NodeId([1; 16]), cluster: ClusterId([2; 16]), is_founding: true };
        let brick = PendingBrick { path: "/b".into(), old_mode: None };
        let pending = PendingCreate { volume: VolumeId([3; 16]), command: Some([4; 16]), bricks: vec![brick] };
        {
            let records = Records::open(&ClusterDb::open(&path).unwrap()).unwrap();
            assert_eq!(records.own().unwrap(), None);
            records.set_own(own).unwrap();
            records.put_pending(&pending).unwrap();
        }
        let records = Records::open(&ClusterDb::open(&path).unwrap()).unwrap();
        assert_eq!(records.own().unwrap(), Some(own));
        assert_eq!(records.pending().unwrap(), std::slice::from_ref(&pending));
        records.drop_pending(&pending.volume).unwrap();
        records.set_own(Own { is_founding: false, ..own }).unwrap();
        assert!(records.pending().unwrap().is_empty() && !records.own().unwrap().unwrap().is_founding);
    }
}
