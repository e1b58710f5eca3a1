//! Waiting until something shows: a look at a time, never time alone.

use std::time::{Duration, Instant};

/// Looks again and again until there is something, at most for so long; `None` if there was nothing at the last look. A
/// look that fails ends the waiting.
pub fn wait_for<T>(
    within: Duration,
    every: Duration,
    mut look: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<Option<T>> {
    let started = Instant::now();
    loop {
        let is_last = started.elapsed() > within;
        let found = look()?;
        if found.is_some() || is_last {
            return Ok(found);
        }
        std::thread::sleep(every);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_shows_in_time_is_found_and_the_last_look_is_after_the_end() {
        let (within, every) = (Duration::from_millis(20), Duration::from_millis(1));
        let mut looks = 0;
        let mut third = || {
            looks += 1;
            Ok((looks == 3).then_some(looks))
        };
        assert_eq!(wait_for(within, every, &mut third).unwrap(), Some(3));
        let (started, mut last) = (Instant::now(), Duration::ZERO);
        let nothing: Option<()> = wait_for(within, every, || {
            last = started.elapsed();
            Ok(None)
        })
        .unwrap();
        assert!(nothing.is_none() && last >= within);
        assert!(wait_for::<()>(within, every, || anyhow::bail!("no")).is_err());
    }
}
