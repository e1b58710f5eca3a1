//! Attributes of objects as every member, client and mount sees them.

use crate::ids::{Gfid, SetId};
use serde::{Deserialize, Serialize};

/// Seconds and nanoseconds since the epoch. `nsec` is below 1,000,000,000.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Timestamp {
    /// Seconds since 1970-01-01 UTC; may be negative.
    pub sec: i64,
    /// Nanoseconds within the second.
    pub nsec: u32,
}

/// What an object is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[allow(missing_docs)] // the names are the file types of inode(7)
pub enum Kind {
    File,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

impl Kind {
    /// The `S_IFMT` bits of this kind.
    pub fn mode_bits(self) -> u32 {
        match self {
            Kind::Fifo => 0o010000,
            Kind::CharDevice => 0o020000,
            Kind::Directory => 0o040000,
            Kind::BlockDevice => 0o060000,
            Kind::File => 0o100000,
            Kind::Symlink => 0o120000,
            Kind::Socket => 0o140000,
        }
    }

    /// The kind that a mode's `S_IFMT` bits name.
    pub fn from_mode(mode: u32) -> Option<Kind> {
        [Kind::Fifo, Kind::CharDevice, Kind::Directory, Kind::BlockDevice, Kind::File, Kind::Symlink, Kind::Socket]
            .into_iter()
            .find(|kind| kind.mode_bits() == mode & 0o170000)
    }

    /// Kinds that a brick keeps as a record in an empty ordinary file, never as the real thing.
    pub fn is_record(self) -> bool {
        matches!(self, Kind::Fifo | Kind::Socket | Kind::CharDevice | Kind::BlockDevice)
    }
}

/// Attributes of one object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attr {
    /// The object.
    pub gfid: Gfid,
    /// The set that holds its inode.
    pub home: SetId,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, with setuid, setgid and sticky (07777).
    pub perm: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names it has; for a directory 2 + its subdirectories.
    pub nlink: u32,
    /// Bytes.
    pub size: u64,
    /// Allocated units of 512 bytes.
    pub blocks: u64,
    /// Device number (Linux `new_encode_dev` as FUSE carries it); 0 unless a device.
    pub rdev: u32,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the contents.
    pub mtime: Timestamp,
    /// Last change of contents or attributes.
    pub ctime: Timestamp,
    /// Birth.
    pub btime: Timestamp,
    /// Project number, inherited from the parent directory (for quotas).
    pub project: u32,
    /// Whether the object carries `security.capability`: clients answer "none" locally if not.
    pub has_capability: bool,
    /// Whether the object carries a POSIX ACL (access, or default for a directory).
    pub has_acl: bool,
    /// Directories: counts every change of entries at this object's home since the brick opened; a
    /// cache of names is valid only while it has not moved. Zero for others.
    pub change: u64,
}

/// What `setattr` is to change; `None` leaves a field as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs)] // fields are those of setattr(9)
pub struct SetAttr {
    pub perm: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
    /// Whether a change of size drops setuid and setgid (the caller lacks CAP_FSETID).
    pub kill_suidgid: bool,
}

/// A time to set: a given one, or the server's clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetTime {
    /// UTIME_NOW: the time at which the server decides.
    Now,
    /// This very time.
    At(Timestamp),
}

/// Space of a volume, in bytes and inodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StatFs {
    /// Total bytes.
    pub total_bytes: u64,
    /// Free bytes, the reserve taken off.
    pub free_bytes: u64,
    /// Bytes that a user without privilege can use.
    pub available_bytes: u64,
    /// Total inodes.
    pub total_inodes: u64,
    /// Free inodes.
    pub free_inodes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_mode_bits_are_one_to_one() {
        for kind in
            [Kind::File, Kind::Directory, Kind::Symlink, Kind::Fifo, Kind::Socket, Kind::CharDevice, Kind::BlockDevice]
        {
            assert_eq!(Kind::from_mode(kind.mode_bits() | 0o7777), Some(kind));
        }
        assert_eq!(Kind::from_mode(0o777), None);
    }
}
