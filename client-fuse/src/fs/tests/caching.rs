//! What is answered from memory, and what is not.

use super::*;
use brickfs_common::fop::{Making, RenameFlags};

fn made(n: u8, kind: Kind, parent: Attr) -> FopReply {
    FopReply { parent: Some(parent), ..with(attr(n, kind, 0)) }
}

fn gone(parent: Attr) -> FopReply {
    FopReply { parent: Some(parent), ..done() }
}

impl Rig {
    fn mkdir(&self, parent: u64, name: &str, reply: FopReply) -> u64 {
        let making = (Making::Directory, 0o755, 0);
        let made = self.ask(|fs, a| fs.make(ME, (parent, name.as_bytes()), making, a));
        self.answer(reply);
        made.take().unwrap().ino
    }

    fn mknod(&self, parent: u64, name: &str) -> Answered<Told> {
        let making = (Making::File { open: false, exclusive: true, truncate: false }, 0o644, 0);
        self.ask(|fs, a| fs.make(ME, (parent, name.as_bytes()), making, a))
    }

    fn is_answered_here(&self, question: Answered<Told>) -> bool {
        let is_here = question.is_there();
        lock(&self.brick.calls).clear();
        is_here
    }
}

fn dir_attr(n: u8, change: u64) -> Attr {
    Attr { change, ..attr(n, Kind::Directory, 0) }
}

#[test]
fn the_stat_of_the_parent_that_follows_a_change_is_answered_here() {
    let rig = Rig::new();
    let making = rig.mknod(ROOT, "new");
    rig.answer(made(8, Kind::File, Attr { nlink: 5, ..root_attr(1) }));
    making.take().unwrap();
    assert_eq!(rig.get_attr(ROOT).take().unwrap().attr.nlink, 5);
    let rmdir = rig.ask(|fs, a| fs.rmdir(ME, ROOT, b"sub", a));
    rig.answer(gone(Attr { nlink: 4, ..root_attr(2) }));
    rmdir.take().unwrap();
    let told = rig.get_attr(ROOT).take().unwrap();
    assert_eq!(told.attr.nlink, 4);
    assert!(!told.ttl.is_zero() && told.ttl < std::time::Duration::from_secs(1));
}

#[test]
fn a_name_that_cannot_exist_is_not_asked_for() {
    let rig = Rig::new();
    assert!(!rig.is_answered_here(rig.look_up(ROOT, "x")), "a directory that others may have filled");
    let dir = rig.mkdir(ROOT, "mine", made(9, Kind::Directory, root_attr(1)));
    assert_eq!(rig.look_up(dir, "x").take(), Err(Errno::ENOENT));
    let making = rig.mknod(dir, "x");
    assert!(!rig.look_up(dir, "x").is_there(), "it may exist from now on");
    rig.answer(made(10, Kind::File, dir_attr(9, 1)));
    making.take().unwrap();
    lock(&rig.brick.calls).clear();
    assert_eq!(rig.look_up(dir, "y").take(), Err(Errno::ENOENT));
    assert!(!rig.is_answered_here(rig.look_up(dir, "x")));
    let unlink = rig.ask(|fs, a| fs.unlink(ME, dir, b"x", a));
    rig.answer(gone(dir_attr(9, 2)));
    unlink.take().unwrap();
    assert_eq!(rig.look_up(dir, "x").take(), Err(Errno::ENOENT));
    // Somebody else makes a name: the next change of ours tells.
    let making = rig.mknod(dir, "z");
    rig.answer(made(11, Kind::File, dir_attr(9, 4)));
    making.take().unwrap();
    assert!(!rig.is_answered_here(rig.look_up(dir, "y")));
}

#[test]
fn renames_are_followed_in_directories_that_are_known() {
    let rig = Rig::new();
    let dir = rig.mkdir(ROOT, "mine", made(9, Kind::Directory, root_attr(1)));
    let making = rig.mknod(dir, "tmp");
    rig.answer(made(10, Kind::File, dir_attr(9, 1)));
    let ino = making.take().unwrap().ino;
    let rename = rig.ask(|fs, a| fs.rename(ME, (dir, b"tmp"), (dir, b"final"), RenameFlags::default(), a));
    let mut moved = attr(10, Kind::File, 0);
    moved.ctime.nsec = 5;
    let reply = FopReply { parent: Some(dir_attr(9, 2)), new_parent: Some(dir_attr(9, 2)), ..with(moved) };
    rig.answer(reply);
    rename.take().unwrap();
    assert_eq!(rig.look_up(dir, "tmp").take(), Err(Errno::ENOENT));
    assert!(!rig.is_answered_here(rig.look_up(dir, "final")));
    assert_eq!(rig.get_attr(ino).take().unwrap().attr.ctime.nsec, 5);
}

#[test]
fn a_new_session_or_a_call_given_up_ends_what_is_known_of_names() {
    let rig = Rig::new();
    let dir = rig.mkdir(ROOT, "mine", made(9, Kind::Directory, root_attr(1)));
    rig.brick.session.fetch_add(1, Ordering::Relaxed);
    assert!(!rig.is_answered_here(rig.look_up(dir, "x")));
    let dir = rig.mkdir(ROOT, "mine2", made(12, Kind::Directory, root_attr(2)));
    rig.mknod(dir, "x");
    rig.answer(refused(Errno::EINTR));
    assert!(!rig.is_answered_here(rig.look_up(dir, "y")), "nobody knows whether it ran");
}

#[test]
fn strict_mounts_ask_for_everything() {
    let rig = Rig::with_strict(true);
    let dir = rig.mkdir(ROOT, "mine", made(9, Kind::Directory, root_attr(1)));
    assert!(!rig.is_answered_here(rig.look_up(dir, "x")));
    assert!(!rig.is_answered_here(rig.get_attr(ROOT)));
    let capability = rig.ask(|fs, a| fs.get_xattr(ME, dir, b"security.capability", a));
    assert!(!capability.is_there());
}

#[test]
fn missing_capabilities_and_acls_are_known() {
    let rig = Rig::new();
    let ino = rig.file(7);
    let ask = |name: &[u8]| rig.ask(|fs, a| fs.get_xattr(ME, ino, name, a));
    for name in [&b"security.capability"[..], b"system.posix_acl_access"] {
        assert_eq!(ask(name).take(), Err(Errno::ENODATA));
    }
    assert!(!ask(b"user.x").is_there());
    lock(&rig.brick.calls).clear();
    let set = rig.ask(|fs, a| fs.set_xattr(ME, ino, b"security.capability", Some((b"c", 0)), a));
    assert!(!ask(b"security.capability").is_there());
    let after = Attr { has_capability: true, ..attr(7, Kind::File, 0) };
    rig.answer(with(after));
    set.take().unwrap();
    lock(&rig.brick.calls).clear();
    assert!(!ask(b"security.capability").is_there());
    assert_eq!(ask(b"system.posix_acl_access").take(), Err(Errno::ENODATA));
}

#[test]
fn of_hard_links_and_exchanged_names_nothing_old_is_told() {
    let rig = Rig::new();
    let ino = rig.file(7);
    let link = rig.ask(|fs, a| fs.link(ME, ino, (ROOT, b"other"), a));
    rig.answer(FopReply { parent: Some(root_attr(1)), ..with(Attr { nlink: 2, ..attr(7, Kind::File, 0) }) });
    link.take().unwrap();
    assert!(!rig.is_answered_here(rig.get_attr(ino)));
    let (one, two) = (rig.file(20), rig.file(21));
    for ino in [one, two] {
        let set = rig.ask(|fs, a| fs.set_attr(ME, ino, Default::default(), a));
        let n = if ino == one { 20 } else { 21 };
        rig.answer(with(attr(n, Kind::File, 0)));
        set.take().unwrap();
        assert!(rig.get_attr(ino).is_there());
    }
    let flags = RenameFlags { exchange: true, ..RenameFlags::default() };
    let rename = rig.ask(|fs, a| fs.rename(ME, (ROOT, b"file20"), (ROOT, b"file21"), flags, a));
    rig.answer(FopReply { new_parent: Some(root_attr(2)), ..made(20, Kind::File, root_attr(2)) });
    rename.take().unwrap();
    assert!(rig.get_attr(one).is_there(), "the reply has told");
    assert!(!rig.is_answered_here(rig.get_attr(two)));
    rig.ask(|fs, a| fs.unlink(ME, ROOT, b"file21", a));
    rig.answer(gone(root_attr(3)));
    assert!(!rig.is_answered_here(rig.get_attr(one)), "its name is file21 since the exchange");
}
