//! The POSIX store of one brick: ordinary files at ordinary paths, ours below `.brickfs`.
//!
//! - a file's handle is a hard link `handles/aa/bb/<gfid>`, `aabb` being the gfid's first two bytes;
//!   a directory's is a symlink `handles/aa/bb/<gfid>.d` with the text `<parent gfid>/<name>`;
//! - `claims/<parent gfid>/<name>` is a symlink with the text `<gfid>@<home set>`;
//! - `orphans/<gfid>` is the last link of a file that only open handles keep;
//! - `pending/<tx>-<part>` and `commits/<tx>` are symlinks whose text is a record, see `records`;
//! - `parked/<tx>-<index>` is what a transaction took away and may have to give back;
//! - `clients/<client id>` is a symlink for each client that may have something open;
//! - `limbo/<gfid>` is the copy of a directory whose physical name another one needed;
//! - `mounted` says under which mount the brick is used.
//!
//! This file opens the brick and answers for it; `dirs` finds directories by their gfids, `objects` opens and
//! reads other objects, `ranges` allocates and copies in them; `apply` changes objects and names, `moves` moves them, `transactions` changes what lies
//! between sets; `redo` finishes what a crash cut.

mod apply;
mod attributes;
mod changes;
mod descriptors;
mod dirs;
mod mounted;
mod moves;
mod objects;
mod ranges;
mod records;
mod redo;
mod seen;
mod transactions;

use super::{BrickStore, PendingPart, Space, TouchedAt};
use crate::brick::effect::{Claim, Commitment, Effect, Stamp, Step};
use crate::brick::format::DOT_DIR;
use crate::brick::log::EffectLog;
use crate::brick::meta::{HAS_DEFAULT_ACL, META_LEN_MAX, META_XATTR, Meta, MetaError};
use apply::DEFAULT_ACL;
use attributes::compute_attr;
use brickfs_client::open_files;
use brickfs_common::attr::{Attr, Kind};
use brickfs_common::errno::Errno;
use brickfs_common::ids::{ClientId, Gfid, SetId, TxId};
use changes::Changes;
use descriptors::{Budget, DescriptorCache};
use dirs::{limbo_gfid, read_meta_of_dir};
use lru::LruCache;
use ranges::Disk;
pub use ranges::{Allocation, copy_range};
use rustix::fs::{Access, AtFlags, Mode, OFlags, ResolveFlags, Stat, StatVfsMountFlags};
use seen::Seen;
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

/// What the caches of all bricks share.
static DESCRIPTORS: LazyLock<Arc<Budget>> = LazyLock::new(|| Budget::new(open_files::for_caches()));
/// Open descriptors of directories kept for reuse.
const DIR_CACHE: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");
/// Open descriptors of files kept for reuse.
const FILE_CACHE: NonZeroUsize = NonZeroUsize::new(2048).expect("not zero");
/// Records of objects kept in memory.
const META_CACHE: NonZeroUsize = NonZeroUsize::new(65536).expect("not zero");
/// Lines about damage that are kept for `volume status`.
const DAMAGE_LINES_MAX: usize = 100;
/// Directories that are shown above a name in a message.
const SHOWN_DEPTH_MAX: usize = 64;
/// Objects that get the same two first gfid bytes before the next handle directory is used.
const BUCKET_OBJECTS: u32 = 512;
/// Longest value, and longest list of names, of extended attributes (XATTR_SIZE_MAX, XATTR_LIST_MAX).
const XATTR_VALUE_MAX: usize = 65536;

/// A rustix error as ours.
pub fn errno(error: rustix::io::Errno) -> Errno {
    Errno(error.raw_os_error())
}

/// The POSIX store of one brick.
pub struct PosixStore {
    /// The set that this brick serves.
    pub set: SetId,
    /// The brick directory, for messages.
    pub path: PathBuf,
    /// Device number of the brick's file system: bricks of one device share journal and power loss.
    pub device: u64,
    /// See `mounted`.
    lost_power: bool,
    /// Reading a file sets its access time as with the mount option `relatime`.
    keeps_relatime: bool,
    disk: Disk,
    /// It has refused a way of fallocate(2), which was written out.
    writes_out: bool,
    /// What was found damaged, newest last.
    pub damage: Vec<String>,
    /// The last effect of the log is done again.
    is_redoing: bool,
    log: EffectLog,
    root: Arc<OwnedFd>,
    handles: OwnedFd,
    orphans: OwnedFd,
    claims: OwnedFd,
    limbo: OwnedFd,
    tmp: OwnedFd,
    pending: OwnedFd,
    commits: OwnedFd,
    parked: OwnedFd,
    clients: OwnedFd,
    /// How many links of a file are parked: they are not names.
    parked_links: HashMap<Gfid, u32>,
    /// Directories that are parked: until they are given back they are not here.
    parked_dirs: HashSet<Gfid>,
    dirs: DescriptorCache,
    files: DescriptorCache,
    metas: LruCache<Gfid, Meta>,
    changes: Changes,
    seen: Seen,
    /// What may be in `orphans`.
    orphaned: HashSet<Gfid>,
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

/// Relative path of a claim below `claims`.
fn claim_path(parent: &Gfid, name: &[u8]) -> Vec<u8> {
    let mut path = parent.hex().into_bytes();
    path.push(b'/');
    path.extend_from_slice(name);
    path
}

/// A path through /proc that names an entry of an open directory, for calls without an `at` form.
fn proc_path(dir: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    path
}

/// Opens an entry of a directory, whatever a hand has put in its way: no link is followed, no other file
/// system is entered.
fn open_beneath(at: BorrowedFd<'_>, path: impl rustix::path::Arg, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve =
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(at, path, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), resolve).map_err(errno)
}

fn open_dir(at: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    open_beneath(at, name, OFlags::RDONLY | OFlags::DIRECTORY)
}

impl PosixStore {
    /// Opens the brick's directories around an open log.
    pub fn open(path: &Path, set: SetId, log: EffectLog) -> Result<PosixStore, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty()).map_err(errno)?;
        let dot = open_dir(root.as_fd(), DOT_DIR.as_bytes())?;
        let mut missing = Vec::new();
        let mut sub = |name: &'static str| match open_dir(dot.as_fd(), name.as_bytes()) {
            Err(Errno::ENOENT) => {
                rustix::fs::mkdirat(&dot, name, Mode::RWXU).map_err(errno)?;
                missing.push(name);
                open_dir(dot.as_fd(), name.as_bytes())
            }
            opened => opened,
        };
        let device = rustix::fs::fstat(&root).map_err(errno)?.st_dev;
        let flags = rustix::fs::fstatvfs(&root).map_err(errno)?.f_flag;
        let unwanted = StatVfsMountFlags::NOATIME | StatVfsMountFlags::RDONLY;
        let mut store = PosixStore {
            set,
            path: path.to_owned(),
            device,
            log,
            lost_power: false,
            keeps_relatime: flags.contains(StatVfsMountFlags::RELATIME) && !flags.intersects(unwanted),
            disk: Disk::of(&root)?,
            writes_out: false,
            damage: Vec::new(),
            is_redoing: false,
            pending: sub("pending")?,
            commits: sub("commits")?,
            parked: sub("parked")?,
            clients: sub("clients")?,
            parked_links: HashMap::new(),
            parked_dirs: HashSet::new(),
            handles: sub("handles")?,
            orphans: sub("orphans")?,
            claims: sub("claims")?,
            limbo: sub("limbo")?,
            tmp: sub("tmp")?,
            root: Arc::new(root),
            dirs: DescriptorCache::new(DIR_CACHE, &DESCRIPTORS),
            files: DescriptorCache::new(FILE_CACHE, &DESCRIPTORS),
            metas: LruCache::new(META_CACHE),
            changes: Changes::new(META_CACHE),
            seen: Seen::default(),
            orphaned: HashSet::new(),
            made_buckets: HashSet::new(),
            bucket: (rand::random(), 0),
        };
        store.lost_power = store.look_at_mount()?;
        for name in missing {
            // Looked through, everything gets its handle and its claim again.
            store.lost_power = true;
            store.report_damage(format!("{DOT_DIR}/{name} was missing and is made again"));
        }
        store.clear_tmp()?;
        store.count_parked_links()?;
        store.heal_limbo()?;
        store.orphaned = store.orphans()?.into_iter().collect();
        Ok(store)
    }

    /// The brick's root directory.
    pub fn root_fd(&self) -> Arc<OwnedFd> {
        self.root.clone()
    }

    fn read_meta_at(&self, path: &[u8]) -> Result<Option<Meta>, ReadError> {
        let mut bytes = [0u8; META_LEN_MAX];
        let problem = match rustix::fs::lgetxattr(path, META_XATTR, &mut bytes[..]) {
            Ok(n) => match Meta::decode(&bytes[..n]) {
                Ok(meta) => return Ok(Some(meta)),
                Err(error @ (MetaError::Damaged | MetaError::Newer(_))) => error.to_string(),
            },
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(rustix::io::Errno::NODATA) => "it has no record of ours".to_owned(),
            Err(rustix::io::Errno::RANGE) => "the record is damaged".to_owned(),
            Err(error) => return Err(ReadError::Errno(errno(error))),
        };
        Err(ReadError::Damaged(problem))
    }

    /// The record of a file by a handle or another path of ours.
    fn read_meta_of(&mut self, gfid: &Gfid, path: &[u8]) -> Result<Option<Meta>, Errno> {
        self.read_meta_at(path).map_err(|error| match error {
            ReadError::Errno(error) => error,
            ReadError::Damaged(problem) => {
                self.report_damage(format!("object {gfid}: {problem}"));
                Errno::EIO
            }
        })
    }

    /// What a process that died was making.
    fn clear_tmp(&self) -> Result<(), Errno> {
        for name in self.own_names(self.tmp.as_fd())? {
            match rustix::fs::unlinkat(&self.tmp, &name[..], AtFlags::REMOVEDIR) {
                Err(rustix::io::Errno::NOTDIR) => {
                    rustix::fs::unlinkat(&self.tmp, &name[..], AtFlags::empty()).map_err(errno)?;
                }
                // Not made by us: ours are empty.
                Err(rustix::io::Errno::NOTEMPTY) => {
                    let path = self.path.join(DOT_DIR).join("tmp").join(OsStr::from_bytes(&name));
                    std::fs::remove_dir_all(path)?;
                }
                other => other.map_err(errno)?,
            }
        }
        Ok(())
    }

    /// Remembers that a client may have something open here, for whoever serves this brick next.
    pub fn note_client(&self, id: &ClientId) -> Result<(), Errno> {
        apply::unless(rustix::fs::symlinkat(b"1".as_slice(), &self.clients, id.hex()), rustix::io::Errno::EXIST)
    }

    /// The client's lease has ended.
    pub fn forget_client(&self, id: &ClientId) -> Result<(), Errno> {
        apply::unless(rustix::fs::unlinkat(&self.clients, id.hex(), AtFlags::empty()), rustix::io::Errno::NOENT)
    }

    /// Clients that earlier processes have served and not seen end.
    pub fn noted_clients(&self) -> Result<Vec<ClientId>, Errno> {
        let names = self.own_names(self.clients.as_fd())?;
        Ok(names.iter().filter_map(|name| std::str::from_utf8(name).ok()?.parse().ok()).collect())
    }

    /// The names in one of our own directories.
    fn own_names(&self, dir: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Errno> {
        let listing = open_dir(dir, b".")?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::new(listing).map_err(errno)? {
            let name = entry.map_err(errno)?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        Ok(names)
    }
}

impl BrickStore for PosixStore {
    fn device(&self) -> u64 {
        self.device
    }

    fn space(&self) -> Result<Space, Errno> {
        let s = rustix::fs::fstatvfs(&*self.root).map_err(errno)?;
        let bytes = |blocks: u64| blocks.saturating_mul(s.f_frsize);
        Ok(Space {
            total_bytes: bytes(s.f_blocks),
            free_bytes: bytes(s.f_bfree),
            available_bytes: bytes(s.f_bavail),
            total_inodes: s.f_files,
            free_inodes: s.f_ffree,
        })
    }

    fn flusher(&self) -> Box<dyn FnOnce() -> Result<(), Errno> + Send> {
        let root = self.root.clone();
        Box::new(move || rustix::fs::syncfs(&*root).map_err(errno))
    }

    fn log_is_full(&self) -> bool {
        self.log.is_full()
    }

    fn turn_log(&mut self, kept: &[Effect]) -> Result<(), Errno> {
        self.log.turn(kept)
    }

    fn append(&mut self, effect: &Effect) -> Result<(), Errno> {
        self.log.append(effect)
    }

    fn apply(&mut self, step: &Step, at: &Stamp) -> Result<(), Errno> {
        self.apply_step(step, at)
    }

    fn redo(&mut self, effect: &Effect) -> Result<bool, Errno> {
        self.redo_effect(effect)
    }

    fn undo_make(&mut self, gfid: &Gfid, kind: Kind) {
        self.undo_make_object(gfid, kind);
    }

    /// Objects of one brick share the first two bytes by the hundred, so that handles do not each need a
    /// directory of their own; the other 112 bits are random.
    fn choose_gfid(&mut self) -> Gfid {
        if self.bucket.1 >= BUCKET_OBJECTS {
            self.bucket = (rand::random(), 0);
        }
        self.bucket.1 += 1;
        let mut id: [u8; 16] = rand::random();
        id[..2].copy_from_slice(&self.bucket.0);
        Gfid(id)
    }

    fn entry(&mut self, parent: &Gfid, name: &[u8]) -> Result<Option<Meta>, Errno> {
        let dir = match self.dir(parent) {
            Ok(dir) => dir,
            Err(Errno::ENOENT) => return Ok(None),
            Err(error) => return Err(error),
        };
        // Cheaper than the way through /proc, and what is to be made is not there.
        let found = rustix::fs::accessat(&*dir, name, Access::EXISTS, AtFlags::SYMLINK_NOFOLLOW);
        if found == Err(rustix::io::Errno::NOENT) {
            self.seen.put(parent, name, None);
            return Ok(None);
        }
        let meta = match self.read_meta_at(&proc_path(dir.as_fd(), name)) {
            Ok(meta) => meta,
            Err(ReadError::Errno(error)) => return Err(error),
            Err(ReadError::Damaged(problem)) => {
                let path = self.shown_path(parent, name);
                self.report_damage(format!("{path} in directory {parent}: {problem}"));
                return Err(Errno::EIO);
            }
        };
        if let Some(meta) = &meta {
            self.heal_dir_handle(meta, parent, name)?;
            self.metas.put(meta.gfid, meta.clone());
        }
        self.seen.put(parent, name, meta.as_ref().map(|meta| meta.gfid));
        Ok(meta)
    }

    fn bears(&mut self, gfid: &Gfid, parent: &Gfid, name: &[u8]) -> Result<bool, Errno> {
        match self.seen.get(parent, name) {
            Some(found) => Ok(found == Some(*gfid)),
            None => Ok(self.entry(parent, name)?.is_some_and(|meta| meta.gfid == *gfid)),
        }
    }

    fn meta(&mut self, gfid: &Gfid) -> Result<Meta, Errno> {
        if let Some(meta) = self.metas.get(gfid) {
            return Ok(meta.clone());
        }
        let path = proc_path(self.handles.as_fd(), handle_path(gfid).as_bytes());
        let file = if *gfid == Gfid::ROOT { None } else { self.read_meta_of(gfid, &path)? };
        let meta = match file {
            Some(meta) => meta,
            None => match self.dir(gfid) {
                Ok(dir) => read_meta_of_dir(dir.as_fd())?,
                Err(Errno::ENOENT) => {
                    let path = proc_path(self.orphans.as_fd(), gfid.hex().as_bytes());
                    self.read_meta_of(gfid, &path)?.ok_or(Errno::ESTALE)?
                }
                Err(error) => return Err(error),
            },
        };
        self.metas.put(*gfid, meta.clone());
        Ok(meta)
    }

    fn attr(&mut self, gfid: &Gfid) -> Result<Attr, Errno> {
        let meta = self.meta(gfid)?;
        let stat = self.stat_raw(gfid, &meta)?;
        let change = if meta.kind == Kind::Directory { self.changes.of(gfid) } else { 0 };
        Ok(compute_attr(&meta, &stat, self.names_of(gfid, &stat), change))
    }

    fn claim(&self, parent: &Gfid, name: &[u8]) -> Result<Option<Claim>, Errno> {
        let text = match rustix::fs::readlinkat(&self.claims, claim_path(parent, name), Vec::new()) {
            Ok(text) => text.into_bytes(),
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(error) => return Err(errno(error)),
        };
        records::read_claim(&text).map(Some).ok_or(Errno::EIO)
    }

    fn has_claims(&self, dir: &Gfid) -> Result<bool, Errno> {
        match rustix::fs::statat(&self.claims, dir.hex(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(rustix::io::Errno::NOENT) => Ok(false),
            Err(error) => Err(errno(error)),
        }
    }

    fn has_dir(&mut self, gfid: &Gfid) -> Result<bool, Errno> {
        match self.dir(gfid) {
            Ok(_) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn dir_place(&self, gfid: &Gfid) -> Result<Option<(Gfid, Vec<u8>)>, Errno> {
        let target = match rustix::fs::readlinkat(&self.handles, dir_handle_path(gfid), Vec::new()) {
            Ok(target) => target.into_bytes(),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::INVAL) => return Ok(None),
            Err(error) => return Err(errno(error)),
        };
        Ok(records::read_dir_handle(&target))
    }

    fn link_count(&mut self, gfid: &Gfid) -> Result<u32, Errno> {
        let meta = self.meta(gfid)?;
        let stat = self.stat_raw(gfid, &meta)?;
        Ok(self.names_of(gfid, &stat))
    }

    fn default_acl(&mut self, gfid: &Gfid) -> Result<Option<Vec<u8>>, Errno> {
        if self.meta(gfid)?.flags & HAS_DEFAULT_ACL == 0 {
            return Ok(None);
        }
        self.xattr(gfid, DEFAULT_ACL.as_bytes()).map(Some)
    }

    fn names(&mut self, gfid: &Gfid) -> Result<Vec<Vec<u8>>, Errno> {
        let dir = match self.dir(gfid) {
            Ok(dir) => dir,
            Err(Errno::ENOENT) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut names = self.own_names(dir.as_fd())?;
        if *gfid == Gfid::ROOT {
            names.retain(|name| name != DOT_DIR.as_bytes());
        }
        Ok(names)
    }

    fn touch_from(&mut self, gfid: &Gfid, set: SetId, touch: TouchedAt, subdirs: Option<u32>) -> Result<(), Errno> {
        self.take_touch(gfid, set, touch, subdirs)
    }

    fn pending_parts(&mut self) -> Result<Vec<PendingPart>, Errno> {
        self.read_pending_parts()
    }

    fn commits(&mut self) -> Result<Vec<(TxId, Commitment, bool)>, Errno> {
        self.read_commits()
    }

    fn handles(&self, first: u8) -> Result<Vec<(Gfid, bool)>, Errno> {
        let bucket = match open_dir(self.handles.as_fd(), format!("{first:02x}").as_bytes()) {
            Ok(bucket) => bucket,
            Err(Errno::ENOENT) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut found = Vec::new();
        for second in self.own_names(bucket.as_fd())? {
            let names = self.own_names(open_dir(bucket.as_fd(), &second)?.as_fd())?;
            found.extend(names.iter().filter_map(|name| {
                let name = std::str::from_utf8(name).ok()?;
                let (hex, is_dir) = name.strip_suffix(".d").map_or((name, false), |hex| (hex, true));
                Some((hex.parse().ok()?, is_dir))
            }));
        }
        Ok(found)
    }

    fn claim_parents(&self) -> Result<Vec<Gfid>, Errno> {
        let names = self.own_names(self.claims.as_fd())?;
        Ok(names.iter().filter_map(|name| std::str::from_utf8(name).ok()?.parse().ok()).collect())
    }

    fn heal_file_handle(&mut self, gfid: &Gfid, parent: &Gfid, name: &[u8]) -> Result<(), Errno> {
        let dir = self.dir(parent)?;
        self.make_bucket(gfid)?;
        match rustix::fs::linkat(&*dir, name, &self.handles, handle_path(gfid), AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
            Err(error) => Err(errno(error)),
        }
    }

    fn drop_unfinished(&mut self, gfid: &Gfid) -> Result<bool, Errno> {
        self.drop_unfinished_file(gfid)
    }

    fn orphans(&self) -> Result<Vec<Gfid>, Errno> {
        let names = self.own_names(self.orphans.as_fd())?;
        Ok(names.iter().filter_map(|name| std::str::from_utf8(name).ok()?.parse().ok()).collect())
    }

    fn delete_orphan(&mut self, gfid: &Gfid) -> Result<(), Errno> {
        if !self.orphaned.contains(gfid) {
            return Ok(());
        }
        self.files.pop(gfid);
        self.metas.pop(gfid);
        apply::unless(rustix::fs::unlinkat(&self.orphans, gfid.hex(), AtFlags::empty()), rustix::io::Errno::NOENT)?;
        self.orphaned.remove(gfid);
        Ok(())
    }

    fn shown_path(&mut self, parent: &Gfid, name: &[u8]) -> String {
        let mut parts = vec![name.escape_ascii().to_string()];
        let mut at = *parent;
        while at != Gfid::ROOT && parts.len() < SHOWN_DEPTH_MAX {
            match self.dir_place(&at) {
                Ok(Some((above, name))) if above != limbo_gfid() => {
                    parts.push(name.escape_ascii().to_string());
                    at = above;
                }
                _ => {
                    parts.push(format!("({at})"));
                    break;
                }
            }
        }
        parts.push(self.path.display().to_string());
        parts.reverse();
        parts.join("/")
    }

    fn report_damage(&mut self, line: String) {
        if self.is_redoing {
            tracing::debug!(brick = %self.path.display(), "cut short: {line}");
            return;
        }
        if self.damage.len() < DAMAGE_LINES_MAX && !self.damage.contains(&line) {
            tracing::error!(brick = %self.path.display(), "{line}");
            self.damage.push(line);
        }
    }
}

impl PosixStore {
    /// Links of a file that are names: neither its handle nor what is parked.
    fn names_of(&self, gfid: &Gfid, stat: &Stat) -> u32 {
        let ours = 1 + self.parked_links.get(gfid).copied().unwrap_or(0);
        (stat.st_nlink as u32).saturating_sub(ours)
    }
}

/// Why a record could not be read.
enum ReadError {
    Errno(Errno),
    Damaged(String),
}

/// ESTALE for an object that is not there.
fn gone(error: rustix::io::Errno) -> Errno {
    if error == rustix::io::Errno::NOENT { Errno::ESTALE } else { errno(error) }
}
