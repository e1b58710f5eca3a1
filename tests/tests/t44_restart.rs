//! What a volume knows outlives `brickd` as it was, over many changes, and a disk that loses what it took is not
//! trusted any more.

use anyhow::{Context as _, ensure};
use brickfs_tests::at::At as _;
use brickfs_tests::case::case;
use brickfs_tests::cluster::Cluster;
use brickfs_tests::eventually::eventually_ok;
use brickfs_tests::loop_fs::{Kind, LoopFs};
use brickfs_tests::needs::{LOOP_MOUNT, MOUNT};
use brickfs_tests::run::run;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const LOOK_TIMEOUT: Duration = Duration::from_secs(20);

fn mtime_of(path: &Path) -> anyhow::Result<(i64, i64)> {
    let metadata = fs::symlink_metadata(path).at(path)?;
    Ok((metadata.mtime(), metadata.mtime_nsec()))
}

fn set_mtime(path: &Path, sec: i64, nsec: i64) -> anyhow::Result<()> {
    let time = Timespec { tv_sec: sec, tv_nsec: nsec };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::empty()).at(path)
}

/// All bricks have been looked through.
fn looked_through(cluster: &Cluster) -> anyhow::Result<()> {
    eventually_ok("the bricks have been looked through", LOOK_TIMEOUT, || {
        let status = cluster.status()?;
        let bricks = status["bricks"].as_array().context("no bricks")?;
        ensure!(bricks.iter().all(|brick| brick["mending"] == false), "{status:#}");
        Ok(())
    })
}

#[test] // PROTOCOL 28
fn the_times_of_directories_outlive_restarts_and_a_look_through() {
    case(MOUNT, |case| {
        let mut cluster = Cluster::in_memory(case)?;
        let mut dirs: Vec<(PathBuf, (i64, i64))> = Vec::new();
        for number in 0..8 {
            let dir = cluster.mount().join(format!("d{number}"));
            fs::create_dir(&dir).at(&dir)?;
            // Children on every brick: their bricks tell the directory's home.
            for child in 0..12 {
                let (sub, file) = (dir.join(format!("s{child}")), dir.join(format!("f{child}")));
                fs::create_dir(&sub).at(&sub)?;
                File::create(&file).at(&file)?;
            }
            // In the past as tar does it, in the future, and as the last child has left it.
            match number % 3 {
                0 => set_mtime(&dir, 981_173_106, 123_456_789)?,
                1 => set_mtime(&dir, 4_000_000_000, 5)?,
                _ => {}
            }
            dirs.push((dir.clone(), mtime_of(&dir)?));
        }
        let check = |cluster: &Cluster, what: &str| -> anyhow::Result<()> {
            let mount = cluster.second_mount(what, &[])?;
            for (dir, mtime) in &dirs {
                let path = mount.path().join(dir.strip_prefix(cluster.mount())?);
                let now = mtime_of(&path)?;
                ensure!(now == *mtime, "{what}: the mtime of {} was {mtime:?} and is {now:?}", dir.display());
                let links = fs::metadata(&path).at(&path)?.nlink();
                ensure!(links == 2 + 12, "{what}: {} has {links} links", dir.display());
            }
            mount.unmount()
        };
        cluster.kill_brickd()?;
        cluster.start_brickd()?;
        check(&cluster, "killed")?;
        cluster.stop_brickd()?;
        cluster.start_brickd()?;
        check(&cluster, "stopped")?;
        // As after a loss of power: the bricks were used under another boot.
        cluster.kill_brickd()?;
        for brick in cluster.bricks() {
            let mounted = brick.join(".brickfs/mounted");
            fs::write(&mounted, "another boot 1\n").at(&mounted)?;
        }
        cluster.start_brickd()?;
        looked_through(&cluster)?;
        check(&cluster, "looked through")?;
        // And a change is still a change.
        let file = dirs[0].0.join("new");
        File::create(&file).at(&file)?;
        ensure!(mtime_of(&dirs[0].0)?.0 > dirs[0].1.0 && mtime_of(&dirs[0].0)?.0 < 4_000_000_000);
        let file = dirs[1].0.join("new");
        File::create(&file).at(&file)?;
        ensure!(mtime_of(&dirs[1].0)?.0 < 4_000_000_000, "a new child does not set the time of its directory");
        Ok(())
    });
}

#[test]
fn one_file_renamed_for_ever_fills_no_log() {
    case(MOUNT, |case| {
        // The other bricks only take part in its renames, none of which is their own.
        const RENAMES: usize = 90_000;
        let mut cluster = Cluster::in_memory(case)?;
        let name = |number: usize| format!("n{}", number % 7);
        let mount = cluster.mount().to_owned();
        fs::write(mount.join(name(0)), "here").at(&mount)?;
        for number in 0..RENAMES {
            let (from, to) = (mount.join(name(number)), mount.join(name(number + 1)));
            fs::rename(&from, &to).at(&from).with_context(|| format!("rename {number}"))?;
        }
        cluster.kill_brickd()?;
        cluster.start_brickd()?;
        let names: Vec<_> = fs::read_dir(&mount).at(&mount)?.flatten().map(|entry| entry.file_name()).collect();
        ensure!(names == [name(RENAMES).as_str()], "it has the names {names:?}");
        ensure!(fs::read_to_string(mount.join(name(RENAMES))).at(&mount)? == "here");
        Ok(())
    });
}

#[test] // R8
fn a_disk_that_loses_what_it_took_fails_fsync_and_takes_no_more() {
    case(LOOP_MOUNT, |case| {
        // The image is larger than the room for it: the disk takes what it cannot keep.
        let dir = case.in_memory()?;
        let small = dir.join("small");
        fs::create_dir(&small).at(&small)?;
        run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=48m", "none"]).arg(&small))?.ok()?;
        let disk = LoopFs::make(&small, "disk", Kind::Ext4, 400)?;
        let cluster = Cluster::over(&dir, &[disk.path().join("b")])?;
        let mount = cluster.second_mount("m", &[])?;
        let kept = mount.path().join("kept");
        File::create(&kept).and_then(|mut file| file.write_all(b"kept").and_then(|()| file.sync_all())).at(&kept)?;
        let lost = mount.path().join("lost");
        let block = vec![7u8; 1 << 20];
        let synced = File::create(&lost).at(&lost).map(|mut file| {
            let written = (0..120).try_for_each(|_| file.write_all(&block));
            written.and_then(|()| file.sync_all())
        })?;
        ensure!(synced.is_err(), "fsync says that 120 MiB are on a disk that can keep 48");
        // Neither does anything else on it claim to be kept from now on.
        let other = mount.path().join("other");
        let later = File::create(&other).and_then(|file| file.sync_all());
        ensure!(later.is_err(), "the disk is trusted again");
        let status = cluster.status()?;
        let error = status["bricks"][0]["error"].as_str().context("the status does not say what is wrong")?;
        ensure!(error.contains("read-only") && error.contains("check the disk"), "{error}");
        ensure!(fs::read(&kept).at(&kept)? == b"kept", "what is there can be read");
        mount.unmount()
    });
}
