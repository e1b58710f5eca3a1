//! Applying the steps of an effect. Every step finds out whether it is done already, so that a step cut
//! by SIGKILL can be applied again (PROTOCOL 20); the call that commits a step is the change of the
//! visible name, what precedes it can be repeated, what follows it is found missing.

use super::{Store, dir_handle_path, errno, handle_path, limbo_gfid, open_dir, proc_path};
use crate::brick::effect::{NewObject, Place, Rest, Step};
use crate::brick::meta::{HAS_ACCESS_ACL, HAS_CAPABILITY, HAS_DEFAULT_ACL, META_XATTR, Meta};
use brickfs_common::attr::{Kind, Timestamp};
use brickfs_common::errno::Errno;
use brickfs_common::ids::{Gfid, SetId};
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno as Sys;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

/// The xattr of an access ACL.
pub const ACCESS_ACL: &str = "system.posix_acl_access";
/// The xattr of a default ACL.
pub const DEFAULT_ACL: &str = "system.posix_acl_default";

const UTIME_OMIT: Timespec = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT as _ };

fn timespec(time: Option<Timestamp>) -> Timespec {
    time.map_or(UTIME_OMIT, |t| Timespec { tv_sec: t.sec, tv_nsec: t.nsec as _ })
}

/// An error that means "already so" is success.
fn unless(result: Result<(), Sys>, done: Sys) -> Result<(), Errno> {
    match result {
        Err(error) if error == done => Ok(()),
        other => other.map_err(errno),
    }
}

impl Store {
    /// Applies one step; a step that is done already changes nothing.
    pub fn apply(&mut self, step: &Step) -> Result<(), Errno> {
        self.changes_count += 1;
        match step {
            Step::Make { place, object } => self.make(place, object),
            Step::Link { gfid, place, time } => self.link(Gfid(*gfid), place, *time),
            Step::Unlink { gfid, place, rest, time } => self.unlink(Gfid(*gfid), place, *rest, *time),
            Step::RemoveDir { gfid, place } => self.remove_dir(Gfid(*gfid), place),
            Step::Move { gfid, from, to, replaced, time } => self.move_name(Gfid(*gfid), from, to, *replaced, *time),
            Step::Exchange { first, from, second, to, time } => {
                self.exchange((Gfid(*first), from), (Gfid(*second), to), *time)
            }
            Step::PutClaim { place, gfid, home } => self.put_claim(place, Gfid(*gfid), *home),
            Step::DropClaim { place } => self.drop_claim(place),
            Step::TouchDir { gfid, time, subdirs } => self.touch_dir(Gfid(*gfid), *time, *subdirs),
            Step::SetAttr { .. } => self.set_attr(step),
            Step::Xattr { gfid, name, value, time } => self.set_xattr(Gfid(*gfid), name, value.as_deref(), *time),
            Step::Write { .. } => Ok(()), // its data come with the call
            Step::Fallocate { gfid, mode, offset, length } => {
                let file = self.file(&Gfid(*gfid))?;
                let flags = rustix::fs::FallocateFlags::from_bits_retain(*mode as u32);
                rustix::fs::fallocate(&*file, flags, *offset, *length).map_err(errno)
            }
        }
    }

    /// Removes what a make that failed has left below `.brickfs`; it has no name yet.
    pub fn undo_make(&mut self, gfid: &Gfid, kind: Kind) {
        self.metas.pop(gfid);
        self.files.pop(gfid);
        self.dirs.pop(gfid);
        let removed = if kind == Kind::Directory {
            rustix::fs::unlinkat(&self.handles, dir_handle_path(gfid), AtFlags::empty())
                .and_then(|()| rustix::fs::unlinkat(&self.tmp, gfid.hex(), AtFlags::REMOVEDIR))
        } else {
            rustix::fs::unlinkat(&self.handles, handle_path(gfid), AtFlags::empty())
        };
        if let Err(error) = removed
            && error != Sys::NOENT
        {
            tracing::warn!(%gfid, "what a failed make left could not be removed: {error}");
        }
    }

    fn make_bucket(&mut self, gfid: &Gfid) -> Result<(), Errno> {
        let bucket = [gfid.0[0], gfid.0[1]];
        if self.made_buckets.contains(&bucket) {
            return Ok(());
        }
        let mode = Mode::from_raw_mode(0o700);
        unless(rustix::fs::mkdirat(&self.handles, format!("{:02x}", bucket[0]), mode), Sys::EXIST)?;
        unless(rustix::fs::mkdirat(&self.handles, format!("{:02x}/{:02x}", bucket[0], bucket[1]), mode), Sys::EXIST)?;
        self.made_buckets.insert(bucket);
        Ok(())
    }

    fn make(&mut self, place: &Place, object: &NewObject) -> Result<(), Errno> {
        let gfid = Gfid(object.gfid);
        self.make_bucket(&gfid)?;
        let acl_bits = |acl: &Option<Vec<u8>>, bit| if acl.is_some() { bit } else { 0 };
        let meta = Meta {
            gfid,
            kind: object.kind,
            flags: acl_bits(&object.access_acl, HAS_ACCESS_ACL) | acl_bits(&object.default_acl, HAS_DEFAULT_ACL),
            project: object.project,
            btime: object.time,
            ctime: object.time,
            rdev: object.rdev,
            home: object.home,
            subdirs: 0,
        };
        match object.kind {
            Kind::Directory => self.make_dir(place, object, &meta)?,
            Kind::Symlink => self.make_symlink(place, object, &meta)?,
            _ => self.make_file(place, object, &meta)?,
        }
        self.metas.put(gfid, meta);
        Ok(())
    }

    fn make_file(&mut self, place: &Place, object: &NewObject, meta: &Meta) -> Result<(), Errno> {
        let path = handle_path(&meta.gfid);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(object.perm);
        let fd = rustix::fs::openat(&self.handles, path.as_str(), flags, mode).map_err(errno)?;
        if object.uid != 0 || object.gid != 0 {
            chown(fd.as_fd(), object.uid, object.gid)?;
            if object.perm & 0o6000 != 0 {
                rustix::fs::fchmod(&fd, mode).map_err(errno)?;
            }
        }
        rustix::fs::fsetxattr(&fd, META_XATTR, &meta.encode(), XattrFlags::empty()).map_err(errno)?;
        if let Some(acl) = &object.access_acl {
            rustix::fs::fsetxattr(&fd, ACCESS_ACL, acl, XattrFlags::empty()).map_err(errno)?;
        }
        self.link_handle(&path, place, meta.gfid)?;
        if object.kind == Kind::File {
            self.files.put(meta.gfid, Arc::new(fd));
        }
        Ok(())
    }

    fn make_symlink(&mut self, place: &Place, object: &NewObject, meta: &Meta) -> Result<(), Errno> {
        let path = handle_path(&meta.gfid);
        unless(rustix::fs::symlinkat(&object.target[..], &self.handles, path.as_str()), Sys::EXIST)?;
        chown_at(self.handles.as_fd(), &path, object.uid, object.gid)?;
        let full = proc_path(self.handles.as_fd(), path.as_bytes());
        rustix::fs::lsetxattr(full, META_XATTR, &meta.encode(), XattrFlags::empty()).map_err(errno)?;
        self.link_handle(&path, place, meta.gfid)
    }

    /// The committing call of a new name of a file: a hard link of its handle.
    fn link_handle(&mut self, handle: &str, place: &Place, gfid: Gfid) -> Result<(), Errno> {
        let parent = self.dir(&place.parent())?;
        match rustix::fs::linkat(&self.handles, handle, &*parent, &place.name[..], AtFlags::empty()) {
            Err(Sys::EXIST) if self.bears(&gfid, &place.parent(), &place.name)? => Ok(()),
            other => other.map_err(errno),
        }
    }

    fn make_dir(&mut self, place: &Place, object: &NewObject, meta: &Meta) -> Result<(), Errno> {
        if self.bears(&meta.gfid, &place.parent(), &place.name)? {
            return self.put_dir_handle(&meta.gfid, place);
        }
        let name = meta.gfid.hex();
        unless(rustix::fs::mkdirat(&self.tmp, name.as_str(), Mode::from_raw_mode(0o700)), Sys::EXIST)?;
        let fd = open_dir(self.tmp.as_fd(), name.as_bytes())?;
        chown(fd.as_fd(), object.uid, object.gid)?;
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(object.perm)).map_err(errno)?;
        rustix::fs::fsetxattr(&fd, META_XATTR, &meta.encode(), XattrFlags::empty()).map_err(errno)?;
        for (xattr, acl) in [(ACCESS_ACL, &object.access_acl), (DEFAULT_ACL, &object.default_acl)] {
            if let Some(acl) = acl {
                rustix::fs::fsetxattr(&fd, xattr, acl, XattrFlags::empty()).map_err(errno)?;
            }
        }
        self.put_dir_handle(&meta.gfid, place)?;
        let parent = self.dir(&place.parent())?;
        let rename = |store: &Store| {
            rustix::fs::renameat_with(&store.tmp, name.as_str(), &*parent, &place.name[..], RenameFlags::NOREPLACE)
        };
        match rename(self) {
            Err(Sys::EXIST) => {
                self.move_copy_to_limbo(place)?;
                rename(self).map_err(errno)?;
            }
            other => other.map_err(errno)?,
        }
        self.dirs.put(meta.gfid, Arc::new(fd));
        Ok(())
    }

    /// Frees a physical name that a stale copy of another directory holds (PROTOCOL 26).
    fn move_copy_to_limbo(&mut self, place: &Place) -> Result<(), Errno> {
        let holder = self.entry(&place.parent(), &place.name)?.ok_or(Errno::EIO)?;
        if holder.kind != Kind::Directory || holder.home == self.set {
            self.report_damage(format!(
                "name '{}' of directory {} is held by {}",
                place.name.escape_ascii(),
                place.parent(),
                holder.gfid
            ));
            return Err(Errno::EIO);
        }
        let name = holder.gfid.hex();
        let parent = self.dir(&place.parent())?;
        rustix::fs::renameat(&*parent, &place.name[..], &self.limbo, name.as_str()).map_err(errno)?;
        self.put_dir_handle(&holder.gfid, &Place { parent: limbo_gfid().0, name: name.into_bytes() })
    }

    /// Writes a directory's handle, replacing an older one at once.
    fn put_dir_handle(&mut self, gfid: &Gfid, place: &Place) -> Result<(), Errno> {
        self.make_bucket(gfid)?;
        let mut text = place.parent().hex().into_bytes();
        text.push(b'/');
        text.extend_from_slice(&place.name);
        let handles = rustix::io::dup(&self.handles).map_err(errno)?;
        self.put_symlink(handles.as_fd(), dir_handle_path(gfid).as_bytes(), &text)
    }

    fn put_symlink(&self, dir: BorrowedFd<'_>, path: &[u8], text: &[u8]) -> Result<(), Errno> {
        match rustix::fs::symlinkat(text, dir, path) {
            Err(Sys::EXIST) => {
                unless(rustix::fs::unlinkat(&self.tmp, "link", AtFlags::empty()), Sys::NOENT)?;
                rustix::fs::symlinkat(text, &self.tmp, "link").map_err(errno)?;
                rustix::fs::renameat(&self.tmp, "link", dir, path).map_err(errno)
            }
            other => other.map_err(errno),
        }
    }

    fn link(&mut self, gfid: Gfid, place: &Place, time: Timestamp) -> Result<(), Errno> {
        self.link_handle(&handle_path(&gfid), place, gfid)?;
        self.set_ctime(&gfid, time)
    }

    fn unlink(&mut self, gfid: Gfid, place: &Place, rest: Rest, time: Timestamp) -> Result<(), Errno> {
        if self.bears(&gfid, &place.parent(), &place.name)? {
            let parent = self.dir(&place.parent())?;
            unless(rustix::fs::unlinkat(&*parent, &place.name[..], AtFlags::empty()), Sys::NOENT)?;
        }
        self.settle_rest(&gfid, rest, time)
    }

    /// What follows the loss of a name.
    fn settle_rest(&mut self, gfid: &Gfid, rest: Rest, time: Timestamp) -> Result<(), Errno> {
        let path = handle_path(gfid);
        match rest {
            Rest::Linked => self.set_ctime(gfid, time),
            Rest::Orphan => {
                self.set_ctime(gfid, time)?;
                unless(rustix::fs::renameat(&self.handles, path.as_str(), &self.orphans, gfid.hex()), Sys::NOENT)
            }
            Rest::Gone => {
                self.files.pop(gfid);
                self.metas.pop(gfid);
                unless(rustix::fs::unlinkat(&self.handles, path.as_str(), AtFlags::empty()), Sys::NOENT)
            }
        }
    }

    fn remove_dir(&mut self, gfid: Gfid, place: &Place) -> Result<(), Errno> {
        let physical = self.dir_place(&gfid)?.unwrap_or_else(|| (place.parent(), place.name.clone()));
        self.clear_claims(&gfid)?;
        let parent = match physical.0 {
            limbo if limbo == limbo_gfid() => Arc::new(rustix::io::dup(&self.limbo).map_err(errno)?),
            parent => match self.dir(&parent) {
                Ok(parent) => parent,
                Err(Errno::ENOENT) => return self.forget_dir(&gfid),
                Err(error) => return Err(error),
            },
        };
        let is_it = physical.0 == limbo_gfid() || self.bears(&gfid, &physical.0, &physical.1)?;
        if is_it {
            let remove = || rustix::fs::unlinkat(&*parent, &physical.1[..], AtFlags::REMOVEDIR);
            match remove() {
                Err(Sys::NOTEMPTY | Sys::EXIST) => {
                    self.remove_copies_below(&gfid)?;
                    unless(remove(), Sys::NOENT)?;
                }
                other => unless(other, Sys::NOENT)?,
            }
        }
        self.forget_dir(&gfid)
    }

    fn forget_dir(&mut self, gfid: &Gfid) -> Result<(), Errno> {
        self.dirs.pop(gfid);
        self.metas.pop(gfid);
        unless(rustix::fs::unlinkat(&self.handles, dir_handle_path(gfid), AtFlags::empty()), Sys::NOENT)
    }

    /// Removes stale copies of subdirectories: a directory that is empty on all homes has no other.
    fn remove_copies_below(&mut self, gfid: &Gfid) -> Result<(), Errno> {
        for name in self.names(gfid)? {
            let Some(meta) = self.entry(gfid, &name)? else { continue };
            if meta.kind != Kind::Directory || meta.home == self.set {
                return Err(Errno::ENOTEMPTY);
            }
            self.remove_dir(meta.gfid, &Place { parent: gfid.0, name })?;
        }
        Ok(())
    }

    fn move_name(
        &mut self,
        gfid: Gfid,
        from: &Place,
        to: &Place,
        replaced: Option<([u8; 16], Rest)>,
        time: Timestamp,
    ) -> Result<(), Errno> {
        let is_dir = self.meta(&gfid)?.kind == Kind::Directory;
        if !self.bears(&gfid, &to.parent(), &to.name)? {
            let from = match self.dir_place(&gfid)? {
                Some((parent, name)) if is_dir => Place { parent: parent.0, name },
                _ => from.clone(),
            };
            self.rename_physical(&gfid, &from, to, replaced.map(|(id, _)| Gfid(id)))?;
        }
        if is_dir {
            self.put_dir_handle(&gfid, to)?;
        }
        if let Some((old, rest)) = replaced {
            let old = Gfid(old);
            if is_dir {
                self.clear_claims(&old)?;
                self.forget_dir(&old)?;
            } else {
                self.settle_rest(&old, rest, time)?;
            }
        }
        if self.meta(&gfid)?.home == self.set { self.set_ctime(&gfid, time) } else { Ok(()) }
    }

    fn rename_physical(&mut self, gfid: &Gfid, from: &Place, to: &Place, replaced: Option<Gfid>) -> Result<(), Errno> {
        let to_dir = self.dir(&to.parent())?;
        let from_dir = if from.parent() == limbo_gfid() {
            Arc::new(rustix::io::dup(&self.limbo).map_err(errno)?)
        } else {
            self.dir(&from.parent())?
        };
        if let Some(holder) = self.entry(&to.parent(), &to.name)? {
            if Some(holder.gfid) != replaced {
                self.move_copy_to_limbo(to)?;
            } else if holder.kind == Kind::Directory {
                self.remove_copies_below(&holder.gfid)?;
            }
        }
        tracing::trace!(%gfid, "rename");
        rustix::fs::renameat(&*from_dir, &from.name[..], &*to_dir, &to.name[..]).map_err(errno)
    }

    fn exchange(&mut self, one: (Gfid, &Place), two: (Gfid, &Place), time: Timestamp) -> Result<(), Errno> {
        if self.bears(&one.0, &one.1.parent(), &one.1.name)? {
            let (a, b) = (self.dir(&one.1.parent())?, self.dir(&two.1.parent())?);
            rustix::fs::renameat_with(&*a, &one.1.name[..], &*b, &two.1.name[..], RenameFlags::EXCHANGE)
                .map_err(errno)?;
        }
        for (gfid, place) in [(one.0, two.1), (two.0, one.1)] {
            if self.meta(&gfid)?.kind == Kind::Directory {
                self.put_dir_handle(&gfid, place)?;
            }
            if self.meta(&gfid)?.home == self.set {
                self.set_ctime(&gfid, time)?;
            }
        }
        Ok(())
    }

    fn put_claim(&mut self, place: &Place, gfid: Gfid, home: SetId) -> Result<(), Errno> {
        let dir = place.parent().hex();
        unless(rustix::fs::mkdirat(&self.claims, dir.as_str(), Mode::from_raw_mode(0o700)), Sys::EXIST)?;
        let mut path = dir.into_bytes();
        path.push(b'/');
        path.extend_from_slice(&place.name);
        self.put_symlink(self.claims.as_fd(), &path, format!("{}@{home}", gfid.hex()).as_bytes())
    }

    fn drop_claim(&mut self, place: &Place) -> Result<(), Errno> {
        let mut path = place.parent().hex().into_bytes();
        path.push(b'/');
        path.extend_from_slice(&place.name);
        unless(rustix::fs::unlinkat(&self.claims, path, AtFlags::empty()), Sys::NOENT)
    }

    /// Removes what claims are left for names of a directory that is going away.
    fn clear_claims(&mut self, gfid: &Gfid) -> Result<(), Errno> {
        let name = gfid.hex();
        match rustix::fs::unlinkat(&self.claims, name.as_str(), AtFlags::REMOVEDIR) {
            Ok(()) | Err(Sys::NOENT) => return Ok(()),
            Err(Sys::NOTEMPTY | Sys::EXIST) => {}
            Err(error) => return Err(errno(error)),
        }
        let dir = open_dir(self.claims.as_fd(), name.as_bytes())?;
        let listing = open_dir(dir.as_fd(), b".")?;
        for entry in rustix::fs::Dir::new(listing).map_err(errno)? {
            let entry = entry.map_err(errno)?;
            let claim = entry.file_name();
            if claim.to_bytes() != b"." && claim.to_bytes() != b".." {
                unless(rustix::fs::unlinkat(&dir, claim, AtFlags::empty()), Sys::NOENT)?;
            }
        }
        unless(rustix::fs::unlinkat(&self.claims, name.as_str(), AtFlags::REMOVEDIR), Sys::NOENT)
    }

    fn touch_dir(&mut self, gfid: Gfid, time: Timestamp, subdirs: Option<u32>) -> Result<(), Errno> {
        let dir = match self.dir(&gfid) {
            Ok(dir) => dir,
            Err(Errno::ENOENT) => return Ok(()), // removed since: an effect that is applied again
            Err(error) => return Err(error),
        };
        let next = self.change(&gfid) + 1;
        self.changes.put(gfid, next);
        if let Some(subdirs) = subdirs {
            let mut meta = self.meta(&gfid)?;
            meta.subdirs = subdirs;
            meta.ctime = time;
            rustix::fs::fsetxattr(&*dir, META_XATTR, &meta.encode(), XattrFlags::empty()).map_err(errno)?;
            self.metas.put(gfid, meta);
        }
        let times = Timestamps { last_access: UTIME_OMIT, last_modification: timespec(Some(time)) };
        rustix::fs::futimens(&*dir, &times).map_err(errno)
    }

    /// Writes the record of an object again with another ctime (and what `change` alters).
    fn rewrite_meta(&mut self, gfid: &Gfid, change: impl FnOnce(&mut Meta)) -> Result<(), Errno> {
        let mut meta = self.meta(gfid)?;
        change(&mut meta);
        let bytes = meta.encode();
        if meta.kind == Kind::Directory {
            let dir = self.dir(gfid)?;
            rustix::fs::fsetxattr(&*dir, META_XATTR, &bytes, XattrFlags::empty()).map_err(errno)?;
        } else if let Some(file) = self.files.get(gfid) {
            rustix::fs::fsetxattr(&**file, META_XATTR, &bytes, XattrFlags::empty()).map_err(errno)?;
        } else {
            let path = self.object_path(gfid)?;
            rustix::fs::lsetxattr(path, META_XATTR, &bytes, XattrFlags::empty()).map_err(errno)?;
        }
        self.metas.put(*gfid, meta);
        Ok(())
    }

    fn set_ctime(&mut self, gfid: &Gfid, time: Timestamp) -> Result<(), Errno> {
        match self.rewrite_meta(gfid, |meta| meta.ctime = time) {
            Err(Errno::ESTALE | Errno::ENOENT) => Ok(()), // gone since: an effect that is applied again
            other => other,
        }
    }

    fn set_attr(&mut self, step: &Step) -> Result<(), Errno> {
        let Step::SetAttr { gfid, perm, uid, gid, size, atime, mtime, time } = step else { return Err(Errno::EIO) };
        let gfid = Gfid(*gfid);
        let kind = self.meta(&gfid)?.kind;
        if let Some(size) = size {
            let file = self.file(&gfid)?;
            rustix::fs::ftruncate(&*file, *size).map_err(errno)?;
        }
        let path = self.object_path(&gfid)?;
        if uid.is_some() || gid.is_some() {
            chown_at(rustix::fs::CWD, &path[..], uid.unwrap_or(u32::MAX), gid.unwrap_or(u32::MAX))?;
        }
        if let Some(perm) = perm
            && kind != Kind::Symlink
        {
            rustix::fs::chmodat(rustix::fs::CWD, &path[..], Mode::from_raw_mode(*perm), AtFlags::empty())
                .map_err(errno)?;
        }
        if atime.is_some() || mtime.is_some() {
            let times = Timestamps { last_access: timespec(*atime), last_modification: timespec(*mtime) };
            rustix::fs::utimensat(rustix::fs::CWD, &path[..], &times, AtFlags::SYMLINK_NOFOLLOW).map_err(errno)?;
        }
        self.rewrite_meta(&gfid, |meta| meta.ctime = *time)
    }

    fn set_xattr(&mut self, gfid: Gfid, name: &[u8], value: Option<&[u8]>, time: Timestamp) -> Result<(), Errno> {
        let path = self.object_path(&gfid)?;
        match value {
            Some(value) => rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).map_err(errno)?,
            None => unless(rustix::fs::lremovexattr(path, name), Sys::NODATA)?,
        }
        let bit = match name {
            b"security.capability" => HAS_CAPABILITY,
            _ if name == ACCESS_ACL.as_bytes() => HAS_ACCESS_ACL,
            _ if name == DEFAULT_ACL.as_bytes() => HAS_DEFAULT_ACL,
            _ => 0,
        };
        self.rewrite_meta(&gfid, |meta| {
            meta.ctime = time;
            meta.flags = if value.is_some() { meta.flags | bit } else { meta.flags & !bit };
        })
    }
}

fn ids(uid: u32, gid: u32) -> (Option<rustix::fs::Uid>, Option<rustix::fs::Gid>) {
    let some = |id: u32| (id != u32::MAX).then_some(id);
    (some(uid).map(rustix::fs::Uid::from_raw), some(gid).map(rustix::fs::Gid::from_raw))
}

fn chown(fd: BorrowedFd<'_>, uid: u32, gid: u32) -> Result<(), Errno> {
    let (uid, gid) = ids(uid, gid);
    rustix::fs::fchown(fd, uid, gid).map_err(errno)
}

fn chown_at(dir: BorrowedFd<'_>, path: impl rustix::path::Arg, uid: u32, gid: u32) -> Result<(), Errno> {
    let (uid, gid) = ids(uid, gid);
    rustix::fs::chownat(dir, path, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(errno)
}
