//! What may be told to the kernel, by name and by number.

use super::*;
use brickfs_common::attr::Timestamp;
use brickfs_common::ids::SetId;

const TTL: Duration = Duration::from_secs(1);

pub fn attr(n: u8, kind: Kind) -> Attr {
    let t = Timestamp { sec: 100, nsec: 0 };
    Attr {
        gfid: Gfid([n; 16]),
        home: SetId(0),
        kind,
        perm: 0o644,
        uid: 0,
        gid: 0,
        nlink: 1,
        size: 0,
        blocks: 0,
        rdev: 0,
        atime: t,
        mtime: t,
        ctime: t,
        btime: t,
        project: 0,
        has_capability: false,
        has_acl: false,
        change: 0,
    }
}

fn tables() -> Tables {
    Tables::new(ObjectRef { gfid: Gfid::ROOT, home: SetId(0) }, TTL)
}

#[test]
fn the_table_has_what_the_kernel_has_not_forgotten() {
    let mut t = tables();
    let asked = t.asked(Instant::now());
    let key = t.key(1, b"a");
    let ino = t.enter(key, &attr(9, Kind::File), asked);
    assert_eq!(t.enter(key, &attr(9, Kind::File), asked), ino);
    t.learn(&attr(9, Kind::File), asked);
    assert_eq!((t.find(key), t.counts()), (Some(ino), [2, 1, 1, 0, 0]));
    t.forget(ino, 1);
    assert!(t.object(ino).is_some());
    t.forget(ino, 1);
    assert_eq!((t.object(ino), t.counts()), (None, [1, 0, 0, 0, 0]));
    t.forget(1, 100);
    assert!(t.object(1).is_some());
}

#[test]
fn two_objects_of_one_number_are_told_apart() {
    let mut t = tables();
    let asked = t.asked(Instant::now());
    let (one, mut two) = (attr(9, Kind::File), attr(9, Kind::File));
    two.gfid.0[0] = 1;
    assert_eq!(one.gfid.ino(), two.gfid.ino());
    let (a, b) = (t.enter(t.key(1, b"a"), &one, asked), t.enter(t.key(1, b"b"), &two, asked));
    assert_ne!(a, b);
    assert_eq!((t.ino(&one.gfid), t.ino(&two.gfid)), (a, b));
    t.forget(b, 1);
    assert_eq!(t.ino(&two.gfid), a, "no alias is left");
}

#[test] // two mounts differ by at most the timeout
fn what_is_told_holds_for_what_is_left_of_the_timeout() {
    let mut t = tables();
    let asked = t.asked(Instant::now());
    let ino = t.enter(t.key(1, b"d"), &attr(9, Kind::Directory), asked);
    t.learn(&attr(9, Kind::Directory), asked);
    let later = asked.at + TTL * 3 / 4;
    assert_eq!(t.fresh_attr(ino, later).map(|(_, left)| left), Some(TTL / 4));
    assert_eq!(t.remaining(asked, later), TTL / 4);
    assert!(t.lacks_xattr(ino, b"security.capability", later));
    assert!(!t.lacks_xattr(ino, b"user.x", later));
    let over = asked.at + TTL;
    assert!(t.fresh_attr(ino, over).is_none() && !t.lacks_xattr(ino, b"security.capability", over));
    assert_eq!(t.remaining(asked, over), Duration::ZERO);
}

#[test]
fn strict_mounts_keep_nothing() {
    let mut t = Tables::new(ObjectRef { gfid: Gfid::ROOT, home: SetId(0) }, Duration::ZERO);
    let asked = t.asked(Instant::now());
    let ino = t.enter(t.key(1, b"d"), &attr(9, Kind::Directory), asked);
    t.learn(&attr(9, Kind::Directory), asked);
    t.made_directory(ino, 5, asked, 1);
    assert!(t.fresh_attr(ino, asked.at).is_none());
    assert!(!t.lacks_xattr(ino, b"security.capability", asked.at));
    assert!(!t.lacks_name(t.key(ino, b"x"), asked.at));
}

#[test] // PROTOCOL 32: an own write is never hidden by what was asked before it
fn attributes_asked_for_before_an_own_change_are_not_told() {
    let mut t = tables();
    let now = Instant::now();
    let before = t.asked(now);
    let ino = t.enter(t.key(1, b"f"), &attr(9, Kind::File), before);
    t.learn(&attr(9, Kind::File), before);
    t.changed(ino);
    assert!(t.fresh_attr(ino, now).is_none());
    assert!(!t.lacks_xattr(ino, b"security.capability", now));
    assert!(!t.is_current(&attr(9, Kind::File), before));
    t.learn(&attr(9, Kind::File), before);
    assert!(t.fresh_attr(ino, now).is_none());
    let after = t.asked(now);
    assert!(t.is_current(&attr(9, Kind::File), after));
    t.learn(&attr(9, Kind::File), after);
    assert!(t.fresh_attr(ino, now).is_some());
}

#[test]
fn what_is_told_never_goes_back_in_time() {
    let mut t = tables();
    let asked = t.asked(Instant::now());
    let mut newer = attr(9, Kind::File);
    newer.ctime.nsec = 7;
    t.enter(t.key(1, b"f"), &newer, asked);
    assert!(t.is_current(&newer, asked));
    assert!(!t.is_current(&attr(9, Kind::File), asked));
    let mut dir = attr(8, Kind::Directory);
    dir.change = 5;
    let ino = t.enter(t.key(1, b"d"), &dir, asked);
    t.learn(&dir, asked);
    dir.change = 4;
    t.learn(&dir, asked);
    assert_eq!(t.fresh_attr(ino, asked.at).map(|(attr, _)| attr.change), Some(5));
}

#[test]
fn of_a_file_with_other_names_nothing_is_kept() {
    let mut t = tables();
    let asked = t.asked(Instant::now());
    let (a, b) = (t.key(1, b"a"), t.key(1, b"b"));
    let mut linked = attr(9, Kind::File);
    linked.nlink = 2;
    let ino = t.enter(a, &linked, asked);
    t.enter(b, &linked, asked);
    assert_eq!((t.find(a), t.find(b)), (None, Some(ino)), "the newest name alone");
    t.learn(&linked, asked);
    assert!(t.fresh_attr(ino, asked.at).is_none() && t.is_linked(ino));
    t.unname(b);
    t.learn(&attr(9, Kind::File), asked);
    assert!(t.fresh_attr(ino, asked.at).is_none(), "its last name is not known: who removes it is not noticed");
}

#[test] // PROTOCOL 33
fn where_files_are_locked_no_name_is_known_to_be_absent() {
    let mut t = tables();
    let asked = t.asked(Instant::now());
    let dir = t.enter(t.key(1, b"dir"), &attr(9, Kind::Directory), asked);
    t.made_directory(dir, 0, asked, 0);
    let (database, other) = (t.key(dir, b"database"), t.key(dir, b"other"));
    let ino = t.enter(database, &attr(8, Kind::File), asked);
    let other_ino = t.enter(other, &attr(7, Kind::File), asked);
    assert!(!t.tell(other_ino, Kind::File, Some((dir, b"other")), asked, asked.at).is_zero());
    assert!(t.lacks_name(t.key(dir, b"journal"), asked.at));
    let taken_back = ToldFile { parent: dir, ino: other_ino, name: Some((*b"other").into()) };
    assert_eq!(t.locked(ino, asked.at), [taken_back]);
    assert!(!t.lacks_name(t.key(dir, b"journal"), asked.at));
    assert!(t.tell(other_ino, Kind::File, None, asked, asked.at).is_zero());
    assert_eq!(t.locked(ino, asked.at), [], "the kernel was told of nothing since");
}

#[test]
fn names_follow_renames() {
    let mut t = tables();
    let asked = t.asked(Instant::now());
    let (a, b) = (t.key(1, b"a"), t.key(2, b"b"));
    let one = t.enter(a, &attr(9, Kind::File), asked);
    let two = t.enter(b, &attr(8, Kind::File), asked);
    t.renamed(a, b, true);
    assert_eq!((t.find(a), t.find(b)), (Some(two), Some(one)));
    t.renamed(a, b, false);
    assert_eq!((t.find(a), t.find(b)), (None, Some(two)));
    t.forget(one, 1);
    t.forget(two, 1);
    assert_eq!(t.counts(), [1, 0, 0, 0, 0]);
}

#[test]
fn a_million_objects_leave_no_room_behind() {
    let mut t = tables();
    let asked = t.asked(Instant::now());
    let mut inos = Vec::new();
    for n in 0..200_000u64 {
        let mut a = attr(0, Kind::File);
        a.gfid.0[8..].copy_from_slice(&(n + 10).to_be_bytes());
        inos.push(t.enter(t.key(1, &n.to_le_bytes()), &a, asked));
    }
    inos.iter().for_each(|ino| t.forget(*ino, 1));
    assert_eq!(t.counts(), [1, 0, 0, 0, 0]);
    assert!(t.inodes.capacity() < 16384 && t.dentries.capacity() < 16384);
}
