//! What a set's engine needs of a brick: `BrickStore`. `posix` keeps ordinary files in ordinary
//! directories; `model` keeps the namespace in memory, for simulation.
//!
//! A store finds, applies what was decided, and decides nothing. One thread at a time uses it.

#[cfg(test)]
pub mod model;
pub mod posix;

use crate::brick::effect::{Claim, Commitment, Effect, Item, Stamp, Step};
use crate::brick::meta::Meta;
use brickfs_common::attr::{Attr, Kind, Timestamp};
use brickfs_common::errno::Errno;
use brickfs_common::ids::{Gfid, SetId, TxId};
use serde::{Deserialize, Serialize};

/// Directories that a way up may lead through; a bound for damaged handles, not for users.
const DEPTH_MAX: usize = 100_000;

/// What a transaction still holds on a brick.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PendingPart {
    /// The transaction.
    pub tx: TxId,
    /// Number of this part among those of the same transaction here.
    pub part: u16,
    /// The set that decides it.
    pub coordinator: SetId,
    /// What it holds.
    pub items: Vec<Item>,
    /// It is done here: nothing is held any more, what it parked may still be given back.
    pub is_finished: bool,
}

/// Space of the file system that carries a brick.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Space {
    /// Size in bytes.
    pub total_bytes: u64,
    /// Free bytes, those reserved for root included.
    pub free_bytes: u64,
    /// Bytes that everybody may use.
    pub available_bytes: u64,
    /// Inodes; 0 where the file system has no fixed number.
    pub total_inodes: u64,
    /// Free inodes.
    pub free_inodes: u64,
}

impl Space {
    /// Bytes that new data must leave free.
    pub fn reserve_bytes(&self, percent: u8) -> u64 {
        (u128::from(self.total_bytes) * u128::from(percent) / 100) as u64
    }
}

/// When entries of a directory changed on another set, as its home is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TouchedAt {
    /// The decided time; `None` if nothing changed, and only the number of subdirectories is told.
    pub time: Option<Timestamp>,
    /// The home may have been told before, or of later changes since.
    pub is_late: bool,
}

impl TouchedAt {
    /// Nothing changed.
    pub const NEVER: TouchedAt = TouchedAt { time: None, is_late: true };

    /// The mtime that the directory gets, if any. What comes late is no news once somebody has set the times, or
    /// entries have changed, after it: an archive's or rsync's times stay (PROTOCOL 28).
    pub fn mtime_over(&self, ctime: Timestamp, mtime: impl FnOnce() -> Timestamp) -> Option<Timestamp> {
        self.time.filter(|time| !self.is_late || (*time > ctime && *time > mtime()))
    }
}

/// The store of one brick.
pub trait BrickStore: Send + 'static {
    /// The device of the brick's file system: bricks of one device share journal and power loss.
    fn device(&self) -> u64;
    /// Free and total space of that file system.
    fn space(&self) -> Result<Space, Errno>;

    /// Work that flushes everything applied so far to the disk; may sleep, so it runs outside of all locks.
    fn flusher(&self) -> Box<dyn FnOnce() -> Result<(), Errno> + Send>;

    /// Whether the effect log has no room for another record before it is turned.
    fn log_is_full(&self) -> bool;
    /// Turns the effect log; `kept` are written first into the part that is used now.
    fn turn_log(&mut self, kept: &[Effect]) -> Result<(), Errno>;
    /// Writes the record of an effect. It survives the death of this process from here on.
    fn append(&mut self, effect: &Effect) -> Result<(), Errno>;
    /// Applies one step of a logged effect. A step that is done already changes nothing.
    fn apply(&mut self, step: &Step, at: &Stamp) -> Result<(), Errno>;
    /// Finishes the last effect before a restart, where the brick shows that it was cut. `false`: it
    /// cannot be redone and did not happen, so its result must not be kept.
    fn redo(&mut self, effect: &Effect) -> Result<bool, Errno>;
    /// Removes what a make that failed has left; it has no name yet.
    fn undo_make(&mut self, gfid: &Gfid, kind: Kind);

    /// A gfid for a new object.
    fn choose_gfid(&mut self) -> Gfid;
    /// The record of the physical entry `name` of a directory; `None` if there is none.
    fn entry(&mut self, parent: &Gfid, name: &[u8]) -> Result<Option<Meta>, Errno>;
    /// The record of an object, ESTALE if this brick has none of that gfid.
    fn meta(&mut self, gfid: &Gfid) -> Result<Meta, Errno>;
    /// Attributes of an object.
    fn attr(&mut self, gfid: &Gfid) -> Result<Attr, Errno>;
    /// The claim of a name.
    fn claim(&self, parent: &Gfid, name: &[u8]) -> Result<Option<Claim>, Errno>;
    /// Whether claims are kept for names of a directory. What the home denies may be left of a power loss.
    fn has_claims(&self, dir: &Gfid) -> Result<bool, Errno>;
    /// Whether the directory is here, as home or as a copy.
    fn has_dir(&mut self, gfid: &Gfid) -> Result<bool, Errno>;
    /// The physical parent and name of a directory; `None` for the root and for what is not here.
    fn dir_place(&self, gfid: &Gfid) -> Result<Option<(Gfid, Vec<u8>)>, Errno>;
    /// Number of names of a file.
    fn link_count(&mut self, gfid: &Gfid) -> Result<u32, Errno>;
    /// The POSIX default ACL of a directory.
    fn default_acl(&mut self, gfid: &Gfid) -> Result<Option<Vec<u8>>, Errno>;
    /// All physical names in a directory; none if it is not here.
    fn names(&mut self, gfid: &Gfid) -> Result<Vec<Vec<u8>>, Errno>;
    /// What another set says of a directory that is homed here: when its entries there changed last,
    /// and how many subdirectories of it are homed there now (PROTOCOL 28). Says nothing new: no change.
    fn touch_from(&mut self, gfid: &Gfid, set: SetId, touch: TouchedAt, subdirs: Option<u32>) -> Result<(), Errno>;

    /// What transactions hold here.
    fn pending_parts(&mut self) -> Result<Vec<PendingPart>, Errno>;
    /// Transactions that were committed here and not yet forgotten, with what others have to do about them
    /// and whether it has all reached the disks.
    fn commits(&mut self) -> Result<Vec<(TxId, Commitment, bool)>, Errno>;

    /// The objects whose gfids begin with a byte, and whether they are directories. A directory may have
    /// gone and left its handle.
    fn handles(&self, first: u8) -> Result<Vec<(Gfid, bool)>, Errno>;

    /// The directories that claims of names in them are kept for.
    fn claim_parents(&self) -> Result<Vec<Gfid>, Errno>;
    /// Gives a file that has a name and no handle its handle back.
    fn heal_file_handle(&mut self, gfid: &Gfid, parent: &Gfid, name: &[u8]) -> Result<(), Errno>;

    /// Removes the handle of a file that a loss of power cut short while it was made: without a record, a name
    /// or data. False if it is none.
    fn drop_unfinished(&mut self, gfid: &Gfid) -> Result<bool, Errno>;

    /// Objects without a name that open handles keep.
    fn orphans(&self) -> Result<Vec<Gfid>, Errno>;
    /// Deletes an orphan.
    fn delete_orphan(&mut self, gfid: &Gfid) -> Result<(), Errno>;
    /// A name as a person finds it, for messages.
    fn shown_path(&mut self, parent: &Gfid, name: &[u8]) -> String {
        format!("'{}' of directory {parent}", name.escape_ascii())
    }
    /// Remembers that something of ours is damaged, for `volume status`.
    fn report_damage(&mut self, line: String);

    /// The copy that lies below a directory of the brick of `set` which is to be moved into `to`: it may still
    /// be where its directory was once (PROTOCOL 26). With where it lies.
    fn copy_in_way(&mut self, set: SetId, moved: &Gfid, to: &Gfid) -> Result<Option<(Gfid, Gfid, Vec<u8>)>, Errno> {
        let (mut at, mut copy) = (*to, None);
        for _ in 0..DEPTH_MAX {
            let Some((parent, name)) = self.dir_place(&at)? else { return Ok(None) };
            if self.meta(&at)?.home != set {
                copy = Some((at, parent, name));
            }
            if parent == *moved {
                return Ok(copy);
            }
            at = parent;
        }
        Ok(None)
    }

    /// Whether an object of this brick bears the name (PROTOCOL 6).
    fn bears(&mut self, gfid: &Gfid, parent: &Gfid, name: &[u8]) -> Result<bool, Errno> {
        Ok(self.entry(parent, name)?.is_some_and(|meta| meta.gfid == *gfid))
    }
}
