//! `brickctl playground status`: each node as its process and its cuts are, the volume and the mount.

use super::process::Life;
use super::record::{NodePaths, Playground, PlaygroundNode};
use super::{cut, mounts, require_record};
use crate::args::{Format, Global};
use crate::output::{print_json, write_out};
use std::path::Path;

pub fn status(global: &Global, dir: &Path) -> anyhow::Result<()> {
    let record = require_record(dir)?;
    let mounted = record.mount.as_deref().is_some_and(mounts::is_brickfs_mount);
    if global.output == Format::Json {
        let nodes: Vec<_> = record.nodes.iter().map(|node| json_of(dir, &record, node)).collect();
        let shown = serde_json::json!({
            "dir": dir, "volume": record.volume, "mount": record.mount, "mounted": mounted, "nodes": nodes,
        });
        return print_json(&shown);
    }
    let mut text = format!("Playground in {}\n", dir.display());
    for node in &record.nodes {
        let state = describe(record.life_of(dir, node), node.pid, &cuts_of(&record, node));
        text.push_str(&format!("  {}: {state}, log {}\n", node.name, NodePaths::of(dir, &node.name).log.display()));
    }
    let mount = record.mount.as_ref().map_or("not asked for".to_owned(), |mount| {
        format!("{} ({})", mount.display(), if mounted { "mounted" } else { "not mounted" })
    });
    text.push_str(&format!("  volume: {}\n  mount: {mount}\n", record.volume));
    write_out(&text)
}

fn json_of(dir: &Path, record: &Playground, node: &PlaygroundNode) -> serde_json::Value {
    let life = record.life_of(dir, node);
    let running = life != Life::Gone;
    serde_json::json!({
        "name": node.name, "pid": running.then_some(node.pid), "running": running, "state": word(life),
        "cut_from": cuts_of(record, node), "socket": NodePaths::of(dir, &node.name).socket,
    })
}

fn cuts_of(record: &Playground, node: &PlaygroundNode) -> Vec<String> {
    node.index().map_or_else(|_| Vec::new(), |index| cut::cut_from(record, index))
}

fn word(life: Life) -> &'static str {
    match life {
        Life::Running => "running",
        Life::Paused => "paused",
        Life::Gone => "not running",
    }
}

fn describe(life: Life, pid: u32, cut_from: &[String]) -> String {
    let mut text = word(life).to_owned();
    if life != Life::Gone {
        text.push_str(&format!(", pid {pid}"));
    }
    if !cut_from.is_empty() {
        text.push_str(&format!(", cut off from {}", cut_from.join(" and ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_runs_is_paused_cut_or_gone() {
        assert_eq!(describe(Life::Running, 7, &[]), "running, pid 7");
        assert_eq!(describe(Life::Gone, 7, &[]), "not running");
        let others = ["node-1", "node-3"].map(str::to_owned);
        assert_eq!(describe(Life::Paused, 7, &others), "paused, pid 7, cut off from node-1 and node-3");
    }
}
