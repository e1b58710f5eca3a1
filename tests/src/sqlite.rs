//! sqlite3(1) as a process that holds a database open and is told one batch of statements after the other.

use crate::at::At as _;
use crate::process::Process;
use anyhow::{Context as _, bail, ensure};
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// How long a statement waits for others' locks, in milliseconds: longer than a restart of `brickd`.
const BUSY_TIMEOUT_MS: u32 = 120_000;

/// A running sqlite3.
pub struct Sqlite {
    child: Child,
    statements: ChildStdin,
    rows: BufReader<ChildStdout>,
    log: PathBuf,
    batches: u64,
}

impl Sqlite {
    /// Opens a database; what it complains of goes to `log`.
    pub fn open(database: &Path, log: &Path) -> anyhow::Result<Sqlite> {
        let stderr = File::create(log).at(log)?;
        let mut command = Command::new("sqlite3");
        command.args(["-batch", "-bail"]).arg(database).current_dir("/");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr).spawn()?;
        let statements = child.stdin.take().context("sqlite3 has no input")?;
        let rows = BufReader::new(child.stdout.take().context("sqlite3 has no output")?);
        let mut sqlite = Sqlite { child, statements, rows, log: log.to_owned(), batches: 0 };
        sqlite.run(&format!(".log stderr\n.timeout {BUSY_TIMEOUT_MS}"))?; // with the call that failed and its errno
        Ok(sqlite)
    }

    /// Runs statements to their end and gives the rows that they print.
    pub fn run(&mut self, statements: &str) -> anyhow::Result<Vec<String>> {
        self.batches += 1;
        let end = format!("-- end of batch {}", self.batches);
        writeln!(self.statements, "{statements}\n.print '{end}'")
            .with_context(|| format!("sqlite3 has ended: {}", self.complaints()))?;
        let mut rows = Vec::new();
        loop {
            let mut row = String::new();
            if self.rows.read_line(&mut row)? == 0 {
                bail!("sqlite3 ended in the middle of {statements:?}: {}", self.complaints());
            }
            match row.trim_end() {
                row if row == end => return Ok(rows),
                row => rows.push(row.to_owned()),
            }
        }
    }

    /// The one value that a query gives.
    pub fn value(&mut self, query: &str) -> anyhow::Result<String> {
        let mut rows = self.run(query)?;
        ensure!(rows.len() == 1, "{query} gives {rows:?}");
        Ok(rows.remove(0))
    }

    fn complaints(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// SIGKILL, and waits for its end.
    pub fn kill(mut self) -> anyhow::Result<()> {
        Process::open(self.child.id())?.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Sqlite {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}
