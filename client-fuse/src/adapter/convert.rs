//! Domain types from and to fuser's.

use brickfs_common::attr::{Attr, Kind, SetTime, Timestamp};
use brickfs_common::errno::Errno;
use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Preferred size of I/O shown by stat(2), in bytes.
const BLOCK_BYTES: u32 = 4096;

/// An errno as fuser has it.
pub fn fuse_errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.0)
}

/// A file type as fuser has it.
pub fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
    }
}

fn system_time(t: Timestamp) -> SystemTime {
    let whole = Duration::from_secs(t.sec.unsigned_abs());
    let base = if t.sec >= 0 { UNIX_EPOCH.checked_add(whole) } else { UNIX_EPOCH.checked_sub(whole) };
    base.and_then(|base| base.checked_add(Duration::from_nanos(u64::from(t.nsec)))).unwrap_or(UNIX_EPOCH)
}

/// A time to set.
pub fn set_time(time: TimeOrNow) -> SetTime {
    let at = match time {
        TimeOrNow::Now => return SetTime::Now,
        TimeOrNow::SpecificTime(at) => at,
    };
    SetTime::At(match at.duration_since(UNIX_EPOCH) {
        Ok(after) => Timestamp { sec: after.as_secs() as i64, nsec: after.subsec_nanos() },
        // fuser 0.18 reads the kernel's (seconds, nanoseconds) before 1970 as -(|seconds| + nanoseconds),
        // where the kernel means -|seconds| + nanoseconds: what the kernel said is taken out again.
        Err(before) => {
            let before = before.duration();
            Timestamp { sec: -(before.as_secs() as i64), nsec: before.subsec_nanos() }
        }
    })
}

/// Attributes under the inode number that this mount shows.
pub fn file_attr(ino: u64, a: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino),
        size: a.size,
        blocks: a.blocks,
        atime: system_time(a.atime),
        mtime: system_time(a.mtime),
        ctime: system_time(a.ctime),
        crtime: system_time(a.btime),
        kind: file_type(a.kind),
        perm: a.perm as u16,
        nlink: a.nlink,
        uid: a.uid,
        gid: a.gid,
        rdev: a.rdev,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_keep_their_nanoseconds() {
        for t in
            [Timestamp { sec: -5, nsec: 250 }, Timestamp { sec: -1, nsec: 0 }, Timestamp { sec: 7, nsec: 999_999_999 }]
        {
            // What fuser 0.18 makes of the kernel's (seconds, nanoseconds).
            let passed = match t.sec {
                0.. => system_time(t),
                before => UNIX_EPOCH - Duration::new(before.unsigned_abs(), t.nsec),
            };
            assert_eq!(set_time(TimeOrNow::SpecificTime(passed)), SetTime::At(t));
        }
    }
}
