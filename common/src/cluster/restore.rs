//! The first state of a cluster that a backup makes: the state of the backup and the node that takes the place of one
//! of its nodes in, the new state out. Pure.
//!
//! Whoever else was a member is a stranger from now on. A node with bricks stays in the state, for the maps name it, but
//! without a certificate: it waits to join again. What has no bricks is dropped. All certificates of nodes that the
//! backup knows are revoked, also those of the node whose place is taken, so that a machine that comes back with what it
//! was does not reach this cluster with it: it holds the log of another history.

use crate::cluster::state::{CLUSTER_VERSION, Certificate, ClusterState};
use crate::ids::NodeId;
use std::collections::BTreeSet;

/// Why a backup cannot be restored as it was asked.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadRestore {
    /// A name that is none of the backup's.
    #[error("the backup has no node '{name}', only {nodes}")]
    UnknownNode {
        /// What was given.
        name: String,
        /// The nodes of the backup.
        nodes: String,
    },
    /// Several nodes, none of this one's name.
    #[error("say with --as whose place this node takes: {nodes}")]
    Ambiguous {
        /// The nodes of the backup.
        nodes: String,
    },
    /// A state of a newer release.
    #[error("the backup has cluster version {0}, this brickd supports {CLUSTER_VERSION}")]
    Version(u32),
}

/// Whose place a node takes: that of the node that is named, or of the only one, or of the one that has its own name.
pub fn choose_node(backup: &ClusterState, named: Option<&str>, own_name: &str) -> Result<NodeId, BadRestore> {
    if backup.cluster_version > CLUSTER_VERSION {
        return Err(BadRestore::Version(backup.cluster_version));
    }
    let nodes = || node_names(backup, |_| true).join(", ");
    if let Some(name) = named {
        let unknown = || BadRestore::UnknownNode { name: crate::volume_spec::shorten(name), nodes: nodes() };
        return backup.node_by_name(name).ok_or_else(unknown);
    }
    let only = backup.nodes.keys().next().filter(|_| backup.nodes.len() == 1);
    let node = only.copied().or_else(|| backup.node_by_name(own_name));
    node.ok_or_else(|| BadRestore::Ambiguous { nodes: nodes() })
}

/// The first state of the restored cluster. `addresses` are those of the node that takes the place of `node`. Without
/// the old authority its clients and what it has revoked go too: nobody would believe their certificates.
pub fn restored_state(
    backup: &ClusterState,
    node: NodeId,
    addresses: Vec<String>,
    keeps_authority: bool,
    now_ms: u64,
) -> ClusterState {
    let with_bricks = nodes_with_bricks(backup);
    let mut state = backup.clone();
    let old: Vec<Certificate> = state.nodes.values().flat_map(|node| node.certificates.clone()).collect();
    state.nodes.retain(|id, _| *id == node || with_bricks.contains(id));
    state.nodes.values_mut().for_each(|node| node.certificates.clear());
    if let Some(own) = state.nodes.get_mut(&node) {
        own.addresses = addresses;
    }
    state.tokens.clear();
    if keeps_authority {
        state.revoked.extend(old.into_iter().map(|certificate| (certificate.serial, certificate.ends_ms)));
        state.revoked.retain(|_, ends_ms| *ends_ms > now_ms);
    } else {
        state.revoked.clear();
        state.clients.clear();
    }
    state
}

/// The other nodes by name: those that the restored cluster waits for, and those that it knows no more.
pub fn others(backup: &ClusterState, node: NodeId) -> (Vec<String>, Vec<String>) {
    let with_bricks = nodes_with_bricks(backup);
    let names = |waits: bool| node_names(backup, |id| *id != node && with_bricks.contains(id) == waits);
    (names(true), names(false))
}

fn nodes_with_bricks(state: &ClusterState) -> BTreeSet<NodeId> {
    state.bricks().map(|(_, brick)| brick.node).collect()
}

fn node_names(state: &ClusterState, is_wanted: impl Fn(&NodeId) -> bool) -> Vec<String> {
    let wanted = state.nodes.iter().filter(|(id, _)| is_wanted(id));
    let mut names: Vec<String> = wanted.map(|(_, node)| node.name.clone()).collect();
    names.sort_unstable();
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::command::{Command, CreateVolume, NewBrick, apply};
    use crate::cluster::state::NodeState;
    use crate::ids::{BrickId, CertSerial, ClusterId, VolumeId};

    const A: NodeId = NodeId([1; 16]);
    const B: NodeId = NodeId([2; 16]);
    const C: NodeId = NodeId([3; 16]);

    /// Three nodes with a certificate each; the first two have a brick.
    fn backup() -> ClusterState {
        let mut state = ClusterState::of_one_node(ClusterId([9; 16]), A, "node-1");
        for (id, name) in [(B, "node-2"), (C, "node-3")] {
            state.nodes.insert(id, NodeState::first(name, vec![format!("{name}:1")]));
        }
        for (id, node) in &mut state.nodes {
            node.certificates = vec![Certificate { serial: CertSerial(id.0), ends_ms: u64::from(id.0[0]) * 100 }];
        }
        let brick = |n: u8, node| NewBrick { brick: BrickId([n; 16]), node, path: format!("/b/{n}"), weight: 1 };
        let bricks = vec![brick(1, A), brick(2, B)];
        let id = VolumeId([7; 16]);
        let create = CreateVolume { name: "demo".into(), id, replica: 1, stripe: 1, force: false, bricks };
        apply(&state, &Command::CreateVolume(create)).unwrap()
    }

    #[test]
    fn whose_place_is_taken_is_said_or_clear() {
        let many = backup();
        assert_eq!(choose_node(&many, Some("node-2"), "x"), Ok(B));
        assert_eq!(choose_node(&many, None, "node-3"), Ok(C));
        let error = choose_node(&many, None, "x").unwrap_err().to_string();
        assert_eq!(error, "say with --as whose place this node takes: node-1, node-2, node-3");
        let error = choose_node(&many, Some("y"), "node-1").unwrap_err().to_string();
        assert_eq!(error, "the backup has no node 'y', only node-1, node-2, node-3");
        let one = ClusterState::of_one_node(ClusterId([9; 16]), A, "node-1");
        assert_eq!(choose_node(&one, None, "x"), Ok(A));
        let newer = ClusterState { cluster_version: CLUSTER_VERSION + 1, ..one };
        assert_eq!(choose_node(&newer, None, "x"), Err(BadRestore::Version(CLUSTER_VERSION + 1)));
    }

    #[test]
    fn nodes_without_bricks_go_and_every_old_certificate_is_refused() {
        let old = backup();
        let state = restored_state(&old, A, vec!["new:1".into()], true, 150);
        assert_eq!(state.nodes.keys().copied().collect::<Vec<_>>(), [A, B]);
        assert!(state.nodes.values().all(|node| node.certificates.is_empty()));
        assert_eq!(state.nodes[&A].addresses, ["new:1"]);
        let revoked: Vec<CertSerial> = state.revoked.keys().copied().collect();
        assert_eq!(revoked, [CertSerial(B.0), CertSerial(C.0)], "the first has ended by itself");
        assert_eq!((&state.volumes, state.cluster, state.applied), (&old.volumes, old.cluster, old.applied));
        assert_eq!(others(&old, A), (vec!["node-2".to_owned()], vec!["node-3".to_owned()]));
        let elsewhere = restored_state(&old, C, Vec::new(), false, 0);
        assert_eq!((elsewhere.nodes.len(), elsewhere.revoked.len()), (3, 0), "another authority knows none of them");
    }
}
