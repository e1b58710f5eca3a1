//! Files of which the kernel was told something that may still hold, newest last, so that it can be taken back.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Most entries: more than a mount can tell in a second. Above it the oldest ones are dropped.
const TOLD_MAX: usize = 1 << 18;
/// Below this many the queue keeps its room.
const SHRINK_MIN: usize = 4096;

/// A file of which the kernel was told, by a name in the directory or by its number alone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ToldFile {
    /// The directory.
    pub parent: u64,
    /// The file.
    pub ino: u64,
    /// The name.
    pub name: Option<Box<[u8]>>,
}

/// See the file's head.
#[derive(Default)]
pub struct ToldFiles(VecDeque<(ToldFile, Instant)>);

impl ToldFiles {
    /// The kernel is told of a file in a directory; what it is told holds for `ttl` at most.
    pub fn note(&mut self, file: ToldFile, now: Instant, ttl: Duration) {
        while self.0.front().is_some_and(|(_, at)| now.saturating_duration_since(*at) > ttl) || self.0.len() >= TOLD_MAX
        {
            self.0.pop_front();
        }
        if self.0.capacity() > SHRINK_MIN && self.0.len() < self.0.capacity() / 8 {
            self.0.shrink_to(self.0.len() * 2);
        }
        self.0.push_back((file, now));
    }

    /// The files of a directory of which the kernel was told within `ttl`, each once.
    pub fn of_directory(&self, parent: u64, now: Instant, ttl: Duration) -> Vec<ToldFile> {
        let newest_first = self.0.iter().rev();
        let recent = newest_first.take_while(|(_, at)| now.saturating_duration_since(*at) <= ttl);
        let mut files: Vec<_> = recent.map(|(file, _)| file).filter(|file| file.parent == parent).cloned().collect();
        files.sort_unstable();
        files.dedup();
        files
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_still_hold_is_found_by_its_directory() {
        let (mut told, now, ttl) = (ToldFiles::default(), Instant::now(), Duration::from_secs(1));
        let file = |parent, ino| ToldFile { parent, ino, name: Some((*b"name").into()) };
        told.note(file(1, 10), now, ttl);
        told.note(file(2, 20), now + ttl / 2, ttl);
        told.note(file(1, 11), now + ttl / 2, ttl);
        told.note(file(1, 10), now + ttl / 2, ttl);
        assert_eq!(told.of_directory(1, now + ttl, ttl), [file(1, 10), file(1, 11)]);
        assert_eq!(told.of_directory(2, now + ttl * 2, ttl), []);
        told.note(file(1, 12), now + ttl * 2, ttl);
        assert_eq!(told.0.len(), 1, "what holds no more is dropped");
    }
}
