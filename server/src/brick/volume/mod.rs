//! One volume on this node: the sets whose bricks are here, its clients, and the operations.
//!
//! An operation is decided under the volume's lock on the set that it concerns, becomes one effect there,
//! and never waits for another set while the lock is held. What concerns several sets is a transaction of
//! messages between them (`peer`, `transaction`). Sets of one node answer each other at once, so that an
//! operation is one uninterrupted call there; with a set elsewhere the same code waits for its answer.
//!
//! Where things are: `names` (find, lookup), `make`, `remove` (unlink, rmdir), `link`, `rename`, `attrs`,
//! `data`, `ranges`, `listing`: the operations; `clients`: who asks; `recover`: the start and the barriers.

mod attrs;
pub mod clients;
mod data;
mod directories;
pub mod dispatch;
mod link;
mod listing;
mod lock_table;
mod locks;
mod make;
pub mod mend;
mod names;
mod peer;
mod ranges;
pub mod recover;
mod remove;
mod rename;
mod rescue;
mod room;
#[cfg(test)]
mod sim;
mod transaction;

use crate::brick::effect::{Effect, Outcome, Step};
use crate::brick::set::{Asker, SetEngine};
use crate::brick::store::BrickStore;
use brickfs_common::attr::{Attr, Timestamp};
use brickfs_common::cluster::map::VolumeMap;
use brickfs_common::errno::Errno;
use brickfs_common::fop::{Answer, CallHeader, Fop, FopReply, ObjectRef};
use brickfs_common::ids::{ClientId, Gfid, SetId};
use brickfs_common::volume_spec::{self, Atime};
use clients::Clients;
use listing::Snapshots;
use lock_table::LockTable;
pub use peer::{PeerCall, PeerReply};
use room::Room;
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::sync::oneshot;

/// A future that another set's answer or a background task is.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What a volume takes from around it: clock, randomness, other nodes, background work.
pub trait World: Send + Sync + 'static {
    /// The clock.
    fn now(&self) -> Timestamp;
    /// 128 random bits.
    fn random_id(&self) -> [u8; 16];
    /// Asks a set of another node.
    fn send(&self, to: SetId, call: PeerCall) -> BoxFuture<Result<PeerReply, Errno>>;
    /// Runs a task beside the caller.
    fn spawn(&self, task: BoxFuture<()>);
}

/// Why an operation did not end here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// It failed.
    Errno(Errno),
    /// It never ran here: the set that coordinates it is on another node.
    GoTo(SetId),
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Stop {
        Stop::Errno(errno)
    }
}

/// The result of an operation.
pub type Ran = Result<FopReply, Stop>;

/// Who asks for what, as each operation needs it.
#[derive(Clone, Copy)]
pub struct Ask {
    /// The client and its request number.
    pub asker: Asker,
    /// The set that the client addressed.
    pub set: SetId,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// A set of the volume as this node has it.
pub enum Slot<S> {
    /// Its brick is open.
    Open(Box<SetEngine<S>>),
    /// Its brick is on this node and is not served.
    Failed(String),
    /// Its brick is on another node.
    Elsewhere,
}

/// What the volume's lock guards.
pub struct State<S> {
    /// The map in force.
    pub map: Arc<VolumeMap>,
    /// The sets, by number.
    pub sets: Vec<Slot<S>>,
    /// The clients.
    pub clients: Clients,
    /// Their locks.
    pub locks: LockTable,
    /// It is served no more: its sessions fail.
    pub is_stopped: bool,
    world: Arc<dyn World>,
    /// Operations that wait for other sets, with who asked again meanwhile.
    running: HashMap<(ClientId, u64), Vec<oneshot::Sender<FopReply>>>,
    devices: Arc<[Option<u64>]>,
    /// Orphans that an earlier process left have been looked at.
    are_orphans_swept: bool,
    last_time: Timestamp,
    snapshots: Snapshots,
    room: Room,
    read_only: bool,
    reserve_percent: u8,
    atime: Atime,
}

/// The volume.
pub struct Volume<S: BrickStore> {
    state: Mutex<State<S>>,
    world: Arc<dyn World>,
    me: Weak<Volume<S>>,
}

impl<S: BrickStore> Volume<S> {
    /// A volume over opened bricks; `recover` before it is served.
    pub fn new(map: VolumeMap, sets: Vec<Slot<S>>, world: Arc<dyn World>) -> Arc<Volume<S>> {
        let device = |slot: &Slot<S>| match slot {
            Slot::Open(set) => Some(set.store.device()),
            Slot::Failed(_) | Slot::Elsewhere => None,
        };
        let devices = sets.iter().map(device).collect();
        let mut state = State {
            map: Arc::new(map),
            sets,
            clients: Clients::new(),
            locks: LockTable::default(),
            is_stopped: false,
            world: world.clone(),
            running: HashMap::new(),
            devices,
            are_orphans_swept: false,
            last_time: Timestamp::default(),
            snapshots: Snapshots::new(),
            room: Room::default(),
            read_only: false,
            reserve_percent: 1,
            atime: Atime::Relatime,
        };
        state.read_options();
        Arc::new_cyclic(|me| Volume { state: Mutex::new(state), world, me: me.clone() })
    }

    /// The volume's state. A panic in an operation has been reported; the log makes the bricks whole at
    /// the next start.
    pub fn lock(&self) -> MutexGuard<'_, State<S>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_here(&self, set: SetId) -> bool {
        !matches!(self.lock().sets.get(usize::from(set.0)), Some(Slot::Elsewhere))
    }

    /// Attributes of an object, as its home knows them; `None` if it is gone or cannot be asked now.
    async fn attr_of(&self, object: ObjectRef) -> Option<Attr> {
        match self.peer(object.home, PeerCall::GetAttr { gfid: object.gfid }).await {
            Ok(PeerReply::Attr(attr)) => attr.map(|attr| *attr),
            _ => None,
        }
    }

    /// Runs an operation that may concern several sets.
    pub async fn run_names(&self, ask: Ask, fop: Fop) -> Ran {
        match fop {
            Fop::Lookup { parent, name } => self.lookup(ask, parent, &name).await,
            Fop::Make { parent, name, making, perm, umask } => {
                self.make(ask, parent, &name, making, (perm, umask)).await
            }
            Fop::Unlink { parent, name } => self.unlink(ask, parent, &name).await,
            Fop::Rmdir { parent, name } => self.rmdir(ask, parent, &name).await,
            Fop::Rename { parent, name, new_parent, new_name, flags } => {
                self.rename(ask, (parent, &name), (new_parent, &new_name), flags).await
            }
            Fop::Link { object, new_parent, new_name } => self.link(ask, object, new_parent, &new_name).await,
            _ => Err(Errno::EOPNOTSUPP.into()),
        }
    }

    /// The reply to a change of names, with fresh attributes of all concerned; homes that were just told of the change
    /// have answered with theirs (`fresh`).
    async fn reply_names(
        &self,
        ask: &Ask,
        object: Option<ObjectRef>,
        parent: ObjectRef,
        new_parent: Option<ObjectRef>,
        fresh: &[Attr],
    ) -> FopReply {
        let mut reply = done(ask.asker.request);
        if let Some(object) = object {
            reply.attr = self.attr_of(object).await;
        }
        reply.parent = self.fresh_attr_of(parent, fresh).await;
        if let Some(new_parent) = new_parent {
            reply.new_parent = self.fresh_attr_of(new_parent, fresh).await;
        }
        reply
    }

    async fn fresh_attr_of(&self, object: ObjectRef, fresh: &[Attr]) -> Option<Attr> {
        match fresh.iter().rfind(|attr| attr.gfid == object.gfid) {
            Some(attr) => Some(attr.clone()),
            None => self.attr_of(object).await,
        }
    }

    /// Answers a request that ran before, from its kept result.
    pub async fn reply_again(&self, request: u64, outcome: &Outcome) -> FopReply {
        let object = |known: Option<([u8; 16], SetId)>| known.map(|(gfid, home)| ObjectRef { gfid: Gfid(gfid), home });
        let mut reply = done(request);
        if let Some((count, offset)) = outcome.written {
            reply.result = Ok(Answer::Written { count, offset });
        }
        for (known, attr) in [
            (outcome.object, &mut reply.attr),
            (outcome.parent, &mut reply.parent),
            (outcome.new_parent, &mut reply.new_parent),
        ] {
            if let Some(object) = object(known) {
                *attr = self.attr_of(object).await;
            }
        }
        reply
    }
}

impl<S: BrickStore> State<S> {
    /// Takes over a changed map: options may have changed.
    pub fn update_map(&mut self, map: VolumeMap) {
        self.map = Arc::new(map);
        self.read_options();
    }

    fn read_options(&mut self) {
        self.read_only = volume_spec::is_read_only(&self.map.options);
        self.reserve_percent = volume_spec::reserve_percent(&self.map.options);
        self.atime = volume_spec::atime_of(&self.map.options);
    }

    /// A set of this node: EIO if its brick is not served here.
    pub fn set(&mut self, set: SetId) -> Result<&mut SetEngine<S>, Errno> {
        // Whatever is going to be done with it finds room in its log.
        self.make_log_room(set);
        match self.sets.get_mut(usize::from(set.0)) {
            Some(Slot::Open(engine)) => Ok(engine),
            Some(Slot::Failed(_) | Slot::Elsewhere) => Err(Errno::EIO),
            None => Err(Errno::ESTALE),
        }
    }

    /// The open sets.
    pub fn open_sets(&mut self) -> impl Iterator<Item = &mut SetEngine<S>> {
        self.sets.iter_mut().filter_map(|slot| match slot {
            Slot::Open(engine) => Some(&mut **engine),
            Slot::Failed(_) | Slot::Elsewhere => None,
        })
    }

    /// The numbers of all sets of the volume.
    fn set_ids(&self) -> impl Iterator<Item = SetId> + use<S> {
        (0..self.sets.len() as u16).map(SetId)
    }

    /// The time of a decision: the clock, never before an earlier decision's.
    fn now(&mut self) -> Timestamp {
        self.last_time = self.last_time.max(self.world.now());
        self.last_time
    }

    fn dentry_set(&self, parent: &Gfid, name: &brickfs_common::name::Name) -> SetId {
        self.map.layout.dentry_set(parent, name)
    }

    /// Commits an effect on a set and keeps its result for retries.
    fn commit(
        &mut self,
        set: SetId,
        asker: Option<Asker>,
        time: Timestamp,
        steps: Vec<Step>,
        outcome: Outcome,
    ) -> Result<Effect, Errno> {
        let effect = self.set(set)?.commit(asker, time, steps, outcome)?;
        self.clients.remember(set, &effect);
        Ok(effect)
    }

    /// Turns the log of a set that is full; the results that clients may still ask for go with it.
    fn make_log_room(&mut self, set: SetId) {
        let Some(Slot::Open(engine)) = self.sets.get_mut(usize::from(set.0)) else { return };
        if !engine.store.log_is_full() {
            return;
        }
        let kept = self.clients.kept_results(set);
        if let Err(error) = engine.store.turn_log(&kept) {
            tracing::error!(%set, "the effect log cannot be turned: {error}");
        }
    }
}

impl Ask {
    /// From a call's header.
    pub fn new(client: ClientId, header: &CallHeader) -> Ask {
        let asker = Asker { client, request: header.request };
        Ask { asker, set: SetId(header.set), uid: header.uid, gid: header.gid }
    }
}

/// A reply without attributes.
fn done(request: u64) -> FopReply {
    FopReply::done(request)
}

/// An object as outcomes carry it.
fn known(object: ObjectRef) -> Option<([u8; 16], SetId)> {
    Some((object.gfid.0, object.home))
}
