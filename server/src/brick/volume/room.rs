//! Room for new data: ENOSPC is decided before anything is applied (PROTOCOL 22, 40). Figures are kept for
//! each file system, since several bricks may share one, and counted down by what was written since.

use super::State;
use crate::brick::store::{BrickStore, Space};
use brickfs_common::errno::Errno;
use brickfs_common::ids::SetId;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Figures are at most this old, or this many written bytes.
const AGE: Duration = Duration::from_secs(1);
const WRITTEN_BYTES: u64 = 4 << 20;

/// What is known of one file system.
struct Figures {
    at: Instant,
    written: u64,
    space: Space,
}

/// Free space of the file systems of this node's bricks, by device.
#[derive(Default)]
pub struct Room(HashMap<u64, Figures>);

impl Figures {
    fn is_fresh(&self) -> bool {
        self.at.elapsed() < AGE && self.written < WRITTEN_BYTES
    }

    fn takes(&self, bytes: u64, reserve_percent: u8) -> bool {
        let free = self.space.available_bytes.saturating_sub(self.written).saturating_sub(bytes);
        let has_inodes = self.space.total_inodes == 0 || self.space.free_inodes > 0;
        free >= self.space.reserve_bytes(reserve_percent) && has_inodes
    }
}

impl<S: BrickStore> State<S> {
    /// Refuses what needs room where less than the reserve would be left.
    pub(super) fn check_space(&mut self, set: SetId, bytes: u64) -> Result<(), Errno> {
        let reserve_percent = self.reserve_percent;
        let engine = self.set(set)?;
        let device = engine.store.device();
        let is_fresh = self.room.0.get(&device).is_some_and(Figures::is_fresh);
        if !is_fresh {
            let space = self.set(set)?.store.space()?;
            self.room.0.insert(device, Figures { at: Instant::now(), written: 0, space });
        }
        let figures = self.room.0.get_mut(&device).ok_or(Errno::EIO)?;
        if !figures.takes(bytes, reserve_percent) {
            return Err(Errno::ENOSPC);
        }
        figures.written += bytes;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test] // PROTOCOL 22
    fn the_reserve_stays_free() {
        let space = Space { total_bytes: 1000, available_bytes: 300, total_inodes: 9, free_inodes: 1, free_bytes: 300 };
        let mut figures = Figures { at: Instant::now(), written: 0, space };
        assert!(figures.takes(100, 20) && !figures.takes(101, 20));
        figures.written = 60;
        assert!(figures.takes(40, 20) && !figures.takes(41, 20));
        figures.space.free_inodes = 0;
        assert!(!figures.takes(0, 20));
        figures.space.total_inodes = 0;
        assert!(figures.takes(0, 20), "file systems without a fixed number of inodes report none");
    }
}
