//! A PostgreSQL server of a test's own: its data where the test says, its socket in a directory that nobody else looks
//! into, no TCP port, run as `nobody`, for its programs refuse to be root.

use crate::at::At as _;
use crate::run::{Ran, project_dir, run};
use anyhow::{Context as _, ensure};
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// `nobody` and `nogroup`.
const UID: u32 = 65534;
/// Small, so that blocks come from the file system and go there all the time.
const SETTINGS: &str = "
listen_addresses = ''
shared_buffers = 8MB
max_connections = 30
checkpoint_timeout = 30s
max_wal_size = 64MB
min_wal_size = 32MB
bgwriter_delay = 20ms
jit = off
autovacuum_naptime = 1s
";

/// Where `make deps` unpacks the package.
fn unpacked_dir() -> PathBuf {
    project_dir().join("target/tools/postgresql")
}

/// The server's programs below a root: Debian keeps them out of PATH, in a directory of their version.
fn programs_below(root: &Path) -> Option<PathBuf> {
    let versions = fs::read_dir(root.join("usr/lib/postgresql")).into_iter().flatten().flatten();
    let dirs = versions.map(|version| version.path().join("bin"));
    dirs.filter(|dir| dir.join("postgres").is_file() && dir.join("pg_amcheck").is_file()).max()
}

/// Whether this machine has the server's programs.
pub fn is_here() -> bool {
    programs_below(Path::new("/")).or_else(|| programs_below(&unpacked_dir())).is_some()
}

/// The server's programs. The unpacked ones are copied into `dir`: the project may lie where `nobody` cannot go. They
/// find the rest of the package beside them.
fn programs_for_nobody(dir: &Path) -> anyhow::Result<PathBuf> {
    if let Some(installed) = programs_below(Path::new("/")) {
        return Ok(installed);
    }
    run(Command::new("cp").arg("-r").arg(unpacked_dir().join("usr")).arg(dir))?.ok()?;
    programs_below(dir).context("PostgreSQL is not installed")
}

/// A server, running or not. It is stopped when it goes.
pub struct Postgres {
    programs: PathBuf,
    data: PathBuf,
    /// Socket and log.
    dir: PathBuf,
    is_running: bool,
}

impl Postgres {
    /// Makes a cluster of databases in `data`, with initdb; socket and log lie in `dir`.
    pub fn init(data: &Path, dir: &Path) -> anyhow::Result<Postgres> {
        for path in [data, dir] {
            fs::create_dir_all(path).at(path)?;
            chown(path, Some(UID), Some(UID)).at(path)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o700)).at(path)?;
        }
        let programs = programs_for_nobody(dir)?;
        let postgres = Postgres { programs, data: data.to_owned(), dir: dir.to_owned(), is_running: false };
        let mut initdb = postgres.program("initdb");
        initdb.args(["--auth=trust", "--username=postgres", "--data-checksums", "--encoding=UTF8", "--locale=C", "-D"]);
        run(initdb.arg(data))?.ok()?;
        let conf = data.join("postgresql.conf");
        let text = fs::read_to_string(&conf).at(&conf)?;
        let socket = format!("unix_socket_directories = '{}'\n", dir.display());
        fs::write(&conf, text + SETTINGS + &socket).at(&conf)?;
        Ok(postgres)
    }

    /// A program of the package as the server's user.
    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        command.uid(UID).gid(UID).current_dir(&self.dir).env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C");
        command.env("PGHOST", &self.dir).env("PGUSER", "postgres").env("HOME", &self.dir);
        command
    }

    /// Runs a program of the package, such as `pgbench`, against the server.
    pub fn run(&self, name: &str, args: &[&str]) -> anyhow::Result<Ran> {
        run(self.program(name).args(args))
    }

    /// The one value that a query gives.
    pub fn value(&self, query: &str) -> anyhow::Result<String> {
        Ok(self.run("psql", &["-X", "-A", "-t", "-q", "-c", query, "postgres"])?.ok()?.trim().to_owned())
    }

    /// Starts the server and waits until it answers.
    pub fn start(&mut self) -> anyhow::Result<()> {
        ensure!(!self.is_running, "the server runs already");
        self.is_running = true;
        self.control(&["-w", "-t", "120", "-l", &self.log(), "start"])
    }

    /// Stops the server: `fast` writes all that is open, `immediate` leaves it to the next start's recovery.
    pub fn stop(&mut self, mode: &str) -> anyhow::Result<()> {
        self.control(&["-w", "-t", "120", "-m", mode, "stop"])?;
        self.is_running = false;
        Ok(())
    }

    fn log(&self) -> String {
        self.dir.join("postgres.log").display().to_string()
    }

    fn control(&self, args: &[&str]) -> anyhow::Result<()> {
        // The server keeps what it is started with: no pipe that somebody waits for the end of.
        let out = self.dir.join("pg_ctl.log");
        let log = fs::File::options().create(true).append(true).open(&out).at(&out)?;
        let mut command = self.program("pg_ctl");
        command.arg("-D").arg(&self.data).args(args).stdin(std::process::Stdio::null());
        let status = command.stdout(log.try_clone()?).stderr(log).status()?;
        ensure!(status.success(), "pg_ctl {args:?} ended with {status}; see {}", out.display());
        Ok(())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if self.is_running {
            let _ = self.stop("immediate"); // the directory's clearing looks again
        }
    }
}
