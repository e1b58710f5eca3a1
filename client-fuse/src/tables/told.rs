//! Files of which the kernel was told something that may still hold, newest last, so that it can be taken back.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Most entries: more than a mount can tell in a second. Above it the oldest ones are dropped.
const TOLD_MAX: usize = 1 << 18;
/// Below this many the queue keeps its room.
const SHRINK_MIN: usize = 4096;

/// See the file's head.
#[derive(Default)]
pub struct ToldFiles(VecDeque<(u64, u64, Instant)>);

impl ToldFiles {
    /// The kernel is told of a file in a directory; what it is told holds for `ttl` at most.
    pub fn note(&mut self, parent: u64, ino: u64, now: Instant, ttl: Duration) {
        while self.0.front().is_some_and(|(_, _, at)| now.saturating_duration_since(*at) > ttl)
            || self.0.len() >= TOLD_MAX
        {
            self.0.pop_front();
        }
        if self.0.capacity() > SHRINK_MIN && self.0.len() < self.0.capacity() / 8 {
            self.0.shrink_to(self.0.len() * 2);
        }
        self.0.push_back((parent, ino, now));
    }

    /// The files of a directory of which the kernel was told within `ttl`, each once.
    pub fn of_directory(&self, parent: u64, now: Instant, ttl: Duration) -> Vec<u64> {
        let newest_first = self.0.iter().rev();
        let recent = newest_first.take_while(|(_, _, at)| now.saturating_duration_since(*at) <= ttl);
        let mut inos: Vec<u64> = recent.filter(|(of, _, _)| *of == parent).map(|(_, ino, _)| *ino).collect();
        inos.sort_unstable();
        inos.dedup();
        inos
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_still_hold_is_found_by_its_directory() {
        let (mut told, now, ttl) = (ToldFiles::default(), Instant::now(), Duration::from_secs(1));
        told.note(1, 10, now, ttl);
        told.note(2, 20, now + ttl / 2, ttl);
        told.note(1, 11, now + ttl / 2, ttl);
        told.note(1, 10, now + ttl / 2, ttl);
        assert_eq!(told.of_directory(1, now + ttl, ttl), [10, 11]);
        assert_eq!(told.of_directory(2, now + ttl * 2, ttl), [0; 0]);
        told.note(1, 12, now + ttl * 2, ttl);
        assert_eq!(told.0.len(), 1, "what holds no more is dropped");
    }
}
