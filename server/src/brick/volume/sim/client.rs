//! Clients of a simulated volume: each has one operation at a time, over few shared names; it goes where it
//! is sent, and asks again with the same number when the node died under it (PROTOCOL 13).

use super::cluster::{Back, Call, CallId, Cluster};
use super::rng::Rng;
use crate::brick::volume::Stop;
use brickfs_common::attr::{Attr, Kind};
use brickfs_common::errno::Errno;
use brickfs_common::fop::{Answer, Fop, FopReply, Making, ObjectRef, RenameFlags};
use brickfs_common::ids::{ClientId, Gfid, SetId};
use brickfs_common::name::Name;

/// Names that anything is done with.
const COMMON: [&str; 5] = ["a", "b", "c", "d", "e"];
/// Names of files that are never unlinked or replaced.
const KEPT: [&str; 3] = ["kept1", "kept2", "kept3"];
/// A name in the root that always leads to something (N2).
pub const ALWAYS: &str = "always";
/// How often a call that failed in between is asked again.
const TRIES_MAX: u32 = 40;
/// Objects that clients remember.
const KNOWN_MAX: usize = 24;

pub fn name(text: &str) -> Name {
    Name::new(text.as_bytes().to_vec()).unwrap()
}

/// How an operation ended.
#[derive(Debug)]
pub struct Ended {
    pub call: Call,
    /// The result; `None` where nobody can know.
    pub result: Option<Result<FopReply, Errno>>,
}

pub struct Client {
    pub id: ClientId,
    next_request: u64,
    waiting: Option<Waiting>,
    pub ops_left: usize,
}

struct Waiting {
    call: Call,
    id: Option<CallId>,
    tries: u32,
}

/// What clients know of the volume.
pub struct Known {
    pub dirs: Vec<ObjectRef>,
    pub files: Vec<ObjectRef>,
    root: ObjectRef,
}

impl Known {
    pub fn new(root_home: SetId) -> Known {
        let root = ObjectRef { gfid: Gfid::ROOT, home: root_home };
        Known { dirs: vec![root], files: Vec::new(), root }
    }

    pub fn learn(&mut self, rng: &mut Rng, attr: &Attr) {
        let object = ObjectRef { gfid: attr.gfid, home: attr.home };
        let list = if attr.kind == Kind::Directory { &mut self.dirs } else { &mut self.files };
        if attr.gfid == Gfid::ROOT || list.contains(&object) {
            return;
        }
        if list.len() < KNOWN_MAX {
            list.push(object);
        } else {
            let index = 1 + rng.below(KNOWN_MAX - 1);
            list[index] = object;
        }
    }
}

impl Client {
    pub fn new(number: u8, ops: usize) -> Client {
        Client { id: ClientId([number; 16]), next_request: 1, waiting: None, ops_left: ops }
    }

    pub fn is_idle(&self) -> bool {
        self.waiting.is_none()
    }

    pub fn waits_for(&self, id: CallId) -> bool {
        self.waiting.as_ref().is_some_and(|waiting| waiting.id == Some(id))
    }

    /// What it waits for, for a report.
    pub fn describe(&self) -> Option<String> {
        self.waiting.as_ref().map(|waiting| format!("client {}: {:?} ({:?})", self.id.0[0], waiting.call, waiting.id))
    }

    /// Starts an operation.
    pub fn start(&mut self, cluster: &mut Cluster, fop: Fop) {
        let set = first_set(cluster, &fop);
        let call = Call { client: self.id, request: self.next_request, set, fop };
        self.next_request += 1;
        self.ops_left = self.ops_left.saturating_sub(1);
        let id = cluster.call(&call);
        self.waiting = Some(Waiting { call, id: Some(id), tries: 0 });
    }

    /// Asks again what has to be asked again, once the node is back.
    pub fn retry(&mut self, cluster: &mut Cluster) {
        if let Some(waiting) = &mut self.waiting
            && waiting.id.is_none()
            && cluster.is_serving(cluster.node_of(waiting.call.set))
        {
            waiting.id = Some(cluster.call(&waiting.call));
        }
    }

    /// Something came back. `loses_reply`: not as far as the client. Answers what ended.
    pub fn take(&mut self, back: Back, loses_reply: bool) -> Option<Ended> {
        let waiting = self.waiting.as_mut()?;
        waiting.id = None;
        waiting.tries += 1;
        let result = match back {
            Back::Lost => return None,
            Back::Ran(_) if loses_reply => return None,
            Back::Ran(Err(Stop::GoTo(set))) => {
                assert!(waiting.tries < 1000, "sent around for ever: {:?}", waiting.call);
                waiting.call.set = set;
                return None;
            }
            Back::Ran(Err(Stop::Errno(errno))) => Err(errno),
            Back::Ran(Ok(reply)) => match reply.result {
                Err(errno) => Err(errno),
                Ok(_) => Ok(reply),
            },
        };
        if matches!(result, Err(Errno::EIO | Errno::EAGAIN)) && waiting.tries < TRIES_MAX {
            return None;
        }
        let waiting = self.waiting.take()?;
        let result = if matches!(result, Err(Errno::EIO | Errno::EAGAIN)) { None } else { Some(result) };
        Some(Ended { call: waiting.call, result })
    }
}

/// The set that a client addresses: the dentry set of a name, else the home.
pub fn first_set(cluster: &Cluster, fop: &Fop) -> SetId {
    match fop {
        Fop::Lookup { parent, name }
        | Fop::LookupOpen { parent, name }
        | Fop::Make { parent, name, .. }
        | Fop::Unlink { parent, name }
        | Fop::Rmdir { parent, name }
        | Fop::Rename { parent, name, .. } => cluster.dentry_set(parent.gfid, name),
        Fop::Link { object, .. } => object.home,
        _ => SetId(0),
    }
}

/// An operation drawn at random.
pub fn choose_fop(rng: &mut Rng, known: &Known) -> Fop {
    let common = |rng: &mut Rng| name(rng.pick(&COMMON));
    let kept = |rng: &mut Rng| name(rng.pick(&KEPT));
    let dir = |rng: &mut Rng| if rng.is_one_in(3) { known.root } else { rng.pick(&known.dirs) };
    let (parent, new_parent) = (dir(rng), dir(rng));
    let new_parent = if rng.is_one_in(3) { parent } else { new_parent };
    let make = |name: Name, making: Making| Fop::Make { parent, name, making, perm: 0o755, umask: 0 };
    let file = || Making::File { open: false, exclusive: true, truncate: false };
    let (no, exchange) = (RenameFlags::default(), RenameFlags { exchange: true, ..RenameFlags::default() });
    let no_replace = RenameFlags { no_replace: true, ..no };
    let whiteout = RenameFlags { whiteout: true, ..no };
    let rename = |old: Name, new: Name, flags| Fop::Rename { parent, name: old, new_parent, new_name: new, flags };
    match rng.below(32) {
        0..=3 => make(common(rng), file()),
        4..=6 => make(common(rng), Making::Directory),
        7 => make(common(rng), Making::Symlink(bytes::Bytes::from_static(b"target"))),
        8 | 9 => make(kept(rng), file()),
        10 | 11 => Fop::Unlink { parent, name: common(rng) },
        12 | 13 => Fop::Rmdir { parent, name: common(rng) },
        14 | 15 if !known.files.is_empty() => {
            let new_name = common(rng);
            Fop::Link { object: rng.pick(&known.files), new_parent, new_name }
        }
        16..=20 => rename(common(rng), common(rng), no),
        21 => rename(common(rng), common(rng), whiteout),
        22 => rename(common(rng), common(rng), no_replace),
        23 | 24 => rename(common(rng), common(rng), exchange),
        25 => rename(kept(rng), kept(rng), no_replace),
        26 => rename(kept(rng), kept(rng), exchange),
        27 => Fop::Rename { parent, name: common(rng), new_parent: known.root, new_name: name(ALWAYS), flags: no },
        28 => Fop::Lookup { parent: known.root, name: name(ALWAYS) },
        29 => Fop::Lookup { parent, name: kept(rng) },
        _ => Fop::Lookup { parent, name: common(rng) },
    }
}

/// What an answer tells of objects.
pub fn attrs(reply: &FopReply) -> Vec<Attr> {
    let mut attrs: Vec<Attr> = [&reply.attr, &reply.parent, &reply.new_parent].into_iter().flatten().cloned().collect();
    if let Ok(Answer::Entries { entries, .. }) = &reply.result {
        attrs.extend(entries.iter().filter_map(|entry| entry.attr.clone()));
    }
    attrs
}
