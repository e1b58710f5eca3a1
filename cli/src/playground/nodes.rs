//! The nodes of a playground one by one: start, kill, pause, cut off, join. The record is saved at each step, so that
//! `stop` ends whatever runs.

use super::process::{self, Life};
use super::record::{Cut, LISTEN_ADDRESS, NodePaths, Playground, listen_options, node_name, port_of};
use super::wait::wait_for;
use super::{cut, require_record};
use crate::UsageError;
use crate::args::NODES_MAX;
use crate::cmd::peer;
use crate::members::ask_status;
use anyhow::{Context as _, bail};
use brickfs_common::cluster::admin::Joined;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

/// A token of the playground's own is used at once.
const TOKEN_VALID: Duration = Duration::from_secs(300);
/// How long the nodes may take to reach each other and to vote once they are members.
const HEALTHY_TIMEOUT: Duration = Duration::from_secs(20);
const HEALTHY_POLL: Duration = Duration::from_millis(50);

/// Whether a port of this machine can be listened on.
pub fn require_free_port(port: u16) -> anyhow::Result<()> {
    match TcpListener::bind((LISTEN_ADDRESS, port)) {
        Ok(_) => Ok(()),
        Err(error) => bail!("port {port} of {LISTEN_ADDRESS} cannot be used: {error}; give another --base-port"),
    }
}

/// Makes the directory of a new node and starts its `brickd`, which may not answer yet.
pub fn spawn_new(dir: &Path, record: &mut Playground, index: u16) -> anyhow::Result<Child> {
    record.note_pid(index, 0);
    record.save(dir)?;
    let paths = NodePaths::of(dir, &node_name(index));
    let made = fs::DirBuilder::new().mode(0o700).create(&paths.dir);
    made.with_context(|| format!("cannot make {}", paths.dir.display()))?;
    spawn(dir, record, index)
}

fn spawn(dir: &Path, record: &mut Playground, index: u16) -> anyhow::Result<Child> {
    let name = node_name(index);
    let paths = NodePaths::of(dir, &name);
    let child = process::spawn_brickd(&paths, &name, &listen_options(record.base_port, index))?;
    record.note_pid(index, child.id());
    record.save(dir)?;
    Ok(child)
}

/// Waits until a `brickd` that was started answers.
pub fn wait_until_ready(dir: &Path, index: u16, child: &mut Child) -> anyhow::Result<()> {
    let name = node_name(index);
    process::wait_until_ready(child, &NodePaths::of(dir, &name)).with_context(|| format!("{name} does not start"))
}

/// Lets a new node join, with a token of a node that is a member.
pub fn join(dir: &Path, member: &str, index: u16) -> anyhow::Result<Joined> {
    let name = node_name(index);
    let token = peer::make_token(&NodePaths::of(dir, member).socket, Some(TOKEN_VALID));
    let token = token.with_context(|| format!("{member} gives no token"))?;
    let joined = peer::join(&NodePaths::of(dir, &name).socket, None, token.token);
    joined.with_context(|| format!("{name} does not join"))
}

/// Waits until all reach each other, as a member sees it, and vote that should: members become voters one by one.
pub fn wait_until_healthy(dir: &Path, member: &str) -> anyhow::Result<()> {
    let socket = NodePaths::of(dir, member).socket;
    let mut why = String::new();
    let healthy = wait_for(HEALTHY_TIMEOUT, HEALTHY_POLL, || {
        why = match ask_status(&socket) {
            Ok(report) if report.healthy => return Ok(Some(())),
            Ok(report) => {
                let reason = report.nodes.iter().flat_map(|node| &node.unreachable_from).next();
                reason.map_or("not all of them vote that should".to_owned(), |reason| reason.reason.clone())
            }
            Err(error) => format!("{error:#}"),
        };
        Ok(None)
    })?;
    healthy.with_context(|| {
        format!("the nodes are members, but the cluster is not healthy after {} s: {why}", HEALTHY_TIMEOUT.as_secs())
    })
}

/// Starts a node that is not running.
pub fn start(dir: &Path, index: u16) -> anyhow::Result<u32> {
    let mut record = require_record(dir)?;
    let node = record.node(index)?;
    match record.life_of(dir, node) {
        Life::Gone => (),
        Life::Paused => bail!("{0} is paused: 'brickctl playground resume-node {0}' lets it go on", node.name),
        Life::Running => bail!("{} is running already", node.name),
    }
    let mut child = spawn(dir, &mut record, index)?;
    wait_until_ready(dir, index, &mut child)?;
    Ok(child.id())
}

/// Ends a node at once.
pub fn kill(dir: &Path, index: u16) -> anyhow::Result<()> {
    let record = require_record(dir)?;
    let node = record.node(index)?;
    if record.life_of(dir, node) == Life::Gone {
        bail!("{0} is not running: 'brickctl playground start-node {0}' starts it", node.name);
    }
    process::kill_brickd(node.pid, &NodePaths::of(dir, &node.name).state)
}

/// Stops a node in its tracks.
pub fn pause(dir: &Path, index: u16) -> anyhow::Result<()> {
    let record = require_record(dir)?;
    let node = record.node(index)?;
    match record.life_of(dir, node) {
        Life::Running => process::pause_brickd(node.pid, &NodePaths::of(dir, &node.name).state),
        Life::Paused => bail!("{} is paused already", node.name),
        Life::Gone => bail!("{0} is not running: 'brickctl playground start-node {0}' starts it", node.name),
    }
}

/// Lets a paused node go on.
pub fn resume(dir: &Path, index: u16) -> anyhow::Result<()> {
    let record = require_record(dir)?;
    let node = record.node(index)?;
    match record.life_of(dir, node) {
        Life::Paused => process::resume_brickd(node.pid, &NodePaths::of(dir, &node.name).state),
        Life::Running => bail!("{} is not paused", node.name),
        Life::Gone => bail!("{0} is not running: 'brickctl playground start-node {0}' starts it", node.name),
    }
}

/// Cuts a node off from another or from all others; gives the names that it is cut off from now.
pub fn cut_off(dir: &Path, index: u16, from: Option<u16>, one_way: bool) -> anyhow::Result<Vec<String>> {
    let mut record = require_record(dir)?;
    record.node(index)?;
    if let Some(from) = from {
        record.node(from)?;
        if from == index {
            return Err(UsageError("--from: a node cannot be cut off from itself".to_owned()).into());
        }
    }
    if record.nodes.len() < 2 {
        bail!("there is one node only: it has nobody to be cut off from");
    }
    cut::require_nft()?;
    let cut = Cut { node: index, from, one_way };
    if !record.cuts.contains(&cut) {
        record.cuts.push(cut);
    }
    cut::apply(dir, &record)?;
    record.save(dir)?;
    Ok(cut::cut_from(&record, index))
}

/// Ends all cuts of a node; gives the names of those that are cut off from it by cuts of their own.
pub fn heal(dir: &Path, index: u16) -> anyhow::Result<Vec<String>> {
    let mut record = require_record(dir)?;
    record.node(index)?;
    cut::require_nft()?;
    record.cuts.retain(|cut| cut.node != index && cut.from != Some(index));
    cut::apply(dir, &record)?;
    record.save(dir)?;
    Ok(cut::cut_from(&record, index))
}

/// Starts one more node and lets it join.
pub fn join_new(dir: &Path, wanted: Option<u16>) -> anyhow::Result<Joined> {
    let mut record = require_record(dir)?;
    let (index, port) = choose_new(&record, wanted)?;
    let Some(member) = record.living_node(dir).map(|node| node.name.clone()) else {
        bail!("no node of this playground runs: 'brickctl playground start-node 1' starts one");
    };
    require_free_port(port)?;
    let paths = NodePaths::of(dir, &node_name(index));
    if fs::symlink_metadata(&paths.dir).is_ok() {
        bail!("{} is in the way: remove it", paths.dir.display());
    }
    let was_healthy = ask_status(&NodePaths::of(dir, &member).socket).is_ok_and(|status| status.healthy);
    let joined = build_new(dir, &mut record, &member, index);
    if joined.is_ok() && was_healthy {
        wait_until_healthy(dir, &member)?;
    }
    if joined.is_err() {
        // Out again, so that it can be tried again: what did not join is in nobody's way.
        let undone = remove_new(dir, &mut record, index);
        if let Err(left) = undone {
            eprintln!("brickctl: not everything could be removed again: {left:#}");
        }
    }
    joined
}

fn build_new(dir: &Path, record: &mut Playground, member: &str, index: u16) -> anyhow::Result<Joined> {
    let mut child = spawn_new(dir, record, index)?;
    // Cuts from all others are from this one as well.
    if !record.cuts.is_empty() {
        cut::apply(dir, record)?;
    }
    wait_until_ready(dir, index, &mut child)?;
    join(dir, member, index)
}

fn remove_new(dir: &Path, record: &mut Playground, index: u16) -> anyhow::Result<()> {
    let name = node_name(index);
    let paths = NodePaths::of(dir, &name);
    if let Some(node) = record.nodes.iter().find(|node| node.name == name) {
        process::kill_brickd(node.pid, &paths.state)?;
    }
    if paths.dir.exists() {
        fs::remove_dir_all(&paths.dir)?;
    }
    record.nodes.retain(|node| node.name != name);
    record.save(dir)
}

/// The next free number and its port.
fn choose_new(record: &Playground, wanted: Option<u16>) -> anyhow::Result<(u16, u16)> {
    let taken = record.indexes();
    let Some(index) = (1..=NODES_MAX).find(|index| !taken.contains(index)) else {
        bail!("a playground has at most {NODES_MAX} nodes");
    };
    if let Some(wanted) = wanted.filter(|wanted| *wanted != index) {
        let text = format!("{}: the next new node is {}", node_name(wanted), node_name(index));
        return Err(UsageError(text).into());
    }
    let Some(base_port) = record.base_port else {
        bail!("this playground's node has no port: start one with --base-port, or with more --nodes");
    };
    if u16::MAX - (index - 1) < base_port {
        bail!("there is no port for {} above --base-port {base_port}", node_name(index));
    }
    Ok((index, port_of(base_port, index)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::playground::record::RECORD_VERSION;

    #[test]
    fn a_new_node_gets_the_next_number_and_port() {
        let mut record = Playground {
            version: RECORD_VERSION,
            volume: "demo".to_owned(),
            mount: None,
            is_mount_dir_made: false,
            is_dir_made: false,
            base_port: Some(65533),
            nodes: Vec::new(),
            cuts: Vec::new(),
        };
        for index in 1..=2 {
            record.note_pid(index, 0);
        }
        assert_eq!(choose_new(&record, None).unwrap(), (3, 65535));
        assert_eq!(choose_new(&record, Some(3)).unwrap(), (3, 65535));
        assert!(choose_new(&record, Some(4)).unwrap_err().is::<UsageError>());
        record.note_pid(3, 0);
        assert!(choose_new(&record, None).is_err(), "65536 is no port");
        let alone = Playground { base_port: None, ..record.clone() };
        assert!(choose_new(&alone, None).unwrap_err().to_string().contains("--base-port"));
        (1..=NODES_MAX).for_each(|index| record.note_pid(index, 0));
        assert!(choose_new(&record, None).unwrap_err().to_string().contains("at most 9"));
    }

    #[test]
    fn a_port_in_use_is_named() {
        let taken = TcpListener::bind((LISTEN_ADDRESS, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        assert!(require_free_port(port).unwrap_err().to_string().contains(&port.to_string()));
    }
}
