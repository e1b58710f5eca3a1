//! Random operations on the data of files, each read and each report compared with what must be there: O_DIRECT aligned
//! and not, ranges reserved, punched and zeroed, SEEK_DATA and SEEK_HOLE, copies on and between bricks, truncations and
//! appends, over one mount and over two, on four kinds of disks, while `brickd` is killed.

use anyhow::Context as _;
use brickfs_tests::at::At as _;
use brickfs_tests::case::{Case, case, say};
use brickfs_tests::cluster::Cluster;
use brickfs_tests::data::{Checker, HandOver, Traits, append_records, check_records};
use brickfs_tests::load::{Progress, run_under_faults};
use brickfs_tests::loop_fs::{Kind, LoopFs};
use brickfs_tests::needs::{LOOP_MOUNT, MOUNT, is_soak};
use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Instant;

/// XFS makes no file system below 300 MiB.
const DISK_MIB: u64 = 320;

/// Runs the checker over these roots: `usual` operations, or with SOAK ten times as many with each of five seeds.
fn check(case: &Case, roots: &[PathBuf], hand_over: HandOver, traits: Traits, usual: u64) -> anyhow::Result<()> {
    let (seeds, operations) = if is_soak() { (5, 10 * usual) } else { (1, usual) };
    let started = Instant::now();
    for seed in 0..seeds {
        let mut checker = Checker::new(roots, hand_over, traits, case.rng(seed))?;
        checker.run(operations, || Ok(())).with_context(|| format!("random numbers {seed}"))?;
    }
    say(&format!("{}: {seeds} x {operations} operations in {:?}", case.name(), started.elapsed()));
    Ok(())
}

#[test]
fn the_checker_passes_on_local_file_systems() {
    case(LOOP_MOUNT, |case| {
        let dir = case.in_memory()?;
        let traits = Traits { may_refuse_zero: true, ..Traits::default() };
        check(case, std::slice::from_ref(&dir), HandOver::CloseAndOpen, traits, 5000).context("tmpfs")?;
        // Not XFS: there a write with O_DIRECT beside cached ones may fail with EIO, as the kernel's log says then.
        let disk = LoopFs::make(&dir, "ext4", Kind::Ext4, DISK_MIB)?;
        let traits = Traits { aligned_direct: true, ..Traits::default() };
        check(case, &[disk.path().to_owned()], HandOver::Locks, traits, 5000).context("ext4")?;
        Ok(())
    });
}

#[test]
fn one_mount() {
    case(MOUNT, |case| {
        let cluster = Cluster::in_memory(case)?;
        check(case, &[cluster.mount().to_owned()], HandOver::CloseAndOpen, Traits::default(), 20_000)
    });
}

#[test]
fn two_strict_mounts_see_what_the_other_has_closed() {
    case(MOUNT, |case| {
        let cluster = Cluster::in_memory(case)?;
        let mounts = [cluster.second_mount("one", &["-o", "strict"])?, cluster.second_mount("two", &["-o", "strict"])?];
        let roots = mounts.each_ref().map(|mount| mount.path().to_owned());
        check(case, &roots, HandOver::CloseAndOpen, Traits::default(), 20_000)?;
        mounts.into_iter().try_for_each(|mount| mount.unmount())
    });
}

#[test]
fn two_mounts_see_what_the_other_wrote_under_locks() {
    case(MOUNT, |case| {
        let cluster = Cluster::in_memory(case)?;
        let second = cluster.second_mount("second", &[])?;
        let roots = [cluster.mount().to_owned(), second.path().to_owned()];
        check(case, &roots, HandOver::Locks, Traits::default(), 20_000)?;
        second.unmount()
    });
}

/// Four bricks on one disk of a kind.
fn on_disk(case: &Case, kind: Kind) -> anyhow::Result<()> {
    let dir = case.in_memory()?;
    let disk = LoopFs::make(&dir, "disk", kind, 2 * DISK_MIB)?;
    let bricks: Vec<PathBuf> = (1..=4).map(|number| disk.path().join(format!("b{number}"))).collect();
    let cluster = Cluster::over(&dir, &bricks)?;
    let mount = cluster.second_mount("mnt", &[])?;
    let traits = Traits { may_refuse_beyond_end: kind == Kind::Ext4Blocks, ..Traits::default() };
    check(case, &[mount.path().to_owned()], HandOver::CloseAndOpen, traits, 5000)?;
    mount.unmount()
}

#[test]
fn bricks_on_ext4() {
    case(LOOP_MOUNT, |case| on_disk(case, Kind::Ext4));
}

#[test]
fn bricks_on_xfs() {
    case(LOOP_MOUNT, |case| on_disk(case, Kind::Xfs));
}

/// What its file system refuses is written out.
#[test]
fn bricks_on_ext4_without_extents() {
    case(LOOP_MOUNT, |case| on_disk(case, Kind::Ext4Blocks));
}

#[test]
fn one_mount_while_brickd_is_killed() {
    case(MOUNT, |case| {
        let mut cluster = Cluster::in_memory(case)?;
        let (operations, kills) = if is_soak() { (200_000, 200) } else { (10_000, 20) };
        let roots = [cluster.mount().to_owned()];
        let mut checker = Checker::new(&roots, HandOver::CloseAndOpen, Traits::default(), case.rng(0))?;
        let work = |progress: &Progress| checker.run(operations, || progress.step());
        run_under_faults(vec![work], operations, kills, |_| {
            cluster.kill_brickd()?;
            cluster.start_brickd()
        })?;
        checker.close();
        cluster.remount()?;
        for (path, oracle) in checker.files() {
            oracle.check_read(0, usize::MAX, &fs::read(&path).at(&path)?).at(&path)?;
        }
        Ok(())
    });
}

#[test]
fn appends_from_two_mounts_are_whole_once_and_in_order() {
    case(MOUNT, |case| {
        let cluster = Cluster::in_memory(case)?;
        let second = cluster.second_mount("second", &[])?;
        let records = if is_soak() { 20_000 } else { 2000 };
        let paths = [cluster.mount().join("log"), second.path().join("log")];
        File::create(&paths[0]).at(&paths[0])?;
        let flags = [libc::O_DIRECT, 0, libc::O_DSYNC, libc::O_DIRECT | libc::O_SYNC];
        let work = paths
            .iter()
            .enumerate()
            .map(|(writer, path)| move |progress: &Progress| append_records(path, writer, records, &flags, progress));
        run_under_faults(work.collect(), 2 * records, 0, |_| Ok(()))?;
        for mount in [cluster.mount(), second.path()] {
            // Without what the kernel has of it: sizes may be a second old.
            let path = mount.join("log");
            let file = File::open(&path).at(&path)?;
            brickfs_tests::locks::wait(&file, brickfs_tests::locks::Lock::Shared, (0, 0)).at(&path)?;
            let found = fs::read(&path).at(&path)?;
            check_records(&found, 2, records).at(&path)?;
        }
        second.unmount()
    });
}
