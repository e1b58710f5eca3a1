//! POSIX ACLs as the kernel stores them in xattrs, and what a new object inherits from its parent's
//! default ACL. Source of the rules: acl(5), "OBJECT CREATION AND DEFAULT ACLs".

/// Version word of the kernel's xattr form.
const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const GROUP_OBJ: u16 = 0x04;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// What a new object gets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inherited {
    /// Permission bits.
    pub perm: u32,
    /// Access ACL to store, if it says more than the bits.
    pub access: Option<Vec<u8>>,
    /// Default ACL to store (directories).
    pub default: Option<Vec<u8>>,
}

/// Computes permissions and ACLs of a new object: with a default ACL at the parent the umask does not
/// count, without one it does. `default_acl` is the parent's `system.posix_acl_default`; a damaged one
/// counts as none.
pub fn compute_inherited(default_acl: Option<&[u8]>, perm: u32, umask: u32, is_directory: bool) -> Inherited {
    let plain = Inherited { perm: perm & !umask, access: None, default: None };
    let Some(acl) = default_acl else { return plain };
    let well_formed = acl.len() >= 4 && (acl.len() - 4).is_multiple_of(8) && acl[..4] == VERSION.to_le_bytes();
    if !well_formed {
        return plain;
    }
    let mut access = acl.to_vec();
    let entry_count = (acl.len() - 4) / 8;
    let has_mask = access[4..].chunks(8).any(|e| u16::from_le_bytes([e[0], e[1]]) == MASK);
    let mut bits = perm & 0o7000;
    for entry in access[4..].chunks_mut(8) {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        let shift = match tag {
            USER_OBJ => 6,
            MASK => 3,
            GROUP_OBJ if !has_mask => 3,
            OTHER => 0,
            _ => continue,
        };
        let allowed = u16::from_le_bytes([entry[2], entry[3]]) & (perm >> shift) as u16 & 7;
        entry[2..4].copy_from_slice(&allowed.to_le_bytes());
        bits |= u32::from(allowed) << shift;
    }
    Inherited { perm: bits, access: (entry_count > 3).then_some(access), default: is_directory.then(|| acl.to_vec()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for (tag, perm, id) in entries {
            bytes.extend_from_slice(&tag.to_le_bytes());
            bytes.extend_from_slice(&perm.to_le_bytes());
            bytes.extend_from_slice(&id.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn the_umask_counts_only_without_a_default_acl() {
        assert_eq!(compute_inherited(None, 0o666, 0o022, false).perm, 0o644);
        let default = acl(&[(USER_OBJ, 7, !0), (GROUP_OBJ, 5, !0), (OTHER, 0, !0)]);
        let got = compute_inherited(Some(&default), 0o666, 0o022, true);
        assert_eq!((got.perm, got.access), (0o640, None));
        assert_eq!(got.default, Some(default));
    }

    #[test]
    fn a_mask_takes_the_place_of_the_group_bits() {
        let default = acl(&[(USER_OBJ, 7, !0), (2, 6, 1000), (GROUP_OBJ, 5, !0), (MASK, 7, !0), (OTHER, 4, !0)]);
        let got = compute_inherited(Some(&default), 0o2664, 0o077, false);
        assert_eq!(got.perm, 0o2664);
        let expected = acl(&[(USER_OBJ, 6, !0), (2, 6, 1000), (GROUP_OBJ, 5, !0), (MASK, 6, !0), (OTHER, 4, !0)]);
        assert_eq!((got.access, got.default), (Some(expected), None));
    }
}
