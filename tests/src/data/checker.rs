//! Runs the operations and compares.

use super::operation::{Chooser, Operation, Space, Span, Through};
use super::oracle::Oracle;
use crate::at::At as _;
use crate::locks::{self, Lock};
use anyhow::{Context as _, bail, ensure};
use rand::rngs::StdRng;
use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::PathBuf;

/// More files than bricks: two of them share one.
const FILES: usize = 5;
/// Operations that are told when one is wrong.
const TOLD: usize = 30;
const BLOCK_BYTES: usize = 4096;
/// All of a file, for a lock.
const ALL: (i64, i64) = (0, 0);

/// How another mount comes to see what this one has written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HandOver {
    /// All files are closed here and then opened there: for mounts with `-o strict`.
    CloseAndOpen,
    /// All stay open; locks of them are given back here and then taken there.
    Locks,
}

/// What a file system does not do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Traits {
    /// O_DIRECT takes whole blocks only.
    pub aligned_direct: bool,
    /// FALLOC_FL_ZERO_RANGE may be refused.
    pub may_refuse_zero: bool,
    /// FALLOC_FL_KEEP_SIZE beyond the end may be refused.
    pub may_refuse_beyond_end: bool,
}

/// A file as one mount has it open.
struct Open {
    cached: File,
    direct: File,
    synced: File,
}

impl Open {
    fn file(&self, through: Through) -> &File {
        match through {
            Through::Cached => &self.cached,
            Through::Direct => &self.direct,
            Through::Synced => &self.synced,
        }
    }
}

/// See the module.
pub struct Checker {
    roots: Vec<PathBuf>,
    hand_over: HandOver,
    traits: Traits,
    chooser: Chooser,
    files: Vec<Oracle>,
    /// By root, then by file; empty where nothing is open.
    open: Vec<Vec<Open>>,
    /// The root that is used.
    at: usize,
    count: u64,
    told: VecDeque<(u64, Operation)>,
    buffer: Vec<u8>,
}

impl Checker {
    /// A checker of new files in a directory that is reached by all of `roots`.
    pub fn new(roots: &[PathBuf], hand_over: HandOver, traits: Traits, rng: StdRng) -> anyhow::Result<Checker> {
        let mut checker = Checker {
            roots: roots.to_vec(),
            hand_over,
            traits,
            chooser: Chooser::new(rng, traits.aligned_direct),
            files: vec![Oracle::default(); FILES],
            open: roots.iter().map(|_| Vec::new()).collect(),
            at: 0,
            count: 0,
            told: VecDeque::new(),
            buffer: Vec::new(),
        };
        for file in 0..FILES {
            let path = checker.path(file);
            File::create(&path).at(&path)?;
        }
        checker.arrive()?;
        Ok(checker)
    }

    /// What must be in the files, with where the root in use has them.
    pub fn files(&self) -> impl Iterator<Item = (PathBuf, &Oracle)> {
        self.files.iter().enumerate().map(|(file, oracle)| (self.path(file), oracle))
    }

    /// Runs so many operations, with `each` after each, and then reads everything through every root.
    pub fn run(&mut self, operations: u64, mut each: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
        for _ in 0..operations {
            let operation = self.chooser.choose(&self.files);
            self.step(operation)?;
            each()?;
        }
        for _ in 0..self.roots.len() {
            self.step(Operation::HandOver)?;
            self.check_all()?;
        }
        Ok(())
    }

    /// Closes everything that is open.
    pub fn close(&mut self) {
        self.open.iter_mut().for_each(Vec::clear);
    }

    /// Reads all files.
    pub fn check_all(&mut self) -> anyhow::Result<()> {
        for file in 0..FILES {
            self.step(Operation::Stat { file })?;
            self.step(Operation::ReadAll { file })?;
        }
        Ok(())
    }

    fn step(&mut self, operation: Operation) -> anyhow::Result<()> {
        self.count += 1;
        self.told.push_back((self.count, operation));
        if self.told.len() > TOLD {
            self.told.pop_front();
        }
        self.perform(operation).with_context(|| {
            let told: Vec<String> = self.told.iter().map(|(number, told)| format!("{number}: {told:?}")).collect();
            let (count, root) = (self.count, self.roots[self.at].display());
            format!("operation {count} on {root}; the last ones:\n  {}\n", told.join("\n  "))
        })
    }

    fn path(&self, file: usize) -> PathBuf {
        self.roots[self.at].join(format!("f{file}"))
    }

    fn descriptor(&self, through: Through, file: usize) -> &File {
        self.open[self.at][file].file(through)
    }

    fn open_file(&self, file: usize) -> anyhow::Result<Open> {
        let path = self.path(file);
        let open = |flags| File::options().read(true).write(true).custom_flags(flags).open(&path).at(&path);
        Ok(Open { cached: open(0)?, direct: open(libc::O_DIRECT)?, synced: open(libc::O_DSYNC)? })
    }

    /// Opens, or locks, what is to be used now.
    fn arrive(&mut self) -> anyhow::Result<()> {
        if self.open[self.at].is_empty() {
            self.open[self.at] = (0..FILES).map(|file| self.open_file(file)).collect::<Result<_, _>>()?;
        }
        if self.hand_over == HandOver::Locks {
            let locked = self.open[self.at].iter().try_for_each(|open| locks::wait(&open.cached, Lock::Exclusive, ALL));
            locked.context("taking locks")?;
            // As who copies does: the kernel copies no more than it knows to be in a file.
            self.open[self.at].iter().try_for_each(|open| open.cached.metadata().map(|_| ()))?;
        }
        Ok(())
    }

    fn leave(&mut self) -> anyhow::Result<()> {
        match self.hand_over {
            HandOver::CloseAndOpen => self.open[self.at].clear(),
            HandOver::Locks => {
                let unlocked = self.open[self.at].iter().try_for_each(|open| locks::set(&open.cached, Lock::None, ALL));
                unlocked.context("giving locks back")?;
            }
        }
        Ok(())
    }

    fn perform(&mut self, operation: Operation) -> anyhow::Result<()> {
        match operation {
            Operation::Read(through, span) => self.read(through, span),
            Operation::ReadAll { file } => {
                // One byte more than there must be.
                let length = self.files[file].size() + 1;
                self.read(Through::Cached, Span { file, offset: 0, length })
            }
            Operation::Write(through, span) => self.write(through, span),
            Operation::Append(through, span) => self.append(through, span),
            Operation::Truncate { file, size } => {
                self.descriptor(Through::Cached, file).set_len(size as u64)?;
                self.files[file].truncate(size);
                Ok(())
            }
            Operation::Allocate(space, span) => self.allocate(space, span),
            Operation::Copy { from, file, offset } => self.copy(from, file, offset),
            Operation::SeekData(through, Span { file, offset, .. }) => {
                let found = rustix::fs::seek(self.descriptor(through, file), SeekFrom::Data(offset as u64));
                self.files[file].check_data(offset, found)
            }
            Operation::SeekHole(through, Span { file, offset, .. }) => {
                let descriptor = self.descriptor(through, file);
                let hole = rustix::fs::seek(descriptor, SeekFrom::Hole(offset as u64));
                let data = hole.and_then(|hole| rustix::fs::seek(descriptor, SeekFrom::Data(hole)));
                self.files[file].check_hole(offset, hole, data)
            }
            Operation::Stat { file } => {
                let (size, wanted) =
                    (self.descriptor(Through::Cached, file).metadata()?.len(), self.files[file].size());
                ensure!(size == wanted as u64, "stat says {size} bytes, not {wanted}");
                Ok(())
            }
            Operation::Fsync { file } => Ok(self.descriptor(Through::Cached, file).sync_all()?),
            Operation::Reopen { file } => {
                self.open[self.at][file] = self.open_file(file)?;
                if self.hand_over == HandOver::Locks {
                    // Closing a file has ended the locks of this process.
                    locks::wait(self.descriptor(Through::Cached, file), Lock::Exclusive, ALL)?;
                }
                Ok(())
            }
            Operation::HandOver => {
                self.leave()?;
                self.at = (self.at + 1) % self.roots.len();
                self.arrive()
            }
        }
    }

    /// The place of the next operation's bytes in the buffer.
    fn prepare_buffer(&mut self, length: usize) -> (Vec<u8>, usize) {
        let shift = self.chooser.buffer_shift();
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(buffer.len().max(length + 2 * BLOCK_BYTES), 0);
        let start = buffer.as_ptr().align_offset(BLOCK_BYTES) + shift;
        (buffer, start)
    }

    fn read(&mut self, through: Through, Span { file, offset, length }: Span) -> anyhow::Result<()> {
        let (mut buffer, start) = self.prepare_buffer(length);
        let place = &mut buffer[start..start + length];
        place.fill(0xee);
        let count = self.descriptor(through, file).read_at(place, offset as u64)?;
        self.files[file].check_read(offset, length, &place[..count])?;
        self.buffer = buffer;
        Ok(())
    }

    /// Bytes that no other operation writes, none of them zero, at the front of the buffer's place.
    fn fill_buffer(&mut self, length: usize) -> (Vec<u8>, usize) {
        let (mut buffer, start) = self.prepare_buffer(length);
        let first = self.count as usize * 37;
        let byte = |at: usize| ((first + at + at / 255) % 255) as u8 + 1;
        buffer[start..start + length].iter_mut().enumerate().for_each(|(at, place)| *place = byte(at));
        (buffer, start)
    }

    fn write(&mut self, through: Through, Span { file, offset, length }: Span) -> anyhow::Result<()> {
        let (buffer, start) = self.fill_buffer(length);
        let data = &buffer[start..start + length];
        let count = self.descriptor(through, file).write_at(data, offset as u64)?;
        ensure!(count == length, "{count} bytes of {length} written");
        self.files[file].write(offset, data);
        self.buffer = buffer;
        Ok(())
    }

    fn append(&mut self, through: Through, Span { file, length, .. }: Span) -> anyhow::Result<()> {
        let (buffer, start) = self.fill_buffer(length);
        let data = &buffer[start..start + length];
        let flags = if through == Through::Direct { libc::O_DIRECT } else { 0 };
        let path = self.path(file);
        let mut appended = File::options().append(true).custom_flags(flags).open(&path).at(&path)?;
        let count = appended.write(data)?;
        ensure!(count == length, "{count} bytes of {length} appended");
        drop(appended);
        let end = self.files[file].size();
        self.files[file].write(end, data);
        self.buffer = buffer;
        if self.hand_over == HandOver::Locks {
            locks::wait(self.descriptor(Through::Cached, file), Lock::Exclusive, ALL)?;
        }
        Ok(())
    }

    fn allocate(&mut self, space: Space, Span { file, offset, length }: Span) -> anyhow::Result<()> {
        let flags = match space {
            Space::Reserve => FallocateFlags::empty(),
            Space::ReserveKeepingSize => FallocateFlags::KEEP_SIZE,
            Space::Punch => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            Space::Zero => FallocateFlags::ZERO_RANGE,
            Space::ZeroKeepingSize => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
        };
        let is_zero = matches!(space, Space::Zero | Space::ZeroKeepingSize);
        let descriptor = self.descriptor(Through::Cached, file);
        let is_beyond = space == Space::ReserveKeepingSize && offset + length > self.files[file].size();
        match rustix::fs::fallocate(descriptor, flags, offset as u64, length as u64) {
            Err(Errno::OPNOTSUPP) if is_zero && self.traits.may_refuse_zero => return Ok(()),
            Err(Errno::OPNOTSUPP) if is_beyond && self.traits.may_refuse_beyond_end => return Ok(()),
            other => other?,
        }
        let oracle = &mut self.files[file];
        if matches!(space, Space::Reserve | Space::Zero) {
            oracle.grow(offset + length);
        }
        if is_zero || space == Space::Punch {
            oracle.zero(offset, length);
        }
        Ok(())
    }

    fn copy(&mut self, from: Span, file: usize, offset: usize) -> anyhow::Result<()> {
        let wanted = self.files[from.file].bytes(from.offset, from.length).to_vec();
        let overlaps = from.file == file && from.offset.abs_diff(offset) < wanted.len();
        let (source, target) = (self.descriptor(Through::Cached, from.file), self.descriptor(Through::Cached, file));
        let mut copied = 0;
        while copied < wanted.len().max(1) {
            let (mut at, mut to) = ((from.offset + copied) as u64, (offset + copied) as u64);
            // The first call may ask for more than there is; behind it a file that is copied to its own end has grown.
            let rest = if copied == 0 { from.length } else { wanted.len() - copied };
            match rustix::fs::copy_file_range(source, Some(&mut at), target, Some(&mut to), rest) {
                Err(Errno::INVAL) if overlaps && copied == 0 => return Ok(()),
                Ok(count) if overlaps => bail!("{count} bytes were copied over themselves"),
                Ok(0) => break,
                Ok(count) => copied += count,
                Err(error) => bail!("after {copied} bytes: {error}"),
            }
        }
        ensure!(copied == wanted.len(), "{copied} bytes copied, not {}", wanted.len());
        self.files[file].write(offset, &wanted);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;
    use rand::SeedableRng as _;

    /// One wrong byte is written into a file behind the checker's back.
    #[test]
    fn the_checker_notices_a_wrong_byte() {
        let scratch = Scratch::in_memory().unwrap();
        let traits = Traits { may_refuse_zero: true, ..Traits::default() };
        for seed in 0..5 {
            let rng = StdRng::seed_from_u64(seed);
            let roots = [scratch.path().to_owned()];
            let mut checker = Checker::new(&roots, HandOver::CloseAndOpen, traits, rng).unwrap();
            checker.run(300, || Ok(())).unwrap();
            let (path, at, byte) = {
                let (path, oracle) = checker.files().max_by_key(|(_, oracle)| oracle.size()).unwrap();
                let at = oracle.size() / 2;
                (path, at, oracle.bytes(at, 1)[0])
            };
            let file = File::options().write(true).open(&path).unwrap();
            file.write_all_at(&[!byte], at as u64).unwrap();
            let told = format!("{:#}", checker.check_all().unwrap_err());
            assert!(told.contains(&format!("from {at} to {at}")) && told.contains("ReadAll"), "{told}");
            file.write_all_at(&[byte], at as u64).unwrap();
            checker.check_all().unwrap();
            file.set_len(at as u64).unwrap();
            assert!(checker.run(200, || Ok(())).is_err(), "a file that was cut");
        }
    }
}
