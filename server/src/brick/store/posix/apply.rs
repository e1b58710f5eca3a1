//! Applying the steps of an effect to objects and names. Every step finds out whether it is done already,
//! so that a step cut by SIGKILL can be applied again (PROTOCOL 20): the call that commits a step is the
//! change of the visible name; what precedes it can be repeated, the object's record with the effect's
//! position comes after it.

use super::dirs::limbo_gfid;
use super::records::dir_handle_text;
use super::{PosixStore, dir_handle_path, errno, handle_path, open_dir, proc_path};
use crate::brick::effect::{CopyOf, NewObject, Place, Rest, Stamp, Step};
use crate::brick::meta::{HAS_ACCESS_ACL, HAS_CAPABILITY, HAS_DEFAULT_ACL, META_XATTR, Meta};
use crate::brick::store::{BrickStore as _, TouchedAt};
use brickfs_common::attr::{Kind, Timestamp};
use brickfs_common::errno::Errno;
use brickfs_common::ids::{Gfid, SetId};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno as Sys;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
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
pub(super) fn unless(result: Result<(), Sys>, done: Sys) -> Result<(), Errno> {
    match result {
        Err(error) if error == done => Ok(()),
        other => other.map_err(errno),
    }
}

impl PosixStore {
    pub(super) fn apply_step(&mut self, step: &Step, at: &Stamp) -> Result<(), Errno> {
        match step {
            Step::Make { place, object } => self.make(place, object, at),
            Step::Copy { place, copy } => self.make_copy(place, copy, at),
            Step::Link { gfid, place } => self.link(Gfid(*gfid), place, at),
            Step::Unlink { gfid, place, rest } => self.unlink(Gfid(*gfid), place, *rest, at),
            Step::RemoveDir { gfid } => self.remove_dir(Gfid(*gfid)),
            Step::Move { gfid, from, to, replaced } => self.move_name(Gfid(*gfid), from, to, *replaced, at),
            Step::Exchange { first, from, second, to } => self.exchange((Gfid(*first), from), (Gfid(*second), to), at),
            Step::Follow { gfid, to, position } => self.follow(Gfid(*gfid), to, *position),
            Step::Inherit { copy } => self.inherit(copy),
            Step::TouchDir { gfid, subdirs } => self.touch_dir(Gfid(*gfid), at, *subdirs),
            Step::SetAttr { .. } => self.set_attr(step, at),
            Step::Xattr { gfid, name, value } => self.set_xattr(Gfid(*gfid), name, value.as_deref(), at),
            Step::Write { .. } => Ok(()), // its data come with the call
            Step::Fallocate { gfid, mode, offset, length } => {
                let file = self.file(&Gfid(*gfid))?;
                self.allocate(&file, *mode, *offset, *length)
            }
            Step::DropClaim { .. } | Step::Prepare { .. } | Step::Finish { .. } => self.apply_transaction(step, at),
            Step::Release { .. } | Step::Commit { .. } | Step::Flushed { .. } | Step::Forget { .. } => {
                self.apply_transaction(step, at)
            }
        }
    }

    /// Removes what a make that failed has left below `.brickfs`; it has no name yet.
    pub(super) fn undo_make_object(&mut self, gfid: &Gfid, kind: Kind) {
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

    /// A file is made as its handle, gets its record, then its name and data; each call is a change of its own
    /// for the journal of the brick's file system.
    pub(super) fn drop_unfinished_file(&mut self, gfid: &Gfid) -> Result<bool, Errno> {
        let path = handle_path(gfid);
        let stat = match rustix::fs::statat(&self.handles, path.as_str(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Sys::NOENT) => return Ok(false),
            Err(error) => return Err(errno(error)),
        };
        let holds_data = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_size > 0;
        if stat.st_nlink != 1 || holds_data {
            return Ok(false);
        }
        let mut no_bytes: [u8; 0] = [];
        match rustix::fs::lgetxattr(proc_path(self.handles.as_fd(), path.as_bytes()), META_XATTR, &mut no_bytes[..]) {
            Err(Sys::NODATA) => {}
            _ => return Ok(false),
        }
        rustix::fs::unlinkat(&self.handles, path.as_str(), AtFlags::empty()).map_err(errno)?;
        Ok(true)
    }

    pub(super) fn make_bucket(&mut self, gfid: &Gfid) -> Result<(), Errno> {
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

    fn make(&mut self, place: &Place, object: &NewObject, at: &Stamp) -> Result<(), Errno> {
        let gfid = Gfid(object.gfid);
        self.make_bucket(&gfid)?;
        let acl_bits = |acl: &Option<Vec<u8>>, bit| if acl.is_some() { bit } else { 0 };
        let meta = Meta {
            gfid,
            kind: object.kind,
            flags: acl_bits(&object.access_acl, HAS_ACCESS_ACL) | acl_bits(&object.default_acl, HAS_DEFAULT_ACL),
            project: object.project,
            btime: at.time,
            ctime: at.time,
            position: at.position,
            home: self.set,
            rdev: object.rdev,
            subdirs: 0,
            spread: Vec::new(),
        };
        match object.kind {
            Kind::Directory => self.make_dir(place, object, &meta)?,
            Kind::Symlink => self.make_symlink(place, object, &meta)?,
            _ => self.make_file(place, object, &meta)?,
        }
        self.metas.put(gfid, meta);
        Ok(())
    }

    /// A directory for the children that live on this set; attributes and times are its home's matter.
    fn make_copy(&mut self, place: &Place, copy: &CopyOf, at: &Stamp) -> Result<(), Errno> {
        let gfid = Gfid(copy.gfid);
        let object = NewObject {
            gfid: copy.gfid,
            kind: Kind::Directory,
            perm: copy.perm,
            uid: copy.uid,
            gid: copy.gid,
            project: copy.project,
            rdev: 0,
            target: Vec::new(),
            access_acl: None,
            default_acl: copy.default_acl.clone(),
        };
        let meta = Meta {
            gfid,
            kind: Kind::Directory,
            flags: copy_flags(copy),
            project: copy.project,
            btime: at.time,
            ctime: at.time,
            position: copy.position,
            home: copy.home,
            rdev: 0,
            subdirs: 0,
            spread: Vec::new(),
        };
        self.make_bucket(&gfid)?;
        self.make_dir(place, &object, &meta)?;
        self.metas.put(gfid, meta);
        Ok(())
    }

    fn make_file(&mut self, place: &Place, object: &NewObject, meta: &Meta) -> Result<(), Errno> {
        let path = handle_path(&meta.gfid);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOATIME;
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
    pub(super) fn link_handle(&mut self, handle: &str, place: &Place, gfid: Gfid) -> Result<(), Errno> {
        let parent = self.dir(&place.parent())?;
        self.seen.clear();
        match rustix::fs::linkat(&self.handles, handle, &*parent, &place.name[..], AtFlags::empty()) {
            Err(Sys::EXIST) if self.bears(&gfid, &place.parent(), &place.name)? => Ok(()),
            other => other.map_err(errno),
        }
    }

    fn make_dir(&mut self, place: &Place, object: &NewObject, meta: &Meta) -> Result<(), Errno> {
        if self.bears(&meta.gfid, &place.parent(), &place.name)? {
            return self.put_dir_handle(&meta.gfid, &place.parent(), &place.name);
        }
        let name = meta.gfid.hex();
        let mode = Mode::from_raw_mode(object.perm);
        unless(rustix::fs::mkdirat(&self.tmp, name.as_str(), mode), Sys::EXIST)?;
        let fd = open_dir(self.tmp.as_fd(), name.as_bytes())?;
        if object.uid != 0 || object.gid != 0 {
            chown(fd.as_fd(), object.uid, object.gid)?;
        }
        // mkdir(2) takes no setuid and setgid.
        if object.perm & 0o6000 != 0 {
            rustix::fs::fchmod(&fd, mode).map_err(errno)?;
        }
        rustix::fs::fsetxattr(&fd, META_XATTR, &meta.encode(), XattrFlags::empty()).map_err(errno)?;
        for (xattr, acl) in [(ACCESS_ACL, &object.access_acl), (DEFAULT_ACL, &object.default_acl)] {
            if let Some(acl) = acl {
                rustix::fs::fsetxattr(&fd, xattr, acl, XattrFlags::empty()).map_err(errno)?;
            }
        }
        self.put_dir_handle(&meta.gfid, &place.parent(), &place.name)?;
        let parent = self.dir(&place.parent())?;
        self.seen.clear();
        match rename_new(self.tmp.as_fd(), &name, parent.as_fd(), &place.name) {
            Err(Sys::EXIST) => {
                // The copy of a directory that has moved away.
                self.free_name(place, None)?;
                rename_new(self.tmp.as_fd(), &name, parent.as_fd(), &place.name).map_err(errno)?;
            }
            other => other.map_err(errno)?,
        }
        self.dirs.put(meta.gfid, Arc::new(fd));
        Ok(())
    }

    /// Writes a directory's handle, replacing an older one at once.
    pub(super) fn put_dir_handle(&mut self, gfid: &Gfid, parent: &Gfid, name: &[u8]) -> Result<(), Errno> {
        self.make_bucket(gfid)?;
        self.put_symlink(self.handles.as_fd(), dir_handle_path(gfid).as_bytes(), &dir_handle_text(parent, name))
    }

    pub(super) fn put_symlink(&self, dir: BorrowedFd<'_>, path: &[u8], text: &[u8]) -> Result<(), Errno> {
        match rustix::fs::symlinkat(text, dir, path) {
            Err(Sys::EXIST) => {
                if rustix::fs::readlinkat(dir, path, Vec::new()).is_ok_and(|old| old.as_bytes() == text) {
                    return Ok(());
                }
                unless(rustix::fs::unlinkat(&self.tmp, "link", AtFlags::empty()), Sys::NOENT)?;
                rustix::fs::symlinkat(text, &self.tmp, "link").map_err(errno)?;
                rustix::fs::renameat(&self.tmp, "link", dir, path).map_err(errno)
            }
            other => other.map_err(errno),
        }
    }

    fn link(&mut self, gfid: Gfid, place: &Place, at: &Stamp) -> Result<(), Errno> {
        self.link_handle(&handle_path(&gfid), place, gfid)?;
        self.mark(&gfid, at)
    }

    pub(super) fn unlink(&mut self, gfid: Gfid, place: &Place, rest: Rest, at: &Stamp) -> Result<(), Errno> {
        if self.bears(&gfid, &place.parent(), &place.name)? {
            let parent = self.dir(&place.parent())?;
            self.seen.clear();
            unless(rustix::fs::unlinkat(&*parent, &place.name[..], AtFlags::empty()), Sys::NOENT)?;
        }
        self.settle_rest(&gfid, rest, at)
    }

    /// What follows the loss of a name.
    pub(super) fn settle_rest(&mut self, gfid: &Gfid, rest: Rest, at: &Stamp) -> Result<(), Errno> {
        let path = handle_path(gfid);
        match rest {
            Rest::Linked => self.mark(gfid, at),
            Rest::Orphan => {
                // The record comes last: by it a restart knows that nothing of this is missing.
                self.orphaned.insert(*gfid);
                unless(rustix::fs::renameat(&self.handles, path.as_str(), &self.orphans, gfid.hex()), Sys::NOENT)?;
                self.mark(gfid, at)
            }
            Rest::Gone => {
                self.files.pop(gfid);
                self.metas.pop(gfid);
                unless(rustix::fs::unlinkat(&self.handles, path.as_str(), AtFlags::empty()), Sys::NOENT)
            }
        }
    }

    pub(super) fn remove_dir(&mut self, gfid: Gfid) -> Result<(), Errno> {
        self.clear_claims(&gfid)?;
        let Some((parent, name)) = self.dir_place(&gfid)? else { return self.forget_dir(&gfid) };
        let parent_dir = match self.physical_dir(&parent) {
            Ok(dir) => dir,
            Err(Errno::ENOENT) => return self.forget_dir(&gfid),
            Err(error) => return Err(error),
        };
        if parent == limbo_gfid() || self.bears(&gfid, &parent, &name)? {
            self.seen.clear();
            let remove = || rustix::fs::unlinkat(&*parent_dir, &name[..], AtFlags::REMOVEDIR);
            match remove() {
                Err(Sys::NOTEMPTY | Sys::EXIST) => {
                    self.clear_copies_below(&gfid)?;
                    unless(remove(), Sys::NOENT)?;
                }
                other => unless(other, Sys::NOENT)?,
            }
        }
        self.forget_dir(&gfid)
    }

    pub(super) fn forget_dir(&mut self, gfid: &Gfid) -> Result<(), Errno> {
        self.dirs.pop(gfid);
        self.metas.pop(gfid);
        self.changes.forget(gfid);
        unless(rustix::fs::unlinkat(&self.handles, dir_handle_path(gfid), AtFlags::empty()), Sys::NOENT)
    }

    fn inherit(&mut self, copy: &CopyOf) -> Result<(), Errno> {
        let gfid = Gfid(copy.gfid);
        let dir = match self.dir(&gfid) {
            Ok(dir) => dir,
            Err(Errno::ENOENT) => return Ok(()),
            Err(error) => return Err(error),
        };
        chown(dir.as_fd(), copy.uid, copy.gid)?;
        rustix::fs::fchmod(&*dir, Mode::from_raw_mode(copy.perm)).map_err(errno)?;
        match &copy.default_acl {
            Some(acl) => rustix::fs::fsetxattr(&*dir, DEFAULT_ACL, acl, XattrFlags::empty()).map_err(errno)?,
            None => unless(rustix::fs::fremovexattr(&*dir, DEFAULT_ACL), Sys::NODATA)?,
        }
        self.rewrite_meta(&gfid, |meta| {
            meta.flags = copy_flags(copy);
            meta.project = copy.project;
            meta.position = meta.position.max(copy.position);
        })
    }

    fn touch_dir(&mut self, gfid: Gfid, at: &Stamp, subdirs: Option<u32>) -> Result<(), Errno> {
        let dir = match self.dir(&gfid) {
            Ok(dir) => dir,
            Err(Errno::ENOENT) => return Ok(()), // removed since: an effect that is applied again
            Err(error) => return Err(error),
        };
        self.changes.count(&gfid);
        if let Some(subdirs) = subdirs {
            self.rewrite_meta(&gfid, |meta| meta.subdirs = subdirs)?;
        }
        if self.meta(&gfid)?.home == self.set || gfid == Gfid::ROOT {
            let times = Timestamps { last_access: UTIME_OMIT, last_modification: timespec(Some(at.time)) };
            rustix::fs::futimens(&*dir, &times).map_err(errno)?;
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
        let dir = match self.dir(gfid) {
            Ok(dir) => dir,
            Err(Errno::ENOENT) => return Ok(()), // removed since
            Err(error) => return Err(error),
        };
        self.changes.count(gfid);
        if let Some(count) = subdirs
            && self.meta(gfid)?.spread_of(set) != count
        {
            self.rewrite_meta(gfid, |meta| meta.set_spread(set, count))?;
        }
        let stat = rustix::fs::fstat(&*dir).map_err(errno)?;
        let mtime = || Timestamp { sec: stat.st_mtime, nsec: stat.st_mtime_nsec as u32 };
        let Some(time) = touch.mtime_over(self.meta(gfid)?.ctime, mtime) else { return Ok(()) };
        let times = Timestamps { last_access: UTIME_OMIT, last_modification: timespec(Some(time)) };
        rustix::fs::futimens(&*dir, &times).map_err(errno)
    }

    /// Writes the record of an object again.
    pub(super) fn rewrite_meta(&mut self, gfid: &Gfid, change: impl FnOnce(&mut Meta)) -> Result<(), Errno> {
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

    /// The last call of a change of an object that stays: its ctime and the effect's position.
    pub(super) fn mark(&mut self, gfid: &Gfid, at: &Stamp) -> Result<(), Errno> {
        match self.rewrite_meta(gfid, |meta| (meta.ctime, meta.position) = (at.time, at.position)) {
            Err(Errno::ESTALE | Errno::ENOENT) => Ok(()), // gone since: an effect that is applied again
            other => other,
        }
    }

    fn set_attr(&mut self, step: &Step, at: &Stamp) -> Result<(), Errno> {
        let Step::SetAttr { gfid, perm, uid, gid: new_gid, size, atime, mtime } = step else { return Err(Errno::EIO) };
        let gfid = Gfid(*gfid);
        let kind = self.meta(&gfid)?.kind;
        if let Some(size) = size {
            let file = self.file(&gfid)?;
            rustix::fs::ftruncate(&*file, *size).map_err(errno)?;
        }
        let owner =
            (uid.is_some() || new_gid.is_some()).then(|| ids(uid.unwrap_or(u32::MAX), new_gid.unwrap_or(u32::MAX)));
        let mode = perm.filter(|_| kind != Kind::Symlink).map(Mode::from_raw_mode);
        let times = Timestamps { last_access: timespec(*atime), last_modification: timespec(*mtime) };
        let sets_times = atime.is_some() || mtime.is_some();
        // The order matters: a change of owner drops setuid and setgid.
        if let Some(fd) = self.open_fd(&gfid, kind)? {
            owner.map_or(Ok(()), |(uid, gid)| rustix::fs::fchown(&fd, uid, gid)).map_err(errno)?;
            mode.map_or(Ok(()), |mode| rustix::fs::fchmod(&fd, mode)).map_err(errno)?;
            if sets_times {
                rustix::fs::futimens(&fd, &times).map_err(errno)?;
            }
        } else {
            let (path, at_cwd) = (self.object_path(&gfid)?, rustix::fs::CWD);
            let nofollow = AtFlags::SYMLINK_NOFOLLOW;
            owner.map_or(Ok(()), |(u, g)| rustix::fs::chownat(at_cwd, &path[..], u, g, nofollow)).map_err(errno)?;
            let chmod = |mode| rustix::fs::chmodat(at_cwd, &path[..], mode, AtFlags::empty());
            mode.map_or(Ok(()), chmod).map_err(errno)?;
            if sets_times {
                rustix::fs::utimensat(at_cwd, &path[..], &times, nofollow).map_err(errno)?;
            }
        }
        self.mark(&gfid, at)
    }

    /// A descriptor that is open anyhow: calls on it need no path.
    fn open_fd(&mut self, gfid: &Gfid, kind: Kind) -> Result<Option<Arc<OwnedFd>>, Errno> {
        match kind {
            Kind::Directory => self.dir(gfid).map(Some),
            _ => Ok(self.files.get(gfid).cloned()),
        }
    }

    fn set_xattr(&mut self, gfid: Gfid, name: &[u8], value: Option<&[u8]>, at: &Stamp) -> Result<(), Errno> {
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
            (meta.ctime, meta.position) = (at.time, at.position);
            meta.flags = if value.is_some() { meta.flags | bit } else { meta.flags & !bit };
        })
    }
}

fn rename_new(from_dir: BorrowedFd<'_>, from: &str, to_dir: BorrowedFd<'_>, to: &[u8]) -> Result<(), Sys> {
    rustix::fs::renameat_with(from_dir, from, to_dir, to, RenameFlags::NOREPLACE)
}

fn copy_flags(copy: &CopyOf) -> u16 {
    if copy.default_acl.is_some() { HAS_DEFAULT_ACL } else { 0 }
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
