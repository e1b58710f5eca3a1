//! Join tokens as the cluster state holds them: the hash of the secret, never the secret itself.

use crate::ids::NodeId;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// A text that is not 64 hex digits.
#[derive(Debug, thiserror::Error)]
#[error("a token's hash is 64 hexadecimal digits")]
pub struct BadTokenHash;

/// SHA-256 of a token's secret.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenHash(pub [u8; 32]);

/// One join token.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenState {
    /// When it is over, in milliseconds since 1970.
    pub ends_ms: u64,
    /// Who asked for it.
    pub made_by: String,
    /// The node that joined with it. It stays here until the token's end, so that a join that is repeated
    /// after a lost reply is answered as done.
    pub used_by: Option<NodeId>,
}

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenHash({self})")
    }
}

impl FromStr for TokenHash {
    type Err = BadTokenHash;
    fn from_str(text: &str) -> Result<TokenHash, BadTokenHash> {
        if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(BadTokenHash);
        }
        let mut hash = [0; 32];
        for (i, byte) in hash.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| BadTokenHash)?;
        }
        Ok(TokenHash(hash))
    }
}

impl Serialize for TokenHash {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TokenHash {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<TokenHash, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_read_as_it_is_shown() {
        let hash = TokenHash(std::array::from_fn(|i| i as u8 * 8));
        assert_eq!(hash.to_string().parse::<TokenHash>().unwrap(), hash);
        for bad in ["", "00", &"0".repeat(63), &"0".repeat(65), &"+".repeat(64), &"ä".repeat(32)] {
            assert!(bad.parse::<TokenHash>().is_err(), "{bad}");
        }
    }
}
