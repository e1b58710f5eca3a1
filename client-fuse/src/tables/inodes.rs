//! The inode table: what the kernel knows of, by inode number, with the kernel's reference counts. It has
//! exactly the objects that the kernel has not forgotten.

use super::Asked;
use super::names::DentryKey;
use brickfs_common::attr::{Attr, Kind, Timestamp};
use brickfs_common::fop::ObjectRef;
use brickfs_common::ids::Gfid;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The number of the mount's root.
pub const ROOT_INO: u64 = 1;
/// Below this many entries the table keeps its room.
const SHRINK_MIN: usize = 4096;

/// One object that the kernel knows. There may be millions: 72 bytes.
pub struct Inode {
    /// The object and its home.
    pub object: ObjectRef,
    lookups: u64,
    /// The newest name that the kernel was told of; of no directory if there is none.
    name: DentryKey,
    /// The count of own changes at the last one of this object.
    pub changed_at: u64,
    /// The newest ctime that the kernel was told, in nanoseconds.
    told_ctime_ns: i64,
    /// When the facts below were asked for: milliseconds of the table's life, from 1; 0 if they do not hold.
    facts_ms: u32,
    has_capability: bool,
    has_acl: bool,
    /// A file with several names.
    pub is_linked: bool,
    /// A file that was locked, or a directory with one.
    pub has_locks: bool,
}

/// What no inode has as directory of its name.
const NO_DIRECTORY: u64 = 0;

impl Inode {
    fn new(object: ObjectRef, lookups: u64) -> Inode {
        Inode {
            object,
            lookups,
            name: DentryKey { parent: NO_DIRECTORY, hash: 0 },
            changed_at: 0,
            told_ctime_ns: i64::MIN,
            facts_ms: 0,
            has_capability: true,
            has_acl: true,
            is_linked: true,
            has_locks: false,
        }
    }

    /// The newest name that the kernel was told of.
    pub fn name(&self) -> Option<DentryKey> {
        (self.name.parent != NO_DIRECTORY).then_some(self.name)
    }

    /// Gives it another name, or none; answers the one before.
    pub fn set_name(&mut self, name: Option<DentryKey>) -> Option<DentryKey> {
        let before = self.name();
        self.name = name.unwrap_or(DentryKey { parent: NO_DIRECTORY, hash: 0 });
        before
    }

    /// Whether attributes with this ctime are no older than what the kernel was told.
    pub fn is_newest(&self, ctime: Timestamp) -> bool {
        nanoseconds(ctime) >= self.told_ctime_ns
    }

    /// This mount changes it.
    pub fn change(&mut self, clock: u64) {
        (self.changed_at, self.facts_ms) = (clock, 0);
    }
}

fn nanoseconds(t: Timestamp) -> i64 {
    t.sec.saturating_mul(1_000_000_000).saturating_add(i64::from(t.nsec))
}

/// The table.
pub struct InodeTable {
    inodes: HashMap<u64, Inode>,
    /// Objects whose own number was taken by another object: their number here.
    aliases: HashMap<Gfid, u64>,
    root: Gfid,
    born: Instant,
}

impl InodeTable {
    /// A table with the root alone, which the kernel never forgets.
    pub fn new(root: ObjectRef) -> InodeTable {
        let inodes = HashMap::from([(ROOT_INO, Inode::new(root, 1))]);
        InodeTable { inodes, aliases: HashMap::new(), root: root.gfid, born: Instant::now() }
    }

    /// The number that this mount shows for an object, whether or not the kernel knows it.
    pub fn ino(&self, gfid: &Gfid) -> u64 {
        if *gfid == self.root {
            return ROOT_INO;
        }
        match self.aliases.is_empty() {
            true => gfid.ino(),
            false => self.aliases.get(gfid).copied().unwrap_or_else(|| gfid.ino()),
        }
    }

    /// The object of a number.
    pub fn get(&self, ino: u64) -> Option<&Inode> {
        self.inodes.get(&ino)
    }

    /// The object of a number.
    pub fn get_mut(&mut self, ino: u64) -> Option<&mut Inode> {
        self.inodes.get_mut(&ino)
    }

    /// Number of objects.
    pub fn len(&self) -> usize {
        self.inodes.len()
    }

    /// Objects that there is room for.
    #[cfg(test)]
    pub fn capacity(&self) -> usize {
        self.inodes.capacity()
    }

    /// Counts one lookup by the kernel; answers the number.
    pub fn count_lookup(&mut self, object: ObjectRef) -> u64 {
        let mut ino = self.ino(&object.gfid);
        while self.inodes.get(&ino).is_some_and(|other| other.object.gfid != object.gfid) {
            ino = ino.wrapping_add(1).max(ROOT_INO + 1);
            self.aliases.insert(object.gfid, ino);
        }
        let inode = self.inodes.entry(ino).or_insert_with(|| Inode::new(object, 0));
        inode.object.home = object.home;
        inode.lookups += 1;
        ino
    }

    /// Notes what the kernel is told of an object.
    pub fn learn(&mut self, ino: u64, attr: &Attr, asked: Asked) {
        let now_ms = self.milliseconds(asked.at);
        let Some(inode) = self.inodes.get_mut(&ino) else { return };
        inode.object.home = attr.home;
        inode.told_ctime_ns = nanoseconds(attr.ctime);
        if inode.changed_at <= asked.clock {
            inode.facts_ms = now_ms;
            (inode.has_capability, inode.has_acl) = (attr.has_capability, attr.has_acl);
            inode.is_linked = attr.kind != Kind::Directory && attr.nlink > 1;
        }
    }

    /// Whether the object is known to carry no security.capability, and no POSIX ACL.
    pub fn lacks(&self, ino: u64, now: Instant, ttl: Duration) -> (bool, bool) {
        match self.inodes.get(&ino) {
            Some(inode) if inode.facts_ms != 0 => {
                let age_ms = self.milliseconds(now).wrapping_sub(inode.facts_ms);
                let is_fresh = u128::from(age_ms) + 1 < ttl.as_millis(); // both were rounded down
                (is_fresh && !inode.has_capability, is_fresh && !inode.has_acl)
            }
            _ => (false, false),
        }
    }

    /// The table's life in milliseconds, never 0; it wraps after 49 days, which makes an object that was not
    /// looked at for that long look fresh for a second.
    fn milliseconds(&self, at: Instant) -> u32 {
        (at.saturating_duration_since(self.born).as_millis() as u32).max(1)
    }

    /// The kernel forgets `count` lookups; gives back an object that it no longer knows.
    pub fn forget(&mut self, ino: u64, count: u64) -> Option<Inode> {
        if ino == ROOT_INO {
            return None;
        }
        let inode = self.inodes.get_mut(&ino)?;
        inode.lookups = inode.lookups.saturating_sub(count);
        if inode.lookups > 0 {
            return None;
        }
        let inode = self.inodes.remove(&ino)?;
        self.aliases.remove(&inode.object.gfid);
        if self.inodes.capacity() > SHRINK_MIN && self.inodes.len() < self.inodes.capacity() / 8 {
            self.inodes.shrink_to(self.inodes.len() * 2);
        }
        Some(inode)
    }
}
