//! Asking nodes how they stand in Raft, each on its own socket for its own row: so a node that is dead, paused or cut
//! off is seen as it is, not as others take it to be.

use crate::admin::{ask_once, unexpected};
use brickfs_common::cluster::admin::{AdminCall, AdminResult};
use brickfs_common::cluster::report::{ClusterReport, RaftNode, RaftReport, RaftRole};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::task::JoinSet;

/// How long a node may take. It asks the others itself, and those that are cut off cost it a while.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);

/// A node to ask.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Where it listens; none if it is known to be dead or paused.
    pub socket: Option<PathBuf>,
}

/// What each node says of itself, in the order given. One that does not answer has a row without figures.
pub fn ask_each(members: &[Member]) -> anyhow::Result<RaftReport> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut asked = JoinSet::new();
        for (index, member) in members.iter().enumerate() {
            let Some(socket) = member.socket.clone() else { continue };
            let name = member.name.clone();
            asked.spawn(async move { (index, own_answer(&socket, &name).await) });
        }
        let mut answers: Vec<Option<Answer>> = members.iter().map(|_| None).collect();
        while let Some(done) = asked.join_next().await {
            let (index, answer) = done?;
            answers[index] = answer;
        }
        Ok(merge(members, &answers))
    })
}

/// What one node says of all.
pub fn ask_one(socket: &Path) -> anyhow::Result<RaftReport> {
    match ask(socket, &AdminCall::ClusterRaft {})? {
        AdminResult::Raft(report) => Ok(report),
        other => Err(unexpected(&other)),
    }
}

/// How one node sees the cluster.
pub fn ask_status(socket: &Path) -> anyhow::Result<ClusterReport> {
    match ask(socket, &AdminCall::ClusterStatus {})? {
        AdminResult::Cluster(report) => Ok(report),
        other => Err(unexpected(&other)),
    }
}

fn ask(socket: &Path, call: &AdminCall) -> anyhow::Result<AdminResult> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(ask_once(socket, call, ASK_TIMEOUT))
}

/// What a node says of itself, and of the others.
struct Answer {
    own: RaftNode,
    all: RaftReport,
}

async fn own_answer(socket: &Path, name: &str) -> Option<Answer> {
    // One that does not answer is shown as such; the reason is seen by whoever asks it alone.
    let Ok(AdminResult::Raft(all)) = ask_once(socket, &AdminCall::ClusterRaft {}, ASK_TIMEOUT).await else {
        return None;
    };
    let own = all.nodes.iter().find(|node| node.name == name)?.clone();
    Some(Answer { own, all })
}

/// Each node's own row; what lags is known by the leader, of the highest term if several take themselves for it.
fn merge(members: &[Member], answers: &[Option<Answer>]) -> RaftReport {
    let term_led = |answer: &Answer| {
        let raft = answer.own.raft.as_ref();
        raft.filter(|raft| raft.role == RaftRole::Leader && raft.leader.is_some()).map(|raft| raft.term)
    };
    let leader =
        answers.iter().flatten().filter(|answer| term_led(answer).is_some()).max_by_key(|answer| term_led(answer));
    let lag_of = |name: &str| {
        let row = leader.and_then(|leader| leader.all.nodes.iter().find(|node| node.name == name));
        row.and_then(|row| row.lag)
    };
    let row = |(member, answer): (&Member, &Option<Answer>)| RaftNode {
        name: member.name.clone(),
        raft: answer.as_ref().and_then(|answer| answer.own.raft.clone()),
        lag: lag_of(&member.name),
    };
    RaftReport { nodes: members.iter().zip(answers).map(row).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft_table::samples::{leader, node};

    #[test]
    fn rows_are_their_owners_and_lags_the_newest_leaders() {
        let names = ["node-1", "node-2", "node-3"];
        let members = names.map(|name| Member { name: name.to_owned(), socket: None });
        let all = |lag: u64| RaftReport {
            nodes: names.map(|name| RaftNode { name: name.to_owned(), raft: None, lag: Some(lag) }).to_vec(),
        };
        let stale = Answer { own: node("node-1", leader(3, "node-1")), all: all(7) };
        let newest = Answer { own: node("node-2", leader(4, "node-2")), all: all(2) };
        let report = merge(&members, &[Some(stale), Some(newest), None]);
        assert_eq!(report.nodes[0].raft.as_ref().map(|raft| raft.term), Some(3));
        assert_eq!(report.nodes[2], RaftNode { name: "node-3".to_owned(), raft: None, lag: Some(2) });
    }
}
