//! The record that every object on a brick carries in `trusted.brickfs.meta`: its gfid and what a local
//! file system cannot keep for us. 64 bytes, little endian; the layout is fixed in `docs/design/formats.md`.

use brickfs_common::attr::{Kind, Timestamp};
use brickfs_common::ids::{Gfid, SetId};

/// Name of the extended attribute.
pub const META_XATTR: &str = "trusted.brickfs.meta";
/// Length of the record in bytes.
pub const META_LEN: usize = 64;
const VERSION: u8 = 1;

/// `security.capability` is set.
pub const HAS_CAPABILITY: u16 = 1;
/// A POSIX access ACL is set.
pub const HAS_ACCESS_ACL: u16 = 2;
/// A POSIX default ACL is set (directories).
pub const HAS_DEFAULT_ACL: u16 = 4;

/// The record of one object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Meta {
    /// The object.
    pub gfid: Gfid,
    /// What it is; records (fifo, socket, device) are empty ordinary files on the brick.
    pub kind: Kind,
    /// `HAS_*` bits.
    pub flags: u16,
    /// Project number (quotas), inherited from the parent.
    pub project: u32,
    /// Birth.
    pub btime: Timestamp,
    /// Time of the last explicit change of attributes or names. The answered ctime is the later of
    /// this and mtime, see `Store::ctime`.
    pub ctime: Timestamp,
    /// Device number of a device record.
    pub rdev: u32,
    /// The set that holds the inode; a directory with another home is a copy made for children.
    pub home: SetId,
    /// Directories, at their home: number of subdirectories on all sets.
    pub subdirs: u32,
}

/// Why a record was not understood.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MetaError {
    /// Too short, wrong checksum or impossible fields.
    #[error("the record is damaged")]
    Damaged,
    /// Written by a later version.
    #[error("the record has version {0}, this brickd reads version 1")]
    Newer(u8),
}

fn kind_code(kind: Kind) -> u8 {
    (kind.mode_bits() >> 12) as u8
}

impl Meta {
    /// The bytes of the record.
    pub fn encode(&self) -> [u8; META_LEN] {
        let mut b = [0u8; META_LEN];
        b[0] = VERSION;
        b[1] = kind_code(self.kind);
        b[2..4].copy_from_slice(&self.flags.to_le_bytes());
        b[4..8].copy_from_slice(&self.project.to_le_bytes());
        b[8..24].copy_from_slice(&self.gfid.0);
        b[24..32].copy_from_slice(&self.btime.sec.to_le_bytes());
        b[32..36].copy_from_slice(&self.btime.nsec.to_le_bytes());
        b[36..40].copy_from_slice(&self.rdev.to_le_bytes());
        b[40..48].copy_from_slice(&self.ctime.sec.to_le_bytes());
        b[48..52].copy_from_slice(&self.ctime.nsec.to_le_bytes());
        b[52..54].copy_from_slice(&self.home.0.to_le_bytes());
        b[56..60].copy_from_slice(&self.subdirs.to_le_bytes());
        let crc = crc32c::crc32c(&b[..60]);
        b[60..64].copy_from_slice(&crc.to_le_bytes());
        b
    }

    /// Reads a record.
    pub fn decode(b: &[u8]) -> Result<Meta, MetaError> {
        let b: &[u8; META_LEN] = match b.first() {
            Some(version) if *version > VERSION => return Err(MetaError::Newer(*version)),
            Some(_) => b.try_into().map_err(|_| MetaError::Damaged)?,
            None => return Err(MetaError::Damaged),
        };
        let u32_at = |i: usize| u32::from_le_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]]);
        let u16_at = |i: usize| u16::from_le_bytes([b[i], b[i + 1]]);
        let time_at = |i: usize| Timestamp {
            sec: (u64::from(u32_at(i)) | u64::from(u32_at(i + 4)) << 32) as i64,
            nsec: u32_at(i + 8),
        };
        let gfid = Gfid::from_slice(&b[8..24]).ok_or(MetaError::Damaged)?;
        let kind = Kind::from_mode(u32::from(b[1]) << 12).ok_or(MetaError::Damaged)?;
        if b[0] != VERSION || crc32c::crc32c(&b[..60]) != u32_at(60) {
            return Err(MetaError::Damaged);
        }
        Ok(Meta {
            gfid,
            kind,
            flags: u16_at(2),
            project: u32_at(4),
            btime: time_at(24),
            rdev: u32_at(36),
            ctime: time_at(40),
            home: SetId(u16_at(52)),
            subdirs: u32_at(56),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Meta {
        Meta {
            gfid: Gfid(*b"0123456789abcdef"),
            kind: Kind::CharDevice,
            flags: HAS_ACCESS_ACL,
            project: 7,
            btime: Timestamp { sec: -1, nsec: 5 },
            ctime: Timestamp { sec: 1_700_000_000, nsec: 999_999_999 },
            rdev: 0x0501,
            home: SetId(3),
            subdirs: 9,
        }
    }

    #[test]
    fn the_record_keeps_its_golden_bytes() {
        let bytes = example().encode();
        let hex: String = bytes[..60].iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "010202000700000030313233343536373839616263646566ffffffffffffffff050000000105000000f1536500000000ffc99a3b0300000009000000"
        );
        assert_eq!(Meta::decode(&bytes), Ok(example()));
    }

    #[test]
    fn damage_and_newer_versions_are_told_apart() {
        let mut bytes = example().encode();
        bytes[30] ^= 1;
        assert_eq!(Meta::decode(&bytes), Err(MetaError::Damaged));
        assert_eq!(Meta::decode(&bytes[..10]), Err(MetaError::Damaged));
        assert_eq!(Meta::decode(b""), Err(MetaError::Damaged));
        bytes[0] = 2;
        assert_eq!(Meta::decode(&bytes), Err(MetaError::Newer(2)));
    }
}
