//! The `brickd` processes of a playground: started apart from this one, known by pid and command line,
//! so that no other process is ever signalled.

use super::NodePaths;
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

/// Starts `brickd` for a node and waits until it answers.
pub fn start_brickd(paths: &NodePaths, name: &str) -> anyhow::Result<u32> {
    let log = File::create(&paths.log).with_context(|| format!("cannot write {}", paths.log.display()))?;
    let mut child = Command::new(sibling("brickd")?)
        .arg("--state")
        .arg(&paths.state)
        .arg("--socket")
        .arg(&paths.socket)
        .args(["--node-name", name])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .current_dir("/")
        .process_group(0)
        .spawn()
        .context("cannot start brickd")?;
    let ready = fs::write(&paths.pid, format!("{}\n", child.id()))
        .context("cannot write the pid file")
        .and_then(|()| wait_until_ready(&mut child, paths));
    if let Err(error) = ready {
        let _ = child.kill();
        let _ = child.wait();
        return Err(error);
    }
    Ok(child.id())
}

fn wait_until_ready(child: &mut Child, paths: &NodePaths) -> anyhow::Result<()> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            bail!("brickd ended at once ({status}): {}", last_line(&paths.log));
        }
        if std::os::unix::net::UnixStream::connect(&paths.socket).is_ok() {
            return call(&paths.socket, &AdminCall::Node {}).map(|_| ());
        }
        if started.elapsed() > READY_TIMEOUT {
            bail!("brickd did not answer within {} s; its log is {}", READY_TIMEOUT.as_secs(), paths.log.display());
        }
        std::thread::sleep(READY_POLL);
    }
}

/// The last line that a program logged, for an error of one line.
pub fn last_line(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it logged nothing").trim().to_owned()
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
    let Some(pid_checked) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
    // The descriptor first, then the look: it keeps meaning that process even when the pid is reused.
    let Ok(pidfd) = pidfd_open(pid_checked, PidfdFlags::empty()) else { return Ok(()) };
    if !is_brickd(pid, state) {
        return Ok(());
    }
    pidfd_send_signal(&pidfd, Signal::TERM).with_context(|| format!("cannot stop brickd (pid {pid})"))?;
    if wait_for_end(&pidfd, TERM_TIMEOUT_S)? {
        return Ok(());
    }
    eprintln!("brickctl: brickd (pid {pid}) did not stop within {TERM_TIMEOUT_S} s and is killed");
    pidfd_send_signal(&pidfd, Signal::KILL)?;
    if !wait_for_end(&pidfd, KILL_TIMEOUT_S)? {
        bail!("brickd (pid {pid}) does not end; it may be waiting for a disk");
    }
    Ok(())
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
    }
}
