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

/// Names listed before others' calls have their turn: some 300 us. Fewer make listings slow where there are many calls,
/// for each turn is as long as all of theirs.
const NAMES_AT_ONCE: usize = 32;

type Sorted = Arc<Vec<(u64, Vec<u8>)>>;

/// A page being listed.
struct Page {
    set: SetId,
    directory: Gfid,
    names: Sorted,
    /// The first name that has not been looked at.
    next: usize,
    /// Entries at most.
    limit: u32,
    plus: bool,
    bytes: usize,
}

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
        let names = self.lock().sorted_names(set, directory.gfid, after)?;
        let next = names.partition_point(|(cookie, _)| *cookie <= after);
        let mut listing = Page { set, directory: directory.gfid, names, next, limit: page.0, plus: page.1, bytes: 0 };
        let mut entries = Vec::new();
        while self.lock().list_some(&mut listing, &mut entries) {
            // A page takes milliseconds: others' calls go on meanwhile.
            tokio::task::yield_now().await;
        }
        let end = listing.next == listing.names.len();
        if end {
            self.lock().snapshots.remove(&(set, directory.gfid));
        }
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

    /// Lists some more names of a page; whether there are more in it.
    fn list_some(&mut self, page: &mut Page, entries: &mut Vec<DirEntry>) -> bool {
        let names = page.names.clone();
        for (cookie, name) in names.iter().skip(page.next).take(NAMES_AT_ONCE) {
            let is_full = entries.len() >= page.limit as usize || page.bytes > PAGE_BYTES_MAX;
            // A page ends between cookies, for that is where the next one begins.
            if is_full && entries.last().is_some_and(|last| last.cookie != *cookie) {
                return false;
            }
            if let Some(entry) = self.list_entry(page.set, page.directory, name, *cookie, page.plus) {
                page.bytes += name.len() + ENTRY_BYTES;
                entries.push(entry);
            }
            page.next += 1;
        }
        page.next < names.len()
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
