//! Join tokens: what an operator carries from a member of the cluster to a new node.
//!
//! ```text
//! brickfs1.<base64url of: authority's SHA-256, 32 bytes | secret, 16 bytes | count, 1 byte |
//!           count x (length, 1 byte | host:port) | CRC-32C of all before, 4 bytes>
//! ```
//! The number behind `brickfs` is the version of the form. The checksum finds what a terminal or a person has
//! broken; against forgers there is the secret, of which the cluster keeps the hash alone.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::hint::black_box;
use zeroize::{Zeroize as _, Zeroizing};

const NAME: &str = "brickfs";
const VERSION: &str = "1";
/// Keeps this hash apart from any other use of SHA-256 over 16 bytes.
const HASH_DOMAIN: &[u8] = b"brickfs join token 1\0";
const ADDRESSES_MAX: usize = 8;
const ADDRESS_MAX_BYTES: usize = u8::MAX as usize;
/// The longest token has 2,100 bytes in 2,800 characters.
const TEXT_MAX_BYTES: usize = 4 << 10;
const FIXED_BYTES: usize = 32 + 16 + 1;
const CHECKSUM_BYTES: usize = 4;

/// What lets a node join, once. Never shown, gone from memory when it is dropped.
#[derive(Clone)]
pub struct Secret([u8; 16]);

impl Secret {
    /// A new one.
    pub fn random() -> Secret {
        Secret(rand::random())
    }

    /// One that came over the wire.
    pub fn from_slice(bytes: &[u8]) -> Option<Secret> {
        bytes.try_into().ok().map(Secret)
    }

    /// The bytes, for the wire.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// What the cluster state keeps.
    pub fn hash(&self) -> [u8; 32] {
        Sha256::new().chain_update(HASH_DOMAIN).chain_update(self.0).finalize().into()
    }

    /// Whether this is the secret of a hash. The time it takes says nothing of where they differ.
    pub fn has_hash(&self, hash: &[u8; 32]) -> bool {
        let differing = self.hash().iter().zip(hash).fold(0, |differing, (a, b)| black_box(differing | (a ^ b)));
        differing == 0
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// A join token.
#[derive(Clone, Debug)]
pub struct Token {
    /// SHA-256 of the certificate of the cluster's authority.
    pub authority_hash: [u8; 32],
    /// What lets a node join.
    pub secret: Secret,
    /// `host:port` of nodes that can be asked.
    pub addresses: Vec<String>,
}

/// Why a text is not a token that can be used. Whether it has expired, or was used, the cluster says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadToken {
    /// Something else.
    #[error("this is not a join token: one starts with '{NAME}{VERSION}.' and comes from 'brickctl peer token'")]
    NotAToken,
    /// A token of another release.
    #[error("the token is of version {0}, and this release knows version {VERSION}: use the same release on all nodes")]
    Version(String),
    /// Cut off or changed on its way.
    #[error("the token is damaged: copy the whole of it, or make a new one with 'brickctl peer token'")]
    Damaged,
    /// The addresses of a token to be made.
    #[error("a token has 1 to {ADDRESSES_MAX} addresses of the form host:port, and '{0}' is none")]
    Address(String),
}

impl Token {
    /// Makes a token with a new secret.
    pub fn new(authority_hash: [u8; 32], addresses: Vec<String>) -> Result<Token, BadToken> {
        if let Some(bad) = addresses.iter().find(|address| !is_address(address)) {
            return Err(BadToken::Address(bad.clone()));
        }
        if addresses.is_empty() || addresses.len() > ADDRESSES_MAX {
            return Err(BadToken::Address(format!("a list of {}", addresses.len())));
        }
        Ok(Token { authority_hash, secret: Secret::random(), addresses })
    }

    /// The text to carry.
    pub fn text(&self) -> Zeroizing<String> {
        let room = FIXED_BYTES + CHECKSUM_BYTES + self.addresses.iter().map(|address| 1 + address.len()).sum::<usize>();
        let mut bytes = Zeroizing::new(Vec::with_capacity(room));
        bytes.extend_from_slice(&self.authority_hash);
        bytes.extend_from_slice(&self.secret.0);
        bytes.push(self.addresses.len() as u8);
        for address in &self.addresses {
            bytes.push(address.len() as u8);
            bytes.extend_from_slice(address.as_bytes());
        }
        let checksum = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&checksum.to_be_bytes());
        let body = Zeroizing::new(URL_SAFE_NO_PAD.encode(&bytes));
        Zeroizing::new([NAME, VERSION, ".", body.as_str()].concat())
    }

    /// Reads a text; white space around it counts for nothing.
    pub fn parse(text: &str) -> Result<Token, BadToken> {
        let text = text.trim();
        let (version, body) =
            text.strip_prefix(NAME).and_then(|rest| rest.split_once('.')).ok_or(BadToken::NotAToken)?;
        if version.is_empty() || version.len() > 4 || !version.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(BadToken::NotAToken);
        }
        if version != VERSION {
            return Err(BadToken::Version(version.to_owned()));
        }
        if text.len() > TEXT_MAX_BYTES {
            return Err(BadToken::Damaged);
        }
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(body).map_err(|_| BadToken::Damaged)?);
        Token::decode(&bytes).ok_or(BadToken::Damaged)
    }

    fn decode(bytes: &[u8]) -> Option<Token> {
        let (bytes, checksum) = bytes.split_at_checked(bytes.len().checked_sub(CHECKSUM_BYTES)?)?;
        if crc32c::crc32c(bytes).to_be_bytes() != checksum {
            return None;
        }
        let (authority_hash, rest) = bytes.split_first_chunk::<32>()?;
        let (secret, rest) = rest.split_first_chunk::<16>()?;
        let (&count, mut rest) = rest.split_first()?;
        if count == 0 || usize::from(count) > ADDRESSES_MAX {
            return None;
        }
        let mut addresses = Vec::with_capacity(count.into());
        for _ in 0..count {
            let (&length, behind) = rest.split_first()?;
            let (address, behind) = behind.split_at_checked(length.into())?;
            addresses.push(std::str::from_utf8(address).ok().filter(|address| is_address(address))?.to_owned());
            rest = behind;
        }
        let token = Token { authority_hash: *authority_hash, secret: Secret(*secret), addresses };
        rest.is_empty().then_some(token)
    }
}

/// Whether a text is `host:port`; an IPv6 address is in brackets.
pub fn is_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let is_port = port.parse::<u16>().is_ok_and(|number| number != 0 && number.to_string() == port);
    let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
        }
    };
    is_port && is_host && text.len() <= ADDRESS_MAX_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token() -> Token {
        Token::new([7; 32], vec!["node-1.example:24180".to_owned(), "[fd00::1]:1".to_owned()]).unwrap()
    }

    fn bad(text: &str) -> BadToken {
        Token::parse(text).unwrap_err()
    }

    #[test]
    fn what_is_made_is_read() {
        let token = token();
        let text = token.text();
        assert!(text.starts_with("brickfs1.") && !text.contains('='));
        let read = Token::parse(&format!("  {}\n", *text)).unwrap();
        assert_eq!((read.authority_hash, &read.addresses), (token.authority_hash, &token.addresses));
        assert!(read.secret.has_hash(&token.secret.hash()));
        assert_ne!(super::Token::new([7; 32], token.addresses).unwrap().secret.0, read.secret.0);
    }

    #[test]
    fn a_bad_token_says_what_is_wrong() {
        let text = token().text();
        for other in ["", "brickfs", "brickfs.x", "brickfsx.y", "secret", "brickfs12345.x", "glfs1.x"] {
            assert_eq!(bad(other), BadToken::NotAToken, "{other}");
        }
        assert_eq!(bad(&text.replacen('1', "2", 1)), BadToken::Version("2".to_owned()));
        assert_eq!(bad("brickfs01.x"), BadToken::Version("01".to_owned()));
        for end in [9, 10, text.len() / 2, text.len() - 1] {
            assert_eq!(bad(&text[..end]), BadToken::Damaged);
        }
        assert_eq!(bad(&format!("{}A", *text)), BadToken::Damaged);
        assert_eq!(bad(&format!("brickfs1.{}", "A".repeat(TEXT_MAX_BYTES))), BadToken::Damaged);
        for error in [bad(""), bad("brickfs9.x"), bad("brickfs1.x")] {
            assert!(!error.to_string().contains('\n'));
        }
    }

    #[test]
    fn addresses_are_checked_before_they_are_carried() {
        let make = |addresses: &[&str]| Token::new([0; 32], addresses.iter().map(|&a| a.to_owned()).collect());
        assert!(make(&["127.0.0.1:24180"]).is_ok() && make(&["a:1"; ADDRESSES_MAX]).is_ok());
        assert!(make(&[]).is_err() && make(&["a:1"; ADDRESSES_MAX + 1]).is_err());
        for bad in ["", "a", "a:", ":1", "a:0", "a:65536", "a:01", "a:+1", "a b:1", "fd00::1:1", "[a]:1", "a\n:1"] {
            assert!(make(&[bad]).is_err(), "{bad}");
        }
        assert!(make(&[&format!("{}:1", "a".repeat(ADDRESS_MAX_BYTES - 2))]).is_ok());
        assert!(make(&[&format!("{}:1", "a".repeat(ADDRESS_MAX_BYTES - 1))]).is_err());
    }

    #[test]
    fn the_secret_is_compared_by_its_hash_and_never_shown() {
        let (one, other) = (Secret([1; 16]), Secret([2; 16]));
        assert!(one.has_hash(&one.hash()) && !one.has_hash(&other.hash()) && !one.has_hash(&[0; 32]));
        let mut last = one.hash();
        last[31] ^= 1;
        assert!(!one.has_hash(&last));
        assert_ne!(one.hash(), <[u8; 32]>::from(Sha256::digest([1; 16])), "the hash has a domain of its own");
        assert!(Secret::from_slice(&[1; 15]).is_none() && Secret::from_slice(one.as_bytes()).unwrap().0 == one.0);
        let shown = format!("{:?}", Token { secret: Secret(*b"do not show this"), ..token() });
        assert!(shown.contains("secret: Secret,"), "{shown}");
    }

    proptest! {
        #[test]
        fn any_token_is_read_again(hash in any::<[u8; 32]>(), hosts in prop::collection::vec("[a-z0-9.-]{1,40}:[1-9][0-9]{0,3}", 1..=8)) {
            let token = Token::new(hash, hosts).unwrap();
            let read = Token::parse(&token.text()).unwrap();
            prop_assert_eq!((read.authority_hash, read.secret.0, read.addresses), (hash, token.secret.0, token.addresses.clone()));
        }

        #[test]
        fn no_text_makes_it_panic(text in "(brickfs[0-9]?\\.?)?[A-Za-z0-9_=-]{0,120}\\PC{0,3}") {
            let _ = Token::parse(&text);
        }

        #[test]
        fn no_bytes_make_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), is_whole in any::<bool>()) {
            if is_whole {
                bytes.extend(crc32c::crc32c(&bytes).to_be_bytes());
            }
            if let Some(token) = Token::decode(&bytes) {
                prop_assert!(token.addresses.iter().all(|address| is_address(address)));
            }
        }

        #[test]
        fn a_changed_character_is_found(at in 9usize..100, to in "[A-Za-z0-9_-]") {
            let text = token().text();
            let mut changed = text.to_string();
            changed.replace_range(at..=at, &to);
            prop_assert!(changed == *text || Token::parse(&changed).is_err());
        }
    }
}
