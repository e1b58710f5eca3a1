//! The traces of PROTOCOL.md that a volume without replicas can meet, each as a short history.

use super::stage::{Stage, exchange, link, make, rename, rmdir, unlink};
use crate::brick::volume::PeerCall;
use brickfs_common::errno::Errno;
use brickfs_common::fop::{Fop, Making, ObjectRef};
use brickfs_common::ids::{ClientId, Gfid, SetId};
use std::collections::{BTreeSet, HashMap};

/// Orders in which what happens at once is tried.
const ORDERS: u64 = 60;

fn file() -> Making {
    Making::File { open: false, exclusive: true, truncate: false }
}

/// Two nodes with a set each.
fn two_nodes() -> Stage {
    Stage::new(&[0, 1], false)
}

/// Runs two operations side by side in many orders; answers all pairs of ways in which they ended.
fn race(what: &str, scene: fn(&mut Stage) -> (Fop, Fop)) -> BTreeSet<(Option<i32>, Option<i32>)> {
    let mut ends = BTreeSet::new();
    for seed in 0..ORDERS {
        let mut stage = Stage::with_seed(seed, &[0, 1, 2], false);
        let (one, two) = scene(&mut stage);
        let ops = [stage.start(one), stage.start(two)];
        stage.settle();
        let [one, two] = ops.map(|op| stage.errno(op).map(|errno| errno.0));
        ends.insert((one, two));
        stage.finish(&format!("{what}, order {seed}"));
    }
    ends
}

#[test] // N1, N2; PROTOCOL 5 (a), (b), (c)
fn between_commit_and_finish_one_name_resolves_and_the_other_waits() {
    let mut stage = two_nodes();
    let root = stage.root();
    let (a, b) = (stage.name_on(0, root, 0), stage.name_on(1, root, 0));
    let f = stage.create(root, &a);
    stage.create(root, &b);
    stage.hold(|_, call| matches!(call, PeerCall::Finish { .. }));
    let op = stage.start(rename((root, &a), (root, &b)));
    stage.settle();
    assert_eq!(stage.errno(op), None, "the reply does not wait for the finish");
    assert_eq!(stage.look_up(root, &a), Err(Errno::ENOENT));
    let look = stage.start(Fop::Lookup { parent: root, name: super::client::name(&b) });
    stage.settle();
    assert!(stage.waits(look), "B is decided and not done: neither the old target nor nothing");
    stage.let_go();
    let found = stage.result(look).unwrap().unwrap().attr.as_ref().unwrap().gfid;
    assert_eq!(found, f.gfid);
    stage.finish("5 abc");
}

#[test] // N2; PROTOCOL 5 (d)
fn a_coordinator_that_dies_before_its_commit_takes_nothing_away() {
    let mut stage = two_nodes();
    let root = stage.root();
    let (a, b) = (stage.name_on(0, root, 0), stage.name_on(1, root, 0));
    let (f, target) = (stage.create(root, &a), stage.create(root, &b));
    stage.hold(|_, call| matches!(call, PeerCall::Prepare { .. }));
    let op = stage.start(rename((root, &a), (root, &b)));
    stage.settle();
    stage.forget(op);
    stage.cluster.kill(0);
    stage.let_go();
    stage.restart(0);
    assert_eq!(stage.look_up(root, &a).unwrap().gfid, f.gfid);
    assert_eq!(stage.look_up(root, &b).unwrap().gfid, target.gfid);
    stage.finish("5 d");
}

#[test] // N1, N3, N5; PROTOCOL 6 (a), (b), (c)
fn a_create_waits_for_a_rename_that_has_placed_its_claim() {
    let mut stage = two_nodes();
    let root = stage.root();
    let (a, b) = (stage.name_on(0, root, 0), stage.name_on(1, root, 0));
    let f = stage.create(root, &a);
    stage.hold(|_, call| matches!(call, PeerCall::Prepare { .. }));
    let moves = stage.start(rename((root, &a), (root, &b)));
    stage.settle();
    stage.cluster.nodes[0].is_paused = true;
    stage.let_go();
    let creates = stage.start(make(root, &b, file()));
    stage.settle();
    assert!(stage.waits(creates) && stage.waits(moves));
    stage.cluster.nodes[0].is_paused = false;
    stage.settle();
    assert_eq!((stage.errno(moves), stage.errno(creates)), (None, Some(Errno::EEXIST)));
    assert_eq!(stage.look_up(root, &b).unwrap().gfid, f.gfid);
    stage.finish("6");
}

#[test] // PROTOCOL 7
fn renames_in_opposite_directions_both_end() {
    race("a/x to b/x and back", |stage| {
        let root = stage.root();
        let (a, b) = (stage.mkdir(root, "a"), stage.mkdir(root, "b"));
        stage.create(a, "x");
        stage.create(b, "x");
        (rename((a, "x"), (b, "x")), rename((b, "x"), (a, "x")))
    });
}

#[test] // N5; PROTOCOL 7
fn of_two_renames_onto_one_name_the_later_one_stays() {
    let ends = race("onto one name", |stage| {
        let root = stage.root();
        let (a, b) = (stage.name_on(1, root, 0), stage.name_on(2, root, 0));
        stage.create(root, &a);
        stage.create(root, &b);
        let target = stage.name_on(0, root, 0);
        (rename((root, &a), (root, &target)), rename((root, &b), (root, &target)))
    });
    assert_eq!(ends, BTreeSet::from([(None, None)]));
}

#[test] // N3; PROTOCOL 9
fn of_rmdir_and_a_create_on_another_set_one_wins() {
    let ends = race("rmdir and create", |stage| {
        let root = stage.root();
        let dir = stage.mkdir(root, "dir");
        let text = stage.name_on((dir.home.0 + 1) % 3, dir, 0);
        (rmdir(root, "dir"), make(dir, &text, file()))
    });
    let removed = (None, Some(Errno::ESTALE.0));
    let created = (Some(Errno::ENOTEMPTY.0), None);
    assert_eq!(ends, BTreeSet::from([removed, created]));
}

#[test] // N3; PROTOCOL 9
fn a_set_that_restarts_between_closing_and_removal_takes_no_child() {
    let mut stage = two_nodes();
    let root = stage.root();
    let dir = stage.mkdir(root, "dir");
    let other = 1 - dir.home.0;
    let text = stage.name_on(other, dir, 0);
    stage.create(dir, &text);
    stage.run(unlink(dir, &text));
    stage.hold(|_, call| matches!(call, PeerCall::Finish { .. }));
    stage.run(rmdir(root, "dir"));
    stage.restart(usize::from(other));
    let op = stage.start(make(dir, &text, file()));
    stage.settle();
    stage.let_go();
    assert_eq!(stage.errno(op), Some(Errno::ESTALE));
    stage.finish("9, restart");
}

#[test] // PROTOCOL 13 (a), (c)
fn a_request_that_is_repeated_after_all_restarted_has_its_first_result() {
    let mut stage = two_nodes();
    let root = stage.root();
    for fop in [make(root, "dir", Making::Directory), make(root, "file", file())] {
        let op = stage.start(fop);
        stage.settle();
        let made = stage.result(op).unwrap().unwrap().attr.clone().unwrap().gfid;
        stage.restart(0);
        stage.restart(1);
        stage.repeat(op);
        assert_eq!(stage.errno(op), None);
        assert_eq!(stage.result(op).unwrap().unwrap().attr.as_ref().unwrap().gfid, made);
    }
    stage.finish("13");
}

#[test] // N3; PROTOCOL 16 (d)
fn an_open_file_without_a_name_outlives_a_restart_of_its_home() {
    let mut stage = Stage::new(&[0], false);
    let root = stage.root();
    let f = stage.create(root, "file");
    let client = ClientId([9; 16]);
    let volume = stage.cluster.nodes[0].volume.clone().unwrap();
    volume.lock().clients.announce(client, HashMap::from([(f.gfid, (f.home, 1))]));
    stage.run(unlink(root, "file"));
    stage.restart(0);
    let volume = stage.cluster.nodes[0].volume.clone().unwrap();
    volume.lock().clients.expect([client]);
    volume.tick();
    assert!(stage.cluster.disks.lock().fs(f.home).orphans.contains(&f.gfid));
    volume.lock().clients.client(client).last_seen = Some(std::time::Instant::now());
    volume.lock().clients.announce(client, HashMap::from([(f.gfid, (f.home, 1))]));
    volume.lock().clients.end_grace();
    volume.tick();
    assert!(stage.cluster.disks.lock().fs(f.home).orphans.contains(&f.gfid));
    volume.lock().clients.announce(client, HashMap::new());
    volume.lock().delete_if_orphan(f);
    assert!(!stage.cluster.disks.lock().fs(f.home).orphans.contains(&f.gfid));
    stage.finish("16 d");
}

#[test] // N4; PROTOCOL 25
fn directories_are_not_moved_into_each_other() {
    let ends = race("opposite moves", |stage| {
        let root = stage.root();
        let (one, two) = (stage.mkdir(root, "one"), stage.mkdir(root, "two"));
        (rename((root, "one"), (two, "in")), rename((root, "two"), (one, "in")))
    });
    assert!(!ends.contains(&(None, None)), "{ends:?}");
    let ends = race("an exchange that would make a circle", |stage| {
        let root = stage.root();
        let (one, two) = (stage.mkdir(root, "one"), stage.mkdir(root, "two"));
        stage.mkdir(one, "x");
        stage.mkdir(two, "x");
        (exchange((root, "one"), (two, "x")), exchange((root, "two"), (one, "x")))
    });
    assert!(!ends.contains(&(None, None)), "{ends:?}");
}

/// A directory with a child on the other set is renamed; that set is not told before `then`.
fn rename_without_follow(stage: &mut Stage) -> (ObjectRef, String) {
    let root = stage.root();
    let dir = stage.mkdir(root, "dir");
    let text = stage.name_on(1 - dir.home.0, dir, 0);
    stage.create(dir, &text);
    stage.hold(|_, call| matches!(call, PeerCall::Follow { .. }));
    let op = stage.start(rename((root, "dir"), (root, "moved")));
    stage.settle();
    stage.forget(op);
    (dir, text)
}

#[test] // PROTOCOL 26 (a), (b)
fn a_new_directory_at_an_old_physical_name_gets_its_own_children() {
    let mut stage = two_nodes();
    let root = stage.root();
    let (dir, text) = rename_without_follow(&mut stage);
    let new = stage.mkdir(root, "dir");
    let other = stage.name_on(1 - dir.home.0, new, 0);
    stage.create(new, &other);
    assert!(stage.look_up(dir, &text).is_ok());
    if other != text {
        assert_eq!(stage.look_up(new, &text).err(), Some(Errno::ENOENT));
    }
    stage.let_go();
    assert!(stage.look_up(dir, &text).is_ok() && stage.look_up(new, &other).is_ok());
    stage.finish("26 ab");
}

#[test] // PROTOCOL 26 (c)
fn a_follow_that_comes_late_changes_nothing() {
    let mut stage = two_nodes();
    let root = stage.root();
    let (dir, text) = rename_without_follow(&mut stage);
    let op = stage.start(rename((root, "moved"), (root, "moved again")));
    stage.settle();
    stage.forget(op);
    let other = stage.name_on(1 - dir.home.0, dir, 1);
    stage.create(dir, &other);
    stage.let_go();
    let at = stage.cluster.disks.lock().fs(SetId(1 - dir.home.0)).dir_handles[&dir.gfid].clone();
    assert_eq!(at, (Gfid::ROOT, b"moved again".to_vec()));
    assert!(stage.look_up(dir, &text).is_ok() && stage.look_up(dir, &other).is_ok());
    stage.finish("26 c");
}

#[test] // PROTOCOL 26; N4
fn a_directory_is_moved_into_one_whose_old_copy_lies_below_it() {
    for is_exchange in [false, true] {
        let mut stage = two_nodes();
        let root = stage.root();
        let (outer_name, moved_name) = (stage.name_on(1, root, 0), stage.name_on(0, root, 0));
        let outer = stage.mkdir(root, &outer_name);
        let inner_name = stage.name_on(0, outer, 0);
        let inner = stage.mkdir(outer, &inner_name);
        assert_eq!((outer.home, inner.home), (SetId(1), SetId(0)));
        let (child, last) = (stage.name_on(1, inner, 0), stage.name_on(1, inner, 1));
        stage.create(inner, &child);
        stage.hold(|to, call| to == SetId(1) && matches!(call, PeerCall::Follow { .. }));
        let first = stage.start(rename((outer, &inner_name), (root, &moved_name)));
        stage.settle();
        stage.forget(first);
        let second = if is_exchange {
            stage.start(exchange((root, &outer_name), (inner, &child)))
        } else {
            stage.start(rename((root, &outer_name), (inner, &last)))
        };
        stage.settle();
        assert_eq!(stage.errno(second), None);
        let at = if is_exchange { &child } else { &last };
        assert_eq!(stage.look_up(inner, at).map(|attr| attr.gfid), Ok(outer.gfid));
        stage.let_go();
        assert_eq!(stage.look_up(root, &moved_name).map(|attr| attr.gfid), Ok(inner.gfid));
        stage.finish("26, a circle of copies");
    }
}

#[test] // PROTOCOL 27
fn children_on_another_set_inherit_what_the_home_has() {
    let mut stage = two_nodes();
    let root = stage.root();
    let fop =
        Fop::Make { parent: root, name: super::client::name("dir"), making: Making::Directory, perm: 0o2775, umask: 0 };
    let attr = stage.run(fop).attr.unwrap();
    let dir = ObjectRef { gfid: attr.gfid, home: attr.home };
    let text = stage.name_on(1 - dir.home.0, dir, 0);
    stage.mkdir(dir, &text);
    assert_eq!(stage.look_up(dir, &text).unwrap().perm & 0o2000, 0o2000);
    stage.finish("27");
}

#[test] // PROTOCOL 27
fn children_inherit_the_project_number_on_every_set_and_below() {
    let mut stage = two_nodes();
    let root = stage.root();
    let dir = stage.mkdir(root, "dir");
    let project_of =
        |stage: &Stage, object: ObjectRef| stage.cluster.disks.lock().fs(object.home).inodes[&object.gfid].meta.project;
    assert_eq!(project_of(&stage, dir), 0);
    stage.cluster.disks.lock().change(dir.home, |fs| fs.inodes.get_mut(&dir.gfid).unwrap().meta.project = 7);
    for set in 0..2 {
        let (sub, text) = (stage.name_on(set, dir, 0), stage.name_on(set, dir, 1));
        let (sub, file) = (stage.mkdir(dir, &sub), stage.create(dir, &text));
        assert_eq!((sub.home, file.home), (SetId(set), SetId(set)));
        let below = stage.name_on(1 - set, sub, 0);
        let below = stage.create(sub, &below);
        for object in [sub, file, below] {
            assert_eq!(project_of(&stage, object), 7, "set {set}");
        }
    }
    stage.finish("27, project");
}

#[test] // PROTOCOL 28
fn a_touch_that_was_lost_is_told_again_also_after_a_death() {
    for dies in [false, true] {
        let mut stage = two_nodes();
        let root = stage.root();
        let text = stage.name_on(1, root, 0);
        stage.hold(|_, call| matches!(call, PeerCall::Touch { .. }));
        let op = stage.start(make(root, &text, Making::Directory));
        stage.settle();
        if dies {
            stage.forget(op);
            stage.restart(1);
            // Another effect since: the cut one is not the last any more.
            let more = stage.name_on(1, root, 1);
            let op = stage.start(make(root, &more, file()));
            stage.settle();
            stage.forget(op);
            stage.restart(1);
        }
        stage.let_go();
        stage.finish("28");
    }
}

#[test] // N3; PROTOCOL 5: whoever needs a name asks
fn a_link_whose_coordinator_is_gone_blocks_nobody_once_it_is_back() {
    let mut stage = two_nodes();
    let root = stage.root();
    let (a, b) = (stage.name_on(0, root, 0), stage.name_on(1, root, 0));
    let f = stage.create(root, &a);
    stage.hold(|_, call| matches!(call, PeerCall::Finish { .. }));
    let op = stage.start(link(f, root, &b));
    stage.settle();
    stage.forget(op);
    stage.cluster.kill(0);
    stage.let_go();
    let creates = stage.start(make(root, &b, file()));
    stage.settle();
    stage.restart(0);
    stage.ask_again(creates);
    assert_eq!(stage.errno(creates), Some(Errno::EEXIST));
    stage.finish("a link");
}

#[test] // N1; PROTOCOL 5, 8: a part that is done is not done again over what came later
fn a_restart_does_not_repeat_a_rename_over_a_later_one() {
    let mut stage = two_nodes();
    let root = stage.root();
    let (a, c, b) = (stage.name_on(0, root, 0), stage.name_on(0, root, 1), stage.name_on(1, root, 0));
    stage.create(root, &a);
    let later = stage.create(root, &c);
    stage.run(rename((root, &a), (root, &b)));
    stage.run(rename((root, &c), (root, &b)));
    for node in [1, 0, 1] {
        stage.restart(node);
        assert_eq!(stage.look_up(root, &b).unwrap().gfid, later.gfid);
    }
    stage.finish("later rename");
}

#[test] // N3; PROTOCOL 6: a claim that reads the same is not the one that was denied
fn a_claim_that_is_dropped_late_is_not_the_one_made_since() {
    let mut stage = two_nodes();
    let root = stage.root();
    let (a, b) = (stage.name_on(0, root, 0), stage.name_on(1, root, 0));
    let f = stage.create(root, &a);
    stage.run(link(f, root, &b));
    stage.hold(|_, call| matches!(call, PeerCall::DropClaim { .. }));
    let unlinks = stage.start(unlink(root, &b));
    stage.settle();
    stage.run(link(f, root, &b));
    stage.let_go();
    assert_eq!(stage.errno(unlinks), None);
    assert_eq!(stage.look_up(root, &b).unwrap().gfid, f.gfid);
    stage.finish("late drop");
}

#[test] // N3; PROTOCOL 9, 26: a parked copy takes no children
fn a_removed_directory_takes_no_child_before_its_copies_are_let_go() {
    let mut stage = Stage::new(&[0, 0], false);
    let root = stage.root();
    let dir = stage.mkdir(root, "dir");
    let text = stage.name_on(1 - dir.home.0, dir, 0);
    stage.create(dir, &text);
    stage.run(unlink(dir, &text));
    stage.run(rmdir(root, "dir"));
    let op = stage.start(make(dir, &text, file()));
    stage.settle();
    assert_eq!(stage.errno(op), Some(Errno::ESTALE));
    stage.finish("parked copy");
}
