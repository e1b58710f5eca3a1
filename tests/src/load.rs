//! Workers in threads, and faults at given points of their work: a fault comes when so many steps are done, never when
//! so much time has passed.

use anyhow::{Context as _, bail, ensure};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

/// Longer than any wait of a mount whose server is being started again.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(1);

/// The steps that all workers have done together.
#[derive(Default)]
pub struct Progress {
    done: AtomicU64,
    is_over: AtomicBool,
}

impl Progress {
    /// Counts a step of the caller; an error if another worker has failed.
    pub fn step(&self) -> anyhow::Result<()> {
        self.done.fetch_add(1, Ordering::Relaxed);
        ensure!(!self.is_over(), "stopped: something else failed first");
        Ok(())
    }

    /// How many steps are done.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Whether the others have ended or failed: for workers that go on until then.
    pub fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }
}

/// Runs the workers to their end; `fault` is called `faults` times, evenly over `steps` steps of them. Gives what each
/// returned, in order, or the first error.
pub fn run_under_faults<T: Send, W: FnOnce(&Progress) -> anyhow::Result<T> + Send>(
    workers: Vec<W>,
    steps: u64,
    faults: u64,
    mut fault: impl FnMut(u64) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<T>> {
    let progress = Progress::default();
    thread::scope(|scope| {
        let spawn = |worker: W| scope.spawn(|| stop_others_on_error(worker(&progress), &progress));
        let workers: Vec<_> = workers.into_iter().map(spawn).collect();
        let mut faulted = Ok(());
        for number in 1..=faults {
            if !wait_for(&progress, steps * number / (faults + 1), &workers)? {
                break;
            }
            faulted = fault(number).with_context(|| format!("fault {number} at step {}", progress.done()));
            if faulted.is_err() {
                progress.is_over.store(true, Ordering::Relaxed);
                break;
            }
        }
        wait_for(&progress, u64::MAX, &workers)?;
        let results: Vec<_> = workers.into_iter().map(join).collect();
        faulted?;
        first_error_of(results)
    })
}

fn stop_others_on_error<T>(result: anyhow::Result<T>, progress: &Progress) -> anyhow::Result<T> {
    if result.is_err() {
        progress.is_over.store(true, Ordering::Relaxed);
    }
    result
}

/// Waits until so many steps are done; false if the workers have ended or one of them failed.
fn wait_for<T>(progress: &Progress, steps: u64, workers: &[ScopedJoinHandle<'_, T>]) -> anyhow::Result<bool> {
    let (mut last, mut moved) = (progress.done(), Instant::now());
    while progress.done() < steps {
        if workers.iter().all(ScopedJoinHandle::is_finished) || (progress.is_over() && steps != u64::MAX) {
            return Ok(false);
        }
        if progress.done() != last {
            (last, moved) = (progress.done(), Instant::now());
        }
        if moved.elapsed() > STALL_TIMEOUT {
            progress.is_over.store(true, Ordering::Relaxed);
            bail!("nothing has moved for {} s at step {last}", STALL_TIMEOUT.as_secs());
        }
        thread::sleep(POLL);
    }
    Ok(true)
}

fn join<T>(worker: ScopedJoinHandle<'_, anyhow::Result<T>>) -> anyhow::Result<T> {
    worker.join().unwrap_or_else(|_| bail!("a worker panicked"))
}

/// All values, or the error that came first: those of workers that were stopped say so and count less.
fn first_error_of<T>(results: Vec<anyhow::Result<T>>) -> anyhow::Result<Vec<T>> {
    let (mut values, mut stopped) = (Vec::new(), None);
    for result in results {
        match result {
            Ok(value) => values.push(value),
            Err(error) if error.to_string().starts_with("stopped:") => stopped = Some(error),
            Err(error) => return Err(error),
        }
    }
    stopped.map_or(Ok(values), Err)
}
