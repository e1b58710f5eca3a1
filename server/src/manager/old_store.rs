//! The store of releases before Raft: `cluster.sled` with one state and no log. It is read once, its state becomes
//! the first one in Raft, and then it is put aside under another name.
//!
//! Keys that are read: `node` (16 bytes), `state` (JSON), `pending/<volume id>` (a create under way, JSON).

use crate::manager::records::PendingCreate;
use anyhow::{Context as _, bail};
use brickfs_common::cluster::state::ClusterState;
use brickfs_common::cluster::stored;
use brickfs_common::ids::NodeId;
use std::fs::{self, File};
use std::path::Path;

const NAME: &str = "cluster.sled";
const PUT_ASIDE: &str = "cluster.sled.old";

/// What such a store holds.
pub struct OldStore {
    /// The node.
    pub node: NodeId,
    /// The state of its cluster of one.
    pub state: ClusterState,
    /// Creates that did not end.
    pub pending: Vec<PendingCreate>,
}

/// Reads the store in a state directory, if there is one.
pub fn read(dir: &Path) -> anyhow::Result<Option<OldStore>> {
    let path = dir.join(NAME);
    if !path.exists() {
        return Ok(None);
    }
    read_store(&path).map(Some).with_context(|| format!("the cluster store {}", path.display()))
}

fn read_store(path: &Path) -> anyhow::Result<OldStore> {
    let db = sled::Config::new().path(path).flush_every_ms(None).open().context("cannot be opened")?;
    let node = db.get(b"node")?.and_then(|bytes| NodeId::from_slice(&bytes)).context("does not name its node")?;
    let state = stored::read_state(&db.get(b"state")?.context("has no state")?)?;
    if !state.nodes.contains_key(&node) {
        bail!("does not list its own node {node}");
    }
    let records = db.scan_prefix(b"pending/").values();
    let pending: anyhow::Result<Vec<PendingCreate>> =
        records.map(|record| Ok(serde_json::from_slice(&record?)?)).collect();
    Ok(OldStore { node, state, pending: pending? })
}

/// Puts the store aside: what it held is elsewhere now.
pub fn put_aside(dir: &Path) -> anyhow::Result<()> {
    let (from, to) = (dir.join(NAME), dir.join(PUT_ASIDE));
    if !from.exists() {
        return Ok(());
    }
    if to.exists() {
        fs::remove_dir_all(&to).with_context(|| format!("cannot remove {}", to.display()))?;
    }
    fs::rename(&from, &to).with_context(|| format!("cannot rename {}", from.display()))?;
    Ok(File::open(dir)?.sync_all()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use brickfs_common::ids::ClusterId;

    #[test]
    fn a_store_is_read_and_then_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(dir.path()).unwrap().is_none());
        let node = NodeId([1; 16]);
        let state = ClusterState::of_one_node(ClusterId([2; 16]), node, "node-1");
        {
            let db = sled::Config::new().path(dir.path().join(NAME)).flush_every_ms(None).open().unwrap();
            db.insert(b"node", &node.0).unwrap();
            db.insert(b"state", serde_json::to_vec(&state).unwrap()).unwrap();
            db.insert(b"pending/xyz", br#"{"volume":"03030303-0303-0303-0303-030303030303","bricks":[]}"#.as_slice())
                .unwrap();
            db.flush().unwrap();
        }
        let old = read(dir.path()).unwrap().unwrap();
        assert_eq!((old.node, old.state, old.pending.len()), (node, state, 1));
        put_aside(dir.path()).unwrap();
        put_aside(dir.path()).unwrap();
        assert!(read(dir.path()).unwrap().is_none() && dir.path().join(PUT_ASIDE).exists());
    }
}
