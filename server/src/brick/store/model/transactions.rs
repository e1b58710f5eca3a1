//! What lies between sets, call by call as `posix::transactions` does.

use super::apply::unless;
use super::disk::Spot;
use super::{LIMBO, ModelStore};
use crate::brick::effect::{Claim, Item, Old, Place, Rest, Stamp, Step};
use crate::brick::store::BrickStore as _;
use brickfs_common::attr::Kind;
use brickfs_common::errno::Errno;
use brickfs_common::ids::{Gfid, TxId};

/// How `Finish` goes about one item.
struct Finishing<'a> {
    tx: &'a TxId,
    is_parked: bool,
    at: &'a Stamp,
}

impl ModelStore {
    pub(super) fn apply_transaction(&mut self, step: &Step, at: &Stamp) -> Result<(), Errno> {
        match step {
            Step::DropClaim { place, gfid } => match self.claim(&place.parent(), &place.name)? {
                Some(claim) if claim.gfid == *gfid => self.drop_claim(place),
                _ => Ok(()),
            },
            Step::Prepare { tx, part, coordinator, items } => self.call(|fs| {
                fs.pending.insert((*tx, *part), (*coordinator, items.clone()));
                Ok(())
            }),
            Step::Finish { tx, is_committed, items, rests, parts, is_parked } => {
                let how = Finishing { tx, is_parked: *is_parked, at };
                for (index, item) in items.iter().enumerate() {
                    if *is_committed {
                        self.finish_item(&how, index, item, rests.get(index).copied().flatten())?;
                    } else {
                        self.undo_item(&how, index, item)?;
                    }
                }
                if *is_parked { self.mark_finished(tx) } else { self.drop_pending(tx, *parts) }
            }
            Step::Release { tx, parts, parked } => {
                for (index, gfid, rest) in parked {
                    self.release_parked(tx, usize::from(*index), Gfid(*gfid), *rest, at)?;
                }
                self.drop_pending(tx, *parts)
            }
            Step::Commit { tx, commitment } => self.call(|fs| {
                fs.commits.insert(*tx, (commitment.clone(), false));
                Ok(())
            }),
            Step::Flushed { tx } => self.call(|fs| {
                fs.commits.entry(*tx).and_modify(|(_, is_flushed)| *is_flushed = true);
                Ok(())
            }),
            Step::Forget { tx } => self.call(|fs| {
                fs.commits.remove(tx);
                Ok(())
            }),
            _ => Err(Errno::EIO),
        }
    }

    fn mark_finished(&mut self, tx: &TxId) -> Result<(), Errno> {
        self.call(|fs| {
            fs.finished.insert(*tx);
            Ok(())
        })
    }

    fn drop_pending(&mut self, tx: &TxId, parts: u16) -> Result<(), Errno> {
        for part in (0..parts).rev() {
            self.call(|fs| {
                fs.pending.remove(&(*tx, part));
                if part == 0 {
                    fs.finished.remove(tx);
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    fn finish_item(&mut self, how: &Finishing<'_>, index: usize, item: &Item, rest: Option<Rest>) -> Result<(), Errno> {
        match item {
            Item::Name { place, new, old } => {
                match old {
                    Old::Native(_, Kind::Directory) | Old::Absent | Old::Claim(_) => {}
                    Old::Native(gfid, _) => self.take_name(how, index, Gfid(*gfid), place, rest)?,
                }
                match new {
                    Some(claim) => self.put_claim(place, claim),
                    None => self.drop_claim(place),
                }
            }
            Item::Drop { place, gfid } => self.take_name(how, index, Gfid(*gfid), place, rest),
            Item::Move { gfid, from, to } => self.move_name(Gfid(*gfid), from, to, None, how.at),
            Item::Close { gfid } if how.is_parked => self.park_dir(how, index, Gfid(*gfid)),
            Item::Close { gfid } => self.remove_dir(Gfid(*gfid)),
        }
    }

    /// rename(2) into `parked`.
    fn park(&mut self, from: Spot, parked: (TxId, usize)) -> Result<(), Errno> {
        self.call(|fs| {
            let gfid = fs.entries.remove(&from).ok_or(Errno::ENOENT)?;
            fs.parked.insert(parked, gfid);
            Ok(())
        })
    }

    /// rename(2) out of `parked`.
    fn unpark(&mut self, parked: (TxId, usize), to: Spot) -> Result<(), Errno> {
        self.call(|fs| {
            let gfid = *fs.parked.get(&parked).ok_or(Errno::ENOENT)?;
            let is_dir = |gfid: &Gfid| fs.inodes[gfid].meta.kind == Kind::Directory;
            match fs.entries.get(&to).copied() {
                Some(old) if old == gfid => return Ok(()),
                Some(old) if is_dir(&gfid) && is_dir(&old) && fs.is_empty_dir(&old) => drop(fs.inodes.remove(&old)),
                Some(old) if is_dir(&gfid) && is_dir(&old) => return Err(Errno::ENOTEMPTY),
                Some(old) if is_dir(&gfid) != is_dir(&old) => return Err(Errno::EISDIR),
                Some(old) => {
                    fs.entries.remove(&to);
                    fs.drop_if_unlinked(&old);
                }
                None => {}
            }
            fs.parked.remove(&parked);
            fs.entries.insert(to, gfid);
            Ok(())
        })
    }

    /// Takes a file's name away; parked it can be given back.
    fn take_name(
        &mut self,
        how: &Finishing<'_>,
        index: usize,
        gfid: Gfid,
        place: &Place,
        rest: Option<Rest>,
    ) -> Result<(), Errno> {
        if !how.is_parked {
            return self.unlink(gfid, place, rest.unwrap_or(Rest::Linked), how.at);
        }
        if self.bears(&gfid, &place.parent(), &place.name)? {
            self.dir(&place.parent())?;
            self.park((place.parent(), place.name.clone()), (*how.tx, index))?;
            *self.parked_links.entry(gfid).or_insert(0) += 1;
        }
        self.mark(&gfid, how.at)
    }

    fn park_dir(&mut self, how: &Finishing<'_>, index: usize, gfid: Gfid) -> Result<(), Errno> {
        let Some((parent, name)) = self.dir_place(&gfid)? else { return Ok(()) };
        self.clear_copies_below(&gfid)?;
        if parent != LIMBO {
            self.dir(&parent)?;
        }
        unless(self.park((parent, name), (*how.tx, index)), Errno::ENOENT)?;
        self.drop_dir(&gfid);
        self.parked_dirs.insert(gfid);
        Ok(())
    }

    fn undo_item(&mut self, how: &Finishing<'_>, index: usize, item: &Item) -> Result<(), Errno> {
        match item {
            Item::Name { place, new, old } => {
                match old {
                    Old::Native(gfid, _) => self.give_back(how, index, Gfid(*gfid), place)?,
                    Old::Absent | Old::Claim(_) => {}
                }
                match (old, new) {
                    (Old::Claim(claim), _) => self.put_claim(place, claim),
                    (_, Some(claim)) if self.claim(&place.parent(), &place.name)? == Some(*claim) => {
                        self.drop_claim(place)
                    }
                    _ => Ok(()),
                }
            }
            Item::Drop { place, gfid } => self.give_back(how, index, Gfid(*gfid), place),
            Item::Move { gfid, from, to } if self.bears(&Gfid(*gfid), &to.parent(), &to.name)? => {
                self.move_name(Gfid(*gfid), to, from, None, how.at)
            }
            Item::Move { .. } => Ok(()),
            Item::Close { gfid } => {
                let Some((parent, name)) = self.dir_place(&Gfid(*gfid))? else { return Ok(()) };
                if parent != LIMBO {
                    self.dir(&parent)?;
                }
                unless(self.unpark((*how.tx, index), (parent, name)), Errno::ENOENT)?;
                self.parked_dirs.remove(&Gfid(*gfid));
                Ok(())
            }
        }
    }

    fn give_back(&mut self, how: &Finishing<'_>, index: usize, gfid: Gfid, place: &Place) -> Result<(), Errno> {
        self.dir(&place.parent())?;
        match self.unpark((*how.tx, index), (place.parent(), place.name.clone())) {
            Ok(()) => self.uncount_parked(&gfid),
            Err(Errno::ENOENT) => {} // it was never taken
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn uncount_parked(&mut self, gfid: &Gfid) {
        if let Some(count) = self.parked_links.get_mut(gfid) {
            *count -= 1;
            if *count == 0 {
                self.parked_links.remove(gfid);
            }
        }
    }

    fn release_parked(
        &mut self,
        tx: &TxId,
        index: usize,
        gfid: Gfid,
        rest: Option<Rest>,
        at: &Stamp,
    ) -> Result<(), Errno> {
        let parked = (*tx, index);
        let Some(rest) = rest else {
            let removed = self.call(|fs| {
                let dir = *fs.parked.get(&parked).ok_or(Errno::ENOENT)?;
                if !fs.is_empty_dir(&dir) {
                    return Err(Errno::ENOTEMPTY);
                }
                fs.parked.remove(&parked);
                fs.inodes.remove(&dir);
                Ok(())
            });
            unless(removed, Errno::ENOENT)?;
            self.parked_dirs.remove(&gfid);
            self.clear_claims(&gfid)?;
            return self.forget_dir(&gfid);
        };
        let removed = self.call(|fs| {
            let file = fs.parked.remove(&parked).ok_or(Errno::ENOENT)?;
            fs.drop_if_unlinked(&file);
            Ok(())
        });
        match removed {
            Ok(()) => self.uncount_parked(&gfid),
            Err(Errno::ENOENT) => {}
            Err(error) => return Err(error),
        }
        self.settle_rest(&gfid, rest, at)
    }

    fn put_claim(&mut self, place: &Place, claim: &Claim) -> Result<(), Errno> {
        self.call(|fs| {
            fs.claims.insert((place.parent(), place.name.clone()), *claim);
            Ok(())
        })
    }

    fn drop_claim(&mut self, place: &Place) -> Result<(), Errno> {
        self.call(|fs| {
            fs.claims.remove(&(place.parent(), place.name.clone()));
            Ok(())
        })
    }

    /// Removes what claims are left for names of a directory that is going away.
    pub(super) fn clear_claims(&mut self, gfid: &Gfid) -> Result<(), Errno> {
        let of_dir: Vec<Spot> = self.fs(|fs| fs.claims.keys().filter(|spot| spot.0 == *gfid).cloned().collect());
        for spot in of_dir {
            self.call(|fs| {
                fs.claims.remove(&spot);
                Ok(())
            })?;
        }
        Ok(())
    }
}
