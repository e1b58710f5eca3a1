//! How Raft is shown: a table with a line for each node, and in words what changed between two of them.

use crate::output::table;
use brickfs_common::cluster::report::{RaftMemberReport, RaftNode, RaftReport, RaftRole};

/// The table of `cluster raft`. LAST LOG is an entry's index, and after `@` the term it was made in.
pub fn describe_raft(report: &RaftReport) -> String {
    let heading = ["NODE", "ROLE", "TERM", "VOTE", "LEADER", "LAST LOG", "COMMITTED", "APPLIED", "SNAPSHOT", "LAG"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(report.nodes.iter().map(raft_row));
    let mut text = table(&rows);
    for node in &report.nodes {
        if let Some(fault) = node.raft.as_ref().and_then(|raft| raft.fault.as_ref()) {
            text.push_str(&format!("{}: its Raft member has ended: {fault}\n", node.name));
        }
    }
    text
}

fn raft_row(node: &RaftNode) -> Vec<String> {
    let name = |name: &Option<String>| name.clone().unwrap_or_else(|| "-".to_owned());
    let figure = |figure: Option<u64>| figure.map_or_else(|| "-".to_owned(), |figure| figure.to_string());
    let Some(raft) = &node.raft else {
        return [node.name.as_str(), "no answer"].map(str::to_owned).to_vec();
    };
    let mut row = vec![node.name.clone(), raft.role.name().to_owned(), raft.term.to_string()];
    row.extend([name(&raft.voted_for), name(&raft.leader), last_log(raft)]);
    row.extend([raft.committed, raft.applied, raft.snapshot, node.lag].map(figure));
    row
}

/// The last entry of a log: `12@3` is index 12, term 3.
pub fn last_log(raft: &RaftMemberReport) -> String {
    match (raft.last_log, raft.last_log_term) {
        (Some(index), Some(term)) => format!("{index}@{term}"),
        (Some(index), None) => index.to_string(),
        (None, _) => "-".to_owned(),
    }
}

/// What happened between two looks, a line each: who went and came back, who stands for election, who leads. Growing
/// logs are left to the table.
pub fn describe_changes(old: &RaftReport, new: &RaftReport) -> Vec<String> {
    let mut lines = Vec::new();
    for node in &new.nodes {
        let before = old.nodes.iter().find(|before| before.name == node.name);
        match (before.map(|before| before.raft.as_ref()), node.raft.as_ref()) {
            (None, _) => lines.push(format!("{} is new", node.name)),
            (Some(None), Some(_)) => lines.push(format!("{} answers again", node.name)),
            (Some(Some(_)), None) => lines.push(format!("{} does not answer", node.name)),
            (Some(Some(before)), Some(now)) => lines.extend(describe_change(&node.name, before, now)),
            (Some(None), None) => (),
        }
    }
    let is_gone = |node: &&RaftNode| !new.nodes.iter().any(|now| now.name == node.name);
    lines.extend(old.nodes.iter().filter(is_gone).map(|node| format!("{} is gone", node.name)));
    lines
}

fn describe_change(name: &str, before: &RaftMemberReport, now: &RaftMemberReport) -> Option<String> {
    let term = now.term;
    if (before.role, before.term) != (now.role, term) {
        return match now.role {
            RaftRole::Candidate => Some(format!("{name} asks for votes in term {term}")),
            RaftRole::Leader => Some(format!("{name} leads in term {term}")),
            RaftRole::Stopped => Some(format!("the Raft member of {name} has ended")),
            RaftRole::Learner if before.role != now.role => Some(format!("{name} has no vote now")),
            RaftRole::Follower if before.role == RaftRole::Leader => Some(format!("{name} leads no longer")),
            RaftRole::Follower if before.role == RaftRole::Learner => Some(format!("{name} has a vote now")),
            RaftRole::Follower | RaftRole::Learner => now.voted_for.as_ref().map_or_else(
                || Some(format!("{name} is in term {term}")),
                |vote| Some(format!("{name} votes for {vote} in term {term}")),
            ),
        };
    }
    match (&before.leader, &now.leader) {
        (before, Some(leader)) if before.as_ref() != Some(leader) => Some(format!("{name} follows {leader}")),
        (Some(leader), None) if leader == name => Some(format!("{name} is not answered by a majority")),
        (Some(leader), None) => Some(format!("{name} knows no leader, it was {leader}")),
        _ => None,
    }
}

#[cfg(test)]
pub mod samples {
    //! Reports for tests.

    use super::{RaftMemberReport, RaftNode, RaftRole};

    pub fn leader(term: u64, name: &str) -> RaftMemberReport {
        RaftMemberReport {
            role: RaftRole::Leader,
            term,
            voted_for: Some(name.to_owned()),
            leader: Some(name.to_owned()),
            last_log: Some(12),
            last_log_term: Some(term),
            committed: Some(11),
            applied: Some(11),
            snapshot: None,
            commands: 5,
            fault: None,
        }
    }

    pub fn follower(term: u64, leader_name: &str) -> RaftMemberReport {
        RaftMemberReport { role: RaftRole::Follower, ..leader(term, leader_name) }
    }

    pub fn node(name: &str, raft: RaftMemberReport) -> RaftNode {
        RaftNode { name: name.to_owned(), raft: Some(raft), lag: None }
    }
}

#[cfg(test)]
mod tests {
    use super::samples::{follower, leader, node};
    use super::*;

    #[test]
    fn raft_is_a_line_for_each_node() {
        let gone = RaftNode { name: "node-2".to_owned(), raft: None, lag: Some(2) };
        let text = describe_raft(&RaftReport { nodes: vec![node("node-1", leader(3, "node-1")), gone] });
        assert_eq!(text.lines().count(), 3);
        let words: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(words, ["node-1", "leader", "3", "node-1", "node-1", "12@3", "11", "11", "-", "-"]);
        assert_eq!(text.lines().nth(2), Some("node-2  no answer"));
    }

    #[test]
    fn why_a_member_ended_is_said_below_the_table() {
        let ended =
            RaftMemberReport { role: RaftRole::Stopped, fault: Some("disk full".to_owned()), ..follower(2, "node-2") };
        let text = describe_raft(&RaftReport { nodes: vec![node("node-1", ended)] });
        assert!(text.ends_with("node-1: its Raft member has ended: disk full\n"), "{text}");
    }

    #[test]
    fn an_election_is_told_as_it_happens() {
        let gone = |name: &str| RaftNode { name: name.to_owned(), raft: None, lag: None };
        let candidate = RaftMemberReport { role: RaftRole::Candidate, leader: None, ..leader(2, "node-2") };
        let voter = RaftMemberReport { leader: None, voted_for: Some("node-2".to_owned()), ..follower(2, "node-2") };
        let looks = [
            vec![
                node("node-1", leader(1, "node-1")),
                node("node-2", follower(1, "node-1")),
                node("node-3", follower(1, "node-1")),
            ],
            vec![gone("node-1"), node("node-2", follower(1, "node-1")), node("node-3", follower(1, "node-1"))],
            vec![gone("node-1"), node("node-2", candidate), node("node-3", follower(1, "node-1"))],
            vec![gone("node-1"), node("node-2", leader(2, "node-2")), node("node-3", voter)],
            vec![
                node("node-1", follower(2, "node-2")),
                node("node-2", leader(2, "node-2")),
                node("node-3", follower(2, "node-2")),
            ],
        ];
        let looks = looks.map(|nodes| RaftReport { nodes });
        let told: Vec<String> = looks.windows(2).flat_map(|pair| describe_changes(&pair[0], &pair[1])).collect();
        let expected = [
            "node-1 does not answer",
            "node-2 asks for votes in term 2",
            "node-2 leads in term 2",
            "node-3 votes for node-2 in term 2",
            "node-1 answers again",
            "node-3 follows node-2",
        ];
        assert_eq!(told, expected);
        assert!(describe_changes(&looks[4], &looks[4]).is_empty());
        let cut = RaftMemberReport { leader: None, ..leader(2, "node-2") };
        let cut = RaftReport { nodes: vec![node("node-2", cut)] };
        let lines = describe_changes(&looks[4], &cut);
        assert_eq!(lines, ["node-2 is not answered by a majority", "node-1 is gone", "node-3 is gone"]);
    }
}
