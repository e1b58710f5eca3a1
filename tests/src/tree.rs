//! What a directory tree holds, for comparing two of them: types, modes, owners, sizes, times, links, contents, xattrs.

use crate::at::At as _;
use anyhow::ensure;
use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::Read as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

const DIFFERENCES_SHOWN: usize = 20;

/// What is compared beyond types, modes, owners, sizes, link targets and contents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Detail {
    /// Nothing more.
    Contents,
    /// Modification times too.
    Times,
    /// Modification times, link counts and extended attributes too.
    Everything,
}

/// A tree: each path below its root with a line that says all about it.
#[derive(PartialEq, Eq, Debug)]
pub struct Tree(pub BTreeMap<PathBuf, String>);

impl Tree {
    /// Reads the tree below `root`, the root itself apart.
    pub fn of(root: &Path, detail: Detail) -> anyhow::Result<Tree> {
        let mut tree = BTreeMap::new();
        let mut waiting = vec![PathBuf::new()];
        while let Some(directory) = waiting.pop() {
            let path = root.join(&directory);
            for entry in fs::read_dir(&path).at(&path)? {
                let entry = entry.at(&path)?;
                let name = directory.join(entry.file_name());
                let path = entry.path();
                let meta = fs::symlink_metadata(&path).at(&path)?;
                if meta.is_dir() {
                    waiting.push(name.clone());
                }
                let described = describe(&path, &meta, detail)?;
                ensure!(tree.insert(name, described).is_none(), "{} is listed twice", path.display());
            }
        }
        Ok(Tree(tree))
    }

    /// An error that shows where the two differ.
    #[track_caller]
    pub fn must_equal(&self, other: &Tree) -> anyhow::Result<()> {
        let caller = std::panic::Location::caller();
        let mut differences = Vec::new();
        for (path, here) in &self.0 {
            match other.0.get(path) {
                None => differences.push(format!("only in the first: {} {here}", path.display())),
                Some(there) if there != here => {
                    differences.push(format!("{}:\n      {here}\n      {there}", path.display()));
                }
                Some(_) => (),
            }
        }
        let further = other.0.keys().filter(|path| !self.0.contains_key(*path));
        differences.extend(further.map(|path| format!("only in the second: {}", path.display())));
        let count = differences.len();
        differences.truncate(DIFFERENCES_SHOWN);
        ensure!(count == 0, "{caller}: the trees differ in {count} places:\n  {}", differences.join("\n  "));
        Ok(())
    }
}

fn describe(path: &Path, meta: &Metadata, detail: Detail) -> anyhow::Result<String> {
    let kind = meta.file_type();
    let mut text = format!("{:o} {}:{}", meta.mode(), meta.uid(), meta.gid());
    if kind.is_file() {
        text.push_str(&format!(" {} bytes {:016x}", meta.len(), hash_of(path)?));
    } else if kind.is_symlink() {
        text.push_str(&format!(" -> {}", fs::read_link(path).at(path)?.display()));
    } else if kind.is_block_device() || kind.is_char_device() {
        text.push_str(&format!(" device {:x}", meta.rdev()));
    }
    if detail != Detail::Contents {
        text.push_str(&format!(" at {}.{:09}", meta.mtime(), meta.mtime_nsec()));
    }
    if detail == Detail::Everything {
        text.push_str(&format!(" {} links", meta.nlink()));
        for (name, value) in xattrs_of(path)? {
            text.push_str(&format!(" {name}={value:02x?}"));
        }
    }
    Ok(text)
}

/// The hash of a file's content.
pub fn hash_of(path: &Path) -> anyhow::Result<u64> {
    let mut file = File::open(path).at(path)?;
    let (mut hash, mut buffer) = (Xxh3::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).at(path)? {
            0 => return Ok(hash.digest()),
            count => hash.update(&buffer[..count]),
        }
    }
}

/// The extended attributes of an object, not following a link.
pub fn xattrs_of(path: &Path) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
    let mut names = vec![0; 64 << 10];
    let count = rustix::fs::llistxattr(path, &mut names).at(path)?;
    let mut values = BTreeMap::new();
    for name in names[..count].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 64 << 10];
        let count = rustix::fs::lgetxattr(path, name, &mut value).at(path)?;
        values.insert(String::from_utf8_lossy(name).into_owned(), value[..count].to_vec());
    }
    Ok(values)
}
