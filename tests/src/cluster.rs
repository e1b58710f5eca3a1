//! A cluster of real processes: one `brickd` with a volume, as `brickctl playground` makes it or over directories of
//! the test. `brickd` can be killed and started again with the same arguments.

use crate::at::At as _;
use crate::case::Case;
use crate::eventually::eventually_ok;
use crate::launcher::Launcher;
use crate::mount::Mount;
use crate::process::{Process, state_of};
use crate::run::{Ran, program, run};
use anyhow::{Context as _, ensure};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

const READY_TIMEOUT: Duration = Duration::from_secs(30);
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
const NODE: &str = "node-1";
/// The volume of every cluster here.
pub const VOLUME: &str = "vol";
/// Where an installed `brickd` listens.
const DEFAULT_SOCKET: &str = "/run/brickfs/brickd.sock";
/// Where `brickctl` remembers the playground that was started last.
const REMEMBERED: &str = "/run/brickfs/playground";

/// A running cluster.
pub struct Cluster {
    dir: PathBuf,
    /// The playground's own mount.
    mount: Option<PathBuf>,
    bricks: Vec<PathBuf>,
    socket: PathBuf,
    brickd: Option<Process>,
    launcher: Launcher,
}

impl Cluster {
    /// A playground of four bricks in memory, mounted.
    pub fn in_memory(case: &Case) -> anyhow::Result<Cluster> {
        Cluster::playground(&case.in_memory()?, 4, &[])
    }

    /// A playground of four bricks on the machine's disk, mounted.
    pub fn on_disk(case: &Case) -> anyhow::Result<Cluster> {
        Cluster::playground(&case.on_disk()?, 4, &[])
    }

    /// A mounted playground in `dir`, with further arguments of `playground start`.
    pub fn playground(dir: &Path, bricks: usize, args: &[&str]) -> anyhow::Result<Cluster> {
        let state = dir.join("p");
        let mount = dir.join("mnt");
        // One at a time: each start writes that file.
        static STARTING: Mutex<()> = Mutex::new(());
        let _guard = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        let remembered = fs::read(REMEMBERED).ok();
        let mut command = Command::new(program("brickctl")?);
        command.args(["playground", "start", "--nodes", "1", "--volume", VOLUME, "--bricks"]);
        command.arg(bricks.to_string()).arg("--dir").arg(&state).arg("--mount").arg(&mount).args(args);
        run(&mut command)?.ok()?;
        // Whoever has a playground of their own goes on with that one.
        match remembered {
            Some(theirs) => fs::write(REMEMBERED, theirs).at(REMEMBERED)?,
            None => fs::remove_file(REMEMBERED).at(REMEMBERED)?,
        }
        let bricks = (1..=bricks).map(|i| state.join(format!("bricks/b{i}"))).collect();
        let mut cluster = Cluster::without_brickd(state)?;
        (cluster.mount, cluster.bricks) = (Some(mount), bricks);
        let status: Value = serde_json::from_str(&cluster.brickctl(&["playground", "status", "-o", "json"])?.ok()?)?;
        let pid = status["nodes"][0]["pid"].as_u64().context("the playground's status has no process")?;
        cluster.brickd = Some(Process::open(u32::try_from(pid)?)?);
        Ok(cluster)
    }

    /// A `brickd` alone in `dir`, without a volume.
    pub fn empty(dir: &Path) -> anyhow::Result<Cluster> {
        let state = dir.join("p");
        fs::create_dir_all(state.join(NODE)).at(&state)?;
        let mut cluster = Cluster::without_brickd(state)?;
        cluster.start_brickd()?;
        Ok(cluster)
    }

    fn without_brickd(dir: PathBuf) -> anyhow::Result<Cluster> {
        let (socket, launcher) = (dir.join(NODE).join("brickd.sock"), Launcher::start()?);
        Ok(Cluster { dir, mount: None, bricks: Vec::new(), socket, brickd: None, launcher })
    }

    /// A cluster in `dir` with a started volume of two bricks, which listens where an installed `brickd` does; `None`
    /// if somebody else listens there.
    pub fn on_default_socket(dir: &Path) -> anyhow::Result<Option<Cluster>> {
        let socket = Path::new(DEFAULT_SOCKET);
        if UnixStream::connect(socket).is_ok() {
            return Ok(None);
        }
        fs::create_dir_all("/run/brickfs").at(socket)?;
        let state = dir.join("p");
        fs::create_dir_all(state.join(NODE)).at(&state)?;
        let mut cluster = Cluster::without_brickd(state)?;
        cluster.socket = socket.to_owned();
        cluster.start_brickd()?;
        cluster.add_started_volume(VOLUME, &[dir.join("b1"), dir.join("b2")])?;
        Ok(Some(cluster))
    }

    /// Makes and starts a volume.
    pub fn add_started_volume(&mut self, name: &str, bricks: &[PathBuf]) -> anyhow::Result<()> {
        self.make_volume(name, bricks)?.ok()?;
        self.brickctl(&["volume", "start", name])?.ok()?;
        self.bricks.extend_from_slice(bricks);
        Ok(())
    }

    /// A cluster in `dir` whose started volume has its bricks in these directories; not mounted.
    pub fn over(dir: &Path, bricks: &[PathBuf]) -> anyhow::Result<Cluster> {
        let mut cluster = Cluster::empty(dir)?;
        cluster.add_started_volume(VOLUME, bricks)?;
        Ok(cluster)
    }

    /// `volume create --force`.
    pub fn make_volume(&self, name: &str, bricks: &[PathBuf]) -> anyhow::Result<Ran> {
        let bricks: Vec<String> = bricks.iter().map(|path| brick_argument(path)).collect();
        let mut args = vec!["volume", "create", name, "--force"];
        args.extend(bricks.iter().map(String::as_str));
        self.brickctl(&args)
    }

    /// The playground's mount.
    pub fn mount(&self) -> &Path {
        self.mount.as_deref().unwrap_or(Path::new("/nonexistent"))
    }

    /// The directories of the bricks.
    pub fn bricks(&self) -> &[PathBuf] {
        &self.bricks
    }

    /// The directory with the node's state, logs and socket.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The socket of `brickd`.
    pub fn socket(&self) -> PathBuf {
        self.socket.clone()
    }

    /// The readable cluster state.
    pub fn cluster_json(&self) -> anyhow::Result<Value> {
        let path = self.dir.join(NODE).join("state/cluster.json");
        Ok(serde_json::from_slice(&fs::read(&path).at(&path)?)?)
    }

    /// Runs `brickctl` against this cluster.
    pub fn brickctl(&self, args: &[&str]) -> anyhow::Result<Ran> {
        let mut command = Command::new(program("brickctl")?);
        command.env_remove("BRICKFS_PLAYGROUND");
        // A cluster without a playground's record is reached by its socket alone.
        if self.mount.is_some() {
            command.arg("--dir").arg(&self.dir);
        } else {
            command.arg("--socket").arg(self.socket());
        }
        run(command.args(args))
    }

    /// Mounts the volume once more, on `NAME` beside the cluster's directory, with further arguments of `brickfs`.
    pub fn second_mount(&self, name: &str, args: &[&str]) -> anyhow::Result<Mount> {
        let point = self.dir.with_file_name(name);
        Mount::start(&self.socket(), &format!("{NODE}:/{VOLUME}"), &point, args)
    }

    /// Unmounts and mounts the playground's mount: caches are cold.
    pub fn remount(&self) -> anyhow::Result<()> {
        self.brickctl(&["playground", "remount"])?.ok().map(|_| ())
    }

    /// The process of `brickd`.
    pub fn brickd(&self) -> anyhow::Result<&Process> {
        self.brickd.as_ref().context("brickd is not running")
    }

    /// SIGKILL of `brickd`.
    pub fn kill_brickd(&mut self) -> anyhow::Result<()> {
        let brickd = self.brickd.take().context("brickd is not running")?;
        ensure!(state_of(brickd.pid()).is_some(), "brickd ended by itself before it was killed");
        brickd.kill()
    }

    /// SIGTERM of `brickd`: it must end by itself.
    pub fn stop_brickd(&mut self) -> anyhow::Result<()> {
        let brickd = self.brickd.take().context("brickd is not running")?;
        brickd.signal(Signal::TERM)?;
        ensure!(brickd.has_ended_within(STOP_TIMEOUT)?, "brickd does not end after SIGTERM");
        Ok(())
    }

    /// Starts `brickd` again as the playground does, and waits until it accepts connections. Starts no other process:
    /// see [`Launcher`].
    pub fn start_brickd(&mut self) -> anyhow::Result<()> {
        self.start_brickd_by(&[])
    }

    /// The same, with at most so many files open at once, which `brickd` cannot raise.
    pub fn start_brickd_with_open_files(&mut self, most: u32) -> anyhow::Result<()> {
        let limit = format!("--nofile={most}:{most}");
        let words = ["setpriv", "--bounding-set", "-sys_resource", "--inh-caps", "-sys_resource", "prlimit", &limit];
        self.start_brickd_by(&words.map(Path::new))
    }

    /// Starts it by a program that ends in being it.
    fn start_brickd_by(&mut self, words_before: &[&Path]) -> anyhow::Result<()> {
        let (node, socket) = (self.dir.join(NODE), self.socket());
        let (state, log) = (node.join("state"), node.join("brickd.log"));
        let words = ["--state", "--socket", "--node-name", NODE, "--listen", "none"].map(Path::new);
        let brickd = program("brickd")?;
        let mut line = words_before.to_vec();
        line.extend([&brickd, words[0], &state, words[1], &socket, words[2], words[3], words[4], words[5]]);
        let pid = self.launcher.launch(&line, &log)?;
        self.brickd = Some(Process::open(pid)?);
        self.note_pid(pid)?;
        eventually_ok("brickd answers", READY_TIMEOUT, || {
            ensure!(state_of(pid).is_some(), "brickd ended: {}", fs::read_to_string(&log).unwrap_or_default());
            UnixStream::connect(&socket).at(&socket)
        })?;
        Ok(())
    }

    /// Writes the new process into the playground's record, so that `playground status` and `stop` know it.
    fn note_pid(&self, pid: u32) -> anyhow::Result<()> {
        let path = self.dir.join("playground.json");
        let Ok(text) = fs::read(&path) else { return Ok(()) };
        let mut record: Value = serde_json::from_slice(&text)?;
        record["nodes"][0]["pid"] = pid.into();
        fs::write(&path, serde_json::to_vec_pretty(&record)?).at(&path)
    }

    /// `volume status VOLUME -o json`.
    pub fn status(&self) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.brickctl(&["volume", "status", VOLUME, "-o", "json"])?.ok()?)?)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Mounts first: what reads from one would wait for a server that is not coming back.
        if let Some(mount) = &self.mount {
            crate::kernel_mounts::detach_below(mount);
        }
        if let Some(brickd) = self.brickd.take() {
            let _ = brickd.kill(); // the directory's clearing looks again
        }
        let _ = fs::remove_file(&self.socket); // of the playground, or the default one, which nobody else was using
    }
}

/// A brick as `brickctl` takes it: `NODE:/PATH`.
pub fn brick_argument(path: &Path) -> String {
    format!("{NODE}:{}", path.display())
}
