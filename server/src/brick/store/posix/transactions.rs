//! What lies between sets: claims, what transactions hold and park, commits that others have not finished
//! (PROTOCOL 5, 6, 8).

use super::apply::unless;
use super::records::{claim_text, commit_text, pending_text, read_commit, read_pending};
use super::{DOT_DIR, PosixStore, claim_path, errno, open_dir};
use crate::brick::effect::{Claim, Commitment, Item, Old, Place, Rest, Stamp, Step};
use crate::brick::store::{BrickStore as _, PendingPart};
use brickfs_common::attr::Kind;
use brickfs_common::errno::Errno;
use brickfs_common::ids::{Gfid, TxId};
use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno as Sys;
use std::os::fd::AsFd as _;

/// How `Finish` goes about one item.
struct Finishing<'a> {
    tx: &'a TxId,
    is_parked: bool,
    at: &'a Stamp,
}

impl Finishing<'_> {
    fn parked_name(&self, index: usize) -> String {
        parked_name(self.tx, index)
    }
}

/// Behind the name of the first part of a transaction that is done here.
const FINISHED: &str = "-finished";
/// Behind the name of a commit that is on the disks of all.
const FLUSHED: &str = "-flushed";

fn parked_name(tx: &TxId, index: usize) -> String {
    format!("{}-{index}", tx.hex())
}

fn pending_name(tx: &TxId, part: u16) -> String {
    format!("{}-{part}", tx.hex())
}

impl PosixStore {
    pub(super) fn apply_transaction(&mut self, step: &Step, at: &Stamp) -> Result<(), Errno> {
        match step {
            Step::DropClaim { place, gfid } => match self.claim(&place.parent(), &place.name)? {
                Some(claim) if claim.gfid == *gfid => self.drop_claim(place),
                _ => Ok(()),
            },
            Step::Prepare { tx, part, coordinator, items } => {
                let name = pending_name(tx, *part);
                self.put_symlink(self.pending.as_fd(), name.as_bytes(), &pending_text(*coordinator, items))
            }
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
            Step::Commit { tx, commitment } => {
                self.put_symlink(self.commits.as_fd(), tx.hex().as_bytes(), &commit_text(commitment))
            }
            Step::Flushed { tx } => {
                let flushed = format!("{}{FLUSHED}", tx.hex());
                unless(rustix::fs::renameat(&self.commits, tx.hex(), &self.commits, flushed), Sys::NOENT)
            }
            Step::Forget { tx } => {
                unless(rustix::fs::unlinkat(&self.commits, tx.hex(), AtFlags::empty()), Sys::NOENT)?;
                let flushed = format!("{}{FLUSHED}", tx.hex());
                unless(rustix::fs::unlinkat(&self.commits, flushed, AtFlags::empty()), Sys::NOENT)
            }
            _ => Err(Errno::EIO),
        }
    }

    /// Everything of the transaction is done here, and others may use its names: after a restart it must not
    /// be done again over what they did.
    fn mark_finished(&self, tx: &TxId) -> Result<(), Errno> {
        let finished = format!("{}{FINISHED}", pending_name(tx, 0));
        unless(rustix::fs::renameat(&self.pending, pending_name(tx, 0), &self.pending, finished), Sys::NOENT)
    }

    fn drop_pending(&mut self, tx: &TxId, parts: u16) -> Result<(), Errno> {
        // From the last to the first, which carries the mark of all.
        for part in (0..parts).rev() {
            unless(rustix::fs::unlinkat(&self.pending, pending_name(tx, part), AtFlags::empty()), Sys::NOENT)?;
        }
        let finished = format!("{}{FINISHED}", pending_name(tx, 0));
        unless(rustix::fs::unlinkat(&self.pending, finished, AtFlags::empty()), Sys::NOENT)
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
            let parent = self.dir(&place.parent())?;
            self.seen.clear();
            rustix::fs::renameat(&*parent, &place.name[..], &self.parked, how.parked_name(index)).map_err(errno)?;
            *self.parked_links.entry(gfid).or_insert(0) += 1;
        }
        self.mark(&gfid, how.at)
    }

    fn park_dir(&mut self, how: &Finishing<'_>, index: usize, gfid: Gfid) -> Result<(), Errno> {
        let Some((parent, name)) = self.dir_place(&gfid)? else { return Ok(()) };
        self.clear_copies_below(&gfid)?;
        let parent_dir = self.physical_dir(&parent)?;
        let parked = how.parked_name(index);
        self.seen.clear();
        unless(rustix::fs::renameat(&*parent_dir, &name[..], &self.parked, parked.as_str()), Sys::NOENT)?;
        self.dirs.pop(&gfid);
        self.metas.pop(&gfid);
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
                let parent_dir = self.physical_dir(&parent)?;
                self.seen.clear();
                unless(
                    rustix::fs::renameat(&self.parked, how.parked_name(index), &*parent_dir, &name[..]),
                    Sys::NOENT,
                )?;
                self.parked_dirs.remove(&Gfid(*gfid));
                Ok(())
            }
        }
    }

    fn give_back(&mut self, how: &Finishing<'_>, index: usize, gfid: Gfid, place: &Place) -> Result<(), Errno> {
        let parent = self.dir(&place.parent())?;
        self.seen.clear();
        match rustix::fs::renameat(&self.parked, how.parked_name(index), &*parent, &place.name[..]) {
            Ok(()) => self.uncount_parked(&gfid),
            Err(Sys::NOENT) => {} // it was never taken
            Err(error) => return Err(errno(error)),
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
        let name = parked_name(tx, index);
        let Some(rest) = rest else {
            unless(rustix::fs::unlinkat(&self.parked, name, AtFlags::REMOVEDIR), Sys::NOENT)?;
            self.parked_dirs.remove(&gfid);
            self.clear_claims(&gfid)?;
            return self.forget_dir(&gfid);
        };
        match rustix::fs::unlinkat(&self.parked, name, AtFlags::empty()) {
            Ok(()) => self.uncount_parked(&gfid),
            Err(Sys::NOENT) => {}
            Err(error) => return Err(errno(error)),
        }
        self.settle_rest(&gfid, rest, at)
    }

    /// What an earlier process has parked.
    pub(super) fn count_parked_links(&mut self) -> Result<(), Errno> {
        for name in self.own_names(self.parked.as_fd())? {
            let path = super::proc_path(self.parked.as_fd(), &name);
            let meta = match self.read_meta_at(&path) {
                Ok(meta) => meta,
                Err(super::ReadError::Errno(error)) => return Err(error),
                Err(super::ReadError::Damaged(problem)) => {
                    self.report_damage(format!("parked object {}: {problem}", name.escape_ascii()));
                    continue;
                }
            };
            match meta {
                Some(meta) if meta.kind == Kind::Directory => drop(self.parked_dirs.insert(meta.gfid)),
                Some(meta) => *self.parked_links.entry(meta.gfid).or_insert(0) += 1,
                None => {}
            }
        }
        Ok(())
    }

    fn put_claim(&mut self, place: &Place, claim: &Claim) -> Result<(), Errno> {
        let dir = place.parent().hex();
        unless(rustix::fs::mkdirat(&self.claims, dir.as_str(), Mode::from_raw_mode(0o700)), Sys::EXIST)?;
        self.put_symlink(self.claims.as_fd(), &claim_path(&place.parent(), &place.name), &claim_text(claim))
    }

    fn drop_claim(&mut self, place: &Place) -> Result<(), Errno> {
        let path = claim_path(&place.parent(), &place.name);
        match rustix::fs::unlinkat(&self.claims, path, AtFlags::empty()) {
            Ok(()) | Err(Sys::NOENT) => Ok(()),
            Err(error) => Err(errno(error)),
        }
    }

    /// Removes what claims are left for names of a directory that is going away.
    pub(super) fn clear_claims(&mut self, gfid: &Gfid) -> Result<(), Errno> {
        let name = gfid.hex();
        match rustix::fs::unlinkat(&self.claims, name.as_str(), AtFlags::REMOVEDIR) {
            Ok(()) | Err(Sys::NOENT) => return Ok(()),
            Err(Sys::NOTEMPTY | Sys::EXIST) => {}
            Err(error) => return Err(errno(error)),
        }
        let dir = open_dir(self.claims.as_fd(), name.as_bytes())?;
        for claim in self.own_names(dir.as_fd())? {
            unless(rustix::fs::unlinkat(&dir, &claim[..], AtFlags::empty()), Sys::NOENT)?;
        }
        unless(rustix::fs::unlinkat(&self.claims, name.as_str(), AtFlags::REMOVEDIR), Sys::NOENT)
    }

    /// Reads the records of a directory of ours, symbolic links all. What is none is reported, and the rest counts.
    fn read_links<T>(
        &mut self,
        (dir, what): (&str, &str),
        read: impl Fn(&[u8], &[u8]) -> Option<T>,
    ) -> Result<Vec<T>, Errno> {
        let dir = open_dir(self.root.as_fd(), format!("{DOT_DIR}/{dir}").as_bytes())?;
        let mut records = Vec::new();
        for name in self.own_names(dir.as_fd())? {
            let record = match rustix::fs::readlinkat(&dir, &name[..], Vec::new()) {
                Ok(text) => read(&name, text.as_bytes()),
                Err(Sys::INVAL) => None,
                Err(error) => return Err(errno(error)),
            };
            match record {
                Some(record) => records.push(record),
                None => self.report_damage(format!("{what} {} is damaged", name.escape_ascii())),
            }
        }
        Ok(records)
    }

    pub(super) fn read_pending_parts(&mut self) -> Result<Vec<PendingPart>, Errno> {
        let read = |name: &[u8], text: &[u8]| {
            let (stem, is_finished) = without_suffix(name, FINISHED);
            let (tx, part) = std::str::from_utf8(stem).ok()?.split_once('-')?;
            let (coordinator, items) = read_pending(text)?;
            Some(PendingPart { tx: tx.parse().ok()?, part: part.parse().ok()?, coordinator, items, is_finished })
        };
        let mut parts = self.read_links(("pending", "pending"), read)?;
        parts.sort_by_key(|part| (part.tx, part.part));
        Ok(parts)
    }

    pub(super) fn read_commits(&mut self) -> Result<Vec<(TxId, Commitment, bool)>, Errno> {
        let read = |name: &[u8], text: &[u8]| {
            let (stem, is_flushed) = without_suffix(name, FLUSHED);
            Some((std::str::from_utf8(stem).ok()?.parse().ok()?, read_commit(text)?, is_flushed))
        };
        self.read_links(("commits", "commit"), read)
    }
}

fn without_suffix<'a>(name: &'a [u8], suffix: &str) -> (&'a [u8], bool) {
    name.strip_suffix(suffix.as_bytes()).map_or((name, false), |stem| (stem, true))
}
