//! A machine whose disks can lose their power: a cluster with its bricks on loop file systems, and a mount.

use crate::case::Case;
use crate::cluster::{Cluster, VOLUME};
use crate::eventually::eventually_ok;
use crate::loop_fs::{Kind, LoopFs};
use crate::mount::Mount;
use anyhow::{Context as _, ensure};
use rustix::process::Signal;
use std::path::PathBuf;
use std::time::Duration;

/// Bricks of every machine.
pub const BRICKS: usize = 4;
/// XFS makes no file system below 300 MiB.
const DISK_MIB: u64 = 320;
const OPEN_TIMEOUT: Duration = Duration::from_secs(20);

/// A cluster whose disks can lose their power.
pub struct Machine {
    /// The cluster.
    pub cluster: Cluster,
    disks: Vec<LoopFs>,
    point: PathBuf,
}

impl Machine {
    /// Each brick on a disk of its own; the node's state elsewhere.
    pub fn with_disks(case: &Case, kind: Kind) -> anyhow::Result<Machine> {
        let dir = case.in_memory()?;
        let disks: Result<Vec<LoopFs>, _> =
            (1..=BRICKS).map(|number| LoopFs::make(&dir, &format!("disk{number}"), kind, DISK_MIB)).collect();
        let disks = disks?;
        let bricks: Vec<PathBuf> = disks.iter().map(|disk| disk.path().join("brick")).collect();
        let cluster = Cluster::over(&dir, &bricks)?;
        Ok(Machine { cluster, disks, point: dir.join("mnt") })
    }

    /// All bricks and the node's state on one disk.
    pub fn with_one_disk(case: &Case, kind: Kind) -> anyhow::Result<Machine> {
        let dir = case.in_memory()?;
        let disk = LoopFs::make(&dir, "disk", kind, 2 * DISK_MIB)?;
        let bricks: Vec<PathBuf> = (1..=BRICKS).map(|number| disk.path().join(format!("b{number}"))).collect();
        let cluster = Cluster::over(disk.path(), &bricks)?;
        Ok(Machine { cluster, disks: vec![disk], point: dir.join("mnt") })
    }

    /// Mounts the volume.
    pub fn mount(&self) -> anyhow::Result<Mount> {
        Mount::start(&self.cluster.socket(), &format!("node-1:/{VOLUME}"), &self.point, &[])
    }

    /// Everything stops at one moment; the disks with these numbers lose what was not written.
    pub fn lose_power(&mut self, mount: Mount, disks: &[usize]) -> anyhow::Result<()> {
        self.cluster.brickd()?.signal(Signal::STOP)?;
        mount.kill()?;
        disks.iter().try_for_each(|number| self.disks[*number].lose_power())?;
        self.cluster.kill_brickd()
    }

    /// The power is back. Nobody does more than to start `brickd`.
    pub fn come_back(&mut self, disks: &[usize]) -> anyhow::Result<()> {
        disks.iter().try_for_each(|number| self.disks[*number].mount_again())?;
        self.cluster.start_brickd()?;
        eventually_ok("all bricks are served again", OPEN_TIMEOUT, || {
            let status = self.cluster.status()?;
            ensure!(status["healthy"] == true, "{status:#}");
            let bricks = status["bricks"].as_array().context("no bricks")?;
            ensure!(bricks.iter().all(|brick| brick["mending"] == false), "{status:#}");
            Ok(())
        })
    }
}
