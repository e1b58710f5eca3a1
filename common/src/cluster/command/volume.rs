//! Volumes: making, starting, stopping and deleting them, and their options.

use crate::cluster::command::{Refusal, check_apart, is_normal_path};
use crate::cluster::map::{MemberMap, SetMap, VolumeMap};
use crate::cluster::state::{ClusterState, NodeRole, VOLUMES_MAX, VolumeState};
use crate::ids::{BrickId, NodeId, SetId, VolumeId};
use crate::layout::generation::Layout;
use crate::volume_spec::{self, VOLUME_BRICKS_MAX, shorten};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The parts of a new volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateVolume {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: VolumeId,
    /// Bricks of a replica set.
    pub replica: u16,
    /// Replica sets of a stripe group.
    pub stripe: u16,
    /// Whether doubtful bricks were asked for.
    pub force: bool,
    /// Its bricks in order.
    pub bricks: Vec<NewBrick>,
}

/// One brick of a new volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewBrick {
    /// Its id.
    pub brick: BrickId,
    /// Its node.
    pub node: NodeId,
    /// Absolute, normalised path.
    pub path: String,
    /// Its share of the slots relative to the others', from its capacity.
    pub weight: u64,
}

/// Checks what of a new volume can be checked before its bricks are looked at.
pub fn check_new_volume(
    state: &ClusterState,
    name: &str,
    replica: u16,
    stripe: u16,
    bricks: usize,
) -> Result<(), Refusal> {
    if !volume_spec::is_volume_name(name) {
        return Err(Refusal::BadVolumeName(shorten(name)));
    }
    if state.volumes.contains_key(name) {
        return Err(Refusal::VolumeExists(name.to_owned()));
    }
    if replica == 0 {
        return Err(Refusal::ZeroCount("replica"));
    }
    if stripe == 0 {
        return Err(Refusal::ZeroCount("stripe"));
    }
    if !(1..=VOLUME_BRICKS_MAX).contains(&bricks) {
        return Err(Refusal::BadBrickCount(bricks));
    }
    if !bricks.is_multiple_of(usize::from(replica) * usize::from(stripe)) {
        return Err(Refusal::NotAMultiple { bricks, replica, stripe });
    }
    if replica > 1 {
        return Err(Refusal::NoReplicas(replica));
    }
    if stripe > 1 {
        return Err(Refusal::NoStripes(stripe));
    }
    Ok(())
}

pub(super) fn start(state: &mut ClusterState, name: &str) -> Result<(), Refusal> {
    let volume = volume_mut(state, name)?;
    if volume.started {
        return Err(Refusal::AlreadyStarted(name.to_owned()));
    }
    volume.started = true;
    Ok(())
}

pub(super) fn stop(state: &mut ClusterState, name: &str) -> Result<(), Refusal> {
    let volume = volume_mut(state, name)?;
    if !volume.started {
        return Err(Refusal::NotStarted(name.to_owned()));
    }
    volume.started = false;
    Ok(())
}

pub(super) fn delete(state: &mut ClusterState, name: &str) -> Result<(), Refusal> {
    if volume_mut(state, name)?.started {
        return Err(Refusal::StillStarted(name.to_owned()));
    }
    state.volumes.remove(name);
    Ok(())
}

pub(super) fn set_option(state: &mut ClusterState, name: &str, key: &str, value: &str) -> Result<(), Refusal> {
    let volume = volume_mut(state, name)?;
    let value = volume_spec::check_option(key, value)?;
    volume.map.options.insert(key.to_owned(), value);
    Ok(())
}

pub(super) fn reset_option(state: &mut ClusterState, name: &str, key: Option<&str>) -> Result<(), Refusal> {
    let options = &mut volume_mut(state, name)?.map.options;
    match key {
        Some(key) => drop(options.remove(volume_spec::find_option(key)?.key)),
        None => options.clear(),
    }
    Ok(())
}

/// The volume, copied if another state shares it.
pub(super) fn volume_mut<'a>(state: &'a mut ClusterState, name: &str) -> Result<&'a mut VolumeState, Refusal> {
    let volume = state.volumes.get_mut(name).ok_or_else(|| Refusal::NoSuchVolume(shorten(name)))?;
    Ok(Arc::make_mut(volume))
}

pub(super) fn create(state: &mut ClusterState, create: &CreateVolume) -> Result<(), Refusal> {
    check_new_volume(state, &create.name, create.replica, create.stripe, create.bricks.len())?;
    if state.volumes.len() >= VOLUMES_MAX {
        return Err(Refusal::TooManyVolumes);
    }
    if state.volume_by_id(create.id).is_some() {
        return Err(Refusal::IdUsed(create.id.to_string()));
    }
    check_bricks(state, create)?;
    let members: Vec<MemberMap> = create
        .bricks
        .iter()
        .map(|new| MemberMap {
            brick: new.brick,
            incarnation: 1,
            node: new.node,
            node_name: state.nodes.get(&new.node).map(|node| node.name.clone()).unwrap_or_default(),
            path: new.path.clone(),
        })
        .collect();
    let replica = usize::from(create.replica);
    let sets = members.chunks(replica).enumerate().map(|(i, members)| SetMap::first(SetId(i as u16), members.to_vec()));
    // A set holds what its smallest brick holds.
    let weights: Vec<u64> =
        create.bricks.chunks(replica).map(|set| set.iter().map(|brick| brick.weight).min().unwrap_or(1)).collect();
    let map = VolumeMap {
        cluster: state.cluster,
        id: create.id,
        name: create.name.clone(),
        root_home: SetId(0),
        sets: sets.collect(),
        layout: Layout::first(&weights),
        options: BTreeMap::new(),
    };
    let volume =
        VolumeState { map, replica: create.replica, stripe: create.stripe, started: false, force: create.force };
    state.volumes.insert(create.name.clone(), Arc::new(volume));
    Ok(())
}

fn check_bricks(state: &ClusterState, create: &CreateVolume) -> Result<(), Refusal> {
    for (i, new) in create.bricks.iter().enumerate() {
        let node = state
            .nodes
            .get(&new.node)
            .ok_or_else(|| Refusal::NoSuchNode { node: new.node, path: shorten(&new.path) })?;
        if node.role == NodeRole::Witness {
            return Err(Refusal::WitnessBrick(node.name.clone()));
        }
        if !is_normal_path(&new.path) {
            return Err(Refusal::BadPath(shorten(&new.path)));
        }
        let shown = format!("{}:{}", node.name, new.path);
        for (volume, used) in state.bricks() {
            if used.brick == new.brick {
                return Err(Refusal::IdUsed(new.brick.to_string()));
            }
            if used.node == new.node {
                check_apart(&shown, &new.path, volume, &used.path)?;
            }
        }
        for other in &create.bricks[..i] {
            if other.brick == new.brick {
                return Err(Refusal::IdUsed(new.brick.to_string()));
            }
            if other.node == new.node && other.path == new.path {
                return Err(Refusal::BrickTwice(shown));
            }
            if other.node == new.node {
                check_apart(&shown, &new.path, &create.name, &other.path)?;
            }
        }
    }
    Ok(())
}
