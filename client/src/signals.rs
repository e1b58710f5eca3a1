//! Whether a thread that waits for an answer has a signal to act on.
//!
//! fuser 0.18 answers FUSE_INTERRUPT with ENOSYS, after which the kernel never sends one again and lets a
//! waiting process sleep through every signal. So whoever holds a request for long looks here, in /proc,
//! and answers EINTR. The thread then acts on its signal as after any interrupted system call.

use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io;

/// Signals that do nothing unless caught: SIGCHLD, SIGCONT, SIGURG, SIGWINCH.
const IGNORED_BY_DEFAULT: u64 = bit(17) | bit(18) | bit(23) | bit(28);
/// Signals that stop: the thread stops when the call ends; ending it for them would break what a debugger
/// or ^Z looks at. SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU.
const STOPPING_BY_DEFAULT: u64 = bit(19) | bit(20) | bit(21) | bit(22);
/// `PF_EXITING` in the flags of /proc/TID/stat.
const EXITING: u64 = 0x4;

const fn bit(signal: u32) -> u64 {
    1 << (signal - 1)
}

/// Whether the thread should stop waiting: it has a signal that it would act on, or it is being ended by
/// one and waits in the closing of its files.
///
/// A program that is being replaced by another (execve) closes its files under a lock that the kernel takes to read `stat`,
/// too: who waits for such a close and reads it waits for itself. So only the `stat` of a thread without memory is
/// read: one that ends has given its memory back before it closes files, one in execve always has some. `status` is
/// read without that lock. Both are found by one descriptor of the thread's directory, which no later thread of the same
/// number gets.
pub fn is_interrupted(tid: u32) -> bool {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(dir) = rustix::fs::open(format!("/proc/{tid}"), flags, Mode::empty()) else { return false };
    let read = |name: &str| {
        let file = rustix::fs::openat(&dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        file.map_err(io::Error::from).and_then(|file| io::read_to_string(File::from(file))).unwrap_or_default()
    };
    let status = read("status");
    has_deliverable_signal(&status) || (!has_memory(&status) && is_dying_of_signal(&read("stat")))
}

/// Reads `/proc/TID/status`.
fn has_memory(status: &str) -> bool {
    status.is_empty() || status.lines().any(|line| line.starts_with("VmSize:"))
}

/// Reads `/proc/TID/status`.
fn has_deliverable_signal(status: &str) -> bool {
    let [mut pending, mut blocked, mut ignored, mut caught] = [0u64; 4];
    for line in status.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        let mask = || u64::from_str_radix(value.trim(), 16).unwrap_or(0);
        match key {
            "SigPnd" | "ShdPnd" => pending |= mask(),
            "SigBlk" => blocked = mask(),
            "SigIgn" => ignored = mask(),
            "SigCgt" => caught = mask(),
            _ => {}
        }
    }
    let acted_on = caught | !(IGNORED_BY_DEFAULT | STOPPING_BY_DEFAULT);
    pending & !blocked & !ignored & acted_on != 0
}

/// Reads `/proc/TID/stat`: the thread has taken its deadly signal and is on its way out. A program that
/// ends by itself is not: it waits until what it wrote has been acknowledged.
fn is_dying_of_signal(stat: &str) -> bool {
    // The name, in parentheses, may hold anything; `state` is the first field after it.
    let Some((_, rest)) = stat.rsplit_once(") ") else { return false };
    let field = |index: usize| rest.split_ascii_whitespace().nth(index).and_then(|text| text.parse::<u64>().ok());
    let (flags, exit_code) = (field(6).unwrap_or(0), field(49).unwrap_or(0));
    flags & EXITING != 0 && exit_code & 0x7f != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(pending: u64, shared: u64, blocked: u64, ignored: u64, caught: u64) -> String {
        format!(
            "Name:\tcat\nSigQ:\t0/1\nSigPnd:\t{pending:016x}\nShdPnd:\t{shared:016x}\nSigBlk:\t{blocked:016x}\n\
             SigIgn:\t{ignored:016x}\nSigCgt:\t{caught:016x}\nCapInh:\t0\n"
        )
    }

    #[test]
    fn a_signal_counts_if_the_thread_would_act_on_it() {
        let (int, kill, chld, tstp) = (bit(2), bit(9), bit(17), bit(20));
        assert!(!has_deliverable_signal(&status(0, 0, 0, 0, 0)));
        assert!(has_deliverable_signal(&status(kill, 0, 0, 0, 0)));
        assert!(has_deliverable_signal(&status(0, int, 0, 0, 0)));
        assert!(!has_deliverable_signal(&status(0, int, int, 0, 0)), "blocked");
        assert!(!has_deliverable_signal(&status(int, 0, 0, int, 0)), "ignored");
        assert!(!has_deliverable_signal(&status(chld | tstp, 0, 0, 0, 0)), "nothing happens, or a stop");
        assert!(has_deliverable_signal(&status(chld, 0, 0, 0, chld)), "caught");
        assert!(!has_deliverable_signal(""), "the thread is gone");
    }

    #[test]
    fn only_a_thread_that_dies_of_a_signal_is_on_its_way_out() {
        let stat = |flags: u64, code: u64| {
            let between = "0 ".repeat(42);
            format!("12 (a) b) D 1 1 1 0 -1 {flags} {between}{code}\n")
        };
        assert!(is_dying_of_signal(&stat(0x40000c, 9)));
        assert!(!is_dying_of_signal(&stat(0x40000c, 0x100)), "exit(1)");
        assert!(!is_dying_of_signal(&stat(0x400000, 9)));
        assert!(!is_dying_of_signal(""));
    }

    #[test]
    fn this_thread_is_not_interrupted() {
        assert!(!is_interrupted(std::process::id()));
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        assert!(has_memory(&status), "its stat is not read");
        assert!(!has_memory("Name:\tcat\nState:\tZ (zombie)\nThreads:\t1\n"));
        assert!(has_memory(""), "gone");
        let own = std::fs::read_to_string("/proc/self/stat").unwrap();
        assert_eq!(own.rsplit_once(") ").unwrap().1.split_ascii_whitespace().count(), 50, "exit_code is the last");
    }
}
