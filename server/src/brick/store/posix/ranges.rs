//! Ranges of a brick's files: fallocate(2), written out where the file system refuses it, and copies. Both come to the
//! same end when they are begun again after they were cut.

use super::{PosixStore, errno};
use brickfs_common::errno::Errno;
use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno as Sys;
use std::os::fd::OwnedFd;

/// Most bytes that are allocated at once where that takes a few extents.
const EXTENTS_PIECE_BYTES: u64 = 256 << 20;
/// Most bytes that are allocated at once where each page or block is written: some ten milliseconds.
const WRITTEN_PIECE_BYTES: u64 = 16 << 20;
/// Bytes of one write or read here.
const CHUNK_BYTES: usize = 128 << 10;
/// What is looked at as one.
const BLOCK_BYTES: u64 = 4096;
/// FS_EXTENT_FL of FS_IOC_GETFLAGS: the file is kept in extents.
const EXTENT_FLAG: u32 = 0x0008_0000;

static ZEROS: [u8; CHUNK_BYTES] = [0; CHUNK_BYTES];

/// What fallocate(2) is asked to do with a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Allocation {
    /// To reserve it.
    Reserve {
        /// FALLOC_FL_KEEP_SIZE: the file does not grow.
        keeps_size: bool,
    },
    /// To make it a hole.
    Punch,
    /// To make it zeros that are reserved.
    Zero {
        /// FALLOC_FL_KEEP_SIZE: the file does not grow.
        keeps_size: bool,
    },
}

impl Allocation {
    /// Reads a mode of fallocate(2); EOPNOTSUPP for what moves bytes and for what nobody knows.
    pub fn of(mode: i32) -> Result<Allocation, Errno> {
        match mode {
            0 => Ok(Allocation::Reserve { keeps_size: false }),
            libc::FALLOC_FL_KEEP_SIZE => Ok(Allocation::Reserve { keeps_size: true }),
            _ if mode == libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE => Ok(Allocation::Punch),
            libc::FALLOC_FL_ZERO_RANGE => Ok(Allocation::Zero { keeps_size: false }),
            _ if mode == libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE => {
                Ok(Allocation::Zero { keeps_size: true })
            }
            _ => Err(Errno::EOPNOTSUPP),
        }
    }

    /// Whether room is needed for it.
    pub fn takes_space(self) -> bool {
        self != Allocation::Punch
    }
}

/// Which file system a brick lies on, as far as ranges go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Disk {
    /// ext2, ext3 or ext4
    Ext,
    /// XFS or Btrfs
    Extents,
    /// Another one.
    Other,
}

impl Disk {
    /// The one that a file lies on.
    pub(super) fn of(file: &OwnedFd) -> Result<Disk, Errno> {
        Ok(match rustix::fs::fstatfs(file).map_err(errno)?.f_type {
            libc::EXT4_SUPER_MAGIC => Disk::Ext,
            libc::XFS_SUPER_MAGIC | libc::BTRFS_SUPER_MAGIC => Disk::Extents,
            _ => Disk::Other,
        })
    }
}

impl PosixStore {
    /// Looks for data or a hole. ext4 overlooks data that it has not written back yet in files without extents (those
    /// of a disk that was made as ext3): they are said to be without holes.
    pub fn seek(&self, file: &OwnedFd, to: SeekFrom) -> Result<u64, Errno> {
        let is_blind = self.disk == Disk::Ext
            && rustix::fs::ioctl_getflags(file).is_ok_and(|flags| flags.bits() & EXTENT_FLAG == 0);
        let (SeekFrom::Data(at) | SeekFrom::Hole(at)) = to else {
            return rustix::fs::seek(file, to).map_err(errno);
        };
        if !is_blind {
            return rustix::fs::seek(file, to).map_err(errno);
        }
        let size = rustix::fs::fstat(file).map_err(errno)?.st_size as u64;
        match to {
            _ if at >= size => Err(Errno::ENXIO),
            SeekFrom::Data(_) => Ok(at),
            _ => Ok(size),
        }
    }

    /// Most bytes that one effect allocates, so that nobody waits for long.
    pub fn allocation_piece(&self, allocation: Allocation) -> u64 {
        match allocation {
            _ if self.writes_out => WRITTEN_PIECE_BYTES,
            Allocation::Punch => u64::MAX,
            _ if self.disk != Disk::Other => EXTENTS_PIECE_BYTES,
            _ => WRITTEN_PIECE_BYTES,
        }
    }

    /// fallocate(2), or what comes to the same.
    pub(super) fn allocate(&mut self, file: &OwnedFd, mode: i32, offset: u64, length: u64) -> Result<(), Errno> {
        match fallocate(file, mode, offset, length) {
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {}
            other => return other,
        }
        let allocation = Allocation::of(mode)?;
        if let Allocation::Zero { keeps_size } = allocation {
            // tmpfs: a hole first, and then its room.
            let reserve = if keeps_size { libc::FALLOC_FL_KEEP_SIZE } else { 0 };
            let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            let made = fallocate(file, punch, offset, length).and_then(|()| fallocate(file, reserve, offset, length));
            if !matches!(made, Err(Errno::EOPNOTSUPP | Errno::ENOSYS)) {
                return made;
            }
        }
        self.writes_out = true;
        write_out(file, allocation, offset, length)
    }
}

fn fallocate(file: &OwnedFd, mode: i32, offset: u64, length: u64) -> Result<(), Errno> {
    let flags = FallocateFlags::from_bits_retain(mode as u32);
    loop {
        match rustix::fs::fallocate(file, flags, offset, length) {
            Err(Sys::INTR) => {}
            other => return other.map_err(errno),
        }
    }
}

/// Does with writes what the file system does not do by itself. Where data are is seen by reading: what SEEK_DATA says
/// is not to be relied on everywhere. What would be reserved beyond the end without growing the file cannot be:
/// EOPNOTSUPP if that is what was asked for.
fn write_out(file: &OwnedFd, allocation: Allocation, offset: u64, length: u64) -> Result<(), Errno> {
    let size = rustix::fs::fstat(file).map_err(errno)?.st_size as u64;
    let end = offset + length;
    match allocation {
        Allocation::Zero { keeps_size } => write_zeros(file, offset, if keeps_size { end.min(size) } else { end }),
        Allocation::Punch => each_block(file, (offset, end.min(size)), |is_zero| !is_zero),
        Allocation::Reserve { keeps_size: true } if end > size => Err(Errno::EOPNOTSUPP),
        Allocation::Reserve { .. } => {
            each_block(file, (offset, end.min(size)), |is_zero| is_zero)?;
            write_zeros(file, offset.max(size), end)
        }
    }
}

/// Writes zeros over the blocks of a range, which does not go beyond the end, that are wanted: those that are all zeros,
/// perhaps holes, or the others.
fn each_block(file: &OwnedFd, (mut at, end): (u64, u64), is_wanted: fn(bool) -> bool) -> Result<(), Errno> {
    let mut chunk = vec![0; CHUNK_BYTES];
    while at < end {
        // From block to block, whatever the range begins with.
        let length = (CHUNK_BYTES as u64 - at % BLOCK_BYTES).min(end - at) as usize;
        let count = match rustix::io::pread(file, &mut chunk[..length], at) {
            Ok(0) => break,
            Ok(count) => count,
            Err(Sys::INTR) => continue,
            Err(error) => return Err(errno(error)),
        };
        let mut from = 0;
        while from < count {
            let to = count.min(from + (BLOCK_BYTES - (at + from as u64) % BLOCK_BYTES) as usize);
            if is_wanted(chunk[from..to].iter().all(|byte| *byte == 0)) {
                write_zeros(file, at + from as u64, at + to as u64)?;
            }
            from = to;
        }
        at += count as u64;
    }
    Ok(())
}

fn write_zeros(file: &OwnedFd, mut at: u64, end: u64) -> Result<(), Errno> {
    while at < end {
        let length = (end - at).min(CHUNK_BYTES as u64) as usize;
        match rustix::io::pwrite(file, &ZEROS[..length], at) {
            Ok(0) => return Err(Errno::EIO),
            Ok(n) => at += n as u64,
            Err(Sys::INTR) => {}
            Err(error) => return Err(errno(error)),
        }
    }
    Ok(())
}

/// Copies bytes from (file, offset) to (file, offset). File systems with reflinks share them. Answers how many: fewer
/// than `length` at the end of the source, or where an error came behind them.
pub fn copy_range((source, from): (&OwnedFd, u64), (target, to): (&OwnedFd, u64), length: u64) -> Result<u64, Errno> {
    let mut copied = 0;
    while copied < length {
        let (mut from, mut to, rest) = (from + copied, to + copied, length - copied);
        let step = match rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), rest as usize) {
            // What the kernel does not copy is read and written.
            Ok(0) | Err(Sys::OPNOTSUPP | Sys::NOSYS | Sys::XDEV | Sys::INVAL) => {
                copy_chunk((source, from), (target, to), rest)
            }
            other => other,
        };
        match step {
            Ok(0) => break,
            Ok(count) => copied += count as u64,
            Err(Sys::INTR) => {}
            Err(_) if copied > 0 => break,
            Err(error) => return Err(errno(error)),
        }
    }
    Ok(copied)
}

fn copy_chunk((source, from): (&OwnedFd, u64), (target, to): (&OwnedFd, u64), length: u64) -> Result<usize, Sys> {
    let mut chunk = vec![0; length.min(CHUNK_BYTES as u64) as usize];
    let count = rustix::io::pread(source, &mut chunk[..], from)?;
    rustix::io::pwrite(target, &chunk[..count], to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    const DIRS: [&str; 2] = ["/dev/shm", "/var/tmp"];
    /// A file of data, hole, data.
    const SIZE: usize = 600_000;

    fn content() -> Vec<u8> {
        let byte = |n: usize| if (200_000..401_408).contains(&n) { 0 } else { (n % 251) as u8 + 1 };
        (0..SIZE).map(byte).collect()
    }

    fn file_in(dir: &str) -> OwnedFd {
        let file = tempfile::tempfile_in(dir).unwrap();
        let content = content();
        file.write_all_at(&content[..200_000], 0).unwrap();
        file.write_all_at(&content[401_408..], 401_408).unwrap();
        file.into()
    }

    fn read(file: &OwnedFd) -> Vec<u8> {
        let file = std::fs::File::from(file.try_clone().unwrap());
        let mut content = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut content, 0).unwrap();
        content
    }

    fn blocks(file: &OwnedFd) -> u64 {
        std::fs::File::from(file.try_clone().unwrap()).metadata().unwrap().blocks()
    }

    #[test]
    fn what_is_written_out_is_what_fallocate_does() {
        use Allocation::{Punch, Reserve, Zero};
        for dir in DIRS {
            for (offset, length) in [(0, 10), (100_000, 350_000), (250_000, 4096), (590_000, 50_000), (700_000, 1)] {
                let (first, last) = (offset as usize, (offset + length) as usize);
                let zeroed = |size: usize| {
                    let mut wanted = content();
                    wanted.resize(size, 0);
                    let end = last.min(size);
                    wanted[first.min(end)..end].fill(0);
                    wanted
                };
                let grown = SIZE.max(last);
                let plain = |size: usize| [content(), vec![0; size - SIZE]].concat();
                for (allocation, wanted) in [
                    (Punch, zeroed(SIZE)),
                    (Zero { keeps_size: true }, zeroed(SIZE)),
                    (Zero { keeps_size: false }, zeroed(grown)),
                    (Reserve { keeps_size: false }, plain(grown)),
                ] {
                    let file = file_in(dir);
                    for _ in 0..2 {
                        write_out(&file, allocation, offset, length).unwrap();
                        assert!(read(&file) == wanted, "{allocation:?} of {length} at {offset} in {dir}");
                    }
                }
                let kept = write_out(&file_in(dir), Reserve { keeps_size: true }, offset, length);
                assert_eq!(kept, if last > SIZE { Err(Errno::EOPNOTSUPP) } else { Ok(()) });
            }
        }
    }

    #[test]
    fn what_is_written_out_is_reserved_and_a_hole_stays_one() {
        for dir in DIRS {
            let file = file_in(dir);
            let before = blocks(&file);
            write_out(&file, Allocation::Punch, 210_000, 190_000).unwrap();
            assert_eq!(blocks(&file), before, "{dir}");
            write_out(&file, Allocation::Reserve { keeps_size: false }, 0, SIZE as u64).unwrap();
            // ext4 allocates when it writes back.
            rustix::fs::fsync(&file).unwrap();
            assert!(blocks(&file) * 512 >= SIZE as u64, "{dir}");
        }
    }

    #[test]
    fn modes_that_move_bytes_or_that_nobody_knows_are_refused() {
        for mode in [2, 4, 8, 16 | 2, 32, 64, 128, -1, 8 | 1] {
            assert_eq!(Allocation::of(mode), Err(Errno::EOPNOTSUPP), "{mode}");
        }
    }

    #[test]
    fn copies_end_at_the_end_of_the_source() {
        for dir in DIRS {
            let (source, target) = (file_in(dir), file_in(dir));
            assert_eq!(copy_range((&source, 100), (&target, 5000), 300_000), Ok(300_000));
            assert_eq!(copy_range((&source, 590_000), (&target, 599_000), 300_000), Ok(10_000));
            assert_eq!(copy_range((&source, SIZE as u64), (&target, 0), 10), Ok(0));
            assert_eq!(copy_range((&target, 0), (&target, 700_000), 10), Ok(10));
            let mut wanted = content();
            wanted.copy_within(100..300_100, 5000);
            wanted.splice(5000..305_000, content()[100..300_100].iter().copied());
            wanted.truncate(599_000);
            wanted.extend_from_slice(&content()[590_000..]);
            wanted.resize(700_000, 0);
            wanted.extend_from_within(0..10);
            assert!(read(&target) == wanted, "{dir}");
            assert_eq!(copy_chunk((&source, 7), (&target, 0), 1 << 30), Ok(CHUNK_BYTES));
            assert!(read(&target)[..CHUNK_BYTES] == content()[7..CHUNK_BYTES + 7], "{dir}");
        }
    }
}
