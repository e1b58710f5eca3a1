//! Files that this mount has made and that are still open for writing by those who made them: their attributes are known
//! without asking, but for ctime. Whoever unpacks or copies files sets owner, mode and times of each before the close;
//! what is known here is what such a change is answered with before the brick has it.

use brickfs_common::attr::{Attr, SetAttr};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Most files kept: what is made beyond it is changed by asking.
const FILES_MAX: usize = 4096;

/// Bits of a mode that say who may do what.
const RIGHTS: u32 = 0o777;

struct Made {
    /// The descriptor of who made it.
    handle: u64,
    /// The thread that made it.
    pid: u32,
    attr: Attr,
    /// When the brick has said so.
    at: Instant,
}

/// See the file's head.
#[derive(Default)]
pub struct MadeFiles(HashMap<u64, Made>);

impl MadeFiles {
    /// A thread has made a file and opened it for writing; the brick was asked at `at`.
    pub fn made(&mut self, ino: u64, (handle, pid): (u64, u32), attr: Attr, at: Instant) {
        self.0.remove(&ino);
        if self.0.len() < FILES_MAX {
            self.0.insert(ino, Made { handle, pid, attr, at });
        }
    }

    /// Bytes up to `end` were written.
    pub fn wrote(&mut self, ino: u64, end: u64) {
        if let Some(made) = self.0.get_mut(&ino) {
            made.attr.size = made.attr.size.max(end);
        }
    }

    /// The kernel is told how the file is. If that is not what is known here, somebody else has changed it.
    pub fn tell(&mut self, ino: u64, attr: &Attr) {
        let shown = |attr: &Attr| (attr.size, attr.perm, attr.uid, attr.gid, attr.nlink);
        if self.0.get(&ino).is_some_and(|made| shown(&made.attr) != shown(attr)) {
            self.0.remove(&ino);
        }
    }

    /// What a change by a thread makes of the file, and the descriptor that reports it if it fails; `None` if the brick
    /// must be asked. It is for what others do, for they would not hear of an error; for what shuts somebody out, so that
    /// nothing is written behind a change that is refused; and for another owner, whom the kernel would take at our word.
    pub fn set(&mut self, ino: u64, (uid, pid): (u32, u32), set: &SetAttr) -> Option<(u64, Attr)> {
        let made = self.0.get_mut(&ino)?;
        let is_maker = pid == made.pid && (uid == 0 || uid == made.attr.uid);
        let is_owner_kept =
            set.uid.is_none_or(|new| new == made.attr.uid) && set.gid.is_none_or(|new| new == made.attr.gid);
        let are_rights_kept = set.perm.is_none_or(|new| made.attr.perm & RIGHTS & !new == 0);
        if !is_maker || !is_owner_kept || !are_rights_kept {
            return None;
        }
        made.attr = set.applied_to(&made.attr);
        Some((made.handle, made.attr.clone()))
    }

    /// Whether a file has no capabilities: the kernel asks before each change of the owner.
    pub fn lacks_capability(&self, ino: u64, now: Instant, ttl: Duration) -> bool {
        let holds = |made: &Made| !made.attr.has_capability && now.saturating_duration_since(made.at) < ttl;
        self.0.get(&ino).is_some_and(holds)
    }

    /// Something else happened to the file, or it was closed by who made it.
    pub fn forget(&mut self, ino: u64) {
        self.0.remove(&ino);
    }

    /// A descriptor is being closed.
    pub fn closed(&mut self, ino: u64, handle: u64) {
        if self.0.get(&ino).is_some_and(|made| made.handle == handle) {
            self.0.remove(&ino);
        }
    }

    /// Number of files.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}
