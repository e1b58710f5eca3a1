//! The kernel's mounts: what is mounted where, mounting a volume with `brickfs`, unmounting.

use super::process::{last_line, sibling};
use anyhow::{Context as _, bail};
use rustix::mount::UnmountFlags;
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// One mount as the kernel lists it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mount {
    /// Such as `fuse.brickfs`.
    pub fs_type: String,
    /// Such as `node-1:/demo`.
    pub source: String,
}

/// The topmost mount on exactly this path. Reads the kernel's list: a dead mount cannot be looked at.
pub fn find_mount(path: &Path) -> Option<Mount> {
    let resolved = resolve(path);
    let table = fs::read("/proc/self/mountinfo").ok()?;
    find_in_table(&table, &resolved)
}

/// Whether a BrickFS volume is mounted there.
pub fn is_brickfs_mount(path: &Path) -> bool {
    find_mount(path).is_some_and(|mount| mount.fs_type == "fuse.brickfs")
}

/// Follows links up to the parent only: looking at the mount point itself may hang or fail.
fn resolve(path: &Path) -> PathBuf {
    match (path.parent().map(fs::canonicalize), path.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => path.to_owned(),
    }
}

fn find_in_table(table: &[u8], path: &Path) -> Option<Mount> {
    let lines = table.split(|b| *b == b'\n').filter_map(parse_line);
    lines.rev().find(|(point, _)| point == path).map(|(_, mount)| mount)
}

/// `36 35 98:0 /root /point opts tags... - type source super`.
fn parse_line(line: &[u8]) -> Option<(PathBuf, Mount)> {
    let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    let dash = fields.iter().position(|field| *field == b"-")?;
    let point = PathBuf::from(std::ffi::OsString::from_vec(unescape(fields.get(4)?)));
    let text = |index: usize| Some(String::from_utf8_lossy(&unescape(fields.get(index)?)).into_owned());
    Some((point, Mount { fs_type: text(dash + 1)?, source: text(dash + 2)? }))
}

/// The kernel writes space, tab, newline and backslash as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = |digits: &[u8]| {
            digits.iter().try_fold(0u32, |n, d| (b'0'..=b'7').contains(d).then(|| n * 8 + u32::from(d - b'0')))
        };
        match tail.get(..3).and_then(octal).filter(|_| *first == b'\\') {
            Some(byte) => {
                bytes.push(byte as u8);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

/// Mounts a volume: runs `brickfs`, which returns when the mount answers.
pub fn mount_volume(dir: &Path, socket: &Path, host: &str, volume: &str, point: &Path) -> anyhow::Result<()> {
    // Its output goes to a file: the part of it that stays would hold a pipe of ours open.
    let errors = dir.join("mount.err");
    let status = Command::new(sibling("brickfs")?)
        .arg("--socket")
        .arg(socket)
        .arg("--log-file")
        .arg(dir.join("brickfs.log"))
        .arg(format!("{host}:/{volume}"))
        .arg(point)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&errors)?)
        .current_dir("/")
        .status()
        .context("cannot run brickfs")?;
    if !status.success() {
        bail!("cannot mount {host}:/{volume} on {}: {}", point.display(), last_line(&errors));
    }
    if !is_brickfs_mount(point) {
        bail!("brickfs returned but {} is not mounted; see {}", point.display(), dir.join("brickfs.log").display());
    }
    Ok(())
}

/// Unmounts; an error if it is in use.
pub fn unmount(path: &Path) -> anyhow::Result<()> {
    let path = resolve(path);
    rustix::mount::unmount(path.as_os_str().as_bytes(), UnmountFlags::NOFOLLOW)?;
    Ok(())
}

/// Unmounts; if it is in use it disappears now and ends when its last user does.
pub fn unmount_even_if_busy(path: &Path) -> anyhow::Result<()> {
    let Err(error) = unmount(path) else { return Ok(()) };
    eprintln!("brickctl: {} is in use ({error:#}): it is detached now and ends with its last user", path.display());
    let resolved = resolve(path);
    rustix::mount::unmount(resolved.as_os_str().as_bytes(), UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)
        .with_context(|| format!("cannot unmount {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_mount_of_a_path_is_found() {
        let table = b"1 0 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n\
            2 1 0:50 / /mnt/my\\040dir rw - tmpfs tmpfs rw\n\
            3 2 0:51 / /mnt/my\\040dir rw shared:2 master:3 - fuse.brickfs node-1:/demo rw,user_id=0\n";
        let mount = find_in_table(table, Path::new("/mnt/my dir")).unwrap();
        assert_eq!(mount, Mount { fs_type: "fuse.brickfs".to_owned(), source: "node-1:/demo".to_owned() });
        assert!(find_in_table(table, Path::new("/mnt")).is_none());
        assert_eq!(unescape(b"a\\134b\\04"), b"a\\b\\04");
        assert!(find_mount(Path::new("/proc")).is_some());
    }
}
