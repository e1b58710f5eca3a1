//! 100,000 renames, most of them from one brick to another, while `brickd` is killed again and again. No application
//! sees an error; every file ends under exactly one name (N1), a replaced name is never missing (N2), nothing is lost
//! or left behind (N3), and at no instant do both names of a rename resolve, or neither (N1, seen from a second mount).

use anyhow::{Context as _, ensure};
use brickfs_tests::at::At as _;
use brickfs_tests::bricks;
use brickfs_tests::case::{Case, case, say};
use brickfs_tests::cluster::Cluster;
use brickfs_tests::load::{Progress, run_under_faults};
use brickfs_tests::needs::MOUNT;
use rand::Rng as _;
use rand::rngs::StdRng;
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

const WORKERS: usize = 4;
const FILES_EACH: usize = 40;
const RENAMES_EACH: usize = 25_000;
const RENAMES: u64 = (WORKERS * RENAMES_EACH) as u64;
const DIRECTORIES: usize = 5;
const KILLS: u64 = 8;
/// One rename in so many replaces a file, one moves a directory with a file in it.
const REPLACE_EVERY: usize = 10;
const MOVE_DIRECTORY_EVERY: usize = 50;

/// What a watcher may see of one file: its name, and during a rename the next one.
type Watched = Mutex<(PathBuf, Option<PathBuf>)>;

/// The files of one worker: the name of each, below the root, and what is in it.
struct Worker<'a> {
    number: usize,
    root: PathBuf,
    rng: StdRng,
    files: BTreeMap<PathBuf, Vec<u8>>,
    directory: PathBuf,
    watched: &'a Watched,
}

impl Worker<'_> {
    fn new_name(&mut self, what: &str, count: usize) -> PathBuf {
        let directory = self.rng.random_range(0..DIRECTORIES);
        format!("d{directory}/{what}{}-{count}-{:x}", self.number, self.rng.random::<u32>()).into()
    }

    fn content(&mut self, name: &Path) -> Vec<u8> {
        let len = self.rng.random_range(0..3000);
        name.as_os_str().as_encoded_bytes().iter().copied().cycle().take(len).collect()
    }

    fn create(&mut self, name: PathBuf) -> anyhow::Result<()> {
        let content = self.content(&name);
        let path = self.root.join(&name);
        fs::write(&path, &content).at(&path)?;
        self.files.insert(name, content);
        Ok(())
    }

    fn prepare(&mut self) -> anyhow::Result<()> {
        for count in 0..FILES_EACH {
            let name = self.new_name("f", count);
            self.create(name)?;
        }
        self.directory = self.new_name("dir", 0);
        let path = self.root.join(&self.directory);
        fs::create_dir(&path).at(&path)?;
        self.create(self.directory.join("inside"))
    }

    fn rename(&mut self, from: &Path, to: &Path) -> anyhow::Result<()> {
        let (old, new) = (self.root.join(from), self.root.join(to));
        fs::rename(&old, &new).with_context(|| format!("rename to {}", new.display())).at(&old)
    }

    fn move_file(&mut self, count: usize) -> anyhow::Result<()> {
        let pick = self.rng.random_range(0..self.files.len());
        let chosen = self.files.iter().nth(pick).filter(|(name, _)| !name.ends_with("inside"));
        let Some((from, content)) = chosen.map(|(name, content)| (name.clone(), content.clone())) else {
            return self.move_directory(count);
        };
        let to = self.new_name("f", count);
        let replaces = count.is_multiple_of(REPLACE_EVERY);
        if replaces {
            self.create(to.clone())?;
        } else {
            *lock(self.watched) = (from.clone(), Some(to.clone()));
        }
        self.rename(&from, &to)?;
        self.files.remove(&from);
        self.files.insert(to.clone(), content);
        if !replaces {
            *lock(self.watched) = (to, None);
        }
        Ok(())
    }

    fn move_directory(&mut self, count: usize) -> anyhow::Result<()> {
        let (from, to) = (self.directory.clone(), self.new_name("dir", count));
        self.rename(&from, &to)?;
        let inside = self.files.remove(&from.join("inside")).context("the model lost a file")?;
        self.files.insert(to.join("inside"), inside);
        self.directory = to;
        Ok(())
    }

    fn work(mut self, progress: &Progress) -> anyhow::Result<BTreeMap<PathBuf, Vec<u8>>> {
        *lock(self.watched) = (PathBuf::from("d0"), None);
        for count in 0..RENAMES_EACH {
            if count.is_multiple_of(MOVE_DIRECTORY_EVERY) {
                self.move_directory(count)?;
            } else {
                self.move_file(count)?;
            }
            progress.step()?;
        }
        Ok(self.files)
    }
}

fn lock(watched: &Watched) -> std::sync::MutexGuard<'_, (PathBuf, Option<PathBuf>)> {
    watched.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn a_hundred_thousand_renames_across_bricks_survive_sigkill() {
    case(MOUNT, |case| {
        let mut cluster = Cluster::in_memory(case)?;
        let root = cluster.mount().to_owned();
        for number in 0..DIRECTORIES {
            let path = root.join(format!("d{number}"));
            fs::create_dir(&path).at(&path)?;
        }
        let watched: Vec<Watched> = (0..WORKERS).map(|_| Mutex::default()).collect();
        let exact = cluster.second_mount("exact", &["-o", "strict"])?;
        let expected = rename_under_kills(case, &mut cluster, exact.path(), &watched)?;
        check_names(&root, &expected)?;
        cluster.remount()?;
        check_names(&root, &expected)?;
        let seen = bricks::settled(cluster.bricks())?;
        ensure!(seen.file_count() == expected.len(), "{} files, {} names", seen.file_count(), expected.len());
        // Three of four random names are on another brick than their file: else this tested nothing.
        let moved = seen.claims.len() * 100 / expected.len();
        say(&format!("{}: {} names, {moved}% of them away from their file", case.name(), expected.len()));
        ensure!(moved > 30, "only {moved}% of the names are away from their files");
        for number in 0..DIRECTORIES {
            let path = root.join(format!("d{number}"));
            fs::remove_dir_all(&path).at(&path)?;
        }
        exact.unmount()?;
        bricks::emptied(cluster.bricks())
    });
}

/// Gives every file's name and content as the workers know them.
fn rename_under_kills(
    case: &Case,
    cluster: &mut Cluster,
    exact: &Path,
    watched: &[Watched],
) -> anyhow::Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut workers: Vec<Worker> = Vec::new();
    for (number, watched) in watched.iter().enumerate() {
        let (root, rng) = (cluster.mount().to_owned(), case.rng(number as u64));
        let (files, directory) = (BTreeMap::new(), PathBuf::new());
        workers.push(Worker { number, root, rng, files, directory, watched });
    }
    workers.iter_mut().try_for_each(Worker::prepare)?;
    let is_done = std::sync::atomic::AtomicBool::new(false);
    let (files, looks) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(exact, watched, &is_done));
        let work = workers.into_iter().map(|worker| move |progress: &Progress| worker.work(progress)).collect();
        let files = run_under_faults(work, RENAMES, KILLS, |_| {
            cluster.kill_brickd()?;
            cluster.start_brickd()
        });
        is_done.store(true, std::sync::atomic::Ordering::Relaxed);
        (files, watcher.join())
    });
    let looks = looks.map_err(|_| anyhow::anyhow!("the watcher panicked"))??;
    say(&format!("{}: a watcher looked {looks} times during renames", case.name()));
    Ok(files?.into_iter().flatten().collect())
}

/// Looks at both names of renames that are under way: new, old, new. If the new name was there first, the old must be
/// gone; if the old one is gone, the new must be there.
fn watch(root: &Path, watched: &[Watched], is_done: &std::sync::atomic::AtomicBool) -> anyhow::Result<u64> {
    let mut looks = 0;
    while !is_done.load(std::sync::atomic::Ordering::Relaxed) {
        for one in watched {
            let names = lock(one).clone();
            let (old, Some(new)) = &names else { continue };
            let (old, new) = (root.join(old), root.join(new));
            let (first, between, last) = (exists(&new)?, exists(&old)?, exists(&new)?);
            if *lock(one) == names {
                looks += 1;
                ensure!(!(first && between), "N1: {} and {} are both there", old.display(), new.display());
                ensure!(between || last, "N1: neither {} nor {} is there", old.display(), new.display());
            }
        }
    }
    Ok(looks)
}

fn exists(path: &Path) -> anyhow::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).at(path),
    }
}

/// The mount has exactly these files, with this content.
fn check_names(root: &Path, expected: &BTreeMap<PathBuf, Vec<u8>>) -> anyhow::Result<()> {
    let mut listed = BTreeMap::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(directory) = waiting.pop() {
        let path = root.join(&directory);
        for entry in fs::read_dir(&path).at(&path)? {
            let entry = entry.at(&path)?;
            let name = directory.join(entry.file_name());
            if entry.file_type().at(&path)?.is_dir() {
                waiting.push(name);
            } else {
                let content = fs::read(entry.path()).at(entry.path())?;
                ensure!(listed.insert(name, content).is_none(), "{} is listed twice", entry.path().display());
            }
        }
    }
    for (name, content) in expected {
        let there = listed.remove(name).with_context(|| format!("{} is missing", name.display()))?;
        ensure!(there == *content, "{} has {} bytes of something else", name.display(), there.len());
    }
    ensure!(listed.is_empty(), "names that should be gone: {:?}", listed.keys());
    Ok(())
}
