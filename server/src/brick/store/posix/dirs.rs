//! Directories by their gfids: how they are found and opened, and handles that a crash has left behind.

use super::{PosixStore, errno, open_dir};
use crate::brick::meta::{META_LEN_MAX, META_XATTR, Meta};
use crate::brick::store::{BrickStore as _, DEPTH_MAX};
use brickfs_common::attr::Kind;
use brickfs_common::errno::Errno;
use brickfs_common::ids::Gfid;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

impl PosixStore {
    /// An open descriptor of a directory: ENOENT if this brick has none of that gfid.
    pub fn dir(&mut self, gfid: &Gfid) -> Result<Arc<OwnedFd>, Errno> {
        // Up to what is open, then down again.
        let (mut at, mut way) = (*gfid, Vec::new());
        let mut fd = loop {
            if at == Gfid::ROOT {
                break self.root.clone();
            }
            if self.parked_dirs.contains(&at) {
                return Err(Errno::ENOENT);
            }
            if let Some(fd) = self.dirs.get(&at) {
                break fd.clone();
            }
            let (parent, name) = self.dir_place(&at)?.ok_or(Errno::ENOENT)?;
            if way.len() >= DEPTH_MAX {
                return Err(Errno::ENOENT); // handles that a crash left leading in a circle
            }
            way.push((at, name));
            if parent == limbo_gfid() {
                break Arc::new(rustix::io::dup(&self.limbo).map_err(errno)?);
            }
            at = parent;
        };
        for (gfid, name) in way.into_iter().rev() {
            let next = open_dir(fd.as_fd(), &name)?;
            let meta = read_meta_of_dir(next.as_fd())?;
            if meta.gfid != gfid {
                // It has moved, which a crash has kept from its handle: see `heal_dir_handle`.
                tracing::info!("handle of directory {gfid} leads to {} ({})", name.escape_ascii(), meta.gfid);
                return Err(Errno::ENOENT);
            }
            fd = Arc::new(next);
            self.metas.put(gfid, meta);
            self.dirs.put(gfid, fd.clone());
        }
        Ok(fd)
    }

    /// A directory of ours or of the volume as the physical parent of an entry.
    pub(super) fn physical_dir(&mut self, parent: &Gfid) -> Result<Arc<OwnedFd>, Errno> {
        if *parent == limbo_gfid() {
            return Ok(Arc::new(rustix::io::dup(&self.limbo).map_err(errno)?));
        }
        self.dir(parent)
    }

    /// A directory whose handle a power loss left behind its name gets its handle back.
    pub(super) fn heal_dir_handle(&mut self, meta: &Meta, parent: &Gfid, name: &[u8]) -> Result<(), Errno> {
        if meta.kind != Kind::Directory || self.dirs.contains(&meta.gfid) {
            return Ok(());
        }
        let is_whole = self.dir_place(&meta.gfid)?.is_some_and(|(p, n)| p == *parent && n == name);
        if is_whole {
            return Ok(());
        }
        tracing::warn!(brick = %self.path.display(), gfid = %meta.gfid, "the handle of a directory was missing");
        self.put_dir_handle(&meta.gfid, parent, name)
    }

    /// A crash may have kept a copy's way into the limbo from its handle.
    pub(super) fn heal_limbo(&mut self) -> Result<(), Errno> {
        for name in self.own_names(self.limbo.as_fd())? {
            let gfid: Option<Gfid> = std::str::from_utf8(&name).ok().and_then(|name| name.parse().ok());
            let Some(gfid) = gfid else { continue };
            if self.dir_place(&gfid)? != Some((limbo_gfid(), name.clone())) {
                self.put_dir_handle(&gfid, &limbo_gfid(), &name)?;
            }
        }
        Ok(())
    }
}

pub fn read_meta_of_dir(fd: BorrowedFd<'_>) -> Result<Meta, Errno> {
    let mut bytes = [0u8; META_LEN_MAX];
    let n = rustix::fs::fgetxattr(fd, META_XATTR, &mut bytes[..]).map_err(errno)?;
    Meta::decode(&bytes[..n]).map_err(|_| Errno::EIO)
}

/// The parent gfid that stands for `.brickfs/limbo`.
pub fn limbo_gfid() -> Gfid {
    Gfid([0xff; 16])
}
