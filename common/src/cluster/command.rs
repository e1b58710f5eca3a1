//! The commands that change the cluster state, and the one pure function that applies them: old state
//! and command in, new state or a refusal out. Ids, weights and checked paths are decided by the sender,
//! so that every node that applies a command gets the same state.

use crate::cluster::map::{MemberMap, SetMap, VolumeMap};
use crate::cluster::state::{ClusterState, VolumeState};
use crate::ids::{BrickId, NodeId, SetId, VolumeId};
use crate::layout::generation::Layout;
use crate::volume_spec::{self, BadOption, VOLUME_BRICKS_MAX, shorten};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// A change of the cluster state.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// A new volume, stopped.
    CreateVolume(CreateVolume),
    /// Serve a volume's bricks.
    StartVolume {
        /// The volume.
        name: String,
    },
    /// Serve them no more.
    StopVolume {
        /// The volume.
        name: String,
    },
    /// Forget a stopped volume; what its bricks hold stays there.
    DeleteVolume {
        /// The volume.
        name: String,
    },
    /// Set a volume option.
    SetOption {
        /// The volume.
        name: String,
        /// The option.
        key: String,
        /// Its value, in any accepted form.
        value: String,
    },
    /// Give one option, or all, its default again.
    ResetOption {
        /// The volume.
        name: String,
        /// The option; `None` for all.
        key: Option<String>,
    },
    /// Give a node another name.
    RenameNode {
        /// The node.
        node: NodeId,
        /// Its new name.
        name: String,
    },
}

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

/// Why a command was refused. One line: what is wrong and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The name cannot be a volume's.
    #[error("'{0}' cannot name a volume: give 1 to 64 letters, digits, '_' or '-', not starting with '-'")]
    BadVolumeName(String),
    /// The name is taken.
    #[error("volume '{0}' exists already: choose another name, or see 'brickctl volume info {0}'")]
    VolumeExists(String),
    /// No such volume.
    #[error("there is no volume '{0}': 'brickctl volume list' shows the volumes")]
    NoSuchVolume(String),
    /// A count of bricks that no volume has.
    #[error("a volume has 1 to {VOLUME_BRICKS_MAX} bricks, not {0}")]
    BadBrickCount(usize),
    /// A replica or stripe count of nothing.
    #[error("--{0} must be at least 1")]
    ZeroCount(&'static str),
    /// Bricks that do not fill whole groups.
    #[error(
        "the number of bricks ({bricks}) is not a multiple of replica x stripe ({replica} x {stripe}): add or remove bricks"
    )]
    NotAMultiple {
        /// How many were given.
        bricks: usize,
        /// The replica count.
        replica: u16,
        /// The stripe count.
        stripe: u16,
    },
    /// Replication does not exist yet.
    #[error("--replica {0} comes with replication, which this version does not have: leave --replica out")]
    NoReplicas(u16),
    /// Stripes do not exist yet.
    #[error("--stripe {0} comes with striped volumes, which this version does not have: leave --stripe out")]
    NoStripes(u16),
    /// A brick on an unknown node.
    #[error("brick {path}: node {node} is not in this cluster")]
    NoSuchNode {
        /// The node.
        node: NodeId,
        /// The brick's path.
        path: String,
    },
    /// A path that is not in its normal form.
    #[error("brick path '{0}' must be absolute, without '.', '..' or empty components, and not '/'")]
    BadPath(String),
    /// A brick given twice.
    #[error("brick {0} is given twice: every brick needs a directory of its own")]
    BrickTwice(String),
    /// A brick of a volume already.
    #[error("brick {brick} is used by volume '{volume}' already: use another directory")]
    BrickUsed {
        /// `node:/path`.
        brick: String,
        /// Who uses it.
        volume: String,
    },
    /// A brick inside or around another.
    #[error("brick {brick} is {side} brick {other} of volume '{volume}': use a directory apart from it")]
    BrickOverlaps {
        /// `node:/path`.
        brick: String,
        /// "in" or "above".
        side: &'static str,
        /// The other brick.
        other: String,
        /// The other's volume.
        volume: String,
    },
    /// The same id again.
    #[error("the id {0} is in use already: try again")]
    IdUsed(String),
    /// Started already.
    #[error("volume '{0}' is started already")]
    AlreadyStarted(String),
    /// Stopped already.
    #[error("volume '{0}' is not started")]
    NotStarted(String),
    /// Deleting a started volume.
    #[error("volume '{0}' is started: stop it first with 'brickctl volume stop {0}'")]
    StillStarted(String),
    /// A bad option or value.
    #[error(transparent)]
    Option(#[from] BadOption),
    /// A bad node name.
    #[error("'{0}' cannot name a node: give 1 to 253 letters, digits, '.', '_' or '-'")]
    BadNodeName(String),
    /// A node name that is taken.
    #[error("another node is called '{0}' already")]
    NodeNameUsed(String),
    /// Renaming an unknown node.
    #[error("there is no node {0} in this cluster")]
    UnknownNode(NodeId),
}

/// Where one path lies relative to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PathRelation {
    /// The same path.
    Same,
    /// Below the other.
    In,
    /// A directory on the way to the other.
    Above,
    /// Neither.
    Apart,
}

/// Compares two normalised paths component by component (`/a/bc` is not in `/a/b`).
pub fn compare_paths(path: &Path, other: &Path) -> PathRelation {
    match (path.starts_with(other), other.starts_with(path)) {
        (true, true) => PathRelation::Same,
        (true, false) => PathRelation::In,
        (false, true) => PathRelation::Above,
        (false, false) => PathRelation::Apart,
    }
}

/// Whether a path is absolute, not the root, and without `.`, `..`, empty components or control characters.
pub fn is_normal_path(path: &str) -> bool {
    path.len() <= 1024
        && !path.chars().any(char::is_control)
        && path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(|c| !matches!(c, "" | "." | "..")))
}

/// Applies a command: the next state, or why it is refused. The only way to change the cluster state.
pub fn apply(state: &ClusterState, command: &Command) -> Result<ClusterState, Refusal> {
    let mut next = state.clone();
    match command {
        Command::CreateVolume(create) => create_volume(&mut next, create)?,
        Command::StartVolume { name } => {
            let volume = volume_mut(&mut next, name)?;
            if volume.started {
                return Err(Refusal::AlreadyStarted(name.clone()));
            }
            volume.started = true;
        }
        Command::StopVolume { name } => {
            let volume = volume_mut(&mut next, name)?;
            if !volume.started {
                return Err(Refusal::NotStarted(name.clone()));
            }
            volume.started = false;
        }
        Command::DeleteVolume { name } => {
            if volume_mut(&mut next, name)?.started {
                return Err(Refusal::StillStarted(name.clone()));
            }
            next.volumes.remove(name);
        }
        Command::SetOption { name, key, value } => {
            let volume = volume_mut(&mut next, name)?;
            let value = volume_spec::check_option(key, value)?;
            volume.map.options.insert(key.clone(), value);
        }
        Command::ResetOption { name, key } => {
            let options = &mut volume_mut(&mut next, name)?.map.options;
            match key {
                Some(key) => drop(options.remove(volume_spec::find_option(key)?.key)),
                None => options.clear(),
            }
        }
        Command::RenameNode { node, name } => rename_node(&mut next, *node, name)?,
    }
    next.applied += 1;
    Ok(next)
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

fn volume_mut<'a>(state: &'a mut ClusterState, name: &str) -> Result<&'a mut VolumeState, Refusal> {
    state.volumes.get_mut(name).ok_or_else(|| Refusal::NoSuchVolume(shorten(name)))
}

fn create_volume(state: &mut ClusterState, create: &CreateVolume) -> Result<(), Refusal> {
    check_new_volume(state, &create.name, create.replica, create.stripe, create.bricks.len())?;
    if state.volumes.values().any(|volume| volume.map.id == create.id) {
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
    let sets = members.chunks(replica).enumerate().map(|(i, members)| SetMap {
        id: SetId(i as u16),
        epoch: 1,
        primary: members[0].brick,
        in_sync: members.iter().map(|member| member.brick).collect(),
        members: members.to_vec(),
    });
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
    state.volumes.insert(create.name.clone(), volume);
    Ok(())
}

fn check_bricks(state: &ClusterState, create: &CreateVolume) -> Result<(), Refusal> {
    for (i, new) in create.bricks.iter().enumerate() {
        let node = state
            .nodes
            .get(&new.node)
            .ok_or_else(|| Refusal::NoSuchNode { node: new.node, path: shorten(&new.path) })?;
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

/// Refuses a brick path that is, is in or is above that of another brick of the same node.
pub fn check_apart(shown: &str, path: &str, other_volume: &str, other_path: &str) -> Result<(), Refusal> {
    let side = match compare_paths(Path::new(path), Path::new(other_path)) {
        PathRelation::Apart => return Ok(()),
        PathRelation::Same => {
            return Err(Refusal::BrickUsed { brick: shown.to_owned(), volume: other_volume.to_owned() });
        }
        PathRelation::In => "in",
        PathRelation::Above => "above",
    };
    Err(Refusal::BrickOverlaps {
        brick: shown.to_owned(),
        side,
        other: other_path.to_owned(),
        volume: other_volume.to_owned(),
    })
}

fn rename_node(state: &mut ClusterState, node: NodeId, name: &str) -> Result<(), Refusal> {
    if !volume_spec::is_node_name(name) {
        return Err(Refusal::BadNodeName(shorten(name)));
    }
    if state.node_by_name(name).is_some_and(|other| other != node) {
        return Err(Refusal::NodeNameUsed(name.to_owned()));
    }
    state.nodes.get_mut(&node).ok_or(Refusal::UnknownNode(node))?.name = name.to_owned();
    let sets = state.volumes.values_mut().flat_map(|volume| &mut volume.map.sets);
    for member in sets.flat_map(|set| &mut set.members).filter(|member| member.node == node) {
        member.node_name = name.to_owned();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ClusterId;

    const NODE: NodeId = NodeId([1; 16]);

    fn one_node() -> ClusterState {
        ClusterState::of_one_node(ClusterId([9; 16]), NODE, "node-1")
    }

    fn create(name: &str, first_id: u8, paths: &[&str]) -> CreateVolume {
        let brick = |(i, path): (usize, &&str)| NewBrick {
            brick: BrickId([first_id + i as u8; 16]),
            node: NODE,
            path: (*path).to_owned(),
            weight: 100,
        };
        CreateVolume {
            name: name.to_owned(),
            id: VolumeId([first_id; 16]),
            replica: 1,
            stripe: 1,
            force: false,
            bricks: paths.iter().enumerate().map(brick).collect(),
        }
    }

    fn with_volume() -> ClusterState {
        apply(&one_node(), &Command::CreateVolume(create("demo", 10, &["/b/1", "/b/2"]))).unwrap()
    }

    fn refusal_of(state: &ClusterState, create: CreateVolume) -> Refusal {
        apply(state, &Command::CreateVolume(create)).unwrap_err()
    }

    fn named(name: &str) -> String {
        name.to_owned()
    }

    #[test]
    fn a_new_volume_has_a_set_for_each_brick_and_all_slots() {
        let state = with_volume();
        let volume = &state.volumes["demo"];
        assert_eq!(state.applied, 1);
        assert!(!volume.started);
        assert_eq!(volume.type_name(), "Distribute");
        assert_eq!(volume.map.sets.len(), 2);
        assert_eq!(volume.map.sets[1].id, SetId(1));
        assert_eq!(volume.map.sets[1].members[0].path, "/b/2");
        assert_eq!(volume.map.layout.runs, [(0, SetId(0)), (8192, SetId(1))]);
    }

    #[test]
    fn the_state_reads_back_as_it_was_written() {
        let state = with_volume();
        let text = serde_json::to_string_pretty(&state).unwrap();
        assert_eq!(serde_json::from_str::<ClusterState>(&text).unwrap(), state);
        let command = Command::CreateVolume(create("x", 40, &["/c"]));
        let text = serde_json::to_string(&command).unwrap();
        assert_eq!(serde_json::from_str::<Command>(&text).unwrap(), command);
    }

    #[test]
    fn bad_shapes_are_refused() {
        let state = with_volume();
        assert!(matches!(refusal_of(&state, create("a/b", 20, &["/c"])), Refusal::BadVolumeName(_)));
        assert!(matches!(refusal_of(&state, create("demo", 20, &["/c"])), Refusal::VolumeExists(_)));
        assert_eq!(refusal_of(&state, create("x", 20, &[])), Refusal::BadBrickCount(0));
        let many: Vec<String> = (0..65).map(|i| format!("/m/{i}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(refusal_of(&state, create("x", 20, &many)), Refusal::BadBrickCount(65));
        let shaped = |replica, stripe| CreateVolume { replica, stripe, ..create("x", 20, &["/c", "/d"]) };
        assert_eq!(refusal_of(&state, shaped(0, 1)), Refusal::ZeroCount("replica"));
        assert_eq!(refusal_of(&state, shaped(1, 0)), Refusal::ZeroCount("stripe"));
        assert!(matches!(refusal_of(&state, shaped(3, 1)), Refusal::NotAMultiple { .. }));
        assert_eq!(refusal_of(&state, shaped(2, 1)), Refusal::NoReplicas(2));
        assert_eq!(refusal_of(&state, shaped(1, 2)), Refusal::NoStripes(2));
    }

    #[test]
    fn bricks_are_apart_from_each_other() {
        let state = with_volume();
        let overlap = |path| refusal_of(&state, create("x", 20, &[path]));
        assert!(matches!(overlap("/b/1"), Refusal::BrickUsed { .. }));
        assert!(matches!(overlap("/b/1/in"), Refusal::BrickOverlaps { side: "in", .. }));
        assert!(matches!(overlap("/b"), Refusal::BrickOverlaps { side: "above", .. }));
        assert!(matches!(refusal_of(&state, create("x", 20, &["/c", "/c"])), Refusal::BrickTwice(_)));
        assert!(matches!(refusal_of(&state, create("x", 20, &["/c", "/c/d"])), Refusal::BrickOverlaps { .. }));
        for bad in ["c", "/", "/c/", "/c//d", "/c/../d", "/./c", "/c\n"] {
            assert!(matches!(overlap(bad), Refusal::BadPath(_)), "{bad}");
        }
        apply(&state, &Command::CreateVolume(create("x", 20, &["/b/11"]))).unwrap();
        let elsewhere = NewBrick { node: NodeId([2; 16]), ..create("x", 20, &["/c"]).bricks.remove(0) };
        let foreign = CreateVolume { bricks: vec![elsewhere], ..create("x", 20, &[]) };
        assert!(matches!(refusal_of(&state, foreign), Refusal::NoSuchNode { .. }));
        assert!(matches!(refusal_of(&state, create("x", 10, &["/c"])), Refusal::IdUsed(_)));
    }

    #[test]
    fn a_volume_is_started_stopped_and_deleted_in_order() {
        let start = Command::StartVolume { name: named("demo") };
        let stop = Command::StopVolume { name: named("demo") };
        let delete = Command::DeleteVolume { name: named("demo") };
        let state = with_volume();
        assert_eq!(apply(&state, &stop), Err(Refusal::NotStarted(named("demo"))));
        let started = apply(&state, &start).unwrap();
        assert!(started.volumes["demo"].started);
        assert_eq!(apply(&started, &start), Err(Refusal::AlreadyStarted(named("demo"))));
        assert_eq!(apply(&started, &delete), Err(Refusal::StillStarted(named("demo"))));
        let stopped = apply(&started, &stop).unwrap();
        let deleted = apply(&stopped, &delete).unwrap();
        assert!(deleted.volumes.is_empty());
        assert_eq!(apply(&deleted, &start), Err(Refusal::NoSuchVolume(named("demo"))));
    }

    #[test]
    fn options_are_set_in_stored_form_and_reset() {
        let set =
            |key: &str, value: &str| Command::SetOption { name: named("demo"), key: named(key), value: named(value) };
        let state = apply(&with_volume(), &set("reserve", "5")).unwrap();
        let state = apply(&state, &set("comment", "hello")).unwrap();
        assert_eq!(state.volumes["demo"].map.options["reserve"], "5%");
        assert!(matches!(apply(&state, &set("reserve", "99")), Err(Refusal::Option(_))));
        let reset = |key: Option<&str>| Command::ResetOption { name: named("demo"), key: key.map(named) };
        let one = apply(&state, &reset(Some("reserve"))).unwrap();
        assert_eq!(one.volumes["demo"].map.options.keys().collect::<Vec<_>>(), ["comment"]);
        assert!(apply(&state, &reset(None)).unwrap().volumes["demo"].map.options.is_empty());
        assert!(matches!(apply(&state, &reset(Some("colour"))), Err(Refusal::Option(_))));
    }

    #[test]
    fn a_renamed_node_is_renamed_in_every_map() {
        let rename = Command::RenameNode { node: NODE, name: named("alpha") };
        let state = apply(&with_volume(), &rename).unwrap();
        assert_eq!(state.node_by_name("alpha"), Some(NODE));
        assert!(state.bricks().all(|(_, brick)| brick.node_name == "alpha"));
        let bad = Command::RenameNode { node: NODE, name: named("a:b") };
        assert!(matches!(apply(&state, &bad), Err(Refusal::BadNodeName(_))));
    }

    #[test]
    fn every_refusal_is_one_line() {
        let state = with_volume();
        for create in [create("bad\nname", 20, &["/c"]), create("x", 20, &["/b\n/1"]), create("demo", 1, &[])] {
            assert!(!refusal_of(&state, create).to_string().contains('\n'));
        }
    }
}
