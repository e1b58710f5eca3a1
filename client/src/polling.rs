//! Polling before sleeping. A thread that sleeps between two messages is woken through an interrupt of its
//! CPU, which on virtual machines costs more than the message; so for a moment after each one the thread
//! that drives the session looks for the next instead. It gives the CPU away at every look: where somebody else wants it, a
//! look takes long, and polling stops for a while. Beside bulk transfers there is nothing to gain.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How long without a message before the thread sleeps: longer than a program, the kernel and the mount take from an
/// answer to the next question, which is about 100 us where four threads share a CPU.
const QUIET: Duration = Duration::from_micros(250);
/// A look that took this long means that somebody else wants the CPU.
const SLOW_LOOK: Duration = Duration::from_micros(300);
/// For how long polling is off then: the first time, and twice as long each time that it happens again
/// within a second, because a single slow look may be the host's doing.
const PAUSE_BUSY_FIRST: Duration = Duration::from_millis(4);
const PAUSE_BUSY_MAX: Duration = Duration::from_millis(300);
const PAUSE_BUSY_MEMORY: Duration = Duration::from_secs(1);
/// A message of this many bytes is part of a bulk transfer, and polling is off for a while.
const BULK_BYTES: usize = 64 << 10;
const PAUSE_BULK: Duration = Duration::from_millis(2);

/// What the poller watches.
pub struct Activity {
    messages: AtomicU64,
    /// Until when polling is off, in nanoseconds of this object's life.
    off_until_ns: AtomicU64,
    born: Instant,
    /// When somebody else wanted the CPU last, and for how long polling was off.
    last_busy: Mutex<Option<(Instant, Duration)>>,
    is_asleep: AtomicBool,
    wake: Notify,
}

impl Default for Activity {
    fn default() -> Activity {
        Activity::new()
    }
}

impl Activity {
    /// Nothing has happened yet.
    pub fn new() -> Activity {
        Activity {
            messages: AtomicU64::new(0),
            off_until_ns: AtomicU64::new(0),
            born: Instant::now(),
            last_busy: Mutex::new(None),
            is_asleep: AtomicBool::new(false),
            wake: Notify::new(),
        }
    }

    /// A message was sent or has come. Called where the session is driven.
    pub fn message(&self, data_bytes: usize) {
        self.messages.fetch_add(1, Ordering::Relaxed);
        if data_bytes >= BULK_BYTES {
            self.pause(Instant::now(), PAUSE_BULK);
        } else if self.is_asleep.swap(false, Ordering::Relaxed) {
            self.wake.notify_one();
        }
    }

    fn pause(&self, now: Instant, pause: Duration) {
        let until_ns = self.age_ns(now) + pause.as_nanos() as u64;
        self.off_until_ns.fetch_max(until_ns, Ordering::Relaxed);
    }

    fn pause_busy(&self, now: Instant) {
        let mut last = self.last_busy.lock().unwrap_or_else(PoisonError::into_inner);
        let pause = match *last {
            Some((at, pause)) if now.saturating_duration_since(at) < PAUSE_BUSY_MEMORY => PAUSE_BUSY_MAX.min(pause * 2),
            _ => PAUSE_BUSY_FIRST,
        };
        *last = Some((now, pause));
        self.pause(now, pause);
    }

    fn age_ns(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.born).as_nanos() as u64
    }

    fn is_off(&self, now: Instant) -> bool {
        self.age_ns(now) < self.off_until_ns.load(Ordering::Relaxed)
    }
}

/// Polls whenever there is something to expect. Never ends.
pub async fn poll(activity: &Activity) {
    loop {
        activity.is_asleep.store(true, Ordering::Relaxed);
        activity.wake.notified().await;
        poll_until_quiet(activity).await;
    }
}

async fn poll_until_quiet(activity: &Activity) {
    let mut seen = activity.messages.load(Ordering::Relaxed);
    let mut now = Instant::now();
    let mut quiet_since = now;
    while !activity.is_off(now) && now - quiet_since < QUIET {
        std::thread::yield_now();
        let after = Instant::now();
        if after - now > SLOW_LOOK {
            activity.pause_busy(after);
            return;
        }
        // Lets the runtime look at its sockets and run what is ready.
        tokio::task::yield_now().await;
        now = Instant::now();
        let messages = activity.messages.load(Ordering::Relaxed);
        if messages != seen {
            (seen, quiet_since) = (messages, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn polling_ends_when_it_is_quiet_and_never_begins_beside_bulk() {
        let activity = Activity::new();
        activity.message(10);
        poll_until_quiet(&activity).await;
        assert!(!activity.is_off(Instant::now()) || activity.off_until_ns.load(Ordering::Relaxed) > 0);
        activity.message(BULK_BYTES);
        assert!(activity.is_off(Instant::now()));
        assert!(!activity.is_off(Instant::now() + PAUSE_BUSY_MAX + PAUSE_BULK));
    }

    #[test]
    fn polling_is_off_for_longer_the_more_often_others_want_the_cpu() {
        let activity = Activity::new();
        let mut now = Instant::now();
        let mut pauses = Vec::new();
        for _ in 0..9 {
            activity.pause_busy(now);
            pauses.push(activity.last_busy.lock().unwrap().unwrap().1.as_millis());
            assert!(activity.is_off(now) && !activity.is_off(now + PAUSE_BUSY_MAX));
            now += PAUSE_BUSY_MAX;
        }
        assert_eq!(pauses, [4, 8, 16, 32, 64, 128, 256, 300, 300]);
        activity.pause_busy(now + PAUSE_BUSY_MEMORY);
        assert!(!activity.is_off(now + PAUSE_BUSY_MEMORY + PAUSE_BUSY_FIRST));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_message_wakes_the_poller_once() {
        let activity = std::sync::Arc::new(Activity::new());
        let theirs = activity.clone();
        let poller = tokio::spawn(async move { poll(&theirs).await });
        tokio::task::yield_now().await;
        assert!(activity.is_asleep.load(Ordering::Relaxed));
        activity.message(1);
        activity.message(1);
        assert!(!activity.is_asleep.load(Ordering::Relaxed));
        let deadline = Instant::now() + Duration::from_secs(10);
        while !activity.is_asleep.load(Ordering::Relaxed) {
            assert!(Instant::now() < deadline, "it does not fall asleep");
            tokio::task::yield_now().await;
        }
        poller.abort();
    }
}
