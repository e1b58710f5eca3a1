//! Attributes that replies carried beside their answers, for as long as they hold: what a change of a
//! directory's entries says of the directory answers the question that the kernel asks next.

use brickfs_common::attr::Attr;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Most attributes kept.
const ATTRS_MAX: usize = 16384;

/// See the file's head.
#[derive(Default)]
pub struct AttrCache {
    attrs: HashMap<u64, (Attr, Instant)>,
    /// When what was kept runs out, oldest first; an entry whose time differs was kept again.
    ends: VecDeque<(u64, Instant)>,
}

impl AttrCache {
    /// Keeps attributes until then. Of a directory the ones with the newest count of changes stay.
    pub fn keep(&mut self, ino: u64, attr: &Attr, until: Instant, ttl: Duration) {
        if ttl.is_zero() {
            return;
        }
        let asked = until - ttl;
        while let Some((oldest, end)) = self.ends.front().copied()
            && (end <= asked || self.ends.len() >= ATTRS_MAX)
        {
            self.ends.pop_front();
            if self.attrs.get(&oldest).is_some_and(|(_, kept_until)| *kept_until == end) {
                self.attrs.remove(&oldest);
            }
        }
        if self.attrs.get(&ino).is_some_and(|(kept, end)| *end > asked && kept.change > attr.change) {
            return;
        }
        self.attrs.insert(ino, (attr.clone(), until));
        self.ends.push_back((ino, until));
    }

    /// Attributes that still hold, and for how long.
    pub fn get(&self, ino: u64, now: Instant) -> Option<(&Attr, Duration)> {
        let (attr, until) = self.attrs.get(&ino)?;
        let left = until.saturating_duration_since(now);
        (!left.is_zero()).then_some((attr, left))
    }

    /// Drops what is kept of an object.
    pub fn remove(&mut self, ino: u64) {
        self.attrs.remove(&ino);
    }

    /// Number of objects.
    pub fn len(&self) -> usize {
        self.attrs.len()
    }
}
