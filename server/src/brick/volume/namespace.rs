//! Names: lookup, make, unlink, rmdir and link. N3, N5; PROTOCOL 5, 6, 9.

use super::{Asker, Volume, done};
use crate::brick::effect::{NewObject, Outcome, Place, Rest, Step};
use crate::brick::meta::{HAS_DEFAULT_ACL, Meta};
use brickfs_common::acl::compute_inherited;
use brickfs_common::attr::{Kind, Timestamp};
use brickfs_common::errno::Errno;
use brickfs_common::fop::{Answer, CallHeader, FopReply, Making, ObjectRef};
use brickfs_common::ids::{Gfid, SetId};
use brickfs_common::name::Name;

/// Most names that a file gets: the least of the local file systems that we know (ext4), less the handle.
const LINK_MAX: u32 = 64_999;
/// A setgid directory hands its group on.
const SETGID: u32 = 0o2000;

/// An object as outcomes carry it.
pub fn known(object: ObjectRef) -> Option<([u8; 16], SetId)> {
    Some((object.gfid.0, object.home))
}

impl Volume {
    pub(super) fn lookup(&mut self, asker: Asker, parent: ObjectRef, name: &Name) -> Result<FopReply, Errno> {
        let found = self.resolve(parent.gfid, name)?;
        let Some(found) = found else {
            self.directory(parent)?;
            let parent = self.attr(parent).ok();
            return Ok(FopReply { parent, ..FopReply::failed(asker.request, Errno::ENOENT) });
        };
        let attr = match self.attr(found.object) {
            Err(Errno::ESTALE) => return Err(Errno::EIO),
            other => other?,
        };
        Ok(FopReply { attr: Some(attr), ..done(asker.request) })
    }

    /// The reply to a change of names, with fresh attributes of all concerned.
    pub(super) fn reply_names(
        &mut self,
        asker: Asker,
        object: Option<ObjectRef>,
        parent: ObjectRef,
        new_parent: Option<ObjectRef>,
    ) -> FopReply {
        FopReply {
            request: asker.request,
            result: Ok(Answer::Done),
            attr: object.and_then(|object| self.attr(object).ok()),
            parent: self.attr(parent).ok(),
            new_parent: new_parent.and_then(|parent| self.attr(parent).ok()),
        }
    }

    pub(super) fn refuse_reserved(parent: Gfid, name: &Name) -> Result<(), Errno> {
        if parent == Gfid::ROOT && name.is_reserved_in_root() { Err(Errno::EPERM) } else { Ok(()) }
    }

    pub(super) fn make(
        &mut self,
        asker: Asker,
        header: &CallHeader,
        parent: ObjectRef,
        name: &Name,
        making: Making,
        (perm, umask): (u32, u32),
    ) -> Result<FopReply, Errno> {
        Self::refuse_reserved(parent.gfid, name)?;
        let directory = self.directory(parent)?;
        if let Some(found) = self.resolve(parent.gfid, name)? {
            let Making::File { open, exclusive: false, truncate } = making else { return Err(Errno::EEXIST) };
            return self.make_existing(asker, found.object, found.kind, (open, truncate));
        }
        let set = self.map.layout.dentry_set(&parent.gfid, name);
        let is_record = matches!(making, Making::Record(..));
        self.check_space(set, if is_record { 0 } else { 4096 })?;
        let time = self.now();
        let mut steps = Vec::with_capacity(3);
        self.plan_copy(set, parent, &mut steps)?;
        let (object, is_open) = self.choose_object(header, (parent, &directory), set, making, (perm, umask), time)?;
        let made = ObjectRef { gfid: Gfid(object.gfid), home: set };
        let subdirs_delta = i32::from(object.kind == Kind::Directory);
        steps.push((set, Step::Make { place: Place::new(parent.gfid, name), object }));
        let touch = self.plan_touch(parent, time, subdirs_delta)?;
        steps.push(touch);
        let outcome = Outcome { object: known(made), parent: known(parent), ..Outcome::default() };
        self.commit(asker, set, steps, outcome)?;
        if is_open {
            self.count_open(asker.client, made, 1);
        }
        Ok(self.reply_names(asker, Some(made), parent, None))
    }

    /// O_CREAT without O_EXCL of a name that exists.
    fn make_existing(
        &mut self,
        asker: Asker,
        object: ObjectRef,
        kind: Kind,
        (open, truncate): (bool, bool),
    ) -> Result<FopReply, Errno> {
        match kind {
            Kind::File if open => self.open_file(asker, object, truncate),
            Kind::File => Ok(self.reply_names(asker, Some(object), object, None)),
            Kind::Directory => Err(Errno::EISDIR),
            Kind::Symlink => Err(Errno::ELOOP),
            Kind::Fifo | Kind::Socket | Kind::CharDevice | Kind::BlockDevice => Err(Errno::EEXIST),
        }
    }

    /// Decides a new object: what it inherits is computed here, never by the client (PROTOCOL 27).
    fn choose_object(
        &mut self,
        header: &CallHeader,
        (parent, directory): (ObjectRef, &Meta),
        home: SetId,
        making: Making,
        (perm, umask): (u32, u32),
        time: Timestamp,
    ) -> Result<(NewObject, bool), Errno> {
        let (kind, target, rdev, is_open) = match making {
            Making::File { open, .. } => (Kind::File, Vec::new(), 0, open),
            Making::Directory => (Kind::Directory, Vec::new(), 0, false),
            Making::Symlink(target) => (Kind::Symlink, target.to_vec(), 0, false),
            Making::Record(kind, rdev) => (kind, Vec::new(), rdev, false),
        };
        let parent_attr = self.attr(parent)?;
        let default_acl = match directory.flags & HAS_DEFAULT_ACL {
            0 => None,
            _ => Some(self.store(parent.home)?.xattr(&parent.gfid, b"system.posix_acl_default")?),
        };
        let is_directory = kind == Kind::Directory;
        let mut inherited = compute_inherited(default_acl.as_deref(), perm & 0o7777, umask, is_directory);
        if kind == Kind::Symlink {
            (inherited.perm, inherited.access) = (0o777, None);
        }
        let hands_group_on = parent_attr.perm & SETGID != 0;
        if hands_group_on && is_directory {
            inherited.perm |= SETGID;
        }
        let object = NewObject {
            gfid: self.store(home)?.choose_gfid().0,
            kind,
            perm: inherited.perm,
            uid: header.uid,
            gid: if hands_group_on { parent_attr.gid } else { header.gid },
            project: directory.project,
            rdev,
            target,
            access_acl: inherited.access,
            default_acl: inherited.default,
            time,
            home,
        };
        Ok((object, is_open))
    }

    /// What becomes of a file that loses one name.
    pub(super) fn choose_rest(&mut self, object: ObjectRef) -> Result<Rest, Errno> {
        let links = self.store(object.home)?.link_count(&object.gfid)?;
        Ok(match links {
            0 | 1 if self.is_open(&object.gfid) => Rest::Orphan,
            0 | 1 => Rest::Gone,
            _ => Rest::Linked,
        })
    }

    pub(super) fn unlink(&mut self, asker: Asker, parent: ObjectRef, name: &Name) -> Result<FopReply, Errno> {
        self.directory(parent)?;
        let found = self.resolve(parent.gfid, name)?.ok_or(Errno::ENOENT)?;
        if found.kind == Kind::Directory {
            return Err(Errno::EISDIR);
        }
        let time = self.now();
        let rest = self.choose_rest(found.object)?;
        let place = Place::new(parent.gfid, name);
        let home = found.object.home;
        let mut steps = vec![(home, Step::Unlink { gfid: found.object.gfid.0, place: place.clone(), rest, time })];
        self.plan_drop_claim(home, place, &mut steps);
        steps.push(self.plan_touch(parent, time, 0)?);
        let outcome = Outcome { object: known(found.object), parent: known(parent), ..Outcome::default() };
        self.commit(asker, home, steps, outcome)?;
        let left = (rest != Rest::Gone).then_some(found.object);
        Ok(self.reply_names(asker, left, parent, None))
    }

    /// Adds the removal of the claim of a name whose object is homed elsewhere than its dentry set.
    pub(super) fn plan_drop_claim(&mut self, home: SetId, place: Place, steps: &mut Vec<(SetId, Step)>) {
        if let Ok(name) = Name::new(place.name.clone()) {
            let dentry_set = self.map.layout.dentry_set(&place.parent(), &name);
            if dentry_set != home {
                steps.push((dentry_set, Step::DropClaim { place }));
            }
        }
    }

    /// Adds the closing of an empty directory on all sets but its home; ENOTEMPTY if any has entries,
    /// EIO if one cannot say (PROTOCOL 9).
    pub(super) fn plan_close(
        &mut self,
        dir: ObjectRef,
        place: &Place,
        steps: &mut Vec<(SetId, Step)>,
    ) -> Result<(), Errno> {
        for index in 0..self.sets.len() {
            let set = SetId(index as u16);
            let store = self.store(set)?;
            if !store.has_dir(&dir.gfid)? {
                continue;
            }
            if store.has_entries(&dir.gfid)? {
                return Err(Errno::ENOTEMPTY);
            }
            if set != dir.home {
                steps.push((set, Step::RemoveDir { gfid: dir.gfid.0, place: place.clone() }));
            }
        }
        Ok(())
    }

    pub(super) fn rmdir(&mut self, asker: Asker, parent: ObjectRef, name: &Name) -> Result<FopReply, Errno> {
        self.directory(parent)?;
        let found = self.resolve(parent.gfid, name)?.ok_or(Errno::ENOENT)?;
        if found.kind != Kind::Directory {
            return Err(Errno::ENOTDIR);
        }
        let time = self.now();
        let dir = found.object;
        let place = Place::new(parent.gfid, name);
        let mut steps = Vec::with_capacity(4);
        self.plan_close(dir, &place, &mut steps)?;
        steps.push((dir.home, Step::RemoveDir { gfid: dir.gfid.0, place: place.clone() }));
        self.plan_drop_claim(dir.home, place, &mut steps);
        steps.push(self.plan_touch(parent, time, -1)?);
        let outcome = Outcome { object: None, parent: known(parent), ..Outcome::default() };
        self.commit(asker, dir.home, steps, outcome)?;
        Ok(self.reply_names(asker, None, parent, None))
    }

    pub(super) fn link(
        &mut self,
        asker: Asker,
        object: ObjectRef,
        new_parent: ObjectRef,
        new_name: &Name,
    ) -> Result<FopReply, Errno> {
        Self::refuse_reserved(new_parent.gfid, new_name)?;
        self.directory(new_parent)?;
        if self.meta(object)?.kind == Kind::Directory {
            return Err(Errno::EPERM);
        }
        match self.store(object.home)?.link_count(&object.gfid)? {
            0 => return Err(Errno::ENOENT),
            LINK_MAX.. => return Err(Errno::EMLINK),
            _ => {}
        }
        if self.resolve(new_parent.gfid, new_name)?.is_some() {
            return Err(Errno::EEXIST);
        }
        let time = self.now();
        let place = Place::new(new_parent.gfid, new_name);
        let home = object.home;
        let dentry_set = self.map.layout.dentry_set(&new_parent.gfid, new_name);
        let mut steps = Vec::with_capacity(4);
        self.plan_copy(home, new_parent, &mut steps)?;
        if dentry_set != home {
            steps.push((dentry_set, Step::PutClaim { place: place.clone(), gfid: object.gfid.0, home }));
        }
        steps.push((home, Step::Link { gfid: object.gfid.0, place, time }));
        steps.push(self.plan_touch(new_parent, time, 0)?);
        let outcome = Outcome { object: known(object), parent: known(new_parent), ..Outcome::default() };
        self.commit(asker, home, steps, outcome)?;
        Ok(self.reply_names(asker, Some(object), new_parent, None))
    }
}
