//! Directories of one test. When one goes, everything that the test put there goes: mounts on it, `brickd` and
//! `brickfs` processes that work in it, loop devices whose images lie in it. A test that was killed leaves its
//! directory; the next test finds it by its name, sees that its process is gone, and clears it the same way.

use crate::at::At as _;
use crate::kernel_mounts;
use crate::process::{Process, find_processes, state_of};
use crate::run::run;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

const BASE: &str = "brickfs-tests";
const PROGRAMS: [&str; 9] =
    ["brickfs", "brickd", "brickctl", "pjdfstest", "postgres", "sqlite3", "fio", "dbench", "stress-ng"];

/// A directory that clears itself.
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// A directory in memory (tmpfs), where a test is fast.
    pub fn in_memory() -> anyhow::Result<Scratch> {
        Scratch::new(Path::new("/dev/shm"))
    }

    /// A directory on the machine's disk.
    pub fn on_disk() -> anyhow::Result<Scratch> {
        Scratch::new(Path::new("/var/tmp"))
    }

    fn new(parent: &Path) -> anyhow::Result<Scratch> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let base = parent.join(BASE);
        fs::create_dir_all(&base).at(&base)?;
        clear_abandoned(&base);
        let path = base.join(format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&path).at(&path)?;
        Ok(Scratch { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Ends the processes that work in it, so that whoever waits for one of them goes on.
    pub fn end_processes(&self) {
        end_processes(&self.path);
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::env::var_os("BRICKFS_KEEP").is_some() {
            eprintln!("kept: {}", self.path.display());
            return;
        }
        clear(&self.path);
    }
}

fn clear_abandoned(base: &Path) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.split_once('-')?.0.parse::<u32>().ok());
        if owner.is_some_and(|pid| state_of(pid).is_none()) {
            clear(&entry.path());
        }
    }
}

fn clear(path: &Path) {
    // An image may lie in a mount of its own: once that is gone, its path says nothing.
    let devices = loops_below(path);
    // Clients first: a client whose server is gone waits for it.
    kernel_mounts::detach_below(path);
    end_processes(path);
    detach(devices);
    if let Err(error) = fs::remove_dir_all(path) {
        eprintln!("cannot remove {}: {error}", path.display());
    }
}

fn end_processes(path: &Path) {
    for pid in PROGRAMS.iter().flat_map(|program| find_processes(program, path)) {
        if let Err(error) = Process::open(pid).and_then(|process| process.kill()) {
            eprintln!("cannot end process {pid}: {error:#}");
        }
    }
}

/// Loop devices whose images lie below a directory.
fn loops_below(path: &Path) -> Vec<PathBuf> {
    let is_below = |device: &fs::DirEntry| {
        let backing = fs::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default();
        let backing = backing.trim_end_matches('\n').trim_end_matches(" (deleted)");
        Path::new(backing).starts_with(path)
    };
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten().filter(is_below);
    devices.map(|device| Path::new("/dev").join(device.file_name())).collect()
}

fn detach(devices: Vec<PathBuf>) {
    for device in devices {
        if let Err(error) = run(Command::new("losetup").arg("-d").arg(&device)).and_then(|ran| ran.ok()) {
            eprintln!("cannot detach {}: {error:#}", device.display());
        }
    }
}
