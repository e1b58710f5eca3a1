//! Running commands and looking at what they said.

use anyhow::{Context as _, ensure};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// How a command ended.
#[derive(Debug)]
pub struct Ran {
    /// The command, for messages.
    pub command: String,
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> anyhow::Result<Ran> {
    let shown = format!("{command:?}");
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {shown}"))?;
    Ok(Ran {
        command: shown,
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Runs a line of shell; `$1` and so on are `args`.
pub fn shell(line: &str, args: &[&dyn AsRef<std::ffi::OsStr>]) -> anyhow::Result<Ran> {
    let mut command = Command::new("sh");
    command.args(["-c", line, "sh"]).args(args.iter().map(|arg| arg.as_ref()));
    run(&mut command)
}

impl Ran {
    /// Its standard output; an error if it failed.
    #[track_caller]
    pub fn ok(self) -> anyhow::Result<String> {
        let caller = std::panic::Location::caller();
        ensure!(
            self.code == Some(0),
            "{caller}: {} ended with {:?}: {}{}",
            self.command,
            self.code,
            self.stdout,
            self.stderr
        );
        Ok(self.stdout)
    }

    /// Checks that it failed as bad input must: this exit code, nothing on standard output, and exactly one line on
    /// standard error, which it gives.
    #[track_caller]
    pub fn refused(self, code: i32) -> anyhow::Result<String> {
        let caller = std::panic::Location::caller();
        let shown = format!("{caller}: {} ended with {:?}", self.command, self.code);
        ensure!(self.code == Some(code), "{shown}, not {code}: {}{}", self.stdout, self.stderr);
        ensure!(self.stdout.is_empty(), "{shown} and printed {:?}", self.stdout);
        let lines: Vec<&str> = self.stderr.lines().collect();
        ensure!(lines.len() == 1, "{shown}; wanted one line, not {:?}", self.stderr);
        ensure!(!lines[0].trim().is_empty() && self.stderr.ends_with('\n'), "{shown}: {:?}", self.stderr);
        Ok(lines[0].to_owned())
    }
}

/// The directory of the project.
pub fn project_dir() -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    dir.parent().map_or(dir.clone(), PathBuf::from)
}

/// A program of the build that the running test belongs to: `brickd`, `brickfs`, `brickctl`.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let test = std::env::current_exe()?;
    let build = test.parent().and_then(|deps| deps.parent()).context("the test lies in no build directory")?;
    let path = build.join(name);
    ensure!(path.is_file(), "{} is missing: run 'make build' first", path.display());
    Ok(path)
}
