//! The kernel's list of mounts. A dead mount cannot be looked at, so nothing here touches the mounts themselves.

use rustix::mount::UnmountFlags;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

/// One mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KernelMount {
    /// Where it is.
    pub point: PathBuf,
    /// Such as `fuse.brickfs`.
    pub fs_type: String,
    /// Such as `node-1:/demo`.
    pub source: String,
    /// Options of the mount, such as `rw,nosuid`.
    pub options: String,
}

/// Every mount, in the order in which they were made.
pub fn all() -> Vec<KernelMount> {
    let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
    table.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

/// The topmost mount on exactly this path.
pub fn find(point: &Path) -> Option<KernelMount> {
    all().into_iter().rfind(|mount| mount.point == point)
}

/// Takes away every mount on or below `directory`, the busy ones too.
pub fn detach_below(directory: &Path) {
    for mount in all().iter().rev().filter(|mount| mount.point.starts_with(directory)) {
        if let Err(error) = rustix::mount::unmount(&mount.point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            eprintln!("cannot unmount {}: {error}", mount.point.display());
        }
    }
}

/// `36 35 98:0 /root /point opts tags... - type source super`.
fn parse_line(line: &[u8]) -> Option<KernelMount> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let dash = fields.iter().position(|field| *field == b"-")?;
    let text = |index: usize| Some(String::from_utf8_lossy(&unescape(fields.get(index)?)).into_owned());
    let point = PathBuf::from(OsString::from_vec(unescape(fields.get(4)?)));
    Some(KernelMount { point, fs_type: text(dash + 1)?, source: text(dash + 2)?, options: text(5)? })
}

/// The kernel writes space, tab, newline and backslash as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(octal.unwrap_or(*first));
        rest = if octal.is_some() { &tail[3..] } else { tail };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_with_its_escapes() {
        let line = b"3 2 0:51 / /mnt/my\\040dir rw,nosuid shared:2 - fuse.brickfs node-1:/demo rw";
        let mount = parse_line(line).unwrap();
        assert_eq!(mount.point, Path::new("/mnt/my dir"));
        assert_eq!((mount.fs_type.as_str(), mount.source.as_str()), ("fuse.brickfs", "node-1:/demo"));
        assert_eq!(mount.options, "rw,nosuid");
        assert!(find(Path::new("/proc")).is_some());
    }
}
