//! What lies on the bricks of a volume, seen from outside: the ordinary files, and what `.brickfs` keeps beside them.

use crate::at::At as _;
use crate::eventually::eventually_ok;
use anyhow::ensure;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The directory of BrickFS at a brick's root.
pub const DOT_DIR: &str = ".brickfs";
/// What stays in it for good. Everything else there is work that is not finished.
const LASTING: [&str; 6] = ["format", "log", "handles", "claims", "clients", "mounted"];
const SETTLE_TIMEOUT: Duration = Duration::from_secs(30);
const SHOWN: usize = 10;

/// The bricks of a volume at one moment.
#[derive(Debug, Default)]
pub struct Bricks {
    /// Each path that is not a directory, with the bricks that have it.
    pub files: BTreeMap<PathBuf, Vec<usize>>,
    /// Each directory, with the bricks that have it.
    pub directories: BTreeMap<PathBuf, Vec<usize>>,
    /// Names whose file lies on another brick: (brick, claim's path below `claims`).
    pub claims: Vec<(usize, PathBuf)>,
    /// Gfids that have a handle.
    pub handles: BTreeSet<String>,
    /// Anything else that lies below `.brickfs`: orphans, temporary files, transactions.
    pub unfinished: Vec<PathBuf>,
    /// Files with a handle and no name beside it.
    pub nameless: Vec<PathBuf>,
}

impl Bricks {
    /// Looks at the bricks. What moves meanwhile may be missed.
    pub fn look(bricks: &[PathBuf]) -> anyhow::Result<Bricks> {
        let mut seen = Bricks::default();
        for (index, brick) in bricks.iter().enumerate() {
            for (path, is_dir) in walk(brick, |path| path == Path::new(DOT_DIR))? {
                let paths = if is_dir { &mut seen.directories } else { &mut seen.files };
                paths.entry(path).or_default().push(index);
            }
            seen.look_inside(index, &brick.join(DOT_DIR))?;
        }
        Ok(seen)
    }

    fn look_inside(&mut self, index: usize, dot: &Path) -> anyhow::Result<()> {
        for (path, is_dir) in walk(dot, |path| path == Path::new("log"))? {
            let mut parts = path.iter();
            let place = parts.next().unwrap_or_default();
            if is_dir || place == "format" {
                continue;
            }
            if place == "claims" {
                self.claims.push((index, parts.collect()));
            } else if place == "handles" {
                let meta = fs::symlink_metadata(dot.join(&path)).at(&path)?;
                if meta.is_file() && meta.nlink() < 2 {
                    self.nameless.push(dot.join(&path));
                }
                let gfid = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                self.handles.insert(gfid);
            } else if LASTING.iter().all(|name| place != *name) {
                self.unfinished.push(dot.join(&path));
            }
        }
        Ok(())
    }

    /// How many files are there, each counted once.
    pub fn file_count(&self) -> usize {
        self.files.values().map(Vec::len).sum()
    }

    /// Nothing is pending, no file without a name is kept, and each name is on one brick only.
    pub fn check_settled(&self) -> anyhow::Result<()> {
        let shown = |paths: &[PathBuf]| format!("{:#?}", &paths[..paths.len().min(SHOWN)]);
        ensure!(self.unfinished.is_empty(), "{} unfinished: {}", self.unfinished.len(), shown(&self.unfinished));
        ensure!(self.nameless.is_empty(), "{} without a name: {}", self.nameless.len(), shown(&self.nameless));
        let twice: Vec<_> = self.files.iter().filter(|(_, bricks)| bricks.len() > 1).take(SHOWN).collect();
        ensure!(twice.is_empty(), "names on more than one brick: {twice:#?}");
        Ok(())
    }

    /// The volume is as empty as a new one.
    pub fn check_empty(&self) -> anyhow::Result<()> {
        self.check_settled()?;
        ensure!(self.files.is_empty() && self.directories.is_empty(), "left on the bricks: {:#?}", self.directories);
        ensure!(self.claims.is_empty(), "claims are left: {:#?}", &self.claims[..self.claims.len().min(SHOWN)]);
        Ok(())
    }
}

/// Waits until the bricks are settled and gives what lies there then.
pub fn settled(bricks: &[PathBuf]) -> anyhow::Result<Bricks> {
    eventually_ok("nothing is pending on the bricks", SETTLE_TIMEOUT, || {
        let seen = Bricks::look(bricks)?;
        seen.check_settled().map(|()| seen)
    })
}

/// Waits until the bricks are as empty as new ones.
pub fn emptied(bricks: &[PathBuf]) -> anyhow::Result<()> {
    eventually_ok("the bricks are empty", SETTLE_TIMEOUT, || Bricks::look(bricks)?.check_empty())
}

/// Every path below `root`, relative, with whether it is a directory; `skips` says what not to enter or give.
fn walk(root: &Path, skips: impl Fn(&Path) -> bool) -> anyhow::Result<Vec<(PathBuf, bool)>> {
    let (mut found, mut waiting) = (Vec::new(), vec![PathBuf::new()]);
    while let Some(directory) = waiting.pop() {
        let path = root.join(&directory);
        for entry in fs::read_dir(&path).at(&path)? {
            let entry = entry.at(&path)?;
            let name = directory.join(entry.file_name());
            if skips(&name) {
                continue;
            }
            let is_dir = entry.file_type().at(&path)?.is_dir();
            if is_dir {
                waiting.push(name.clone());
            }
            found.push((name, is_dir));
        }
    }
    Ok(found)
}
