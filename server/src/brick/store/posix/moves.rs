//! Names that move: renames and exchanges on one brick, copies of directories that follow their homes, and
//! what becomes of a copy that lies where something else has to be (PROTOCOL 26).

use super::dirs::limbo_gfid;
use super::{PosixStore, errno};
use crate::brick::effect::{Place, Rest, Stamp};
use crate::brick::store::BrickStore as _;
use brickfs_common::attr::Kind;
use brickfs_common::errno::Errno;
use brickfs_common::ids::Gfid;
use rustix::fs::RenameFlags;
use rustix::io::Errno as Sys;

impl PosixStore {
    /// Frees a physical name that the copy of another directory holds (PROTOCOL 26): the copy goes on by
    /// its handle. EIO if anything else is in the way.
    pub(super) fn free_name(&mut self, place: &Place, allowed: Option<Gfid>) -> Result<(), Errno> {
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

    pub(super) fn move_to_limbo(&mut self, gfid: &Gfid, parent: &Gfid, physical: &[u8]) -> Result<(), Errno> {
        let name = gfid.hex();
        let parent = self.dir(parent)?;
        self.seen.clear();
        rustix::fs::renameat(&*parent, physical, &self.limbo, name.as_str()).map_err(errno)?;
        self.put_dir_handle(gfid, &limbo_gfid(), name.as_bytes())
    }

    /// What is left in a directory that no set has an entry in are copies of directories that moved away
    /// (PROTOCOL 26): they go on in the limbo.
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
    pub(super) fn clear_way(&mut self, moved: &Gfid, to: &Gfid) -> Result<bool, Errno> {
        let Some((copy, above, name)) = self.copy_in_way(self.set, moved, to)? else { return Ok(false) };
        self.move_to_limbo(&copy, &above, &name)?;
        Ok(true)
    }

    pub(super) fn rename_physical(
        &mut self,
        moved: Gfid,
        from: &Place,
        to: &Place,
        replaced: Option<Gfid>,
    ) -> Result<(), Errno> {
        let from_dir = self.physical_dir(&from.parent())?;
        self.free_name(to, replaced)?;
        if let Some(old) = replaced.filter(|old| self.dirs.contains(old)) {
            self.clear_copies_below(&old)?;
        }
        let to_dir = self.dir(&to.parent())?;
        self.seen.clear();
        match rustix::fs::renameat(&*from_dir, &from.name[..], &*to_dir, &to.name[..]) {
            Err(Sys::NOTEMPTY | Sys::EXIST) if replaced.is_some() => {
                replaced.map_or(Ok(()), |old| self.clear_copies_below(&old))?;
                rustix::fs::renameat(&*from_dir, &from.name[..], &*to_dir, &to.name[..]).map_err(errno)
            }
            Err(Sys::INVAL) if self.clear_way(&moved, &to.parent())? => {
                rustix::fs::renameat(&*from_dir, &from.name[..], &*to_dir, &to.name[..]).map_err(errno)
            }
            other => other.map_err(errno),
        }
    }

    pub(super) fn exchange(&mut self, one: (Gfid, &Place), two: (Gfid, &Place), at: &Stamp) -> Result<(), Errno> {
        if self.bears(&one.0, &one.1.parent(), &one.1.name)? {
            let (a, b) = (self.dir(&one.1.parent())?, self.dir(&two.1.parent())?);
            self.seen.clear();
            let exchange =
                || rustix::fs::renameat_with(&*a, &one.1.name[..], &*b, &two.1.name[..], RenameFlags::EXCHANGE);
            match exchange() {
                Err(Sys::INVAL)
                    if self.clear_way(&one.0, &two.1.parent())? | self.clear_way(&two.0, &one.1.parent())? =>
                {
                    exchange().map_err(errno)?;
                }
                other => other.map_err(errno)?,
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

    pub(super) fn follow(
        &mut self,
        gfid: Gfid,
        to: &Place,
        position: crate::brick::meta::Position,
    ) -> Result<(), Errno> {
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
        self.rewrite_meta(&gfid, |meta| meta.position = position)
    }
}
