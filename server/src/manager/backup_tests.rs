//! What a backup text says, and what is refused of one.

use super::*;
use brickfs_common::ids::{ClusterId, NodeId};
use std::time::SystemTime;

const PASSPHRASE: &str = "correct horse battery";

fn state() -> ClusterState {
    ClusterState::of_one_node(ClusterId([9; 16]), NodeId([1; 16]), "node-1")
}

fn authority() -> Authority {
    Authority::make(ClusterId([9; 16]), SystemTime::now()).unwrap()
}

fn refusal(text: &str) -> String {
    let error = Backup::read(text).err().map(|error| format!("{error:#}")).unwrap();
    assert!(!error.contains('\n'), "{error}");
    error
}

/// With a checksum that fits, as who changes a file on purpose would make it.
fn summed(text: &str) -> String {
    let checksum = checksum_of(text);
    format!("{text}{CHECKSUM_WORD}{checksum}\n")
}

#[test]
fn a_backup_is_read_as_it_was_written() {
    let text = write_backup(&state(), None, 77).unwrap();
    assert_eq!(text.lines().count(), 3);
    let backup = Backup::read(&text).unwrap();
    assert_eq!((&backup.state, backup.made_ms, backup.has_authority()), (&state(), 77, false));
    let error = backup.open_authority(PASSPHRASE).err().unwrap().to_string();
    assert!(error.contains("without a passphrase"), "{error}");
}

#[test]
fn the_key_comes_back_by_its_passphrase_alone() {
    let authority = authority();
    let text = write_backup(&state(), Some((&authority, PASSPHRASE)), 1).unwrap();
    let backup = Backup::read(&text).unwrap();
    let opened = backup.open_authority(PASSPHRASE).unwrap();
    assert_eq!(*opened.key_pem(), *authority.key_pem());
    assert_eq!(opened.certificate(), authority.certificate());
    for wrong in ["", "correct horse batterY", "correct horse battery "] {
        let error = backup.open_authority(wrong).err().unwrap().to_string();
        assert_eq!(error, "the passphrase is not the one of this backup");
    }
    assert!(write_backup(&state(), Some((&authority, "short")), 1).is_err());
}

#[test]
fn the_key_is_in_no_backup_in_a_form_that_can_be_read() {
    let authority = authority();
    let pem = authority.key_pem();
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let der = STANDARD.decode(&body).unwrap();
    let hex: String = der[36..68].iter().map(|byte| format!("{byte:02x}")).collect();
    for sealed in [None, Some((&authority, PASSPHRASE))] {
        let text = write_backup(&state(), sealed, 1).unwrap();
        for part in [body.as_str(), &body[..40], &body[60..100], &hex[..16], "PRIVATE KEY", PASSPHRASE] {
            assert!(!text.contains(part), "{part}");
        }
        // Nor below base64, at whatever place of it.
        let plain = text.lines().nth(1).map(|body| serde_json::from_str::<Body>(body).unwrap()).unwrap();
        let inner = plain.authority.map(|sealed| STANDARD.decode(sealed.sealed).unwrap()).unwrap_or_default();
        assert!(!inner.windows(16).any(|window| window == &der[36..52] || window == &body.as_bytes()[40..56]));
        assert_eq!(inner.is_empty(), sealed.is_none());
    }
    let again = |()| write_backup(&state(), Some((&authority, PASSPHRASE)), 1).unwrap();
    assert_ne!(again(()), again(()), "salt and nonce are new each time");
}

#[test]
fn a_text_that_was_cut_off_or_changed_is_refused() {
    let text = write_backup(&state(), Some((&authority(), PASSPHRASE)), 1).unwrap();
    for end in 0..text.len() {
        let error = refusal(&text[..end]);
        assert!(error.contains("backup"), "{end}: {error}");
    }
    for at in (0..text.len()).step_by(7) {
        let mut bytes = text.clone().into_bytes();
        bytes[at] = if bytes[at] == b'x' { b'y' } else { b'x' };
        refusal(&String::from_utf8(bytes).unwrap());
    }
    assert!(refusal("").contains("not a backup"));
    assert!(refusal(&text.replacen("backup 1", "backup 2", 1)).contains("this brickd reads"));
    assert!(refusal(&format!("{text}more\n")).contains("cut off"));
}

#[test]
fn a_text_that_was_forged_is_refused() {
    let text = write_backup(&state(), Some((&authority(), PASSPHRASE)), 1).unwrap();
    let above = text.rsplit_once(CHECKSUM_WORD).unwrap().0;
    let renamed = summed(&above.replacen("node-1", "node-2", 1));
    let error = Backup::read(&renamed).unwrap().open_authority(PASSPHRASE).err().unwrap().to_string();
    assert_eq!(error, "the passphrase is not the one of this backup", "the key is bound to the state");
    let many = summed(&above.replacen("600000", "4000000000", 1));
    let error = Backup::read(&many).unwrap().open_authority(PASSPHRASE).err().unwrap().to_string();
    assert!(error.contains("iterations"), "{error}");
    let other = summed(&above.replacen(CIPHER, "rot13", 1));
    let error = Backup::read(&other).unwrap().open_authority(PASSPHRASE).err().unwrap().to_string();
    assert!(error.contains("'rot13'"), "{error}");
    assert!(refusal(&summed(&above.replacen("\"version\":2", "\"version\":9", 1))).contains("state version 9"));
    assert!(refusal(&summed(&above.replacen("made_ms", "baked_ms", 1))).contains("does not decode"));
    let elsewhere = Authority::make(ClusterId([8; 16]), SystemTime::now()).unwrap();
    let mixed = write_backup(&state(), Some((&elsewhere, PASSPHRASE)), 1).unwrap();
    assert!(Backup::read(&mixed).unwrap().open_authority(PASSPHRASE).is_err());
}
