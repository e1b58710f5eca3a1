//! `brickctl cluster`: how the nodes are and how they agree.

use crate::admin::{call, unexpected};
use crate::args::{ClusterCommand, Format, Global};
use crate::output::{print_json, table, write_out};
use crate::{Outcome, playground};
use brickfs_common::cluster::admin::{AdminCall, AdminResult};
use brickfs_common::cluster::report::{ClusterReport, RaftNode, RaftReport};
use brickfs_common::cluster::state::NodeRole;
use std::path::Path;
use std::time::Duration;

/// How often `cluster raft --watch` looks.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);

/// Runs a command of the group.
pub fn run(global: &Global, command: &ClusterCommand) -> anyhow::Result<Outcome> {
    let socket = playground::socket_of(global)?;
    match command {
        ClusterCommand::Status { check } => {
            let report = match call(&socket, &AdminCall::ClusterStatus {})? {
                AdminResult::Cluster(report) => report,
                other => return Err(unexpected(&other)),
            };
            match global.output {
                Format::Json => print_json(&report)?,
                Format::Text => write_out(&describe_cluster(&report))?,
            }
            Ok(if *check && !report.healthy { Outcome::Degraded } else { Outcome::Fine })
        }
        ClusterCommand::Raft { watch: false } => print_raft(global, &raft_of(&socket)?).map(|()| Outcome::Fine),
        ClusterCommand::Raft { watch: true } => watch_raft(global, &socket),
    }
}

fn raft_of(socket: &Path) -> anyhow::Result<RaftReport> {
    match call(socket, &AdminCall::ClusterRaft {})? {
        AdminResult::Raft(report) => Ok(report),
        other => Err(unexpected(&other)),
    }
}

/// Prints whenever something has changed.
fn watch_raft(global: &Global, socket: &Path) -> anyhow::Result<Outcome> {
    let mut last = None;
    loop {
        let report = raft_of(socket)?;
        if last.as_ref() != Some(&report) {
            print_raft(global, &report)?;
            last = Some(report);
        }
        std::thread::sleep(WATCH_INTERVAL);
    }
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

fn describe_raft(report: &RaftReport) -> String {
    let heading = ["NODE", "ROLE", "TERM", "VOTE", "LEADER", "LAST LOG", "COMMITTED", "APPLIED", "SNAPSHOT", "LAG"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(report.nodes.iter().map(raft_row));
    table(&rows)
}

fn raft_row(node: &RaftNode) -> Vec<String> {
    let name = |name: &Option<String>| name.clone().unwrap_or_else(|| "-".to_owned());
    let figure = |figure: Option<u64>| figure.map_or_else(|| "-".to_owned(), |figure| figure.to_string());
    let Some(raft) = &node.raft else {
        return [node.name.as_str(), "no answer"].map(str::to_owned).to_vec();
    };
    let mut row = vec![node.name.clone(), raft.role.name().to_owned(), raft.term.to_string()];
    row.extend([name(&raft.voted_for), name(&raft.leader)]);
    row.extend([raft.last_log, raft.committed, raft.applied, raft.snapshot, node.lag].map(figure));
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use brickfs_common::cluster::report::{NodeReport, RaftMemberReport, RaftRole, Unreachable};
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

    #[test]
    fn raft_is_a_line_for_each_node() {
        let raft = RaftMemberReport {
            role: RaftRole::Leader,
            term: 3,
            voted_for: Some("node-1".to_owned()),
            leader: Some("node-1".to_owned()),
            last_log: Some(12),
            last_log_term: Some(3),
            committed: Some(11),
            applied: Some(11),
            snapshot: None,
            commands: 5,
            fault: None,
        };
        let nodes = vec![
            RaftNode { name: "node-1".to_owned(), raft: Some(raft), lag: None },
            RaftNode { name: "node-2".to_owned(), raft: None, lag: Some(2) },
        ];
        let text = describe_raft(&RaftReport { nodes });
        assert_eq!(text.lines().count(), 3);
        let words: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(words, ["node-1", "leader", "3", "node-1", "node-1", "12", "11", "11", "-", "-"]);
        assert_eq!(text.lines().nth(2), Some("node-2  no answer"));
    }
}
