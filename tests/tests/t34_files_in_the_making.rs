//! Owner, mode, times and data of files that are being made: what a program sees through the descriptor and by the name
//! is at every step what a local file system shows, and another mount sees it all when the file is closed (PROTOCOL 32).

use anyhow::{Context as _, ensure};
use brickfs_tests::at::At as _;
use brickfs_tests::case::{case, say};
use brickfs_tests::cluster::Cluster;
use brickfs_tests::needs::{MOUNT, is_soak};
use rand::Rng as _;
use rand::rngs::StdRng;
use rustix::fs::{Gid, Mode, Timespec, Timestamps, Uid};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

/// Mode bits that a change may give, setuid and setgid among them.
const MODES: [u32; 6] = [0o600, 0o644, 0o755, 0o4755, 0o2755, 0o6644];

/// One step of a program that makes a file.
#[derive(Clone, Copy, Debug)]
enum Step {
    Write { offset: u64, size: usize },
    Cut(u64),
    Mode(u32),
    Owner(u32, u32),
    Times(i64),
    Link,
    Look,
}

fn choose_step(rng: &mut StdRng) -> Step {
    match rng.random_range(0..20) {
        0..=5 => Step::Write { offset: rng.random_range(0..20_000), size: rng.random_range(1..9_000) },
        6 => Step::Cut(rng.random_range(0..20_000)),
        7..=10 => Step::Mode(MODES[rng.random_range(0..MODES.len())]),
        11..=13 => Step::Owner(rng.random_range(0..3), rng.random_range(0..3)),
        14..=16 => Step::Times(rng.random_range(1..2_000_000_000)),
        17 => Step::Link,
        _ => Step::Look,
    }
}

fn run_step(step: Step, file: &File, path: &Path) -> anyhow::Result<()> {
    match step {
        Step::Write { offset, size } => file.write_all_at(&vec![size as u8; size], offset).at(path)?,
        Step::Cut(size) => file.set_len(size).at(path)?,
        Step::Mode(mode) => rustix::fs::fchmod(file, Mode::from_raw_mode(mode))?,
        Step::Owner(uid, gid) => rustix::fs::fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?,
        Step::Times(seconds) => {
            let time = |nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
            rustix::fs::futimens(file, &Timestamps { last_access: time(1), last_modification: time(2) })?;
        }
        Step::Link => {
            let other = path.with_extension("link");
            fs::remove_file(&other).ok(); // there from an earlier step
            fs::hard_link(path, &other).at(&other)?;
        }
        Step::Look => {}
    }
    Ok(())
}

/// What both must show: mode, owner, size, names, and the time of the contents where it was given.
fn shown(meta: &fs::Metadata, has_given_time: bool) -> (u32, u32, u32, u64, u64, Option<(i64, i64)>) {
    let time = has_given_time.then(|| (meta.mtime(), meta.mtime_nsec()));
    (meta.mode(), meta.uid(), meta.gid(), meta.len(), meta.nlink(), time)
}

fn create(path: &Path) -> anyhow::Result<File> {
    File::options().read(true).write(true).create_new(true).mode(0o600).open(path).at(path)
}

#[test]
fn files_in_the_making_are_as_on_a_local_disk() {
    case(MOUNT, |case| {
        let cluster = Cluster::in_memory(case)?;
        let strict = cluster.second_mount("strict", &["-o", "strict"])?;
        let local = case.in_memory()?;
        let (mut rng, mut looked) = (case.rng(0), 0);
        let files = if is_soak() { 3_000 } else { 300 };
        for number in 0..files {
            let name = format!("f{number}");
            let (ours, theirs) = (cluster.mount().join(&name), local.join(&name));
            let (file, twin) = (create(&ours)?, create(&theirs)?);
            let (mut steps, mut has_given_time) = (Vec::new(), false);
            for _ in 0..rng.random_range(1..12) {
                let step = choose_step(&mut rng);
                steps.push(step);
                run_step(step, &file, &ours).with_context(|| format!("{name}: {steps:?}"))?;
                run_step(step, &twin, &theirs)?;
                has_given_time = match step {
                    Step::Write { .. } | Step::Cut(_) => false,
                    Step::Times(_) => true,
                    _ => has_given_time,
                };
                if rng.random_bool(0.3) {
                    let by_name = fs::symlink_metadata(&ours).at(&ours)?;
                    let seen = [file.metadata().at(&ours)?, by_name].map(|meta| shown(&meta, has_given_time));
                    let wanted = shown(&twin.metadata().at(&theirs)?, has_given_time);
                    ensure!(seen[0] == wanted && seen[1] == wanted, "{name}: {seen:?}, not {wanted:?}: {steps:?}");
                    looked += 1;
                }
            }
            drop(file);
            let other = strict.path().join(&name);
            let seen = shown(&fs::symlink_metadata(&other).at(&other)?, has_given_time);
            let wanted = shown(&twin.metadata().at(&theirs)?, has_given_time);
            ensure!(seen == wanted, "{name} on another mount: {seen:?}, not {wanted:?}: {steps:?}");
            ensure!(
                fs::read(&other).at(&other)? == fs::read(&theirs).at(&theirs)?,
                "{name} has other bytes: {steps:?}"
            );
        }
        ensure!(looked > files / 2, "looked {looked} times only");
        say(&format!("{files} files, looked at {looked} times in the making"));
        Ok(())
    });
}

/// What was answered before the brick had it is there when `brickd` was killed in the middle.
#[test]
fn files_in_the_making_survive_brickd() {
    case(MOUNT, |case| {
        let mut cluster = Cluster::in_memory(case)?;
        let mut rng = case.rng(0);
        for round in 0..if is_soak() { 50 } else { 8 } {
            let path = cluster.mount().join(format!("f{round}"));
            let file = create(&path)?;
            file.write_all_at(b"data", 0).at(&path)?;
            let is_late = rng.random_bool(0.5);
            if !is_late {
                cluster.kill_brickd()?;
            }
            rustix::fs::fchown(&file, Some(Uid::from_raw(0)), Some(Gid::from_raw(0)))?;
            rustix::fs::fchmod(&file, Mode::from_raw_mode(0o4711))?;
            if is_late {
                cluster.kill_brickd()?;
            }
            let close = std::thread::spawn(move || brickfs_tests::close::close(file));
            cluster.start_brickd()?;
            close.join().map_err(|_| anyhow::anyhow!("the close panicked"))?.at(&path)?;
            let meta = fs::metadata(&path).at(&path)?;
            let seen = (meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.len());
            ensure!(seen == (0o4711, 0, 0, 4), "{}: {seen:?}", path.display());
        }
        Ok(())
    });
}
