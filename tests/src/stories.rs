//! Short stories of what applications do with fsync, and what each may find after the power went: what was synced is
//! there, what was not is as it was or as it was to become, and nothing is neither (N1-N3, PROTOCOL 8 and 35).

use crate::at::At as _;
use anyhow::{Context as _, bail, ensure};
use rand::Rng as _;
use rand::rngs::StdRng;
use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// What happens in a story, in steps. A step that returned is done; the next one may be half done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Write a file; sync it.
    Create,
    /// Write and sync a file; rename it; sync it.
    Rename,
    /// Write and sync a target and a new file; rename over; sync.
    Replace,
    /// Write and sync a file; link it; sync it.
    Link,
    /// Make directories below each other; write and sync a file in the last.
    DeepFile,
    /// Make directories below each other; sync the last.
    DeepDirectory,
    /// Write and sync a file; unlink it; sync its directory.
    Unlink,
    /// Write and sync a file; append; sync.
    Append,
    /// Write a file with O_SYNC; write more with O_DSYNC; reserve room behind it with O_DSYNC.
    SyncedWrites,
    /// Write and sync a file; shorten it; sync.
    Truncate,
    /// Write and sync a file; change mode, owner and an xattr; sync.
    Attributes,
    /// Make a symbolic link; sync its directory.
    Symlink,
    /// Make a directory with a synced file; rename it; sync it.
    MoveDirectory,
    /// Make, rename and remove files, syncing nothing.
    Unsynced,
}

/// Bytes that are reserved behind what was written.
const RESERVED_BYTES: usize = 10_000;

const KINDS: [Kind; 14] = [
    Kind::Create,
    Kind::Rename,
    Kind::Replace,
    Kind::Link,
    Kind::DeepFile,
    Kind::DeepDirectory,
    Kind::Unlink,
    Kind::Append,
    Kind::SyncedWrites,
    Kind::Truncate,
    Kind::Attributes,
    Kind::Symlink,
    Kind::MoveDirectory,
    Kind::Unsynced,
];

/// One story in a directory of its own teller.
#[derive(Debug)]
pub struct Story {
    kind: Kind,
    name: String,
    /// The content of its files: the first, and what comes after.
    contents: [Vec<u8>; 2],
    steps_done: usize,
}

/// What is found under a name.
#[derive(PartialEq, Eq, Debug)]
enum Found {
    Nothing,
    Content(Vec<u8>),
}

impl Story {
    /// A story with a name that no other of the same teller has.
    pub fn invent(rng: &mut StdRng, number: usize) -> Story {
        let kind = KINDS[rng.random_range(0..KINDS.len())];
        let mut content = |first: u8| -> Vec<u8> {
            let length = rng.random_range(1..20_000);
            (0..length).map(|i| (i % 250) as u8 + 1).map(|byte| byte.wrapping_add(first).max(1)).collect()
        };
        let contents = [content(0), content(100)];
        Story { kind, name: format!("s{number}"), contents, steps_done: 0 }
    }

    /// Tells it in `root` to its end or to the first error, which is given: then the power went. `at_step` may end it
    /// with an error of its own.
    pub fn tell(&mut self, root: &Path, mut at_step: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
        while self.step(root)? {
            self.steps_done += 1;
            at_step()?;
        }
        Ok(())
    }

    fn path(&self, root: &Path, what: &str) -> PathBuf {
        root.join(format!("{}-{what}", self.name))
    }

    /// Small enough for any file system.
    fn xattr(&self) -> &[u8] {
        &self.contents[1][..self.contents[1].len().min(200)]
    }

    /// The next step; false if there is none.
    fn step(&self, root: &Path) -> anyhow::Result<bool> {
        let (a, b) = (self.path(root, "a"), self.path(root, "b"));
        let [first, second] = &self.contents;
        match (self.kind, self.steps_done) {
            (Kind::Create | Kind::Unsynced, 0) => fs::write(&a, first).at(&a)?,
            (Kind::Create, 1) => sync(&a)?,
            (Kind::DeepFile | Kind::DeepDirectory, 0) => {
                // One by one: when the mount is gone this must not make the directories below its point.
                for path in [a.clone(), a.join("x"), a.join("x/y"), a.join("x/y/z")] {
                    fs::create_dir(&path).at(&path)?;
                }
            }
            (Kind::DeepFile, 1) => write_synced(&a.join("x/y/z/file"), first)?,
            (Kind::DeepDirectory, 1) => sync(&a.join("x/y/z"))?,
            (Kind::Symlink, 0) => std::os::unix::fs::symlink("target", &a).at(&a)?,
            (Kind::Symlink, 1) | (Kind::Unlink, 2) => sync(root)?,
            (Kind::MoveDirectory, 0) => {
                fs::create_dir(&a).at(&a)?;
                write_synced(&a.join("file"), first)?;
            }
            (Kind::SyncedWrites, 0) => {
                let file = File::options().write(true).create_new(true).custom_flags(libc::O_SYNC).open(&a);
                file.and_then(|file| file.write_all_at(first, 0)).at(&a)?;
            }
            (Kind::SyncedWrites, 1) => {
                let file = File::options().write(true).custom_flags(libc::O_DSYNC).open(&a);
                file.and_then(|file| file.write_all_at(second, first.len() as u64)).at(&a)?;
            }
            (Kind::SyncedWrites, 2) => {
                let file = File::options().write(true).custom_flags(libc::O_DSYNC).open(&a).at(&a)?;
                let (end, none) = ((first.len() + second.len()) as u64, rustix::fs::FallocateFlags::empty());
                rustix::fs::fallocate(&file, none, end, RESERVED_BYTES as u64).at(&a)?;
            }
            (_, 0) => write_synced(&a, first)?,
            (Kind::Replace, 1) => write_synced(&b, second)?,
            (Kind::Replace, 2) => fs::rename(&b, &a).at(&b)?,
            (Kind::Replace, 3) => sync(&a)?,
            (Kind::Rename | Kind::MoveDirectory | Kind::Unsynced, 1) => fs::rename(&a, &b).at(&a)?,
            (Kind::Rename | Kind::MoveDirectory, 2) => sync(&b)?,
            (Kind::Link, 1) => fs::hard_link(&a, &b).at(&a)?,
            (Kind::Unlink, 1) => fs::remove_file(&a).at(&a)?,
            (Kind::Unsynced, 2) => fs::hard_link(&b, &a).at(&b)?,
            (Kind::Unsynced, 3) => fs::remove_file(&b).at(&b)?,
            (Kind::Append, 1) => {
                let file = File::options().append(true).open(&a);
                file.and_then(|mut file| file.write_all(second)).at(&a)?;
            }
            (Kind::Truncate, 1) => {
                let file = File::options().write(true).open(&a);
                file.and_then(|file| file.set_len(first.len() as u64 / 2)).at(&a)?;
            }
            (Kind::Attributes, 1) => {
                fs::set_permissions(&a, fs::Permissions::from_mode(0o4711)).at(&a)?;
                std::os::unix::fs::chown(&a, Some(1), Some(2)).at(&a)?;
                rustix::fs::setxattr(&a, "trusted.story", self.xattr(), rustix::fs::XattrFlags::empty()).at(&a)?;
            }
            (Kind::Link | Kind::Append | Kind::Truncate | Kind::Attributes, 2) => sync(&a)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// What must be there now.
    pub fn check(&self, root: &Path) -> anyhow::Result<()> {
        self.check_kind(root).with_context(|| format!("{:?} '{}' at step {}", self.kind, self.name, self.steps_done))
    }

    fn check_kind(&self, root: &Path) -> anyhow::Result<()> {
        let (a, b) = (self.path(root, "a"), self.path(root, "b"));
        let [first, second] = &self.contents;
        match self.kind {
            Kind::Create => self.check_file(&a, 2),
            Kind::Rename => self.check_one_of(&a, &b),
            Kind::MoveDirectory => self.check_one_of(&a.join("file"), &b.join("file")),
            Kind::Replace => self.check_replaced(&a, &b),
            Kind::Link => self.check_links(&a, &b),
            Kind::DeepFile => self.check_file(&a.join("x/y/z/file"), 2),
            Kind::DeepDirectory => {
                ensure!(self.steps_done < 2 || a.join("x/y/z").is_dir(), "the synced directory is missing");
                Ok(())
            }
            Kind::Unlink => match (look(&a)?, self.steps_done) {
                (Found::Nothing, 0..) => Ok(()),
                (Found::Content(found), 0) => check_prefix(&found, first),
                (Found::Content(found), 1..=2) if found == *first => Ok(()),
                (found, _) => bail!("after the unlink: {}", shown(&found)),
            },
            Kind::Append => match (look(&a)?, self.steps_done) {
                (found, 0) => check_unsynced(&found, first),
                (Found::Content(found), done) => {
                    ensure!(found.starts_with(first), "what was synced is changed");
                    ensure!(done < 3 || found.len() == first.len() + second.len(), "the synced append is not whole");
                    check_prefix(&found[first.len()..], second)
                }
                (Found::Nothing, _) => bail!("the file is missing"),
            },
            Kind::SyncedWrites => self.check_synced_writes(&a),
            Kind::Truncate => match (look(&a)?, self.steps_done) {
                (found, 0) => check_unsynced(&found, first),
                (Found::Content(found), 1..=2) if found == *first => Ok(()),
                (Found::Content(found), _) if found == first[..first.len() / 2] => Ok(()),
                (found, _) => bail!("after the truncate: {}", shown(&found)),
            },
            Kind::Attributes => self.check_attributes(&a),
            Kind::Symlink => {
                let found = fs::read_link(&a).ok();
                let is_right =
                    found.as_deref() == Some(Path::new("target")) || (found.is_none() && self.steps_done < 2);
                ensure!(is_right, "the link is {found:?}");
                Ok(())
            }
            Kind::Unsynced => [&a, &b].into_iter().try_for_each(|path| check_unsynced(&look(path)?, first)),
        }
    }

    /// A file that is synced by step `synced`; one not yet synced may be missing or short.
    fn check_file(&self, path: &Path, synced: usize) -> anyhow::Result<()> {
        let found = look(path)?;
        if self.steps_done >= synced {
            ensure!(found == Found::Content(self.contents[0].clone()), "the synced file: {}", shown(&found));
        }
        check_unsynced(&found, &self.contents[0])
    }

    fn check_synced_writes(&self, path: &Path) -> anyhow::Result<()> {
        let whole = [&self.contents[0][..], &self.contents[1][..], &[0; RESERVED_BYTES][..]].concat();
        let ends = [0, self.contents[0].len(), self.contents[0].len() + self.contents[1].len(), whole.len()];
        let synced = ends[self.steps_done.min(3)];
        match look(path)? {
            Found::Content(found) => {
                ensure!(found.len() >= synced, "{} bytes, {synced} were written synced", found.len());
                ensure!(found[..synced] == whole[..synced], "what was written synced is changed");
                check_prefix(&found, &whole)
            }
            Found::Nothing => {
                ensure!(synced == 0, "the file that was written synced is missing");
                Ok(())
            }
        }
    }

    /// A synced file under exactly one of two names, the new one if that is synced.
    fn check_one_of(&self, old: &Path, new: &Path) -> anyhow::Result<()> {
        let (at_old, at_new) = (look(old)?, look(new)?);
        let whole = Found::Content(self.contents[0].clone());
        match self.steps_done {
            0 => check_unsynced(&at_old, &self.contents[0]),
            1..=2 => {
                let is_one =
                    (at_old == whole && at_new == Found::Nothing) || (at_old == Found::Nothing && at_new == whole);
                ensure!(is_one, "N1: the old name: {}; the new one: {}", shown(&at_old), shown(&at_new));
                Ok(())
            }
            _ => {
                let is_new = at_old == Found::Nothing && at_new == whole;
                ensure!(is_new, "the synced rename: the old name: {}; the new one: {}", shown(&at_old), shown(&at_new));
                Ok(())
            }
        }
    }

    /// N2: the replaced name is never missing.
    fn check_replaced(&self, target: &Path, new: &Path) -> anyhow::Result<()> {
        let (at_target, at_new) = (look(target)?, look(new)?);
        let [first, second] = &self.contents;
        let (is_old, is_new) =
            (at_target == Found::Content(first.clone()), at_target == Found::Content(second.clone()));
        match self.steps_done {
            0 => check_unsynced(&at_target, first),
            1 => {
                ensure!(is_old, "the synced target: {}", shown(&at_target));
                check_unsynced(&at_new, second)
            }
            2..=3 => {
                let is_before = is_old && at_new == Found::Content(second.clone());
                let is_after = is_new && at_new == Found::Nothing;
                ensure!(is_before || is_after, "the target: {}; the new: {}", shown(&at_target), shown(&at_new));
                Ok(())
            }
            _ => {
                ensure!(is_new && at_new == Found::Nothing, "synced: {}; {}", shown(&at_target), shown(&at_new));
                Ok(())
            }
        }
    }

    fn check_links(&self, a: &Path, b: &Path) -> anyhow::Result<()> {
        let (at_a, at_b) = (look(a)?, look(b)?);
        let whole = Found::Content(self.contents[0].clone());
        if self.steps_done == 0 {
            return check_unsynced(&at_a, &self.contents[0]);
        }
        ensure!(at_a == whole, "the synced file: {}", shown(&at_a));
        let has_link = at_b != Found::Nothing;
        ensure!(has_link || self.steps_done < 3, "the synced link is missing");
        ensure!(!has_link || at_b == whole, "the link: {}", shown(&at_b));
        let meta = fs::symlink_metadata(a).at(a)?;
        ensure!(meta.nlink() == 1 + u64::from(has_link), "{} links, has a second name: {has_link}", meta.nlink());
        ensure!(!has_link || fs::symlink_metadata(b).at(b)?.ino() == meta.ino(), "the link is another file");
        Ok(())
    }

    fn check_attributes(&self, path: &Path) -> anyhow::Result<()> {
        self.check_file(path, 1)?;
        if self.steps_done < 3 {
            return Ok(());
        }
        let meta = fs::symlink_metadata(path).at(path)?;
        let owner = (meta.uid(), meta.gid());
        // chown took the set-user-id bit away.
        ensure!(meta.mode() & 0o7777 == 0o711 && owner == (1, 2), "synced: {:o} {owner:?}", meta.mode());
        let xattrs = crate::tree::xattrs_of(path)?;
        ensure!(
            xattrs.get("trusted.story").map(Vec::as_slice) == Some(self.xattr()),
            "the synced xattr: {:?}",
            xattrs.keys()
        );
        Ok(())
    }
}

fn sync(path: &Path) -> anyhow::Result<()> {
    File::open(path).and_then(|file| file.sync_all()).at(path)
}

fn write_synced(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let file = File::create_new(path);
    file.and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all())).at(path)
}

/// A file, or nothing; anything else, such as EIO, is an error.
fn look(path: &Path) -> anyhow::Result<Found> {
    match fs::read(path) {
        Ok(content) => Ok(Found::Content(content)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Found::Nothing),
        Err(error) => Err(error).at(path),
    }
}

/// What was never synced: nothing, or a beginning of it, with blocks that are not written yet as zeros.
fn check_unsynced(found: &Found, expected: &[u8]) -> anyhow::Result<()> {
    match found {
        Found::Nothing => Ok(()),
        Found::Content(content) => check_prefix(content, expected),
    }
}

fn check_prefix(found: &[u8], expected: &[u8]) -> anyhow::Result<()> {
    ensure!(found.len() <= expected.len(), "{} bytes of {}", found.len(), expected.len());
    let wrong = found.iter().zip(expected).position(|(found, expected)| found != expected && *found != 0);
    ensure!(wrong.is_none(), "byte {wrong:?} was never written");
    Ok(())
}

fn shown(found: &Found) -> String {
    match found {
        Found::Nothing => "nothing".to_owned(),
        Found::Content(content) => format!("{} bytes, first {:?}", content.len(), content.first()),
    }
}

/// Everything that is listed can be looked at and read; gives how many names there are.
pub fn check_readable(root: &Path) -> anyhow::Result<usize> {
    let (mut count, mut waiting) = (0, vec![root.to_owned()]);
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory).at(&directory)? {
            let path = entry.at(&directory)?.path();
            let kind = fs::symlink_metadata(&path).at(&path)?.file_type();
            count += 1;
            if kind.is_dir() {
                waiting.push(path);
            } else if kind.is_file() {
                fs::read(&path).at(&path)?;
            } else {
                fs::read_link(&path).at(&path)?;
            }
        }
    }
    Ok(count)
}
