//! Applying the steps of an effect to objects and names, call by call as `posix::apply` does.

use super::disk::{Inode, Spot};
use super::{LIMBO, ModelStore};
use crate::brick::effect::{CopyOf, NewObject, Place, Rest, Stamp, Step};
use crate::brick::meta::{HAS_DEFAULT_ACL, Meta, Position};
use crate::brick::store::{BrickStore as _, TouchedAt};
use brickfs_common::attr::Kind;
use brickfs_common::errno::Errno;
use brickfs_common::ids::{Gfid, SetId};

/// An error that means "already so" is success.
pub(super) fn unless(result: Result<(), Errno>, done: Errno) -> Result<(), Errno> {
    match result {
        Err(error) if error == done => Ok(()),
        other => other,
    }
}

fn spot(place: &Place) -> Spot {
    (place.parent(), place.name.clone())
}

impl ModelStore {
    pub(super) fn apply_step(&mut self, step: &Step, at: &Stamp) -> Result<(), Errno> {
        match step {
            Step::Make { place, object } => self.make(place, object, at),
            Step::Copy { place, copy } => self.make_copy(place, copy, at),
            Step::Link { gfid, place } => {
                self.link_handle(place, Gfid(*gfid))?;
                self.mark(&Gfid(*gfid), at)
            }
            Step::Unlink { gfid, place, rest } => self.unlink(Gfid(*gfid), place, *rest, at),
            Step::RemoveDir { gfid } => self.remove_dir(Gfid(*gfid)),
            Step::Move { gfid, from, to, replaced } => self.move_name(Gfid(*gfid), from, to, *replaced, at),
            Step::Exchange { first, from, second, to } => self.exchange((Gfid(*first), from), (Gfid(*second), to), at),
            Step::Follow { gfid, to, position } => self.follow(Gfid(*gfid), to, *position),
            Step::Inherit { copy } => self.inherit(copy),
            Step::TouchDir { gfid, subdirs } => self.touch_dir(Gfid(*gfid), at, *subdirs),
            Step::SetAttr { gfid, perm, gid, .. } => self.set_attr(Gfid(*gfid), *perm, *gid, at),
            Step::Xattr { .. } | Step::Write { .. } | Step::Fallocate { .. } => Ok(()),
            Step::DropClaim { .. } | Step::Prepare { .. } | Step::Finish { .. } => self.apply_transaction(step, at),
            Step::Release { .. } | Step::Commit { .. } | Step::Flushed { .. } | Step::Forget { .. } => {
                self.apply_transaction(step, at)
            }
        }
    }

    fn make(&mut self, place: &Place, object: &NewObject, at: &Stamp) -> Result<(), Errno> {
        let meta = Meta {
            gfid: Gfid(object.gfid),
            kind: object.kind,
            flags: if object.default_acl.is_some() { HAS_DEFAULT_ACL } else { 0 },
            project: object.project,
            btime: at.time,
            ctime: at.time,
            position: at.position,
            home: self.set,
            rdev: object.rdev,
            subdirs: 0,
            spread: Vec::new(),
        };
        let (perm, uid, gid) = (object.perm, object.uid, object.gid);
        let inode = Inode { meta, perm, uid, gid, mtime: at.time, size: 0, default_acl: object.default_acl.clone() };
        if object.kind == Kind::Directory {
            return self.make_dir(place, inode);
        }
        let gfid = inode.meta.gfid;
        self.call(|fs| {
            fs.handles.insert(gfid);
            fs.inodes.insert(gfid, inode);
            Ok(())
        })?;
        self.link_handle(place, gfid)
    }

    fn make_copy(&mut self, place: &Place, copy: &CopyOf, at: &Stamp) -> Result<(), Errno> {
        let meta = Meta {
            gfid: Gfid(copy.gfid),
            kind: Kind::Directory,
            flags: if copy.default_acl.is_some() { HAS_DEFAULT_ACL } else { 0 },
            project: copy.project,
            btime: at.time,
            ctime: at.time,
            position: copy.position,
            home: copy.home,
            rdev: 0,
            subdirs: 0,
            spread: Vec::new(),
        };
        let (perm, uid, gid) = (copy.perm, copy.uid, copy.gid);
        let inode = Inode { meta, perm, uid, gid, mtime: at.time, size: 0, default_acl: copy.default_acl.clone() };
        self.make_dir(place, inode)
    }

    /// The committing call of a new name of a file: a hard link of its handle.
    fn link_handle(&mut self, place: &Place, gfid: Gfid) -> Result<(), Errno> {
        self.dir(&place.parent())?;
        let spot = spot(place);
        let linked = self.call(|fs| {
            if !fs.handles.contains(&gfid) {
                return Err(Errno::ENOENT);
            }
            if fs.entries.contains_key(&spot) {
                return Err(Errno::EEXIST);
            }
            fs.entries.insert(spot, gfid);
            Ok(())
        });
        match linked {
            Err(Errno::EEXIST) if self.bears(&gfid, &place.parent(), &place.name)? => Ok(()),
            other => other,
        }
    }

    fn make_dir(&mut self, place: &Place, inode: Inode) -> Result<(), Errno> {
        let gfid = inode.meta.gfid;
        if self.bears(&gfid, &place.parent(), &place.name)? {
            return self.put_dir_handle(&gfid, &place.parent(), &place.name);
        }
        // In `tmp`: an inode without an entry.
        self.call(|fs| {
            fs.inodes.insert(gfid, inode);
            Ok(())
        })?;
        self.put_dir_handle(&gfid, &place.parent(), &place.name)?;
        self.free_name(place, None)?;
        self.dir(&place.parent())?;
        let spot = spot(place);
        self.call(|fs| match fs.entries.contains_key(&spot) {
            true => Err(Errno::EEXIST),
            false => {
                fs.entries.insert(spot, gfid);
                Ok(())
            }
        })?;
        self.keep_dir(&gfid);
        Ok(())
    }

    /// Frees a physical name that the copy of another directory holds (PROTOCOL 26).
    fn free_name(&mut self, place: &Place, allowed: Option<Gfid>) -> Result<(), Errno> {
        let Some(holder) = self.entry(&place.parent(), &place.name)? else { return Ok(()) };
        if Some(holder.gfid) == allowed {
            return Ok(());
        }
        if holder.kind != Kind::Directory || holder.home == self.set {
            let name = place.name.escape_ascii();
            self.report_damage(format!("name '{name}' of directory {} is held by {}", place.parent(), holder.gfid));
            return Err(Errno::EIO);
        }
        self.move_to_limbo(&holder.gfid, &place.parent(), &place.name)
    }

    fn move_to_limbo(&mut self, gfid: &Gfid, parent: &Gfid, physical: &[u8]) -> Result<(), Errno> {
        let name = gfid.hex().into_bytes();
        self.dir(parent)?;
        self.rename_call((*parent, physical.to_vec()), (LIMBO, name.clone()))?;
        self.put_dir_handle(gfid, &LIMBO, &name)
    }

    pub(super) fn unlink(&mut self, gfid: Gfid, place: &Place, rest: Rest, at: &Stamp) -> Result<(), Errno> {
        if self.bears(&gfid, &place.parent(), &place.name)? {
            self.dir(&place.parent())?;
            unless(self.unlink_call(spot(place)), Errno::ENOENT)?;
        }
        self.settle_rest(&gfid, rest, at)
    }

    /// What follows the loss of a name.
    pub(super) fn settle_rest(&mut self, gfid: &Gfid, rest: Rest, at: &Stamp) -> Result<(), Errno> {
        let id = *gfid;
        match rest {
            Rest::Linked => self.mark(gfid, at),
            Rest::Orphan => {
                self.call(|fs| {
                    if fs.handles.remove(&id) {
                        fs.orphans.insert(id);
                    }
                    Ok(())
                })?;
                self.mark(gfid, at)
            }
            Rest::Gone => self.call(|fs| {
                if fs.handles.remove(&id) {
                    fs.drop_if_unlinked(&id);
                }
                Ok(())
            }),
        }
    }

    pub(super) fn remove_dir(&mut self, gfid: Gfid) -> Result<(), Errno> {
        self.clear_claims(&gfid)?;
        let Some((parent, name)) = self.dir_place(&gfid)? else { return self.forget_dir(&gfid) };
        match self.dir(&parent) {
            Ok(_) => {}
            Err(Errno::ENOENT) => return self.forget_dir(&gfid),
            Err(error) => return Err(error),
        }
        if parent == LIMBO || self.bears(&gfid, &parent, &name)? {
            match self.rmdir_call((parent, name.clone())) {
                Err(Errno::ENOTEMPTY) => {
                    self.clear_copies_below(&gfid)?;
                    unless(self.rmdir_call((parent, name)), Errno::ENOENT)?;
                }
                other => unless(other, Errno::ENOENT)?,
            }
        }
        self.forget_dir(&gfid)
    }

    pub(super) fn forget_dir(&mut self, gfid: &Gfid) -> Result<(), Errno> {
        self.drop_dir(gfid);
        let gfid = *gfid;
        self.call(|fs| {
            fs.dir_handles.remove(&gfid);
            Ok(())
        })
    }

    /// Copies of directories that moved away go on in the limbo (PROTOCOL 26).
    pub(super) fn clear_copies_below(&mut self, gfid: &Gfid) -> Result<(), Errno> {
        for name in self.names(gfid)? {
            let Some(meta) = self.entry(gfid, &name)? else { continue };
            if meta.kind != Kind::Directory || meta.home == self.set {
                return Err(Errno::ENOTEMPTY);
            }
            self.move_to_limbo(&meta.gfid, gfid, &name)?;
        }
        Ok(())
    }

    pub(super) fn move_name(
        &mut self,
        gfid: Gfid,
        from: &Place,
        to: &Place,
        replaced: Option<([u8; 16], Rest)>,
        at: &Stamp,
    ) -> Result<(), Errno> {
        // Looked at first: a directory whose handle a crash left behind gets it back.
        let is_moved = self.bears(&gfid, &to.parent(), &to.name)?;
        let is_dir = self.meta(&gfid)?.kind == Kind::Directory;
        if !is_moved {
            let from = match self.dir_place(&gfid)? {
                Some((parent, name)) if is_dir => Place { parent: parent.0, name },
                _ => from.clone(),
            };
            self.rename_physical(gfid, &from, to, replaced.map(|(id, _)| Gfid(id)))?;
        }
        if is_dir {
            self.put_dir_handle(&gfid, &to.parent(), &to.name)?;
        }
        if let Some((old, rest)) = replaced {
            let old = Gfid(old);
            if is_dir {
                self.clear_claims(&old)?;
                self.forget_dir(&old)?;
            } else {
                self.settle_rest(&old, rest, at)?;
            }
        }
        self.mark(&gfid, at)
    }

    /// Sends a copy that lies in the way of a move to the limbo; false if there is none.
    fn clear_way(&mut self, moved: &Gfid, to: &Gfid) -> Result<bool, Errno> {
        let Some((copy, above, name)) = self.copy_in_way(self.set, moved, to)? else { return Ok(false) };
        self.move_to_limbo(&copy, &above, &name)?;
        Ok(true)
    }

    fn rename_physical(&mut self, moved: Gfid, from: &Place, to: &Place, replaced: Option<Gfid>) -> Result<(), Errno> {
        self.dir(&from.parent())?;
        self.free_name(to, replaced)?;
        let is_kept = |old: &Gfid| self.dirs.as_ref().is_some_and(|dirs| dirs.contains(old));
        if let Some(old) = replaced.filter(is_kept) {
            self.clear_copies_below(&old)?;
        }
        self.dir(&to.parent())?;
        match (self.rename_call(spot(from), spot(to)), replaced) {
            (Err(Errno::ENOTEMPTY), Some(old)) => {
                self.clear_copies_below(&old)?;
                self.rename_call(spot(from), spot(to))
            }
            (Err(Errno::EINVAL), _) if self.clear_way(&moved, &to.parent())? => self.rename_call(spot(from), spot(to)),
            (other, _) => other,
        }
    }

    fn exchange(&mut self, one: (Gfid, &Place), two: (Gfid, &Place), at: &Stamp) -> Result<(), Errno> {
        if self.bears(&one.0, &one.1.parent(), &one.1.name)? {
            self.dir(&one.1.parent())?;
            self.dir(&two.1.parent())?;
            match self.exchange_call(spot(one.1), spot(two.1)) {
                Err(Errno::EINVAL)
                    if self.clear_way(&one.0, &two.1.parent())? | self.clear_way(&two.0, &one.1.parent())? =>
                {
                    self.exchange_call(spot(one.1), spot(two.1))?;
                }
                other => other?,
            }
        }
        // Both names are looked at first: directories whose handles still lead to the other get them back.
        for place in [one.1, two.1] {
            self.entry(&place.parent(), &place.name)?;
        }
        for (gfid, place) in [(one.0, two.1), (two.0, one.1)] {
            if self.meta(&gfid)?.kind == Kind::Directory {
                self.put_dir_handle(&gfid, &place.parent(), &place.name)?;
            }
            self.mark(&gfid, at)?;
        }
        Ok(())
    }

    fn follow(&mut self, gfid: Gfid, to: &Place, position: Position) -> Result<(), Errno> {
        if !self.has_dir(&gfid)? {
            return Ok(());
        }
        let meta = self.meta(&gfid)?;
        if meta.home == self.set || meta.position >= position {
            return Ok(());
        }
        if !self.bears(&gfid, &to.parent(), &to.name)?
            && let Some((parent, name)) = self.dir_place(&gfid)?
        {
            self.rename_physical(gfid, &Place { parent: parent.0, name }, to, None)?;
        }
        self.put_dir_handle(&gfid, &to.parent(), &to.name)?;
        self.rewrite(&gfid, |inode| inode.meta.position = position)
    }

    fn inherit(&mut self, copy: &CopyOf) -> Result<(), Errno> {
        let gfid = Gfid(copy.gfid);
        if !self.has_dir(&gfid)? {
            return Ok(());
        }
        self.rewrite(&gfid, |inode| {
            (inode.perm, inode.uid, inode.gid) = (copy.perm, copy.uid, copy.gid);
            inode.default_acl.clone_from(&copy.default_acl);
            inode.meta.position = inode.meta.position.max(copy.position);
        })
    }

    fn touch_dir(&mut self, gfid: Gfid, at: &Stamp, subdirs: Option<u32>) -> Result<(), Errno> {
        if !self.has_dir(&gfid)? {
            return Ok(()); // removed since: an effect that is applied again
        }
        if let Some(subdirs) = subdirs {
            self.rewrite(&gfid, |inode| inode.meta.subdirs = subdirs)?;
        }
        if self.meta(&gfid)?.home == self.set || gfid == Gfid::ROOT {
            self.rewrite(&gfid, |inode| inode.mtime = at.time)?;
        }
        Ok(())
    }

    pub(super) fn take_touch(
        &mut self,
        gfid: &Gfid,
        set: SetId,
        touch: TouchedAt,
        subdirs: Option<u32>,
    ) -> Result<(), Errno> {
        if !self.has_dir(gfid)? {
            return Ok(());
        }
        if let Some(count) = subdirs
            && self.meta(gfid)?.spread_of(set) != count
        {
            self.rewrite(gfid, |inode| inode.meta.set_spread(set, count))?;
        }
        self.rewrite(gfid, |inode| {
            let (ctime, mtime) = (inode.meta.ctime, inode.mtime);
            inode.mtime = touch.mtime_over(ctime, || mtime).unwrap_or(mtime);
        })
    }

    /// The last call of a change of an object that stays: its ctime and the effect's position.
    pub(super) fn mark(&mut self, gfid: &Gfid, at: &Stamp) -> Result<(), Errno> {
        match self.rewrite(gfid, |inode| (inode.meta.ctime, inode.meta.position) = (at.time, at.position)) {
            Err(Errno::ESTALE | Errno::ENOENT) => Ok(()),
            other => other,
        }
    }

    fn set_attr(&mut self, gfid: Gfid, perm: Option<u32>, gid: Option<u32>, at: &Stamp) -> Result<(), Errno> {
        self.rewrite(&gfid, |inode| {
            inode.perm = perm.unwrap_or(inode.perm);
            inode.gid = gid.unwrap_or(inode.gid);
        })?;
        self.mark(&gfid, at)
    }
}
