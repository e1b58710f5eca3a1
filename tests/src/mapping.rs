//! A file mapped into memory, as programs do it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::ptr;

/// A mapping of the front of a file, for reading and writing.
pub struct Mapping {
    start: *mut libc::c_void,
    length: usize,
}

impl Mapping {
    /// Maps `length` bytes, MAP_SHARED or MAP_PRIVATE.
    pub fn of(file: &File, length: usize, is_shared: bool) -> io::Result<Mapping> {
        let flags = if is_shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
        let access = libc::PROT_READ | libc::PROT_WRITE;
        #[allow(unsafe_code)]
        // SAFETY: a new mapping, at a place that the kernel chooses.
        let start = unsafe { libc::mmap(ptr::null_mut(), length, access, flags, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Mapping { start, length }) }
    }

    /// The byte at a place, as it is now: others may write it.
    pub fn get(&self, at: usize) -> u8 {
        assert!(at < self.length);
        #[allow(unsafe_code)]
        // SAFETY: within the mapping, which lives as long as this.
        unsafe {
            self.start.cast::<u8>().add(at).read_volatile()
        }
    }

    /// Writes a byte.
    pub fn set(&mut self, at: usize, byte: u8) {
        assert!(at < self.length);
        #[allow(unsafe_code)]
        // SAFETY: as above; it is mapped for writing.
        unsafe {
            self.start.cast::<u8>().add(at).write_volatile(byte);
        }
    }

    /// msync(2) with MS_SYNC.
    pub fn sync(&self) -> io::Result<()> {
        #[allow(unsafe_code)]
        // SAFETY: the whole mapping, which lives as long as this.
        let result = unsafe { libc::msync(self.start, self.length, libc::MS_SYNC) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        #[allow(unsafe_code)]
        // SAFETY: the whole mapping, and nothing refers to it any more.
        unsafe {
            libc::munmap(self.start, self.length);
        }
    }
}
