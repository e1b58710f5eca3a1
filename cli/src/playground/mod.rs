//! `brickctl playground`: a whole cluster on one machine. Everything lies in one state directory:
//! `node-I/{state,brickd.sock,brickd.log,brickd.pid}`, `bricks/bN`, `brickfs.log`, `playground.json`. The one
//! that runs is remembered, so that other commands talk to it without `--dir`.

mod cut;
mod mounts;
mod nodes;
mod process;
mod raft;
mod record;
mod start;
mod status;
mod stop;
mod volume;
mod wait;

use crate::args::{Global, PlaygroundCommand};
use crate::members::Member;
use crate::output::print_done;
use crate::{Outcome, UsageError};
use anyhow::{Context as _, bail};
use process::Life;
use record::{NodePaths, Playground, node_name};
use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

const DEFAULT_DIR: &str = "/var/tmp/brickfs-playground";
const DEFAULT_SOCKET: &str = "/run/brickfs/brickd.sock";
const REMEMBERED: &str = "/run/brickfs/playground";

/// Runs a command of the group.
pub fn run(global: &Global, command: &PlaygroundCommand) -> anyhow::Result<Outcome> {
    match command {
        PlaygroundCommand::Start(options) => {
            let dir = absolute(global.dir.as_deref().unwrap_or(Path::new(DEFAULT_DIR)))?;
            start::start(global, &dir, options)?;
        }
        PlaygroundCommand::Status => status::status(global, &dir_in_use(global)?)?,
        PlaygroundCommand::Remount => remount(global, &dir_in_use(global)?)?,
        PlaygroundCommand::Stop => stop::stop(global, &dir_in_use(global)?)?,
        PlaygroundCommand::Raft => raft::raft(global)?,
        PlaygroundCommand::KillNode { node } => {
            nodes::kill(&dir_in_use(global)?, *node)?;
            print_done(
                global,
                &format!("{0} is killed; 'brickctl playground start-node {0}' starts it again.", node_name(*node)),
            )?;
        }
        PlaygroundCommand::StartNode { node } => {
            let pid = nodes::start(&dir_in_use(global)?, *node)?;
            print_done(global, &format!("{} runs, pid {pid}.", node_name(*node)))?;
        }
        PlaygroundCommand::PauseNode { node } => {
            nodes::pause(&dir_in_use(global)?, *node)?;
            let name = node_name(*node);
            print_done(global, &format!("{name} is paused; 'brickctl playground resume-node {name}' lets it go on."))?;
        }
        PlaygroundCommand::ResumeNode { node } => {
            nodes::resume(&dir_in_use(global)?, *node)?;
            print_done(global, &format!("{} goes on.", node_name(*node)))?;
        }
        PlaygroundCommand::CutNode { node, from, one_way } => {
            let cut_from = nodes::cut_off(&dir_in_use(global)?, *node, *from, *one_way)?;
            let (name, which) = (node_name(*node), if *one_way { "what it sends is" } else { "packets both ways are" });
            let others = cut_from.join(", ");
            let text = format!(
                "{name} is cut off from {others}: {which} dropped; 'brickctl playground heal-node {name}' ends it."
            );
            print_done(global, &text)?;
        }
        PlaygroundCommand::HealNode { node } => {
            let name = node_name(*node);
            let text = match nodes::heal(&dir_in_use(global)?, *node)?.as_slice() {
                [] => format!("{name} is cut off from nobody."),
                left => format!("{name} is healed; {} are cut off themselves.", left.join(", ")),
            };
            print_done(global, &text)?;
        }
        PlaygroundCommand::JoinNode { node } => {
            let joined = nodes::join_new(&dir_in_use(global)?, *node)?;
            print_done(global, &format!("{} runs and is a member: {}.", joined.name, joined.nodes.join(", ")))?;
        }
    }
    Ok(Outcome::Fine)
}

/// The socket that a command is for: `--socket`, else a living node of the playground of `--dir` or the one
/// that is running, else this machine's own `brickd`.
pub fn socket_of(global: &Global) -> anyhow::Result<PathBuf> {
    if let Some(socket) = &global.socket {
        return Ok(socket.clone());
    }
    let Some(dir) = dir_of(global)? else { return Ok(DEFAULT_SOCKET.into()) };
    let record = require_record(&dir)?;
    let Some(node) = record.living_node(&dir) else {
        bail!("no node of the playground in {} runs: see 'brickctl playground status'", dir.display());
    };
    Ok(NodePaths::of(&dir, &node.name).socket)
}

/// The playground that a command is for, if it is for one.
pub fn dir_of(global: &Global) -> anyhow::Result<Option<PathBuf>> {
    if global.socket.is_some() {
        return Ok(None);
    }
    let Some(dir) = &global.dir else { return Ok(remembered()) };
    let dir = absolute(dir)?;
    if Playground::load(&dir)?.is_none() {
        bail!("there is no playground in {}: see 'brickctl playground start --help'", dir.display());
    }
    Ok(Some(dir))
}

/// The nodes of a playground, to be asked each by itself.
pub fn members(dir: &Path) -> anyhow::Result<Vec<Member>> {
    let record = require_record(dir)?;
    let member = |node: &record::PlaygroundNode| {
        let is_running = record.life_of(dir, node) == Life::Running;
        Member { name: node.name.clone(), socket: is_running.then(|| NodePaths::of(dir, &node.name).socket) }
    };
    Ok(record.nodes.iter().map(member).collect())
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

fn remount(global: &Global, dir: &Path) -> anyhow::Result<()> {
    let record = require_record(dir)?;
    let Some(mount) = &record.mount else { bail!("this playground was started with --no-mount") };
    if mounts::find_mount(mount).is_some() {
        mounts::unmount(mount).with_context(|| {
            format!("cannot unmount {}; 'fuser -vm {}' shows who uses it", mount.display(), mount.display())
        })?;
    }
    volume::mount(dir, &record.volume, mount)?;
    print_done(global, &format!("{} is mounted again.", mount.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_made_absolute_and_plain() {
        assert_eq!(absolute(Path::new("/a//b/./c/")).unwrap(), Path::new("/a/b/c"));
        assert!(absolute(Path::new("/a/../b")).is_err() && absolute(Path::new("/a\nb")).is_err());
        assert!(absolute(Path::new("x")).unwrap().is_absolute());
    }
}
