//! File systems of their own on loop devices, which can lose power: what was not written to the device is gone.

use crate::at::At as _;
use crate::run::run;
use rustix::mount::UnmountFlags;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// ext4
    Ext4,
    /// ext4 that keeps lists of blocks, as ext3 did: it refuses to allocate and to zero ranges.
    Ext4Blocks,
    /// XFS, at least 300 MiB
    Xfs,
}

/// A mounted loop file system. Its test's directory detaches the device when it goes.
pub struct LoopFs {
    device: String,
    point: PathBuf,
    kind: Kind,
}

impl LoopFs {
    /// Makes one of `size_mib` MiB, image and mount point beside each other in `dir`.
    pub fn make(dir: &Path, name: &str, kind: Kind, size_mib: u64) -> anyhow::Result<LoopFs> {
        let image = dir.join(format!("{name}.img"));
        File::create(&image).and_then(|file| file.set_len(size_mib << 20)).at(&image)?;
        let mut mkfs = match kind {
            Kind::Ext4 | Kind::Ext4Blocks => Command::new("mkfs.ext4"),
            Kind::Xfs => Command::new("mkfs.xfs"),
        };
        match kind {
            Kind::Ext4 => mkfs.args(["-q", "-F"]),
            Kind::Ext4Blocks => mkfs.args(["-q", "-F", "-O", "^extent,^64bit"]),
            Kind::Xfs => mkfs.args(["-q", "-f"]),
        };
        mkfs.arg(&image).env("PATH", sbin_path());
        run(&mut mkfs)?.ok()?;
        let mut losetup = Command::new("losetup");
        let device = run(losetup.args(["--find", "--show"]).arg(&image).env("PATH", sbin_path()))?.ok()?;
        let point = dir.join(name);
        fs::create_dir_all(&point).at(&point)?;
        let fs = LoopFs { device: device.trim().to_owned(), point, kind };
        fs.mount()?;
        Ok(fs)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.point
    }

    /// The power goes: nothing more reaches the device, and everything on it fails from now on.
    pub fn lose_power(&self) -> anyhow::Result<()> {
        let mut xfs_io = Command::new("xfs_io");
        xfs_io.args(["-x", "-c", "shutdown"]).arg(&self.point).env("PATH", sbin_path());
        run(&mut xfs_io)?.ok().map(|_| ())
    }

    /// The power is back: mounts what the device has.
    pub fn mount_again(&self) -> anyhow::Result<()> {
        rustix::mount::unmount(&self.point, UnmountFlags::NOFOLLOW).at(&self.point)?;
        self.mount()
    }

    fn mount(&self) -> anyhow::Result<()> {
        let kind = if self.kind == Kind::Xfs { "xfs" } else { "ext4" };
        run(Command::new("mount").args(["-t", kind, &self.device]).arg(&self.point))?.ok().map(|_| ())
    }
}

fn sbin_path() -> std::ffi::OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}
