//! Volumes and names of nodes.

use super::*;
use crate::ids::{BrickId, ClusterId, SetId, VolumeId};

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
    let set = |key: &str, value: &str| Command::SetOption { name: named("demo"), key: named(key), value: named(value) };
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
