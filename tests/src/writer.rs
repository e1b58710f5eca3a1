//! An application that makes every kind of change below a directory of its own and knows what must be there: contents,
//! names, links, open files without a name. Any error it gets is an error of the file system.

use crate::at::At as _;
use anyhow::{Context as _, ensure};
use rand::Rng as _;
use rand::rngs::StdRng;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

const FILES_MAX: usize = 60;
const DIRECTORIES_MAX: usize = 12;
const HELD_MAX: usize = 8;
const WRITE_MAX_BYTES: usize = 20_000;
const FILE_MAX_BYTES: usize = 200_000;

/// The number of a file in the model, whatever its names.
type FileId = u64;

/// The application.
pub struct Writer {
    root: PathBuf,
    rng: StdRng,
    contents: BTreeMap<FileId, Vec<u8>>,
    names: BTreeMap<PathBuf, FileId>,
    directories: BTreeSet<PathBuf>,
    /// Open files; some have no name any more.
    held: Vec<(File, FileId)>,
    count: u64,
}

/// One kind of change.
type Step = fn(&mut Writer) -> anyhow::Result<()>;

/// Each with how often it is chosen.
const STEPS: &[(u32, Step)] = &[
    (6, Writer::create),
    (4, Writer::overwrite),
    (6, Writer::append),
    (2, Writer::truncate),
    (6, Writer::rename),
    (2, Writer::replace),
    (3, Writer::link),
    (4, Writer::unlink),
    (3, Writer::make_directory),
    (2, Writer::remove_directory),
    (1, Writer::move_directory),
    (2, Writer::hold),
    (3, Writer::write_held),
    (1, Writer::drop_held),
    (3, Writer::check_one),
];

impl Writer {
    /// An application below `root`, which it makes.
    pub fn new(root: &Path, rng: StdRng) -> anyhow::Result<Writer> {
        fs::create_dir(root).at(root)?;
        Ok(Writer {
            root: root.to_owned(),
            rng,
            contents: BTreeMap::new(),
            names: BTreeMap::new(),
            directories: BTreeSet::from([PathBuf::new()]),
            held: Vec::new(),
            count: 0,
        })
    }

    /// Makes one change, chosen at random.
    pub fn step(&mut self) -> anyhow::Result<()> {
        self.count += 1;
        let mut pick = self.rng.random_range(0..STEPS.iter().map(|(weight, _)| weight).sum());
        for (weight, step) in STEPS {
            if pick < *weight {
                return step(self);
            }
            pick -= weight;
        }
        Ok(())
    }

    fn path(&self, name: &Path) -> PathBuf {
        self.root.join(name)
    }

    fn new_name(&mut self, what: &str) -> PathBuf {
        let pick = self.rng.random_range(0..self.directories.len());
        let directory = self.directories.iter().nth(pick).cloned().unwrap_or_default();
        directory.join(format!("{what}{}-{:x}", self.count, self.rng.random::<u16>()))
    }

    fn any_name(&mut self) -> Option<(PathBuf, FileId)> {
        let pick = self.rng.random_range(0..self.names.len().max(1));
        self.names.iter().nth(pick).map(|(name, id)| (name.clone(), *id))
    }

    fn bytes(&mut self) -> Vec<u8> {
        let (len, first) = (self.rng.random_range(1..WRITE_MAX_BYTES), self.rng.random::<u8>());
        (0..len).map(|i| first.wrapping_add((i % 251) as u8)).collect()
    }

    fn create(&mut self) -> anyhow::Result<()> {
        if self.names.len() >= FILES_MAX {
            return self.unlink();
        }
        let (name, bytes) = (self.new_name("f"), self.bytes());
        let path = self.path(&name);
        let file = File::options().write(true).create_new(true).mode(0o640).open(&path).at(&path)?;
        file.write_all_at(&bytes, 0).at(&path)?;
        if self.rng.random_ratio(1, 4) {
            file.sync_all().at(&path)?;
        }
        self.contents.insert(self.count, bytes);
        self.names.insert(name, self.count);
        Ok(())
    }

    fn content(&mut self, id: FileId) -> anyhow::Result<&mut Vec<u8>> {
        self.contents.get_mut(&id).context("the model has lost a file")
    }

    /// Writes somewhere into a file, in the file system and in the model; may leave a hole.
    fn write_at(&mut self, file: &File, path: &Path, id: FileId) -> anyhow::Result<()> {
        let bytes = self.bytes();
        let end = self.content(id)?.len().min(FILE_MAX_BYTES) + 5000;
        let offset = self.rng.random_range(0..end);
        file.write_all_at(&bytes, offset as u64).at(path)?;
        let content = self.content(id)?;
        let len = content.len().max(offset + bytes.len());
        content.resize(len, 0);
        content[offset..offset + bytes.len()].copy_from_slice(&bytes);
        Ok(())
    }

    fn overwrite(&mut self) -> anyhow::Result<()> {
        let Some((name, id)) = self.any_name() else { return self.create() };
        let path = self.path(&name);
        let file = File::options().write(true).open(&path).at(&path)?;
        self.write_at(&file, &path, id)
    }

    fn append(&mut self) -> anyhow::Result<()> {
        let Some((name, id)) = self.any_name() else { return self.create() };
        let (path, bytes) = (self.path(&name), self.bytes());
        let mut file = File::options().append(true).open(&path).at(&path)?;
        std::io::Write::write_all(&mut file, &bytes).at(&path)?;
        self.content(id)?.extend(&bytes);
        Ok(())
    }

    fn truncate(&mut self) -> anyhow::Result<()> {
        let Some((name, id)) = self.any_name() else { return self.create() };
        let (path, len) = (self.path(&name), self.rng.random_range(0..WRITE_MAX_BYTES));
        File::options().write(true).open(&path).and_then(|file| file.set_len(len as u64)).at(&path)?;
        self.content(id)?.resize(len, 0);
        Ok(())
    }

    fn rename(&mut self) -> anyhow::Result<()> {
        let Some((from, id)) = self.any_name() else { return self.create() };
        let to = self.new_name("r");
        let (old, new) = (self.path(&from), self.path(&to));
        fs::rename(&old, &new).with_context(|| format!("rename to {}", new.display())).at(old)?;
        self.names.remove(&from);
        self.names.insert(to, id);
        Ok(())
    }

    fn replace(&mut self) -> anyhow::Result<()> {
        let (Some((from, id)), Some((to, replaced))) = (self.any_name(), self.any_name()) else { return self.create() };
        let (old, new) = (self.path(&from), self.path(&to));
        fs::rename(&old, &new).with_context(|| format!("rename over {}", new.display())).at(old)?;
        // Two names of one file: rename does nothing.
        if id != replaced {
            self.names.remove(&from);
            self.names.insert(to, id);
            self.forget_if_gone(replaced);
        }
        Ok(())
    }

    fn link(&mut self) -> anyhow::Result<()> {
        let Some((from, id)) = self.any_name() else { return self.create() };
        let to = self.new_name("l");
        let (old, new) = (self.path(&from), self.path(&to));
        fs::hard_link(&old, &new).with_context(|| format!("link to {}", new.display())).at(old)?;
        self.names.insert(to, id);
        Ok(())
    }

    fn unlink(&mut self) -> anyhow::Result<()> {
        let Some((name, id)) = self.any_name() else { return self.create() };
        fs::remove_file(self.path(&name)).at(self.path(&name))?;
        self.names.remove(&name);
        self.forget_if_gone(id);
        Ok(())
    }

    fn forget_if_gone(&mut self, id: FileId) {
        let is_held = self.held.iter().any(|(_, held)| *held == id);
        if !is_held && self.names.values().all(|named| *named != id) {
            self.contents.remove(&id);
        }
    }

    fn make_directory(&mut self) -> anyhow::Result<()> {
        if self.directories.len() >= DIRECTORIES_MAX {
            return self.remove_directory();
        }
        let name = self.new_name("d");
        fs::create_dir(self.path(&name)).at(self.path(&name))?;
        self.directories.insert(name);
        Ok(())
    }

    /// A directory other than the root, with nothing in it if `is_empty`.
    fn any_directory(&mut self, is_empty: bool) -> Option<PathBuf> {
        let all = self.names.keys().chain(&self.directories);
        let parents: BTreeSet<&Path> = all.filter_map(|name| name.parent()).collect();
        let is_parent = |name: &Path| is_empty && parents.contains(name);
        let able = |name: &&PathBuf| !name.as_os_str().is_empty() && !is_parent(name);
        let able: Vec<PathBuf> = self.directories.iter().filter(able).cloned().collect();
        let pick = self.rng.random_range(0..able.len().max(1));
        able.into_iter().nth(pick)
    }

    fn remove_directory(&mut self) -> anyhow::Result<()> {
        let Some(name) = self.any_directory(true) else { return Ok(()) };
        fs::remove_dir(self.path(&name)).at(self.path(&name))?;
        self.directories.remove(&name);
        Ok(())
    }

    fn move_directory(&mut self) -> anyhow::Result<()> {
        let Some(from) = self.any_directory(false) else { return self.make_directory() };
        let to = self.new_name("m");
        if to.starts_with(&from) {
            return Ok(());
        }
        let (old, new) = (self.path(&from), self.path(&to));
        fs::rename(&old, &new).with_context(|| format!("rename to {}", new.display())).at(old)?;
        let moved = |name: PathBuf| match name.strip_prefix(&from) {
            Ok(rest) if rest.as_os_str().is_empty() => to.clone(),
            Ok(rest) => to.join(rest),
            Err(_) => name,
        };
        self.directories = std::mem::take(&mut self.directories).into_iter().map(moved).collect();
        self.names = std::mem::take(&mut self.names).into_iter().map(|(name, id)| (moved(name), id)).collect();
        Ok(())
    }

    /// Opens a file and keeps it open; every second time its name goes.
    fn hold(&mut self) -> anyhow::Result<()> {
        let Some((name, id)) = self.any_name() else { return self.create() };
        if self.held.len() >= HELD_MAX {
            return self.drop_held();
        }
        let path = self.path(&name);
        self.held.push((File::options().read(true).write(true).open(&path).at(&path)?, id));
        if self.rng.random() {
            fs::remove_file(&path).at(&path)?;
            self.names.remove(&name);
        }
        Ok(())
    }

    fn write_held(&mut self) -> anyhow::Result<()> {
        let pick = self.rng.random_range(0..self.held.len().max(1));
        let Some((file, id)) = self.held.get(pick) else { return self.hold() };
        let (file, id) = (file.try_clone()?, *id);
        self.write_at(&file, Path::new("an open file"), id)?;
        self.check_held(&file, id)
    }

    fn check_held(&self, file: &File, id: FileId) -> anyhow::Result<()> {
        let expected = self.contents.get(&id).context("the model has lost a file")?;
        let links = self.names.values().filter(|named| **named == id).count() as u64;
        let meta = file.metadata().at("an open file")?;
        ensure!(meta.nlink() == links, "an open file has {} links, not {links}", meta.nlink());
        ensure!(meta.len() == expected.len() as u64, "an open file has {} bytes, not {}", meta.len(), expected.len());
        let mut content = vec![0; expected.len()];
        file.read_exact_at(&mut content, 0).at("an open file")?;
        ensure!(first_difference(&content, expected).is_none(), "an open file differs from what was written");
        Ok(())
    }

    fn drop_held(&mut self) -> anyhow::Result<()> {
        if let Some((_, id)) = self.held.pop() {
            self.forget_if_gone(id);
        }
        Ok(())
    }

    fn check_one(&mut self) -> anyhow::Result<()> {
        let Some((name, id)) = self.any_name() else { return self.create() };
        self.check_file(&self.path(&name), id)
    }

    fn check_file(&self, path: &Path, id: FileId) -> anyhow::Result<()> {
        let expected = self.contents.get(&id).context("the model has lost a file")?;
        let links = self.names.values().filter(|named| **named == id).count() as u64;
        let (content, meta) = (fs::read(path).at(path)?, fs::symlink_metadata(path).at(path)?);
        ensure!(meta.nlink() == links, "{} has {} links, not {links}", path.display(), meta.nlink());
        ensure!(
            content.len() == expected.len(),
            "{} has {} bytes, not {}",
            path.display(),
            content.len(),
            expected.len()
        );
        let difference = first_difference(&content, expected);
        ensure!(difference.is_none(), "{} differs at byte {difference:?} of {}", path.display(), content.len());
        Ok(())
    }

    /// Checks everything: the tree seen below `root`, which may be another mount, and the files that are open.
    pub fn check_all(&self, root: &Path) -> anyhow::Result<()> {
        let (mut names, mut directories) = (BTreeSet::new(), BTreeSet::new());
        let mut waiting = vec![PathBuf::new()];
        while let Some(directory) = waiting.pop() {
            let path = root.join(&directory);
            for entry in fs::read_dir(&path).at(&path)? {
                let entry = entry.at(&path)?;
                let name = directory.join(entry.file_name());
                if entry.file_type().at(&path)?.is_dir() {
                    waiting.push(name);
                } else {
                    ensure!(names.insert(name), "{} is listed twice", entry.path().display());
                }
            }
            ensure!(directories.insert(directory), "{} is listed twice", path.display());
        }
        let expected: BTreeSet<PathBuf> = self.names.keys().cloned().collect();
        let (more, less): (Vec<_>, Vec<_>) =
            (names.difference(&expected).collect(), expected.difference(&names).collect());
        ensure!(more.is_empty() && less.is_empty(), "{}: not expected: {more:?}; missing: {less:?}", root.display());
        ensure!(directories == self.directories, "{}: directories {directories:?}", root.display());
        self.names.iter().try_for_each(|(name, id)| self.check_file(&root.join(name), *id))?;
        self.held.iter().try_for_each(|(file, id)| self.check_held(file, *id))
    }

    /// Closes what is open.
    pub fn close(&mut self) {
        self.held.clear();
    }
}

fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    a.iter().zip(b).position(|(a, b)| a != b)
}
