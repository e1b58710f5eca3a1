//! Slots: where a name lives. Fixed for life (PROTOCOL 39); `docs/design/formats.md` holds golden values.
//!
//! `slot = xxh3_64(parent gfid ++ hashed name) mod 16384`. A temporary name of rsync and its kind hashes
//! as the final name does, so that the rename that follows stays on its set.

use crate::ids::Gfid;
use crate::name::Name;
use xxhash_rust::xxh3::xxh3_64;

/// Number of slots of every volume.
pub const SLOT_COUNT: usize = 16384;

/// A slot number, below `SLOT_COUNT`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Slot(pub u16);

/// The slot of (parent, name).
pub fn compute_slot(parent: &Gfid, name: &Name) -> Slot {
    let hashed = hashed_name(name.as_bytes());
    let mut key = [0u8; 16 + 255];
    key[..16].copy_from_slice(&parent.0);
    key[16..16 + hashed.len()].copy_from_slice(hashed);
    Slot((xxh3_64(&key[..16 + hashed.len()]) % SLOT_COUNT as u64) as u16)
}

/// The part of a name that is hashed: `.NAME.SUFFIX` (a leading dot, at least one byte, a last dot,
/// a suffix of exactly six ASCII letters or digits: what rsync and mkstemp(3) make) hashes as `NAME`;
/// every other name as itself.
pub fn hashed_name(name: &[u8]) -> &[u8] {
    const SUFFIX_LEN: usize = 6;
    let Some(rest) = name.strip_prefix(b".") else { return name };
    let Some(dot) = rest.len().checked_sub(SUFFIX_LEN + 1) else { return name };
    let suffix_is_random = rest[dot + 1..].iter().all(u8::is_ascii_alphanumeric);
    if dot == 0 || rest[dot] != b'.' || !suffix_is_random {
        return name;
    }
    &rest[..dot]
}

/// Bits of a readdir cookie that the name's hash takes; the client's ordinal takes the 7 below.
pub const COOKIE_ORDINAL_BITS: u32 = 7;

/// The hash part of an entry's readdir cookie: 56 bits of xxh3_64 of the name, shifted above the
/// ordinal, and never below 4 << 7, so that `.`, `..` and the start have cookies of their own. It
/// depends on the name alone: a listing goes on after a restart, a rebalance and on any member.
pub fn readdir_cookie(name: &[u8]) -> u64 {
    let hash = (xxh3_64(name) >> 8).max(4);
    (hash << COOKIE_ORDINAL_BITS) & (i64::MAX as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_names_hash_as_their_final_name() {
        assert_eq!(hashed_name(b".report.pdf.a1B2c3"), b"report.pdf");
        for other in [&b"report.pdf"[..], b".bashrc", b"..a1B2c3", b".x.a1B2c", b".x.a1B2c34", b".x.a1-2c3", b"."] {
            assert_eq!(hashed_name(other), other, "{other:?}");
        }
        let parent = Gfid::ROOT;
        let slot = |n: &str| compute_slot(&parent, &Name::new(n.as_bytes().to_vec()).unwrap());
        assert_eq!(slot(".data.bin.Xy12zQ"), slot("data.bin"));
    }

    /// (parent, name, slot), made with another implementation of xxh3: a volume's names stay where they
    /// are only as long as every later version computes these slots.
    const GOLDEN: &str = include_str!("golden/slots.txt");

    #[test] // PROTOCOL 39
    fn a_thousand_names_keep_their_slots() {
        let bytes = |hex: &str| -> Vec<u8> {
            (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
        };
        let mut count = 0;
        for line in GOLDEN.lines() {
            let mut words = line.split(' ');
            let mut word = || words.next().unwrap();
            let parent: Gfid = word().parse().unwrap();
            let name = Name::new(bytes(word())).unwrap();
            let slot: u16 = word().parse().unwrap();
            assert_eq!(compute_slot(&parent, &name), Slot(slot), "{line}");
            count += 1;
        }
        assert_eq!(count, 1000);
    }

    #[test] // PROTOCOL 34
    fn cookies_keep_their_values() {
        let long = [b'x'; 255];
        let golden: [(&[u8], u64); 5] = [
            (b"a", 8_314_517_215_945_369_344),
            (b"file-00001.dat", 232_268_046_739_962_880),
            (b".git", 7_364_510_763_722_731_776),
            ("\u{65e5}\u{672c}".as_bytes(), 1_588_642_302_162_439_552),
            (&long, 1_582_076_063_111_208_576),
        ];
        for (name, cookie) in golden {
            assert_eq!(readdir_cookie(name), cookie, "{}", name.escape_ascii());
        }
    }

    #[test]
    fn cookies_are_positive_and_leave_room_for_dot_entries() {
        for i in 0..10_000u32 {
            let cookie = readdir_cookie(format!("name{i}").as_bytes());
            assert!(cookie >= 4 << COOKIE_ORDINAL_BITS && cookie <= i64::MAX as u64);
            assert_eq!(cookie & 127, 0);
        }
    }
}
