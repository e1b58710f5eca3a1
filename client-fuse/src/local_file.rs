//! The brick's own file, where client and brick are on one machine: what a program reads comes from the page
//! cache that the brick writes into, without a round trip and without a copy through a socket.
//!
//! Only for reading, and only what needs no sleep: the threads that serve the kernel never wait for a disk. All
//! else is asked of the brick, errors too.

#![allow(unsafe_code)] // rustix's preadv2 takes initialised room only: 256 KiB of zeros for each read

use brickfs_common::fop::Descriptor;
use bytes::Bytes;
use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicU8, Ordering};

/// `statfs::f_type` of tmpfs (magic.h): it has no RWF_NOWAIT, and sleeps for swapped pages only.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// How the file system of a file is read without sleeping.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Manner {
    /// With RWF_NOWAIT.
    NoWait,
    /// It never sleeps.
    Plain,
    /// Not at all.
    Never,
}

/// See the file's head.
pub struct LocalFile {
    /// The session that it came over: another one may be with a brick that has another file.
    pub session: u64,
    file: Descriptor,
    manner: AtomicU8,
}

impl LocalFile {
    /// A file that was passed over a session.
    pub fn new(file: Descriptor, session: u64) -> LocalFile {
        LocalFile { session, file, manner: AtomicU8::new(Manner::NoWait as u8) }
    }

    fn manner(&self) -> Manner {
        match self.manner.load(Ordering::Relaxed) {
            0 => Manner::NoWait,
            1 => Manner::Plain,
            _ => Manner::Never,
        }
    }

    /// Reads up to `size` bytes, fewer only at the end of the file. `None` if that would take a sleep, or fails.
    pub fn read(&self, offset: u64, size: usize) -> Option<Bytes> {
        let mut data = Vec::with_capacity(size);
        while data.len() < size {
            match self.read_some(&mut data, offset) {
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP) if self.manner() == Manner::NoWait => self.choose_manner(),
                Err(_) => return None,
            }
        }
        // The allocator may have given more room than was asked for.
        data.truncate(size);
        Some(Bytes::from(data))
    }

    fn read_some(&self, data: &mut Vec<u8>, offset: u64) -> rustix::io::Result<usize> {
        let at = offset + data.len() as u64;
        match self.manner() {
            Manner::NoWait => self.read_cached(data, at),
            Manner::Plain => rustix::io::pread(&self.file.0, spare_capacity(data), at),
            Manner::Never => Err(Errno::AGAIN),
        }
    }

    /// Reads what the page cache has into the spare room; AGAIN if it has nothing there.
    fn read_cached(&self, data: &mut Vec<u8>, at: u64) -> rustix::io::Result<usize> {
        let at = i64::try_from(at).map_err(|_| Errno::INVAL)?;
        let room = data.spare_capacity_mut();
        let room = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
        // SAFETY: the iovec is the vector's own spare room, which nothing else refers to.
        let read = unsafe { libc::preadv2(self.file.0.as_raw_fd(), &raw const room, 1, at, libc::RWF_NOWAIT) };
        let read = usize::try_from(read)
            .map_err(|_| Errno::from_io_error(&std::io::Error::last_os_error()))
            .map_err(|errno| errno.unwrap_or(Errno::IO))?;
        // SAFETY: preadv2(2) has written this many bytes to the front of the spare room.
        unsafe { data.set_len(data.len() + read) };
        Ok(read)
    }

    fn choose_manner(&self) {
        let is_tmpfs = rustix::fs::fstatfs(&self.file.0).is_ok_and(|fs| fs.f_type as u64 == TMPFS_MAGIC);
        let manner = if is_tmpfs { Manner::Plain } else { Manner::Never };
        self.manner.store(manner as u8, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::sync::Arc;

    fn passed(file: std::fs::File) -> LocalFile {
        LocalFile::new(Descriptor(Arc::new(file.into())), 1)
    }

    #[test]
    fn what_is_cached_is_read_up_to_the_end() {
        for dir in ["/dev/shm", "/var/tmp"] {
            let mut file = tempfile::tempfile_in(dir).unwrap();
            let content: Vec<u8> = (0..300_000u32).map(|n| (n % 253) as u8).collect();
            file.write_all(&content).unwrap();
            let local = passed(file.try_clone().unwrap());
            assert!(local.read(0, 131_072).unwrap() == content[..131_072], "{dir}");
            assert!(local.read(262_144, 131_072).unwrap() == content[262_144..], "{dir}");
            assert_eq!(local.read(300_000, 10).unwrap().len(), 0, "{dir}");
            file.set_len(10).unwrap();
            assert!(local.read(5, 4096).unwrap() == content[5..10], "{dir}");
        }
    }

    #[test]
    fn what_fails_is_left_to_the_brick() {
        let write_only = std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
        assert!(passed(write_only).read(0, 10).is_none());
        assert!(passed(std::fs::File::open("/proc/self/status").unwrap()).read(u64::MAX / 2 + 1, 10).is_none());
    }
}
