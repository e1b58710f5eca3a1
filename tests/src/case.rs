//! One test: what it needs, the directories that it works in, its seed, its end in time, and its logs when it fails.

use crate::needs::Need;
use crate::scratch::Scratch;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A test that takes longer is taken to hang: its processes are ended, so that what waits for them fails.
const PATIENCE: Duration = Duration::from_secs(280);
const PATIENCE_SOAK: Duration = Duration::from_secs(3600);
/// What a test may take to fail then.
const LAST_PATIENCE: Duration = Duration::from_secs(60);
const EXIT_HANGS: i32 = 101;
/// Lines of each log that a failed test shows.
const LOG_LINES: usize = 25;
const LOG_LINE_CHARS: usize = 500;

/// A running test.
pub struct Case {
    name: String,
    seed: u64,
    scratches: Arc<Mutex<Vec<Scratch>>>,
}

/// Runs a test, or says why it is skipped. Its name is that of the test function.
pub fn case<F: FnOnce(&Case) -> anyhow::Result<()>>(needs: &[Need], body: F) {
    let name = name_of(&body);
    if let Some(why) = needs.iter().find_map(Need::what_lacks) {
        say(&format!("SKIPPED {name}: {why}"));
        return;
    }
    let seed = std::env::var("BRICKFS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    let case = Case { name, seed, scratches: Arc::default() };
    let (end_of_case, case_ended) = mpsc::channel::<()>();
    let watchdog = {
        let (name, scratches) = (case.name.clone(), case.scratches.clone());
        let patience = if crate::needs::is_soak() { PATIENCE_SOAK } else { PATIENCE };
        std::thread::spawn(move || {
            if case_ended.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
                say(&format!("HANGS {name}: its processes are ended after {} s", patience.as_secs()));
                lock(&scratches).iter().for_each(Scratch::end_processes);
                if case_ended.recv_timeout(LAST_PATIENCE) == Err(RecvTimeoutError::Timeout) {
                    say(&format!("HANGS {name}: even so; this process ends, the next test clears its directories"));
                    std::process::exit(EXIT_HANGS);
                }
            }
        })
    };
    let result = body(&case);
    drop(end_of_case);
    let _ = watchdog.join(); // it does not panic
    if let Err(error) = result {
        let reasons: Vec<String> = error.chain().map(ToString::to_string).collect();
        panic!("{}: {}", case.name, reasons.join("\n  because "));
    }
}

/// `crate::module::test::{{closure}}`.
fn name_of<F>(_: &F) -> String {
    let path = std::any::type_name::<F>();
    path.split("::").filter(|part| *part != "{{closure}}").last().unwrap_or(path).to_owned()
}

/// A line on standard error that the test runner does not hold back.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}"); // who is not listening does not care
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Case {
    /// The test's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A new directory in memory.
    pub fn in_memory(&self) -> anyhow::Result<PathBuf> {
        self.keep(Scratch::in_memory()?)
    }

    /// A new directory on the machine's disk.
    pub fn on_disk(&self) -> anyhow::Result<PathBuf> {
        self.keep(Scratch::on_disk()?)
    }

    fn keep(&self, scratch: Scratch) -> anyhow::Result<PathBuf> {
        let path = scratch.path().to_owned();
        lock(&self.scratches).push(scratch);
        Ok(path)
    }

    /// Random numbers number `stream` of this test: the same again for the same seed.
    pub fn rng(&self, stream: u64) -> StdRng {
        StdRng::seed_from_u64(self.seed ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("to run it again: BRICKFS_SEED={} cargo test --release -- --exact {}", self.seed, self.name);
            for scratch in lock(&self.scratches).iter() {
                show_logs(scratch.path());
            }
        }
    }
}

fn show_logs(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        // Never into a mount: it may be dead.
        if crate::kernel_mounts::find(&path).is_some() || entry.file_name() == "bricks" {
            continue;
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            show_logs(&path);
        } else if path.extension().is_some_and(|extension| extension == "log") {
            let text = fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("--- {} (the last of {} lines)", path.display(), lines.len());
            for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
                eprintln!("{}", line.chars().take(LOG_LINE_CHARS).collect::<String>());
            }
        }
    }
}
