//! How much the thread that serves wants the CPU (nice(2); on Linux each thread has a niceness of its own).

#![allow(unsafe_code)] // sched_setscheduler(2), which no safe wrapper has

use std::io;

/// Niceness of the thread that serves, where nobody chose another. Beside the programs that wait for it, a
/// server of the same weight is often behind one of them on one CPU while another CPU idles, and all wait.
const SERVING_NICE: i32 = -5;

/// Sets the niceness of this thread, from now on the one that serves; the threads that it starts get none
/// below 0. Unless one is asked for, a brickd that was started with a niceness keeps it.
pub fn serve_with(nice: Option<i32>) {
    let started_with = rustix::process::getpriority_process(None).unwrap_or(0);
    let nice = nice.unwrap_or(if started_with == 0 { SERVING_NICE } else { started_with });
    let set = keep_from_children().and_then(|()| Ok(rustix::process::setpriority_process(None, nice)?));
    if let Err(error) = set {
        tracing::info!("serving with a niceness of {started_with} instead of {nice}: {error}");
    }
}

fn keep_from_children() -> io::Result<()> {
    let normal = libc::SCHED_OTHER | libc::SCHED_RESET_ON_FORK;
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the call reads one sched_param, which lives until it returns.
    match unsafe { libc::sched_setscheduler(0, normal, &raw const parameters) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn niceness() -> i32 {
        rustix::process::getpriority_process(None).unwrap()
    }

    fn in_thread<T: Send>(run: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| scope.spawn(run).join().unwrap())
    }

    #[test]
    fn the_thread_that_serves_keeps_its_niceness_to_itself() {
        let (serving, child) = in_thread(|| {
            serve_with(None);
            (niceness(), in_thread(niceness))
        });
        let started_with = niceness();
        let may_be_chosen = [SERVING_NICE, started_with];
        assert!(may_be_chosen.contains(&serving), "{serving}");
        assert_eq!(child, started_with.max(0));
    }

    #[test]
    fn a_niceness_that_was_chosen_is_kept() {
        let kept = in_thread(|| {
            rustix::process::setpriority_process(None, 7).unwrap();
            serve_with(None);
            niceness()
        });
        assert_eq!(kept, 7);
        let asked_for = in_thread(|| {
            serve_with(Some(9));
            niceness()
        });
        assert_eq!(asked_for, 9);
    }
}
