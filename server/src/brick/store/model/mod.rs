//! The model store of one brick: the same calls in the same order as the POSIX store makes, on a file
//! system in memory, so that a simulation can end the process at each of them and take the disk's power
//! away. Contents of files, ACLs of files and times other than a directory's are left out.
//!
//! `disk` is what outlives a process; `apply` changes objects and names, `transactions` what lies between
//! sets, `redo` finishes what a crash cut: the file names are those of `posix`, function by function.

mod apply;
mod calls;
pub mod disk;
mod redo;
mod transactions;

use super::{BrickStore, DEPTH_MAX, PendingPart, Space, TouchedAt};
use crate::brick::effect::{Claim, Commitment, Effect, Stamp, Step};
use crate::brick::meta::{HAS_DEFAULT_ACL, Meta};
use brickfs_common::attr::{Attr, Kind};
use brickfs_common::errno::Errno;
use brickfs_common::ids::{Gfid, SetId, TxId};
use disk::{Fs, Inode, Process, SharedDisks, Spot};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The parent gfid that stands for `.brickfs/limbo`.
pub const LIMBO: Gfid = Gfid([0xff; 16]);

/// The store of one brick in one process.
pub struct ModelStore {
    pub set: SetId,
    pub damage: Vec<String>,
    device: u64,
    disks: SharedDisks,
    process: Arc<Process>,
    /// Directories that a descriptor is kept of: reached also when their handle leads elsewhere. `None`:
    /// the cache is so small that nothing stays in it.
    dirs: Option<BTreeSet<Gfid>>,
    parked_links: BTreeMap<Gfid, u32>,
    parked_dirs: BTreeSet<Gfid>,
}

impl ModelStore {
    /// Opens a brick in a process.
    pub fn open(set: SetId, disks: SharedDisks, process: Arc<Process>, keeps_dirs: bool) -> ModelStore {
        let (device, parked): (u64, Vec<Gfid>) = {
            let disks = disks.lock();
            (disks.device(set), disks.fs(set).parked.values().copied().collect())
        };
        let dirs = keeps_dirs.then(BTreeSet::new);
        let (parked_links, parked_dirs) = (BTreeMap::new(), BTreeSet::new());
        let mut store = ModelStore { set, damage: Vec::new(), device, disks, process, dirs, parked_links, parked_dirs };
        for gfid in parked {
            if store.fs(|fs| fs.inodes.get(&gfid).is_some_and(|inode| inode.meta.kind != Kind::Directory)) {
                *store.parked_links.entry(gfid).or_insert(0) += 1;
            } else {
                store.parked_dirs.insert(gfid);
            }
        }
        store.disks.lock().change(set, Fs::clear_tmp);
        store.heal_limbo();
        store
    }

    fn fs<R>(&self, read: impl FnOnce(&Fs) -> R) -> R {
        read(self.disks.lock().fs(self.set))
    }

    /// One changing call of the file system.
    fn call<R>(&mut self, change: impl FnOnce(&mut Fs) -> Result<R, Errno>) -> Result<R, Errno> {
        self.process.call()?;
        self.disks.lock().change(self.set, change)
    }

    /// Finds a directory: ENOENT if this brick has none of that gfid, or not where its handle says.
    fn dir(&mut self, gfid: &Gfid) -> Result<Gfid, Errno> {
        let (mut at, mut way) = (*gfid, Vec::new());
        loop {
            if self.parked_dirs.contains(&at) {
                return Err(Errno::ENOENT);
            }
            if at == Gfid::ROOT || at == LIMBO || self.dirs.as_ref().is_some_and(|dirs| dirs.contains(&at)) {
                break;
            }
            let spot = self.fs(|fs| fs.dir_handles.get(&at).cloned()).ok_or(Errno::ENOENT)?;
            if way.len() >= DEPTH_MAX {
                return Err(Errno::ENOENT); // handles that a crash left leading in a circle
            }
            way.push((at, spot.clone()));
            at = spot.0;
        }
        for (gfid, spot) in way.into_iter().rev() {
            let found = self.fs(|fs| fs.entries.get(&spot).copied()).ok_or(Errno::ENOENT)?;
            if found != gfid {
                return Err(Errno::ENOENT); // it has moved, which a crash has kept from its handle
            }
            self.keep_dir(&gfid);
        }
        Ok(*gfid)
    }

    fn keep_dir(&mut self, gfid: &Gfid) {
        if let Some(dirs) = &mut self.dirs {
            dirs.insert(*gfid);
        }
    }

    fn drop_dir(&mut self, gfid: &Gfid) {
        if let Some(dirs) = &mut self.dirs {
            dirs.remove(gfid);
        }
    }

    /// A crash may have kept a copy's way into the limbo from its handle.
    fn heal_limbo(&mut self) {
        let in_limbo: Vec<(Spot, Gfid)> = self.fs(|fs| {
            let entries = fs.entries.iter().filter(|(spot, _)| spot.0 == LIMBO);
            entries.map(|(spot, gfid)| (spot.clone(), *gfid)).collect()
        });
        for (spot, gfid) in in_limbo {
            if self.fs(|fs| fs.dir_handles.get(&gfid) != Some(&spot)) {
                // Fails on a process that is dead by now, which opens nothing any more.
                self.put_dir_handle(&gfid, &spot.0, &spot.1).ok();
            }
        }
    }

    fn inode(&self, gfid: &Gfid) -> Result<Inode, Errno> {
        self.fs(|fs| fs.inodes.get(gfid).cloned()).ok_or(Errno::ESTALE)
    }

    /// Links of a file that are names: neither its handle nor what is parked.
    fn names_of(&self, gfid: &Gfid) -> u32 {
        let ours = 1 + self.parked_links.get(gfid).copied().unwrap_or(0);
        self.fs(|fs| fs.links(gfid)).saturating_sub(ours)
    }

    fn heal_dir_handle(&mut self, meta: &Meta, parent: &Gfid, name: &[u8]) -> Result<(), Errno> {
        let is_kept = self.dirs.as_ref().is_some_and(|dirs| dirs.contains(&meta.gfid));
        if meta.kind != Kind::Directory || is_kept {
            return Ok(());
        }
        let spot: Spot = (*parent, name.to_vec());
        if self.fs(|fs| fs.dir_handles.get(&meta.gfid) == Some(&spot)) {
            return Ok(());
        }
        self.put_dir_handle(&meta.gfid, parent, name)
    }
}

impl BrickStore for ModelStore {
    fn device(&self) -> u64 {
        self.device
    }

    fn space(&self) -> Result<Space, Errno> {
        let bytes = 1 << 40;
        Ok(Space { total_bytes: bytes, free_bytes: bytes, available_bytes: bytes, total_inodes: 0, free_inodes: 0 })
    }

    fn flusher(&self) -> Box<dyn FnOnce() -> Result<(), Errno> + Send> {
        let (disks, process, device) = (self.disks.clone(), self.process.clone(), self.device);
        Box::new(move || {
            process.call()?;
            disks.lock().flush(device);
            Ok(())
        })
    }

    fn log_is_full(&self) -> bool {
        false
    }

    fn turn_log(&mut self, _kept: &[Effect]) -> Result<(), Errno> {
        Ok(())
    }

    fn append(&mut self, effect: &Effect) -> Result<(), Errno> {
        self.process.call()?;
        self.disks.lock().append(self.set, effect.clone());
        Ok(())
    }

    fn apply(&mut self, step: &Step, at: &Stamp) -> Result<(), Errno> {
        self.apply_step(step, at)
    }

    fn redo(&mut self, effect: &Effect) -> Result<bool, Errno> {
        self.redo_effect(effect)
    }

    fn undo_make(&mut self, gfid: &Gfid, _kind: Kind) {
        self.drop_dir(gfid);
        let gfid = *gfid;
        // Without effect on a dead process, as it should be.
        self.call(|fs| {
            fs.handles.remove(&gfid);
            fs.dir_handles.remove(&gfid);
            if !fs.entries.values().any(|other| *other == gfid) {
                fs.inodes.remove(&gfid);
            }
            Ok(())
        })
        .ok();
    }

    fn choose_gfid(&mut self) -> Gfid {
        self.disks.lock().choose_gfid()
    }

    fn entry(&mut self, parent: &Gfid, name: &[u8]) -> Result<Option<Meta>, Errno> {
        match self.dir(parent) {
            Ok(_) => {}
            Err(Errno::ENOENT) => return Ok(None),
            Err(error) => return Err(error),
        }
        let Some(gfid) = self.fs(|fs| fs.entries.get(&(*parent, name.to_vec())).copied()) else { return Ok(None) };
        let meta = self.inode(&gfid).expect("an entry leads to an inode").meta;
        self.heal_dir_handle(&meta, parent, name)?;
        Ok(Some(meta))
    }

    fn meta(&mut self, gfid: &Gfid) -> Result<Meta, Errno> {
        if self.fs(|fs| fs.handles.contains(gfid) || fs.orphans.contains(gfid)) {
            return self.inode(gfid).map(|inode| inode.meta);
        }
        match self.dir(gfid) {
            Ok(_) => self.inode(gfid).map(|inode| inode.meta),
            Err(Errno::ENOENT) => Err(Errno::ESTALE),
            Err(error) => Err(error),
        }
    }

    fn attr(&mut self, gfid: &Gfid) -> Result<Attr, Errno> {
        let meta = self.meta(gfid)?;
        let inode = self.inode(gfid)?;
        let is_dir = meta.kind == Kind::Directory;
        let nlink = if is_dir { 2 + meta.subdirs_everywhere() } else { self.names_of(gfid) };
        Ok(Attr {
            gfid: *gfid,
            home: meta.home,
            kind: meta.kind,
            perm: inode.perm,
            uid: inode.uid,
            gid: inode.gid,
            nlink,
            size: inode.size,
            blocks: 0,
            rdev: meta.rdev,
            atime: inode.mtime,
            mtime: inode.mtime,
            ctime: meta.ctime,
            btime: meta.btime,
            project: meta.project,
            has_capability: false,
            has_acl: meta.flags & HAS_DEFAULT_ACL != 0,
            change: 0,
        })
    }

    fn claim(&self, parent: &Gfid, name: &[u8]) -> Result<Option<Claim>, Errno> {
        Ok(self.fs(|fs| fs.claims.get(&(*parent, name.to_vec())).copied()))
    }

    fn has_claims(&self, dir: &Gfid) -> Result<bool, Errno> {
        Ok(self.fs(|fs| fs.claims.keys().any(|spot| spot.0 == *dir)))
    }

    fn has_dir(&mut self, gfid: &Gfid) -> Result<bool, Errno> {
        match self.dir(gfid) {
            Ok(_) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn dir_place(&self, gfid: &Gfid) -> Result<Option<(Gfid, Vec<u8>)>, Errno> {
        Ok(self.fs(|fs| fs.dir_handles.get(gfid).cloned()))
    }

    fn link_count(&mut self, gfid: &Gfid) -> Result<u32, Errno> {
        self.meta(gfid)?;
        Ok(self.names_of(gfid))
    }

    fn default_acl(&mut self, gfid: &Gfid) -> Result<Option<Vec<u8>>, Errno> {
        self.meta(gfid)?;
        Ok(self.inode(gfid)?.default_acl)
    }

    fn names(&mut self, gfid: &Gfid) -> Result<Vec<Vec<u8>>, Errno> {
        match self.dir(gfid) {
            Ok(dir) => Ok(self.fs(|fs| fs.names(&dir).cloned().collect())),
            Err(Errno::ENOENT) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn touch_from(&mut self, gfid: &Gfid, set: SetId, touch: TouchedAt, subdirs: Option<u32>) -> Result<(), Errno> {
        self.take_touch(gfid, set, touch, subdirs)
    }

    fn pending_parts(&mut self) -> Result<Vec<PendingPart>, Errno> {
        let part = |fs: &Fs, (tx, part): &(TxId, u16), (coordinator, items): &(SetId, Vec<_>)| PendingPart {
            tx: *tx,
            part: *part,
            coordinator: *coordinator,
            items: items.clone(),
            is_finished: *part == 0 && fs.finished.contains(tx),
        };
        Ok(self.fs(|fs| fs.pending.iter().map(|(key, held)| part(fs, key, held)).collect()))
    }

    fn commits(&mut self) -> Result<Vec<(TxId, Commitment, bool)>, Errno> {
        let commits = |fs: &Fs| fs.commits.iter().map(|(tx, (list, flushed))| (*tx, list.clone(), *flushed)).collect();
        Ok(self.fs(commits))
    }

    fn handles(&self, first: u8) -> Result<Vec<(Gfid, bool)>, Errno> {
        Ok(self.fs(|fs| {
            let files = fs.handles.iter().map(|gfid| (*gfid, false));
            let all = files.chain(fs.dir_handles.keys().map(|gfid| (*gfid, true)));
            all.filter(|(gfid, _)| gfid.0[0] == first).collect()
        }))
    }

    fn claim_parents(&self) -> Result<Vec<Gfid>, Errno> {
        let parents: BTreeSet<Gfid> = self.fs(|fs| fs.claims.keys().map(|spot| spot.0).collect());
        Ok(parents.into_iter().collect())
    }

    fn heal_file_handle(&mut self, gfid: &Gfid, _parent: &Gfid, _name: &[u8]) -> Result<(), Errno> {
        let gfid = *gfid;
        self.call(|fs| {
            fs.handles.insert(gfid);
            Ok(())
        })
    }

    fn drop_unfinished(&mut self, _gfid: &Gfid) -> Result<bool, Errno> {
        Ok(false) // an object of the model has its record from the first moment
    }

    fn orphans(&self) -> Result<Vec<Gfid>, Errno> {
        Ok(self.fs(|fs| fs.orphans.iter().copied().collect()))
    }

    fn delete_orphan(&mut self, gfid: &Gfid) -> Result<(), Errno> {
        let gfid = *gfid;
        self.call(|fs| {
            if fs.orphans.remove(&gfid) {
                fs.drop_if_unlinked(&gfid);
            }
            Ok(())
        })
    }

    fn report_damage(&mut self, line: String) {
        self.damage.push(line);
    }
}
