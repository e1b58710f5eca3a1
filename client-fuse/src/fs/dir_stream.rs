//! A directory being read: the sorted streams of all sets merged by (cookie, name). Offsets given to the
//! kernel are cookies with an ordinal among equal ones, so that reading goes on anywhere after a restart.

use crate::tables::Asked;
use brickfs_common::errno::Errno;
use brickfs_common::fop::DirEntry;
use brickfs_common::ids::SetId;
use brickfs_common::layout::slots::COOKIE_ORDINAL_BITS;
use std::collections::VecDeque;

/// Offsets of the two entries that every directory has.
pub const DOT: u64 = 1;
/// See `DOT`.
pub const DOT_DOT: u64 = 2;

/// What one set has sent and not yet been merged.
#[derive(Default)]
struct Source {
    entries: VecDeque<DirEntry>,
    asked: Option<Asked>,
    last_cookie: u64,
    is_at_end: bool,
}

/// The merged stream of one open directory.
pub struct DirStream {
    sources: Vec<Source>,
    /// Offset of the last entry given out.
    position: u64,
    /// Cookie of the last entry, and its ordinal among equal ones.
    group: u64,
    ordinal: u64,
    error: Option<Errno>,
}

/// What to do next.
pub enum Next<'a> {
    /// Give this entry to the kernel, then `advance`.
    Entry(Listed<'a>),
    /// Ask these sets for the page after this cookie.
    Ask(Vec<(usize, u64)>),
    /// No entry follows.
    End,
    /// A set failed: what follows is unknown (PROTOCOL 34).
    Failed(Errno),
}

/// One entry of the stream.
pub struct Listed<'a> {
    /// Where the listing goes on after it.
    pub offset: u64,
    /// The entry.
    pub entry: &'a DirEntry,
    /// The set that listed it, the home of its object.
    pub home: SetId,
    /// When its page was asked for.
    pub asked: Asked,
}

impl DirStream {
    /// A stream at the start.
    pub fn new(set_count: usize) -> DirStream {
        let sources = (0..set_count).map(|_| Source::default()).collect();
        DirStream { sources, position: DOT_DOT, group: 0, ordinal: 0, error: None }
    }

    /// Goes on after `offset`.
    pub fn seek(&mut self, offset: u64) {
        let offset = offset.max(DOT_DOT);
        if offset == self.position {
            return;
        }
        let before = (offset >> COOKIE_ORDINAL_BITS << COOKIE_ORDINAL_BITS).saturating_sub(1);
        for source in &mut self.sources {
            *source = Source { last_cookie: before, ..Source::default() };
        }
        (self.position, self.group, self.ordinal) = (offset, 0, 0);
        self.error = None;
    }

    /// Takes a page of a set.
    pub fn page(&mut self, set: usize, asked: Asked, page: Result<(Vec<DirEntry>, bool), Errno>) {
        let source = &mut self.sources[set];
        match page {
            Ok((entries, end)) => {
                source.asked = Some(asked);
                source.last_cookie = entries.last().map_or(source.last_cookie, |entry| entry.cookie);
                source.is_at_end = end;
                source.entries.extend(entries);
            }
            Err(errno) => self.error = Some(errno),
        }
    }

    /// The next entry, if all sets have one or are at their end.
    pub fn next(&mut self) -> Next<'_> {
        let index = loop {
            if let Some(errno) = self.error {
                return Next::Failed(errno);
            }
            let is_dry = |source: &Source| source.entries.is_empty() && !source.is_at_end;
            if self.sources.iter().any(is_dry) {
                let dry = (0..self.sources.len()).filter(|i| is_dry(&self.sources[*i]));
                return Next::Ask(dry.map(|i| (i, self.sources[i].last_cookie)).collect());
            }
            let Some(index) = self.first() else { return Next::End };
            if self.offset_of(index) > self.position {
                break index;
            }
            self.pass(index);
        };
        let offset = self.offset_of(index);
        let source = &self.sources[index];
        let (Some(entry), Some(asked)) = (source.entries.front(), source.asked) else { return Next::End };
        Next::Entry(Listed { offset, entry, home: SetId(index as u16), asked })
    }

    /// The entry that `next` gave was taken.
    pub fn advance(&mut self) {
        if let Some(index) = self.first() {
            self.position = self.offset_of(index);
            self.pass(index);
        }
    }

    /// The source whose first entry comes first.
    fn first(&self) -> Option<usize> {
        let with_entries = self.sources.iter().enumerate().filter_map(|(i, s)| Some((i, s.entries.front()?)));
        with_entries.min_by(|(_, a), (_, b)| key(a).cmp(&key(b))).map(|(index, _)| index)
    }

    fn offset_of(&self, index: usize) -> u64 {
        match self.sources[index].entries.front() {
            Some(entry) if entry.cookie == self.group => entry.cookie + self.ordinal + 1,
            Some(entry) => entry.cookie,
            None => 0,
        }
    }

    fn pass(&mut self, index: usize) {
        let Some(entry) = self.sources[index].entries.pop_front() else { return };
        if entry.cookie == self.group {
            self.ordinal += 1;
        } else {
            (self.group, self.ordinal) = (entry.cookie, 0);
        }
    }
}

fn key(entry: &DirEntry) -> (u64, &[u8]) {
    (entry.cookie, entry.name.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::Tables;
    use brickfs_common::attr::Kind;
    use brickfs_common::fop::ObjectRef;
    use brickfs_common::ids::Gfid;
    use brickfs_common::name::Name;
    use std::time::{Duration, Instant};

    fn entry(cookie: u64, name: &str) -> DirEntry {
        let name = Name::new(name.as_bytes().to_vec()).unwrap();
        DirEntry { name, cookie: cookie << COOKIE_ORDINAL_BITS, gfid: Gfid::ROOT, kind: Kind::File, attr: None }
    }

    fn names(stream: &mut DirStream) -> Vec<(u64, String)> {
        let mut got = Vec::new();
        while let Next::Entry(listed) = stream.next() {
            got.push((listed.offset, listed.entry.name.to_string()));
            stream.advance();
        }
        got
    }

    fn now() -> Asked {
        let root = ObjectRef { gfid: Gfid::ROOT, home: SetId(0) };
        Tables::new(root, Duration::ZERO).asked(Instant::now())
    }

    fn fill(stream: &mut DirStream) {
        stream.page(0, now(), Ok((vec![entry(5, "a"), entry(7, "c")], true)));
        stream.page(1, now(), Ok((vec![entry(5, "b"), entry(6, "d")], true)));
    }

    #[test] // PROTOCOL 34
    fn sets_are_merged_and_equal_cookies_get_ordinals() {
        let mut stream = DirStream::new(2);
        assert!(matches!(stream.next(), Next::Ask(sets) if sets.len() == 2));
        fill(&mut stream);
        let all = names(&mut stream);
        assert_eq!(all.iter().map(|e| e.1.as_str()).collect::<Vec<_>>(), ["a", "b", "d", "c"]);
        assert!(all.windows(2).all(|w| w[0].0 < w[1].0));
        for (index, (offset, _)) in all.iter().enumerate() {
            let mut again = DirStream::new(2);
            again.seek(*offset);
            fill(&mut again);
            assert_eq!(names(&mut again), all[index + 1..], "after offset {offset}");
        }
    }

    #[test]
    fn an_entry_that_was_not_taken_comes_again() {
        let mut stream = DirStream::new(2);
        fill(&mut stream);
        for _ in 0..2 {
            assert!(matches!(stream.next(), Next::Entry(listed) if listed.entry.name.as_bytes() == b"a"));
        }
        stream.advance();
        assert!(matches!(stream.next(), Next::Entry(listed) if listed.home == SetId(1)));
        stream.seek(0);
        assert!(matches!(stream.next(), Next::Ask(sets) if sets.len() == 2));
    }

    #[test]
    fn a_set_that_fails_is_never_a_shorter_list() {
        let mut stream = DirStream::new(2);
        stream.page(0, now(), Ok((vec![entry(5, "a")], true)));
        stream.page(1, now(), Err(Errno::EIO));
        assert!(matches!(stream.next(), Next::Failed(Errno::EIO)));
    }
}
