//! Memory that `brickd` lends to a client of its own machine for the data of large writes. The client puts the bytes in
//! and sends a call that says where they are; `brickd` writes them from there. Over the socket the same bytes are
//! copied four times more: into the message, into the kernel, out of it, together again.
//!
//! ```text
//!   brickd: memfd, sealed ──(beside the greeting, SCM_RIGHTS)──▶ client: maps it
//!   client: slot free ──fill, send the call──▶ slot used ──answer──▶ slot free
//! ```
//!
//! A slot belongs to one call from before it is sent until its answer has come, also where nobody waits for that any
//! more. With the session ends the loan: what is sent again goes into the memory of the next one, for the bytes are kept
//! until then. The seals keep the client from making the memory smaller under the reader, which would end `brickd` by
//! a signal. What it may do is change bytes while they are written: they are its own.

#![allow(unsafe_code)] // memory that is shared with another process

use brickfs_common::fop::PIECE_BYTES;
use bytes::Bytes;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;

/// Pieces of which there is room at once. More than what is on its way (1 MiB), for an answer may be late.
const SLOTS: u32 = 8;
/// Bytes of the memory of a session.
const LENT_BYTES: usize = PIECE_BYTES * SLOTS as usize;
/// Smaller writes go with the message: they cost more to look after than to copy.
const LENT_MIN_BYTES: usize = 64 << 10;

/// A mapping of the memory, gone with its last user.
struct Mapping(NonNull<u8>);

// SAFETY: it is memory of the process like any other; who reads and writes it when is said in the file's head.
unsafe impl Send for Mapping {}
// SAFETY: see above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(memory: &OwnedFd, access: ProtFlags) -> io::Result<Mapping> {
        // SAFETY: a new mapping at an address that the kernel chooses overlaps nothing.
        let start = unsafe { rustix::mm::mmap(std::ptr::null_mut(), LENT_BYTES, access, MapFlags::SHARED, memory, 0) }?;
        NonNull::new(start.cast()).map(Mapping).ok_or_else(|| io::Error::other("mapped at address 0"))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's own, of this size, and nobody refers to it any more.
        unsafe { rustix::mm::munmap(self.0.as_ptr().cast(), LENT_BYTES) }.ok(); // of a valid range it cannot fail
    }
}

/// `brickd`'s side of a loan.
pub struct Lender(Arc<Mapping>);

impl Lender {
    /// Makes memory to lend, and what to pass to the client.
    pub fn lend() -> io::Result<(Lender, OwnedFd)> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memory = rustix::fs::memfd_create("brickfs-lent", flags)?;
        rustix::fs::ftruncate(&memory, LENT_BYTES as u64)?;
        rustix::fs::fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok((Lender(Arc::new(Mapping::new(&memory, ProtFlags::READ)?)), memory))
    }

    /// The bytes that a call says are there; `None` if they cannot be.
    pub fn bytes(&self, offset: u32, length: u32) -> Option<Bytes> {
        let (start, length) = (offset as usize, length as usize);
        let fits = length <= PIECE_BYTES && start.checked_add(length)? <= LENT_BYTES;
        fits.then(|| Bytes::from_owner(LentBytes { mapping: self.0.clone(), start, length }))
    }
}

struct LentBytes {
    mapping: Arc<Mapping>,
    start: usize,
    length: usize,
}

impl AsRef<[u8]> for LentBytes {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the range is within the mapping (`Lender::bytes`), which lives as long as this and cannot shrink. The
        // client does not touch the slot before it has the answer; one that does so in spite of it changes what is
        // written for it, and nothing here decides by these bytes: they go to the disk as they are.
        unsafe { std::slice::from_raw_parts(self.mapping.0.as_ptr().add(self.start), self.length) }
    }
}

/// A client's side of a loan.
pub struct Borrowed {
    mapping: Arc<Mapping>,
    free: Vec<u32>,
    /// Slots by request.
    used: HashMap<u64, u32>,
}

/// A slot for the data of a call that is about to be sent.
pub struct Slot {
    mapping: Arc<Mapping>,
    /// Where it begins.
    pub offset: u32,
}

impl Borrowed {
    /// Maps what has come beside the greeting.
    pub fn map(memory: OwnedFd) -> io::Result<Borrowed> {
        let seals = rustix::fs::fcntl_get_seals(&memory)?;
        let memory = File::from(memory);
        if memory.metadata()?.len() != LENT_BYTES as u64 || !seals.contains(SealFlags::SHRINK) {
            return Err(ErrorKind::InvalidData.into());
        }
        let mapping = Arc::new(Mapping::new(&memory.into(), ProtFlags::READ | ProtFlags::WRITE)?);
        Ok(Borrowed { mapping, free: (0..SLOTS).collect(), used: HashMap::new() })
    }

    /// A slot for the data of a call, if it is large enough to be worth one and one is free.
    pub fn take_slot(&mut self, request: u64, length: usize) -> Option<Slot> {
        if !(LENT_MIN_BYTES..=PIECE_BYTES).contains(&length) || self.used.contains_key(&request) {
            return None;
        }
        let slot = self.free.pop()?;
        self.used.insert(request, slot);
        Some(Slot { mapping: self.mapping.clone(), offset: slot * PIECE_BYTES as u32 })
    }

    /// The call was answered.
    pub fn give_back(&mut self, request: u64) {
        self.free.extend(self.used.remove(&request));
    }
}

impl Slot {
    /// Puts the data in.
    pub fn fill(&self, data: &[u8]) {
        assert!(data.len() <= PIECE_BYTES, "a slot has room for a piece");
        // SAFETY: the slot is within the mapping and belongs to one call; `brickd` reads it only once it has that call.
        unsafe {
            let start = self.mapping.0.as_ptr().add(self.offset as usize);
            std::ptr::copy_nonoverlapping(data.as_ptr(), start, data.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loan() -> (Lender, Borrowed) {
        let (lender, memory) = Lender::lend().unwrap();
        (lender, Borrowed::map(memory).unwrap())
    }

    #[test]
    fn what_is_put_in_is_there_and_slots_are_used_again() {
        let (lender, mut borrowed) = loan();
        let data: Vec<u8> = (0..LENT_MIN_BYTES).map(|n| n as u8).collect();
        let slots: Vec<Slot> = (1..=u64::from(SLOTS)).map(|n| borrowed.take_slot(n, data.len()).unwrap()).collect();
        assert!(borrowed.take_slot(100, data.len()).is_none(), "all are used");
        slots[3].fill(&data);
        let seen = lender.bytes(slots[3].offset, data.len() as u32).unwrap();
        assert_eq!(seen, data);
        borrowed.give_back(4);
        borrowed.give_back(4);
        let again = borrowed.take_slot(101, PIECE_BYTES).unwrap();
        assert_eq!(again.offset, slots[3].offset);
        drop((lender, borrowed));
        assert_eq!(seen, data, "it stays for who reads it");
    }

    #[test]
    fn small_writes_and_calls_that_have_a_slot_get_none() {
        let (_lender, mut borrowed) = loan();
        assert!(borrowed.take_slot(1, LENT_MIN_BYTES - 1).is_none());
        assert!(borrowed.take_slot(1, PIECE_BYTES + 1).is_none());
        assert!(borrowed.take_slot(1, PIECE_BYTES).is_some() && borrowed.take_slot(1, PIECE_BYTES).is_none());
    }

    #[test]
    fn what_lies_outside_is_not_read() {
        let (lender, _borrowed) = loan();
        let (piece, all) = (PIECE_BYTES as u32, LENT_BYTES as u32);
        assert!(lender.bytes(all - piece, piece).is_some() && lender.bytes(0, piece + 1).is_none());
        assert!(lender.bytes(all - piece + 1, piece).is_none() && lender.bytes(u32::MAX, 1).is_none());
        assert!(lender.bytes(u32::MAX, u32::MAX).is_none());
    }

    #[test]
    fn memory_that_could_shrink_under_the_reader_is_not_taken() {
        let (_lender, memory) = Lender::lend().unwrap();
        assert!(rustix::fs::ftruncate(&memory, 0).is_err(), "sealed");
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let other = rustix::fs::memfd_create("test", flags).unwrap();
        rustix::fs::ftruncate(&other, LENT_BYTES as u64).unwrap();
        assert!(Borrowed::map(other.try_clone().unwrap()).is_err());
        rustix::fs::fcntl_add_seals(&other, SealFlags::SHRINK).unwrap();
        assert!(Borrowed::map(other).is_ok());
        let file = std::fs::File::open("/").unwrap();
        assert!(Borrowed::map(file.into()).is_err());
    }
}
