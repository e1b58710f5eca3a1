//! Watching the nodes of a playground: each asked on its own socket, and waits that end when something was seen.

use super::super::members;
use super::super::record::{NodePaths, Playground};
use super::super::require_record;
use super::super::wait::wait_for;
use crate::cmd::peer;
use crate::members::{ask_each, ask_status};
use crate::raft_table::describe_raft;
use anyhow::{Context as _, bail};
use brickfs_common::cluster::report::{RaftMemberReport, RaftReport, RaftRole, Unreachable};
use std::path::{Path, PathBuf};
use std::time::Duration;

const LOOK_EVERY: Duration = Duration::from_millis(20);
/// A token that nobody uses is a command without consequences.
const TOKEN_VALID: Duration = Duration::from_secs(60);

/// Who looks at the nodes of a playground.
pub struct Observer {
    pub dir: PathBuf,
}

/// A leader, and those who vote and follow it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reign {
    pub leader: String,
    pub term: u64,
    pub followers: Vec<String>,
}

impl Observer {
    pub fn new(dir: &Path) -> Observer {
        Observer { dir: dir.to_owned() }
    }

    pub fn record(&self) -> anyhow::Result<Playground> {
        require_record(&self.dir)
    }

    /// The number of a node.
    pub fn index_of(&self, name: &str) -> anyhow::Result<u16> {
        match self.record()?.nodes.iter().find(|node| node.name == name) {
            Some(node) => node.index(),
            None => bail!("there is no {name} in this playground"),
        }
    }

    /// Each node's own row.
    pub fn look(&self) -> anyhow::Result<RaftReport> {
        ask_each(&members(&self.dir)?)
    }

    /// Looks until `seen` finds something; after `within` it fails, with the last table.
    pub fn wait_for<T>(
        &self,
        what: &str,
        within: Duration,
        mut seen: impl FnMut(&RaftReport) -> Option<T>,
    ) -> anyhow::Result<T> {
        let mut last = None;
        let found = wait_for(within, LOOK_EVERY, || {
            let report = self.look()?;
            let found = seen(&report);
            last = Some(report);
            Ok(found)
        })?;
        found.with_context(|| {
            let rows = last.map_or_else(String::new, |report| describe_raft(&report));
            let rows = rows.lines().skip(1).collect::<Vec<_>>().join("; ");
            format!("{what}: not seen within {} s, the nodes say: {rows}", within.as_secs())
        })
    }

    /// Gives a node a command and waits for its answer.
    pub fn give_command(&self, name: &str) -> anyhow::Result<()> {
        give_command(&self.socket(name))
    }

    pub fn socket(&self, name: &str) -> PathBuf {
        NodePaths::of(&self.dir, name).socket
    }

    /// What `asked` says of not reaching `lost`, once it says so.
    pub fn wait_for_complaint(&self, asked: &str, lost: &str, within: Duration) -> anyhow::Result<Unreachable> {
        let complaint = wait_for(within, LOOK_EVERY, || {
            let status = ask_status(&self.socket(asked)).ok();
            let node = status.as_ref().and_then(|status| status.nodes.iter().find(|node| node.name == lost));
            Ok(node.and_then(|node| node.unreachable_from.iter().find(|said| said.from == asked)).cloned())
        })?;
        complaint
            .with_context(|| format!("{asked} does not say within {} s that it cannot reach {lost}", within.as_secs()))
    }
}

/// The harmless command of the play.
pub fn give_command(socket: &Path) -> anyhow::Result<()> {
    peer::make_token(socket, Some(TOKEN_VALID)).map(|_| ())
}

/// A node's own row.
pub fn row<'a>(report: &'a RaftReport, name: &str) -> Option<&'a RaftMemberReport> {
    report.nodes.iter().find(|node| node.name == name).and_then(|node| node.raft.as_ref())
}

/// One leader above `above_term` that `among` agree on: all of them have its term and name it, and at least two of them
/// vote for whoever they want and follow it now. Others are not looked at.
pub fn find_reign(
    report: &RaftReport,
    among: &[String],
    followers_min: usize,
    above_term: Option<u64>,
) -> Option<Reign> {
    let rows: Vec<_> = among.iter().map(|name| row(report, name).map(|raft| (name, raft))).collect::<Option<_>>()?;
    let (leader, led) = rows.iter().find(|(_, raft)| raft.role == RaftRole::Leader)?;
    let agree = rows.iter().all(|(_, raft)| raft.term == led.term && raft.leader.as_ref() == Some(leader));
    let is_follower = |raft: &RaftMemberReport| raft.role == RaftRole::Follower;
    let followers: Vec<String> =
        rows.iter().filter(|(_, raft)| is_follower(raft)).map(|(name, _)| (*name).clone()).collect();
    let is_new = above_term.is_none_or(|above| led.term > above);
    (agree && is_new && followers.len() >= followers_min).then(|| Reign {
        leader: (*leader).clone(),
        term: led.term,
        followers,
    })
}

/// Whether a node has the leader's log, committed and applied, and follows it.
pub fn has_caught_up(report: &RaftReport, name: &str, leader: &str) -> bool {
    let (Some(own), Some(led)) = (row(report, name), row(report, leader)) else { return false };
    let last = |raft: &RaftMemberReport| (raft.last_log, raft.last_log_term, raft.term, raft.applied);
    own.role != RaftRole::Leader
        && own.leader.as_deref() == Some(leader)
        && led.role == RaftRole::Leader
        && last(own) == last(led)
        && led.applied == led.last_log
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft_table::samples::{follower, leader, node};

    fn names() -> Vec<String> {
        ["node-1", "node-2", "node-3"].map(str::to_owned).to_vec()
    }

    #[test]
    fn a_reign_is_what_all_agree_on() {
        let nodes = vec![
            node("node-1", leader(2, "node-1")),
            node("node-2", follower(2, "node-1")),
            node("node-3", follower(2, "node-1")),
        ];
        let mut report = RaftReport { nodes };
        let reign = find_reign(&report, &names(), 2, None).unwrap();
        assert_eq!((reign.leader.as_str(), reign.term), ("node-1", 2));
        assert_eq!(reign.followers, ["node-2", "node-3"]);
        assert_eq!(find_reign(&report, &names(), 2, Some(2)), None, "not a new one");
        report.nodes[2] = node("node-3", follower(3, "node-1"));
        assert_eq!(find_reign(&report, &names(), 2, None), None, "another term");
        assert!(find_reign(&report, &names()[..2], 1, None).is_some(), "of two of them");
        report.nodes[2].raft = None;
        assert_eq!(find_reign(&report, &names(), 2, None), None, "one is silent");
    }

    #[test]
    fn a_node_has_caught_up_when_its_log_ends_as_the_leaders_and_is_applied() {
        let done = |raft: RaftMemberReport| RaftMemberReport { committed: Some(12), applied: Some(12), ..raft };
        let led = node("node-1", done(leader(3, "node-1")));
        let report = |raft: RaftMemberReport| RaftReport { nodes: vec![led.clone(), node("node-2", raft)] };
        assert!(has_caught_up(&report(done(follower(3, "node-1"))), "node-2", "node-1"));
        let replaced_not_yet = RaftMemberReport { last_log_term: Some(2), ..done(follower(3, "node-1")) };
        assert!(!has_caught_up(&report(replaced_not_yet), "node-2", "node-1"));
        assert!(!has_caught_up(&report(follower(3, "node-1")), "node-2", "node-1"), "not applied");
    }
}
