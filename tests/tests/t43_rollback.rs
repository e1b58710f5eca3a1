//! Names that change without a sync when the power goes: each disk forgets its own last seconds. Every file that was
//! once synced is there afterwards under exactly one of the names it had (N1, N3), and a name that was replaced is
//! never missing (N2), whatever each disk forgot (PROTOCOL 8).

use anyhow::{Context as _, ensure};
use brickfs_tests::at::At as _;
use brickfs_tests::bricks;
use brickfs_tests::case::{Case, case, say};
use brickfs_tests::eventually::eventually;
use brickfs_tests::loop_fs::Kind;
use brickfs_tests::machine::{BRICKS, Machine};
use brickfs_tests::mount::Mount;
use brickfs_tests::needs::{LOOP_MOUNT, is_soak};
use rand::Rng as _;
use rand::rngs::StdRng;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const MOVERS: usize = 3;
const FILES_EACH: usize = 60;
const DIRECTORIES: usize = 4;
const PATIENCE: Duration = Duration::from_secs(60);

/// The files of one mover; all were synced under their first name.
struct Mover {
    root: PathBuf,
    number: usize,
    rng: StdRng,
    /// The names of each file, the last one that it has or was about to get at the end.
    histories: BTreeMap<String, Vec<PathBuf>>,
    /// Files that another replaced, or was about to.
    replaced: BTreeSet<String>,
    /// Names that were replaced and that nothing was moved away from since: never missing.
    targets: BTreeSet<PathBuf>,
}

impl Mover {
    fn new_name(&mut self, count: usize) -> PathBuf {
        let directory = self.rng.random_range(0..DIRECTORIES);
        format!("d{directory}/m{}-{count}-{:x}", self.number, self.rng.random::<u16>()).into()
    }

    fn prepare(&mut self) -> anyhow::Result<()> {
        for count in 0..FILES_EACH {
            let (name, id) = (self.new_name(count), format!("file {} of {}\n", count, self.number));
            let path = self.root.join(&name);
            let file = File::create_new(&path);
            file.and_then(|mut file| file.write_all(id.as_bytes()).and_then(|()| file.sync_all())).at(&path)?;
            self.histories.insert(id, vec![name]);
        }
        Ok(())
    }

    /// A file that is still there, with its name.
    fn any_file(&mut self) -> Option<(String, PathBuf)> {
        let able: Vec<_> = self.histories.iter().filter(|(id, _)| !self.replaced.contains(*id)).collect();
        let (id, names) = able.get(self.rng.random_range(0..able.len().max(1)))?;
        Some(((*id).clone(), names.last().cloned().unwrap_or_default()))
    }

    /// Renames files, sometimes over another, syncing nothing, until the power goes.
    fn work(&mut self, steps: &AtomicU64, is_over: &AtomicBool) -> anyhow::Error {
        let mut count = FILES_EACH;
        while !is_over.load(Ordering::Relaxed) {
            if let Err(error) = self.step(count) {
                return error;
            }
            steps.fetch_add(1, Ordering::Relaxed);
            count += 1;
        }
        anyhow::anyhow!("the power went")
    }

    /// Something else on some disk is synced now and then: what that disk has done until then, it keeps.
    fn sync_some_disk(&mut self, count: usize) -> anyhow::Result<()> {
        let name = self.new_name(count);
        let path = self.root.join(name);
        File::create_new(&path).and_then(|file| file.sync_all()).at(&path)
    }

    fn step(&mut self, count: usize) -> anyhow::Result<()> {
        if count % 50 == 25 {
            return self.sync_some_disk(count);
        }
        let (id, from) = self.any_file().context("no file is left")?;
        let mut to = self.new_name(count);
        self.targets.remove(&from);
        if count.is_multiple_of(40)
            && let Some((other, target)) = self.any_file().filter(|(other, _)| *other != id)
        {
            self.replaced.insert(other);
            self.targets.insert(target.clone());
            to = target;
        }
        self.histories.entry(id).or_default().push(to.clone());
        fs::rename(self.root.join(&from), self.root.join(&to)).at(from)
    }

    /// `found` are all names of the volume with what is in them.
    fn check(&self, found: &BTreeMap<PathBuf, String>) -> anyhow::Result<()> {
        for (id, names) in &self.histories {
            let now: Vec<&PathBuf> = found.iter().filter(|(_, content)| *content == id).map(|(name, _)| name).collect();
            let is_gone = now.is_empty() && self.replaced.contains(id);
            let shown = names.len();
            ensure!(
                is_gone || now.len() == 1,
                "{id:?} has the names {now:?}; it had {shown}, the last {:?}",
                names.last()
            );
            ensure!(now.iter().all(|name| names.contains(name)), "{id:?} has a name it never had: {now:?}");
        }
        // A target that came to its name without a sync may never have been there: what counts is where it was synced.
        let synced: BTreeSet<&PathBuf> = self.histories.values().filter_map(|names| names.first()).collect();
        for target in self.targets.iter().filter(|target| synced.contains(target)) {
            ensure!(found.contains_key(target), "N2: {target:?} is missing");
        }
        Ok(())
    }
}

fn read_all(root: &Path) -> anyhow::Result<BTreeMap<PathBuf, String>> {
    let mut found = BTreeMap::new();
    for number in 0..DIRECTORIES {
        let directory = root.join(format!("d{number}"));
        for entry in fs::read_dir(&directory).at(&directory)? {
            let path = entry.at(&directory)?.path();
            let content = fs::read_to_string(&path).at(&path)?;
            let name = path.strip_prefix(root)?.to_owned();
            ensure!(found.insert(name, content).is_none(), "{} is listed twice", path.display());
        }
    }
    Ok(found)
}

fn rounds(case: &Case, mut machine: Machine, choose: impl Fn(u64) -> Vec<usize>) -> anyhow::Result<()> {
    let rounds = if is_soak() { 30 } else { 4 };
    let (mut renames, mut taken_back) = (0, 0);
    for round in 0..rounds {
        let disks = choose(round);
        let mount = machine.mount()?;
        let movers = move_until_power_loss(case, round, &mut machine, mount, &disks)?;
        machine.come_back(&disks)?;
        let mount = machine.mount()?;
        let found = read_all(mount.path()).with_context(|| format!("round {round}, disks {disks:?}"))?;
        for mover in &movers {
            mover.check(&found).with_context(|| format!("round {round}, disks {disks:?}"))?;
            renames += mover.histories.values().map(|names| names.len() - 1).sum::<usize>();
            let is_back = |names: &&Vec<PathBuf>| names.last().is_some_and(|name| !found.contains_key(name));
            taken_back += mover.histories.values().filter(is_back).count();
        }
        for number in 0..DIRECTORIES {
            let path = mount.path().join(format!("d{number}"));
            fs::remove_dir_all(&path).at(&path)?;
        }
        mount.unmount()?;
    }
    say(&format!("{}: {renames} renames, {taken_back} files are back at an earlier name", case.name()));
    ensure!(taken_back > 0, "nothing was lost: this tested nothing");
    bricks::emptied(machine.cluster.bricks())
}

fn move_until_power_loss(
    case: &Case,
    round: u64,
    machine: &mut Machine,
    mount: Mount,
    disks: &[usize],
) -> anyhow::Result<Vec<Mover>> {
    let root = mount.path().to_owned();
    for number in 0..DIRECTORIES {
        let path = root.join(format!("d{number}"));
        fs::create_dir(&path).at(&path)?;
        File::open(&path).and_then(|dir| dir.sync_all()).at(&path)?;
    }
    let mover = |number: usize| Mover {
        root: root.clone(),
        number,
        rng: case.rng(round * 100 + number as u64),
        histories: BTreeMap::new(),
        replaced: BTreeSet::new(),
        targets: BTreeSet::new(),
    };
    let mut movers: Vec<Mover> = (0..MOVERS).map(mover).collect();
    movers.iter_mut().try_for_each(Mover::prepare)?;
    let (steps, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    let wanted = case.rng(1000 + round).random_range(100..3000);
    std::thread::scope(|scope| {
        let working: Vec<_> = movers.iter_mut().map(|mover| scope.spawn(|| mover.work(&steps, &is_over))).collect();
        let is_enough = || steps.load(Ordering::Relaxed) >= wanted || working.iter().any(|one| one.is_finished());
        let waited = eventually("files are renamed", PATIENCE, is_enough);
        let has_failed = working.iter().any(|one| one.is_finished());
        let lost = machine.lose_power(mount, disks);
        // Whatever went wrong: the movers end.
        is_over.store(true, Ordering::Relaxed);
        for one in working {
            let error = one.join().map_err(|_| anyhow::anyhow!("a mover panicked"))?;
            ensure!(!has_failed, "a mover failed before the power went: {error:#}");
        }
        lost.and(waited)
    })?;
    Ok(movers)
}

fn every_disk(count: usize) -> impl Fn(u64) -> Vec<usize> {
    move |_| (0..count).collect()
}

#[test]
fn renames_on_four_ext4_disks_that_were_not_synced() {
    case(LOOP_MOUNT, |case| rounds(case, Machine::with_disks(case, Kind::Ext4)?, every_disk(BRICKS)));
}

#[test]
fn renames_on_four_xfs_disks_that_were_not_synced() {
    case(LOOP_MOUNT, |case| rounds(case, Machine::with_disks(case, Kind::Xfs)?, every_disk(BRICKS)));
}

#[test]
fn renames_on_one_disk_that_were_not_synced() {
    case(LOOP_MOUNT, |case| rounds(case, Machine::with_one_disk(case, Kind::Ext4)?, every_disk(1)));
}

#[test]
fn renames_of_which_some_disks_keep_what_others_forget() {
    case(LOOP_MOUNT, |case| {
        let machine = Machine::with_disks(case, Kind::Ext4)?;
        rounds(case, machine, |round| if round.is_multiple_of(2) { vec![0, 1] } else { vec![2] })
    });
}
