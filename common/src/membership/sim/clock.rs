//! Clocks that do not agree.

/// A clock that goes by its own rate, also while the process stands still.
pub struct Clock {
    pub base_ms: u64,
    pub since_ms: u64,
    pub rate_ppm: u64,
}

impl Clock {
    pub fn at(&self, real_ms: u64) -> u64 {
        self.base_ms + (real_ms - self.since_ms) * self.rate_ppm / 1_000_000
    }
}
