//! Listing large directories: every name that stays is listed exactly once, whatever else comes and goes, whoever is
//! restarted in the middle, and also when another mount goes on with the listing (PROTOCOL 34).

use anyhow::ensure;
use brickfs_tests::at::At as _;
use brickfs_tests::bricks;
use brickfs_tests::case::{case, say};
use brickfs_tests::cluster::Cluster;
use brickfs_tests::needs::MOUNT;
use rustix::fs::{CWD, Mode, OFlags, RawDir, SeekFrom};
use std::collections::HashSet;
use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

const ENTRIES: usize = 100_000;
const MAKERS: usize = 4;
/// So many listings are made while other names come and go.
const BUSY_LISTINGS: usize = 5;

fn open_directory(path: &Path) -> anyhow::Result<OwnedFd> {
    rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).at(path)
}

/// Lists a directory from `cookie` on, calling `at_entry` with the count of entries so far; ends early if that says so.
/// Gives the cookie to go on with.
fn list(
    directory: &OwnedFd,
    cookie: u64,
    names: &mut Vec<Vec<u8>>,
    mut at_entry: impl FnMut(usize) -> anyhow::Result<bool>,
) -> anyhow::Result<u64> {
    rustix::fs::seek(directory, SeekFrom::Start(cookie)).at("seek in the directory")?;
    let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
    let mut listing = RawDir::new(directory, &mut buffer);
    let mut next = cookie;
    while let Some(entry) = listing.next() {
        let entry = entry.at("list the directory")?;
        next = entry.next_entry_cookie();
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
        if !at_entry(names.len())? {
            break;
        }
    }
    Ok(next)
}

/// The names that `wanted` begins are exactly `count`, each once.
fn check_names(names: Vec<Vec<u8>>, wanted: &[u8], count: usize) -> anyhow::Result<()> {
    let mut seen = HashSet::new();
    for name in names.into_iter().filter(|name| name.starts_with(wanted)) {
        ensure!(!seen.contains(&name), "{} is listed twice", String::from_utf8_lossy(&name));
        seen.insert(name);
    }
    ensure!(seen.len() == count, "{} of {count} names are listed", seen.len());
    Ok(())
}

fn fill(directory: &Path) -> anyhow::Result<()> {
    fs::create_dir(directory).at(directory)?;
    let make = |maker: usize| -> anyhow::Result<()> {
        for number in (maker..ENTRIES).step_by(MAKERS) {
            let path = directory.join(format!("stays-{number}"));
            File::create_new(&path).at(&path)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let makers: Vec<_> = (0..MAKERS).map(|maker| scope.spawn(move || make(maker))).collect();
        makers.into_iter().try_for_each(|maker| maker.join().map_err(|_| anyhow::anyhow!("a maker panicked"))?)
    })
}

#[test]
fn a_directory_of_a_hundred_thousand_names_is_listed_exactly() {
    case(MOUNT, |case| {
        let mut cluster = Cluster::in_memory(case)?;
        let directory = cluster.mount().join("big");
        let started = Instant::now();
        fill(&directory)?;
        say(&format!("{}: {ENTRIES} files made in {:?}", case.name(), started.elapsed()));
        let mut names = Vec::new();
        list(&open_directory(&directory)?, 0, &mut names, |_| Ok(true))?;
        check_names(names, b"stays-", ENTRIES)?;
        across_restarts(&mut cluster, &directory)?;
        across_mounts(&cluster)?;
        while_others_come_and_go(&directory)?;
        let started = Instant::now();
        fs::remove_dir_all(&directory).at(&directory)?;
        say(&format!("{}: all removed in {:?}", case.name(), started.elapsed()));
        bricks::emptied(cluster.bricks())
    });
}

/// `brickd` is killed and started again in the middle of a listing, three times.
fn across_restarts(cluster: &mut Cluster, directory: &Path) -> anyhow::Result<()> {
    let mut names = Vec::new();
    let opened = open_directory(directory)?;
    list(&opened, 0, &mut names, |count| {
        if count.is_multiple_of(ENTRIES / 4) && count < ENTRIES {
            cluster.kill_brickd()?;
            cluster.start_brickd()?;
        }
        Ok(true)
    })?;
    check_names(names, b"stays-", ENTRIES)
}

/// Each mount lists a part and another goes on from its cookie.
fn across_mounts(cluster: &Cluster) -> anyhow::Result<()> {
    let (mut names, mut cookie) = (Vec::new(), 0);
    for number in 1..=4 {
        let mount = cluster.second_mount(&format!("part{number}"), &[])?;
        let directory = open_directory(&mount.path().join("big"))?;
        cookie = list(&directory, cookie, &mut names, |count| Ok(number == 4 || count < number * ENTRIES / 4))?;
        drop(directory);
        mount.unmount()?;
    }
    check_names(names, b"stays-", ENTRIES)
}

/// Names that stay are listed exactly once while others are made, renamed and removed.
fn while_others_come_and_go(directory: &Path) -> anyhow::Result<()> {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| -> anyhow::Result<()> {
            for number in 0.. {
                let path = |what: &str, number: u64| directory.join(format!("{what}-{number}"));
                File::create_new(path("comes", number)).at(directory)?;
                fs::rename(path("comes", number), path("moves", number)).at(directory)?;
                if number >= 50 {
                    fs::remove_file(path("moves", number - 50)).at(directory)?;
                }
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
            }
            Ok(())
        });
        let listed = (0..BUSY_LISTINGS).try_for_each(|_| {
            let mut names = Vec::new();
            list(&open_directory(directory)?, 0, &mut names, |_| Ok(true))?;
            check_names(names, b"stays-", ENTRIES)
        });
        is_over.store(true, Ordering::Relaxed);
        busy.join().map_err(|_| anyhow::anyhow!("a maker panicked"))??;
        listed
    })
}
