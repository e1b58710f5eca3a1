//! The sled database of a node's cluster data, and the only way to make a write to it durable.
//!
//! sled 0.34's own `flush()` is not enough: on Linux it ends in `sync_file_range`, which neither empties
//! the disk's cache nor writes the file's size, and values that it stores as files of their own (from a
//! quarter of a segment on) are never synced. So a sync here is: the value files, `flush()`, then `fdatasync` of the log
//! file. One thread does them in the order in which they were asked for, and one sync serves all that were
//! asked for before it began. After a sync that failed nobody knows what is on the disk: every later one
//! fails too.

use anyhow::Context as _;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// What sled may hold in memory.
const CACHE_BYTES: u64 = 8 << 20;
/// sled's unit of space. Values above a quarter of it become files of their own, which sled removes only
/// when the segment that names them is reused: with its default of 512 KiB a state of 1 MB left 323 MB
/// behind after 400 commands. With this one the states that are expected stay in the log (60 MB).
/// A database keeps the size that it was made with and does not open with another.
const SEGMENT_BYTES: usize = 8 << 20;
/// How long to wait for the lock of a database that is being closed.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

type Waiter = Box<dyn FnOnce(io::Result<()>) + Send>;

/// An open database. Clones share it; the last one that is dropped closes it.
#[derive(Clone)]
pub struct ClusterDb(Arc<Inner>);

struct Inner {
    db: sled::Db,
    path: PathBuf,
    waiters: Option<mpsc::Sender<Waiter>>,
    thread: Option<JoinHandle<()>>,
}

impl ClusterDb {
    /// Opens the database in this directory, or makes it. On return its files are on the disk.
    pub fn open(path: &Path) -> anyhow::Result<ClusterDb> {
        let shown = path.display();
        let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None);
        let config = config.segment_size(SEGMENT_BYTES);
        let db = open_when_free(&config).with_context(|| format!("cannot open the cluster store {shown}"))?;
        // The process makes files with whatever modes it says; these are nobody else's affair.
        fs::set_permissions(path, Permissions::from_mode(0o700)).with_context(|| format!("cannot close {shown}"))?;
        sync_new_files(path).with_context(|| format!("cannot sync the cluster store {shown}"))?;
        let file = File::open(path.join("db")).with_context(|| format!("cannot open the log file of {shown}"))?;
        let mut disk = Disk { db: db.clone(), file, value_dir: path.join("blobs"), synced: BTreeSet::new() };
        let (waiters, queue) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("cluster-sync".to_owned())
            .spawn(move || disk.serve(&queue))
            .context("cannot start the thread that syncs the cluster store")?;
        Ok(ClusterDb(Arc::new(Inner { db, path: path.to_owned(), waiters: Some(waiters), thread: Some(thread) })))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// One of its trees.
    pub fn tree(&self, name: &str) -> anyhow::Result<sled::Tree> {
        self.0.db.open_tree(name).with_context(|| format!("cannot open '{name}' in {}", self.0.path.display()))
    }

    /// Calls `done` once everything written before this call is on the disk, on another thread, in the order
    /// of the calls. `done` must not wait for anything.
    pub fn sync_then(&self, done: impl FnOnce(io::Result<()>) + Send + 'static) {
        let waiters = self.0.waiters.as_ref().expect("taken by drop alone");
        if let Err(mpsc::SendError(done)) = waiters.send(Box::new(done)) {
            done(Err(io::Error::other("the thread that syncs the cluster store has ended")));
        }
    }

    /// Waits until everything written before this call is on the disk.
    pub async fn sync(&self) -> io::Result<()> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.sync_then(move |result| drop(sender.send(result)));
        receiver.await.unwrap_or_else(|_| Err(io::Error::other("the thread that syncs the cluster store has ended")))
    }

    /// The same for threads without a runtime.
    pub fn sync_blocking(&self) -> io::Result<()> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.sync_then(move |result| drop(sender.send(result)));
        receiver.recv().unwrap_or_else(|_| Err(io::Error::other("the thread that syncs the cluster store has ended")))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.waiters = None;
        if let Some(thread) = self.thread.take() {
            // The thread has no lock and waits for nothing but the disk.
            drop(thread.join());
        }
    }
}

/// The thread's side.
struct Disk {
    db: sled::Db,
    file: File,
    value_dir: PathBuf,
    /// Names of the value files that are on the disk; sled never writes one twice.
    synced: BTreeSet<OsString>,
}

impl Disk {
    fn serve(&mut self, queue: &mpsc::Receiver<Waiter>) {
        let mut fault: Option<String> = None;
        while let Ok(first) = queue.recv() {
            let waiters: Vec<Waiter> = std::iter::once(first).chain(queue.try_iter()).collect();
            if fault.is_none()
                && let Err(error) = self.sync()
            {
                tracing::error!(%error, "the cluster store cannot be made durable");
                fault = Some(error.to_string());
            }
            for done in waiters {
                done(fault.clone().map_or(Ok(()), |fault| Err(io::Error::other(fault))));
            }
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        // The values first: the log that the flush writes names them.
        self.sync_values()?;
        self.db.flush()?;
        self.file.sync_data()
    }

    fn sync_values(&mut self) -> io::Result<()> {
        let mut present = BTreeSet::new();
        for entry in fs::read_dir(&self.value_dir)? {
            present.insert(entry?.file_name());
        }
        self.synced.retain(|name| present.contains(name));
        let new: Vec<OsString> = present.difference(&self.synced).cloned().collect();
        for name in &new {
            match File::open(self.value_dir.join(name)) {
                Ok(file) => file.sync_all()?,
                // sled removed it meanwhile: a newer value has its place.
                Err(error) if error.kind() == io::ErrorKind::NotFound => (),
                Err(error) => return Err(error),
            }
        }
        if !new.is_empty() {
            File::open(&self.value_dir)?.sync_all()?;
        }
        self.synced.extend(new);
        Ok(())
    }
}

/// Opens a database, waiting a moment for who had it before: sled lets go of the lock only after its own
/// threads have ended, and nothing tells when that is.
fn open_when_free(config: &sled::Config) -> sled::Result<sled::Db> {
    let give_up = Instant::now() + LOCK_PATIENCE;
    loop {
        match config.open() {
            Err(error) if error.to_string().contains("could not acquire lock") && Instant::now() < give_up => {
                thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

/// sled syncs neither the files that it makes at first nor their names.
fn sync_new_files(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        File::open(entry?.path())?.sync_all()?;
    }
    File::open(path)?.sync_all()?;
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syncs_are_answered_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let db = ClusterDb::open(&dir.path().join("cluster.sled")).unwrap();
        let tree = db.tree("t").unwrap();
        let (sender, receiver) = mpsc::channel();
        for i in 0..100_u32 {
            tree.insert(i.to_be_bytes(), vec![0; 10]).unwrap();
            let sender = sender.clone();
            db.sync_then(move |result| sender.send((i, result.is_ok())).unwrap());
        }
        let answers: Vec<(u32, bool)> = receiver.iter().take(100).collect();
        assert_eq!(answers, (0..100).map(|i| (i, true)).collect::<Vec<_>>());
    }

    #[test]
    fn values_that_sled_keeps_as_files_are_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cluster.sled");
        let large = vec![7_u8; SEGMENT_BYTES / 2];
        {
            let db = ClusterDb::open(&path).unwrap();
            db.tree("t").unwrap().insert("large", large.as_slice()).unwrap();
            let (sender, receiver) = mpsc::channel();
            db.sync_then(move |result| sender.send(result).unwrap());
            receiver.recv().unwrap().unwrap();
            assert!(fs::read_dir(path.join("blobs")).unwrap().next().is_some(), "sled stores it otherwise now");
        }
        let db = ClusterDb::open(&path).unwrap();
        assert_eq!(db.tree("t").unwrap().get("large").unwrap().unwrap(), large);
    }
}
