//! The 128-bit and small identities of BrickFS: objects, bricks, nodes, volumes, clients, sets.
//!
//! All 128-bit ids are opaque bytes, shown as UUIDs. Who makes one passes the random bytes in: this
//! crate has no randomness of its own.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// A text that is not a UUID of 32 hex digits (dashes allowed).
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is not a UUID (32 hexadecimal digits, dashes allowed)")]
pub struct BadId(String);

macro_rules! id128 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// The id held by exactly 16 bytes, else `None`.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }
            /// The 32 lower-case hexadecimal digits, without dashes.
            pub fn hex(&self) -> String {
                use fmt::Write as _;
                self.0.iter().fold(String::with_capacity(32), |mut text, byte| {
                    let _ = write!(text, "{byte:02x}");
                    text
                })
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let h = self.hex();
                write!(f, "{}-{}-{}-{}-{}", &h[..8], &h[8..12], &h[12..16], &h[16..20], &h[20..])
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
        impl FromStr for $name {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                let digits: Vec<u8> = text.bytes().filter(|b| *b != b'-').collect();
                let mut id = [0u8; 16];
                if digits.len() != 32 {
                    return Err(BadId(text.to_owned()));
                }
                for (byte, pair) in id.iter_mut().zip(digits.chunks(2)) {
                    let pair = std::str::from_utf8(pair).map_err(|_| BadId(text.to_owned()))?;
                    *byte = u8::from_str_radix(pair, 16).map_err(|_| BadId(text.to_owned()))?;
                }
                Ok(Self(id))
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                if s.is_human_readable() { s.collect_str(self) } else { self.0.serialize(s) }
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                if !d.is_human_readable() {
                    return <[u8; 16]>::deserialize(d).map(Self);
                }
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

id128!(
    /// Identity of one object (file, directory, symlink, special) of a volume, the same on all bricks.
    Gfid
);
id128!(
    /// Identity of one brick; with its incarnation it tells a wiped or copied disk from the real one (R7).
    BrickId
);
id128!(
    /// Identity of one server node. Its name and addresses may change.
    NodeId
);
id128!(
    /// Identity of one volume. A deleted and re-created volume of the same name has another.
    VolumeId
);
id128!(
    /// Identity of a cluster.
    ClusterId
);
id128!(
    /// Identity of one mounted client, made at mount; request numbers count within it.
    ClientId
);
id128!(
    /// Identity of one cross-set transaction (PROTOCOL 5).
    TxId
);
id128!(
    /// Serial number of a certificate: 16 bytes, the first of them 1 to 127, so that X.509 writes all 16
    /// and takes the number as a positive one.
    CertSerial
);

/// The id of no node. Raft's library asks for it; no node is ever given it.
impl Default for NodeId {
    fn default() -> NodeId {
        NodeId([0; 16])
    }
}

/// The id with this number in its low eight bytes: how tests number their nodes.
impl From<u64> for NodeId {
    fn from(number: u64) -> NodeId {
        NodeId(u128::from(number).to_be_bytes())
    }
}

impl Gfid {
    /// The root directory of every volume.
    pub const ROOT: Gfid = Gfid([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

    /// The inode number shown for this object: the same on every client and mount.
    /// The root is 1; others are the low eight bytes with 0 and 1 avoided.
    pub fn ino(&self) -> u64 {
        if *self == Self::ROOT {
            return 1;
        }
        let mut low = [0u8; 8];
        low.copy_from_slice(&self.0[8..]);
        match u64::from_be_bytes(low) {
            n @ (0 | 1) => n | 0x8000_0000_0000_0000,
            n => n,
        }
    }
}

/// Number of a replica set within its volume, from 0. The replica set is the unit of placement also
/// where it has one brick.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SetId(pub u16);

impl fmt::Display for SetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_as_they_are_shown() {
        let gfid: Gfid = "00112233-4455-6677-8899-aabbccddeeff".parse().unwrap();
        assert_eq!(gfid.hex(), "00112233445566778899aabbccddeeff");
        assert_eq!(gfid.to_string().parse::<Gfid>().unwrap(), gfid);
        assert!("0011".parse::<Gfid>().is_err());
        assert!("zz112233-4455-6677-8899-aabbccddeeff".parse::<Gfid>().is_err());
    }

    #[test]
    fn the_root_is_inode_1_and_no_other_object_is() {
        assert_eq!(Gfid::ROOT.ino(), 1);
        let mut other = [0xaa; 16];
        other[8..].copy_from_slice(&1u64.to_be_bytes());
        assert_ne!(Gfid(other).ino(), 1);
    }
}
