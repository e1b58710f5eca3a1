//! The POSIX store of one brick: ordinary files at ordinary paths, ours below `.brickfs`.
//!
//! - a file's handle is a hard link `handles/aa/bb/<gfid>`, `aabb` being the gfid's first two bytes;
//!   a directory's is a symlink `handles/aa/bb/<gfid>.d` with the text `<parent gfid>/<name>`;
//! - `claims/<parent gfid>/<name>` is a symlink with the text `<gfid>@<home set>`;
//! - `orphans/<gfid>` is the last link of a file that only open handles keep.
//!
//! This file finds and reads; `apply` changes. One thread at a time uses a store (the volume's lock).

mod apply;
mod recover;

use crate::brick::format::DOT_DIR;
use crate::brick::log::EffectLog;
use crate::brick::meta::{HAS_ACCESS_ACL, HAS_CAPABILITY, HAS_DEFAULT_ACL, META_LEN, META_XATTR, Meta, MetaError};
use brickfs_common::attr::{Attr, Kind, Timestamp};
use brickfs_common::errno::Errno;
use brickfs_common::ids::{Gfid, SetId};
use lru::LruCache;
use rustix::fs::{AtFlags, Mode, OFlags, Stat};
use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Open descriptors of directories kept for reuse.
const DIR_CACHE: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");
/// Open descriptors of files kept for reuse.
const FILE_CACHE: NonZeroUsize = NonZeroUsize::new(2048).expect("not zero");
/// Records of objects kept in memory.
const META_CACHE: NonZeroUsize = NonZeroUsize::new(65536).expect("not zero");
/// Lines about damage that are kept for `volume status`.
const DAMAGE_LINES_MAX: usize = 100;
/// Objects that get the same two first gfid bytes before the next handle directory is used.
const BUCKET_OBJECTS: u32 = 512;

/// A rustix error as ours.
pub fn errno(error: rustix::io::Errno) -> Errno {
    Errno(error.raw_os_error())
}

/// The POSIX store of one brick.
pub struct Store {
    /// The set that this brick serves.
    pub set: SetId,
    /// The brick directory, for messages.
    pub path: PathBuf,
    /// Device number of the brick's file system: bricks of one device share journal and power loss.
    pub device: u64,
    /// The effect log.
    pub log: EffectLog,
    /// Sequence number of the last effect of this set.
    pub seq: u64,
    /// What was found damaged, newest last.
    pub damage: Vec<String>,
    /// Namespace changes so far, and how many of them a flush of this file system has covered.
    pub changes_count: u64,
    /// See `changes_count`.
    pub flushed_count: u64,
    root: Arc<OwnedFd>,
    handles: OwnedFd,
    orphans: OwnedFd,
    claims: OwnedFd,
    limbo: OwnedFd,
    tmp: OwnedFd,
    dirs: LruCache<Gfid, Arc<OwnedFd>>,
    files: LruCache<Gfid, Arc<OwnedFd>>,
    metas: LruCache<Gfid, Meta>,
    changes: LruCache<Gfid, u64>,
    made_buckets: HashSet<[u8; 2]>,
    bucket: ([u8; 2], u32),
}

/// Relative path of an object's handle below `handles`.
fn handle_path(gfid: &Gfid) -> String {
    format!("{:02x}/{:02x}/{}", gfid.0[0], gfid.0[1], gfid.hex())
}

/// Relative path of a directory's handle: another name than a file's, since the handle of a symbolic
/// link is a symlink too, with a text that a user chose.
fn dir_handle_path(gfid: &Gfid) -> String {
    format!("{}.d", handle_path(gfid))
}

/// A path through /proc that names an entry of an open directory, for calls without an `at` form.
fn proc_path(dir: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    path
}

fn open_dir(at: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty()).map_err(errno)
}

impl Store {
    /// Opens the brick's directories around an open log.
    pub fn open(path: &Path, set: SetId, log: EffectLog) -> Result<Store, Errno> {
        let root = open_dir(rustix::fs::CWD, path.as_os_str().as_encoded_bytes())?;
        let dot = open_dir(root.as_fd(), DOT_DIR.as_bytes())?;
        let sub = |name: &[u8]| open_dir(dot.as_fd(), name);
        let device = rustix::fs::fstat(&root).map_err(errno)?.st_dev;
        Ok(Store {
            set,
            path: path.to_owned(),
            device,
            log,
            seq: 0,
            damage: Vec::new(),
            changes_count: 0,
            flushed_count: 0,
            handles: sub(b"handles")?,
            orphans: sub(b"orphans")?,
            claims: sub(b"claims")?,
            limbo: sub(b"limbo")?,
            tmp: sub(b"tmp")?,
            root: Arc::new(root),
            dirs: LruCache::new(DIR_CACHE),
            files: LruCache::new(FILE_CACHE),
            metas: LruCache::new(META_CACHE),
            changes: LruCache::new(META_CACHE),
            made_buckets: HashSet::new(),
            bucket: (rand::random(), 0),
        })
    }

    /// The brick's root directory.
    pub fn root_fd(&self) -> Arc<OwnedFd> {
        self.root.clone()
    }

    /// A new gfid. Its first two bytes are the current handle directory, so that new objects do not
    /// each need a directory of their own; the other 112 bits are random.
    pub fn choose_gfid(&mut self) -> Gfid {
        if self.bucket.1 >= BUCKET_OBJECTS {
            self.bucket = (rand::random(), 0);
        }
        self.bucket.1 += 1;
        let mut id: [u8; 16] = rand::random();
        id[..2].copy_from_slice(&self.bucket.0);
        Gfid(id)
    }

    /// Remembers that something of ours is damaged.
    pub fn report_damage(&mut self, line: String) {
        if self.damage.len() < DAMAGE_LINES_MAX && !self.damage.contains(&line) {
            tracing::error!(brick = %self.path.display(), "{line}");
            self.damage.push(line);
        }
    }

    /// The text of a directory's handle: its physical parent and name; `None` for the root and for
    /// what has no directory handle here.
    pub fn dir_place(&self, gfid: &Gfid) -> Result<Option<(Gfid, Vec<u8>)>, Errno> {
        let target = match rustix::fs::readlinkat(&self.handles, dir_handle_path(gfid), Vec::new()) {
            Ok(target) => target.into_bytes(),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::INVAL) => return Ok(None),
            Err(error) => return Err(errno(error)),
        };
        let parent = target.get(..32).and_then(|hex| std::str::from_utf8(hex).ok()).and_then(|hex| hex.parse().ok());
        match (parent, target.get(32), target.get(33..)) {
            (Some(parent), Some(b'/'), Some(name)) if !name.is_empty() => Ok(Some((parent, name.to_vec()))),
            _ => Ok(None),
        }
    }

    /// Whether this set has the directory, as home or as a copy.
    pub fn has_dir(&mut self, gfid: &Gfid) -> Result<bool, Errno> {
        match self.dir(gfid) {
            Ok(_) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// An open descriptor of a directory: ENOENT if this set has none of that gfid.
    pub fn dir(&mut self, gfid: &Gfid) -> Result<Arc<OwnedFd>, Errno> {
        if *gfid == Gfid::ROOT {
            return Ok(self.root.clone());
        }
        if let Some(fd) = self.dirs.get(gfid) {
            return Ok(fd.clone());
        }
        let (parent, name) = self.dir_place(gfid)?.ok_or(Errno::ENOENT)?;
        let fd = if parent == limbo_gfid() {
            open_dir(self.limbo.as_fd(), &name)?
        } else {
            let parent_fd = self.dir(&parent)?;
            open_dir(parent_fd.as_fd(), &name)?
        };
        let meta = self.read_meta_of_dir(fd.as_fd())?;
        if meta.gfid != *gfid {
            self.report_damage(format!("handle of directory {gfid} leads to {} ({})", name.escape_ascii(), meta.gfid));
            return Err(Errno::EIO);
        }
        let fd = Arc::new(fd);
        self.metas.put(*gfid, meta);
        self.dirs.put(*gfid, fd.clone());
        Ok(fd)
    }

    fn read_meta_of_dir(&self, fd: BorrowedFd<'_>) -> Result<Meta, Errno> {
        let mut bytes = [0u8; META_LEN];
        let n = rustix::fs::fgetxattr(fd, META_XATTR, &mut bytes[..]).map_err(errno)?;
        Meta::decode(&bytes[..n]).map_err(|_| Errno::EIO)
    }

    fn read_meta_at(&mut self, path: &[u8], what: &dyn Fn() -> String) -> Result<Option<Meta>, Errno> {
        let mut bytes = [0u8; META_LEN];
        let problem = match rustix::fs::lgetxattr(path, META_XATTR, &mut bytes[..]) {
            Ok(n) => match Meta::decode(&bytes[..n]) {
                Ok(meta) => return Ok(Some(meta)),
                Err(error @ (MetaError::Damaged | MetaError::Newer(_))) => error.to_string(),
            },
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(rustix::io::Errno::NODATA) => "it has no record of ours".to_owned(),
            Err(rustix::io::Errno::RANGE) => "the record is damaged".to_owned(),
            Err(error) => return Err(errno(error)),
        };
        let line = format!("{}: {problem}", what());
        self.report_damage(line);
        Err(Errno::EIO)
    }

    /// The record of the physical entry `name` of a directory of this set; `None` if there is none.
    pub fn entry(&mut self, parent: &Gfid, name: &[u8]) -> Result<Option<Meta>, Errno> {
        let dir = match self.dir(parent) {
            Ok(dir) => dir,
            Err(Errno::ENOENT) => return Ok(None),
            Err(error) => return Err(error),
        };
        let root = self.path.clone();
        let meta = self.read_meta_at(&proc_path(dir.as_fd(), name), &|| {
            format!("entry '{}' of directory {parent} in {}", name.escape_ascii(), root.display())
        })?;
        if let Some(meta) = &meta {
            self.metas.put(meta.gfid, meta.clone());
        }
        Ok(meta)
    }

    /// The record of an object of this set.
    pub fn meta(&mut self, gfid: &Gfid) -> Result<Meta, Errno> {
        if let Some(meta) = self.metas.get(gfid) {
            return Ok(meta.clone());
        }
        let what = || format!("object {gfid}");
        let path = proc_path(self.handles.as_fd(), handle_path(gfid).as_bytes());
        let file = if *gfid == Gfid::ROOT { None } else { self.read_meta_at(&path, &what)? };
        let meta = match file {
            Some(meta) => meta,
            None => match self.dir(gfid) {
                Ok(dir) => self.read_meta_of_dir(dir.as_fd())?,
                Err(Errno::ENOENT) => {
                    let path = proc_path(self.orphans.as_fd(), gfid.hex().as_bytes());
                    self.read_meta_at(&path, &what)?.ok_or(Errno::ESTALE)?
                }
                Err(error) => return Err(error),
            },
        };
        self.metas.put(*gfid, meta.clone());
        Ok(meta)
    }

    /// The claim stored for (parent, name): gfid and home set.
    pub fn claim(&self, parent: &Gfid, name: &[u8]) -> Result<Option<(Gfid, SetId)>, Errno> {
        let mut path = parent.hex().into_bytes();
        path.push(b'/');
        path.extend_from_slice(name);
        let text = match rustix::fs::readlinkat(&self.claims, path, Vec::new()) {
            Ok(text) => text.into_bytes(),
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(error) => return Err(errno(error)),
        };
        let text = String::from_utf8(text).map_err(|_| Errno::EIO)?;
        let (gfid, home) = text.split_once('@').ok_or(Errno::EIO)?;
        let gfid = gfid.parse().map_err(|_| Errno::EIO)?;
        let home = home.parse().map_err(|_| Errno::EIO)?;
        Ok(Some((gfid, SetId(home))))
    }

    /// Whether an object of this set bears the name (PROTOCOL 6).
    pub fn bears(&mut self, gfid: &Gfid, parent: &Gfid, name: &[u8]) -> Result<bool, Errno> {
        Ok(self.entry(parent, name)?.is_some_and(|meta| meta.gfid == *gfid))
    }

    /// stat(2) of an object of this set.
    fn stat_raw(&mut self, gfid: &Gfid, meta: &Meta) -> Result<Stat, Errno> {
        if meta.kind == Kind::Directory {
            let dir = self.dir(gfid)?;
            return rustix::fs::fstat(&*dir).map_err(errno);
        }
        match rustix::fs::statat(&self.handles, handle_path(gfid), AtFlags::SYMLINK_NOFOLLOW) {
            Err(rustix::io::Errno::NOENT) => rustix::fs::statat(&self.orphans, gfid.hex(), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|e| match e {
                    rustix::io::Errno::NOENT => Errno::ESTALE,
                    other => errno(other),
                }),
            other => other.map_err(errno),
        }
    }

    /// Attributes of an object that is homed here.
    pub fn attr(&mut self, gfid: &Gfid) -> Result<Attr, Errno> {
        let meta = self.meta(gfid)?;
        let stat = self.stat_raw(gfid, &meta)?;
        let change = if meta.kind == Kind::Directory { self.change(gfid) } else { 0 };
        Ok(compute_attr(&meta, &stat, change))
    }

    /// The counter of entry changes of a directory.
    fn change(&mut self, gfid: &Gfid) -> u64 {
        let seed = self.changes_count;
        *self.changes.get_or_insert(*gfid, || seed)
    }

    /// Number of names of a file of this set.
    pub fn link_count(&mut self, gfid: &Gfid) -> Result<u32, Errno> {
        let meta = self.meta(gfid)?;
        Ok((self.stat_raw(gfid, &meta)?.st_nlink as u32).saturating_sub(1))
    }

    /// An open descriptor of a regular file, for reading and writing.
    pub fn file(&mut self, gfid: &Gfid) -> Result<Arc<OwnedFd>, Errno> {
        if let Some(fd) = self.files.get(gfid) {
            return Ok(fd.clone());
        }
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = match rustix::fs::openat(&self.handles, handle_path(gfid), flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => rustix::fs::openat(&self.orphans, gfid.hex(), flags, Mode::empty())
                .map_err(|e| match e {
                    rustix::io::Errno::NOENT => Errno::ESTALE,
                    other => errno(other),
                })?,
            other => other.map_err(errno)?,
        };
        let fd = Arc::new(fd);
        self.files.put(*gfid, fd.clone());
        Ok(fd)
    }

    /// The path by which xattr calls reach an object, and whether it is there.
    fn object_path(&mut self, gfid: &Gfid) -> Result<Vec<u8>, Errno> {
        let meta = self.meta(gfid)?;
        if meta.kind == Kind::Directory {
            let dir = self.dir(gfid)?;
            return Ok(proc_path(dir.as_fd(), b"."));
        }
        let path = handle_path(gfid);
        match rustix::fs::statat(&self.handles, path.as_str(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(proc_path(self.handles.as_fd(), path.as_bytes())),
            Err(_) => Ok(proc_path(self.orphans.as_fd(), gfid.hex().as_bytes())),
        }
    }

    /// The value of an extended attribute.
    pub fn xattr(&mut self, gfid: &Gfid, name: &[u8]) -> Result<Vec<u8>, Errno> {
        let path = self.object_path(gfid)?;
        let mut value = vec![0u8; 65536];
        let n = rustix::fs::lgetxattr(path, name, &mut value[..]).map_err(errno)?;
        value.truncate(n);
        Ok(value)
    }

    /// Names of extended attributes, each with a NUL behind it, ours left out.
    pub fn xattr_names(&mut self, gfid: &Gfid) -> Result<Vec<u8>, Errno> {
        let path = self.object_path(gfid)?;
        let mut names = vec![0u8; 65536];
        let n = rustix::fs::llistxattr(path, &mut names[..]).map_err(errno)?;
        let shown = names[..n]
            .split_inclusive(|b| *b == 0)
            .filter(|name| !name.starts_with(brickfs_common::name::RESERVED_XATTR_PREFIX))
            .flatten()
            .copied()
            .collect();
        Ok(shown)
    }

    /// The target of a symbolic link.
    pub fn read_link(&mut self, gfid: &Gfid) -> Result<Vec<u8>, Errno> {
        let meta = self.meta(gfid)?;
        if meta.kind != Kind::Symlink {
            return Err(Errno::EINVAL);
        }
        let target = match rustix::fs::readlinkat(&self.handles, handle_path(gfid), Vec::new()) {
            Err(rustix::io::Errno::NOENT) => rustix::fs::readlinkat(&self.orphans, gfid.hex(), Vec::new()),
            other => other,
        };
        Ok(target.map_err(errno)?.into_bytes())
    }

    /// All physical names in a directory of this set; none if this set does not have it.
    pub fn names(&mut self, gfid: &Gfid) -> Result<Vec<Vec<u8>>, Errno> {
        let dir = match self.dir(gfid) {
            Ok(dir) => dir,
            Err(Errno::ENOENT) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let listing = open_dir(dir.as_fd(), b".")?;
        let is_root = *gfid == Gfid::ROOT;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::new(listing).map_err(errno)? {
            let entry = entry.map_err(errno)?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." && !(is_root && name == DOT_DIR.as_bytes()) {
                names.push(name.to_vec());
            }
        }
        Ok(names)
    }

    /// Whether a directory of this set has an entry that is homed here; copies of subdirectories do
    /// not count: their own homes answer for them.
    pub fn has_entries(&mut self, gfid: &Gfid) -> Result<bool, Errno> {
        for name in self.names(gfid)? {
            match self.entry(gfid, &name) {
                Ok(Some(meta)) if meta.kind == Kind::Directory && meta.home != self.set => {}
                Ok(None) => {}
                Ok(Some(_)) | Err(_) => return Ok(true),
            }
        }
        Ok(false)
    }

    /// Gfids of the brick's orphans.
    pub fn orphan_ids(&self) -> Result<Vec<Gfid>, Errno> {
        let listing = open_dir(self.orphans.as_fd(), b".")?;
        let mut ids = Vec::new();
        for entry in rustix::fs::Dir::new(listing).map_err(errno)? {
            let entry = entry.map_err(errno)?;
            if let Ok(id) = entry.file_name().to_string_lossy().parse() {
                ids.push(id);
            }
        }
        Ok(ids)
    }

    /// Deletes an orphan that nobody has open any more.
    pub fn delete_orphan(&mut self, gfid: &Gfid) -> Result<(), Errno> {
        self.files.pop(gfid);
        self.metas.pop(gfid);
        match rustix::fs::unlinkat(&self.orphans, gfid.hex(), AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(errno(error)),
        }
    }

    /// Free and total space of the brick's file system.
    pub fn space(&self) -> Result<rustix::fs::StatVfs, Errno> {
        rustix::fs::fstatvfs(&*self.root).map_err(errno)
    }
}

/// The parent gfid that stands for `.brickfs/limbo`.
pub fn limbo_gfid() -> Gfid {
    Gfid([0xff; 16])
}

/// Attributes from the record and stat(2). The ctime is the record's, or mtime where a plain write
/// moved it later: the local mtime then lies at or before the local ctime, which an mtime that a user
/// set into the future does not. 20 ms cover the coarse clock of local file systems.
fn compute_attr(meta: &Meta, stat: &Stat, change: u64) -> Attr {
    let time = |sec: i64, nsec| Timestamp { sec, nsec: nsec as u32 };
    let mtime = time(stat.st_mtime as i64, stat.st_mtime_nsec);
    let local_ctime = time(stat.st_ctime as i64, stat.st_ctime_nsec);
    let nanos = |t: Timestamp| i128::from(t.sec) * 1_000_000_000 + i128::from(t.nsec);
    let moved_by_write = nanos(mtime) <= nanos(local_ctime) + 20_000_000;
    let ctime = if moved_by_write { meta.ctime.max(mtime) } else { meta.ctime };
    let is_dir = meta.kind == Kind::Directory;
    Attr {
        gfid: meta.gfid,
        home: meta.home,
        kind: meta.kind,
        perm: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        nlink: if is_dir { 2 + meta.subdirs } else { (stat.st_nlink as u32).saturating_sub(1) },
        size: if is_dir { 4096 } else { stat.st_size as u64 },
        blocks: stat.st_blocks as u64,
        rdev: meta.rdev,
        atime: time(stat.st_atime as i64, stat.st_atime_nsec),
        mtime,
        ctime,
        btime: meta.btime,
        project: meta.project,
        has_capability: meta.flags & HAS_CAPABILITY != 0,
        has_acl: meta.flags & (HAS_ACCESS_ACL | HAS_DEFAULT_ACL) != 0,
        change,
    }
}
