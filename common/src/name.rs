//! Names of directory entries: byte strings with no normalisation, validated once.

use crate::errno::Errno;
use bytes::Bytes;
use std::fmt;

/// Longest name in bytes, as on the local file systems that carry the bricks.
pub const NAME_MAX: usize = 255;
/// Longest symbolic link target in bytes (PATH_MAX without the terminating NUL).
pub const TARGET_MAX: usize = 4095;
/// The directory at a brick's root that holds everything of ours.
pub const RESERVED_ROOT_NAME: &[u8] = b".brickfs";
/// Prefix of our own extended attributes; neither shown nor settable through a mount.
pub const RESERVED_XATTR_PREFIX: &[u8] = b"trusted.brickfs.";

/// One directory entry's name: 1 to 255 bytes without `/` and NUL, neither `.` nor `..`.
/// Case counts and bytes are never normalised.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Bytes);

impl Name {
    /// Validates `bytes`: ENAMETOOLONG above 255 bytes, EINVAL for what no directory can hold.
    pub fn new(bytes: impl Into<Bytes>) -> Result<Name, Errno> {
        let bytes = bytes.into();
        if bytes.len() > NAME_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        let reserved = bytes.is_empty() || &bytes[..] == b"." || &bytes[..] == b"..";
        if reserved || bytes.iter().any(|b| *b == b'/' || *b == 0) {
            return Err(Errno::EINVAL);
        }
        Ok(Name(bytes))
    }

    /// The bytes of the name.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The name as shared bytes, without a copy.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }

    /// Whether this is the name that no client may use in the root directory (PROTOCOL 39).
    pub fn is_reserved_in_root(&self) -> bool {
        self.as_bytes() == RESERVED_ROOT_NAME
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_directory_can_hold_are_refused() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0b"] {
            assert_eq!(Name::new(bad.to_vec()), Err(Errno::EINVAL), "{bad:?}");
        }
        assert_eq!(Name::new(vec![b'x'; 256]), Err(Errno::ENAMETOOLONG));
        assert!(Name::new(vec![b'x'; 255]).is_ok());
        assert!(Name::new(vec![0xff, 0xfe, b' ']).is_ok());
    }

    #[test]
    fn case_counts_and_bytes_are_kept() {
        assert_ne!(Name::new(&b"A"[..]).unwrap(), Name::new(&b"a"[..]).unwrap());
        let decomposed = "e\u{301}".as_bytes().to_vec();
        assert_eq!(Name::new(decomposed.clone()).unwrap().as_bytes(), decomposed);
    }
}
