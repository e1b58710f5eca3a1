//! `brickctl playground`: a whole cluster on one machine. Everything lies in one state directory:
//! `node-1/{state,brickd.sock,brickd.log,brickd.pid}`, `bricks/bN`, `brickfs.log`, `playground.json`. The one
//! that runs is remembered, so that other commands talk to it without `--dir`.

mod mounts;
mod process;
mod start;

use crate::admin::{call, unexpected};
use crate::args::{Format, Global, PlaygroundCommand};
use crate::output::{print_done, print_json, write_out};
use crate::{Outcome, UsageError};
use anyhow::{Context as _, bail};
use brickfs_common::cluster::admin::{AdminCall, AdminResult};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

const DEFAULT_DIR: &str = "/var/tmp/brickfs-playground";
const DEFAULT_SOCKET: &str = "/run/brickfs/brickd.sock";
const REMEMBERED: &str = "/run/brickfs/playground";
const RECORD_NAME: &str = "playground.json";
const RECORD_VERSION: u32 = 1;
const NODE_NAME: &str = "node-1";
/// What a playground makes in its directory, and `stop` removes.
const MADE: [&str; 5] = [NODE_NAME, "bricks", "brickfs.log", "mount.err", RECORD_NAME];

/// `playground.json`: what runs here.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
struct Playground {
    version: u32,
    volume: String,
    /// Where it is mounted, absolute; none with `--no-mount`.
    mount: Option<PathBuf>,
    /// Whether the mount point was made, and goes with the playground.
    is_mount_dir_made: bool,
    /// Whether the state directory was made, and goes with the playground.
    is_dir_made: bool,
    nodes: Vec<PlaygroundNode>,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
struct PlaygroundNode {
    name: String,
    pid: u32,
}

/// Where the files of one node are.
struct NodePaths {
    dir: PathBuf,
    state: PathBuf,
    socket: PathBuf,
    log: PathBuf,
    pid: PathBuf,
}

impl NodePaths {
    fn of(playground: &Path, name: &str) -> NodePaths {
        let dir = playground.join(name);
        NodePaths {
            state: dir.join("state"),
            socket: dir.join("brickd.sock"),
            log: dir.join("brickd.log"),
            pid: dir.join("brickd.pid"),
            dir,
        }
    }
}

impl Playground {
    fn load(dir: &Path) -> anyhow::Result<Option<Playground>> {
        let path = dir.join(RECORD_NAME);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let record: Playground =
            serde_json::from_slice(&text).with_context(|| format!("{} cannot be read", path.display()))?;
        if record.version != RECORD_VERSION {
            bail!("{} has version {}, this brickctl reads {RECORD_VERSION}", path.display(), record.version);
        }
        Ok(Some(record))
    }

    fn save(&self, dir: &Path) -> anyhow::Result<()> {
        let (path, tmp) = (dir.join(RECORD_NAME), dir.join("playground.json.tmp"));
        fs::write(&tmp, serde_json::to_vec_pretty(self)?)?;
        fs::rename(&tmp, &path).with_context(|| format!("cannot write {}", path.display()))
    }

    fn is_running(&self, dir: &Path) -> bool {
        self.nodes.iter().any(|node| process::is_brickd(node.pid, &NodePaths::of(dir, &node.name).state))
    }
}

/// Runs a command of the group.
pub fn run(global: &Global, command: &PlaygroundCommand) -> anyhow::Result<Outcome> {
    match command {
        PlaygroundCommand::Start(options) => {
            let dir = absolute(global.dir.as_deref().unwrap_or(Path::new(DEFAULT_DIR)))?;
            start::start(global, &dir, options)?;
        }
        PlaygroundCommand::Status => status(global, &dir_in_use(global)?)?,
        PlaygroundCommand::Remount => remount(global, &dir_in_use(global)?)?,
        PlaygroundCommand::Stop => stop(global, &dir_in_use(global)?)?,
    }
    Ok(Outcome::Fine)
}

/// The socket that a command is for: `--socket`, else the playground of `--dir` or the one that is
/// running, else this machine's own `brickd`.
pub fn socket_of(global: &Global) -> anyhow::Result<PathBuf> {
    if let Some(socket) = &global.socket {
        return Ok(socket.clone());
    }
    if let Some(dir) = &global.dir {
        let dir = absolute(dir)?;
        if Playground::load(&dir)?.is_none() {
            bail!("there is no playground in {}: see 'brickctl playground start --help'", dir.display());
        }
        return Ok(NodePaths::of(&dir, NODE_NAME).socket);
    }
    Ok(remembered().map_or_else(|| DEFAULT_SOCKET.into(), |dir| NodePaths::of(&dir, NODE_NAME).socket))
}

/// The playground that was remembered, if it is running.
fn remembered() -> Option<PathBuf> {
    let text = fs::read_to_string(REMEMBERED).ok()?;
    let dir = PathBuf::from(text.trim_end_matches('\n'));
    let record = Playground::load(&dir).ok()??;
    (dir.is_absolute() && record.is_running(&dir)).then_some(dir)
}

fn remember(dir: &Path) -> anyhow::Result<()> {
    let path = Path::new(REMEMBERED);
    if let Some(parent) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    fs::write(path, format!("{}\n", dir.display())).with_context(|| format!("cannot write {REMEMBERED}"))
}

fn forget(dir: &Path) {
    let is_ours = fs::read_to_string(REMEMBERED).is_ok_and(|text| Path::new(text.trim_end_matches('\n')) == dir);
    if is_ours {
        // A remembered playground that does not run is not used, so a failure here does no harm.
        let _ = fs::remove_file(REMEMBERED);
    }
}

fn dir_in_use(global: &Global) -> anyhow::Result<PathBuf> {
    let dir = match &global.dir {
        Some(dir) => absolute(dir)?,
        None => remembered().unwrap_or_else(|| DEFAULT_DIR.into()),
    };
    if Playground::load(&dir)?.is_none() {
        bail!("there is no playground in {}: start one with 'brickctl playground start', or give --dir", dir.display());
    }
    Ok(dir)
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    let path = std::path::absolute(path).with_context(|| format!("'{}' is not a path", path.display()))?;
    let is_plain = path.to_str().is_some_and(|text| !text.chars().any(char::is_control));
    if !is_plain || path.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(UsageError(format!("'{}': give a plain path without '..'", path.display())).into());
    }
    Ok(path.components().collect())
}

fn require_record(dir: &Path) -> anyhow::Result<Playground> {
    Playground::load(dir)?.with_context(|| format!("there is no playground in {}", dir.display()))
}

fn status(global: &Global, dir: &Path) -> anyhow::Result<()> {
    let record = require_record(dir)?;
    let mounted = record.mount.as_deref().is_some_and(mounts::is_brickfs_mount);
    let mut nodes = Vec::new();
    for node in &record.nodes {
        let paths = NodePaths::of(dir, &node.name);
        let running = process::is_brickd(node.pid, &paths.state);
        nodes.push((node, paths, running));
    }
    if global.output == Format::Json {
        let nodes: Vec<_> = nodes
            .iter()
            .map(|(node, paths, running)| {
                let pid = running.then_some(node.pid);
                serde_json::json!({ "name": node.name, "pid": pid, "running": running, "socket": paths.socket })
            })
            .collect();
        let shown = serde_json::json!({
            "dir": dir, "volume": record.volume, "mount": record.mount, "mounted": mounted, "nodes": nodes,
        });
        return print_json(&shown);
    }
    let mut text = format!("Playground in {}\n", dir.display());
    for (node, paths, running) in &nodes {
        let state = if *running { format!("running, pid {}", node.pid) } else { "not running".to_owned() };
        text.push_str(&format!("  {}: {state}, log {}\n", node.name, paths.log.display()));
    }
    let mount = record.mount.as_ref().map_or("not asked for".to_owned(), |mount| {
        format!("{} ({})", mount.display(), if mounted { "mounted" } else { "not mounted" })
    });
    text.push_str(&format!("  volume: {}\n  mount: {mount}\n", record.volume));
    write_out(&text)
}

fn remount(global: &Global, dir: &Path) -> anyhow::Result<()> {
    let record = require_record(dir)?;
    let Some(mount) = &record.mount else { bail!("this playground was started with --no-mount") };
    if mounts::find_mount(mount).is_some() {
        mounts::unmount(mount).with_context(|| {
            format!("cannot unmount {}; 'fuser -vm {}' shows who uses it", mount.display(), mount.display())
        })?;
    }
    mounts::mount_volume(dir, &NodePaths::of(dir, NODE_NAME).socket, NODE_NAME, &record.volume, mount)?;
    print_done(global, &format!("{} is mounted again.", mount.display()))
}

fn stop(global: &Global, dir: &Path) -> anyhow::Result<()> {
    let record = require_record(dir)?;
    take_down(dir, &record)?;
    print_done(global, &format!("The playground in {} is stopped and removed.", dir.display()))
}

/// Unmounts, ends the processes and removes what the playground made; what others put into its
/// directory stays.
fn take_down(dir: &Path, record: &Playground) -> anyhow::Result<()> {
    if let Some(mount) = &record.mount {
        if mounts::is_brickfs_mount(mount) {
            mounts::unmount_even_if_busy(mount)?;
        }
        if record.is_mount_dir_made && mounts::find_mount(mount).is_none() {
            remove_if_empty(mount)?;
        }
    }
    for node in &record.nodes {
        process::end_brickd(node.pid, &NodePaths::of(dir, &node.name).state)?;
    }
    forget(dir);
    // The record goes last: until then `stop` can be tried again.
    for name in MADE {
        let path = dir.join(name);
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match removed {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => (),
        }
    }
    if record.is_dir_made {
        remove_if_empty(dir)?;
    }
    Ok(())
}

fn remove_if_empty(dir: &Path) -> anyhow::Result<()> {
    match fs::remove_dir(dir) {
        Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Makes and starts the volume over fresh bricks.
fn make_volume(dir: &Path, options: &crate::args::PlaygroundStart) -> anyhow::Result<()> {
    let socket = NodePaths::of(dir, NODE_NAME).socket;
    let brick = |i: u16| format!("{NODE_NAME}:{}", dir.join("bricks").join(format!("b{i}")).display());
    let create = AdminCall::VolumeCreate {
        name: options.volume.clone(),
        replica: options.replica,
        stripe: options.stripe,
        force: true,
        bricks: (1..=options.bricks).map(brick).collect(),
    };
    call(&socket, &create)?;
    match call(&socket, &AdminCall::VolumeStart { name: options.volume.clone() })? {
        AdminResult::Status(status) => match status.bricks.iter().find(|brick| !brick.online) {
            Some(brick) => {
                bail!("brick {} is not served: {}", brick.path, brick.error.as_deref().unwrap_or("unknown reason"))
            }
            None => Ok(()),
        },
        other => Err(unexpected(&other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written_and_others_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Playground::load(dir.path()).unwrap(), None);
        let record = Playground {
            version: RECORD_VERSION,
            volume: "demo".to_owned(),
            mount: Some("/m".into()),
            is_mount_dir_made: true,
            is_dir_made: false,
            nodes: vec![PlaygroundNode { name: NODE_NAME.to_owned(), pid: std::process::id() }],
        };
        record.save(dir.path()).unwrap();
        assert_eq!(Playground::load(dir.path()).unwrap().as_ref(), Some(&record));
        assert!(!record.is_running(dir.path()), "this test is no brickd");
        let next = Playground { version: RECORD_VERSION + 1, ..record };
        next.save(dir.path()).unwrap();
        assert!(Playground::load(dir.path()).is_err());
        fs::write(dir.path().join(RECORD_NAME), "{").unwrap();
        assert!(Playground::load(dir.path()).is_err());
    }

    #[test]
    fn taking_down_leaves_what_others_made() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("p");
        fs::create_dir_all(state.join("bricks/b1")).unwrap();
        fs::write(state.join("mine.txt"), "x").unwrap();
        let record = Playground {
            version: RECORD_VERSION,
            volume: "demo".to_owned(),
            mount: None,
            is_mount_dir_made: false,
            is_dir_made: true,
            nodes: Vec::new(),
        };
        record.save(&state).unwrap();
        take_down(&state, &record).unwrap();
        assert!(state.join("mine.txt").exists() && !state.join("bricks").exists());
        assert!(!state.join(RECORD_NAME).exists());
    }

    #[test]
    fn paths_are_made_absolute_and_plain() {
        assert_eq!(absolute(Path::new("/a//b/./c/")).unwrap(), Path::new("/a/b/c"));
        assert!(absolute(Path::new("/a/../b")).is_err() && absolute(Path::new("/a\nb")).is_err());
        assert!(absolute(Path::new("x")).unwrap().is_absolute());
    }
}
