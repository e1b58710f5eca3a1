//! What a store does at start with the last effect of its log, step by step as `posix::redo` does.

use super::ModelStore;
use crate::brick::effect::{Effect, Stamp, Step};
use crate::brick::store::BrickStore as _;
use brickfs_common::attr::Kind;
use brickfs_common::errno::Errno;
use brickfs_common::ids::Gfid;

impl ModelStore {
    pub(super) fn redo_effect(&mut self, effect: &Effect) -> Result<bool, Errno> {
        let at = effect.stamp();
        let is_cut = match effect.steps.iter().find_map(changed_object) {
            Some(gfid) => self.is_before(&gfid, &at)?,
            None => false,
        };
        let mut stands = true;
        let damage_before = self.damage.len();
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
                Step::TouchDir { gfid, .. } if self.is_before(&Gfid(*gfid), &at)? => self.apply_step(step, &at)?,
                Step::Make { .. } | Step::TouchDir { .. } | Step::Inherit { .. } => {}
                Step::Finish { parts: 0, .. } if is_cut => self.apply_step(step, &at)?,
                Step::Prepare { .. } | Step::Finish { .. } | Step::Release { .. } => {}
                Step::Flushed { .. } | Step::Forget { .. } => {}
                Step::Copy { .. } | Step::DropClaim { .. } | Step::Follow { .. } => {}
                Step::RemoveDir { gfid } if !is_cut && !self.has_dir(&Gfid(*gfid))? => self.forget_dir(&Gfid(*gfid))?,
                _ if is_cut => self.apply_step(step, &at)?,
                _ => {}
            }
        }
        self.damage.truncate(damage_before);
        Ok(stands)
    }

    fn is_before(&mut self, gfid: &Gfid, at: &Stamp) -> Result<bool, Errno> {
        match self.meta(gfid) {
            Ok(meta) => Ok(meta.position < at.position),
            Err(Errno::ESTALE) => Ok(false),
            Err(error) => Err(error),
        }
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

/// The object whose record a step writes last.
fn changed_object(step: &Step) -> Option<Gfid> {
    match step {
        Step::Link { gfid, .. } | Step::Unlink { gfid, .. } | Step::RemoveDir { gfid } => Some(Gfid(*gfid)),
        Step::Move { gfid, .. } | Step::Exchange { second: gfid, .. } => Some(Gfid(*gfid)),
        Step::SetAttr { gfid, .. } | Step::Xattr { gfid, .. } | Step::Fallocate { gfid, .. } => Some(Gfid(*gfid)),
        _ => None,
    }
}
