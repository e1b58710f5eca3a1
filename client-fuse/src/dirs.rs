//! A directory being read: the sorted streams of all sets merged by (cookie, name). Offsets given to the
//! kernel are cookies with an ordinal among equal ones, so that reading goes on anywhere after a restart.

use brickfs_common::errno::Errno;
use brickfs_common::fop::DirEntry;
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
    returned: Option<(u64, Box<DirEntry>)>,
    error: Option<Errno>,
}

/// What to do next.
pub enum Next {
    /// Give this entry to the kernel under this offset.
    Entry(u64, Box<DirEntry>),
    /// Ask these sets for the page after this cookie.
    Ask(Vec<(usize, u64)>),
    /// No entry follows.
    End,
    /// A set failed: what follows is unknown (PROTOCOL 34).
    Failed(Errno),
}

impl DirStream {
    /// A stream at the start.
    pub fn new(set_count: usize) -> DirStream {
        let sources = (0..set_count).map(|_| Source::default()).collect();
        DirStream { sources, position: DOT_DOT, group: 0, ordinal: 0, returned: None, error: None }
    }

    /// Goes on after `offset`; true if that is not where the stream was.
    pub fn seek(&mut self, offset: u64) -> bool {
        let offset = offset.max(DOT_DOT);
        if offset == self.position {
            return false;
        }
        let before = (offset >> COOKIE_ORDINAL_BITS << COOKIE_ORDINAL_BITS).saturating_sub(1);
        for source in &mut self.sources {
            *source = Source { last_cookie: before, ..Source::default() };
        }
        (self.position, self.group, self.ordinal) = (offset, 0, 0);
        (self.returned, self.error) = (None, None);
        true
    }

    /// Takes a page of a set.
    pub fn page(&mut self, set: usize, page: Result<(Vec<DirEntry>, bool), Errno>) {
        let source = &mut self.sources[set];
        match page {
            Ok((entries, end)) => {
                source.last_cookie = entries.last().map_or(source.last_cookie, |entry| entry.cookie);
                source.is_at_end = end;
                source.entries.extend(entries);
            }
            Err(errno) => self.error = Some(errno),
        }
    }

    /// The next entry, if all sets have one or are at their end.
    pub fn next(&mut self) -> Next {
        if let Some((offset, entry)) = self.returned.take() {
            self.position = offset;
            return Next::Entry(offset, entry);
        }
        loop {
            if let Some(errno) = self.error {
                return Next::Failed(errno);
            }
            let is_dry = |source: &Source| source.entries.is_empty() && !source.is_at_end;
            let dry: Vec<_> = (0..self.sources.len())
                .filter(|i| is_dry(&self.sources[*i]))
                .map(|i| (i, self.sources[i].last_cookie))
                .collect();
            if !dry.is_empty() {
                return Next::Ask(dry);
            }
            let first = self
                .sources
                .iter_mut()
                .filter(|source| !source.entries.is_empty())
                .min_by(|a, b| key(&a.entries[0]).cmp(&key(&b.entries[0])));
            let Some(entry) = first.and_then(|source| source.entries.pop_front()) else { return Next::End };
            let offset = self.choose_offset(entry.cookie);
            if offset > self.position {
                self.position = offset;
                return Next::Entry(offset, Box::new(entry));
            }
        }
    }

    fn choose_offset(&mut self, cookie: u64) -> u64 {
        if cookie == self.group {
            self.ordinal += 1;
        } else {
            (self.group, self.ordinal) = (cookie, 0);
        }
        cookie + self.ordinal
    }

    /// Puts back the entry that was given out last: it did not fit.
    pub fn put_back(&mut self, before: u64, offset: u64, entry: Box<DirEntry>) {
        self.position = before;
        self.returned = Some((offset, entry));
    }

    /// Offset of the last entry given out.
    pub fn position(&self) -> u64 {
        self.position
    }
}

fn key(entry: &DirEntry) -> (u64, &[u8]) {
    (entry.cookie, entry.name.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use brickfs_common::attr::Kind;
    use brickfs_common::ids::Gfid;
    use brickfs_common::name::Name;

    fn entry(cookie: u64, name: &str) -> DirEntry {
        let name = Name::new(name.as_bytes().to_vec()).unwrap();
        DirEntry { name, cookie: cookie << COOKIE_ORDINAL_BITS, gfid: Gfid::ROOT, kind: Kind::File, attr: None }
    }

    fn names(stream: &mut DirStream) -> Vec<(u64, String)> {
        let mut got = Vec::new();
        while let Next::Entry(offset, entry) = stream.next() {
            got.push((offset, entry.name.to_string()));
        }
        got
    }

    fn filled() -> DirStream {
        let mut stream = DirStream::new(2);
        assert!(matches!(stream.next(), Next::Ask(sets) if sets.len() == 2));
        stream.page(0, Ok((vec![entry(5, "a"), entry(7, "c")], true)));
        stream.page(1, Ok((vec![entry(5, "b"), entry(6, "d")], true)));
        stream
    }

    #[test] // PROTOCOL 34
    fn sets_are_merged_and_equal_cookies_get_ordinals() {
        let all = names(&mut filled());
        assert_eq!(all.iter().map(|e| e.1.as_str()).collect::<Vec<_>>(), ["a", "b", "d", "c"]);
        assert!(all.windows(2).all(|w| w[0].0 < w[1].0));
        for (index, (offset, _)) in all.iter().enumerate() {
            let mut again = filled();
            again.seek(*offset);
            again.page(0, Ok((vec![entry(5, "a"), entry(7, "c")], true)));
            again.page(1, Ok((vec![entry(5, "b"), entry(6, "d")], true)));
            assert_eq!(names(&mut again), all[index + 1..], "after offset {offset}");
        }
    }

    #[test]
    fn a_set_that_fails_is_never_a_shorter_list() {
        let mut stream = DirStream::new(2);
        stream.page(0, Ok((vec![entry(5, "a")], true)));
        stream.page(1, Err(Errno::EIO));
        assert!(matches!(stream.next(), Next::Failed(Errno::EIO)));
    }
}
