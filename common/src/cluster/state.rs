//! The cluster state: nodes and volumes. Only `cluster::command::apply` makes a new one from an old one.

use crate::cluster::map::{MemberMap, VolumeMap};
use crate::ids::{ClusterId, NodeId};
use crate::volume_spec;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of the state's stored form that this code writes; a higher one is refused.
pub const STATE_VERSION: u32 = 1;

/// Everything that the nodes of a cluster agree on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterState {
    /// Version of this form (`STATE_VERSION`).
    pub version: u32,
    /// How many commands made this state.
    pub applied: u64,
    /// The cluster.
    pub cluster: ClusterId,
    /// Its nodes.
    pub nodes: BTreeMap<NodeId, NodeState>,
    /// Its volumes by name.
    pub volumes: BTreeMap<String, VolumeState>,
}

/// One server.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeState {
    /// The name that brick paths use; unique in the cluster.
    pub name: String,
    /// `host:port` where other nodes reach it; none while it listens on its own socket alone.
    pub addresses: Vec<String>,
}

/// One volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeState {
    /// What clients and bricks hold of it; its `options` are those that were set.
    pub map: VolumeMap,
    /// Bricks of a replica set.
    pub replica: u16,
    /// Replica sets of a stripe group.
    pub stripe: u16,
    /// Whether its bricks are served.
    pub started: bool,
    /// Whether it was created with `--force`.
    pub force: bool,
}

impl ClusterState {
    /// A cluster of one node without volumes.
    pub fn of_one_node(cluster: ClusterId, node: NodeId, name: &str) -> ClusterState {
        let node_state = NodeState { name: name.to_owned(), addresses: Vec::new() };
        ClusterState {
            version: STATE_VERSION,
            applied: 0,
            cluster,
            nodes: BTreeMap::from([(node, node_state)]),
            volumes: BTreeMap::new(),
        }
    }

    /// The node of this name.
    pub fn node_by_name(&self, name: &str) -> Option<NodeId> {
        self.nodes.iter().find(|(_, node)| node.name == name).map(|(id, _)| *id)
    }

    /// Every brick of every volume, with its volume's name.
    pub fn bricks(&self) -> impl Iterator<Item = (&str, &MemberMap)> {
        self.volumes.values().flat_map(|volume| volume.members().map(|member| (volume.map.name.as_str(), member)))
    }
}

impl VolumeState {
    /// The bricks in order.
    pub fn members(&self) -> impl Iterator<Item = &MemberMap> {
        self.map.sets.iter().flat_map(|set| &set.members)
    }

    /// Its type as `volume info` prints it.
    pub fn type_name(&self) -> &'static str {
        volume_spec::type_name(self.members().count(), self.replica, self.stripe)
    }
}
