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
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
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

impl SetAttr {
    /// The one change that does what this and then `later` do; `None` if there is none. A change of owner takes setuid
    /// and setgid away, so that only a mode without them may come before it.
    pub fn followed_by(&self, later: &SetAttr) -> Option<SetAttr> {
        let has_size = self.size.is_some() || later.size.is_some();
        let changes_owner = later.uid.is_some() || later.gid.is_some();
        let loses_bits =
            changes_owner && later.perm.is_none() && self.perm.is_some_and(|perm| perm & SETUID_SETGID != 0);
        if has_size || loses_bits {
            return None;
        }
        Some(SetAttr {
            perm: later.perm.or(self.perm),
            uid: later.uid.or(self.uid),
            gid: later.gid.or(self.gid),
            size: None,
            atime: later.atime.or(self.atime),
            mtime: later.mtime.or(self.mtime),
            kill_suidgid: self.kill_suidgid || later.kill_suidgid,
        })
    }

    /// What a file's attributes are after it, as far as that can be told without the server: not its ctime, and not
    /// times that the server's clock gives.
    pub fn applied_to(&self, attr: &Attr) -> Attr {
        let changes_owner = self.uid.is_some() || self.gid.is_some();
        let kept = if changes_owner { without_suidgid(attr.perm).unwrap_or(attr.perm) } else { attr.perm };
        let given = |time: Option<SetTime>, old: Timestamp| match time {
            Some(SetTime::At(time)) => time,
            Some(SetTime::Now) | None => old,
        };
        Attr {
            perm: self.perm.unwrap_or(kept),
            uid: self.uid.unwrap_or(attr.uid),
            gid: self.gid.unwrap_or(attr.gid),
            atime: given(self.atime, attr.atime),
            mtime: given(self.mtime, attr.mtime),
            ..attr.clone()
        }
    }
}

/// S_ISUID and S_ISGID.
const SETUID_SETGID: u32 = 0o6000;

/// Permission bits without setuid, and without setgid where it means "run as group" (the group may
/// execute); `None` if nothing changes.
pub fn without_suidgid(perm: u32) -> Option<u32> {
    let setgid = if perm & 0o010 != 0 { 0o2000 } else { 0 };
    let kept = perm & !(0o4000 | setgid);
    (kept != perm).then_some(kept)
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

    fn perm(perm: u32) -> SetAttr {
        SetAttr { perm: Some(perm), ..SetAttr::default() }
    }

    const OWNER: SetAttr =
        SetAttr { uid: Some(5), gid: Some(6), perm: None, size: None, atime: None, mtime: None, kill_suidgid: false };

    #[test]
    fn changes_are_merged_unless_their_order_shows() {
        let times = SetAttr { mtime: Some(SetTime::At(Timestamp { sec: 9, nsec: 1 })), ..SetAttr::default() };
        let all = times.followed_by(&OWNER).and_then(|set| set.followed_by(&perm(0o4755)));
        assert_eq!(all, Some(SetAttr { perm: Some(0o4755), mtime: times.mtime, ..OWNER }), "as tar asks for them");
        assert_eq!(perm(0o644).followed_by(&OWNER), Some(SetAttr { perm: Some(0o644), ..OWNER }));
        assert_eq!(perm(0o4755).followed_by(&OWNER), None, "the owner's change takes setuid away");
        assert_eq!(perm(0o600).followed_by(&perm(0o644)), Some(perm(0o644)), "the later one wins");
        let cut = SetAttr { size: Some(0), ..SetAttr::default() };
        assert_eq!((cut.followed_by(&times), times.followed_by(&cut)), (None, None));
    }

    #[test]
    fn setuid_and_setgid_go_with_the_owner() {
        assert_eq!(without_suidgid(0o6755), Some(0o755));
        assert_eq!(without_suidgid(0o2644), None, "without execution by the group it means locking");
    }
}
