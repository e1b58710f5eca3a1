//! Objects by their gfids: open descriptors, and what is read through them.

use super::{PosixStore, XATTR_VALUE_MAX, errno, gone, handle_path, open_beneath, proc_path};
use crate::brick::meta::Meta;
use crate::brick::store::BrickStore as _;
use brickfs_common::attr::Kind;
use brickfs_common::errno::Errno;
use brickfs_common::ids::Gfid;
use brickfs_common::volume_spec::Atime;
use rustix::fs::{AtFlags, OFlags, Stat};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

impl PosixStore {
    /// stat(2) of an object of this brick.
    pub(super) fn stat_raw(&mut self, gfid: &Gfid, meta: &Meta) -> Result<Stat, Errno> {
        if meta.kind == Kind::Directory {
            let dir = self.dir(gfid)?;
            return rustix::fs::fstat(&*dir).map_err(errno);
        }
        if let Some(fd) = self.files.get(gfid) {
            return rustix::fs::fstat(&**fd).map_err(errno);
        }
        match rustix::fs::statat(&self.handles, handle_path(gfid), AtFlags::SYMLINK_NOFOLLOW) {
            Err(rustix::io::Errno::NOENT) => {
                rustix::fs::statat(&self.orphans, gfid.hex(), AtFlags::SYMLINK_NOFOLLOW).map_err(gone)
            }
            other => other.map_err(errno),
        }
    }

    /// An open descriptor of a regular file, for reading and writing. Reading through it does not change
    /// the access time: the volume's option decides that, not how the brick's disk is mounted.
    pub fn file(&mut self, gfid: &Gfid) -> Result<Arc<OwnedFd>, Errno> {
        if let Some(fd) = self.files.get(gfid) {
            return Ok(fd.clone());
        }
        let fd = Arc::new(self.open_object(gfid, OFlags::RDWR | OFlags::NOATIME)?);
        self.files.put(*gfid, fd.clone());
        Ok(fd)
    }

    /// A file anew, open for reading only. Its kernel keeps the access time as `policy` says; none where it cannot.
    pub fn file_to_read(&mut self, gfid: &Gfid, policy: Atime) -> Result<Option<OwnedFd>, Errno> {
        let noatime = match policy {
            Atime::Noatime => OFlags::NOATIME,
            Atime::Relatime if self.keeps_relatime => OFlags::empty(),
            Atime::Relatime | Atime::Strict => return Ok(None),
        };
        self.open_object(gfid, OFlags::RDONLY | noatime).map(Some)
    }

    fn open_object(&self, gfid: &Gfid, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::NONBLOCK;
        match open_beneath(self.handles.as_fd(), handle_path(gfid), flags) {
            Err(Errno::ENOENT) => match open_beneath(self.orphans.as_fd(), gfid.hex(), flags) {
                Err(Errno::ENOENT) => Err(Errno::ESTALE),
                other => other,
            },
            other => other,
        }
    }

    /// The path by which xattr calls reach an object.
    pub(super) fn object_path(&mut self, gfid: &Gfid) -> Result<Vec<u8>, Errno> {
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
        let mut value = vec![0u8; XATTR_VALUE_MAX];
        let n = rustix::fs::lgetxattr(path, name, &mut value[..]).map_err(errno)?;
        value.truncate(n);
        Ok(value)
    }

    /// Names of extended attributes, each with a NUL behind it, ours left out.
    pub fn xattr_names(&mut self, gfid: &Gfid) -> Result<Vec<u8>, Errno> {
        let path = self.object_path(gfid)?;
        let mut names = vec![0u8; XATTR_VALUE_MAX];
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
}
