//! Which object the kernel was told a name leads to: one name of each object that it knows, the newest. A
//! change by name thus finds the object whose attributes it changes.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};

/// Below this many entries the table keeps its room.
const SHRINK_MIN: usize = 4096;

/// A name in a directory, by a hash that is this process's own: nobody can build two names of one key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DentryKey {
    /// The directory.
    pub parent: u64,
    /// Hash of the name.
    pub hash: u64,
}

/// See the file's head.
#[derive(Default)]
pub struct Dentries {
    inos: HashMap<DentryKey, u64>,
    hasher: RandomState,
}

impl Dentries {
    /// The key of a name.
    pub fn key(&self, parent: u64, name: &[u8]) -> DentryKey {
        DentryKey { parent, hash: self.hasher.hash_one(name) }
    }

    /// The object that the name leads to.
    pub fn get(&self, key: DentryKey) -> Option<u64> {
        self.inos.get(&key).copied()
    }

    /// The name leads to this object.
    pub fn put(&mut self, key: DentryKey, ino: u64) {
        self.inos.insert(key, ino);
    }

    /// Takes the name out.
    pub fn take(&mut self, key: DentryKey) -> Option<u64> {
        self.inos.remove(&key)
    }

    /// Takes the name out if it leads to this object.
    pub fn remove(&mut self, key: DentryKey, ino: u64) {
        if self.inos.get(&key) == Some(&ino) {
            self.inos.remove(&key);
        }
        if self.inos.capacity() > SHRINK_MIN && self.inos.len() < self.inos.capacity() / 8 {
            self.inos.shrink_to(self.inos.len() * 2);
        }
    }

    /// Names that there is room for.
    #[cfg(test)]
    pub fn capacity(&self) -> usize {
        self.inos.capacity()
    }

    /// Number of names.
    pub fn len(&self) -> usize {
        self.inos.len()
    }
}
