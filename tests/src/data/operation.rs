//! The operations of the checker, and how they are chosen.

use super::oracle::Oracle;
use rand::Rng as _;
use rand::rngs::StdRng;

/// Largest file.
const FILE_MAX_BYTES: usize = 1 << 20;
const BLOCK_BYTES: usize = 4096;
const LONG_MAX_BYTES: usize = 400_000;
const USUAL_MAX_BYTES: usize = 40_000;

/// Which descriptor is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Through {
    /// The kernel caches.
    Cached,
    /// O_DIRECT
    Direct,
    /// O_DSYNC
    Synced,
}

/// What fallocate(2) is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Space {
    Reserve,
    ReserveKeepingSize,
    Punch,
    Zero,
    ZeroKeepingSize,
}

/// Bytes of one of the files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    pub file: usize,
    pub offset: usize,
    pub length: usize,
}

/// One operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    Read(Through, Span),
    Write(Through, Span),
    Append(Through, Span),
    Truncate {
        file: usize,
        size: usize,
    },
    Allocate(Space, Span),
    Copy {
        from: Span,
        file: usize,
        offset: usize,
    },
    SeekData(Through, Span),
    SeekHole(Through, Span),
    Stat {
        file: usize,
    },
    Fsync {
        file: usize,
    },
    Reopen {
        file: usize,
    },
    ReadAll {
        file: usize,
    },
    /// Go on through another mount.
    HandOver,
}

/// Chooses operations.
pub struct Chooser {
    rng: StdRng,
    /// O_DIRECT takes whole blocks only.
    pub aligned_direct: bool,
}

type Choose = fn(&mut Chooser, &[Oracle]) -> Operation;

/// Each with how often it is chosen.
const CHOICES: &[(u32, Choose)] = &[
    (12, |c, files| Operation::Read(Through::Cached, c.span(files, Through::Cached, 0))),
    (8, |c, files| Operation::Read(Through::Direct, c.span(files, Through::Direct, 0))),
    (12, |c, files| Operation::Write(Through::Cached, c.span(files, Through::Cached, 0))),
    (8, |c, files| Operation::Write(Through::Direct, c.span(files, Through::Direct, 0))),
    (2, |c, files| Operation::Write(Through::Synced, c.span(files, Through::Synced, 0))),
    (3, |c, files| c.append(files)),
    (4, |c, files| c.truncate(files)),
    (2, |c, files| Operation::Allocate(Space::Reserve, c.span(files, Through::Cached, 1))),
    (2, |c, files| Operation::Allocate(Space::ReserveKeepingSize, c.span(files, Through::Cached, 1))),
    (5, |c, files| Operation::Allocate(Space::Punch, c.span(files, Through::Cached, 1))),
    (4, |c, files| Operation::Allocate(Space::Zero, c.span(files, Through::Cached, 1))),
    (3, |c, files| Operation::Allocate(Space::ZeroKeepingSize, c.span(files, Through::Cached, 1))),
    (6, |c, files| c.copy(files)),
    (5, |c, files| Operation::SeekData(Through::Cached, c.span(files, Through::Cached, 0))),
    (4, |c, files| Operation::SeekHole(Through::Cached, c.span(files, Through::Cached, 0))),
    (2, |c, files| Operation::SeekHole(Through::Direct, c.span(files, Through::Cached, 0))),
    (3, |c, files| Operation::Stat { file: c.file(files) }),
    (1, |c, files| Operation::Fsync { file: c.file(files) }),
    (2, |c, files| Operation::Reopen { file: c.file(files) }),
    (1, |c, files| Operation::ReadAll { file: c.file(files) }),
    (2, |_, _| Operation::HandOver),
];

impl Chooser {
    /// Chooses with these random numbers.
    pub fn new(rng: StdRng, aligned_direct: bool) -> Chooser {
        Chooser { rng, aligned_direct }
    }

    /// The next operation.
    pub fn choose(&mut self, files: &[Oracle]) -> Operation {
        let total: u32 = CHOICES.iter().map(|(weight, _)| weight).sum();
        let mut at = self.rng.random_range(0..total);
        for (weight, choose) in CHOICES {
            match at.checked_sub(*weight) {
                Some(rest) => at = rest,
                None => return choose(self, files),
            }
        }
        unreachable!("the weights sum up to the total")
    }

    /// Where the buffer of an operation begins within its block.
    pub fn buffer_shift(&mut self) -> usize {
        if self.aligned_direct || self.rng.random_bool(0.5) { 0 } else { self.rng.random_range(0..BLOCK_BYTES) }
    }

    /// The first file is used as often as the others together.
    fn file(&mut self, files: &[Oracle]) -> usize {
        if self.rng.random_bool(0.5) { 0 } else { self.rng.random_range(0..files.len()) }
    }

    fn length(&mut self) -> usize {
        let max = if self.rng.random_ratio(1, 10) { LONG_MAX_BYTES } else { USUAL_MAX_BYTES };
        self.rng.random_range(0..=max)
    }

    /// A place in a file, often at an edge of it or of a block, at times behind its end.
    fn span(&mut self, files: &[Oracle], through: Through, least: usize) -> Span {
        let file = self.file(files);
        let size = files[file].size();
        let offset = match self.rng.random_range(0..10) {
            0 => size,
            1 => size.saturating_sub(self.rng.random_range(0..BLOCK_BYTES)),
            2 => self.rng.random_range(0..FILE_MAX_BYTES),
            _ => self.rng.random_range(0..=size),
        };
        let must_align = self.aligned_direct && through == Through::Direct;
        let (mut offset, mut length) = (offset.min(FILE_MAX_BYTES - 1), self.length());
        if must_align || self.rng.random_bool(0.4) {
            (offset, length) = (offset / BLOCK_BYTES * BLOCK_BYTES, length.next_multiple_of(BLOCK_BYTES));
        }
        Span { file, offset, length: length.min(FILE_MAX_BYTES - offset).max(least) }
    }

    fn append(&mut self, files: &[Oracle]) -> Operation {
        let file = self.file(files);
        let offset = files[file].size();
        let length = self.length().min(FILE_MAX_BYTES.saturating_sub(offset));
        let is_direct = !self.aligned_direct && self.rng.random_bool(0.3);
        let through = if is_direct { Through::Direct } else { Through::Cached };
        Operation::Append(through, Span { file, offset, length })
    }

    fn truncate(&mut self, files: &[Oracle]) -> Operation {
        let file = self.file(files);
        let max = if self.rng.random_bool(0.5) { files[file].size() } else { FILE_MAX_BYTES };
        Operation::Truncate { file, size: self.rng.random_range(0..=max) }
    }

    fn copy(&mut self, files: &[Oracle]) -> Operation {
        let (from, to) = (self.span(files, Through::Cached, 0), self.span(files, Through::Cached, 0));
        let length = from.length.min(FILE_MAX_BYTES - to.offset);
        Operation::Copy { from: Span { length, ..from }, file: to.file, offset: to.offset }
    }
}
