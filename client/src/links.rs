//! The nodes of a volume, with a session each: where its operations go.
//!
//! The first session is with the node that was given; what that says of the others makes the further ones, which are
//! begun at once and need not succeed: an operation on a set waits for its node as one on a single node does. Which
//! node has which set does not change while a volume is connected.

use crate::driving;
use crate::session;
use crate::shared::{Shared, choose_set};
use crate::volume::{Caller, ConnectError, ConnectOptions, Done, Target};
use brickfs_common::attr::StatFs;
use brickfs_common::cluster::map::VolumeMap;
use brickfs_common::fop::{Answer, Fop, FopReply};
use brickfs_common::ids::{ClientId, NodeId, SetId};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use tokio::runtime::Runtime;

/// A session with a node, and what runs it.
pub(crate) struct Link {
    pub shared: Arc<Shared>,
    runtime: Arc<Runtime>,
}

/// See the file's head.
pub(crate) struct Links {
    /// The one that was given.
    first: Link,
    others: OnceLock<Vec<Link>>,
    /// Of each set: 0 for the first, else one more than the place among the others.
    of_sets: OnceLock<Vec<usize>>,
}

impl Links {
    /// Greets the node that is given, which has to answer, and begins the sessions with the others.
    pub fn connect(options: ConnectOptions) -> Result<Arc<Links>, ConnectError> {
        let client = ClientId(rand::random());
        let shared = Arc::new(Shared::new(options.clone(), client));
        let (sender, greeted) = mpsc::channel();
        let theirs = shared.clone();
        let gone = || ConnectError::Refused("the session ended before it began".into());
        start_thread(move || session::run(&theirs, &sender))?;
        let runtime = greeted.recv().map_err(|_| gone())??;
        let links = Links { first: Link { shared, runtime }, others: OnceLock::new(), of_sets: OnceLock::new() };
        let links = Arc::new(links);
        if let Err(error) = links.connect_others(&options, client) {
            links.shut_down();
            return Err(error);
        }
        for link in links.all() {
            link.shared.set_siblings(Arc::downgrade(&links));
        }
        Ok(links)
    }

    fn connect_others(&self, options: &ConnectOptions, client: ClientId) -> Result<(), ConnectError> {
        let (map, own) = (self.map(), self.first.shared.node());
        let node_of = |set: &brickfs_common::cluster::map::SetMap| set.members.first().map(|member| member.node);
        let nodes: BTreeSet<NodeId> = map.sets.iter().filter_map(node_of).filter(|node| Some(*node) != own).collect();
        let mut others = Vec::with_capacity(nodes.len());
        for node in &nodes {
            let target = Target::Beside(self.first.shared.clone());
            let shared = Arc::new(Shared::new(ConnectOptions { target, ..options.clone() }, client));
            shared.expect(*node, map.clone());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = Arc::new(runtime.map_err(ConnectError::Runtime)?);
            let (theirs, its) = (shared.clone(), runtime.clone());
            start_thread(move || session::run_beside(&theirs, &its))?;
            others.push(Link { shared, runtime });
        }
        let place = |node: Option<NodeId>| nodes.iter().position(|known| Some(*known) == node).map_or(0, |at| at + 1);
        // Set once, here.
        self.of_sets.set(map.sets.iter().map(|set| place(node_of(set))).collect()).ok();
        self.others.set(others).ok();
        Ok(())
    }

    /// All sessions, the first one first.
    pub fn all(&self) -> impl Iterator<Item = &Link> {
        std::iter::once(&self.first).chain(self.others.get().into_iter().flatten())
    }

    /// The session with the node that was given.
    pub fn first(&self) -> &Arc<Shared> {
        &self.first.shared
    }

    /// The session with the node that has a set.
    pub fn of_set(&self, set: SetId) -> &Arc<Shared> {
        let place = self.of_sets.get().and_then(|places| places.get(usize::from(set.0))).copied().unwrap_or(0);
        let other = place.checked_sub(1).and_then(|at| self.others.get()?.get(at));
        &other.unwrap_or(&self.first).shared
    }

    /// The newest volume map.
    pub fn map(&self) -> Arc<VolumeMap> {
        self.first.shared.known_map().expect("a connected volume has been sent its map")
    }

    /// Sends an operation to the set that it belongs to.
    pub fn submit(self: &Arc<Self>, caller: Caller, fop: Fop, done: Done) {
        if matches!(fop, Fop::StatFs) && self.others.get().is_some_and(|others| !others.is_empty()) {
            return self.stat_fs(caller, done);
        }
        let set = choose_set(&self.map(), &fop);
        self.of_set(set).submit_to(set, caller, fop, done);
    }

    /// Each node answers for its own bricks.
    fn stat_fs(&self, caller: Caller, done: Done) {
        let nodes: Vec<(SetId, &Arc<Shared>)> = self.first_sets();
        let sum = Arc::new(Mutex::new(Sum { left: nodes.len(), space: StatFs::default(), done: Some(done) }));
        for (set, shared) in nodes {
            let sum = sum.clone();
            let add = move |reply| {
                let answered = sum.lock().unwrap_or_else(PoisonError::into_inner).add(reply);
                if let Some((done, reply)) = answered {
                    done(reply);
                }
            };
            shared.submit_to(set, caller, Fop::StatFs, Box::new(add));
        }
    }

    /// A set of each node that has any.
    fn first_sets(&self) -> Vec<(SetId, &Arc<Shared>)> {
        let places = self.of_sets.get().map_or(&[][..], Vec::as_slice);
        let is_first = |at: usize| !places[..at].contains(&places[at]);
        let sets = (0..places.len()).filter(|at| is_first(*at)).map(|at| SetId(at as u16));
        sets.map(|set| (set, self.of_set(set))).collect()
    }

    /// Runs the sessions on this thread, one after the other, each until no operation waits in it.
    pub fn drive(&self) {
        self.all().for_each(|link| driving::drive(&link.shared, &link.runtime));
    }

    /// Ends the sessions.
    pub fn shut_down(&self) {
        self.all().for_each(|link| link.shared.shut_down());
    }
}

/// The space of all nodes, as they answer.
struct Sum {
    left: usize,
    space: StatFs,
    done: Option<Done>,
}

impl Sum {
    /// The last answer completes it, and so does the first failure.
    fn add(&mut self, reply: FopReply) -> Option<(Done, FopReply)> {
        self.left -= 1;
        match &reply.result {
            Ok(Answer::Space(space)) => {
                let sum = &mut self.space;
                sum.total_bytes = sum.total_bytes.saturating_add(space.total_bytes);
                sum.free_bytes = sum.free_bytes.saturating_add(space.free_bytes);
                sum.available_bytes = sum.available_bytes.saturating_add(space.available_bytes);
                sum.total_inodes = sum.total_inodes.saturating_add(space.total_inodes);
                sum.free_inodes = sum.free_inodes.saturating_add(space.free_inodes);
            }
            _ => return self.done.take().map(|done| (done, reply)),
        }
        let reply = FopReply { result: Ok(Answer::Space(self.space)), ..reply };
        if self.left == 0 { self.done.take().map(|done| (done, reply)) } else { None }
    }
}

fn start_thread(run: impl FnOnce() + Send + 'static) -> Result<(), ConnectError> {
    let started = std::thread::Builder::new().name("brickfs-session".into()).spawn(run);
    started.map(drop).map_err(ConnectError::Runtime)
}

#[cfg(test)]
mod tests {
    use super::*;
    use brickfs_common::errno::Errno;

    fn space(total_bytes: u64) -> FopReply {
        FopReply { result: Ok(Answer::Space(StatFs { total_bytes, ..StatFs::default() })), ..FopReply::done(1) }
    }

    #[test]
    fn space_is_the_sum_of_the_nodes_or_the_first_failure() {
        let sum = || Sum { left: 2, space: StatFs::default(), done: Some(Box::new(|_| ())) };
        let mut both = sum();
        assert!(both.add(space(3)).is_none());
        assert_eq!(both.add(space(4)).unwrap().1.result, space(7).result);
        let mut failed = sum();
        assert_eq!(failed.add(FopReply::failed(1, Errno::EIO)).unwrap().1.result, Err(Errno::EIO));
        assert!(failed.add(space(4)).is_none(), "it was answered");
    }
}
