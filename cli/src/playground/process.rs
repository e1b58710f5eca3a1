//! The `brickd` processes of a playground: started apart from this one, known by pid and command line,
//! so that no other process is ever signalled.

use super::NodePaths;
use super::wait::wait_for;
use crate::admin::call;
use anyhow::{Context as _, bail};
use brickfs_common::cluster::admin::AdminCall;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a new `brickd` may take to answer.
const READY_TIMEOUT: Duration = Duration::from_secs(20);
const READY_POLL: Duration = Duration::from_millis(20);
const SIGNAL_TIMEOUT: Duration = Duration::from_secs(5);
const SIGNAL_POLL: Duration = Duration::from_millis(5);
const TERM_TIMEOUT_S: i64 = 15;
const KILL_TIMEOUT_S: i64 = 5;

/// A program of the same build as this one.
pub fn sibling(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this program's own path")?;
    let path = own.with_file_name(name);
    if !path.is_file() {
        bail!("{} is missing: {name} belongs beside brickctl (build or install all of BrickFS)", path.display());
    }
    Ok(path)
}

/// Starts `brickd` for a node; it may not answer yet. `listen` are its options about other nodes.
pub fn spawn_brickd(paths: &NodePaths, name: &str, listen: &[String]) -> anyhow::Result<Child> {
    // What it logged before it was killed is wanted most.
    let log = File::options().create(true).append(true).open(&paths.log);
    let log = log.with_context(|| format!("cannot write {}", paths.log.display()))?;
    let mut child = Command::new(sibling("brickd")?)
        .arg("--state")
        .arg(&paths.state)
        .arg("--socket")
        .arg(&paths.socket)
        .args(["--node-name", name])
        .args(listen)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .current_dir("/")
        .process_group(0)
        .spawn()
        .context("cannot start brickd")?;
    if let Err(error) = fs::write(&paths.pid, format!("{}\n", child.id())) {
        end_child(&mut child);
        return Err(error).context("cannot write the pid file");
    }
    Ok(child)
}

/// Waits until a new `brickd` answers; one that does not is ended.
pub fn wait_until_ready(child: &mut Child, paths: &NodePaths) -> anyhow::Result<()> {
    let ready = answers(child, paths);
    if ready.is_err() {
        end_child(child);
    }
    ready
}

fn answers(child: &mut Child, paths: &NodePaths) -> anyhow::Result<()> {
    let listens = wait_for(READY_TIMEOUT, READY_POLL, || {
        if let Some(status) = child.try_wait()? {
            bail!("brickd ended at once ({status}): {}", last_line(&paths.log));
        }
        Ok(std::os::unix::net::UnixStream::connect(&paths.socket).ok())
    })?;
    if listens.is_none() {
        bail!("brickd did not answer within {} s; its log is {}", READY_TIMEOUT.as_secs(), paths.log.display());
    }
    call(&paths.socket, &AdminCall::Node {}).map(|_| ())
}

fn end_child(child: &mut Child) {
    // One that has ended already is what is wanted.
    let _ = child.kill();
    let _ = child.wait();
}

/// The last line that a program logged, for an error of one line.
pub fn last_line(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it logged nothing").trim().to_owned()
}

/// How the process of a node is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Life {
    /// It runs.
    Running,
    /// It is stopped by a signal.
    Paused,
    /// There is no such process, or it is something else by now.
    Gone,
}

/// Looks at the `brickd` of this state directory.
pub fn look(pid: u32, state: &Path) -> Life {
    if !is_brickd(pid, state) {
        return Life::Gone;
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status"));
    if status.is_ok_and(|status| is_stopped(&status)) { Life::Paused } else { Life::Running }
}

/// `State:\tT (stopped)`; `t` is stopped by a debugger.
fn is_stopped(status: &str) -> bool {
    let state = status.lines().find_map(|line| line.strip_prefix("State:"));
    state.is_some_and(|state| state.trim_start().starts_with(['T', 't']))
}

/// Whether a process is the `brickd` of this state directory.
pub fn is_brickd(pid: u32, state: &Path) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|cmdline| is_brickd_cmdline(&cmdline, state))
}

fn is_brickd_cmdline(cmdline: &[u8], state: &Path) -> bool {
    let mut args = cmdline.split(|b| *b == 0);
    let is_program = args.next().is_some_and(|program| program.rsplit(|b| *b == b'/').next() == Some(b"brickd"));
    is_program && args.any(|arg| arg == state.as_os_str().as_bytes())
}

/// Ends the `brickd` of this state directory and waits for its end. A process that is something else by
/// now is left alone.
pub fn end_brickd(pid: u32, state: &Path) -> anyhow::Result<()> {
    let Some(pidfd) = open_brickd(pid, state) else { return Ok(()) };
    pidfd_send_signal(&pidfd, Signal::TERM).with_context(|| format!("cannot stop brickd (pid {pid})"))?;
    // One that is paused hears it when it goes on; one that has ended by now needs no more.
    let _ = pidfd_send_signal(&pidfd, Signal::CONT);
    if wait_for_end(&pidfd, TERM_TIMEOUT_S)? {
        return Ok(());
    }
    eprintln!("brickctl: brickd (pid {pid}) did not stop within {TERM_TIMEOUT_S} s and is killed");
    kill_and_wait(&pidfd, pid)
}

/// Ends it at once, and waits until it is gone.
pub fn kill_brickd(pid: u32, state: &Path) -> anyhow::Result<()> {
    open_brickd(pid, state).map_or(Ok(()), |pidfd| kill_and_wait(&pidfd, pid))
}

/// Stops it in its tracks, and waits until it is.
pub fn pause_brickd(pid: u32, state: &Path) -> anyhow::Result<()> {
    signal_until(pid, state, Signal::STOP, Life::Paused)
}

/// Lets it go on.
pub fn resume_brickd(pid: u32, state: &Path) -> anyhow::Result<()> {
    signal_until(pid, state, Signal::CONT, Life::Running)
}

fn signal_until(pid: u32, state: &Path, signal: Signal, wanted: Life) -> anyhow::Result<()> {
    let pidfd = open_brickd(pid, state).context("brickd is not running")?;
    pidfd_send_signal(&pidfd, signal).with_context(|| format!("cannot signal brickd (pid {pid})"))?;
    let heeded = wait_for(SIGNAL_TIMEOUT, SIGNAL_POLL, || Ok((look(pid, state) == wanted).then_some(())))?;
    heeded.with_context(|| format!("brickd (pid {pid}) does not heed the signal"))
}

fn kill_and_wait(pidfd: &OwnedFd, pid: u32) -> anyhow::Result<()> {
    pidfd_send_signal(pidfd, Signal::KILL).with_context(|| format!("cannot kill brickd (pid {pid})"))?;
    if !wait_for_end(pidfd, KILL_TIMEOUT_S)? {
        bail!("brickd (pid {pid}) does not end; it may be waiting for a disk");
    }
    Ok(())
}

fn open_brickd(pid: u32, state: &Path) -> Option<OwnedFd> {
    let checked = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
    // The descriptor first, then the look: it keeps meaning that process even when the pid is reused.
    let pidfd = pidfd_open(checked, PidfdFlags::empty()).ok()?;
    is_brickd(pid, state).then_some(pidfd)
}

fn wait_for_end(pidfd: &OwnedFd, timeout_s: i64) -> anyhow::Result<bool> {
    let deadline = Instant::now() + Duration::from_secs(timeout_s.unsigned_abs());
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => (),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_brickd_of_the_same_state_is_ours() {
        let state = Path::new("/p/node-1/state");
        assert!(is_brickd_cmdline(b"/usr/bin/brickd\0--state\0/p/node-1/state\0", state));
        assert!(!is_brickd_cmdline(b"/usr/bin/brickd\0--state\0/q/node-1/state\0", state));
        assert!(!is_brickd_cmdline(b"less\0/p/node-1/state\0", state));
        assert!(!is_brickd_cmdline(b"", state));
        assert!(!is_brickd(std::process::id(), state));
        end_brickd(std::process::id(), state).unwrap();
        kill_brickd(std::process::id(), state).unwrap();
        assert!(pause_brickd(std::process::id(), state).is_err());
        assert_eq!(look(0, state), Life::Gone);
    }

    #[test]
    fn a_stopped_process_is_told_by_its_state() {
        assert!(is_stopped("Name:\tbrickd\nState:\tT (stopped)\n"));
        assert!(is_stopped("State:\tt (tracing stop)\n"));
        assert!(!is_stopped("Name:\tT\nState:\tS (sleeping)\n") && !is_stopped(""));
    }
}
