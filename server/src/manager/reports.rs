//! What `brickctl` shows of the node, the cluster and the volumes, put together from the state and from what the nodes
//! say of themselves and of each other.

use crate::manager::Manager;
use crate::manager::node::{CommandError, Node};
use crate::manager::peers::look::Look;
use crate::manager::peers::reach::Sight;
use crate::manager::raft::{RaftStatus, Role};
use brickfs_common::cluster::admin::{BrickReport, NodeInfo, PeerInfo, VolumeStatus};
use brickfs_common::cluster::report::{
    ClusterReport, NodeReport, RaftMemberReport, RaftNode, RaftReport, RaftRole, Unreachable,
};
use brickfs_common::cluster::state::{ClusterState, NodeState, VolumeState};
use brickfs_common::cluster::voters::count_voters;
use brickfs_common::ids::NodeId;
use std::collections::BTreeMap;

type Looks = BTreeMap<NodeId, Look>;

impl Node {
    /// How the cluster is, as this node and those that it reaches see it.
    pub async fn cluster_report(&self) -> Result<ClusterReport, CommandError> {
        let state = self.state()?;
        Ok(compute_report(&state, self.id, &self.look_at_all().await))
    }

    /// How Raft stands on each node.
    pub async fn raft_report(&self) -> Result<RaftReport, CommandError> {
        let state = self.state()?;
        Ok(compute_raft_report(&state, &self.look_at_all().await))
    }

    async fn look_at_all(&self) -> Looks {
        let mut looks = self.peers.look_at_all().await;
        // After the others, so that what they did not answer is in it.
        looks.insert(self.id, self.look().await);
        looks
    }

    /// The nodes by name.
    pub fn peer_list(&self) -> Result<Vec<PeerInfo>, CommandError> {
        let state = self.state()?;
        let info = |(id, node): (&NodeId, &NodeState)| PeerInfo {
            name: node.name.clone(),
            id: *id,
            role: node.role,
            addresses: node.addresses.clone(),
            bricks_count: state.bricks().filter(|(_, brick)| brick.node == *id).count(),
            joined_ms: node.joined_ms,
            certificate_ends_ms: node.certificates.last().map(|certificate| certificate.ends_ms),
        };
        let mut peers: Vec<PeerInfo> = state.nodes.iter().map(info).collect();
        peers.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(peers)
    }
}

/// The report of node `own`, whose own look is among `looks`.
fn compute_report(state: &ClusterState, own: NodeId, looks: &Looks) -> ClusterReport {
    let mine = looks.get(&own).map(|look| &look.raft);
    let leader = mine.and_then(|raft| raft.leader).and_then(|leader| state.nodes.get(&leader));
    let voters = mine.map(|raft| raft.voters.clone()).unwrap_or_default();
    let mut nodes: Vec<NodeReport> = state
        .nodes
        .iter()
        .map(|(id, node)| NodeReport {
            name: node.name.clone(),
            id: *id,
            role: node.role,
            addresses: node.addresses.clone(),
            is_voter: voters.contains(id),
            is_reachable: looks.contains_key(id),
            unreachable_from: unreachable_from(state, looks, *id),
            version: looks.get(id).map(|look| look.version.clone()),
            certificate_ends_ms: node.certificates.last().map(|certificate| certificate.ends_ms),
        })
        .collect();
    nodes.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    let is_seen = nodes.iter().all(|node| node.is_reachable && node.unreachable_from.is_empty());
    let works = looks.values().all(|look| look.raft.role != Role::Stopped);
    // A node that was removed votes until another one does in its place.
    let votes =
        voters.len() == count_voters(state.nodes.len()) && voters.iter().all(|voter| state.nodes.contains_key(voter));
    ClusterReport {
        cluster: state.cluster,
        version: state.cluster_version,
        answered_by: name_of(state, own),
        leader: leader.map(|leader| leader.name.clone()),
        healthy: leader.is_some() && is_seen && votes && works,
        nodes,
    }
}

fn unreachable_from(state: &ClusterState, looks: &Looks, node: NodeId) -> Vec<Unreachable> {
    let says = |look: &Look| {
        let sight = look.sights.iter().find(|sight| sight.node == node && !sight.is_reachable)?;
        let Sight { age_ms, reason, .. } = sight.clone();
        Some(Unreachable { from: name_of(state, look.node), for_ms: age_ms, reason })
    };
    let members = looks.values().filter(|look| state.nodes.contains_key(&look.node));
    members.filter_map(says).collect()
}

fn compute_raft_report(state: &ClusterState, looks: &Looks) -> RaftReport {
    let leading = looks.values().find(|look| look.raft.role == Role::Leader && look.raft.leader == Some(look.node));
    let mut nodes: Vec<RaftNode> = state
        .nodes
        .iter()
        .map(|(id, node)| RaftNode {
            name: node.name.clone(),
            raft: looks.get(id).map(|look| member_report(state, look)),
            lag: leading.and_then(|look| look.raft.followers.get(id)).map(|follower| follower.lag),
        })
        .collect();
    nodes.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    RaftReport { nodes }
}

fn member_report(state: &ClusterState, look: &Look) -> RaftMemberReport {
    let RaftStatus { term, last_log, last_log_term, committed, applied, snapshot, .. } = look.raft;
    RaftMemberReport {
        role: match look.raft.role {
            Role::Leader => RaftRole::Leader,
            Role::Candidate => RaftRole::Candidate,
            Role::Follower => RaftRole::Follower,
            Role::Learner => RaftRole::Learner,
            Role::Stopped => RaftRole::Stopped,
        },
        term,
        voted_for: look.raft.voted_for.map(|node| name_of(state, node)),
        leader: look.raft.leader.map(|node| name_of(state, node)),
        last_log,
        last_log_term,
        committed,
        applied,
        snapshot,
        commands: look.commands,
        fault: look.raft.fault.clone(),
    }
}

/// A node's name, or its id where it is not a member.
fn name_of(state: &ClusterState, node: NodeId) -> String {
    state.nodes.get(&node).map_or_else(|| node.to_string(), |node| node.name.clone())
}

impl Manager {
    pub(super) fn node_info(&self) -> NodeInfo {
        NodeInfo {
            cluster: self.node.credentials.identity().who().cluster,
            node: self.node.id,
            name: self.node.name(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
        }
    }

    pub(super) fn volume_status(&self, volume: &VolumeState) -> anyhow::Result<VolumeStatus> {
        let (served, silent) = if volume.started { self.statuses(volume)? } else { Default::default() };
        let absent = |node: NodeId| match silent.get(&node) {
            Some(reason) => format!("its node does not answer: {reason}"),
            None if volume.started => "not opened".to_owned(),
            None => "the volume is stopped".to_owned(),
        };
        let mut bricks = Vec::new();
        for set in &volume.map.sets {
            for member in &set.members {
                let status = served.iter().find(|status| status.brick == member.brick);
                bricks.push(BrickReport {
                    node: member.node_name.clone(),
                    path: member.path.clone(),
                    set: set.id,
                    brick: member.brick,
                    online: status.is_some_and(|status| status.online),
                    error: match status {
                        Some(status) => status.error.clone(),
                        None => Some(absent(member.node)),
                    },
                    total_bytes: status.map_or(0, |status| status.total_bytes),
                    free_bytes: status.map_or(0, |status| status.free_bytes),
                    damage: status.map_or_else(Vec::new, |status| status.damage.clone()),
                    mending: status.is_some_and(|status| status.is_mending),
                });
            }
        }
        let healthy = volume.started && bricks.iter().all(|b| b.online && b.error.is_none() && b.damage.is_empty());
        Ok(VolumeStatus { name: volume.map.name.clone(), started: volume.started, healthy, bricks })
    }
}
