//! Directory listings in the order of the names' cookies (PROTOCOL 34): an entry is listed by the home of
//! its object, so every name is listed by exactly one set.

use super::{State, Volume, done};
use crate::brick::store::BrickStore;
use brickfs_common::attr::Kind;
use brickfs_common::errno::Errno;
use brickfs_common::fop::{Answer, DirEntry, FopReply, ObjectRef};
use brickfs_common::ids::{Gfid, SetId};
use brickfs_common::layout::slots::readdir_cookie;
use brickfs_common::name::Name;
use lru::LruCache;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Listings kept between the pages of a reader.
const SNAPSHOTS: NonZeroUsize = NonZeroUsize::new(64).expect("not zero");
/// Names that all kept listings have together at most; above it the oldest go.
const SNAPSHOT_NAMES_MAX: usize = 2_000_000;
/// Bytes of a page's names and attributes at most (a message has a limit).
const PAGE_BYTES_MAX: usize = 384 * 1024;
/// What an entry with attributes takes on the wire beside its name, at most.
const ENTRY_BYTES: usize = 192;

/// A listing that is older is read again: names that came since are then in it.
const SNAPSHOT_AGE: Duration = Duration::from_secs(10);

type Sorted = Arc<Vec<(u64, Vec<u8>)>>;

/// Sorted listings, so that each page of a large directory does not read all of it again.
pub struct Snapshots {
    cache: LruCache<(SetId, Gfid), (Instant, Sorted)>,
    name_count: usize,
}

impl Snapshots {
    /// No listings.
    pub fn new() -> Snapshots {
        Snapshots { cache: LruCache::new(SNAPSHOTS), name_count: 0 }
    }

    fn put(&mut self, key: (SetId, Gfid), names: Sorted) {
        self.name_count += names.len();
        if let Some((_, (_, old))) = self.cache.push(key, (Instant::now(), names)) {
            self.name_count -= old.len();
        }
        while self.name_count > SNAPSHOT_NAMES_MAX && self.cache.len() > 1 {
            if let Some((_, (_, old))) = self.cache.pop_lru() {
                self.name_count -= old.len();
            }
        }
    }

    fn remove(&mut self, key: &(SetId, Gfid)) {
        if let Some((_, old)) = self.cache.pop(key) {
            self.name_count -= old.len();
        }
    }
}

impl<S: BrickStore> Volume<S> {
    /// A page of a directory's entries on one set. A transaction that is committed and not yet finished
    /// here is waited for: a name is listed once.
    pub(super) async fn read_dir(
        &self,
        request: u64,
        set: SetId,
        directory: ObjectRef,
        after: u64,
        page: (u32, bool),
    ) -> Result<FopReply, Errno> {
        let holders = {
            let mut state = self.lock();
            let engine = state.set(set)?;
            if engine.held.is_empty() { Vec::new() } else { engine.held.holders_in(&directory.gfid) }
        };
        for tx in holders {
            self.outcome_of(set, tx, false).await?;
        }
        let attr = self.directory(directory).await?;
        let mut state = self.lock();
        let (entries, end) = state.list_page(set, directory.gfid, after, page)?;
        let attr = page.1.then_some(attr);
        Ok(FopReply { result: Ok(Answer::Entries { entries, end }), attr, ..done(request) })
    }
}

impl<S: BrickStore> State<S> {
    /// A first page (`after` 0) reads the directory; later pages go on in what that found.
    fn sorted_names(&mut self, set: SetId, directory: Gfid, after: u64) -> Result<Sorted, Errno> {
        let key = (set, directory);
        if after != 0
            && let Some((read_at, names)) = self.snapshots.cache.get(&key)
            && read_at.elapsed() < SNAPSHOT_AGE
        {
            return Ok(names.clone());
        }
        self.snapshots.remove(&key);
        let names = self.set(set)?.store.names(&directory)?;
        let mut sorted: Vec<_> = names.into_iter().map(|name| (readdir_cookie(&name), name)).collect();
        sorted.sort_unstable();
        let sorted = Arc::new(sorted);
        self.snapshots.put(key, sorted.clone());
        Ok(sorted)
    }

    fn list_page(
        &mut self,
        set: SetId,
        directory: Gfid,
        after: u64,
        (limit, plus): (u32, bool),
    ) -> Result<(Vec<DirEntry>, bool), Errno> {
        let names = self.sorted_names(set, directory, after)?;
        let first = names.partition_point(|(cookie, _)| *cookie <= after);
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut last_cookie = None;
        let mut end = true;
        for (cookie, name) in &names[first..] {
            let is_full = entries.len() >= limit as usize || bytes > PAGE_BYTES_MAX;
            if is_full && last_cookie != Some(*cookie) {
                end = false;
                break;
            }
            if let Some(entry) = self.list_entry(set, directory, name, *cookie, plus) {
                last_cookie = Some(*cookie);
                bytes += name.len() + ENTRY_BYTES;
                entries.push(entry);
            }
        }
        if end {
            self.snapshots.remove(&(set, directory));
        }
        Ok((entries, end))
    }

    /// One entry; none for copies of directories, names that went away and what is damaged (which the
    /// store has reported).
    fn list_entry(&mut self, set: SetId, parent: Gfid, name: &[u8], cookie: u64, plus: bool) -> Option<DirEntry> {
        let store = &mut self.set(set).ok()?.store;
        let meta = store.entry(&parent, name).ok()??;
        if meta.kind == Kind::Directory && meta.home != set {
            return None;
        }
        let attr = if plus { store.attr(&meta.gfid).ok() } else { None };
        let name = Name::new(name.to_vec()).ok()?;
        Some(DirEntry { name, cookie, gfid: meta.gfid, kind: meta.kind, attr })
    }
}
