//! So many in a second, and some at once: what keeps strangers from using up what is shared. Pure: time comes in.

use std::time::{Duration, Instant};

/// A bucket that fills steadily.
pub struct Allowance {
    per_s: f64,
    most: f64,
    left: f64,
    at: Instant,
}

impl Allowance {
    /// So many in a second, and after a pause `most` at once. It is full.
    pub fn new(per_s: u32, most: u32, now: Instant) -> Allowance {
        let (per_s, most) = (f64::from(per_s.max(1)), f64::from(most.max(1)));
        Allowance { per_s, most, left: most, at: now }
    }

    /// Takes one, or says how long it is until there is one.
    pub fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let passed = now.saturating_duration_since(self.at);
        self.left = (self.left + passed.as_secs_f64() * self.per_s).min(self.most);
        self.at = self.at.max(now);
        if self.left < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - self.left) / self.per_s));
        }
        self.left -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_so_many_at_once_and_then_so_many_in_a_second() {
        let start = Instant::now();
        let mut allowance = Allowance::new(10, 10, start);
        assert_eq!((0..20).filter(|_| allowance.take(start).is_ok()).count(), 10);
        let wait = allowance.take(start).unwrap_err();
        assert!(wait <= Duration::from_millis(100));
        assert!(allowance.take(start + wait + Duration::from_micros(1)).is_ok());
        let later = start + Duration::from_secs(1);
        let in_steps = (0..1_000).filter(|n| allowance.take(later + Duration::from_millis(2 * n)).is_ok()).count();
        assert!((28..=30).contains(&in_steps), "{in_steps}");
        let much_later = later + Duration::from_secs(1_000);
        assert_eq!((0..20).filter(|_| allowance.take(much_later).is_ok()).count(), 10, "no more than that is saved");
        assert!(allowance.take(start).is_err(), "time that goes back gives nothing");
    }
}
