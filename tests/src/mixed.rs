//! Operations of every kind on a few thousand names, as chance has it: what a name stands for is never known before, so
//! many are refused, as they must be. Any other end is an error.

use crate::at::At as _;
use anyhow::bail;
use rand::Rng as _;
use rand::rngs::StdRng;
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, XattrFlags};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Directories, and names in each of them.
const DIRECTORIES: u32 = 16;
const NAMES: u32 = 128;
/// A write, or a read, is at most this long, and begins before this.
const IO_BYTES_MAX: usize = 16 << 10;
const FILE_BYTES_MAX: u64 = 128 << 10;
/// How operations on names of any kind may end.
const EXPECTED: [Errno; 13] = [
    Errno::NOENT,
    Errno::EXIST,
    Errno::NOTEMPTY,
    Errno::ISDIR,
    Errno::NOTDIR,
    Errno::NODATA,
    Errno::PERM,
    Errno::INVAL,
    Errno::AGAIN,
    Errno::LOOP,
    Errno::RANGE,
    // The name leads to another object than a moment ago.
    Errno::STALE,
    Errno::MLINK,
];

/// Makes the directories that `step` works in.
pub fn prepare(root: &Path) -> anyhow::Result<()> {
    (0..DIRECTORIES).try_for_each(|number| {
        let directory = root.join(format!("d{number}"));
        std::fs::create_dir_all(&directory).at(&directory)
    })
}

/// One operation; whether it was done and not refused.
pub fn step(root: &Path, rng: &mut StdRng) -> anyhow::Result<bool> {
    let (kind, path, other) = (rng.random_range(0..20), any_path(root, rng), any_path(root, rng));
    match operate(kind, &path, &other, rng) {
        Ok(()) => Ok(true),
        Err(errno) if EXPECTED.contains(&errno) => Ok(false),
        Err(errno) => bail!("operation {kind} on {} and {}: {errno}", path.display(), other.display()),
    }
}

fn any_path(root: &Path, rng: &mut StdRng) -> PathBuf {
    let (directory, name) = (rng.random_range(0..DIRECTORIES), rng.random_range(0..NAMES));
    root.join(format!("d{directory}/n{name}"))
}

fn open(path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(CWD, path, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::from(0o644))
}

fn operate(kind: u32, path: &Path, other: &Path, rng: &mut StdRng) -> Result<(), Errno> {
    let mut bytes = vec![rng.random::<u8>(); rng.random_range(1..=IO_BYTES_MAX)];
    let offset = rng.random_range(0..FILE_BYTES_MAX);
    match kind {
        0..=3 => {
            let file = open(path, OFlags::WRONLY | OFlags::CREATE)?;
            rustix::io::pwrite(&file, &bytes, offset).map(|_| ())
        }
        4 => rustix::io::write(open(path, OFlags::WRONLY | OFlags::APPEND)?, &bytes).map(|_| ()),
        5..=7 => rustix::io::pread(open(path, OFlags::RDONLY)?, &mut bytes, offset).map(|_| ()),
        8 => rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW).map(|_| ()),
        9 => rustix::fs::renameat(CWD, path, CWD, other),
        10 => rustix::fs::linkat(CWD, path, CWD, other, AtFlags::empty()),
        11 | 12 => rustix::fs::unlinkat(CWD, path, AtFlags::empty()),
        13 => rustix::fs::mkdirat(CWD, path, Mode::from(0o755)),
        14 => rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR),
        15 => list(path.parent().unwrap_or(path)),
        16 => change(path, offset),
        17 => rustix::fs::symlinkat(other, CWD, path),
        18 => attributes(path, &bytes[..bytes.len().min(200)]),
        _ => locks(path),
    }
}

fn change(path: &Path, size: u64) -> Result<(), Errno> {
    let file = open(path, OFlags::RDWR)?;
    rustix::fs::fchmod(&file, Mode::from(0o600 | (size as u32 & 0o77)))?;
    rustix::fs::ftruncate(&file, size)
}

fn list(directory: &Path) -> Result<(), Errno> {
    let directory = open(directory, OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut buffer = Vec::with_capacity(8192);
    let mut listing = rustix::fs::RawDir::new(directory, buffer.spare_capacity_mut());
    while let Some(entry) = listing.next() {
        entry?;
    }
    Ok(())
}

fn attributes(path: &Path, value: &[u8]) -> Result<(), Errno> {
    rustix::fs::lsetxattr(path, "user.mixed", value, XattrFlags::empty())?;
    let mut read = [0u8; IO_BYTES_MAX];
    rustix::fs::lgetxattr(path, "user.mixed", &mut read[..])?;
    rustix::fs::llistxattr(path, &mut read[..])?;
    rustix::fs::lremovexattr(path, "user.mixed")
}

fn locks(path: &Path) -> Result<(), Errno> {
    let file = open(path, OFlags::RDWR)?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    rustix::fs::flock(&file, FlockOperation::Unlock)?;
    rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockShared)
}
