//! `brickctl cluster`: how the nodes are and how they agree.

use crate::admin::{call, unexpected};
use crate::args::{ClusterCommand, Format, Global};
use crate::cmd::backup::{Order, backup, restore};
use crate::output::{print_json, table, write_out, write_to_reader};
use crate::raft_table::{describe_changes, describe_raft};
use crate::{Outcome, members, playground};
use brickfs_common::cluster::admin::{AdminCall, AdminResult};
use brickfs_common::cluster::report::{ClusterReport, RaftReport};
use brickfs_common::cluster::state::NodeRole;
use std::time::Duration;

/// How often `cluster raft --watch` looks: an election is shown while it goes on.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);

/// Runs a command of the group.
pub fn run(global: &Global, command: &ClusterCommand) -> anyhow::Result<Outcome> {
    match command {
        ClusterCommand::Status { check } => {
            let report = match call(&playground::socket_of(global)?, &AdminCall::ClusterStatus {})? {
                AdminResult::Cluster(report) => report,
                other => return Err(unexpected(&other)),
            };
            match global.output {
                Format::Json => print_json(&report)?,
                Format::Text => write_out(&describe_cluster(&report))?,
            }
            Ok(if *check && !report.healthy { Outcome::Degraded } else { Outcome::Fine })
        }
        ClusterCommand::Raft { watch: false } => {
            match call(&playground::socket_of(global)?, &AdminCall::ClusterRaft {})? {
                AdminResult::Raft(report) => print_raft(global, &report).map(|()| Outcome::Fine),
                other => Err(unexpected(&other)),
            }
        }
        ClusterCommand::Raft { watch: true } => watch_raft(global),
        ClusterCommand::Backup { file, passphrase_file } => backup(global, file, passphrase_file.as_deref()),
        ClusterCommand::Restore { file, passphrase_file, as_node, new_authority } => {
            let (passphrase_file, as_node) = (passphrase_file.as_deref(), as_node.as_deref());
            restore(global, &Order { file, passphrase_file, as_node, new_authority: *new_authority })
        }
    }
}

/// Prints whenever something has changed, until interrupted or nobody reads it. With a playground each of its nodes is asked, so that
/// one which dies does not end the watch.
fn watch_raft(global: &Global) -> anyhow::Result<Outcome> {
    let mut last: Option<RaftReport> = None;
    let mut is_silent = false;
    let dir = playground::dir_of(global)?;
    loop {
        let answer = match &dir {
            Some(dir) => match members::ask_each(&playground::members(dir)?)? {
                report if report.nodes.iter().any(|node| node.raft.is_some()) => Ok(report),
                _ => Err(anyhow::anyhow!("no node of the playground answers")),
            },
            None => members::ask_one(&playground::socket_of(global)?),
        };
        match answer {
            Ok(report) => {
                if last.as_ref() != Some(&report) {
                    if !write_to_reader(&change_text(global, last.as_ref(), &report)?)? {
                        return Ok(Outcome::Fine);
                    }
                    last = Some(report);
                }
                is_silent = false;
            }
            // Nothing to watch from the beginning.
            Err(error) if last.is_none() => return Err(error),
            Err(error) if !is_silent => {
                eprintln!("brickctl: {error:#}; waiting for it");
                is_silent = true;
            }
            Err(_) => (),
        }
        std::thread::sleep(WATCH_INTERVAL);
    }
}

fn change_text(global: &Global, last: Option<&RaftReport>, report: &RaftReport) -> anyhow::Result<String> {
    if global.output == Format::Json {
        return Ok(format!("{}\n", serde_json::to_string_pretty(report)?));
    }
    let Some(last) = last else { return Ok(describe_raft(report)) };
    let lines: Vec<String> = describe_changes(last, report).iter().map(|line| format!("{line}\n")).collect();
    Ok(format!("\n{}{}", lines.concat(), describe_raft(report)))
}

fn print_raft(global: &Global, report: &RaftReport) -> anyhow::Result<()> {
    match global.output {
        Format::Json => print_json(report),
        Format::Text => write_out(&describe_raft(report)),
    }
}

fn describe_cluster(report: &ClusterReport) -> String {
    let health = if report.healthy { "healthy" } else { "not healthy" };
    let leader = report.leader.as_deref().unwrap_or("nobody");
    let mut text = format!("Cluster {}: {health}, {leader} leads\n", report.cluster);
    let mut rows = vec![["NODE", "ROLE", "ADDRESSES", "VOTES", "REACHABLE", "VERSION"].map(str::to_owned).to_vec()];
    let yes_no = |is: bool| if is { "yes" } else { "no" }.to_owned();
    for node in &report.nodes {
        let addresses = if node.addresses.is_empty() { "-".to_owned() } else { node.addresses.join(", ") };
        let version = node.version.clone().unwrap_or_else(|| "-".to_owned());
        let (votes, reachable) = (yes_no(node.is_voter), yes_no(node.is_reachable));
        rows.push(vec![node.name.clone(), role_name(node.role).to_owned(), addresses, votes, reachable, version]);
    }
    text.push_str(&table(&rows));
    for node in &report.nodes {
        for unreachable in &node.unreachable_from {
            let since = match unreachable.for_ms {
                Some(ms) => format!("for {:.1} s", ms as f64 / 1000.0),
                None => "since its start".to_owned(),
            };
            let (from, reason) = (&unreachable.from, &unreachable.reason);
            text.push_str(&format!("{from} does not reach {}, {since}: {reason}\n", node.name));
        }
    }
    text
}

/// The word for what a node is for.
pub fn role_name(role: NodeRole) -> &'static str {
    match role {
        NodeRole::Server => "server",
        NodeRole::Witness => "witness",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use brickfs_common::cluster::report::{NodeReport, Unreachable};
    use brickfs_common::ids::{ClusterId, NodeId};

    #[test]
    fn tables_show_who_leads_and_who_is_missing() {
        let node = |name: &str, is_reachable: bool| NodeReport {
            name: name.to_owned(),
            id: NodeId([1; 16]),
            role: NodeRole::Server,
            addresses: vec!["127.0.0.1:10000".to_owned()],
            is_voter: true,
            is_reachable,
            unreachable_from: match is_reachable {
                true => Vec::new(),
                false => vec![Unreachable { from: "node-1".into(), for_ms: Some(1250), reason: "refused".into() }],
            },
            version: is_reachable.then(|| "0.1.0".to_owned()),
            certificate_ends_ms: None,
        };
        let report = ClusterReport {
            cluster: ClusterId([2; 16]),
            version: 1,
            answered_by: "node-1".to_owned(),
            leader: None,
            healthy: false,
            nodes: vec![node("node-1", true), node("node-2", false)],
        };
        let text = describe_cluster(&report);
        assert!(
            text.starts_with("Cluster 02020202-0202-0202-0202-020202020202: not healthy, nobody leads\n"),
            "{text}"
        );
        assert!(text.contains("node-2  server  127.0.0.1:10000  yes    no         -\n"), "{text}");
        assert!(text.ends_with("node-1 does not reach node-2, for 1.2 s: refused\n"), "{text}");
    }
}
