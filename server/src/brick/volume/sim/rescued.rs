//! What a loss of power leaves without a place: it goes to `lost+found`, or stays where
//! it is and is reported, or goes where nothing is lost with it (PROTOCOL 8, 19).

use super::stage::{Stage, make, unlink};
use brickfs_common::errno::Errno;
use brickfs_common::fop::{Fop, Making, ObjectRef};
use brickfs_common::ids::{Gfid, SetId};
use brickfs_common::name::Name;
use std::sync::atomic::Ordering;

/// One node with two bricks on disks of their own.
fn two_bricks() -> Stage {
    Stage::new(&[0, 0], false)
}

/// A directory on set 0 with a directory on set 1 in it, in which is a file on set 1.
fn nested(stage: &mut Stage) -> (ObjectRef, ObjectRef) {
    let root = stage.root();
    let outer_name = stage.name_on(0, root, 0);
    let outer = stage.mkdir(root, &outer_name);
    let inner_name = stage.name_on(1, outer, 0);
    let inner = stage.mkdir(outer, &inner_name);
    let text = stage.name_on(1, inner, 0);
    let file = stage.create(inner, &text);
    (inner, file)
}

/// Power is lost: set 0 comes back as it was when it was last flushed, set 1 as it was left.
fn set_0_forgets(stage: &mut Stage) {
    stage.cluster.kill(0);
    {
        let mut disks = stage.cluster.disks.lock();
        let (forgets, keeps) = (disks.device(SetId(0)), disks.device(SetId(1)));
        disks.flush(keeps);
        disks.lose_power(forgets, |_| 0);
    }
    stage.cluster.nodes[0].lost_power.store(true, Ordering::Relaxed);
    stage.forget_all();
}

fn lost_and_found(stage: &mut Stage) -> Result<ObjectRef, Errno> {
    let root = stage.root();
    let attr = stage.look_up(root, "lost+found")?;
    assert_eq!((attr.perm, attr.uid, attr.gid), (0o700, 0, 0));
    Ok(ObjectRef { gfid: attr.gfid, home: attr.home })
}

fn damage(stage: &Stage) -> Vec<String> {
    let volume = stage.cluster.nodes[0].volume.as_ref().unwrap();
    volume.lock().open_sets().flat_map(|engine| engine.store.damage.clone()).collect()
}

#[test] // N3; PROTOCOL 8, 19
fn a_directory_whose_own_directory_was_forgotten_goes_there_with_all_that_is_in_it() {
    let mut stage = two_bricks();
    let (inner, file) = nested(&mut stage);
    set_0_forgets(&mut stage);
    stage.restart(0);
    let found = lost_and_found(&mut stage).unwrap();
    let rescued = stage.look_up(found, &inner.gfid.to_string()).unwrap();
    assert_eq!((rescued.gfid, rescued.home), (inner.gfid, inner.home));
    let text = stage.name_on(1, inner, 0);
    assert_eq!(stage.look_up(inner, &text).map(|attr| attr.gfid), Ok(file.gfid));
    stage.finish("a forgotten directory");
}

#[test] // N3; PROTOCOL 8, 19
fn a_file_with_data_goes_there_and_one_without_goes() {
    for size in [0, 1] {
        let mut stage = two_bricks();
        let root = stage.root();
        let dir_name = stage.name_on(0, root, 0);
        let dir = stage.mkdir(root, &dir_name);
        let text = stage.name_on(1, dir, 0);
        let file = stage.create(dir, &text);
        stage.cluster.disks.lock().change(SetId(1), |fs| fs.inodes.get_mut(&file.gfid).unwrap().size = size);
        set_0_forgets(&mut stage);
        stage.restart(0);
        if size == 0 {
            assert_eq!(lost_and_found(&mut stage), Err(Errno::ENOENT));
            assert!(!stage.cluster.disks.lock().fs(SetId(1)).inodes.contains_key(&file.gfid));
        } else {
            let found = lost_and_found(&mut stage).unwrap();
            let rescued = stage.look_up(found, &file.gfid.to_string()).unwrap();
            assert_eq!((rescued.gfid, rescued.size, rescued.nlink), (file.gfid, size, 1));
        }
        stage.finish(&format!("{size} bytes in a forgotten directory"));
    }
}

#[test] // N1, N3; PROTOCOL 8, 19
fn a_directory_whose_name_another_has_got_goes_there_if_it_has_entries() {
    for is_full in [false, true] {
        let mut stage = two_bricks();
        let root = stage.root();
        let text = stage.name_on(0, root, 0);
        let other_name = stage.name_on(1, root, 0);
        let other = stage.mkdir(root, &other_name);
        if is_full {
            let child = stage.name_on(1, other, 0);
            stage.create(other, &child);
        }
        let holder = stage.create(root, &text);
        // As after a rename of which the name's own set has lost its part.
        stage.cluster.kill(0);
        stage.cluster.disks.lock().change(SetId(1), |fs| {
            fs.entries.remove(&(Gfid::ROOT, other_name.into_bytes()));
            fs.entries.insert((Gfid::ROOT, text.clone().into_bytes()), other.gfid);
            fs.dir_handles.insert(other.gfid, (Gfid::ROOT, text.clone().into_bytes()));
        });
        stage.cluster.nodes[0].lost_power.store(true, Ordering::Relaxed);
        stage.restart(0);
        assert_eq!(stage.look_up(root, &text).map(|attr| attr.gfid), Ok(holder.gfid));
        if is_full {
            let found = lost_and_found(&mut stage).unwrap();
            assert_eq!(stage.look_up(found, &other.gfid.to_string()).map(|attr| attr.gfid), Ok(other.gfid));
        } else {
            assert_eq!(lost_and_found(&mut stage), Err(Errno::ENOENT));
        }
        stage.finish("a name that leads elsewhere");
    }
}

#[test] // N3
fn several_go_to_the_one_that_is_there() {
    let mut stage = two_bricks();
    let root = stage.root();
    let outer_name = stage.name_on(0, root, 0);
    let outer = stage.mkdir(root, &outer_name);
    let mut inner = Vec::new();
    for nth in 0..5 {
        let text = stage.name_on(1, outer, nth);
        let dir = stage.mkdir(outer, &text);
        let child = stage.name_on(1, dir, 0);
        stage.create(dir, &child);
        inner.push(dir);
    }
    set_0_forgets(&mut stage);
    stage.restart(0);
    let found = lost_and_found(&mut stage).unwrap();
    for dir in &inner {
        assert_eq!(stage.look_up(found, &dir.gfid.to_string()).map(|attr| attr.gfid), Ok(dir.gfid));
    }
    // It is a directory like others: what is in it may be removed.
    for dir in inner {
        let child = stage.name_on(1, dir, 0);
        stage.run(unlink(dir, &child));
        stage.run(Fop::Rmdir { parent: found, name: Name::new(dir.gfid.to_string().into_bytes()).unwrap() });
    }
    stage.run(super::stage::rmdir(root, "lost+found"));
    stage.finish("several");
}

#[test] // N3
fn where_anybody_could_look_into_it_nothing_goes_there_and_nothing_is_lost() {
    let others: [(&str, Making); 2] = [
        ("a directory", Making::Directory),
        ("a file", Making::File { open: false, exclusive: true, truncate: false }),
    ];
    for (what, making) in others {
        let mut stage = two_bricks();
        let (inner, file) = nested(&mut stage);
        let root = stage.root();
        stage.run(make(root, "lost+found", making));
        set_0_forgets(&mut stage);
        stage.restart(0);
        let told = damage(&stage);
        let is_told = |gfid: Gfid| told.iter().any(|line| line.contains(&gfid.to_string()));
        assert!(is_told(inner.gfid), "{what}: {told:?}");
        {
            let disks = stage.cluster.disks.lock();
            let fs = disks.fs(SetId(1));
            assert!(fs.inodes.contains_key(&inner.gfid) && fs.inodes.contains_key(&file.gfid), "{what}");
        }
        // Once that is out of the way, the next start does it.
        let out_of_the_way = super::stage::rename((root, "lost+found"), (root, "mine"));
        stage.run(out_of_the_way);
        stage.restart(0);
        let found = lost_and_found(&mut stage).unwrap();
        assert_eq!(stage.look_up(found, &inner.gfid.to_string()).map(|attr| attr.gfid), Ok(inner.gfid), "{what}");
        assert!(!stage.cluster.nodes[0].lost_power.load(Ordering::Relaxed) && damage(&stage).is_empty(), "{what}");
        stage.finish(what);
    }
}

#[test] // N3; PROTOCOL 20
fn a_death_on_the_way_there_is_made_good_by_the_next_look() {
    let mut deaths = 0;
    loop {
        let mut stage = two_bricks();
        let (inner, file) = nested(&mut stage);
        set_0_forgets(&mut stage);
        stage.cluster.start_node(0);
        stage.cluster.nodes[0].process.die_after(deaths);
        stage.settle();
        if stage.cluster.is_up(0) {
            break;
        }
        stage.restart(0);
        let found = lost_and_found(&mut stage).unwrap();
        let rescued = stage.look_up(found, &inner.gfid.to_string());
        assert_eq!(rescued.map(|attr| attr.gfid), Ok(inner.gfid), "death at call {deaths}");
        let text = stage.name_on(1, inner, 0);
        assert_eq!(stage.look_up(inner, &text).map(|attr| attr.gfid), Ok(file.gfid), "death at call {deaths}");
        stage.finish(&format!("death at call {deaths}"));
        deaths += 1;
    }
    assert!((5..300).contains(&deaths), "{deaths} calls");
}
