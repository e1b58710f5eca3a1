//! What a store does at start with the last effect of its log (PROTOCOL 20). Effects are applied one after
//! the other, each right after its record was written, so after SIGKILL only the last can be half done.
//!
//! After power loss the log may be older or newer than the brick: an object whose record has a later
//! position than the effect has been changed since, and nothing is done to it. Transactions are not redone
//! from the log: their records below `.brickfs` say what is left to do.

use super::{PosixStore, errno};
use crate::brick::effect::{Effect, Item, Place, Stamp, Step};
use crate::brick::meta::Meta;
use crate::brick::store::BrickStore as _;
use brickfs_common::attr::{Kind, Timestamp};
use brickfs_common::errno::Errno;
use brickfs_common::ids::Gfid;
use rustix::fd::AsFd;

impl PosixStore {
    pub(super) fn redo_effect(&mut self, effect: &Effect) -> Result<bool, Errno> {
        // What looks damaged on the way is what was cut: it is whole then, or lost with the effect.
        self.is_redoing = true;
        let redone = self.redo_steps(effect);
        self.is_redoing = false;
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
                Step::Write { .. } => stands &= self.redo_write(step, &at)?,
                // Later writes may have reached the disk before their records: whoever has no answer asks again.
                Step::Fallocate { .. } if is_cut && self.lost_power => stands = false,
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
                Step::Copy { .. } | Step::DropClaim { .. } | Step::Follow { .. } => {} // done when needed next
                // A copy: its home has removed the directory, whatever became of the rest.
                Step::RemoveDir { gfid } if self.is_empty_copy(&Gfid(*gfid))? => self.apply_step(step, &at)?,
                Step::RemoveDir { gfid } if !is_cut && !self.has_dir(&Gfid(*gfid))? => self.forget_dir(&Gfid(*gfid))?,
                _ if is_cut => self.apply_step(step, &at)?,
                _ => {}
            }
        }
        Ok(stands)
    }

    /// Whether the effect made something that is not here although its directory has been changed since: a
    /// power loss has kept what removed it, and not the log of that. Where it is the directory's time that was
    /// set to come, nothing is lost: nobody was answered before all of the effect was done, and who asks again
    /// has it done.
    fn is_past(&mut self, effect: &Effect) -> Result<bool, Errno> {
        for step in &effect.steps {
            let Step::Make { place, object } = step else { continue };
            if self.is_made(&Gfid(object.gfid), &effect.stamp())? {
                continue;
            }
            match self.dir(&place.parent()) {
                Ok(dir) if modified(&*dir)? > effect.time => return Ok(true),
                Ok(_) | Err(Errno::ENOENT) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Whether the object is here and has not seen this effect nor a later one.
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

    /// Whether a make got as far as its name, or something was done to the object since.
    fn is_made(&mut self, gfid: &Gfid, at: &Stamp) -> Result<bool, Errno> {
        match self.meta(gfid) {
            Ok(meta) if meta.position > at.position || meta.kind == Kind::Directory => Ok(true),
            Ok(_) => Ok(self.link_count(gfid)? > 0),
            Err(Errno::ESTALE) => Ok(false),
            // The record is written before the name: without one there is no name either.
            Err(Errno::EIO) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The data of a write are with the client, which sends them again; a copy that got to its end has marked its
    /// target. A part of an append that reached the file is taken back, so that it is not doubled.
    fn redo_write(&mut self, step: &Step, at: &Stamp) -> Result<bool, Errno> {
        let Step::Write { gfid, offset, length, append } = step else { return Ok(false) };
        if !append {
            return Ok(self.meta(&Gfid(*gfid)).is_ok_and(|meta| meta.position >= at.position));
        }
        if !self.is_before(&Gfid(*gfid), at)? {
            return Ok(true);
        }
        let file = self.file(&Gfid(*gfid))?;
        let size = rustix::fs::fstat(&*file).map_err(errno)?.st_size as u64;
        if size >= offset + u64::from(*length) {
            return Ok(true);
        }
        if size > *offset {
            rustix::fs::ftruncate(&*file, *offset).map_err(errno)?;
        }
        Ok(false)
    }
}

fn modified(dir: impl AsFd) -> Result<Timestamp, Errno> {
    let stat = rustix::fs::fstat(dir).map_err(errno)?;
    Ok(Timestamp { sec: stat.st_mtime, nsec: stat.st_mtime_nsec as u32 })
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
