//! What must be true of a volume when all is quiet (N1-N5), read through the operations that clients have
//! and compared with what is on the disks.

use super::client::{Ended, name};
use super::cluster::{Back, Call, Cluster};
use crate::brick::effect::Effect;
use crate::brick::store::model::LIMBO;
use crate::brick::store::model::disk::Spot;
use crate::brick::volume::Stop;
use brickfs_common::attr::{Attr, Kind};
use brickfs_common::errno::Errno;
use brickfs_common::fop::{Answer, DirEntry, Fop, FopReply, ObjectRef};
use brickfs_common::ids::{ClientId, Gfid, SetId};
use std::collections::{BTreeMap, BTreeSet};

/// The client that looks.
const OBSERVER: ClientId = ClientId([0xee; 16]);

/// What was found wrong, one line each.
pub type Findings = Vec<String>;

/// The tree as clients see it.
#[derive(Default)]
pub struct Tree {
    /// Names of each object.
    pub names: BTreeMap<Gfid, Vec<String>>,
    pub attrs: BTreeMap<Gfid, Attr>,
    subdirs: BTreeMap<Gfid, u32>,
}

/// Runs a call while nothing else goes on, wherever it is sent.
pub fn ask(cluster: &mut Cluster, set: SetId, fop: Fop) -> Result<FopReply, Errno> {
    let mut call = Call { client: OBSERVER, request: 1, set, fop };
    for _ in 0..10 {
        let id = cluster.call(&call);
        cluster.settle();
        let back = cluster.take_backs().into_iter().find(|(other, _)| *other == id);
        match back.map(|(_, back)| back) {
            Some(Back::Ran(Ok(reply))) => return reply.result.clone().map(|_| reply),
            Some(Back::Ran(Err(Stop::GoTo(set)))) => call.set = set,
            Some(Back::Ran(Err(Stop::Errno(errno)))) => return Err(errno),
            Some(Back::Lost) => return Err(Errno::ENXIO),
            None => return Err(Errno::ETIMEDOUT),
        }
    }
    Err(Errno::ELOOP)
}

/// Looks a name up.
pub fn look_up(cluster: &mut Cluster, parent: ObjectRef, text: &str) -> Result<Attr, Errno> {
    let set = cluster.dentry_set(parent.gfid, &name(text));
    let reply = ask(cluster, set, Fop::Lookup { parent, name: name(text) })?;
    reply.attr.ok_or(Errno::EPROTO)
}

/// The entries of a directory on all sets.
pub fn list(cluster: &mut Cluster, directory: ObjectRef) -> Result<Vec<(SetId, DirEntry)>, Errno> {
    let mut all = Vec::new();
    for set in cluster.set_ids() {
        let reply = ask(cluster, set, Fop::ReadDir { directory, after: 0, limit: 1000, plus: true })?;
        if let Ok(Answer::Entries { entries, .. }) = reply.result {
            all.extend(entries.into_iter().map(|entry| (set, entry)));
        }
    }
    Ok(all)
}

/// Walks the whole volume: every listed name leads to the listed object, once.
pub fn walk(cluster: &mut Cluster, findings: &mut Findings) -> Tree {
    let mut tree = Tree::default();
    let root = ObjectRef { gfid: Gfid::ROOT, home: cluster.shape.root_home };
    let mut to_do = vec![(root, String::new())];
    let mut seen = BTreeSet::new();
    while let Some((dir, path)) = to_do.pop() {
        if !seen.insert(dir.gfid) {
            findings.push(format!("directory {path} ({}) is reached twice (N4)", dir.gfid));
            continue;
        }
        let entries = match list(cluster, dir) {
            Ok(entries) => entries,
            Err(errno) => {
                findings.push(format!("directory {path} ({}) cannot be listed: {errno}", dir.gfid));
                continue;
            }
        };
        let mut names = BTreeSet::new();
        for (set, entry) in entries {
            let full = format!("{path}/{}", entry.name);
            if !names.insert(entry.name.clone()) {
                findings.push(format!("{full} is listed twice (N5)"));
            }
            match look_up(cluster, dir, &entry.name.to_string()) {
                Ok(attr) if attr.gfid == entry.gfid => drop(tree.attrs.insert(attr.gfid, attr)),
                Ok(attr) => findings.push(format!("{full} is listed as {} and leads to {}", entry.gfid, attr.gfid)),
                Err(errno) => findings.push(format!("{full} is listed and does not resolve: {errno} (N3)")),
            }
            tree.names.entry(entry.gfid).or_default().push(full.clone());
            if entry.kind == Kind::Directory {
                *tree.subdirs.entry(dir.gfid).or_default() += 1;
                to_do.push((ObjectRef { gfid: entry.gfid, home: set }, full));
            }
        }
    }
    match ask(cluster, root.home, Fop::Lookup { parent: root, name: name("no such name") }) {
        Err(Errno::ENOENT) => {}
        other => findings.push(format!("a name that nobody made: {other:?}")),
    }
    tree
}

/// Link counts are the numbers of names.
fn check_counts(tree: &Tree, findings: &mut Findings) {
    for (gfid, attr) in &tree.attrs {
        let names = tree.names.get(gfid).cloned().unwrap_or_default();
        if attr.kind == Kind::Directory {
            let subdirs = tree.subdirs.get(gfid).copied().unwrap_or(0);
            if attr.nlink != 2 + subdirs {
                findings.push(format!("directory {names:?} has nlink {}, {subdirs} subdirectories", attr.nlink));
            }
            if names.len() != 1 {
                findings.push(format!("directory {gfid} has the names {names:?}"));
            }
        } else if attr.nlink as usize != names.len() {
            findings.push(format!("file {gfid} has nlink {} and the names {names:?}", attr.nlink));
        }
    }
}

/// Nothing is on the disks that no name leads to, and nothing is left of transactions.
fn check_disks(cluster: &Cluster, tree: &Tree, findings: &mut Findings) {
    let disks = cluster.disks.lock();
    for set in cluster.set_ids() {
        let fs = disks.fs(set);
        for (what, count) in [
            ("pending parts", fs.pending.len()),
            ("commits", fs.commits.len()),
            ("parked objects", fs.parked.len()),
            ("orphans", fs.orphans.len()),
        ] {
            if count > 0 {
                findings.push(format!("set {set} is left with {count} {what}"));
            }
        }
        for (gfid, inode) in &fs.inodes {
            let is_named = *gfid == Gfid::ROOT || tree.names.contains_key(gfid);
            if !is_named {
                let is_placed = fs.entries.values().any(|other| other == gfid);
                // What was being made lies in `tmp`, which the next start empties.
                if inode.meta.kind == Kind::Directory && !is_placed && !fs.dir_handles.contains_key(gfid) {
                    continue;
                }
                let what = if inode.meta.kind == Kind::Directory { "directory" } else { "file" };
                let home = if inode.meta.home == set { "" } else { " (copy)" };
                findings
                    .push(format!("{what} {gfid}{home} on set {set} has no name (N3); in a directory: {is_placed}"));
            }
        }
        for gfid in fs.dir_handles.keys() {
            if !fs.inodes.contains_key(gfid) {
                findings.push(format!("set {set} has a handle of {gfid}, which is not there"));
            }
        }
    }
}

/// A name is native on one set at most; claims lie on their dentry sets.
fn check_claims(cluster: &Cluster, tree: &Tree, findings: &mut Findings) {
    let disks = cluster.disks.lock();
    let mut natives: BTreeMap<Spot, Vec<(SetId, Gfid)>> = BTreeMap::new();
    for set in cluster.set_ids() {
        let fs = disks.fs(set);
        for (spot, gfid) in &fs.entries {
            let meta = &fs.inodes[gfid].meta;
            if spot.0 != LIMBO && (meta.kind != Kind::Directory || meta.home == set) {
                natives.entry(spot.clone()).or_default().push((set, *gfid));
            }
        }
    }
    for (spot, holders) in &natives {
        if holders.len() > 1 {
            findings.push(format!("{}/{} belongs to {holders:?} (N5)", spot.0, spot.1.escape_ascii()));
        }
    }
    for set in cluster.set_ids() {
        for (spot, claim) in &disks.fs(set).claims {
            let text = String::from_utf8_lossy(&spot.1);
            if spot.0 != Gfid::ROOT && !tree.names.contains_key(&spot.0) {
                findings.push(format!("set {set} claims {text} in {}, which is no more", spot.0));
            }
            if cluster.dentry_set(spot.0, &name(&text)) != set {
                findings.push(format!("set {set} claims {}/{text}, which is not its name", spot.0));
            }
            let bearers = natives.get(spot).into_iter().flatten().filter(|(_, gfid)| gfid.0 == claim.gfid).count();
            if bearers > 1 {
                findings.push(format!("the claim of {}/{text} is confirmed {bearers} times", spot.0));
            }
        }
    }
}

/// A claim leads to what is listed, or nowhere.
fn check_unlisted(cluster: &mut Cluster, tree: &Tree, findings: &mut Findings) {
    let mut claimed = Vec::new();
    for set in cluster.set_ids() {
        claimed.extend(cluster.disks.lock().fs(set).claims.keys().cloned());
    }
    let root_home = cluster.shape.root_home;
    for (parent, text) in claimed {
        let (home, path) = match (parent == Gfid::ROOT, tree.attrs.get(&parent), tree.names.get(&parent)) {
            (true, _, _) => (root_home, String::new()),
            (_, Some(attr), Some(names)) => (attr.home, names[0].clone()),
            _ => continue,
        };
        let text = String::from_utf8_lossy(&text).into_owned();
        let Ok(attr) = look_up(cluster, ObjectRef { gfid: parent, home }, &text) else { continue };
        let full = format!("{path}/{text}");
        if !tree.names.get(&attr.gfid).is_some_and(|names| names.contains(&full)) {
            findings.push(format!("{full} leads to {} and is not listed (N3)", attr.gfid));
        }
    }
}

/// What the bricks themselves found damaged.
fn check_damage(cluster: &Cluster, findings: &mut Findings) {
    for node in &cluster.nodes {
        let Some(volume) = &node.volume else { continue };
        for engine in volume.lock().open_sets() {
            findings.extend(engine.store.damage.iter().map(|line| format!("damage on set {}: {line}", engine.id)));
        }
    }
}

/// All of it.
pub fn check(cluster: &mut Cluster) -> (Tree, Findings) {
    let mut findings = Findings::new();
    let tree = walk(cluster, &mut findings);
    check_counts(&tree, &mut findings);
    check_disks(cluster, &tree, &mut findings);
    check_claims(cluster, &tree, &mut findings);
    check_damage(cluster, &mut findings);
    check_unlisted(cluster, &tree, &mut findings);
    (tree, findings)
}

/// A request that succeeded was carried out once, one that failed was not (PROTOCOL 13).
pub fn check_results(cluster: &Cluster, ended: &[Ended], findings: &mut Findings) {
    let mut counts: BTreeMap<(ClientId, u64), i32> = BTreeMap::new();
    for set in cluster.set_ids() {
        for effect in cluster.disks.lock().log(set) {
            let Some(client) = effect.client() else { continue };
            *counts.entry((client, effect.request)).or_default() += count_of(&effect);
        }
    }
    for one in ended {
        let Some(result) = &one.result else { continue };
        let count = counts.get(&(one.call.client, one.call.request)).copied().unwrap_or(0);
        let is_rename = matches!(one.call.fop, Fop::Rename { .. });
        let fits = match result {
            Ok(_) if !one.call.fop.is_mutation() => true,
            Ok(_) => count == 1 || is_rename && count == 0,
            Err(_) => count == 0,
        };
        if !fits {
            let result = result.as_ref().map(|reply| &reply.result);
            findings.push(format!("{:?} was carried out {count} times and answered {result:?}", one.call));
        }
    }
}

fn count_of(effect: &Effect) -> i32 {
    if effect.outcome.aborted { -1 } else { 1 }
}

/// ESTALE says that something is gone: it is not answered when all that was named lives.
pub fn check_stale(tree: &Tree, ended: &[Ended], findings: &mut Findings) {
    for one in ended.iter().filter(|one| matches!(one.result, Some(Err(Errno::ESTALE)))) {
        let named: Vec<Gfid> = match &one.call.fop {
            Fop::Rename { parent, new_parent, .. } => vec![parent.gfid, new_parent.gfid],
            Fop::Link { object, new_parent, .. } => vec![object.gfid, new_parent.gfid],
            Fop::Make { parent, .. } | Fop::Unlink { parent, .. } => vec![parent.gfid],
            Fop::Rmdir { parent, .. } | Fop::Lookup { parent, .. } => vec![parent.gfid],
            _ => continue,
        };
        if named.iter().all(|gfid| *gfid == Gfid::ROOT || tree.names.contains_key(gfid)) {
            findings.push(format!("{:?} was answered ESTALE and all of it is there", one.call));
        }
    }
}
