//! The applied state of a member in sled: each batch of entries is applied in memory, written in one sled
//! batch, synced, and only then answered, published and copied to the readable `cluster.json`.
//!
//! Tree `machine`: `state` (cluster state, last applied entry and membership in one value) and
//! `done/<index>` (a remembered command). Tree `snapshot`: `meta` and `data`. An installed snapshot is
//! stored before the state that it makes; opening finishes an installation that a crash cut short.

use crate::manager::cluster_db::ClusterDb;
use crate::manager::raft::applied::{Applied, Done};
use crate::manager::raft::log_store::any;
use crate::manager::raft::types::{
    Entry, LogId, Outcome, Snapshot, SnapshotMeta, StorageError, StorageIOError, StoredMembership, Types,
};
use crate::security::files;
use anyhow::{Context as _, bail};
use brickfs_common::cluster::state::{ClusterState, STATE_VERSION};
use openraft::storage::RaftStateMachine;
use openraft::{OptionalSend, RaftSnapshotBuilder};
use serde::{Deserialize, Serialize};
use std::io::Cursor;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

const STATE_KEY: &str = "state";
const DONE_PREFIX: &[u8] = b"done/";
const META_KEY: &str = "meta";
const DATA_KEY: &str = "data";

/// What watchers of the state see: none until the cluster was founded or this node has heard of it.
pub type Published = Option<Arc<ClusterState>>;

/// The stored form of `Applied`; `done` is used in snapshots alone.
#[derive(Serialize)]
struct ImageRef<'a> {
    state: Option<&'a ClusterState>,
    last: Option<LogId>,
    membership: &'a StoredMembership,
    done: Vec<&'a Done>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Image {
    state: Option<ClusterState>,
    last: Option<LogId>,
    membership: StoredMembership,
    done: Vec<Done>,
}

/// The applied state and where it is kept.
pub struct StateMachine {
    applied: Applied,
    disk: MachineDisk,
    published: watch::Sender<Published>,
    json_path: PathBuf,
}

/// A state as it was when a snapshot was asked for.
pub struct SnapshotBuilder {
    applied: Applied,
    disk: MachineDisk,
}

#[derive(Clone)]
struct MachineDisk {
    db: ClusterDb,
    machine: sled::Tree,
    snapshot: sled::Tree,
    /// Held while the stored snapshot is compared and replaced.
    replacing: Arc<Mutex<()>>,
}

impl StateMachine {
    /// Opens the applied state and writes its readable copy.
    pub fn open(db: &ClusterDb, json_path: PathBuf) -> anyhow::Result<StateMachine> {
        let disk = MachineDisk {
            db: db.clone(),
            machine: db.tree("machine")?,
            snapshot: db.tree("snapshot")?,
            replacing: Arc::default(),
        };
        let applied = disk.read().with_context(|| format!("the cluster state in {}", db.path().display()))?;
        if let Some(state) = &applied.state {
            files::write(&json_path, &json_of(state)?)?;
        }
        let published = watch::Sender::new(applied.state.clone());
        Ok(StateMachine { applied, disk, published, json_path })
    }

    /// Follows the state.
    pub fn watch(&self) -> watch::Receiver<Published> {
        self.published.subscribe()
    }

    /// Shows a state that is on the disk.
    async fn publish(&mut self) {
        let state = self.applied.state.clone();
        if *self.published.borrow() == state {
            return;
        }
        self.published.send_replace(state.clone());
        let Some(state) = state else { return };
        let path = self.json_path.clone();
        let written = tokio::task::spawn_blocking(move || files::write(&path, &json_of(&state)?)).await;
        // The store has it: a copy that cannot be written is a fault to look at, not a failed command.
        if let Err(error) = written.map_err(anyhow::Error::from).flatten() {
            tracing::error!(error = format!("{error:#}"), "the readable copy of the cluster state is old");
        }
    }
}

impl RaftStateMachine<Types> for StateMachine {
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        Ok((self.applied.last, self.applied.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcome>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut next = self.applied.clone();
        let outcomes = entries.into_iter().map(|entry| next.apply(entry)).collect();
        self.disk.write(Some(&self.applied), &next).map_err(write_error)?;
        self.disk.db.sync().await.map_err(write_error)?;
        self.applied = next;
        self.publish().await;
        Ok(outcomes)
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder { applied: self.applied.clone(), disk: self.disk.clone() }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let data = snapshot.into_inner();
        let failed = |error: anyhow::Error| {
            StorageError::from(StorageIOError::write_snapshot(Some(meta.signature()), any(error)))
        };
        let next = read_image(&data).context("the snapshot from the leader").map_err(failed)?;
        self.disk.put_snapshot(meta, &data).map_err(failed)?;
        // On the disk before the state, so that a crash between them is seen at the next start.
        self.disk.db.sync().await.map_err(write_error)?;
        self.disk.write(None, &next).map_err(failed)?;
        self.disk.db.sync().await.map_err(write_error)?;
        self.applied = next;
        self.publish().await;
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        let stored = self.disk.stored_snapshot();
        let stored = stored.map_err(|error| StorageIOError::read_snapshot(None, any(error)))?;
        Ok(stored.map(|(meta, data)| Snapshot { meta, snapshot: Box::new(Cursor::new(data)) }))
    }
}

impl RaftSnapshotBuilder<Types> for SnapshotBuilder {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        let applied = &self.applied;
        let failed = |error: anyhow::Error| StorageError::from(StorageIOError::write_snapshot(None, any(error)));
        let data = image_of(applied, applied.done.iter().map(Arc::as_ref).collect()).map_err(failed)?;
        // The same entries give the same bytes, so the last entry names the snapshot.
        let snapshot_id =
            applied.last.map_or_else(String::new, |last| format!("{}-{}", last.leader_id.term, last.index));
        let meta = SnapshotMeta { last_log_id: applied.last, last_membership: applied.membership.clone(), snapshot_id };
        self.disk.put_snapshot(&meta, &data).map_err(failed)?;
        self.disk.db.sync().await.map_err(|error| failed(error.into()))?;
        Ok(Snapshot { meta, snapshot: Box::new(Cursor::new(data)) })
    }
}

impl MachineDisk {
    /// What is stored, brought up to the snapshot if that is newer.
    fn read(&self) -> anyhow::Result<Applied> {
        let mut applied = match self.machine.get(STATE_KEY)? {
            Some(value) => read_image(&value).context("the applied state does not decode")?,
            None => Applied::default(),
        };
        for item in self.machine.scan_prefix(DONE_PREFIX) {
            let (key, value) = item?;
            let done: Done = serde_json::from_slice(&value).with_context(|| format!("{key:?} does not decode"))?;
            applied.done.push_back(Arc::new(done));
        }
        let stored = self.stored_snapshot().context("the snapshot does not decode")?;
        if let Some((meta, data)) = stored.filter(|(meta, _)| meta.last_log_id > applied.last) {
            tracing::info!(last = ?meta.last_log_id, "finishing the installation of a snapshot");
            let next = read_image(&data).context("the snapshot does not decode")?;
            self.write(None, &next)?;
            return Ok(next);
        }
        Ok(applied)
    }

    /// Replaces what is stored of `old` by `next` in one batch; without `old` everything is replaced.
    fn write(&self, old: Option<&Applied>, next: &Applied) -> anyhow::Result<()> {
        let mut batch = sled::Batch::default();
        batch.insert(STATE_KEY, image_of(next, Vec::new())?);
        let first_kept = next.done.front().map_or(u64::MAX, |done| done.index);
        match old {
            Some(old) => {
                old.done
                    .iter()
                    .take_while(|done| done.index < first_kept)
                    .for_each(|done| batch.remove(done_key(done)));
            }
            None => {
                for key in self.machine.scan_prefix(DONE_PREFIX).keys() {
                    batch.remove(key?);
                }
            }
        }
        let stored = old.and_then(|old| old.done.back()).map(|done| done.index);
        for done in next.done.iter().filter(|done| stored.is_none_or(|stored| done.index > stored)) {
            batch.insert(done_key(done), serde_json::to_vec(done.as_ref())?);
        }
        self.machine.apply_batch(batch)?;
        Ok(())
    }

    fn stored_snapshot(&self) -> anyhow::Result<Option<(SnapshotMeta, Vec<u8>)>> {
        let (Some(meta), Some(data)) = (self.snapshot.get(META_KEY)?, self.snapshot.get(DATA_KEY)?) else {
            return Ok(None);
        };
        Ok(Some((serde_json::from_slice(&meta)?, data.to_vec())))
    }

    /// Stores a snapshot unless a newer one is there: one may be installed while another is built.
    fn put_snapshot(&self, meta: &SnapshotMeta, data: &[u8]) -> anyhow::Result<()> {
        let _replacing = self.replacing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stored) = self.snapshot.get(META_KEY)? {
            let stored: SnapshotMeta = serde_json::from_slice(&stored)?;
            if stored.last_log_id > meta.last_log_id {
                return Ok(());
            }
        }
        let mut batch = sled::Batch::default();
        batch.insert(META_KEY, serde_json::to_vec(meta)?);
        batch.insert(DATA_KEY, data);
        self.snapshot.apply_batch(batch)?;
        Ok(())
    }
}

fn done_key(done: &Done) -> Vec<u8> {
    [DONE_PREFIX, &done.index.to_be_bytes()].concat()
}

fn image_of(applied: &Applied, done: Vec<&Done>) -> anyhow::Result<Vec<u8>> {
    let (state, membership) = (applied.state.as_deref(), &applied.membership);
    Ok(serde_json::to_vec(&ImageRef { state, last: applied.last, membership, done })?)
}

fn read_image(data: &[u8]) -> anyhow::Result<Applied> {
    #[derive(Deserialize)]
    struct Head {
        state: Option<Version>,
    }
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    // The version first: a newer form need not decode at all.
    let head: Head = serde_json::from_slice(data)?;
    if let Some(Version { version }) = head.state
        && version != STATE_VERSION
    {
        bail!("it has state version {version}, this brickd reads version {STATE_VERSION}");
    }
    let image: Image = serde_json::from_slice(data)?;
    let state = image.state.map(Arc::new);
    Ok(Applied {
        state,
        last: image.last,
        membership: image.membership,
        done: image.done.into_iter().map(Arc::new).collect(),
    })
}

fn json_of(state: &ClusterState) -> anyhow::Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(state)?;
    text.push(b'\n');
    Ok(text)
}

fn write_error(error: impl std::fmt::Display) -> StorageError {
    StorageIOError::write_state_machine(any(error)).into()
}
