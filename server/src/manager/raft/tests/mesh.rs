//! Members in one process, each on a manager thread and a disk directory of its own, with links between
//! them that can be cut.

use crate::manager::cluster_db::ClusterDb;
use crate::manager::raft::{
    LinkError, ManagerThread, Outcome, PeerLink, Proposal, ProposeError, RaftCall, RaftMember, RaftStatus, Role, Timing,
};
use brickfs_common::cluster::command::Command;
use brickfs_common::cluster::state::ClusterState;
use brickfs_common::ids::{ClusterId, NodeId};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Far above what anything here takes, so that only a fault meets it.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Short times, and snapshots after few entries.
pub const TIMING: Timing =
    Timing { heartbeat_ms: 60, election_min_ms: 200, election_max_ms: 400, snapshot_entries: 20, kept_entries: 5 };

pub fn node(number: u64) -> NodeId {
    NodeId::from(number)
}

pub fn soon() -> Instant {
    Instant::now() + PATIENCE
}

/// Renames node 1, which every first state has: a command that is done whenever it is repeated.
pub fn rename(id: u128, name: &str) -> Proposal {
    let command = Command::RenameNode { node: node(1), name: name.to_owned() };
    Proposal { id: id.to_be_bytes(), command, time_ms: 0 }
}

pub fn first_state() -> ClusterState {
    ClusterState::of_one_node(ClusterId([9; 16]), node(1), "first")
}

/// The name that the last `rename` gave.
pub fn name_in(member: &RaftMember) -> String {
    member.state().map_or_else(String::new, |state| state.nodes[&node(1)].name.clone())
}

#[derive(Default)]
struct Net {
    members: BTreeMap<NodeId, RaftMember>,
    cut_off: BTreeSet<NodeId>,
    /// How many bytes of snapshots each node was sent.
    snapshot_bytes: BTreeMap<NodeId, usize>,
}

/// One node's side of the links.
struct Link {
    from: NodeId,
    net: Arc<Mutex<Net>>,
}

impl Link {
    fn target(&self, to: NodeId) -> Result<RaftMember, LinkError> {
        let net = self.net.lock().unwrap();
        let reached = net.members.get(&to).filter(|_| !net.cut_off.contains(&to) && !net.cut_off.contains(&self.from));
        reached.cloned().ok_or(LinkError::Unreachable(to))
    }
}

#[tonic::async_trait]
impl PeerLink for Link {
    async fn call(&self, to: NodeId, call: RaftCall, body: Bytes, timeout: Duration) -> Result<Bytes, LinkError> {
        let member = self.target(to)?;
        if call == RaftCall::Snapshot {
            *self.net.lock().unwrap().snapshot_bytes.entry(to).or_default() += body.len();
        }
        let reply = tokio::time::timeout(timeout, member.receive(call, body)).await;
        // A cut loses the replies under way as well.
        self.target(to)?;
        let reply = reply.map_err(|_| LinkError::Timeout(to))?;
        reply.map_err(|error| LinkError::Broken(to, error.to_string()))
    }
}

/// One running node. Dropping it ends everything it runs without a word to the member: what is on the disk
/// then is what a restart finds.
pub struct Node {
    pub member: RaftMember,
    // Declared after the member: the thread ends last.
    _thread: ManagerThread,
}

/// Opens the member in a directory.
pub fn open_member(dir: &Path, id: NodeId, link: Arc<dyn PeerLink>, timing: Timing) -> anyhow::Result<Node> {
    let thread = ManagerThread::start("manager")?;
    let dir = dir.to_owned();
    let opened = thread.block_on(async move {
        let db = ClusterDb::open(&dir.join("cluster.sled"))?;
        RaftMember::open(&db, id, dir.join("cluster.json"), link, timing).await
    });
    let member = opened.expect("opening does not panic")?;
    Ok(Node { member, _thread: thread })
}

/// A link to nowhere, for members that are alone.
pub struct NoLink;

#[tonic::async_trait]
impl PeerLink for NoLink {
    async fn call(&self, to: NodeId, _: RaftCall, _: Bytes, _: Duration) -> Result<Bytes, LinkError> {
        Err(LinkError::Unreachable(to))
    }
}

/// The nodes 1..=n.
pub struct Mesh {
    dirs: BTreeMap<NodeId, TempDir>,
    nodes: BTreeMap<NodeId, Node>,
    net: Arc<Mutex<Net>>,
    next_id: u128,
}

impl Mesh {
    /// Node 1 founds a cluster; the others are added and, if `all_vote`, made voters.
    pub async fn new(count: u64, all_vote: bool) -> Mesh {
        let mut mesh = Mesh { dirs: BTreeMap::new(), nodes: BTreeMap::new(), net: Arc::default(), next_id: 1_000_000 };
        for number in 1..=count {
            mesh.dirs.insert(node(number), tempfile::tempdir().unwrap());
            mesh.start(number);
        }
        mesh.member(1).found(first_state(), soon()).await.unwrap();
        for number in 2..=count {
            mesh.member(1).add_learner(node(number), soon()).await.unwrap();
        }
        if all_vote {
            mesh.caught_up(1).await;
            mesh.member(1).change_voters((1..=count).map(node).collect(), soon()).await.unwrap();
            mesh.caught_up(1).await;
        }
        mesh
    }

    /// A further node, added by node 1 as a learner.
    pub async fn add(&mut self, number: u64) {
        self.dirs.insert(node(number), tempfile::tempdir().unwrap());
        self.start(number);
        self.member(1).add_learner(node(number), soon()).await.unwrap();
    }

    /// Starts a node from what its directory holds.
    pub fn start(&mut self, number: u64) {
        let id = node(number);
        let link = Arc::new(Link { from: id, net: self.net.clone() });
        let started = open_member(self.dirs[&id].path(), id, link, TIMING).unwrap();
        self.net.lock().unwrap().members.insert(id, started.member.clone());
        self.nodes.insert(id, started);
    }

    /// Ends a node as a kill does.
    pub fn kill(&mut self, number: u64) {
        self.net.lock().unwrap().members.remove(&node(number));
        self.nodes.remove(&node(number)).expect("it runs");
    }

    pub fn cut_off(&self, number: u64) {
        self.net.lock().unwrap().cut_off.insert(node(number));
    }

    pub fn reconnect(&self, number: u64) {
        self.net.lock().unwrap().cut_off.remove(&node(number));
    }

    pub fn member(&self, number: u64) -> RaftMember {
        self.nodes[&node(number)].member.clone()
    }

    pub fn members(&self) -> Vec<RaftMember> {
        self.nodes.values().map(|node| node.member.clone()).collect()
    }

    pub fn snapshot_bytes(&self, number: u64) -> usize {
        self.net.lock().unwrap().snapshot_bytes.get(&node(number)).copied().unwrap_or_default()
    }

    pub fn json_path(&self, number: u64) -> std::path::PathBuf {
        self.dirs[&node(number)].path().join("cluster.json")
    }

    /// The number of the node that leads, as a node that is not in `except` sees it.
    pub async fn leader(&self, except: &[u64]) -> u64 {
        let asked = (1..).find(|number| !except.contains(number) && self.nodes.contains_key(&node(*number))).unwrap();
        let except: BTreeSet<NodeId> = except.iter().copied().map(node).collect();
        let known = |status: &RaftStatus| status.leader.is_some_and(|leader| !except.contains(&leader));
        let status = self.member(asked).wait_for(soon(), known).await.expect("a leader is elected");
        let leader = (1..).find(|number| status.leader == Some(node(*number))).unwrap();
        let leads = |status: &RaftStatus| status.role == Role::Leader;
        self.member(leader).wait_for(soon(), leads).await.expect("who is followed knows that it leads");
        leader
    }

    /// Proposes at whoever leads, again and again until it is done: what the asking node does.
    pub async fn propose(&self, proposal: Proposal) -> Outcome {
        let give_up = soon();
        loop {
            let leader = self.leader(&[]).await;
            match self.member(leader).propose(proposal.clone(), soon()).await {
                Ok(outcome) => return outcome,
                Err(ProposeError::NotLeader { .. }) if Instant::now() < give_up => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Proposes renames with fresh ids on a node that leads.
    pub async fn rename_often(&mut self, number: u64, count: u32) {
        for _ in 0..count {
            self.next_id += 1;
            let name = format!("name-{}", self.next_id);
            self.member(number).propose(rename(self.next_id, &name), soon()).await.unwrap();
        }
    }

    /// Waits until every running node has applied what the leader has.
    pub async fn caught_up(&self, leader: u64) {
        let last = self.member(leader).status().await.last_log;
        for member in self.members() {
            let applied = |status: &RaftStatus| status.applied >= last;
            let status = member.wait_for(soon(), applied).await;
            assert!(status.is_some(), "not caught up to {last:?}: {:?}", member.status().await);
        }
    }
}
