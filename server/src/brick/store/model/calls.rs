//! The calls of the file system in memory: each happens whole or not at all.

use super::ModelStore;
use super::disk::{Inode, Spot};
use crate::brick::store::BrickStore as _;
use brickfs_common::attr::Kind;
use brickfs_common::errno::Errno;
use brickfs_common::ids::Gfid;

impl ModelStore {
    /// rename(2).
    pub(super) fn rename_call(&mut self, from: Spot, to: Spot) -> Result<(), Errno> {
        self.call(|fs| {
            let gfid = *fs.entries.get(&from).ok_or(Errno::ENOENT)?;
            let is_dir = |gfid: &Gfid| fs.inodes[gfid].meta.kind == Kind::Directory;
            if fs.is_within(&to.0, &gfid) {
                return Err(Errno::EINVAL);
            }
            match fs.entries.get(&to).copied() {
                Some(old) if old == gfid => return Ok(()), // two links of one file: nothing happens
                Some(old) => match (is_dir(&gfid), is_dir(&old)) {
                    (true, true) if !fs.is_empty_dir(&old) => return Err(Errno::ENOTEMPTY),
                    (true, false) => return Err(Errno::ENOTDIR),
                    (false, true) => return Err(Errno::EISDIR),
                    (both_dirs, _) => {
                        fs.entries.insert(to.clone(), gfid);
                        if both_dirs {
                            fs.inodes.remove(&old);
                        } else {
                            fs.drop_if_unlinked(&old);
                        }
                    }
                },
                None => drop(fs.entries.insert(to.clone(), gfid)),
            }
            fs.entries.remove(&from);
            Ok(())
        })
    }

    pub(super) fn exchange_call(&mut self, a: Spot, b: Spot) -> Result<(), Errno> {
        self.call(|fs| {
            let (first, second) = (fs.entries.get(&a).copied(), fs.entries.get(&b).copied());
            let (Some(first), Some(second)) = (first, second) else { return Err(Errno::ENOENT) };
            if fs.is_within(&b.0, &first) || fs.is_within(&a.0, &second) {
                return Err(Errno::EINVAL);
            }
            fs.entries.insert(a, second);
            fs.entries.insert(b, first);
            Ok(())
        })
    }

    pub(super) fn put_dir_handle(&mut self, gfid: &Gfid, parent: &Gfid, name: &[u8]) -> Result<(), Errno> {
        let (gfid, spot) = (*gfid, (*parent, name.to_vec()));
        self.call(|fs| {
            fs.dir_handles.insert(gfid, spot);
            Ok(())
        })
    }

    /// unlink(2).
    pub(super) fn unlink_call(&mut self, spot: Spot) -> Result<(), Errno> {
        self.call(|fs| {
            let gfid = fs.entries.remove(&spot).ok_or(Errno::ENOENT)?;
            fs.drop_if_unlinked(&gfid);
            Ok(())
        })
    }

    /// rmdir(2).
    pub(super) fn rmdir_call(&mut self, spot: Spot) -> Result<(), Errno> {
        self.call(|fs| {
            let gfid = *fs.entries.get(&spot).ok_or(Errno::ENOENT)?;
            if !fs.is_empty_dir(&gfid) {
                return Err(Errno::ENOTEMPTY);
            }
            fs.entries.remove(&spot);
            fs.inodes.remove(&gfid);
            Ok(())
        })
    }

    pub(super) fn rewrite(&mut self, gfid: &Gfid, change: impl FnOnce(&mut Inode)) -> Result<(), Errno> {
        self.meta(gfid)?;
        let gfid = *gfid;
        self.call(|fs| {
            change(fs.inodes.get_mut(&gfid).ok_or(Errno::ENOENT)?);
            Ok(())
        })
    }
}
