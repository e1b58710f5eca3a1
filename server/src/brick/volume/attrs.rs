//! Attributes, extended attributes and the volume's space.

use super::namespace::known;
use super::{Asker, Volume, done};
use crate::brick::effect::{Outcome, Step};
use brickfs_common::attr::{Kind, SetAttr, SetTime, StatFs, Timestamp};
use brickfs_common::errno::Errno;
use brickfs_common::fop::{Answer, FopReply, ObjectRef};
use brickfs_common::ids::SetId;
use brickfs_common::name::RESERVED_XATTR_PREFIX;
use bytes::Bytes;
use std::collections::HashSet;

const XATTR_CREATE: u32 = 1;
const XATTR_REPLACE: u32 = 2;
/// Longest value that every local file system we know takes in one attribute is less; they say so.
const XATTR_VALUE_MAX: usize = 65536;

impl Volume {
    pub(super) fn get_attr(&mut self, asker: Asker, object: ObjectRef) -> Result<FopReply, Errno> {
        self.meta(object)?;
        Ok(FopReply { attr: Some(self.attr(object)?), ..done(asker.request) })
    }

    pub(super) fn set_attr(&mut self, asker: Asker, object: ObjectRef, set: SetAttr) -> Result<FopReply, Errno> {
        let meta = self.meta(object)?;
        let time = self.now();
        let mut perm = set.perm.map(|perm| perm & 0o7777);
        if let Some(size) = set.size {
            match meta.kind {
                Kind::File => {}
                Kind::Directory => return Err(Errno::EISDIR),
                _ => return Err(Errno::EINVAL),
            }
            let attr = self.attr(object)?;
            if size > attr.size {
                self.check_space(object.home, 0)?;
            }
            if set.kill_suidgid && perm.is_none() {
                perm = without_suidgid(attr.perm);
            }
        }
        let at = |time_to_set: Option<SetTime>| -> Option<Timestamp> {
            time_to_set.map(|t| match t {
                SetTime::Now => time,
                SetTime::At(at) => at,
            })
        };
        let step = Step::SetAttr {
            gfid: object.gfid.0,
            perm,
            uid: set.uid,
            gid: set.gid,
            size: set.size,
            atime: at(set.atime),
            mtime: at(set.mtime).or(set.size.map(|_| time)),
            time,
        };
        self.commit(asker, object.home, vec![(object.home, step)], of(object))?;
        Ok(FopReply { attr: Some(self.attr(object)?), ..done(asker.request) })
    }

    pub(super) fn read_link(&mut self, asker: Asker, object: ObjectRef) -> Result<FopReply, Errno> {
        let target = self.store(object.home)?.read_link(&object.gfid)?;
        Ok(FopReply { result: Ok(Answer::Data(Bytes::from(target))), ..done(asker.request) })
    }

    pub(super) fn set_xattr(
        &mut self,
        asker: Asker,
        object: ObjectRef,
        name: &Bytes,
        value: Option<&Bytes>,
        flags: u32,
    ) -> Result<FopReply, Errno> {
        if name.starts_with(RESERVED_XATTR_PREFIX) {
            return Err(Errno::EPERM);
        }
        self.meta(object)?;
        let store = self.store(object.home)?;
        let exists = match store.xattr(&object.gfid, name) {
            Ok(_) => true,
            Err(Errno::ENODATA) => false,
            Err(error) => return Err(error),
        };
        match value {
            None if !exists => return Err(Errno::ENODATA),
            Some(_) if exists && flags & XATTR_CREATE != 0 => return Err(Errno::EEXIST),
            Some(_) if !exists && flags & XATTR_REPLACE != 0 => return Err(Errno::ENODATA),
            Some(value) if value.len() > XATTR_VALUE_MAX => return Err(Errno::E2BIG),
            _ => {}
        }
        if value.is_some() {
            self.check_space(object.home, 0)?;
        }
        let time = self.now();
        let step = Step::Xattr { gfid: object.gfid.0, name: name.to_vec(), value: value.map(|v| v.to_vec()), time };
        self.commit(asker, object.home, vec![(object.home, step)], of(object))?;
        Ok(FopReply { attr: Some(self.attr(object)?), ..done(asker.request) })
    }

    pub(super) fn get_xattr(&mut self, asker: Asker, object: ObjectRef, name: &Bytes) -> Result<FopReply, Errno> {
        if name.starts_with(RESERVED_XATTR_PREFIX) {
            return Err(Errno::ENODATA);
        }
        let value = self.store(object.home)?.xattr(&object.gfid, name)?;
        Ok(FopReply { result: Ok(Answer::Data(Bytes::from(value))), ..done(asker.request) })
    }

    pub(super) fn list_xattr(&mut self, asker: Asker, object: ObjectRef) -> Result<FopReply, Errno> {
        let names = self.store(object.home)?.xattr_names(&object.gfid)?;
        Ok(FopReply { result: Ok(Answer::Data(Bytes::from(names))), ..done(asker.request) })
    }

    /// Sums the sets, bricks of one file system once, the reserve taken off (PROTOCOL 40).
    pub(super) fn stat_fs(&mut self, asker: Asker) -> Result<FopReply, Errno> {
        let mut seen = HashSet::new();
        let mut sum = StatFs::default();
        for index in 0..self.sets.len() {
            let Ok(store) = self.store(SetId(index as u16)) else { continue };
            if !seen.insert(store.device) {
                continue;
            }
            let space = store.space()?;
            let unit = space.f_frsize;
            let total_bytes = space.f_blocks.saturating_mul(unit);
            let reserve = (total_bytes as f64 * self.reserve_percent / 100.0) as u64;
            sum.total_bytes += total_bytes;
            sum.free_bytes += space.f_bfree.saturating_mul(unit).saturating_sub(reserve);
            sum.available_bytes += space.f_bavail.saturating_mul(unit).saturating_sub(reserve);
            sum.total_inodes += space.f_files;
            sum.free_inodes += space.f_ffree;
        }
        Ok(FopReply { result: Ok(Answer::Space(sum)), ..done(asker.request) })
    }
}

/// The outcome of an operation on one object.
pub fn of(object: ObjectRef) -> Outcome {
    Outcome { object: known(object), ..Outcome::default() }
}

/// Permission bits without setuid, and without setgid where it means "run as group" (the group may
/// execute); `None` if nothing changes.
pub fn without_suidgid(perm: u32) -> Option<u32> {
    let setgid = if perm & 0o010 != 0 { 0o2000 } else { 0 };
    let kept = perm & !(0o4000 | setgid);
    (kept != perm).then_some(kept)
}
