//! Processes, known by descriptor and never by a reused number.

use anyhow::{Context as _, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// A process that is there.
pub struct Process {
    pid: u32,
    pidfd: OwnedFd,
}

impl Process {
    /// The process with this number.
    pub fn open(pid: u32) -> anyhow::Result<Process> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).context("not a process number")?;
        let pidfd = pidfd_open(raw, PidfdFlags::empty()).with_context(|| format!("process {pid}"))?;
        Ok(Process { pid, pidfd })
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a signal; one that is gone already does not mind.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("signal to process {}", self.pid)),
        }
    }

    /// Whether it ends within `timeout`. Nobody needs to have collected its exit status.
    pub fn has_ended_within(&self, timeout: Duration) -> anyhow::Result<bool> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&left)) {
                Ok(ready) => return Ok(ready > 0),
                Err(rustix::io::Errno::INTR) => (),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// SIGKILL, and waits for its end.
    pub fn kill(&self) -> anyhow::Result<()> {
        self.signal(Signal::KILL)?;
        ensure!(self.has_ended_within(Duration::from_secs(20))?, "process {} does not end after SIGKILL", self.pid);
        Ok(())
    }
}

/// The state letter of a process as /proc shows it; `None` if there is none, or only its exit status is left.
pub fn state_of(pid: u32) -> Option<char> {
    // Not `stat`: reading that waits for a program that is being started, which may wait for a mount.
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let state = status.lines().find_map(|line| line.strip_prefix("State:"))?.trim().chars().next()?;
    (!matches!(state, 'Z' | 'X')).then_some(state)
}

/// The kernel function in which a process sleeps, such as `request_wait_answer`.
pub fn sleeping_in(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default()
}

/// Live processes of a program, such as `brickd`, one of whose arguments lies in `directory`.
pub fn find_processes(program: &str, directory: &Path) -> Vec<u32> {
    let Ok(proc) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = proc.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| state_of(*pid).is_some() && is_process_of(*pid, program, directory)).collect()
}

fn is_process_of(pid: u32, program: &str, directory: &Path) -> bool {
    let Ok(cmdline) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let mut args = cmdline.split(|byte| *byte == 0);
    let is_program =
        args.next().is_some_and(|path| path.rsplit(|byte| *byte == b'/').next() == Some(program.as_bytes()));
    is_program && args.any(|arg| Path::new(std::ffi::OsStr::from_bytes(arg)).starts_with(directory))
}
