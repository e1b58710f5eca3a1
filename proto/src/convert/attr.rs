//! Attributes on the wire.

use crate::v1;
use brickfs_common::attr::{Attr, Kind, SetAttr, SetTime, Timestamp};
use brickfs_common::errno::Errno;
use brickfs_common::ids::{Gfid, SetId};
use bytes::Bytes;

/// A set number; wire numbers above 65535 do not exist.
pub fn set_id(number: u32) -> Result<SetId, Errno> {
    u16::try_from(number).map(SetId).map_err(|_| Errno::EINVAL)
}

/// A gfid of exactly 16 bytes.
pub fn gfid(bytes: &[u8]) -> Result<Gfid, Errno> {
    Gfid::from_slice(bytes).ok_or(Errno::EINVAL)
}

fn time(sec: i64, nsec: u32) -> Result<Timestamp, Errno> {
    if nsec < 1_000_000_000 { Ok(Timestamp { sec, nsec }) } else { Err(Errno::EINVAL) }
}

impl From<&Attr> for v1::Attr {
    fn from(a: &Attr) -> v1::Attr {
        v1::Attr {
            gfid: Bytes::copy_from_slice(&a.gfid.0),
            home: u32::from(a.home.0),
            mode: a.kind.mode_bits() | a.perm,
            uid: a.uid,
            gid: a.gid,
            nlink: a.nlink,
            size: a.size,
            blocks: a.blocks,
            rdev: a.rdev,
            atime: a.atime.sec,
            atime_nsec: a.atime.nsec,
            mtime: a.mtime.sec,
            mtime_nsec: a.mtime.nsec,
            ctime: a.ctime.sec,
            ctime_nsec: a.ctime.nsec,
            btime: a.btime.sec,
            btime_nsec: a.btime.nsec,
            project: a.project,
            has_capability: a.has_capability,
            has_acl: a.has_acl,
            change: a.change,
        }
    }
}

impl TryFrom<v1::Attr> for Attr {
    type Error = Errno;
    fn try_from(a: v1::Attr) -> Result<Attr, Errno> {
        Ok(Attr {
            gfid: gfid(&a.gfid)?,
            home: set_id(a.home)?,
            kind: Kind::from_mode(a.mode).ok_or(Errno::EINVAL)?,
            perm: a.mode & 0o7777,
            uid: a.uid,
            gid: a.gid,
            nlink: a.nlink,
            size: a.size,
            blocks: a.blocks,
            rdev: a.rdev,
            atime: time(a.atime, a.atime_nsec)?,
            mtime: time(a.mtime, a.mtime_nsec)?,
            ctime: time(a.ctime, a.ctime_nsec)?,
            btime: time(a.btime, a.btime_nsec)?,
            project: a.project,
            has_capability: a.has_capability,
            has_acl: a.has_acl,
            change: a.change,
        })
    }
}

fn set_time_to_wire(t: SetTime) -> v1::Time {
    match t {
        SetTime::Now => v1::Time { now: true, sec: 0, nsec: 0 },
        SetTime::At(at) => v1::Time { now: false, sec: at.sec, nsec: at.nsec },
    }
}

fn set_time(t: Option<v1::Time>) -> Result<Option<SetTime>, Errno> {
    t.map(|t| if t.now { Ok(SetTime::Now) } else { time(t.sec, t.nsec).map(SetTime::At) }).transpose()
}

impl From<SetAttr> for v1::SetAttr {
    fn from(s: SetAttr) -> v1::SetAttr {
        v1::SetAttr {
            perm: s.perm,
            uid: s.uid,
            gid: s.gid,
            size: s.size,
            atime: s.atime.map(set_time_to_wire),
            mtime: s.mtime.map(set_time_to_wire),
            kill_suidgid: s.kill_suidgid,
        }
    }
}

impl TryFrom<v1::SetAttr> for SetAttr {
    type Error = Errno;
    fn try_from(s: v1::SetAttr) -> Result<SetAttr, Errno> {
        Ok(SetAttr {
            perm: s.perm,
            uid: s.uid,
            gid: s.gid,
            size: s.size.map(|size| if size > i64::MAX as u64 { Err(Errno::EFBIG) } else { Ok(size) }).transpose()?,
            atime: set_time(s.atime)?,
            mtime: set_time(s.mtime)?,
            kill_suidgid: s.kill_suidgid,
        })
    }
}
