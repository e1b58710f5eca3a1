//! The volume map: what a client needs of the cluster state to use one volume.

use crate::ids::{BrickId, ClusterId, NodeId, SetId, VolumeId};
use crate::layout::generation::Layout;
use crate::membership::set::{LeaveReason, SetReset};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One volume as clients and bricks see it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VolumeMap {
    /// The cluster.
    pub cluster: ClusterId,
    /// The volume.
    pub id: VolumeId,
    /// Its name.
    pub name: String,
    /// The set that holds the root directory's inode.
    pub root_home: SetId,
    /// The sets, `sets[i].id == SetId(i)`.
    pub sets: Vec<SetMap>,
    /// Which set a name belongs to.
    pub layout: Layout,
    /// Options that were set; an option that is missing has its default (`volume_spec`).
    pub options: BTreeMap<String, String>,
}

/// One replica set.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SetMap {
    /// Its number within the volume.
    pub id: SetId,
    /// Counts the changes of primary and membership; a member refuses any lower one (R2).
    pub epoch: u64,
    /// The member that orders effects.
    pub primary: BrickId,
    /// Members in sync; a set of one brick has that one.
    pub in_sync: Vec<BrickId>,
    /// All members, in order of creation.
    pub members: Vec<MemberMap>,
    /// Members that the primary is bringing in sync. Who is neither here nor in sync is out.
    #[serde(default)]
    pub catching_up: Vec<BrickId>,
    /// Members in sync that would have left if in_sync did not have to keep its least size (PROTOCOL 23).
    /// While there is one, the set takes no changes.
    #[serde(default)]
    pub held: BTreeMap<BrickId, LeaveReason>,
    /// The last time that an operator gave up what the other members had.
    #[serde(default)]
    pub last_reset: Option<SetReset>,
}

/// One brick of a set.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MemberMap {
    /// The brick.
    pub brick: BrickId,
    /// Counts how often the brick was given a new, empty disk (R7).
    pub incarnation: u64,
    /// The node that serves it.
    pub node: NodeId,
    /// That node's name.
    pub node_name: String,
    /// Absolute path of the brick directory on the node.
    pub path: String,
}
