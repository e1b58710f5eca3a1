//! Whether a brick's file system has stayed mounted since the brick was last used. Where it was not, and
//! `brickd` did not end in order, power may have been lost, and more than the last effect may be missing.
//! `.brickfs/mounted` tells: the boot and the mount that the brick is used under, or that it was closed in
//! order. The death of `brickd` alone changes neither.

use super::{DOT_DIR, PosixStore};
use brickfs_common::errno::Errno;
use rustix::fd::AsFd;
use rustix::fs::{AtFlags, StatxFlags};
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};

const CLEAN: &str = "clean\n";
/// `STATX_MNT_ID_UNIQUE` of linux/stat.h: a number that no later mount gets. A kernel before 6.8 answers with
/// one that may be used again.
const MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

fn file(brick: &Path) -> PathBuf {
    brick.join(DOT_DIR).join("mounted")
}

/// What the brick is used under now.
fn this_mount(root: impl AsFd) -> io::Result<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let wanted = StatxFlags::MNT_ID | MNT_ID_UNIQUE;
    let mount = rustix::fs::statx(root, c"", AtFlags::EMPTY_PATH, wanted)?.stx_mnt_id;
    Ok(format!("{} {mount}\n", boot.trim()))
}

fn write_durably(path: &Path, text: &str) -> io::Result<()> {
    let file = std::fs::OpenOptions::new().create(true).write(true).truncate(true).open(path)?;
    (&file).write_all(text.as_bytes())?;
    file.sync_all()
}

impl PosixStore {
    /// Whether power may have been lost since the brick was last used; if not, notes that it is used now.
    pub(super) fn look_at_mount(&self) -> Result<bool, Errno> {
        let io_errno = |error: io::Error| error.raw_os_error().map_or(Errno::EIO, Errno);
        let now = this_mount(&*self.root).map_err(io_errno)?;
        match std::fs::read_to_string(file(&self.path)) {
            Ok(then) if then != now && then != CLEAN => return Ok(true),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) if error.kind() == ErrorKind::InvalidData => return Ok(true),
            Err(error) => return Err(io_errno(error)),
        }
        // On the disk before anything is changed: what it replaces says that nothing can have been lost.
        write_durably(&file(&self.path), &now).map_err(io_errno)?;
        Ok(false)
    }

    /// Whether power may have been lost before the brick was opened.
    pub fn lost_power(&self) -> bool {
        self.lost_power
    }

    /// The brick has been looked through.
    pub fn note_mended(&mut self) {
        self.lost_power = false;
        self.note(this_mount(&*self.root));
    }

    /// The brick is closed, and all of it is on the disk.
    pub fn note_clean(&mut self) {
        if !self.lost_power && rustix::fs::syncfs(&*self.root).is_ok() {
            self.note(Ok(CLEAN.to_owned()));
        }
    }

    fn note(&self, text: io::Result<String>) {
        if let Err(error) = text.and_then(|text| write_durably(&file(&self.path), &text)) {
            tracing::warn!(brick = %self.path.display(), "the brick will be looked through again: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::brick::log::EffectLog;
    use crate::brick::store::BrickStore as _;
    use brickfs_common::ids::{Gfid, SetId};

    /// A new brick for one test.
    fn scratch(test: &str) -> PathBuf {
        let scratch = std::env::temp_dir().join(format!("brickfs-{test}-{}", std::process::id()));
        let dot = scratch.join(DOT_DIR);
        for name in ["handles", "orphans", "limbo", "claims", "tmp", "pending", "commits", "parked", "clients"] {
            std::fs::create_dir_all(dot.join(name)).unwrap();
        }
        EffectLog::create(&dot.join("log")).unwrap();
        scratch
    }

    fn open(brick: &Path) -> PosixStore {
        let (log, _) = EffectLog::open(&brick.join(DOT_DIR).join("log")).unwrap();
        PosixStore::open(brick, SetId(0), log).unwrap()
    }

    #[test]
    fn a_file_that_was_being_made_is_told_from_a_damaged_one() {
        let brick = scratch("unfinished");
        let handles = brick.join(DOT_DIR).join("handles");
        let mut store = open(&brick);
        let gfid = Gfid([7; 16]);
        let handle = handles.join("07/07").join(gfid.hex());
        std::fs::create_dir_all(handle.parent().unwrap()).unwrap();
        assert!(!store.drop_unfinished(&gfid).unwrap(), "nothing is there");
        std::fs::write(&handle, "data").unwrap();
        assert!(!store.drop_unfinished(&gfid).unwrap(), "it has data");
        std::fs::write(&handle, "").unwrap();
        std::fs::hard_link(&handle, brick.join("name")).unwrap();
        assert!(!store.drop_unfinished(&gfid).unwrap(), "it has a name");
        std::fs::remove_file(brick.join("name")).unwrap();
        assert!(store.drop_unfinished(&gfid).unwrap() && !handle.exists());
        std::os::unix::fs::symlink("target", &handle).unwrap();
        assert!(store.drop_unfinished(&gfid).unwrap() && handle.symlink_metadata().is_err());
        std::fs::remove_dir_all(&brick).unwrap();
    }

    #[test]
    fn a_brick_knows_that_it_was_mounted_anew_and_not_closed() {
        let scratch = scratch("mounted");
        let dot = scratch.join(DOT_DIR);
        let open = || open(&scratch);
        let noted = || std::fs::read_to_string(dot.join("mounted")).unwrap();
        assert!(!open().lost_power(), "a new brick");
        assert_eq!(noted().split(' ').count(), 2);
        assert!(!open().lost_power(), "the same mount");
        std::fs::write(dot.join("mounted"), "another 7\n").unwrap();
        let mut store = open();
        assert!(store.lost_power());
        store.note_clean();
        assert_eq!(noted(), "another 7\n", "it has not been looked through");
        store.note_mended();
        assert!(!store.lost_power() && !open().lost_power());
        store.note_clean();
        assert_eq!(noted(), CLEAN);
        assert!(!open().lost_power() && noted() != CLEAN);
        assert!(store.handles(7).unwrap().is_empty());
        std::fs::remove_dir_all(&scratch).unwrap();
    }
}
