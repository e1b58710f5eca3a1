//! The inode table: what the kernel knows of, by inode number, with the kernel's reference counts. It has
//! exactly the objects that the kernel has not forgotten.

use brickfs_common::attr::Attr;
use brickfs_common::fop::ObjectRef;
use brickfs_common::ids::Gfid;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long attributes that came with a reply answer the kernel's next question.
pub const ATTR_AGE: Duration = Duration::from_secs(1);

/// One object that the kernel knows.
pub struct Inode {
    /// The object and its home.
    pub object: ObjectRef,
    lookups: u64,
    attr: Option<(Attr, Instant)>,
}

/// The table.
pub struct InodeTable {
    inodes: HashMap<u64, Inode>,
    /// Objects whose own number was taken by another object: their number here.
    aliases: HashMap<Gfid, u64>,
    root: ObjectRef,
    is_strict: bool,
}

impl InodeTable {
    /// A table with the root alone, which the kernel never forgets.
    pub fn new(root: ObjectRef, is_strict: bool) -> InodeTable {
        let mut table = InodeTable { inodes: HashMap::new(), aliases: HashMap::new(), root, is_strict };
        table.inodes.insert(1, Inode { object: root, lookups: 1, attr: None });
        table
    }

    /// The number that this mount shows for an object, whether or not the kernel knows it.
    pub fn ino(&self, gfid: &Gfid) -> u64 {
        if *gfid == self.root.gfid {
            return 1;
        }
        self.aliases.get(gfid).copied().unwrap_or_else(|| gfid.ino())
    }

    /// The object of a number.
    pub fn get(&self, ino: u64) -> Option<&Inode> {
        self.inodes.get(&ino)
    }

    /// Counts one lookup by the kernel and keeps the attributes; answers the number.
    pub fn remember(&mut self, attr: &Attr) -> u64 {
        let mut ino = self.ino(&attr.gfid);
        while self.inodes.get(&ino).is_some_and(|other| other.object.gfid != attr.gfid) {
            ino = ino.wrapping_add(1).max(2);
            self.aliases.insert(attr.gfid, ino);
        }
        let object = ObjectRef { gfid: attr.gfid, home: attr.home };
        let inode = self.inodes.entry(ino).or_insert(Inode { object, lookups: 0, attr: None });
        inode.object.home = attr.home;
        inode.lookups += 1;
        self.keep_attr(attr);
        ino
    }

    /// Keeps attributes of an object that the kernel knows.
    pub fn keep_attr(&mut self, attr: &Attr) {
        if self.is_strict {
            return;
        }
        let ino = self.ino(&attr.gfid);
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.attr = Some((attr.clone(), Instant::now() + ATTR_AGE));
        }
    }

    /// Attributes that are still fresh.
    pub fn fresh_attr(&self, ino: u64) -> Option<&Attr> {
        let (attr, until) = self.inodes.get(&ino)?.attr.as_ref()?;
        (Instant::now() < *until).then_some(attr)
    }

    /// Drops what is kept of an object's attributes.
    pub fn drop_attr(&mut self, ino: u64) {
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.attr = None;
        }
    }

    /// Drops what is kept of all attributes.
    pub fn drop_attrs(&mut self) {
        self.inodes.values_mut().for_each(|inode| inode.attr = None);
    }

    /// The kernel forgets `count` lookups.
    pub fn forget(&mut self, ino: u64, count: u64) {
        if ino == 1 {
            return;
        }
        if let Some(inode) = self.inodes.get_mut(&ino) {
            inode.lookups = inode.lookups.saturating_sub(count);
            if inode.lookups == 0 {
                self.aliases.remove(&inode.object.gfid);
                self.inodes.remove(&ino);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use brickfs_common::attr::Kind;
    use brickfs_common::ids::SetId;

    fn attr(gfid: Gfid) -> Attr {
        let t = Default::default();
        Attr {
            gfid,
            home: SetId(0),
            kind: Kind::File,
            perm: 0,
            uid: 0,
            gid: 0,
            nlink: 1,
            size: 0,
            blocks: 0,
            rdev: 0,
            atime: t,
            mtime: t,
            ctime: t,
            btime: t,
            project: 0,
            has_capability: false,
            has_acl: false,
            change: 0,
        }
    }

    #[test]
    fn the_table_has_what_the_kernel_has_not_forgotten() {
        let root = ObjectRef { gfid: Gfid::ROOT, home: SetId(0) };
        let mut table = InodeTable::new(root, false);
        let gfid = Gfid([9; 16]);
        let ino = table.remember(&attr(gfid));
        assert_eq!(table.remember(&attr(gfid)), ino);
        table.forget(ino, 1);
        assert!(table.get(ino).is_some() && table.fresh_attr(ino).is_some());
        table.forget(ino, 1);
        assert!(table.get(ino).is_none());
        table.forget(1, 100);
        assert!(table.get(1).is_some());
    }

    #[test]
    fn two_objects_of_one_number_are_told_apart() {
        let mut table = InodeTable::new(ObjectRef { gfid: Gfid::ROOT, home: SetId(0) }, false);
        let (one, mut two) = (Gfid([9; 16]), Gfid([9; 16]));
        two.0[0] = 1;
        assert_eq!(one.ino(), two.ino());
        let (a, b) = (table.remember(&attr(one)), table.remember(&attr(two)));
        assert_ne!(a, b);
        assert_eq!((table.ino(&one), table.ino(&two)), (a, b));
    }
}
