//! Names: what one leads to, and lookup (N5; PROTOCOL 6).

use super::peer::TxState;
use super::{Ask, PeerCall, PeerReply, Ran, Stop, Volume, done};
use crate::brick::effect::{Claim, Old, Place};
use crate::brick::set::Look;
use crate::brick::store::BrickStore;
use brickfs_common::attr::{Attr, Kind};
use brickfs_common::errno::Errno;
use brickfs_common::fop::{FopReply, ObjectRef};
use brickfs_common::ids::{Gfid, SetId, TxId};
use brickfs_common::name::Name;

/// A name that its dentry set has itself.
fn native(gfid: Gfid, set: SetId, kind: Kind) -> Seen {
    let object = ObjectRef { gfid, home: set };
    Seen::Found(Found { object, kind, claim: None, attr: None })
}

/// What a name leads to.
#[derive(Clone)]
pub struct Found {
    /// The object and its home.
    pub object: ObjectRef,
    /// What it is.
    pub kind: Kind,
    /// The dentry set's claim, where the object is homed elsewhere.
    pub claim: Option<Claim>,
    /// Attributes, where they came with the answer.
    pub attr: Option<Attr>,
}

/// A name as its dentry set answers it.
pub enum Seen {
    /// It leads to an object.
    Found(Found),
    /// It does not exist. A claim that its home has denied may be left.
    Absent(Option<Claim>),
}

impl<S: BrickStore> Volume<S> {
    /// Looks a name up at its dentry set. A name in the middle of a transaction is still what it was
    /// until that is committed; `waits` is for those who want to change it: they wait for the end.
    pub(super) async fn see(&self, parent: Gfid, name: &Name, waits: bool) -> Result<Seen, Errno> {
        if parent == Gfid::ROOT && name.is_reserved_in_root() {
            return Ok(Seen::Absent(None));
        }
        let mut below = false;
        loop {
            let set = self.lock().dentry_set(&parent, name);
            if !self.is_here(set) {
                return self.see_elsewhere(set, parent, name).await;
            }
            let look = {
                let mut state = self.lock();
                let engine = state.set(set)?;
                match below {
                    true => engine.look_below(&parent, name.as_bytes())?,
                    false => engine.look(&parent, name.as_bytes())?,
                }
            };
            match look {
                Look::Native(meta) => return Ok(native(meta.gfid, set, meta.kind)),
                Look::Absent => return Ok(Seen::Absent(None)),
                Look::Claim(claim) => return self.confirm(parent, name, claim).await,
                Look::Held(tx) => below = self.outcome_of(set, tx, waits).await?,
            }
        }
    }

    async fn see_elsewhere(&self, set: SetId, parent: Gfid, name: &Name) -> Result<Seen, Errno> {
        match self.peer(set, PeerCall::Look { place: Place::new(parent, name) }).await? {
            PeerReply::Name(Old::Absent) => Ok(Seen::Absent(None)),
            PeerReply::Name(Old::Native(gfid, kind)) => Ok(native(Gfid(gfid), set, kind)),
            PeerReply::Name(Old::Claim(claim)) => self.confirm(parent, name, claim).await,
            _ => Err(Errno::EPROTO),
        }
    }

    /// Asks a claim's home whether its object bears the name.
    pub(super) async fn confirm(&self, parent: Gfid, name: &Name, claim: Claim) -> Result<Seen, Errno> {
        let place = Place::new(parent, name);
        let gfid = Gfid(claim.gfid);
        match self.peer(claim.home, PeerCall::Confirm { gfid, place }).await? {
            PeerReply::Attr(Some(attr)) => Ok(Seen::Found(Found {
                object: ObjectRef { gfid, home: claim.home },
                kind: attr.kind,
                claim: Some(claim),
                attr: Some(*attr),
            })),
            _ => Ok(Seen::Absent(Some(claim))),
        }
    }

    /// What a name that a transaction holds is now: true, what it was before; false, look again.
    pub(super) async fn outcome_of(&self, set: SetId, tx: TxId, waits: bool) -> Result<bool, Errno> {
        let Some(coordinator) = self.lock().set(set)?.held.get(&tx).map(|h| h.coordinator) else { return Ok(false) };
        match self.peer(coordinator, PeerCall::Ask { tx }).await? {
            PeerReply::Tx(TxState::Undecided) if !waits => return Ok(true),
            PeerReply::Tx(TxState::Unknown) => {
                self.peer(set, PeerCall::Finish { tx, is_committed: false, items: Vec::new() }).await?;
                return Ok(false);
            }
            _ => {}
        }
        self.wait_for(set, tx).await?;
        Ok(false)
    }

    /// Waits until a transaction is done on a set.
    pub(super) async fn wait_for(&self, set: SetId, tx: TxId) -> Result<(), Errno> {
        let receiver = self.lock().set(set)?.held.wait(&tx);
        if let Some(receiver) = receiver {
            // The sender is dropped only with the volume.
            receiver.await.map_err(|_| Errno::EIO)?;
        }
        Ok(())
    }

    pub(super) async fn lookup(&self, ask: Ask, parent: ObjectRef, name: &Name) -> Ran {
        match self.see(parent.gfid, name, false).await? {
            Seen::Found(found) => {
                let attr = match found.attr.clone() {
                    Some(attr) => Some(attr),
                    None => self.attr_of(found.object).await,
                };
                let Some(attr) = attr else { return Err(self.report_lost(parent.gfid, name, &found).into()) };
                Ok(FopReply { attr: Some(attr), ..done(ask.asker.request) })
            }
            Seen::Absent(_) => {
                let parent = self.directory(parent).await?;
                Ok(FopReply { parent: Some(parent), ..FopReply::failed(ask.asker.request, Errno::ENOENT) })
            }
        }
    }

    /// The name is there and its object is not: damage, not absence.
    fn report_lost(&self, parent: Gfid, name: &Name, found: &Found) -> Errno {
        if let Ok(engine) = self.lock().set(found.object.home) {
            let path = engine.store.shown_path(&parent, name.as_bytes());
            engine.store.report_damage(format!("{path}: object {} has no handle", found.object.gfid));
        }
        Errno::EIO
    }

    /// A directory's attributes: ESTALE if it is gone, ENOTDIR if it is something else.
    pub(super) async fn directory(&self, dir: ObjectRef) -> Result<Attr, Errno> {
        match self.peer(dir.home, PeerCall::GetAttr { gfid: dir.gfid }).await? {
            PeerReply::Attr(Some(attr)) if attr.kind != Kind::Directory => Err(Errno::ENOTDIR),
            // A copy, or what a client takes for the home: the home itself must say that it lives.
            PeerReply::Attr(Some(attr)) if attr.home != dir.home && dir.gfid != Gfid::ROOT => Err(Errno::ESTALE),
            PeerReply::Attr(Some(attr)) => Ok(*attr),
            _ => Err(Errno::ESTALE),
        }
    }

    /// Finds the object that a name leads to, for its home to coordinate a change.
    pub(super) async fn find_for_change(&self, parent: ObjectRef, name: &Name) -> Result<Found, Stop> {
        let found = self.find(parent, name).await?;
        if !self.is_here(found.object.home) {
            return Err(Stop::GoTo(found.object.home));
        }
        Ok(found)
    }

    /// Finds the object that a name leads to, once no transaction holds the name.
    pub(super) async fn find(&self, parent: ObjectRef, name: &Name) -> Result<Found, Errno> {
        if parent.gfid == Gfid::ROOT && name.is_reserved_in_root() {
            return Err(Errno::EPERM);
        }
        match self.see(parent.gfid, name, true).await? {
            Seen::Found(found) => Ok(found),
            Seen::Absent(_) => Err(self.absent(parent).await),
        }
    }

    /// Why a name is not there: ENOENT in a directory that lives.
    async fn absent(&self, parent: ObjectRef) -> Errno {
        self.directory(parent).await.err().unwrap_or(Errno::ENOENT)
    }
}
