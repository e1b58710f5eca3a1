//! The death of a process at every call of a file system that an operation makes, on every node that takes
//! part (PROTOCOL 20): after the restart the volume is as before or as after, the operation that is asked
//! again ends well, and nothing is left over.

use super::stage::{Stage, exchange, link, make, rename, rename_with, rmdir, unlink};
use brickfs_common::errno::Errno;
use brickfs_common::fop::{Fop, Making, RenameFlags};
use brickfs_common::ids::Gfid;

/// Prepares the stage; answers the operation, and what was there before.
type Scene = fn(&mut Stage) -> (Fop, Vec<Gfid>);

/// Where the sets are: (node of each, whether they share a device).
const PLACES: [(&[usize], bool); 4] = [(&[0, 0], true), (&[0, 0], false), (&[0, 1], false), (&[0, 1, 2], false)];

fn play(what: &str, scene: Scene) {
    for (node_of, shares_device) in PLACES {
        let node_count = node_of.iter().max().unwrap() + 1;
        let mut stage = Stage::new(node_of, shares_device);
        let (fop, known) = scene(&mut stage);
        let before = stage.view(&known);
        stage.run(fop);
        let after = stage.view(&known);
        stage.finish(what);
        for node in 0..node_count {
            let mut deaths = 0;
            while play_death(
                &format!("{what} {node_of:?} {shares_device}"),
                scene,
                (node_of, shares_device),
                node,
                deaths,
                [&before, &after],
            ) {
                deaths += 1;
            }
            assert!(deaths < 200, "{what}: an operation makes fewer calls");
        }
    }
}

/// One death; false if the operation makes fewer calls than that on the node.
fn play_death(
    what: &str,
    scene: Scene,
    (node_of, shares_device): (&[usize], bool),
    node: usize,
    calls: u64,
    views: [&super::stage::View; 2],
) -> bool {
    let what = format!("{what}, node {node} dies at call {calls}");
    let mut stage = Stage::new(node_of, shares_device);
    let (fop, known) = scene(&mut stage);
    stage.cluster.nodes[node].process.die_after(calls);
    let op = stage.start(fop);
    stage.settle();
    if stage.cluster.is_up(node) {
        return false;
    }
    stage.restart(node);
    stage.ask_again(op);
    assert_eq!(stage.errno(op), None, "{what}");
    let view = stage.view(&known);
    assert_eq!(&view, views[1], "{what}: asked again it is done");
    stage.finish(&what);

    // The client died too: as before or as after.
    let mut stage = Stage::new(node_of, shares_device);
    let (fop, known) = scene(&mut stage);
    stage.cluster.nodes[node].process.die_after(calls);
    let op = stage.start(fop);
    stage.forget(op);
    stage.settle();
    stage.restart(node);
    let view = stage.view(&known);
    assert!(views.contains(&&view), "{what}: neither before nor after\n{view:#?}\n{views:#?}");
    stage.finish(&what);
    true
}

#[test] // N3; PROTOCOL 13, 20
fn a_death_in_a_make() {
    play("create", |stage| {
        let root = stage.root();
        let dir = stage.mkdir(root, "dir");
        let text = stage.name_on(1 - dir.home.0.min(1), dir, 0);
        let file = Making::File { open: false, exclusive: true, truncate: false };
        (make(dir, &text, file), vec![dir.gfid])
    });
    play("mkdir", |stage| {
        let root = stage.root();
        let dir = stage.mkdir(root, "dir");
        let text = stage.name_on(1 - dir.home.0.min(1), dir, 0);
        (make(dir, &text, Making::Directory), vec![dir.gfid])
    });
}

#[test] // N3; PROTOCOL 13, 20
fn a_death_in_a_link() {
    for set in 0..2 {
        let scene: Scene = if set == 0 {
            |stage| {
                let root = stage.root();
                let (old, new) = (stage.name_on(0, root, 0), stage.name_on(0, root, 1));
                let file = stage.create(root, &old);
                (link(file, root, &new), vec![file.gfid])
            }
        } else {
            |stage| {
                let root = stage.root();
                let (old, new) = (stage.name_on(0, root, 0), stage.name_on(1, root, 1));
                let file = stage.create(root, &old);
                (link(file, root, &new), vec![file.gfid])
            }
        };
        play("link", scene);
    }
}

#[test] // N3; PROTOCOL 6, 20
fn a_death_in_an_unlink() {
    play("unlink of a name with its file", |stage| {
        let root = stage.root();
        stage.create(root, "file");
        (unlink(root, "file"), vec![])
    });
    play("unlink of a claim", |stage| {
        let root = stage.root();
        let (old, new) = (stage.name_on(0, root, 0), stage.name_on(1, root, 1));
        let file = stage.create(root, &old);
        stage.run(link(file, root, &new));
        (unlink(root, &new), vec![file.gfid])
    });
    play("unlink of the last name, a claim", |stage| {
        let root = stage.root();
        let (old, new) = (stage.name_on(0, root, 0), stage.name_on(1, root, 1));
        stage.create(root, &old);
        stage.run(rename((root, &old), (root, &new)));
        (unlink(root, &new), vec![])
    });
}

#[test] // N1, N3; PROTOCOL 5, 20
fn a_death_in_a_rename() {
    play("rename within a set", |stage| {
        let root = stage.root();
        let (old, new) = (stage.name_on(0, root, 0), stage.name_on(0, root, 1));
        let file = stage.create(root, &old);
        (rename((root, &old), (root, &new)), vec![file.gfid])
    });
    play("rename between sets", |stage| {
        let root = stage.root();
        let (old, new) = (stage.name_on(0, root, 0), stage.name_on(1, root, 1));
        let file = stage.create(root, &old);
        (rename((root, &old), (root, &new)), vec![file.gfid])
    });
    play("rename of a claim", |stage| {
        let root = stage.root();
        let (old, mid, new) = (stage.name_on(0, root, 0), stage.name_on(1, root, 0), stage.name_on(1, root, 1));
        let file = stage.create(root, &old);
        stage.run(rename((root, &old), (root, &mid)));
        (rename((root, &mid), (root, &new)), vec![file.gfid])
    });
    play("whiteout", |stage| {
        let root = stage.root();
        let (old, new) = (stage.name_on(0, root, 0), stage.name_on(1, root, 1));
        let file = stage.create(root, &old);
        let flags = RenameFlags { whiteout: true, ..RenameFlags::default() };
        (rename_with((root, &old), (root, &new), flags), vec![file.gfid])
    });
    play("rename of a directory with copies into another", |stage| {
        let root = stage.root();
        let (one, two) = (stage.mkdir(root, "one"), stage.mkdir(root, "two"));
        let dir = stage.mkdir(one, "dir");
        for set in 0..2 {
            let text = stage.name_on(set, dir, 0);
            stage.create(dir, &text);
        }
        (rename((one, "dir"), (two, "moved")), vec![one.gfid, two.gfid, dir.gfid])
    });
}

#[test] // N1-N3; PROTOCOL 5, 20
fn a_death_in_a_replacing_rename() {
    play("both names on one set", |stage| {
        let root = stage.root();
        let (old, new) = (stage.name_on(0, root, 0), stage.name_on(0, root, 1));
        let file = stage.create(root, &old);
        stage.create(root, &new);
        (rename((root, &old), (root, &new)), vec![file.gfid])
    });
    play("onto a file of another set", |stage| {
        let root = stage.root();
        let (old, new) = (stage.name_on(0, root, 0), stage.name_on(1, root, 1));
        let file = stage.create(root, &old);
        stage.create(root, &new);
        (rename((root, &old), (root, &new)), vec![file.gfid])
    });
    play("onto a claim of a file of another set", |stage| {
        let root = stage.root();
        let (old, other, new) = (stage.name_on(0, root, 0), stage.name_on(1, root, 0), stage.name_on(0, root, 1));
        let file = stage.create(root, &old);
        stage.create(root, &other);
        stage.run(rename((root, &other), (root, &new)));
        (rename((root, &old), (root, &new)), vec![file.gfid])
    });
    play("a directory onto an empty one with copies", |stage| {
        let root = stage.root();
        let (old, new) = (stage.name_on(0, root, 0), stage.name_on(1, root, 1));
        let (dir, target) = (stage.mkdir(root, &old), stage.mkdir(root, &new));
        let child = stage.name_on(0, target, 0);
        stage.create(target, &child);
        stage.run(unlink(target, &child));
        (rename((root, &old), (root, &new)), vec![dir.gfid])
    });
}

#[test] // N1, N3; PROTOCOL 5, 20
fn a_death_in_an_exchange() {
    play("within a set", |stage| {
        let root = stage.root();
        let (one, two) = (stage.name_on(0, root, 0), stage.name_on(0, root, 1));
        let (a, b) = (stage.create(root, &one), stage.mkdir(root, &two));
        (exchange((root, &one), (root, &two)), vec![a.gfid, b.gfid])
    });
    play("of files of two sets", |stage| {
        let root = stage.root();
        let (one, two) = (stage.name_on(0, root, 0), stage.name_on(1, root, 1));
        let (a, b) = (stage.create(root, &one), stage.create(root, &two));
        (exchange((root, &one), (root, &two)), vec![a.gfid, b.gfid])
    });
    play("of directories in two directories", |stage| {
        let root = stage.root();
        let (one, two) = (stage.mkdir(root, "one"), stage.mkdir(root, "two"));
        let (first, second) = (stage.name_on(0, one, 0), stage.name_on(1, two, 1));
        let (a, b) = (stage.mkdir(one, &first), stage.mkdir(two, &second));
        (exchange((one, &first), (two, &second)), vec![one.gfid, two.gfid, a.gfid, b.gfid])
    });
}

#[test] // N3; PROTOCOL 9, 20
fn a_death_in_an_rmdir_with_copies() {
    play("rmdir", |stage| {
        let root = stage.root();
        let dir = stage.mkdir(root, "dir");
        for set in 0..2 {
            let text = stage.name_on(set, dir, 0);
            stage.create(dir, &text);
            stage.run(unlink(dir, &text));
        }
        (rmdir(root, "dir"), vec![])
    });
}

#[test] // N4; PROTOCOL 20, 25
fn a_refused_rename_is_refused_again_after_a_death() {
    let mut stage = Stage::new(&[0, 1], false);
    let root = stage.root();
    let dir = stage.mkdir(root, "dir");
    let inner = stage.mkdir(dir, "inner");
    let op = stage.start(rename((root, "dir"), (inner, "dir")));
    stage.settle();
    assert_eq!(stage.errno(op), Some(Errno::EINVAL));
    stage.restart(0);
    stage.restart(1);
    let op = stage.start(exchange((root, "dir"), (dir, "inner")));
    stage.settle();
    assert_eq!(stage.errno(op), Some(Errno::EINVAL));
    stage.finish("refused");
}
