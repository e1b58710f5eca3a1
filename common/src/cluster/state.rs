//! The cluster state: nodes, join tokens, clients, revoked certificates and volumes. Only
//! `cluster::command::apply` makes a new one from an old one.

use crate::cluster::map::{MemberMap, VolumeMap};
use crate::cluster::token::{TokenHash, TokenState};
use crate::ids::{CertSerial, ClusterId, NodeId, VolumeId};
use crate::volume_spec;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The version of the state's stored form that this code writes. It reads that and all before
/// (`cluster::stored`); a higher one is refused.
pub const STATE_VERSION: u32 = 2;
/// The highest cluster version that this code supports: which commands a cluster may use.
pub const CLUSTER_VERSION: u32 = 1;

/// Most nodes of a cluster.
pub const NODES_MAX: usize = 64;
/// Most addresses of a node.
pub const ADDRESSES_MAX: usize = 8;
/// Most certificates of one node that are valid at a time; a node renews once in two thirds of one's life.
pub const NODE_CERTIFICATES_MAX: usize = 4;
/// Most join tokens that have not ended.
pub const TOKENS_MAX: usize = 64;
/// Most clients that were given a certificate.
pub const CLIENTS_MAX: usize = 1024;
/// Most revoked certificates that have not ended.
pub const REVOKED_MAX: usize = 8192;
/// Most volumes.
pub const VOLUMES_MAX: usize = 4096;

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
    /// Which commands may be used: every node supports this version.
    pub cluster_version: u32,
    /// Its nodes.
    pub nodes: BTreeMap<NodeId, NodeState>,
    /// Join tokens that have not ended, or were not yet looked at since.
    pub tokens: BTreeMap<TokenHash, TokenState>,
    /// Its clients by name.
    pub clients: BTreeMap<String, ClientState>,
    /// Revoked certificates and when they end by themselves, in milliseconds since 1970.
    pub revoked: BTreeMap<CertSerial, u64>,
    /// Its volumes by name. Shared between states, so that a command copies only what it changes.
    #[serde(with = "shared_volumes")]
    pub volumes: BTreeMap<String, Arc<VolumeState>>,
}

/// What a node is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeRole {
    /// It may have bricks.
    #[default]
    Server,
    /// It votes and has no bricks.
    Witness,
}

/// A certificate that the cluster's authority signed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// Its number.
    pub serial: CertSerial,
    /// When it ends, in milliseconds since 1970.
    pub ends_ms: u64,
}

/// One node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeState {
    /// The name that brick paths use; unique in the cluster.
    pub name: String,
    /// `host:port` where other nodes reach it; none while it listens on its own socket alone.
    pub addresses: Vec<String>,
    /// What it is for.
    pub role: NodeRole,
    /// Its certificates that have not ended, the newest last. An older one is valid beside a newer one
    /// until it ends, so a removal has to revoke them all.
    pub certificates: Vec<Certificate>,
    /// Since when it is a member, in milliseconds since 1970; 0 where nobody knows.
    pub joined_ms: u64,
    /// The highest cluster version that its `brickd` supports.
    pub supports: u32,
}

/// A mount that is let in, by its certificate.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientState {
    /// The volume that it may use; `None` for all. By id: a volume of the same name that is made later is
    /// another one, which nobody has let this client into.
    pub volume: Option<VolumeId>,
    /// Whether it may change nothing.
    pub read_only: bool,
    /// The directory that it sees as its root.
    pub subdir: Option<String>,
    /// Whether its root is nobody on the volume.
    pub squash_root: bool,
    /// Its certificate.
    pub certificate: Certificate,
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
        ClusterState {
            version: STATE_VERSION,
            applied: 0,
            cluster,
            cluster_version: CLUSTER_VERSION,
            nodes: BTreeMap::from([(node, NodeState::first(name, Vec::new()))]),
            tokens: BTreeMap::new(),
            clients: BTreeMap::new(),
            revoked: BTreeMap::new(),
            volumes: BTreeMap::new(),
        }
    }

    /// The node of this name.
    pub fn node_by_name(&self, name: &str) -> Option<NodeId> {
        self.nodes.iter().find(|(_, node)| node.name == name).map(|(id, _)| *id)
    }

    /// Under which id a node of this name joins: its own, or that of the member that waits under the name, or that it
    /// got by this token already.
    pub fn id_to_join(&self, own: NodeId, name: &str, token: &TokenHash) -> NodeId {
        let used_by = self.tokens.get(token).and_then(|token| token.used_by);
        let named = self.nodes.iter().find(|(_, node)| node.name == name);
        match named {
            Some((id, node)) if node.waits_to_join() || used_by == Some(*id) => *id,
            _ => own,
        }
    }

    /// The volume of this id.
    pub fn volume_by_id(&self, id: VolumeId) -> Option<&VolumeState> {
        self.volumes.values().find(|volume| volume.map.id == id).map(Arc::as_ref)
    }

    /// Every brick of every volume, with its volume's name.
    pub fn bricks(&self) -> impl Iterator<Item = (&str, &MemberMap)> {
        self.volumes.values().flat_map(|volume| volume.members().map(|member| (volume.map.name.as_str(), member)))
    }

    /// Whether this certificate belongs to this member and was not revoked.
    pub fn is_node_certificate(&self, node: NodeId, serial: CertSerial) -> bool {
        let node = self.nodes.get(&node);
        !self.revoked.contains_key(&serial)
            && node.is_some_and(|node| node.certificates.iter().any(|certificate| certificate.serial == serial))
    }

    /// The client that this certificate belongs to, unless it was revoked.
    pub fn client_by_serial(&self, serial: CertSerial) -> Option<(&str, &ClientState)> {
        if self.revoked.contains_key(&serial) {
            return None;
        }
        let found = self.clients.iter().find(|(_, client)| client.certificate.serial == serial);
        found.map(|(name, client)| (name.as_str(), client))
    }
}

impl NodeState {
    /// Whether a restore has left it without a certificate: it is a member once it has joined again.
    pub fn waits_to_join(&self) -> bool {
        self.certificates.is_empty()
    }

    /// The node that a cluster begins with, or the only one of a cluster that could have no other.
    pub fn first(name: &str, addresses: Vec<String>) -> NodeState {
        NodeState {
            name: name.to_owned(),
            addresses,
            role: NodeRole::Server,
            certificates: Vec::new(),
            joined_ms: 0,
            supports: CLUSTER_VERSION,
        }
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

/// Volumes are stored as if they were not shared.
mod shared_volumes {
    use super::{Arc, BTreeMap, VolumeState};
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(volumes: &BTreeMap<String, Arc<VolumeState>>, s: S) -> Result<S::Ok, S::Error> {
        s.collect_map(volumes.iter().map(|(name, volume)| (name, volume.as_ref())))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeMap<String, Arc<VolumeState>>, D::Error> {
        let volumes = BTreeMap::<String, VolumeState>::deserialize(d)?;
        Ok(volumes.into_iter().map(|(name, volume)| (name, Arc::new(volume))).collect())
    }
}
