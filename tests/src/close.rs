//! close(2) with its result, which dropping a file does not tell.

use std::fs::File;
use std::io;
use std::os::fd::IntoRawFd as _;

/// Closes a file; an error is one of writes that were answered before they were done.
pub fn close(file: File) -> io::Result<()> {
    #[allow(unsafe_code)]
    // SAFETY: the descriptor is the file's own, and nobody else has it now.
    let result = unsafe { libc::close(file.into_raw_fd()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
