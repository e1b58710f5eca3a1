//! Texts of the symlinks below `.brickfs`: claims, directory handles, pending parts and commits. A symlink
//! is made by one call, whole or not at all, and an ordered journal never keeps a later change without it
//! (PROTOCOL 8). The forms are fixed in `docs/design/formats.md`.

use crate::brick::effect::{Claim, Commitment, Item};
use brickfs_common::ids::{Gfid, SetId};

/// First byte of the records below: their version.
const VERSION: u8 = b'1';
/// Escape in a record: a symlink's text cannot hold NUL. 0 is written as 1 1, 1 as 1 2.
const ESCAPE: u8 = 1;

/// `<gfid>@<home set>`.
pub fn claim_text(claim: &Claim) -> Vec<u8> {
    format!("{}@{}", Gfid(claim.gfid).hex(), claim.home).into_bytes()
}

/// Reads a claim.
pub fn read_claim(text: &[u8]) -> Option<Claim> {
    let (gfid, home) = std::str::from_utf8(text).ok()?.split_once('@')?;
    Some(Claim { gfid: gfid.parse::<Gfid>().ok()?.0, home: SetId(home.parse().ok()?) })
}

/// `<parent gfid>/<name>`.
pub fn dir_handle_text(parent: &Gfid, name: &[u8]) -> Vec<u8> {
    let mut text = parent.hex().into_bytes();
    text.push(b'/');
    text.extend_from_slice(name);
    text
}

/// Reads a directory's handle.
pub fn read_dir_handle(text: &[u8]) -> Option<(Gfid, Vec<u8>)> {
    let parent = std::str::from_utf8(text.get(..32)?).ok()?.parse().ok()?;
    match (text.get(32), text.get(33..)) {
        (Some(b'/'), Some(name)) if !name.is_empty() => Some((parent, name.to_vec())),
        _ => None,
    }
}

fn write(record: &impl serde::Serialize) -> Vec<u8> {
    let plain = postcard::to_stdvec(record).expect("records hold nothing that postcard cannot write");
    let mut text = vec![VERSION];
    for byte in plain {
        match byte {
            0 | ESCAPE => text.extend_from_slice(&[ESCAPE, byte + 1]),
            other => text.push(other),
        }
    }
    text
}

fn read<T: serde::de::DeserializeOwned>(text: &[u8]) -> Option<T> {
    let (version, rest) = text.split_first()?;
    if *version != VERSION {
        return None;
    }
    let mut plain = Vec::with_capacity(rest.len());
    let mut bytes = rest.iter();
    while let Some(byte) = bytes.next() {
        match *byte {
            ESCAPE => plain.push(bytes.next()?.checked_sub(1)?),
            other => plain.push(other),
        }
    }
    postcard::from_bytes(&plain).ok()
}

/// What a transaction holds on a set.
pub fn pending_text(coordinator: SetId, items: &[Item]) -> Vec<u8> {
    write(&(coordinator, items))
}

/// Reads it.
pub fn read_pending(text: &[u8]) -> Option<(SetId, Vec<Item>)> {
    read(text)
}

/// What others have to do about a committed transaction.
pub fn commit_text(commitment: &Commitment) -> Vec<u8> {
    write(commitment)
}

/// Reads it.
pub fn read_commit(text: &[u8]) -> Option<Commitment> {
    read(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::brick::effect::{Change, Old, Place};
    use crate::brick::meta::Position;
    use brickfs_common::attr::Kind;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    fn items() -> Vec<Item> {
        let place = Place { parent: [0; 16], name: b"x\x01y".to_vec() };
        let claim = Claim { gfid: [2; 16], home: SetId(3) };
        vec![
            Item::Name { place: place.clone(), new: Some(claim), old: Old::Native([5; 16], Kind::File) },
            Item::Drop { place: place.clone(), gfid: [1; 16] },
            Item::Move { gfid: [9; 16], from: place.clone(), to: place },
            Item::Close { gfid: [7; 16] },
        ]
    }

    #[test]
    fn claims_and_handles_read_back_and_damage_does_not() {
        let claim = Claim { gfid: [0xab; 16], home: SetId(12) };
        assert_eq!(claim_text(&claim), b"abababababababababababababababab@12");
        assert_eq!(read_claim(&claim_text(&claim)), Some(claim));
        for bad in [&b"ab@1"[..], b"abababababababababababababababab@x", b"", b"\xff"] {
            assert_eq!(read_claim(bad), None);
        }
        let text = dir_handle_text(&Gfid::ROOT, b"a/b");
        assert_eq!(read_dir_handle(&text), Some((Gfid::ROOT, b"a/b".to_vec())));
        assert_eq!(read_dir_handle(&text[..33]), None);
    }

    #[test]
    fn records_keep_their_golden_bytes() {
        let text = pending_text(SetId(4), &items()[3..]);
        assert_eq!(hex(&text), "310401020307070707070707070707070707070707");
        assert_eq!(read_pending(&text), Some((SetId(4), items()[3..].to_vec())));
        let position = Position { epoch: 1, seq: 1_700_000_000_000_000 };
        let commitment = Commitment {
            participants: vec![(SetId(1), items())],
            change: Some(Change { gfid: [7; 16], name: None, position }),
        };
        let text = commit_text(&commitment);
        assert!(!text.contains(&0));
        assert_eq!(read_commit(&text), Some(commitment));
        assert_eq!(read_commit(&text[..9]), None);
        let change = Change { gfid: [7; 16], name: None, position: Position { epoch: 1, seq: 300 } };
        let text =
            commit_text(&Commitment { participants: vec![(SetId(1), items()[3..].to_vec())], change: Some(change) });
        assert_eq!(
            hex(&text),
            "31010201020102030707070707070707070707070707070701020707070707070707070707070707070701010102ac02"
        );
        assert_eq!(read_pending(b"2x"), None);
    }

    #[test] // symlink texts end at 4095 bytes
    fn the_largest_transaction_of_the_largest_volume_fits() {
        let place = Place { parent: [0; 16], name: vec![0xff; 255] };
        let claim = Claim { gfid: [1; 16], home: SetId(u16::MAX) };
        let name =
            |n| Item::Name { place: place.clone(), new: Some(claim), old: Old::Native([n; 16], Kind::Directory) };
        let mut participants = vec![(SetId(300), vec![name(0)]), (SetId(301), vec![name(1)])];
        participants.extend((0..64).map(|set| (SetId(300 + set), vec![Item::Close { gfid: [0; 16] }])));
        let position = Position { epoch: u32::MAX, seq: u64::MAX };
        let change = Change { gfid: [0; 16], name: Some(place), position };
        let text = commit_text(&Commitment { participants, change: Some(change) });
        assert!(text.len() <= 4095, "{}", text.len());
    }
}
