//! What stat(2) shows of an object, from its record and the brick's file.

use crate::brick::meta::{HAS_ACCESS_ACL, HAS_CAPABILITY, HAS_DEFAULT_ACL, Meta};
use brickfs_common::attr::{Attr, Kind, Timestamp};
use rustix::fs::Stat;

/// Attributes from the record and stat(2). The ctime is the record's, or mtime where a plain write
/// moved it later: the local mtime then lies at or before the local ctime, which an mtime that a user
/// set into the future does not. 20 ms cover the coarse clock of local file systems.
pub(super) fn compute_attr(meta: &Meta, stat: &Stat, names: u32, change: u64) -> Attr {
    let time = |sec: i64, nsec| Timestamp { sec, nsec: nsec as u32 };
    let mtime = time(stat.st_mtime, stat.st_mtime_nsec);
    let local_ctime = time(stat.st_ctime, stat.st_ctime_nsec);
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
        nlink: if is_dir { 2 + meta.subdirs_everywhere() } else { names },
        size: if is_dir { 4096 } else { stat.st_size as u64 },
        blocks: stat.st_blocks as u64,
        rdev: meta.rdev,
        atime: time(stat.st_atime, stat.st_atime_nsec),
        mtime,
        ctime,
        btime: meta.btime,
        project: meta.project,
        has_capability: meta.flags & HAS_CAPABILITY != 0,
        has_acl: meta.flags & (HAS_ACCESS_ACL | HAS_DEFAULT_ACL) != 0,
        change,
    }
}
