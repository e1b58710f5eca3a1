//! Mounts and `brickd` for days: what they remember has its bounds. A million files (`SOAK=1`; else fewer, and what one
//! file takes is looked at) are walked and forgotten; millions of operations of every kind on the same names leave
//! neither memory nor descriptors behind.

use anyhow::{Context as _, ensure};
use brickfs_tests::at::At as _;
use brickfs_tests::case::{case, say};
use brickfs_tests::cluster::Cluster;
use brickfs_tests::crowd;
use brickfs_tests::eventually::eventually_ok;
use brickfs_tests::memory::{Taken, drop_kernel_caches};
use brickfs_tests::mixed;
use brickfs_tests::mount::Mount;
use brickfs_tests::needs::{MOUNT, Need, is_soak};
use brickfs_tests::run::shell;
use rustix::process::Signal;
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const MIB: u64 = 1024;
/// What a mount may have once the kernel has forgotten a million files, and `brickd` that has them, in KiB.
const KIB_MAX: u64 = 300 * MIB;
/// What `brickd` may take for its caches, which have their bounds, in KiB.
const CACHES_KIB: u64 = 120 * MIB;
/// Files of a directory.
const DIRECTORY: usize = 1000;
const FORGET_TIMEOUT: Duration = Duration::from_secs(30);

/// How much a mount remembers of a kind, as it says in its log when asked.
fn remembered(mount: &Mount, kind: &str) -> anyhow::Result<u64> {
    let before = mount.log().matches("remembered").count();
    mount.process()?.signal(Signal::USR1)?;
    let line = eventually_ok("the mount says what it remembers", FORGET_TIMEOUT, || {
        let log = mount.log();
        ensure!(log.matches("remembered").count() > before, "not yet");
        log.lines().rfind(|line| line.contains("remembered")).map(str::to_owned).context("no line")
    })?;
    let figure = line.split_once(&format!("(\"{kind}\", ")).and_then(|(_, rest)| rest.split(')').next());
    figure.with_context(|| line.clone())?.parse().with_context(|| line.clone())
}

#[test]
fn a_million_files_are_walked_and_forgotten() {
    case(MOUNT, |case| {
        let directories = if is_soak() { 1000 } else { 50 };
        let files = (directories * DIRECTORY) as u64;
        let cluster = Cluster::in_memory(case)?;
        let brickd = cluster.brickd()?.pid();
        let empty = Taken::by(brickd)?;
        let started = Instant::now();
        for number in 0..directories {
            let directory = cluster.mount().join(number.to_string());
            fs::create_dir(&directory).at(&directory)?;
            crowd::make_files(&directory, DIRECTORY)?;
        }
        let full = Taken::by(brickd)?;
        say(&format!(
            "{}: {files} files made in {:?}, brickd {empty} before, {full} then",
            case.name(),
            started.elapsed()
        ));
        let mount = cluster.second_mount("walker", &[])?;
        let pid = mount.process()?.pid();
        let fresh = Taken::by(pid)?;
        let started = Instant::now();
        let found = shell("find \"$1\" -ls | wc -l", &[&mount.path()])?.ok()?;
        ensure!(found.trim().parse::<u64>()? == files + directories as u64 + 1, "{found} of {files} files are found");
        let (walked, knows) = (Taken::by(pid)?, remembered(&mount, "inodes")?);
        say(&format!(
            "{}: walked in {:?}, brickfs {fresh} before, {walked} then, knows {knows}",
            case.name(),
            started.elapsed()
        ));
        ensure!(knows <= files + 10_000, "{knows} inodes are known");
        let knows = eventually_ok("the mount forgets what the kernel forgets", FORGET_TIMEOUT, || {
            drop_kernel_caches()?;
            let knows = remembered(&mount, "inodes")?;
            ensure!(knows < 1000, "{knows} inodes are known");
            Ok(knows)
        })?;
        let (forgotten, brickd) = (Taken::by(pid)?, Taken::by(brickd)?);
        say(&format!("{}: forgotten but {knows}: brickfs {forgotten}, brickd {brickd}", case.name()));
        ensure!(forgotten.kib < KIB_MAX && brickd.kib < KIB_MAX, "more than {} MiB", KIB_MAX / MIB);
        // The same for a million files, where there are fewer here.
        let grown = |now: u64, before: u64, bounded: u64| now.saturating_sub(before + bounded) * 1_000_000 / files;
        let mount_kib = fresh.kib + grown(forgotten.kib, fresh.kib, 2 * MIB);
        let brickd_kib = empty.kib + CACHES_KIB + grown(brickd.kib, empty.kib, CACHES_KIB);
        ensure!(mount_kib < KIB_MAX, "brickfs would have {} MiB after a million files", mount_kib / MIB);
        ensure!(brickd_kib < KIB_MAX, "brickd would have {} MiB with a million files", brickd_kib / MIB);
        ensure!(forgotten.descriptors <= fresh.descriptors + 8, "descriptors: {fresh} before, {forgotten} now");
        mount.unmount()
    });
}

/// Threads of the mixed operations.
const WORKERS: usize = 4;
/// Samples taken, and how many of them are warm-up.
const SAMPLES: u64 = 20;
const WARM: usize = 5;
/// What may come and go after the warm-up.
const SLACK_KIB: u64 = 16 * MIB;
const SLACK_DESCRIPTORS: usize = 256;

#[test]
fn operations_of_every_kind_leave_nothing_behind() {
    case(MOUNT, |case| {
        let count: u64 = match std::env::var("BRICKFS_OPERATIONS").ok().and_then(|count| count.parse().ok()) {
            Some(count) => count,
            None if is_soak() => 10_000_000,
            None => 100_000,
        };
        let cluster = Cluster::in_memory(case)?;
        let mount = cluster.second_mount("mixed", &[])?;
        mixed::prepare(mount.path())?;
        let pids = [mount.process()?.pid(), cluster.brickd()?.pid()];
        let (done, refused) = (AtomicU64::new(0), AtomicU64::new(0));
        let work = |worker: usize, until: u64| -> anyhow::Result<()> {
            let mut rng = case.rng(until * WORKERS as u64 + worker as u64);
            while done.fetch_add(1, Ordering::Relaxed) < until {
                if !mixed::step(mount.path(), &mut rng)? {
                    refused.fetch_add(1, Ordering::Relaxed);
                }
            }
            Ok(())
        };
        let (started, mut samples) = (Instant::now(), Vec::new());
        for sample in 1..=SAMPLES {
            let until = count * sample / SAMPLES;
            std::thread::scope(|scope| {
                let workers: Vec<_> = (0..WORKERS).map(|worker| scope.spawn(move || work(worker, until))).collect();
                workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| anyhow::anyhow!("it panicked"))?)
            })?;
            let taken = [Taken::by(pids[0])?, Taken::by(pids[1])?];
            say(&format!("{}: after {until}: brickfs {}, brickd {}", case.name(), taken[0], taken[1]));
            samples.push(taken);
        }
        let refused = refused.load(Ordering::Relaxed);
        say(&format!("{}: {count} operations in {:?}, {refused} refused", case.name(), started.elapsed()));
        ensure!(refused < count * 7 / 10, "{refused} of {count} were refused: too few do something");
        for (index, program) in ["brickfs", "brickd"].into_iter().enumerate() {
            let (warm, later) = samples.split_at(WARM);
            let most = |samples: &[[Taken; 2]], figure: fn(&Taken) -> u64| {
                samples.iter().map(|taken| figure(&taken[index])).max().unwrap_or_default()
            };
            let (kib, late_kib) = (most(warm, |taken| taken.kib), most(later, |taken| taken.kib));
            ensure!(late_kib <= kib + SLACK_KIB, "{program} grows from {kib} to {late_kib} KiB");
            let open = |taken: &Taken| taken.descriptors as u64;
            let (open, late_open) = (most(warm, open), most(later, open));
            ensure!(late_open <= open + SLACK_DESCRIPTORS as u64, "{program}: {open}, then {late_open} descriptors");
        }
        for kind in ["files", "dirs", "busy", "lock_owners"] {
            eventually_ok("nothing is open", FORGET_TIMEOUT, || {
                let left = remembered(&mount, kind)?;
                ensure!(left == 0, "{left} {kind} are left");
                Ok(())
            })?;
        }
        mount.unmount()
    });
}

/// What the caches of four bricks would hold is six times what `brickd` may have open here.
#[test]
fn few_open_files_are_enough_for_many_files_and_directories() {
    const OPEN_FILES: u32 = 1024;
    let needs: Vec<Need> = MOUNT.iter().copied().chain([Need::Program("setpriv"), Need::Program("prlimit")]).collect();
    case(&needs, |case| {
        let mut cluster = Cluster::in_memory(case)?;
        cluster.stop_brickd()?;
        cluster.start_brickd_with_open_files(OPEN_FILES)?;
        let pid = cluster.brickd()?.pid();
        let limits = format!("/proc/{pid}/limits");
        let limits = fs::read_to_string(&limits).at(&limits)?;
        let has_limit = |line: &str| line.starts_with("Max open files") && line.contains(&format!(" {OPEN_FILES} "));
        ensure!(limits.lines().any(has_limit), "{limits}");
        for number in 0..1500 {
            let directory = cluster.mount().join(number.to_string());
            fs::create_dir(&directory).at(&directory)?;
            let path = directory.join("file");
            fs::write(&path, number.to_string()).at(&path)?;
        }
        let open = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        ensure!((OPEN_FILES as usize / 2..OPEN_FILES as usize).contains(&open), "{open} files are open");
        cluster.remount()?;
        for number in 0..1500 {
            let path = cluster.mount().join(format!("{number}/file"));
            ensure!(fs::read_to_string(&path).at(&path)? == number.to_string(), "{}", path.display());
        }
        Ok(())
    });
}
