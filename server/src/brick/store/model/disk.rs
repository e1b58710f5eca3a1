//! The disks of the model store: what is on them outlives the process that wrote it. A device keeps all
//! states since its last barrier in order, as an ordered journal may give back any of them at power loss;
//! the effect log, being data, comes back cut anywhere behind its own flushed part (PROTOCOL 8).

use crate::brick::effect::{Claim, Commitment, Effect, Item};
use crate::brick::meta::Meta;
use brickfs_common::attr::{Kind, Timestamp};
use brickfs_common::errno::Errno;
use brickfs_common::ids::{Gfid, SetId, TxId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// An inode: one of each object at most on a brick.
#[derive(Clone, Debug)]
pub struct Inode {
    pub meta: Meta,
    pub perm: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Timestamp,
    /// Bytes of data; no operation of the model changes it, tests set it.
    pub size: u64,
    pub default_acl: Option<Vec<u8>>,
}

/// A physical place: directory inode and name in it.
pub type Spot = (Gfid, Vec<u8>);

/// The file system of one brick.
#[derive(Clone, Debug, Default)]
pub struct Fs {
    pub inodes: BTreeMap<Gfid, Inode>,
    pub entries: BTreeMap<Spot, Gfid>,
    pub handles: BTreeSet<Gfid>,
    pub dir_handles: BTreeMap<Gfid, Spot>,
    pub orphans: BTreeSet<Gfid>,
    pub claims: BTreeMap<Spot, Claim>,
    pub pending: BTreeMap<(TxId, u16), (SetId, Vec<Item>)>,
    /// Transactions whose first pending part has the mark that all is done.
    pub finished: BTreeSet<TxId>,
    pub commits: BTreeMap<TxId, (Commitment, bool)>,
    pub parked: BTreeMap<(TxId, usize), Gfid>,
}

impl Fs {
    /// `st_nlink` of a file.
    pub fn links(&self, gfid: &Gfid) -> u32 {
        let named = self.entries.values().chain(self.parked.values()).filter(|other| *other == gfid).count();
        named as u32 + u32::from(self.handles.contains(gfid)) + u32::from(self.orphans.contains(gfid))
    }

    /// Whether a directory has no entry.
    pub fn is_empty_dir(&self, gfid: &Gfid) -> bool {
        self.names(gfid).next().is_none()
    }

    /// Whether a directory is another one or lies somewhere below it.
    pub fn is_within(&self, dir: &Gfid, above: &Gfid) -> bool {
        let mut at = *dir;
        while at != *above {
            let Some((spot, _)) = self.entries.iter().find(|(_, gfid)| **gfid == at) else { return false };
            at = spot.0;
        }
        true
    }

    /// Names in a directory.
    pub fn names(&self, gfid: &Gfid) -> impl Iterator<Item = &Vec<u8>> {
        let dir = *gfid;
        self.entries.range((dir, Vec::new())..).take_while(move |(spot, _)| spot.0 == dir).map(|(spot, _)| &spot.1)
    }

    /// Directories that were being made and have got no name lie in `tmp`, which a start empties.
    pub fn clear_tmp(&mut self) {
        let placed: BTreeSet<Gfid> = self.entries.values().chain(self.parked.values()).copied().collect();
        self.inodes
            .retain(|gfid, inode| inode.meta.kind != Kind::Directory || *gfid == Gfid::ROOT || placed.contains(gfid));
    }

    /// Frees a file whose last link has gone.
    pub fn drop_if_unlinked(&mut self, gfid: &Gfid) {
        if self.links(gfid) == 0 {
            self.inodes.remove(gfid);
        }
    }
}

/// One file system: the bricks on it share journal and power.
#[derive(Default)]
struct Device {
    now: BTreeMap<SetId, Fs>,
    flushed: BTreeMap<SetId, Fs>,
    /// Every state since the barrier, oldest first.
    history: Vec<(SetId, Fs)>,
}

#[derive(Default)]
struct Log {
    effects: Vec<Effect>,
    flushed: usize,
}

/// All disks of a volume.
#[derive(Default)]
pub struct Disks {
    devices: BTreeMap<u64, Device>,
    logs: BTreeMap<SetId, Log>,
    device_of: BTreeMap<SetId, u64>,
    gfids_chosen: u64,
    /// Whether states are kept for a power loss; off it saves the copies.
    pub keeps_history: bool,
}

/// The disks, shared by the processes that come and go over them.
#[derive(Clone, Default)]
pub struct SharedDisks(Arc<Mutex<Disks>>);

impl SharedDisks {
    pub fn lock(&self) -> MutexGuard<'_, Disks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disks {
    /// A new brick with what `format` makes: the root directory.
    pub fn add(&mut self, set: SetId, device: u64, root: Inode) {
        let mut fs = Fs::default();
        fs.inodes.insert(Gfid::ROOT, root);
        self.device_of.insert(set, device);
        self.logs.insert(set, Log::default());
        let disk = self.devices.entry(device).or_default();
        disk.now.insert(set, fs.clone());
        disk.flushed.insert(set, fs);
    }

    pub fn device(&self, set: SetId) -> u64 {
        self.device_of[&set]
    }

    /// The brick as it is now.
    pub fn fs(&self, set: SetId) -> &Fs {
        &self.devices[&self.device_of[&set]].now[&set]
    }

    /// Changes a brick by one call of the file system.
    pub fn change<R>(&mut self, set: SetId, change: impl FnOnce(&mut Fs) -> R) -> R {
        let device = self.devices.get_mut(&self.device_of[&set]).expect("every set has a device");
        let fs = device.now.get_mut(&set).expect("every set is on its device");
        let result = change(fs);
        if self.keeps_history {
            device.history.push((set, fs.clone()));
        }
        result
    }

    pub fn append(&mut self, set: SetId, effect: Effect) {
        self.logs.entry(set).or_default().effects.push(effect);
    }

    /// What the log holds at the start of a process.
    pub fn log(&self, set: SetId) -> Vec<Effect> {
        self.logs[&set].effects.clone()
    }

    /// A barrier: all that the device has is on the disk.
    pub fn flush(&mut self, device: u64) {
        let disk = self.devices.get_mut(&device).expect("the device is there");
        disk.flushed = disk.now.clone();
        disk.history.clear();
        for (set, log) in &mut self.logs {
            if self.device_of[set] == device {
                log.flushed = log.effects.len();
            }
        }
    }

    /// Power is lost: `choose(n)` below n says which state since the barrier comes back, and how much of
    /// each log.
    pub fn lose_power(&mut self, device: u64, mut choose: impl FnMut(usize) -> usize) {
        let disk = self.devices.get_mut(&device).expect("the device is there");
        let kept = choose(disk.history.len() + 1);
        let mut back = disk.flushed.clone();
        back.extend(disk.history.drain(..).take(kept));
        (disk.now, disk.flushed) = (back.clone(), back);
        for (set, log) in &mut self.logs {
            if self.device_of[set] == device {
                let kept = log.flushed + choose(log.effects.len() - log.flushed + 1);
                log.effects.truncate(kept);
                log.flushed = kept;
            }
        }
    }

    /// A gfid that no object has; neighbours lie far apart, as random ones do.
    pub fn choose_gfid(&mut self) -> Gfid {
        self.gfids_chosen += 1;
        let mut id = [0u8; 16];
        id[..8].copy_from_slice(&self.gfids_chosen.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        id[8..].copy_from_slice(&(self.gfids_chosen + 1).to_be_bytes());
        Gfid(id)
    }
}

/// A process that uses the disks: it can be made to die at any call of a file system.
#[derive(Default)]
pub struct Process {
    fate: Mutex<Fate>,
}

#[derive(Default)]
struct Fate {
    calls_left: Option<u64>,
    is_dead: bool,
}

impl Process {
    fn fate(&self) -> MutexGuard<'_, Fate> {
        self.fate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process dies when it makes the call after so many.
    pub fn die_after(&self, calls: u64) {
        self.fate().calls_left = Some(calls);
    }

    /// It lives on after all.
    pub fn live(&self) {
        self.fate().calls_left = None;
    }

    /// Whether it has died.
    pub fn is_dead(&self) -> bool {
        self.fate().is_dead
    }

    /// One call: EIO once the process is dead, for its last wishes to come to nothing.
    pub fn call(&self) -> Result<(), Errno> {
        let mut fate = self.fate();
        match &mut fate.calls_left {
            Some(0) => fate.is_dead = true,
            Some(left) => *left -= 1,
            None => {}
        }
        if fate.is_dead {
            return Err(Errno::EIO);
        }
        Ok(())
    }
}
