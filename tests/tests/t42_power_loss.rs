//! The power goes while applications write: bricks on ext4 and XFS, on disks of their own and on one disk, and one disk
//! of several alone. What fsync acknowledged is there, everything else is whole or absent, bricks open by themselves,
//! and all of it can be removed afterwards.

use anyhow::{Context as _, ensure};
use brickfs_tests::at::At as _;
use brickfs_tests::bricks;
use brickfs_tests::case::{Case, case, say};
use brickfs_tests::cluster::VOLUME;
use brickfs_tests::eventually::eventually_ok;
use brickfs_tests::loop_fs::Kind;
use brickfs_tests::machine::{BRICKS, Machine};
use brickfs_tests::mount::Mount;
use brickfs_tests::needs::{LOOP_MOUNT, is_soak};
use brickfs_tests::stories::{Story, check_readable};
use rand::Rng as _;
use std::fs::{self, File};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const TELLERS: usize = 3;
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Rounds of stories, power loss and looking, on the disks that `choose` says.
fn rounds(case: &Case, mut machine: Machine, choose: impl Fn(u64) -> Vec<usize>) -> anyhow::Result<()> {
    let rounds = if is_soak() { 30 } else { 3 };
    let (mut stories_told, mut names) = (0, 0);
    for round in 0..rounds {
        let disks = choose(round);
        let mount = machine.mount()?;
        let told = tell_until_power_loss(case, round, &mut machine, mount, &disks)?;
        machine.come_back(&disks)?;
        let mount = machine.mount()?;
        for (teller, stories) in told.iter().enumerate() {
            let root = mount.path().join(format!("t{teller}"));
            for story in stories {
                story.check(&root).with_context(|| format!("round {round}, disks {disks:?}, teller {teller}"))?;
            }
            stories_told += stories.len();
        }
        names += check_readable(mount.path()).with_context(|| format!("round {round}, disks {disks:?}"))?;
        for entry in fs::read_dir(mount.path()).at(mount.path())? {
            let path = entry.at(mount.path())?.path();
            fs::remove_dir_all(&path).at(&path)?;
        }
        mount.unmount()?;
    }
    say(&format!("{}: {rounds} power losses, {stories_told} stories, {names} names afterwards", case.name()));
    bricks::emptied(machine.cluster.bricks())
}

/// Tellers tell stories until the power goes; gives all that they began.
fn tell_until_power_loss(
    case: &Case,
    round: u64,
    machine: &mut Machine,
    mount: Mount,
    disks: &[usize],
) -> anyhow::Result<Vec<Vec<Story>>> {
    let root = mount.path().to_owned();
    for teller in 0..TELLERS {
        let path = root.join(format!("t{teller}"));
        fs::create_dir(&path).at(&path)?;
        File::open(&path).and_then(|dir| dir.sync_all()).at(&path)?;
    }
    let (steps, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    let wanted = case.rng(1000 + round).random_range(300..1500);
    std::thread::scope(|scope| {
        let tell = |teller: usize| {
            let (root, mut rng) = (root.join(format!("t{teller}")), case.rng(round * 100 + teller as u64));
            let mut stories = Vec::new();
            for number in 0.. {
                let mut story = Story::invent(&mut rng, number);
                let told = story.tell(&root, || {
                    steps.fetch_add(1, Ordering::Relaxed);
                    ensure!(!is_over.load(Ordering::Relaxed), "the power went");
                    Ok(())
                });
                stories.push(story);
                if let Err(error) = told {
                    return (stories, error);
                }
            }
            unreachable!("the numbers have no end")
        };
        let tellers: Vec<_> = (0..TELLERS).map(|teller| scope.spawn(move || tell(teller))).collect();
        let has_failed = eventually_ok("stories are told", START_TIMEOUT, || {
            let has_failed = tellers.iter().any(|teller| teller.is_finished());
            ensure!(has_failed || steps.load(Ordering::Relaxed) >= wanted, "{} steps", steps.load(Ordering::Relaxed));
            Ok(has_failed)
        });
        let lost = machine.lose_power(mount, disks);
        // Whatever went wrong: the tellers end.
        is_over.store(true, Ordering::Relaxed);
        let has_failed = has_failed?;
        let mut told = Vec::new();
        for teller in tellers {
            let (stories, error) = teller.join().map_err(|_| anyhow::anyhow!("a teller panicked"))?;
            ensure!(!has_failed, "a teller failed before the power went: {error:#}");
            told.push(stories);
        }
        lost.map(|()| told)
    })
}

fn every_disk(count: usize) -> impl Fn(u64) -> Vec<usize> {
    move |_| (0..count).collect()
}

#[test]
fn four_ext4_disks_lose_power() {
    case(LOOP_MOUNT, |case| rounds(case, Machine::with_disks(case, Kind::Ext4)?, every_disk(BRICKS)));
}

#[test]
fn four_xfs_disks_lose_power() {
    case(LOOP_MOUNT, |case| rounds(case, Machine::with_disks(case, Kind::Xfs)?, every_disk(BRICKS)));
}

#[test]
fn one_ext4_disk_with_all_bricks_and_the_state_loses_power() {
    case(LOOP_MOUNT, |case| rounds(case, Machine::with_one_disk(case, Kind::Ext4)?, every_disk(1)));
}

#[test]
fn one_xfs_disk_with_all_bricks_and_the_state_loses_power() {
    case(LOOP_MOUNT, |case| rounds(case, Machine::with_one_disk(case, Kind::Xfs)?, every_disk(1)));
}

/// PROTOCOL 8: sets roll back apart from each other.
#[test]
fn some_of_four_disks_lose_power_and_the_others_do_not() {
    case(LOOP_MOUNT, |case| {
        let machine = Machine::with_disks(case, Kind::Ext4)?;
        rounds(case, machine, |round| match round % 3 {
            0 => vec![0],
            1 => vec![1, 2],
            _ => vec![3],
        })
    });
}

#[test]
fn an_idle_volume_is_there_after_power_loss() {
    case(LOOP_MOUNT, |case| {
        let mut machine = Machine::with_one_disk(case, Kind::Ext4)?;
        // Acknowledged commands of administration are flushed, whatever the file system had still to write.
        machine.cluster.brickctl(&["volume", "set", VOLUME, "comment", "kept"])?.ok()?;
        let mount = machine.mount()?;
        machine.lose_power(mount, &[0])?;
        machine.come_back(&[0])?;
        let comment = machine.cluster.brickctl(&["volume", "get", VOLUME, "comment", "-o", "json"])?.ok()?;
        ensure!(comment.contains("kept"), "an acknowledged option is lost: {comment}");
        let mount = machine.mount()?;
        ensure!(is_empty(mount.path())?, "a new volume is not empty");
        mount.unmount()
    });
}

fn is_empty(directory: &Path) -> anyhow::Result<bool> {
    Ok(fs::read_dir(directory).at(directory)?.next().is_none())
}
