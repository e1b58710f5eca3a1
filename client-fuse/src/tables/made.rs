//! Files that this mount has made and that are still open for writing by those who made them: their attributes are known
//! without asking, but for ctime. Whoever unpacks or copies files sets owner, mode and times of each before the close;
//! what is known here is what such a change is answered with before the brick has it.

use brickfs_common::attr::{Attr, SetAttr};
use std::collections::HashMap;

/// Most files kept: what is made beyond it is changed by asking.
const FILES_MAX: usize = 4096;

struct Made {
    /// The descriptor of who made it.
    handle: u64,
    attr: Attr,
}

/// See the file's head.
#[derive(Default)]
pub struct MadeFiles(HashMap<u64, Made>);

impl MadeFiles {
    /// A file was made and opened for writing.
    pub fn made(&mut self, ino: u64, handle: u64, attr: Attr) {
        if self.0.len() < FILES_MAX {
            self.0.insert(ino, Made { handle, attr });
        }
    }

    /// Bytes up to `end` were written.
    pub fn wrote(&mut self, ino: u64, end: u64) {
        if let Some(made) = self.0.get_mut(&ino) {
            made.attr.size = made.attr.size.max(end);
        }
    }

    /// The brick has said how the file is.
    pub fn learn(&mut self, ino: u64, attr: &Attr) {
        if let Some(made) = self.0.get_mut(&ino) {
            made.attr = attr.clone();
        }
    }

    /// What a change by `uid` makes of the file, and the descriptor that reports it if it fails; `None` if the brick
    /// must be asked: whether others may is its to decide.
    pub fn set(&mut self, ino: u64, uid: u32, set: &SetAttr) -> Option<(u64, Attr)> {
        let made = self.0.get_mut(&ino)?;
        let gives_away = set.uid.is_some() || set.gid.is_some();
        if uid != 0 && (gives_away || uid != made.attr.uid) {
            return None;
        }
        made.attr = set.applied_to(&made.attr);
        Some((made.handle, made.attr.clone()))
    }

    /// Whether a file has no capabilities: the kernel asks before each change of the owner.
    pub fn lacks_capability(&self, ino: u64) -> bool {
        self.0.get(&ino).is_some_and(|made| !made.attr.has_capability)
    }

    /// Something else happened to the file, or it was closed by who made it.
    pub fn forget(&mut self, ino: u64) {
        self.0.remove(&ino);
    }

    /// A descriptor is gone.
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
