//! Rename with all its flags, within and between sets (PROTOCOL 5-7, 25, 26; N1-N5).
//!
//! The coordinator is the home of the object that moves. Prepare: the new name's claim on its dentry
//! set, copies of the new parent where they are needed. Commit: the rename(2) on the home. Finish: the
//! replaced object's name where it lived elsewhere, the old claim, copies of a moved directory, times.

use super::namespace::known;
use super::{Asker, Found, Volume};
use crate::brick::effect::{NewObject, Outcome, Place, Rest, Step};
use brickfs_common::attr::{Kind, Timestamp};
use brickfs_common::errno::Errno;
use brickfs_common::fop::{CallHeader, FopReply, ObjectRef, RenameFlags};
use brickfs_common::ids::{Gfid, SetId};
use brickfs_common::name::Name;

type Steps = Vec<(SetId, Step)>;

/// A name that takes part in a rename.
struct Side<'a> {
    parent: ObjectRef,
    name: &'a Name,
    place: Place,
    dentry_set: SetId,
}

impl Volume {
    pub(super) fn rename(
        &mut self,
        asker: Asker,
        header: &CallHeader,
        (parent, name): (ObjectRef, &Name),
        (new_parent, new_name): (ObjectRef, &Name),
        flags: RenameFlags,
    ) -> Result<FopReply, Errno> {
        Self::refuse_reserved(parent.gfid, name)?;
        Self::refuse_reserved(new_parent.gfid, new_name)?;
        self.directory(parent)?;
        self.directory(new_parent)?;
        let source = self.resolve(parent.gfid, name)?.ok_or(Errno::ENOENT)?;
        let target = self.resolve(new_parent.gfid, new_name)?;
        self.check_rename(&source, target.as_ref(), (parent, new_parent), flags)?;
        if target.as_ref().is_some_and(|t| t.object.gfid == source.object.gfid) {
            return Ok(self.reply_names(asker, Some(source.object), parent, Some(new_parent)));
        }
        let old = self.side(parent, name);
        let new = self.side(new_parent, new_name);
        let time = self.now();
        let mut steps = Vec::with_capacity(8);
        match (&target, flags.exchange) {
            (Some(target), true) => self.plan_exchange(&old, &new, &source, target, time, &mut steps)?,
            _ => self.plan_move(&old, &new, &source, target.as_ref(), time, &mut steps)?,
        }
        if flags.whiteout {
            self.plan_whiteout(header, &old, time, &mut steps)?;
        }
        self.plan_touches(&old, &new, &source, target.as_ref(), flags, time, &mut steps)?;
        let outcome = Outcome {
            object: known(source.object),
            parent: known(parent),
            new_parent: known(new_parent),
            ..Outcome::default()
        };
        self.commit(asker, source.object.home, steps, outcome)?;
        Ok(self.reply_names(asker, Some(source.object), parent, Some(new_parent)))
    }

    fn side<'a>(&self, parent: ObjectRef, name: &'a Name) -> Side<'a> {
        let dentry_set = self.map.layout.dentry_set(&parent.gfid, name);
        Side { parent, name, place: Place::new(parent.gfid, name), dentry_set }
    }

    fn check_rename(
        &mut self,
        source: &Found,
        target: Option<&Found>,
        (parent, new_parent): (ObjectRef, ObjectRef),
        flags: RenameFlags,
    ) -> Result<(), Errno> {
        let moved = source.object.gfid;
        if source.kind == Kind::Directory && self.is_below(new_parent, moved)? {
            return Err(Errno::EINVAL); // N4
        }
        let Some(target) = target else {
            return if flags.exchange { Err(Errno::ENOENT) } else { Ok(()) };
        };
        if flags.no_replace {
            return Err(Errno::EEXIST);
        }
        let target_is_dir = target.kind == Kind::Directory;
        if flags.exchange {
            let cycle = target_is_dir && self.is_below(parent, target.object.gfid)?;
            return if cycle { Err(Errno::EINVAL) } else { Ok(()) };
        }
        match (source.kind == Kind::Directory, target_is_dir) {
            (true, false) => Err(Errno::ENOTDIR),
            (false, true) => Err(Errno::EISDIR),
            _ => Ok(()),
        }
    }

    /// Whether `dir` is `ancestor` or lies below it: walked on the directory's home, which has all that
    /// is above its own.
    fn is_below(&mut self, dir: ObjectRef, ancestor: Gfid) -> Result<bool, Errno> {
        let mut at = dir.gfid;
        let store = self.store(dir.home)?;
        // A path is at most as deep as directories can be nested by single-byte names in gfid records;
        // the bound only stops a walk in a damaged brick.
        for _ in 0..1_000_000 {
            if at == ancestor {
                return Ok(true);
            }
            if at == Gfid::ROOT {
                return Ok(false);
            }
            at = store.dir_place(&at)?.ok_or(Errno::ENOENT)?.0;
        }
        Err(Errno::EIO)
    }

    fn plan_move(
        &mut self,
        old: &Side<'_>,
        new: &Side<'_>,
        source: &Found,
        target: Option<&Found>,
        time: Timestamp,
        steps: &mut Steps,
    ) -> Result<(), Errno> {
        let moved = source.object;
        let home = moved.home;
        let is_dir = source.kind == Kind::Directory;
        if is_dir && let Some(target) = target {
            self.plan_close(target.object, &new.place, steps)?;
        }
        self.plan_copy(home, new.parent, steps)?;
        if new.dentry_set != home {
            steps.push((new.dentry_set, Step::PutClaim { place: new.place.clone(), gfid: moved.gfid.0, home }));
        }
        let rest = match target {
            Some(target) if !is_dir => self.choose_rest(target.object)?,
            _ => Rest::Gone,
        };
        let replaced = target.filter(|t| t.object.home == home).map(|t| (t.object.gfid.0, rest));
        let move_step = |replaced| Step::Move {
            gfid: moved.gfid.0,
            from: old.place.clone(),
            to: new.place.clone(),
            replaced,
            time,
        };
        steps.push((home, move_step(replaced)));
        if let Some(target) = target.filter(|t| t.object.home != home) {
            let gone = match is_dir {
                true => Step::RemoveDir { gfid: target.object.gfid.0, place: new.place.clone() },
                false => Step::Unlink { gfid: target.object.gfid.0, place: new.place.clone(), rest, time },
            };
            steps.push((target.object.home, gone));
        }
        if target.is_some_and(|t| t.object.home != new.dentry_set) && new.dentry_set == home {
            steps.push((new.dentry_set, Step::DropClaim { place: new.place.clone() }));
        }
        if old.dentry_set != home {
            steps.push((old.dentry_set, Step::DropClaim { place: old.place.clone() }));
        }
        if is_dir {
            self.plan_move_copies(moved, new, &move_step(None), steps)?;
        }
        Ok(())
    }

    /// Moves the copies of a directory on other sets to its new place.
    fn plan_move_copies(
        &mut self,
        dir: ObjectRef,
        new: &Side<'_>,
        step: &Step,
        steps: &mut Steps,
    ) -> Result<(), Errno> {
        for index in 0..self.sets.len() {
            let set = SetId(index as u16);
            if set != dir.home && self.store(set)?.has_dir(&dir.gfid)? {
                self.plan_copy(set, new.parent, steps)?;
                steps.push((set, step.clone()));
            }
        }
        Ok(())
    }

    fn plan_exchange(
        &mut self,
        old: &Side<'_>,
        new: &Side<'_>,
        source: &Found,
        target: &Found,
        time: Timestamp,
        steps: &mut Steps,
    ) -> Result<(), Errno> {
        let (one, two) = (source.object, target.object);
        self.plan_copy(one.home, new.parent, steps)?;
        self.plan_copy(two.home, old.parent, steps)?;
        for (side, object) in [(new, one), (old, two)] {
            if side.dentry_set != object.home {
                let claim = Step::PutClaim { place: side.place.clone(), gfid: object.gfid.0, home: object.home };
                steps.push((side.dentry_set, claim));
            }
        }
        let exchange = Step::Exchange {
            first: one.gfid.0,
            from: old.place.clone(),
            second: two.gfid.0,
            to: new.place.clone(),
            time,
        };
        let moves = |object: ObjectRef, from: &Side<'_>, to: &Side<'_>| Step::Move {
            gfid: object.gfid.0,
            from: from.place.clone(),
            to: to.place.clone(),
            replaced: None,
            time,
        };
        if one.home == two.home {
            steps.push((one.home, exchange.clone()));
        } else {
            // A copy of the other directory may hold the name that is wanted: it steps aside first.
            steps.push((one.home, moves(one, old, new)));
            steps.push((two.home, moves(two, new, old)));
        }
        for (side, object) in [(new, one), (old, two)] {
            if side.dentry_set == object.home {
                steps.push((side.dentry_set, Step::DropClaim { place: side.place.clone() }));
            }
        }
        if source.kind == Kind::Directory {
            self.plan_move_copies(one, new, &moves(one, old, new), steps)?;
        }
        if target.kind == Kind::Directory {
            self.plan_move_copies(two, old, &moves(two, new, old), steps)?;
        }
        Ok(())
    }

    fn plan_whiteout(
        &mut self,
        header: &CallHeader,
        old: &Side<'_>,
        time: Timestamp,
        steps: &mut Steps,
    ) -> Result<(), Errno> {
        let project = self.directory(old.parent)?.project;
        self.plan_copy(old.dentry_set, old.parent, steps)?;
        let object = NewObject {
            gfid: self.store(old.dentry_set)?.choose_gfid().0,
            kind: Kind::CharDevice,
            perm: 0,
            uid: header.uid,
            gid: header.gid,
            project,
            rdev: 0,
            target: Vec::new(),
            access_acl: None,
            default_acl: None,
            time,
            home: old.dentry_set,
        };
        steps.push((old.dentry_set, Step::Make { place: Place::new(old.parent.gfid, old.name), object }));
        Ok(())
    }

    #[allow(clippy::too_many_arguments)] // the two names, the two objects, and when
    fn plan_touches(
        &mut self,
        old: &Side<'_>,
        new: &Side<'_>,
        source: &Found,
        target: Option<&Found>,
        flags: RenameFlags,
        time: Timestamp,
        steps: &mut Steps,
    ) -> Result<(), Errno> {
        let is_dir = |found: Option<&Found>| i32::from(found.is_some_and(|f| f.kind == Kind::Directory));
        let (moved, met) = (is_dir(Some(source)), is_dir(target));
        let back = if flags.exchange { met } else { 0 };
        let (old_delta, new_delta) = (back - moved, moved - met);
        if old.parent.gfid == new.parent.gfid {
            steps.push(self.plan_touch(old.parent, time, old_delta + new_delta)?);
        } else {
            steps.push(self.plan_touch(old.parent, time, old_delta)?);
            steps.push(self.plan_touch(new.parent, time, new_delta)?);
        }
        Ok(())
    }
}
