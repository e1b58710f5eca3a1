//! What a simulated volume is made of: its map and its new bricks.

use crate::brick::meta::{Meta, Position};
use crate::brick::store::model::disk::Inode;
use brickfs_common::attr::{Kind, Timestamp};
use brickfs_common::cluster::map::{MemberMap, SetMap, VolumeMap};
use brickfs_common::ids::{BrickId, ClusterId, Gfid, NodeId, SetId, VolumeId};
use brickfs_common::layout::generation::Layout;
use std::collections::BTreeMap;

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct Shape {
    pub seed: u64,
    /// The node of each set.
    pub node_of: Vec<usize>,
    /// Whether the sets of a node lie on one device.
    pub shares_device: bool,
    pub root_home: SetId,
    /// Whether states of the disks are kept for a loss of power.
    pub keeps_history: bool,
}

pub fn volume_map(shape: &Shape) -> VolumeMap {
    let set = |(index, node): (usize, &usize)| {
        let member = MemberMap {
            brick: BrickId([index as u8; 16]),
            incarnation: 1,
            node: NodeId([*node as u8; 16]),
            node_name: format!("node{node}"),
            path: format!("/brick{index}"),
        };
        SetMap::first(SetId(index as u16), vec![member])
    };
    VolumeMap {
        cluster: ClusterId([1; 16]),
        id: VolumeId([2; 16]),
        name: "sim".into(),
        root_home: shape.root_home,
        sets: shape.node_of.iter().enumerate().map(set).collect(),
        layout: Layout::first(&vec![1; shape.node_of.len()]),
        options: BTreeMap::new(),
    }
}

pub fn root_inode(set: SetId, root_home: SetId) -> Inode {
    let zero = Timestamp::default();
    let meta = Meta {
        gfid: Gfid::ROOT,
        kind: Kind::Directory,
        flags: 0,
        project: 0,
        btime: zero,
        ctime: zero,
        position: Position::default(),
        home: if set == root_home { set } else { SetId(u16::MAX) },
        rdev: 0,
        subdirs: 0,
        spread: Vec::new(),
    };
    Inode { meta, perm: 0o755, uid: 0, gid: 0, mtime: zero, size: 0, default_acl: None }
}
