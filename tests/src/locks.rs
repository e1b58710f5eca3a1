//! Locks of files as programs ask for them: fcntl(2) with ranges, and flock(2).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

/// How a range is locked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lock {
    /// F_RDLCK
    Shared,
    /// F_WRLCK
    Exclusive,
    /// F_UNLCK
    None,
}

/// A lock that F_GETLK found in the way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// How.
    pub lock: Lock,
    /// First byte.
    pub start: i64,
    /// Bytes; 0 to the end of the file.
    pub len: i64,
}

fn ask(file: &File, command: i32, lock: Lock, (start, len): (i64, i64)) -> io::Result<libc::flock> {
    let kind = match lock {
        Lock::Shared => libc::F_RDLCK,
        Lock::Exclusive => libc::F_WRLCK,
        Lock::None => libc::F_UNLCK,
    };
    let mut asked =
        libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: start, l_len: len, l_pid: 0 };
    #[allow(unsafe_code)]
    // SAFETY: the descriptor is open, and the structure lives until the call returns.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut asked) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(asked) }
}

/// F_SETLK: `len` bytes from `start`, 0 for all that follow.
pub fn set(file: &File, lock: Lock, at: (i64, i64)) -> io::Result<()> {
    ask(file, libc::F_SETLK, lock, at).map(|_| ())
}

/// F_SETLKW.
pub fn wait(file: &File, lock: Lock, at: (i64, i64)) -> io::Result<()> {
    ask(file, libc::F_SETLKW, lock, at).map(|_| ())
}

/// F_GETLK.
pub fn test(file: &File, lock: Lock, at: (i64, i64)) -> io::Result<Option<Found>> {
    let found = ask(file, libc::F_GETLK, lock, at)?;
    let lock = match i32::from(found.l_type) {
        libc::F_UNLCK => return Ok(None),
        libc::F_RDLCK => Lock::Shared,
        _ => Lock::Exclusive,
    };
    Ok(Some(Found { lock, start: found.l_start, len: found.l_len }))
}

/// Whether a lock was refused because another one is in its way.
pub fn is_refused(result: &io::Result<()>) -> bool {
    matches!(result, Err(error) if [Some(libc::EAGAIN), Some(libc::EACCES)].contains(&error.raw_os_error()))
}
