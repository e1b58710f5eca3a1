//! What this mount remembers between the kernel's questions: the inodes that the kernel knows, their names,
//! attributes that replies carried, and directories whose names are all known. No I/O; the clock comes in.
//!
//! What may be told to the kernel: attributes that were decided after the mount's own last change of the
//! object, and never older ones than the kernel has been told. Both are kept apart by a count of own
//! changes (`Asked::clock`) and by ctime, which the home never sets back. What is told holds for the time
//! that is left of its second, counted from when the question was asked: two mounts differ by no more.
//!
//! Where programs lock files they may do so on several mounts, and a lock guards more than its file: sqlite looks for a
//! journal beside the database that it has locked, and repairs the database with it. So in a directory with a locked
//! file nothing that is told of other files holds for any time.

mod attrs;
mod habits;
pub mod handles;
pub mod holds;
mod inodes;
mod known_dirs;
mod made;
mod names;
mod told;

use attrs::AttrCache;
use brickfs_common::attr::{Attr, Kind, SetAttr};
use brickfs_common::fop::ObjectRef;
use brickfs_common::ids::Gfid;
use habits::Habits;
use inodes::InodeTable;
use known_dirs::KnownDirs;
pub use known_dirs::Outcome;
use made::MadeFiles;
use names::Dentries;
pub use names::DentryKey;
use std::time::{Duration, Instant};
pub use told::ToldFile;
use told::ToldFiles;

/// When a question was asked: what its answer says held at that time or later.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    clock: u64,
    /// By the wall.
    pub at: Instant,
}

/// See the module.
pub struct Tables {
    inodes: InodeTable,
    attrs: AttrCache,
    dentries: Dentries,
    known: KnownDirs,
    habits: Habits,
    told: ToldFiles,
    made: MadeFiles,
    /// Counts own changes of objects.
    clock: u64,
    ttl: Duration,
}

impl Tables {
    /// Tables with the root alone. What replies say holds for `ttl`; zero: nothing is answered here.
    pub fn new(root: ObjectRef, ttl: Duration) -> Tables {
        Tables {
            inodes: InodeTable::new(root),
            attrs: AttrCache::default(),
            dentries: Dentries::default(),
            known: KnownDirs::new(ttl),
            habits: Habits::default(),
            told: ToldFiles::default(),
            made: MadeFiles::default(),
            clock: 0,
            ttl,
        }
    }

    /// The stamp of a question asked now.
    pub fn asked(&self, now: Instant) -> Asked {
        Asked { clock: self.clock, at: now }
    }

    /// For how long what was answered to a question still holds.
    pub fn remaining(&self, asked: Asked, now: Instant) -> Duration {
        self.ttl.saturating_sub(now.saturating_duration_since(asked.at))
    }

    /// The kernel is about to be told of an object: for how long what was answered to a question holds. `name` led to it,
    /// if one did.
    pub fn tell(&mut self, ino: u64, kind: Kind, name: Option<(u64, &[u8])>, asked: Asked, now: Instant) -> Duration {
        let ttl = self.remaining(asked, now);
        let parent = name.map(|(parent, _)| parent).or_else(|| self.parent(ino));
        let Some(parent) = parent.filter(|_| kind != Kind::Directory && !ttl.is_zero()) else { return ttl };
        if self.is_beside_locks(ino, parent) {
            return Duration::ZERO;
        }
        let name = name.map(|(_, name)| name.into());
        self.told.note(ToldFile { parent, ino, name }, now, self.ttl);
        ttl
    }

    fn parent(&self, ino: u64) -> Option<u64> {
        self.inodes.get(ino).and_then(|inode| inode.name()).map(|name| name.parent)
    }

    /// Attributes that still hold, to tell the kernel, and for how long.
    pub fn tell_known(&mut self, ino: u64, now: Instant) -> Option<(Attr, Duration)> {
        let (attr, left) = self.fresh_attr(ino, now).map(|(attr, left)| (attr.clone(), left))?;
        if let Some(parent) = self.parent(ino).filter(|_| attr.kind != Kind::Directory) {
            self.told.note(ToldFile { parent, ino, name: None }, now, self.ttl);
        }
        Some((attr, left))
    }

    /// Whether other files of the directory are locked, but not this one: what a mount knows of a file that it locks is
    /// dropped whenever it gets the lock.
    fn is_beside_locks(&self, ino: u64, parent: u64) -> bool {
        let has_locks = |ino| self.inodes.get(ino).is_some_and(|inode| inode.has_locks);
        has_locks(parent) && !has_locks(ino)
    }

    /// A file has been locked. Answers which other files of its directory the kernel was told of so lately that it must
    /// ask again.
    pub fn locked(&mut self, ino: u64, now: Instant) -> Vec<ToldFile> {
        let Some(file) = self.inodes.get_mut(ino) else { return Vec::new() };
        file.has_locks = true;
        let Some(parent) = file.name().map(|name| name.parent) else { return Vec::new() };
        let Some(directory) = self.inodes.get_mut(parent) else { return Vec::new() };
        if std::mem::replace(&mut directory.has_locks, true) {
            return Vec::new();
        }
        self.known.forget(parent);
        let mut others = self.told.of_directory(parent, now, self.ttl);
        others.retain(|other| other.ino != ino);
        others
    }

    /// The object of a number that the kernel knows.
    pub fn object(&self, ino: u64) -> Option<ObjectRef> {
        self.inodes.get(ino).map(|inode| inode.object)
    }

    /// The number that this mount shows for an object, whether or not the kernel knows it.
    pub fn ino(&self, gfid: &Gfid) -> u64 {
        self.inodes.ino(gfid)
    }

    /// The key of a name in a directory.
    pub fn key(&self, parent: u64, name: &[u8]) -> DentryKey {
        self.dentries.key(parent, name)
    }

    /// The object that the kernel was last told a name leads to.
    pub fn find(&self, key: DentryKey) -> Option<u64> {
        self.dentries.get(key)
    }

    /// Whether an inode may have names that are not known here.
    pub fn is_linked(&self, ino: u64) -> bool {
        self.inodes.get(ino).is_none_or(|inode| inode.is_linked)
    }

    /// Whether attributes may be told to the kernel.
    pub fn is_current(&self, attr: &Attr, asked: Asked) -> bool {
        let inode = self.inodes.get(self.ino(&attr.gfid));
        inode.is_none_or(|inode| inode.changed_at <= asked.clock && inode.is_newest(attr.ctime))
    }

    /// The kernel is told that a name leads to an object: counts its lookup. Answers the number.
    pub fn enter(&mut self, key: DentryKey, attr: &Attr, asked: Asked) -> u64 {
        let ino = self.inodes.count_lookup(ObjectRef { gfid: attr.gfid, home: attr.home });
        self.inodes.learn(ino, attr, asked);
        self.made.tell(ino, attr);
        self.put_name(key, ino);
        ino
    }

    /// The kernel is told of an object without attributes: counts its lookup. Answers the number.
    pub fn enter_bare(&mut self, object: ObjectRef) -> u64 {
        self.inodes.count_lookup(object)
    }

    fn put_name(&mut self, key: DentryKey, ino: u64) {
        if let Some(old) = self.inodes.get_mut(ino).and_then(|inode| inode.set_name(Some(key)))
            && old != key
        {
            self.dentries.remove(old, ino);
        }
        self.dentries.put(key, ino);
    }

    /// Keeps attributes that a reply carried beside its answer, so that the kernel's next question is
    /// answered here.
    pub fn learn(&mut self, attr: &Attr, asked: Asked) {
        let ino = self.ino(&attr.gfid);
        let Some(inode) = self.inodes.get(ino) else { return };
        if inode.changed_at > asked.clock || !inode.is_newest(attr.ctime) {
            return;
        }
        // A file may change through a name that is not known here.
        let may_keep = attr.kind == Kind::Directory || (attr.nlink == 1 && inode.name().is_some());
        self.inodes.learn(ino, attr, asked);
        if may_keep {
            self.attrs.keep(ino, attr, asked.at + self.ttl, self.ttl);
        } else {
            self.attrs.remove(ino);
        }
    }

    /// Attributes that still hold, and for how long.
    fn fresh_attr(&self, ino: u64, now: Instant) -> Option<(&Attr, Duration)> {
        let parent = self.parent(ino);
        let (attr, left) = self.attrs.get(ino, now)?;
        let holds = attr.kind == Kind::Directory || !parent.is_some_and(|parent| self.is_beside_locks(ino, parent));
        holds.then_some((attr, left))
    }

    /// This mount is about to change an object, or has just been told that a change was made: whatever is
    /// known of its attributes no longer holds.
    pub fn changed(&mut self, ino: u64) {
        self.made.forget(ino);
        self.count_change(ino);
    }

    /// This mount's write-behind queue has taken bytes up to `end`.
    pub fn wrote(&mut self, ino: u64, end: u64) {
        self.made.wrote(ino, end);
        self.count_change(ino);
    }

    /// This mount has made a file and opened it for writing, by a descriptor and a thread.
    pub fn made_file(&mut self, ino: u64, maker: (u64, u32), attr: Attr, at: Instant) {
        if !self.ttl.is_zero() {
            self.made.made(ino, maker, attr, at);
        }
    }

    /// A file that this mount has made is about to be changed by a user and thread through its write-behind queue. Answers the object, the
    /// descriptor that reports an error, and the attributes after it; `None` if the brick must be asked.
    pub fn set_made(&mut self, ino: u64, who: (u32, u32), set: &SetAttr) -> Option<(ObjectRef, u64, Attr)> {
        let object = self.object(ino)?;
        if self.parent(ino).is_none_or(|parent| self.is_beside_locks(ino, parent)) {
            return None;
        }
        let (handle, attr) = self.made.set(ino, who, set)?;
        self.count_change(ino);
        Some((object, handle, attr))
    }

    /// The kernel is told of an object that it asked for by its number.
    pub fn told_of(&mut self, ino: u64, attr: &Attr) {
        self.made.tell(ino, attr);
    }

    /// A descriptor is being closed.
    pub fn closed(&mut self, ino: u64, handle: u64) {
        self.made.closed(ino, handle);
    }

    fn count_change(&mut self, ino: u64) {
        self.clock += 1;
        self.attrs.remove(ino);
        if let Some(inode) = self.inodes.get_mut(ino) {
            inode.change(self.clock);
        }
    }

    /// Drops what is known of an object that turned out to be gone, so that its names are looked up again.
    pub fn gone(&mut self, ino: u64) {
        self.changed(ino);
        self.known.forget(ino);
        if let Some(key) = self.inodes.get(ino).and_then(|inode| inode.name()) {
            self.known.forget(key.parent);
        }
    }

    /// Whether an object is known to lack an extended attribute.
    pub fn lacks_xattr(&self, ino: u64, name: &[u8], now: Instant) -> bool {
        let (lacks_capability, lacks_acl) = self.inodes.lacks(ino, now, self.ttl);
        match name {
            b"security.capability" => lacks_capability || self.made.lacks_capability(ino, now, self.ttl),
            b"system.posix_acl_access" | b"system.posix_acl_default" => lacks_acl,
            _ => false,
        }
    }

    /// Whether a directory is known to lack a name.
    pub fn lacks_name(&self, key: DentryKey, now: Instant) -> bool {
        self.known.lacks(key, now)
    }

    /// Whether a name that is looked up now will probably be opened, if it is a file.
    pub fn expects_open(&mut self, parent: u64) -> bool {
        !self.ttl.is_zero() && self.habits.expects_open(parent)
    }

    /// A name was looked up and leads to a file.
    pub fn found_file(&mut self, parent: u64, gfid: Gfid) {
        self.habits.found(parent, gfid);
    }

    /// A file is opened.
    pub fn opens(&mut self, gfid: &Gfid) {
        self.habits.opened(gfid);
    }

    /// A change of names in a directory is about to be sent; `adds` a name that may exist from now on.
    pub fn begin_change(&mut self, parent: u64, adds: Option<DentryKey>) {
        self.known.begin(parent, adds);
    }

    /// It was answered: `attr` is the directory's, `removes` a name that is gone if it succeeded.
    pub fn end_change(&mut self, parent: u64, outcome: Outcome, adds: Option<DentryKey>, removes: Option<DentryKey>) {
        self.known.end(parent, outcome, adds, removes);
    }

    /// A reply has said how a directory is, without a change of ours.
    pub fn saw_directory(&mut self, attr: &Attr, asked: Asked) {
        let ino = self.ino(&attr.gfid);
        self.known.saw(ino, attr.change, asked.at);
        self.learn(attr, asked);
    }

    /// A name was found that may contradict what is known of its directory.
    pub fn saw_name(&mut self, key: DentryKey) {
        self.known.saw_name(key);
    }

    /// This mount has made a directory: all its names are known, there are none.
    pub fn made_directory(&mut self, ino: u64, change: u64, asked: Asked, session: u64) {
        self.known.made(ino, change, asked.at, session);
    }

    /// The number of the newest session: what was known of names in an earlier one may have changed.
    pub fn in_session(&mut self, session: u64) {
        self.known.in_session(session);
    }

    /// A name leads nowhere any more.
    pub fn unname(&mut self, key: DentryKey) {
        if let Some(ino) = self.dentries.take(key)
            && let Some(inode) = self.inodes.get_mut(ino)
            && inode.name() == Some(key)
        {
            inode.set_name(None);
        }
    }

    /// Names after a rename, or with `exchanges` after both changed places.
    pub fn renamed(&mut self, old: DentryKey, new: DentryKey, exchanges: bool) {
        let (source, target) = (self.find(old), self.find(new));
        self.unname(old);
        self.unname(new);
        if let Some(source) = source {
            self.put_name(new, source);
        }
        if let Some(target) = target.filter(|_| exchanges) {
            self.put_name(old, target);
        }
    }

    /// The kernel forgets `count` lookups of an object.
    pub fn forget(&mut self, ino: u64, count: u64) {
        let Some(inode) = self.inodes.forget(ino, count) else { return };
        self.attrs.remove(ino);
        self.made.forget(ino);
        self.known.forget(ino);
        if let Some(key) = inode.name() {
            self.dentries.remove(key, ino);
        }
    }

    /// Objects, names, kept attributes, names of known directories and files just made, for the log and tests.
    pub fn counts(&self) -> [usize; 5] {
        [self.inodes.len(), self.dentries.len(), self.attrs.len(), self.known.name_count(), self.made.len()]
    }
}

#[cfg(test)]
mod tests;
