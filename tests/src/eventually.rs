//! Waiting for something to become true, never for time to pass.

use anyhow::bail;
use std::time::{Duration, Instant};

const POLL_FIRST: Duration = Duration::from_millis(2);
const POLL_MAX: Duration = Duration::from_millis(50);

/// Waits until `condition` holds; an error that says `what` when it does not within `timeout`.
pub fn eventually(what: &str, timeout: Duration, mut condition: impl FnMut() -> bool) -> anyhow::Result<()> {
    eventually_ok(what, timeout, || if condition() { Ok(()) } else { bail!("it is not so") })
}

/// Waits until `attempt` succeeds and gives its value; else an error with `what` and its last reason.
pub fn eventually_ok<T>(
    what: &str,
    timeout: Duration,
    mut attempt: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let started = Instant::now();
    let mut poll = POLL_FIRST;
    loop {
        let reason = match attempt() {
            Ok(value) => return Ok(value),
            Err(reason) => reason,
        };
        if started.elapsed() >= timeout {
            return Err(reason.context(format!("waited {} s for: {what}", timeout.as_secs_f32())));
        }
        std::thread::sleep(poll);
        poll = (poll * 2).min(POLL_MAX);
    }
}
