//! What a store does at start with the last effect of its log, step by step as `posix::redo` does.

use super::ModelStore;
use crate::brick::effect::{Effect, Item, Place, Stamp, Step};
use crate::brick::meta::Meta;
use crate::brick::store::BrickStore as _;
use brickfs_common::attr::Kind;
use brickfs_common::errno::Errno;
use brickfs_common::ids::Gfid;

impl ModelStore {
    pub(super) fn redo_effect(&mut self, effect: &Effect) -> Result<bool, Errno> {
        let damage_before = self.damage.len();
        let redone = self.redo_steps(effect);
        // What looked damaged on the way is what was cut: it is whole now, or lost with the effect.
        self.damage.truncate(damage_before);
        redone
    }

    fn redo_steps(&mut self, effect: &Effect) -> Result<bool, Errno> {
        let at = effect.stamp();
        for place in effect.steps.iter().flat_map(new_places) {
            // A directory that got there gets the handle that it may not have got.
            self.entry(&place.parent(), &place.name)?;
        }
        let is_cut = match effect.steps.iter().find_map(Step::changed_object) {
            Some(gfid) => self.is_before(&gfid, &at)?,
            None => false,
        };
        if self.is_past(effect)? {
            return Ok(false);
        }
        let mut stands = true;
        for step in &effect.steps {
            match step {
                Step::Write { .. } => {}
                Step::Make { place, object } if !self.is_made(&Gfid(object.gfid), &at)? => {
                    stands &= self.has_dir(&place.parent())?;
                    if stands {
                        self.apply_step(step, &at)?;
                    }
                }
                Step::Copy { place, .. } if self.has_dir(&place.parent())? => self.apply_step(step, &at)?,
                // Counted anew: what the effect knew of the number may be older or newer than the brick.
                Step::TouchDir { gfid, subdirs: Some(_) } if self.has_dir(&Gfid(*gfid))? => {
                    let subdirs = Some(self.count_subdirs(&Gfid(*gfid))?);
                    self.apply_step(&Step::TouchDir { gfid: *gfid, subdirs }, &at)?;
                }
                Step::TouchDir { gfid, .. } if self.is_before(&Gfid(*gfid), &at)? => self.apply_step(step, &at)?,
                Step::Make { .. } | Step::TouchDir { .. } | Step::Inherit { .. } => {}
                Step::Finish { parts: 0, .. } if is_cut => self.apply_step(step, &at)?,
                Step::Prepare { .. } | Step::Finish { .. } | Step::Release { .. } => {}
                Step::Flushed { .. } | Step::Forget { .. } => {}
                Step::Copy { .. } | Step::DropClaim { .. } | Step::Follow { .. } => {}
                // A copy: its home has removed the directory, whatever became of the rest.
                Step::RemoveDir { gfid } if self.is_empty_copy(&Gfid(*gfid))? => self.apply_step(step, &at)?,
                Step::RemoveDir { gfid } if !is_cut && !self.has_dir(&Gfid(*gfid))? => self.forget_dir(&Gfid(*gfid))?,
                _ if is_cut => self.apply_step(step, &at)?,
                _ => {}
            }
        }
        Ok(stands)
    }

    fn is_past(&mut self, effect: &Effect) -> Result<bool, Errno> {
        for step in &effect.steps {
            let Step::Make { place, object } = step else { continue };
            if self.is_made(&Gfid(object.gfid), &effect.stamp())? || !self.has_dir(&place.parent())? {
                continue;
            }
            if self.inode(&place.parent())?.mtime > effect.time {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn is_before(&mut self, gfid: &Gfid, at: &Stamp) -> Result<bool, Errno> {
        match self.meta(gfid) {
            Ok(meta) => Ok(meta.position < at.position),
            Err(Errno::ESTALE) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Subdirectories that are homed on this set.
    fn count_subdirs(&mut self, gfid: &Gfid) -> Result<u32, Errno> {
        let mut count = 0;
        for name in self.names(gfid)? {
            let set = self.set;
            let is_native_dir = |meta: Meta| meta.kind == Kind::Directory && meta.home == set;
            count += u32::from(self.entry(gfid, &name)?.is_some_and(is_native_dir));
        }
        Ok(count)
    }

    fn is_empty_copy(&mut self, gfid: &Gfid) -> Result<bool, Errno> {
        if !self.has_dir(gfid)? || self.meta(gfid)?.home == self.set {
            return Ok(false);
        }
        for name in self.names(gfid)? {
            let set = self.set;
            let is_copy = |meta: Meta| meta.kind == Kind::Directory && meta.home != set;
            if !self.entry(gfid, &name)?.is_none_or(is_copy) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn is_made(&mut self, gfid: &Gfid, at: &Stamp) -> Result<bool, Errno> {
        match self.meta(gfid) {
            Ok(meta) if meta.position > at.position || meta.kind == Kind::Directory => Ok(true),
            Ok(_) => Ok(self.link_count(gfid)? > 0),
            Err(Errno::ESTALE | Errno::EIO) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// The places that a step moves directories to.
fn new_places(step: &Step) -> Vec<&Place> {
    match step {
        Step::Move { to, .. } | Step::Follow { to, .. } => vec![to],
        Step::Exchange { from, to, .. } => vec![from, to],
        Step::Finish { items, .. } => items.iter().filter_map(moved_to).collect(),
        _ => Vec::new(),
    }
}

fn moved_to(item: &Item) -> Option<&Place> {
    match item {
        Item::Move { to, .. } => Some(to),
        _ => None,
    }
}
