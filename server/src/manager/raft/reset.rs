//! Forgetting a cluster: a node that joins another one gives up the log, the vote and the state of its own.
//!
//! A mark is on the disk before anything goes, so that a crash in the middle is finished at the next start
//! and never leaves a log without its state. Only for a node whose id no member of a cluster that lives on
//! knows: a voter that forgot its vote could vote twice.

use crate::manager::cluster_db::ClusterDb;

const MARK: &str = "forgetting";

/// Removes everything that the Raft member of this database has. No member may have it open.
pub async fn forget_cluster(db: &ClusterDb) -> anyhow::Result<()> {
    db.tree("raft")?.insert(MARK, b"")?;
    db.sync().await?;
    finish_forgetting(db).await
}

/// Finishes what a crash interrupted.
pub async fn finish_forgetting(db: &ClusterDb) -> anyhow::Result<()> {
    let raft = db.tree("raft")?;
    if !raft.contains_key(MARK)? {
        return Ok(());
    }
    for name in ["log", "machine", "snapshot"] {
        db.tree(name)?.clear()?;
    }
    for key in raft.iter().keys() {
        let key = key?;
        if key != MARK {
            raft.remove(key)?;
        }
    }
    db.sync().await?;
    raft.remove(MARK)?;
    db.sync().await?;
    Ok(())
}
