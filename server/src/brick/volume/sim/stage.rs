//! A small volume on which a test plays one history step by step: messages can be held back, nodes can die
//! at a given call, names can be chosen by the set that they belong to.

use super::client::{Ended, name};
use super::cluster::{Back, Call, CallId, Cluster};
use super::oracle;
use super::shape::Shape;
use crate::brick::volume::{PeerCall, Stop};
use brickfs_common::attr::{Attr, Kind};
use brickfs_common::errno::Errno;
use brickfs_common::fop::{Fop, FopReply, Making, ObjectRef, RenameFlags};
use brickfs_common::ids::{ClientId, Gfid, SetId};
use std::collections::BTreeMap;

/// An operation in play.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Op(usize);

struct Playing {
    call: Call,
    id: Option<CallId>,
    result: Option<Result<FopReply, Errno>>,
}

pub struct Stage {
    pub cluster: Cluster,
    ops: Vec<Playing>,
    started: u8,
}

/// What a client sees of the volume: each path with its kind, link count and, for what was there before, gfid.
pub type View = BTreeMap<String, (Kind, u32, Option<Gfid>)>;

impl Stage {
    /// Sets on the nodes given; the root lives on set 0.
    pub fn new(node_of: &[usize], shares_device: bool) -> Stage {
        Stage::with_seed(7, node_of, shares_device)
    }

    /// The same in another order of what happens at once.
    pub fn with_seed(seed: u64, node_of: &[usize], shares_device: bool) -> Stage {
        let shape = Shape { seed, node_of: node_of.to_vec(), shares_device, root_home: SetId(0), keeps_history: true };
        Stage { cluster: Cluster::new(shape), ops: Vec::new(), started: 0 }
    }

    pub fn root(&self) -> ObjectRef {
        ObjectRef { gfid: Gfid::ROOT, home: SetId(0) }
    }

    /// A name in a directory that belongs to a set, another one for each `nth`.
    pub fn name_on(&self, set: u16, parent: ObjectRef, nth: usize) -> String {
        let belongs = |text: &String| self.cluster.dentry_set(parent.gfid, &name(text)) == SetId(set);
        (0..).map(|number| format!("n{number}")).filter(belongs).nth(nth).unwrap()
    }

    /// Begins an operation; it goes on with `settle`.
    pub fn start(&mut self, fop: Fop) -> Op {
        let set = super::client::first_set(&self.cluster, &fop);
        // A client of its own each, so that they run side by side.
        self.started += 1;
        let call = Call { client: ClientId([self.started; 16]), request: 1, set, fop };
        let id = Some(self.cluster.call(&call));
        self.ops.push(Playing { call, id, result: None });
        Op(self.ops.len() - 1)
    }

    /// Lets everything go on as far as it goes; calls of dead nodes are asked again once these are back.
    pub fn settle(&mut self) {
        loop {
            self.cluster.settle();
            let mut goes_on = false;
            for (id, back) in self.cluster.take_backs() {
                let Some(op) = self.ops.iter_mut().find(|op| op.id == Some(id)) else { continue };
                op.id = None;
                goes_on = true;
                match back {
                    Back::Lost => {}
                    Back::Ran(Err(Stop::GoTo(set))) => op.call.set = set,
                    Back::Ran(Err(Stop::Errno(errno))) => op.result = Some(Err(errno)),
                    Back::Ran(Ok(reply)) => op.result = Some(reply.result.clone().map(|_| reply)),
                }
            }
            for op in &mut self.ops {
                if op.id.is_none() && op.result.is_none() && self.cluster.is_serving(self.cluster.node_of(op.call.set))
                {
                    op.id = Some(self.cluster.call(&op.call));
                    goes_on = true;
                }
            }
            if !goes_on {
                return;
            }
        }
    }

    /// How an operation ended; `None` while it has not.
    pub fn result(&self, op: Op) -> Option<Result<&FopReply, Errno>> {
        self.ops[op.0].result.as_ref().map(|result| result.as_ref().map_err(|errno| *errno))
    }

    /// Whether an operation still waits.
    pub fn waits(&self, op: Op) -> bool {
        self.ops[op.0].result.is_none()
    }

    /// How an operation ended that must have.
    pub fn errno(&self, op: Op) -> Option<Errno> {
        self.result(op).unwrap_or_else(|| panic!("it waits:\n{}", self.cluster.waiting().join("\n"))).err()
    }

    /// A client sends a request again whose reply it did not get.
    pub fn repeat(&mut self, op: Op) {
        self.ops[op.0].result = None;
        self.settle();
    }

    /// Nobody waits for an operation any more, and nobody asks again.
    pub fn forget(&mut self, op: Op) {
        self.ops.truncate(op.0);
    }

    /// What has been done may be undone by a loss of power, and nobody is to be blamed for it.
    pub fn forget_all(&mut self) {
        self.ops.clear();
    }

    /// Runs an operation to its end, which must be a good one.
    pub fn run(&mut self, fop: Fop) -> FopReply {
        let op = self.start(fop);
        self.settle();
        match self.ops[op.0].result.clone() {
            Some(Ok(reply)) => reply,
            other => panic!("{:?}: {other:?}", self.ops[op.0].call),
        }
    }

    /// Asks again for an operation whose node has died, with an error in between forgotten.
    pub fn ask_again(&mut self, op: Op) {
        if matches!(self.ops[op.0].result, Some(Err(Errno::EIO))) {
            self.ops[op.0].result = None;
        }
        self.settle();
    }

    pub fn create(&mut self, parent: ObjectRef, text: &str) -> ObjectRef {
        self.make(parent, text, Making::File { open: false, exclusive: true, truncate: false })
    }

    pub fn mkdir(&mut self, parent: ObjectRef, text: &str) -> ObjectRef {
        self.make(parent, text, Making::Directory)
    }

    fn make(&mut self, parent: ObjectRef, text: &str, making: Making) -> ObjectRef {
        let attr = self.run(make(parent, text, making)).attr.unwrap();
        ObjectRef { gfid: attr.gfid, home: attr.home }
    }

    pub fn look_up(&mut self, parent: ObjectRef, text: &str) -> Result<Attr, Errno> {
        oracle::look_up(&mut self.cluster, parent, text)
    }

    /// Keeps calls on their way that are like this.
    pub fn hold(&mut self, holds: impl Fn(SetId, &PeerCall) -> bool + Send + 'static) {
        self.cluster.shared.lock().holds = Some(Box::new(holds));
    }

    /// Lets them go.
    pub fn let_go(&mut self) {
        self.cluster.shared.lock().holds = None;
        self.settle();
    }

    /// A node starts again.
    pub fn restart(&mut self, node: usize) {
        if self.cluster.is_up(node) {
            self.cluster.kill(node);
        }
        self.cluster.start_node(node);
        self.settle();
    }

    /// Barriers pass on all nodes.
    pub fn pass_barriers(&mut self) {
        for node in 0..self.cluster.nodes.len() {
            self.cluster.pass_barriers(node);
            self.settle();
        }
    }

    /// What clients see.
    pub fn view(&mut self, known: &[Gfid]) -> View {
        let tree = oracle::walk(&mut self.cluster, &mut Vec::new());
        let seen = |gfid: &Gfid| (tree.attrs[gfid].kind, tree.attrs[gfid].nlink, known.contains(gfid).then_some(*gfid));
        let paths = tree.names.iter().filter(|(gfid, _)| tree.attrs.contains_key(gfid));
        paths.flat_map(|(gfid, names)| names.iter().map(move |path| (path.clone(), seen(gfid)))).collect()
    }

    /// All is brought to its end; nothing may be wrong then.
    pub fn finish(mut self, what: &str) {
        for _ in 0..6 {
            for node in 0..self.cluster.nodes.len() {
                if let Some(volume) = &self.cluster.nodes[node].volume {
                    volume.lock().clients.end_grace();
                    volume.tick();
                }
            }
            self.pass_barriers();
        }
        let (tree, mut findings) = oracle::check(&mut self.cluster);
        let ended = |op: Playing| Ended { call: op.call, result: op.result };
        let ended: Vec<Ended> = self.ops.into_iter().map(ended).collect();
        oracle::check_results(&self.cluster, &ended, &mut findings);
        oracle::check_stale(&tree, &ended, &mut findings);
        assert!(findings.is_empty(), "{what}:\n{}", findings.join("\n"));
    }
}

pub fn make(parent: ObjectRef, text: &str, making: Making) -> Fop {
    Fop::Make { parent, name: name(text), making, perm: 0o755, umask: 0 }
}

pub fn rename(old: (ObjectRef, &str), new: (ObjectRef, &str)) -> Fop {
    rename_with(old, new, RenameFlags::default())
}

pub fn rename_with(old: (ObjectRef, &str), new: (ObjectRef, &str), flags: RenameFlags) -> Fop {
    Fop::Rename { parent: old.0, name: name(old.1), new_parent: new.0, new_name: name(new.1), flags }
}

pub fn exchange(old: (ObjectRef, &str), new: (ObjectRef, &str)) -> Fop {
    rename_with(old, new, RenameFlags { exchange: true, ..RenameFlags::default() })
}

pub fn rmdir(parent: ObjectRef, text: &str) -> Fop {
    Fop::Rmdir { parent, name: name(text) }
}

pub fn unlink(parent: ObjectRef, text: &str) -> Fop {
    Fop::Unlink { parent, name: name(text) }
}

pub fn link(object: ObjectRef, parent: ObjectRef, text: &str) -> Fop {
    Fop::Link { object, new_parent: parent, new_name: name(text) }
}
