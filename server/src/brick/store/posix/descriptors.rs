//! Descriptors of a brick's objects that are kept open. All bricks of a process share what the process may have open:
//! beyond that a cache gives up its own oldest ones, down to its share.

use brickfs_common::ids::Gfid;
use lru::LruCache;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What each cache may hold however many the others hold. A directory deep in a tree is reached by those above it.
const KEPT_MIN: usize = 16;

/// What the caches of a process hold, and may hold.
pub struct Budget {
    held: AtomicUsize,
    caches: AtomicUsize,
    most: usize,
}

impl Budget {
    /// A budget of so many descriptors.
    pub fn new(most: usize) -> Arc<Budget> {
        Arc::new(Budget { held: AtomicUsize::new(0), caches: AtomicUsize::new(0), most })
    }

    fn is_exceeded(&self) -> bool {
        self.held.load(Ordering::Relaxed) > self.most
    }

    /// What a cache may hold however many the others do, who give theirs up when they next add one.
    fn share(&self) -> usize {
        (self.most / self.caches.load(Ordering::Relaxed).max(1)).max(KEPT_MIN)
    }
}

/// See the file's head.
pub struct DescriptorCache {
    kept: LruCache<Gfid, Arc<OwnedFd>>,
    budget: Arc<Budget>,
}

impl DescriptorCache {
    /// A cache of `most` descriptors that shares a budget.
    pub fn new(most: NonZeroUsize, budget: &Arc<Budget>) -> DescriptorCache {
        budget.caches.fetch_add(1, Ordering::Relaxed);
        DescriptorCache { kept: LruCache::new(most), budget: budget.clone() }
    }

    /// The descriptor of an object, which counts as used.
    pub fn get(&mut self, gfid: &Gfid) -> Option<&Arc<OwnedFd>> {
        self.kept.get(gfid)
    }

    /// Whether an object's descriptor is kept.
    pub fn contains(&self, gfid: &Gfid) -> bool {
        self.kept.contains(gfid)
    }

    /// Keeps a descriptor.
    pub fn put(&mut self, gfid: Gfid, fd: Arc<OwnedFd>) {
        if self.kept.push(gfid, fd).is_none() {
            self.budget.held.fetch_add(1, Ordering::Relaxed); // else one has gone for it
        }
        while self.budget.is_exceeded() && self.kept.len() > self.budget.share() {
            self.pop_oldest();
        }
    }

    /// Drops an object's descriptor.
    pub fn pop(&mut self, gfid: &Gfid) {
        if self.kept.pop(gfid).is_some() {
            self.budget.held.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn pop_oldest(&mut self) {
        if self.kept.pop_lru().is_some() {
            self.budget.held.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for DescriptorCache {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.kept.len(), Ordering::Relaxed);
        self.budget.caches.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gfid(n: usize) -> Gfid {
        let mut gfid = Gfid([0; 16]);
        gfid.0[..8].copy_from_slice(&n.to_be_bytes());
        gfid
    }

    fn descriptor() -> Arc<OwnedFd> {
        Arc::new(std::fs::File::open("/").unwrap().into())
    }

    #[test]
    fn caches_share_what_a_process_may_have_open() {
        let (budget, most) = (Budget::new(100), NonZeroUsize::new(90).unwrap());
        let (mut one, mut other) = (DescriptorCache::new(most, &budget), DescriptorCache::new(most, &budget));
        let held = |budget: &Budget| budget.held.load(Ordering::Relaxed);
        for n in 0..200 {
            one.put(gfid(n), descriptor());
            one.put(gfid(n), descriptor());
        }
        assert_eq!((one.kept.len(), held(&budget)), (90, 90), "its own bound; the same object counts once");
        for n in 0..200 {
            other.put(gfid(n), descriptor());
        }
        assert_eq!(other.kept.len(), 50, "its share, though the other one holds more");
        assert!(other.contains(&gfid(199)) && !other.contains(&gfid(0)), "the newest");
        assert_eq!(held(&budget), 140);
        for n in 0..200 {
            one.put(gfid(1000 + n), descriptor());
        }
        assert_eq!((one.kept.len(), held(&budget)), (50, 100), "it has given up the rest");
        one.pop(&gfid(1199));
        one.pop(&gfid(1199));
        assert_eq!(held(&budget), 99);
        drop(one);
        assert_eq!(held(&budget), 50);
        for n in 0..200 {
            other.put(gfid(n), descriptor());
        }
        assert_eq!(held(&budget), 90, "alone");
    }
}
