//! Mounting with mount(2). The kernel's FUSE type is `fuse.brickfs`: fuser's own direct mount leaves the
//! subtype out. Who is not root mounts through fusermount3.

use crate::adapter::Mount;
use anyhow::Context as _;
use fuser::{Config, MountOption, Session, SessionACL};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::CString;
use std::os::fd::AsRawFd as _;
use std::path::Path;

/// Threads that read requests of the kernel; none of them ever blocks.
const FUSE_THREADS: usize = 2;

/// What the kernel is told about the mount.
pub struct KernelOptions {
    /// What it shows as source.
    pub source: String,
    /// No changes.
    pub read_only: bool,
    /// Flags of mount(8), by name.
    pub flags: Vec<String>,
}

/// Mounts on `mountpoint` and greets the kernel.
pub fn start_session(filesystem: Mount, mountpoint: &Path, options: &KernelOptions) -> anyhow::Result<Session<Mount>> {
    let is_root = rustix::process::geteuid().is_root();
    let mut config = Config::default();
    config.n_threads = Some(FUSE_THREADS);
    config.clone_fd = true;
    config.acl = if is_root { SessionACL::All } else { SessionACL::Owner };
    if !is_root {
        config.mount_options = helper_options(options);
        return Session::new(filesystem, mountpoint, &config)
            .with_context(|| format!("cannot mount on {}", mountpoint.display()));
    }
    let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .context("cannot open /dev/fuse; is the kernel's fuse module loaded?")?;
    let data = format!("fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other", device.as_raw_fd());
    let data = CString::new(data).context("mount data")?;
    rustix::mount::mount(
        options.source.as_str(),
        mountpoint,
        "fuse.brickfs",
        mount_flags(options),
        Some(data.as_c_str()),
    )
    .with_context(|| format!("cannot mount on {}", mountpoint.display()))?;
    Session::from_fd(filesystem, device, config.acl, config)
        .inspect_err(|_| {
            if let Err(error) = rustix::mount::unmount(mountpoint, UnmountFlags::DETACH) {
                tracing::error!("cannot unmount {}: {error}", mountpoint.display());
            }
        })
        .context("the kernel's greeting failed")
}

/// Gives the mount on `mountpoint` other flags (`mount -o remount`).
pub fn change_flags(mountpoint: &Path, options: &KernelOptions) -> anyhow::Result<()> {
    rustix::mount::mount_remount(mountpoint, mount_flags(options), c"")
        .with_context(|| format!("cannot remount {}", mountpoint.display()))
}

fn has(options: &KernelOptions, flag: &str) -> bool {
    options.flags.iter().any(|f| f == flag)
}

fn mount_flags(options: &KernelOptions) -> MountFlags {
    let named = [
        ("nosuid", MountFlags::NOSUID),
        ("nodev", MountFlags::NODEV),
        ("noexec", MountFlags::NOEXEC),
        ("noatime", MountFlags::NOATIME),
        ("nodiratime", MountFlags::NODIRATIME),
        ("sync", MountFlags::SYNCHRONOUS),
        ("dirsync", MountFlags::DIRSYNC),
    ];
    let read_only = if options.read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    named.into_iter().filter(|(name, _)| has(options, name)).fold(read_only, |all, (_, flag)| all | flag)
}

fn helper_options(options: &KernelOptions) -> Vec<MountOption> {
    let mut all = vec![
        MountOption::FSName(options.source.clone()),
        MountOption::Subtype("brickfs".into()),
        MountOption::DefaultPermissions,
        if options.read_only { MountOption::RO } else { MountOption::RW },
    ];
    let named = [
        ("noexec", MountOption::NoExec),
        ("noatime", MountOption::NoAtime),
        ("sync", MountOption::Sync),
        ("dirsync", MountOption::DirSync),
    ];
    all.extend(named.into_iter().filter(|(name, _)| has(options, name)).map(|(_, option)| option));
    all
}
