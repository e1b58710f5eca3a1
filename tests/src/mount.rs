//! A mount of a volume whose `brickfs` is a child of the test: it can be killed, paused and unmounted.

use crate::at::At as _;
use crate::eventually::eventually_ok;
use crate::kernel_mounts;
use crate::process::Process;
use crate::run::program;
use anyhow::{Context as _, bail, ensure};
use rustix::mount::UnmountFlags;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const MOUNT_TIMEOUT: Duration = Duration::from_secs(20);
const END_TIMEOUT: Duration = Duration::from_secs(30);

/// A mount in the foreground.
pub struct Mount {
    child: Child,
    point: PathBuf,
    log: PathBuf,
}

impl Mount {
    /// Mounts `source` (`HOST:/VOLUME`) on `point`, which is made, with further arguments of `brickfs`, and waits
    /// until it answers.
    pub fn start(socket: &Path, source: &str, point: &Path, args: &[&str]) -> anyhow::Result<Mount> {
        fs::create_dir_all(point).at(point)?;
        let log = point.with_extension("brickfs.log");
        let stderr = File::options().create(true).append(true).open(&log).at(&log)?;
        let child = Command::new(program("brickfs")?)
            .arg("--foreground")
            .arg("--socket")
            .arg(socket)
            .args(args)
            .arg(source)
            .arg(point)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .current_dir("/")
            .spawn()
            .context("cannot start brickfs")?;
        let mut mount = Mount { child, point: point.to_owned(), log };
        mount.wait_until_up()?;
        Ok(mount)
    }

    fn wait_until_up(&mut self) -> anyhow::Result<()> {
        let (point, log, child) = (&self.point, &self.log, &mut self.child);
        eventually_ok("the mount answers", MOUNT_TIMEOUT, || {
            if let Some(status) = child.try_wait()? {
                bail!("brickfs ended: {status}: {}", fs::read_to_string(log).unwrap_or_default());
            }
            ensure!(kernel_mounts::find(point).is_some(), "{} is not mounted", point.display());
            fs::metadata(point).at(point)?;
            Ok(())
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.point
    }

    /// Its `brickfs`.
    pub fn process(&self) -> anyhow::Result<Process> {
        Process::open(self.child.id())
    }

    /// What its `brickfs` logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// SIGKILL of its `brickfs`. What is left of the mount is taken away.
    pub fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        kernel_mounts::detach_below(&self.point);
        Ok(())
    }

    /// Unmounts as umount(8) does; `brickfs` must then end by itself and without an error.
    pub fn unmount(mut self) -> anyhow::Result<()> {
        rustix::mount::unmount(&self.point, UnmountFlags::NOFOLLOW).at(&self.point)?;
        ensure!(self.process()?.has_ended_within(END_TIMEOUT)?, "brickfs does not end after its mount");
        let status = self.child.wait()?;
        ensure!(status.success(), "brickfs ended with {status}: {}", self.log());
        Ok(())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            kernel_mounts::detach_below(&self.point);
            let _ = self.child.kill(); // it may have ended with its mount
            let _ = self.child.wait();
        }
    }
}
