//! Starts servers from a process apart. A process that has files of a mount open cannot start a server while the server
//! of that mount is gone: its child closes copies of those files at exec, and a close waits for the server.

use anyhow::{Context as _, ensure};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Reads one line of shell a time, runs it in the background and prints its process number.
const LOOP: &str = r#"while read -r line; do eval "$line" & echo $!; done"#;

/// A shell that was started before any file of a mount was open.
pub struct Launcher {
    shell: Child,
    lines: Option<ChildStdin>,
    pids: BufReader<ChildStdout>,
}

impl Launcher {
    /// Starts the shell.
    pub fn start() -> anyhow::Result<Launcher> {
        let mut command = Command::new("sh");
        command.args(["-c", LOOP]).current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut shell = command.spawn().context("cannot start sh")?;
        let lines = shell.stdin.take();
        let pids = BufReader::new(shell.stdout.take().context("sh has no output")?);
        Ok(Launcher { shell, lines, pids })
    }

    /// Starts a program whose output is appended to `log`; gives its process number.
    pub fn launch(&mut self, line: &[&Path], log: &Path) -> anyhow::Result<u32> {
        let words = line.iter().map(|word| quote(word)).collect::<anyhow::Result<Vec<_>>>()?;
        let line = format!("exec {} </dev/null >>{} 2>&1\n", words.join(" "), quote(log)?);
        self.lines.as_mut().context("the launcher has ended")?.write_all(line.as_bytes())?;
        let mut pid = String::new();
        self.pids.read_line(&mut pid)?;
        pid.trim().parse().with_context(|| format!("the launcher printed {pid:?}"))
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        self.lines.take();
        let _ = self.shell.wait(); // it ends with its input
    }
}

fn quote(word: &Path) -> anyhow::Result<String> {
    let text = word.to_str().context("not plain text")?;
    ensure!(!text.contains(['\'', '\n', '\\']), "'{text}' cannot be quoted");
    Ok(format!("'{text}'"))
}
