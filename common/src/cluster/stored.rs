//! Reads a stored cluster state of this version or of one before it.

use crate::cluster::state::{CLUSTER_VERSION, ClusterState, NodeState, STATE_VERSION, VolumeState};
use crate::ids::{ClusterId, NodeId};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Why a stored state was not taken.
#[derive(Debug, thiserror::Error)]
pub enum BadState {
    /// It is of a newer `brickd`, or of none.
    #[error("has state version {0}, this brickd reads versions 1 to {STATE_VERSION}")]
    Unknown(u32),
    /// It is not what was written.
    #[error("has a damaged state")]
    Damaged(#[from] serde_json::Error),
}

#[derive(Deserialize)]
struct Head {
    version: u32,
}

/// Version 1: one node, nobody else.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StateV1 {
    #[serde(rename = "version")]
    _version: u32,
    applied: u64,
    cluster: ClusterId,
    nodes: BTreeMap<NodeId, NodeV1>,
    volumes: BTreeMap<String, VolumeState>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeV1 {
    name: String,
    addresses: Vec<String>,
}

/// Reads the JSON of a state of any version up to `STATE_VERSION` and gives it in today's form.
pub fn read_state(json: &[u8]) -> Result<ClusterState, BadState> {
    match serde_json::from_slice::<Head>(json)?.version {
        1 => Ok(from_v1(serde_json::from_slice(json)?)),
        STATE_VERSION => Ok(serde_json::from_slice(json)?),
        version => Err(BadState::Unknown(version)),
    }
}

/// A cluster of version 1 is the one node that reads this now, so it supports what this code supports, and
/// so does the cluster.
fn from_v1(old: StateV1) -> ClusterState {
    let nodes = old.nodes.into_iter();
    ClusterState {
        version: STATE_VERSION,
        applied: old.applied,
        cluster: old.cluster,
        cluster_version: CLUSTER_VERSION,
        nodes: nodes.map(|(id, node)| (id, NodeState::first(&node.name, node.addresses))).collect(),
        tokens: BTreeMap::new(),
        clients: BTreeMap::new(),
        revoked: BTreeMap::new(),
        volumes: old.volumes.into_iter().map(|(name, volume)| (name, Arc::new(volume))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::state::NodeRole;
    use crate::ids::{BrickId, SetId};

    /// As the release with one node wrote it.
    const GOLDEN_V1: &str = include_str!("golden_state_v1.json");

    #[test]
    fn a_state_of_version_1_is_read() {
        let state = read_state(GOLDEN_V1.as_bytes()).unwrap();
        assert_eq!((state.version, state.applied, state.cluster_version), (STATE_VERSION, 4, CLUSTER_VERSION));
        let node = &state.nodes[&NodeId([1; 16])];
        assert_eq!((node.name.as_str(), node.role, node.supports), ("node-1", NodeRole::Server, CLUSTER_VERSION));
        let volume = &state.volumes["demo"];
        assert!(volume.started);
        assert_eq!(volume.map.options["reserve"], "5%");
        let set = &volume.map.sets[1];
        assert_eq!((set.id, set.epoch, set.primary), (SetId(1), 1, BrickId([11; 16])));
        assert_eq!((set.in_sync.as_slice(), set.members[0].path.as_str()), ([BrickId([11; 16])].as_slice(), "/b/2"));
        let written = serde_json::to_vec(&state).unwrap();
        assert_eq!(read_state(&written).unwrap(), state);
    }

    #[test]
    fn newer_and_damaged_states_are_refused() {
        let newer = GOLDEN_V1.replacen("\"version\": 1", "\"version\": 3", 1);
        assert!(matches!(read_state(newer.as_bytes()), Err(BadState::Unknown(3))));
        let strange = GOLDEN_V1.replacen("\"applied\"", "\"implied\"", 1);
        assert!(matches!(read_state(strange.as_bytes()), Err(BadState::Damaged(_))));
        assert!(matches!(read_state(&GOLDEN_V1.as_bytes()[..99]), Err(BadState::Damaged(_))));
        assert!(matches!(read_state(b"{}"), Err(BadState::Damaged(_))));
        let zero = GOLDEN_V1.replacen("\"version\": 1", "\"version\": 0", 1);
        assert!(read_state(zero.as_bytes()).is_err());
    }
}
