//! Open files and directories by the numbers that the kernel knows them by.

use brickfs_common::fop::ObjectRef;
use std::collections::HashMap;

/// What an open file's number stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenFile {
    /// The object.
    pub object: ObjectRef,
    /// O_APPEND: one write is one append.
    pub append: bool,
    /// O_DIRECT: answered when the brick has it.
    pub direct: bool,
    /// O_SYNC or O_DSYNC.
    pub sync: bool,
    /// The file was locked and the locks were lost: nothing is read or written through it any more.
    pub is_cut_off: bool,
}

impl OpenFile {
    /// An object opened with the flags of open(2).
    pub fn new(object: ObjectRef, flags: i32) -> OpenFile {
        let has = |flag: i32| flags & flag == flag;
        OpenFile {
            object,
            append: has(libc::O_APPEND),
            direct: has(libc::O_DIRECT),
            sync: has(libc::O_SYNC) || has(libc::O_DSYNC),
            is_cut_off: false,
        }
    }
}

/// Things by number; the kernel closes each once.
pub struct Handles<T> {
    open: HashMap<u64, T>,
    next: u64,
}

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Handles { open: HashMap::new(), next: 0 }
    }
}

impl<T: Clone> Handles<T> {
    /// Opens one more.
    pub fn open(&mut self, thing: T) -> u64 {
        self.next += 1;
        self.open.insert(self.next, thing);
        self.next
    }

    /// The thing of a number.
    pub fn get(&self, number: u64) -> Option<T> {
        self.open.get(&number).cloned()
    }

    /// All that are open.
    pub fn all_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.open.values_mut()
    }

    /// Closes it.
    pub fn close(&mut self, number: u64) -> Option<T> {
        self.open.remove(&number)
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.open.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use brickfs_common::ids::{Gfid, SetId};

    #[test]
    fn a_number_is_used_once() {
        let mut handles = Handles::default();
        let (a, b) = (handles.open("a"), handles.open("b"));
        assert_eq!((handles.get(a), handles.close(a), handles.get(a)), (Some("a"), Some("a"), None));
        assert!(handles.open("c") > b);
        assert_eq!(handles.len(), 2);
    }

    #[test]
    fn flags_of_open_are_understood() {
        let object = ObjectRef { gfid: Gfid::ROOT, home: SetId(0) };
        let plain = OpenFile { object, append: false, direct: false, sync: false, is_cut_off: false };
        assert_eq!(OpenFile::new(object, libc::O_RDWR | libc::O_CREAT), plain);
        assert_eq!(OpenFile::new(object, libc::O_APPEND), OpenFile { append: true, ..plain });
        for flag in [libc::O_SYNC, libc::O_DSYNC] {
            assert_eq!(OpenFile::new(object, flag), OpenFile { sync: true, ..plain });
        }
    }
}
