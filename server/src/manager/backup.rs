//! The form of a backup: one text of three lines, the head, the body in JSON and a checksum of both.
//!
//! ```text
//! brickfs-backup 1
//! {"made_ms":…,"state":{…},"authority":{"kdf":…,"iterations":…,"salt":…,"cipher":…,"nonce":…,"sealed":…}}
//! sha256 <64 hexadecimal digits>
//! ```
//!
//! `authority` is null in a backup without a passphrase: the authority's key is in no backup but encrypted
//! (ChaCha20-Poly1305 under a key of PBKDF2-HMAC-SHA256). The state is bound to it: with another state it does not open,
//! so that who has the passphrase also knows that the state is the one that was backed up.

use crate::security::authority::Authority;
use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use brickfs_common::cluster::state::ClusterState;
use brickfs_common::cluster::stored::read_state;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::pbkdf2;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use std::num::NonZeroU32;
use zeroize::Zeroizing;

/// The first line. Another number is another form.
const HEAD: &str = "brickfs-backup 1";
const HEAD_WORD: &str = "brickfs-backup ";
const CHECKSUM_WORD: &str = "sha256 ";
const KDF: &str = "pbkdf2-hmac-sha256";
const CIPHER: &str = "chacha20-poly1305";
/// Where the certificate ends.
const KEY_BEGINS: &str = "-----BEGIN PRIVATE KEY-----";
/// A certificate and a key have a few kilobytes.
const SEALED_BYTES: usize = 16 << 10;
/// What OWASP asks of PBKDF2-HMAC-SHA256 since 2023: a third of a second.
const ITERATIONS: u32 = 600_000;
/// A file from elsewhere must not keep a thread busy for minutes, nor be read with next to none.
const ITERATIONS_RANGE: std::ops::RangeInclusive<u32> = 100_000..=10_000_000;
const SALT_BYTES: usize = 16;
const NONCE_BYTES: usize = 12;
/// Fewer characters are guessed whatever is done with them.
const PASSPHRASE_MIN_CHARS: usize = 8;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    made_ms: u64,
    state: Value,
    authority: Option<Sealed>,
}

/// The authority, encrypted: its certificate and its key (PEM), one behind the other.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    kdf: String,
    iterations: u32,
    salt: String,
    cipher: String,
    nonce: String,
    sealed: String,
}

/// A backup that was read: whole, and of a form that is known.
pub struct Backup {
    /// The cluster's state.
    pub state: ClusterState,
    /// When it was made, in milliseconds since 1970.
    pub made_ms: u64,
    authority: Option<Sealed>,
    bound: Vec<u8>,
}

/// The text of a backup. The authority is in it only under a passphrase.
pub fn write_backup(
    state: &ClusterState,
    authority: Option<(&Authority, &str)>,
    made_ms: u64,
) -> anyhow::Result<String> {
    let state = serde_json::to_value(state)?;
    let bound = serde_json::to_vec(&state)?;
    let authority = authority.map(|(authority, passphrase)| seal(authority, passphrase, &bound)).transpose()?;
    let body = serde_json::to_string(&Body { made_ms, state, authority })?;
    let text = format!("{HEAD}\n{body}\n");
    let checksum = checksum_of(&text);
    Ok(format!("{text}{CHECKSUM_WORD}{checksum}\n"))
}

impl Backup {
    /// Reads a text. What was cut off or changed is refused.
    pub fn read(text: &str) -> anyhow::Result<Backup> {
        let head = text.lines().next().unwrap_or_default();
        if !head.starts_with(HEAD_WORD) {
            bail!("this is not a backup: its first line is not '{HEAD}'");
        }
        if head != HEAD {
            bail!("the backup begins with '{}', this brickd reads '{HEAD}'", head.escape_debug());
        }
        let (summed, body, checksum) = split(text).context("the backup is cut off: its last line is no checksum")?;
        if checksum_of(summed) != checksum {
            bail!("the backup is damaged: its checksum is another one");
        }
        let body: Body = serde_json::from_str(body).context("the backup does not decode")?;
        let bound = serde_json::to_vec(&body.state)?;
        let state = read_state(&bound).map_err(|error| anyhow::anyhow!("the backup {error}"))?;
        Ok(Backup { state, made_ms: body.made_ms, authority: body.authority, bound })
    }

    /// Whether the authority is in it.
    pub fn has_authority(&self) -> bool {
        self.authority.is_some()
    }

    /// The authority in it.
    pub fn open_authority(&self, passphrase: &str) -> anyhow::Result<Authority> {
        let Some(sealed) = &self.authority else {
            bail!("the backup was made without a passphrase: the authority's key is not in it");
        };
        let authority = unseal(sealed, passphrase, &self.bound)?;
        let (cluster, of) = (self.state.cluster, authority.certificate().cluster());
        if of != cluster {
            bail!("the backup is of cluster {cluster}, the authority in it of {of}");
        }
        Ok(authority)
    }
}

/// What the checksum is of, the body in it, and the checksum.
fn split(text: &str) -> Option<(&str, &str, &str)> {
    let lines = text.strip_suffix('\n')?;
    let (above, last) = lines.rsplit_once('\n')?;
    let checksum = last.strip_prefix(CHECKSUM_WORD)?;
    let body = above.strip_prefix(HEAD)?.strip_prefix('\n')?;
    Some((text.get(..=above.len())?, body, checksum))
}

fn checksum_of(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn key_of(passphrase: &str, salt: &[u8], iterations: u32) -> anyhow::Result<LessSafeKey> {
    let count = NonZeroU32::new(iterations).filter(|_| ITERATIONS_RANGE.contains(&iterations));
    let count = count.with_context(|| format!("the backup asks for {iterations} iterations of {KDF}"))?;
    let mut key = Zeroizing::new([0; 32]);
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, count, salt, passphrase.as_bytes(), key.as_mut_slice());
    let key = UnboundKey::new(&CHACHA20_POLY1305, key.as_slice());
    Ok(LessSafeKey::new(key.map_err(|_| anyhow::anyhow!("the key of the backup cannot be made"))?))
}

fn seal(authority: &Authority, passphrase: &str, bound: &[u8]) -> anyhow::Result<Sealed> {
    if passphrase.chars().count() < PASSPHRASE_MIN_CHARS {
        bail!("a passphrase of a backup has at least {PASSPHRASE_MIN_CHARS} characters");
    }
    // A new salt makes a new key, so the nonce is never used twice with one.
    let (salt, nonce): ([u8; SALT_BYTES], [u8; NONCE_BYTES]) = (rand::random(), rand::random());
    // Room for all of it, so that no copy is left where it was.
    let mut text = Zeroizing::new(Vec::with_capacity(SEALED_BYTES));
    text.extend_from_slice(authority.certificate().pem().as_bytes());
    text.extend_from_slice(authority.key_pem().as_bytes());
    let key = key_of(passphrase, &salt, ITERATIONS)?;
    let nonce_used = Nonce::assume_unique_for_key(nonce);
    let sealed = key.seal_in_place_append_tag(nonce_used, Aad::from(bound), &mut *text);
    sealed.map_err(|_| anyhow::anyhow!("the authority's key cannot be encrypted"))?;
    Ok(Sealed {
        kdf: KDF.to_owned(),
        iterations: ITERATIONS,
        salt: STANDARD.encode(salt),
        cipher: CIPHER.to_owned(),
        nonce: STANDARD.encode(nonce),
        sealed: STANDARD.encode(text.as_slice()),
    })
}

fn unseal(sealed: &Sealed, passphrase: &str, bound: &[u8]) -> anyhow::Result<Authority> {
    if sealed.kdf != KDF || sealed.cipher != CIPHER {
        let (kdf, cipher) = (sealed.kdf.escape_debug(), sealed.cipher.escape_debug());
        bail!("the backup's key is encrypted by '{kdf}' and '{cipher}', which this brickd does not know");
    }
    let bytes = |text: &str| STANDARD.decode(text).context("the backup's key does not decode");
    let nonce: [u8; NONCE_BYTES] = match bytes(&sealed.nonce)?.try_into() {
        Ok(nonce) => nonce,
        Err(_) => bail!("the backup's nonce is not one of {NONCE_BYTES} bytes"),
    };
    let mut text = Zeroizing::new(bytes(&sealed.sealed)?);
    let key = key_of(passphrase, &bytes(&sealed.salt)?, sealed.iterations)?;
    let opened = key.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(bound), text.as_mut_slice());
    let opened = opened.map_err(|_| anyhow::anyhow!("the passphrase is not the one of this backup"))?;
    let both = std::str::from_utf8(opened).ok().and_then(|text| Some(text.split_at(text.find(KEY_BEGINS)?)));
    let (certificate, key) = both.context("the backup's key does not decode")?;
    Authority::from_pem(certificate, key).context("the backup's authority")
}

#[cfg(test)]
#[path = "backup_tests.rs"]
mod tests;
