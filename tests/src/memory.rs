//! What a process takes: memory and descriptors.

use crate::at::At as _;
use anyhow::Context as _;
use std::fs;

/// What a process has at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Taken {
    /// Memory in KiB (VmRSS), files of others that it has mapped included.
    pub kib: u64,
    /// The most memory so far (VmHWM).
    pub peak_kib: u64,
    /// Open descriptors.
    pub descriptors: usize,
}

impl Taken {
    /// What a process has now.
    pub fn by(pid: u32) -> anyhow::Result<Taken> {
        let path = format!("/proc/{pid}/status");
        let status = fs::read_to_string(&path).at(&path)?;
        let figure = |name: &str| -> anyhow::Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no such line in status")?;
            Ok(line.trim_start_matches(':').trim().trim_end_matches(" kB").parse()?)
        };
        let descriptors = format!("/proc/{pid}/fd");
        let descriptors = fs::read_dir(&descriptors).at(&descriptors)?.count();
        Ok(Taken { kib: figure("VmRSS")?, peak_kib: figure("VmHWM")?, descriptors })
    }

    /// Its peak starts anew.
    pub fn reset_peak(pid: u32) -> anyhow::Result<()> {
        let path = format!("/proc/{pid}/clear_refs");
        fs::write(&path, "5").at(&path)
    }
}

impl std::fmt::Display for Taken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = |kib: u64| kib as f64 / 1024.0;
        write!(f, "{:.1} MiB (peak {:.1}), {} descriptors", mib(self.kib), mib(self.peak_kib), self.descriptors)
    }
}

/// Has the kernel forget the names and inodes that nobody uses.
pub fn drop_kernel_caches() -> anyhow::Result<()> {
    let path = "/proc/sys/vm/drop_caches";
    fs::write(path, "2").at(path)
}
