//! Losses of power, of one node at a time: the cases of PROTOCOL 8, each with many states that the disks may
//! come back with.

use super::stage::{Stage, rename, rmdir};
use brickfs_common::attr::Attr;
use brickfs_common::errno::Errno;

/// States that are tried.
const STATES: u64 = 60;

/// Plays a rename to its end, then a node loses power; one of the names leads to the file, the new one
/// always to something.
fn lose_power_after_rename(node: usize, barriers: usize) {
    for seed in 0..STATES {
        let mut stage = Stage::with_seed(seed, &[0, 1, 2], false);
        let root = stage.root();
        let (a, b) = (stage.name_on(1, root, 0), stage.name_on(2, root, 0));
        let f = stage.create(root, &a);
        stage.create(root, &b);
        for _ in 0..3 {
            stage.pass_barriers();
        }
        for node in 0..3 {
            let device = node * 100 + node;
            stage.cluster.disks.lock().flush(device);
        }
        stage.run(rename((root, &a), (root, &b)));
        for _ in 0..barriers {
            stage.pass_barriers();
        }
        stage.cluster.lose_power(node);
        stage.restart(node);
        stage.pass_barriers();
        let (old, new) = (stage.look_up(root, &a), stage.look_up(root, &b));
        let leads_to_f = |found: &Result<Attr, Errno>| found.as_ref().is_ok_and(|at| at.gfid == f.gfid);
        let what = format!("node {node} after {barriers} barriers, seed {seed}: {old:?} {new:?}");
        assert!(new.is_ok(), "{what} (N2)");
        assert!(leads_to_f(&old) != leads_to_f(&new), "{what} (N1)");
    }
}

#[test] // N1, N2; PROTOCOL 8, case 2
fn the_home_loses_power_after_a_rename() {
    for barriers in 0..3 {
        lose_power_after_rename(1, barriers);
    }
}

#[test] // N1, N2; PROTOCOL 8, case 3
fn the_new_dentry_set_loses_power_after_a_rename() {
    for barriers in 0..3 {
        lose_power_after_rename(2, barriers);
    }
}

#[test] // N3; PROTOCOL 8, case 1: no registration, so nothing to lose
fn a_child_on_another_set_is_listed_after_the_home_lost_power() {
    for seed in 0..STATES {
        let mut stage = Stage::with_seed(seed, &[0, 1], false);
        let root = stage.root();
        let dir = stage.mkdir(root, "dir");
        stage.cluster.disks.lock().flush(0);
        stage.cluster.disks.lock().flush(101);
        let text = stage.name_on(1 - dir.home.0, dir, 0);
        stage.create(dir, &text);
        stage.cluster.disks.lock().flush(u64::from(1 - dir.home.0) * 101);
        let node = usize::from(dir.home.0);
        stage.cluster.lose_power(node);
        stage.restart(node);
        assert!(stage.look_up(dir, &text).is_ok(), "seed {seed}");
        let op = stage.start(rmdir(root, "dir"));
        stage.settle();
        assert_eq!(stage.errno(op), Some(Errno::ENOTEMPTY), "seed {seed}");
    }
}
