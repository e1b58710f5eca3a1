//! The record that every object on a brick carries in `trusted.brickfs.meta`: its gfid and what a local
//! file system cannot keep for us. Little endian; the layout is fixed in `docs/design/formats.md`.
//!
//! 64 bytes: with its name the record then fits beside the inode of an ext4 with 256-byte inodes, which
//! keeps a create at one block less. Directories may have more behind it, see `Meta::spread`.

use brickfs_common::attr::{Kind, Timestamp};
use brickfs_common::ids::{Gfid, SetId};
use serde::{Deserialize, Serialize};

/// Name of the extended attribute.
pub const META_XATTR: &str = "trusted.brickfs.meta";
/// Length of the record's fixed part in bytes.
pub const META_LEN: usize = 64;
/// Longest record: a directory with subdirectories on all sets of the largest volume.
pub const META_LEN_MAX: usize = META_LEN + SPREAD_MAX * SPREAD_LEN;
/// Most entries of `Meta::spread`: one for each other set of the largest volume.
const SPREAD_MAX: usize = 64;
const SPREAD_LEN: usize = 8;
const VERSION: u8 = 1;
const CRC_AT: usize = 60;

/// `security.capability` is set.
pub const HAS_CAPABILITY: u16 = 1;
/// A POSIX access ACL is set.
pub const HAS_ACCESS_ACL: u16 = 2;
/// A POSIX default ACL is set (directories).
pub const HAS_DEFAULT_ACL: u16 = 4;

/// The position of an effect within its set: effects of a lower epoch come first (R9).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Position {
    /// Epoch of the set.
    pub epoch: u32,
    /// Number within the epoch's order; never goes back within a set.
    pub seq: u64,
}

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
    /// this and mtime, see `posix::compute_attr`.
    pub ctime: Timestamp,
    /// Position of the last effect that changed the object; in a copy of a directory, the position at
    /// its home that the copy's place is known from (PROTOCOL 26).
    pub position: Position,
    /// The set that holds the inode; a directory with another home is a copy made for children.
    pub home: SetId,
    /// Device number of a device record.
    pub rdev: u32,
    /// Directories: number of subdirectories that are homed on this set.
    pub subdirs: u32,
    /// Directories, at their home: number of subdirectories homed on other sets, as those last said.
    pub spread: Vec<(SetId, u32)>,
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

/// Nanoseconds since the epoch: the server's clock decides these times, so 64 bits last until 2262.
fn nanos(t: Timestamp) -> i64 {
    t.sec.saturating_mul(1_000_000_000).saturating_add(i64::from(t.nsec))
}

fn timestamp(nanos: i64) -> Timestamp {
    Timestamp { sec: nanos.div_euclid(1_000_000_000), nsec: nanos.rem_euclid(1_000_000_000) as u32 }
}

impl Meta {
    /// The bytes of the record.
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.spread.len() <= SPREAD_MAX, "a volume has at most {SPREAD_MAX} sets");
        let mut b = vec![0u8; META_LEN];
        b[0] = VERSION;
        b[1] = kind_code(self.kind);
        b[2..4].copy_from_slice(&self.flags.to_le_bytes());
        b[4..8].copy_from_slice(&self.project.to_le_bytes());
        b[8..24].copy_from_slice(&self.gfid.0);
        b[24..32].copy_from_slice(&nanos(self.btime).to_le_bytes());
        b[32..40].copy_from_slice(&nanos(self.ctime).to_le_bytes());
        b[40..48].copy_from_slice(&self.position.seq.to_le_bytes());
        b[48..52].copy_from_slice(&self.position.epoch.to_le_bytes());
        b[52..54].copy_from_slice(&self.home.0.to_le_bytes());
        b[54..56].copy_from_slice(&(self.spread.len() as u16).to_le_bytes());
        let number = if self.kind == Kind::Directory { self.subdirs } else { self.rdev };
        b[56..60].copy_from_slice(&number.to_le_bytes());
        for (set, count) in &self.spread {
            b.extend_from_slice(&set.0.to_le_bytes());
            b.extend_from_slice(&[0, 0]);
            b.extend_from_slice(&count.to_le_bytes());
        }
        let crc = checksum(&b);
        b[CRC_AT..META_LEN].copy_from_slice(&crc.to_le_bytes());
        b
    }

    /// Reads a record.
    pub fn decode(b: &[u8]) -> Result<Meta, MetaError> {
        match b.first() {
            Some(version) if *version > VERSION => return Err(MetaError::Newer(*version)),
            Some(_) if b.len() >= META_LEN => {}
            _ => return Err(MetaError::Damaged),
        }
        let u32_at = |i: usize| u32::from_le_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]]);
        let u64_at = |i: usize| u64::from(u32_at(i)) | u64::from(u32_at(i + 4)) << 32;
        let u16_at = |i: usize| u16::from_le_bytes([b[i], b[i + 1]]);
        let spread_len = usize::from(u16_at(54));
        if spread_len > SPREAD_MAX || b.len() != META_LEN + spread_len * SPREAD_LEN {
            return Err(MetaError::Damaged);
        }
        if b[0] != VERSION || checksum(b) != u32_at(CRC_AT) {
            return Err(MetaError::Damaged);
        }
        let gfid = Gfid::from_slice(&b[8..24]).ok_or(MetaError::Damaged)?;
        let kind = Kind::from_mode(u32::from(b[1]) << 12).ok_or(MetaError::Damaged)?;
        let is_dir = kind == Kind::Directory;
        let spread_at = |i: usize| (SetId(u16_at(i)), u32_at(i + 4));
        Ok(Meta {
            gfid,
            kind,
            flags: u16_at(2),
            project: u32_at(4),
            btime: timestamp(u64_at(24) as i64),
            ctime: timestamp(u64_at(32) as i64),
            position: Position { epoch: u32_at(48), seq: u64_at(40) },
            home: SetId(u16_at(52)),
            rdev: if is_dir { 0 } else { u32_at(56) },
            subdirs: if is_dir { u32_at(56) } else { 0 },
            spread: (0..spread_len).map(|i| spread_at(META_LEN + i * SPREAD_LEN)).collect(),
        })
    }

    /// Takes over what another set says of its subdirectories of this directory.
    pub fn set_spread(&mut self, set: SetId, count: u32) {
        self.spread.retain(|(other, _)| *other != set);
        if count > 0 {
            self.spread.push((set, count));
            self.spread.sort_unstable();
        }
    }

    /// What another set said last of its subdirectories of this directory.
    pub fn spread_of(&self, set: SetId) -> u32 {
        self.spread.iter().find(|(other, _)| *other == set).map_or(0, |(_, count)| *count)
    }

    /// Number of subdirectories on all sets.
    pub fn subdirs_everywhere(&self) -> u32 {
        self.spread.iter().fold(self.subdirs, |sum, (_, count)| sum.saturating_add(*count))
    }
}

/// Over everything but the checksum itself.
fn checksum(b: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&b[..CRC_AT]), &b[META_LEN..])
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
            position: Position { epoch: 3, seq: 0x1122 },
            rdev: 0x0501,
            home: SetId(3),
            subdirs: 0,
            spread: Vec::new(),
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn the_record_keeps_its_golden_bytes() {
        let bytes = example().encode();
        let golden = "010202000700000030313233343536373839616263646566\
                      053665c4ffffffffffc9c471fe9c9717221100000000000003000000030000000105000014d3c91d";
        assert_eq!(hex(&bytes), golden);
        assert_eq!(Meta::decode(&bytes), Ok(example()));
        let spread = vec![(SetId(1), 2), (SetId(63), 9)];
        let dir = Meta { kind: Kind::Directory, rdev: 0, subdirs: 5, spread, ..example() };
        let bytes = dir.encode();
        assert_eq!(hex(&bytes[64..]), "01000000020000003f00000009000000");
        assert_eq!(Meta::decode(&bytes), Ok(dir));
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
        let mut dir = Meta { kind: Kind::Directory, spread: vec![(SetId(1), 2)], ..example() }.encode();
        dir[70] ^= 1;
        assert_eq!(Meta::decode(&dir), Err(MetaError::Damaged));
    }

    #[test]
    fn subdirectories_are_counted_by_what_each_set_last_said() {
        let mut dir = Meta { kind: Kind::Directory, subdirs: 1, ..example() };
        dir.set_spread(SetId(2), 4);
        dir.set_spread(SetId(1), 1);
        dir.set_spread(SetId(2), 3);
        assert_eq!(dir.subdirs_everywhere(), 5);
        dir.set_spread(SetId(2), 0);
        assert_eq!((dir.subdirs_everywhere(), dir.spread.len()), (2, 1));
    }
}
