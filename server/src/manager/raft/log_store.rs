//! The log and the vote of a member in sled. Entries can be read as soon as they are appended and are
//! acknowledged once they are on the disk. The log has no hole: an append that would make one is refused,
//! a purge names the last purged entry before it removes any, and opening checks every entry.
//!
//! Tree `raft`: `vote`, `committed`, `purged` (JSON of openraft's types). Tree `log`: index, 8 bytes
//! big-endian, to the entry's JSON.

use crate::manager::cluster_db::ClusterDb;
use crate::manager::raft::types::{Entry, LogFlushed, LogId, StorageError, StorageIOError, Types, Vote};
use anyhow::{Context as _, bail};
use brickfs_common::ids::NodeId;
use openraft::storage::RaftLogStorage;
use openraft::{AnyError, LogState, OptionalSend, RaftLogReader};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::{Debug, Display};
use std::ops::{Bound, RangeBounds};

const VOTE_KEY: &str = "vote";
const COMMITTED_KEY: &str = "committed";
const PURGED_KEY: &str = "purged";

/// Entries of one message to another member together, so that a message stays far below its limit. A
/// larger entry goes alone.
const READ_MAX_BYTES: usize = 1 << 20;

/// The log and the vote.
#[derive(Clone)]
pub struct LogStore {
    db: ClusterDb,
    raft: sled::Tree,
    log: sled::Tree,
}

impl LogStore {
    /// Opens the log and checks all of it. A hole or an entry that does not decode is an error: such a log
    /// cannot be mended here, the node has to be removed from the cluster and joined again.
    pub fn open(db: &ClusterDb) -> anyhow::Result<LogStore> {
        let store = LogStore { db: db.clone(), raft: db.tree("raft")?, log: db.tree("log")? };
        store.check().with_context(|| format!("the Raft log in {} is damaged", db.path().display()))?;
        Ok(store)
    }

    fn check(&self) -> anyhow::Result<()> {
        let vote: Option<Vote> = self.get(VOTE_KEY).context("the vote does not decode")?;
        let committed: Option<Option<LogId>> = self.get(COMMITTED_KEY).context("'committed' does not decode")?;
        let purged: Option<LogId> = self.get(PURGED_KEY).context("'purged' does not decode")?;
        tracing::debug!(?vote, ?committed, ?purged, "opened the Raft log");
        let first = purged.map_or(0, |purged| purged.index + 1);
        // A crash in a purge leaves entries that are purged already.
        self.remove(..first)?;
        for (expected, item) in (first..).zip(&self.log) {
            let (key, value) = item?;
            let index = index_of(&key)?;
            if index != expected {
                bail!("entry {expected} is missing, the next one is {index}");
            }
            let entry: Entry = decode(&value).with_context(|| format!("entry {index} does not decode"))?;
            if entry.log_id.index != index {
                bail!("entry {index} says that it is entry {}", entry.log_id.index);
            }
        }
        Ok(())
    }

    fn get<T: DeserializeOwned>(&self, key: &str) -> anyhow::Result<Option<T>> {
        self.raft.get(key)?.map(|value| decode(&value)).transpose()
    }

    fn put<T: Serialize>(&self, key: &str, value: &T) -> anyhow::Result<()> {
        self.raft.insert(key, serde_json::to_vec(value)?)?;
        Ok(())
    }

    fn remove(&self, range: impl RangeBounds<u64>) -> anyhow::Result<()> {
        let mut batch = sled::Batch::default();
        for key in self.log.range(key_range(&range)).keys() {
            batch.remove(key?);
        }
        self.log.apply_batch(batch)?;
        Ok(())
    }

    fn read(&self, range: impl RangeBounds<u64>, max_bytes: usize) -> anyhow::Result<Vec<Entry>> {
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for item in self.log.range(key_range(&range)) {
            let (key, value) = item?;
            bytes += value.len();
            if bytes > max_bytes && !entries.is_empty() {
                break;
            }
            entries.push(decode(&value).with_context(|| format!("entry {} does not decode", index_shown(&key)))?);
        }
        Ok(entries)
    }

    /// The term of the last entry, for those who look on.
    pub fn last_term(&self) -> Option<u64> {
        self.state().ok()?.last_log_id.map(|log_id| log_id.leader_id.term)
    }

    fn last_entry(&self) -> anyhow::Result<Option<LogId>> {
        let last = self.log.last()?;
        last.map(|(_, value)| Ok(decode::<Entry>(&value)?.log_id)).transpose()
    }

    fn state(&self) -> anyhow::Result<LogState<Types>> {
        let last_purged_log_id = self.get(PURGED_KEY)?;
        Ok(LogState { last_purged_log_id, last_log_id: self.last_entry()?.or(last_purged_log_id) })
    }

    /// Adds entries without waiting for the disk. Entries that are there from the first of the new ones on
    /// are replaced; openraft truncates them before it comes to that.
    fn add(&self, entries: impl IntoIterator<Item = Entry>) -> anyhow::Result<()> {
        let last = match self.log.last()? {
            Some((key, _)) => Some(index_of(&key)?),
            None => self.get::<LogId>(PURGED_KEY)?.map(|purged| purged.index),
        };
        let mut entries = entries.into_iter().peekable();
        let Some(first) = entries.peek().map(|entry| entry.log_id.index) else { return Ok(()) };
        if last.is_some_and(|last| first > last + 1) {
            bail!("entry {first} would leave a hole: the log ends at {last:?}");
        }
        let mut batch = sled::Batch::default();
        for key in self.log.range(first.to_be_bytes()..).keys() {
            batch.remove(key?);
        }
        for (index, entry) in (first..).zip(entries) {
            if index != entry.log_id.index {
                bail!("entry {} would leave a hole: entry {index} is to come first", entry.log_id.index);
            }
            batch.insert(&index.to_be_bytes(), serde_json::to_vec(&entry)?);
        }
        self.log.apply_batch(batch)?;
        Ok(())
    }
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        self.read(range, usize::MAX).map_err(read_error)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        self.read(start..end, READ_MAX_BYTES).map_err(read_error)
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError> {
        self.state().map_err(read_error)
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &openraft::Vote<NodeId>) -> Result<(), StorageError> {
        self.put(VOTE_KEY, vote).map_err(vote_error)?;
        self.db.sync().await.map_err(vote_error)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        self.get(VOTE_KEY).map_err(|error| StorageIOError::read_vote(any(error)).into())
    }

    /// Not synced: an older value is as true, and the applied state, which is synced, is never behind it
    /// for long.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        self.put(COMMITTED_KEY, &committed).map_err(write_error)
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.get::<Option<LogId>>(COMMITTED_KEY).map_err(read_error)?.flatten())
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.add(entries).map_err(write_error)?;
        self.db.sync_then(move |result| callback.log_io_completed(result));
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.remove(log_id.index..).map_err(write_error)?;
        self.db.sync().await.map_err(write_error)
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.put(PURGED_KEY, &log_id).map_err(write_error)?;
        // On the disk before the first entry goes: without it the log would begin with a hole.
        self.db.sync().await.map_err(write_error)?;
        self.remove(..=log_id.index).map_err(write_error)?;
        self.db.sync().await.map_err(write_error)
    }
}

fn index_of(key: &[u8]) -> anyhow::Result<u64> {
    let bytes = key.try_into().ok().with_context(|| format!("{key:?} is no index of an entry"))?;
    Ok(u64::from_be_bytes(bytes))
}

fn index_shown(key: &[u8]) -> String {
    index_of(key).map_or_else(|error| error.to_string(), |index| index.to_string())
}

fn key_range(range: &impl RangeBounds<u64>) -> (Bound<[u8; 8]>, Bound<[u8; 8]>) {
    (range.start_bound().map(|index| index.to_be_bytes()), range.end_bound().map(|index| index.to_be_bytes()))
}

fn decode<T: DeserializeOwned>(value: &[u8]) -> anyhow::Result<T> {
    Ok(serde_json::from_slice(value)?)
}

/// openraft's form of an error, with its causes.
pub fn any(error: impl Display) -> AnyError {
    AnyError::error(format!("{error:#}"))
}

fn read_error(error: impl Display) -> StorageError {
    StorageIOError::read_logs(any(error)).into()
}

fn write_error(error: impl Display) -> StorageError {
    StorageIOError::write_logs(any(error)).into()
}

fn vote_error(error: impl Display) -> StorageError {
    StorageIOError::write_vote(any(error)).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use openraft::testing::{blank_ent, log_id};

    fn entries(range: std::ops::Range<u64>) -> Vec<Entry> {
        range.map(|index| blank_ent::<Types>(1, NodeId::from(1), index)).collect()
    }

    fn new_log() -> (tempfile::TempDir, ClusterDb, LogStore) {
        let dir = tempfile::tempdir().unwrap();
        let db = ClusterDb::open(&dir.path().join("cluster.sled")).unwrap();
        let store = LogStore::open(&db).unwrap();
        (dir, db, store)
    }

    fn error_of(db: &ClusterDb) -> String {
        format!("{:#}", LogStore::open(db).err().unwrap())
    }

    #[test]
    fn a_hole_or_a_damaged_entry_is_named_when_the_log_is_opened() {
        let (_dir, db, store) = new_log();
        store.add(entries(0..10)).unwrap();
        LogStore::open(&db).unwrap();
        store.log.insert(7_u64.to_be_bytes(), b"{").unwrap();
        let error = error_of(&db);
        assert!(error.contains("cluster.sled") && error.contains("entry 7 does not decode"), "{error}");
        store.log.remove(7_u64.to_be_bytes()).unwrap();
        let error = error_of(&db);
        assert!(error.contains("entry 7 is missing"), "{error}");
        store.remove(8..).unwrap();
        store.remove(..1).unwrap();
        assert!(error_of(&db).contains("entry 0 is missing"));
    }

    #[test]
    fn an_append_that_would_make_a_hole_is_refused() {
        let (_dir, db, store) = new_log();
        store.add(entries(0..3)).unwrap();
        assert!(store.add(entries(4..5)).is_err());
        assert!(store.add(entries(3..4).into_iter().chain(entries(5..6))).is_err());
        assert_eq!(store.last_entry().unwrap().unwrap().index, 2);
        store.add(entries(1..2)).unwrap();
        assert_eq!(store.last_entry().unwrap().unwrap().index, 1);
        store.put(PURGED_KEY, &log_id(1, NodeId::from(1), 20)).unwrap();
        store.remove(..).unwrap();
        assert!(store.add(entries(22..23)).is_err());
        store.add(entries(21..22)).unwrap();
        LogStore::open(&db).unwrap();
    }

    #[test]
    fn a_crash_in_a_purge_leaves_no_purged_entry() {
        let (_dir, db, store) = new_log();
        store.add(entries(0..10)).unwrap();
        store.put(PURGED_KEY, &log_id(1, NodeId::from(1), 4)).unwrap();
        let store = LogStore::open(&db).unwrap();
        let left: Vec<u64> = store.read(.., usize::MAX).unwrap().iter().map(|entry| entry.log_id.index).collect();
        assert_eq!(left, [5, 6, 7, 8, 9]);
    }

    #[test]
    fn a_read_for_a_message_is_limited_but_never_empty() {
        let (_dir, _, store) = new_log();
        store.add(entries(0..10)).unwrap();
        assert_eq!(store.read(2..8, 1).unwrap().len(), 1);
        assert_eq!(store.read(2..8, usize::MAX).unwrap().len(), 6);
    }
}
