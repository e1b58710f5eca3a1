//! Taking names away: unlink, one effect at the file's home; rmdir, a transaction with every set that has
//! a copy of the directory (N3; PROTOCOL 6, 9).

use super::names::Found;
use super::transaction::{ATTEMPTS_MAX, NotPrepared, Tx};
use super::{Ask, PeerCall, Ran, Stop, Volume, known};
use crate::brick::effect::{Effect, Item, Outcome, Place, Rest, Step};
use crate::brick::store::BrickStore;
use brickfs_common::attr::{Attr, Kind};
use brickfs_common::errno::Errno;
use brickfs_common::fop::{FopReply, ObjectRef};
use brickfs_common::name::Name;

impl<S: BrickStore> Volume<S> {
    pub(super) async fn unlink(&self, ask: Ask, parent: ObjectRef, name: &Name) -> Ran {
        for _ in 0..ATTEMPTS_MAX {
            let found = self.find_for_change(parent, name).await?;
            if found.kind == Kind::Directory {
                return Err(Errno::EISDIR.into());
            }
            let Some(effect) = self.try_unlink(&ask, parent, name, &found)? else { continue };
            let home = found.object.home;
            self.drop_claim_of(&found, parent, name).await;
            let fresh = self.send_touches(home, &effect).await;
            let is_gone = matches!(effect.steps.first(), Some(Step::Unlink { rest: Rest::Gone, .. }));
            let has_names = if is_gone { None } else { self.attr_of(found.object).await };
            let reply = self.reply_names(&ask, None, parent, None, &fresh).await;
            return Ok(FopReply { attr: has_names, ..reply });
        }
        Err(Errno::EIO.into())
    }

    /// `None`: the file lost the name to somebody else meanwhile.
    fn try_unlink(&self, ask: &Ask, parent: ObjectRef, name: &Name, found: &Found) -> Result<Option<Effect>, Stop> {
        let home = found.object.home;
        let mut state = self.lock();
        let context = state.peer_context();
        let engine = state.set(home)?;
        let gfid = found.object.gfid;
        if !engine.store.bears(&gfid, &parent.gfid, name.as_bytes())? {
            return Ok(None);
        }
        let rest = engine.rest_without(&context, &gfid)?;
        let mut steps = vec![Step::Unlink { gfid: gfid.0, place: Place::new(parent.gfid, name), rest }];
        steps.extend(engine.touch_steps(&[(parent.gfid, 0)])?);
        let outcome = Outcome { object: known(found.object), parent: known(parent), ..Outcome::default() };
        Ok(Some(state.commit(home, Some(ask.asker), context.now, steps, outcome)?))
    }

    /// The claim of a name that its object has lost; denied by the home from now on, so that it may stay
    /// where it cannot be removed now.
    pub(super) async fn drop_claim_of(&self, found: &Found, parent: ObjectRef, name: &Name) {
        if found.claim.is_none() {
            return;
        }
        let set = self.lock().dentry_set(&parent.gfid, name);
        let drop = PeerCall::DropClaim {
            place: Place::new(parent.gfid, name),
            gfid: found.object.gfid,
            name_changes: found.name_changes,
        };
        if let Err(error) = self.peer(set, drop).await {
            tracing::info!(%set, "a claim stays until its name is used again: {error}");
        }
    }

    pub(super) async fn rmdir(&self, ask: Ask, parent: ObjectRef, name: &Name) -> Ran {
        for attempt in 0..ATTEMPTS_MAX {
            let found = self.find_for_change(parent, name).await?;
            if found.kind != Kind::Directory {
                return Err(Errno::ENOTDIR.into());
            }
            let mut tx = self.begin(found.object.home, attempt)?;
            if let Err(why) = self.prepare_rmdir(&mut tx, parent, name, &found).await {
                self.abort_and_wait(tx, why).await?;
                continue;
            }
            let id = tx.id;
            // Who still has it open goes on seeing it.
            let last = self.attr_of(found.object).await.map(|attr| Attr { nlink: 0, ..attr });
            let effect = match self.commit_rmdir(&ask, &tx, parent, name, &found) {
                Ok(effect) => effect,
                Err(error) => {
                    self.abort(tx).await;
                    return Err(error.into());
                }
            };
            self.finish(found.object.home, id).await;
            let fresh = self.send_touches(found.object.home, &effect).await;
            let reply = self.reply_names(&ask, None, parent, None, &fresh).await;
            return Ok(FopReply { attr: last, ..reply });
        }
        Err(Errno::EIO.into())
    }

    /// Holds the name and closes the directory everywhere.
    async fn prepare_rmdir(
        &self,
        tx: &mut Tx,
        parent: ObjectRef,
        name: &Name,
        found: &Found,
    ) -> Result<(), NotPrepared> {
        let dir = found.object;
        let dentry_set = self.lock().dentry_set(&parent.gfid, name);
        let item = super::rename::name_item(Place::new(parent.gfid, name), None);
        self.hold_names(tx, vec![(dentry_set, item)]).await?;
        self.prepare(tx, dir.home, vec![Item::Close { gfid: dir.gfid.0 }], false).await?;
        self.close_copies(tx, dir.gfid, dir.home).await
    }

    fn commit_rmdir(&self, ask: &Ask, tx: &Tx, parent: ObjectRef, name: &Name, found: &Found) -> Result<Effect, Errno> {
        let dir = found.object;
        let mut state = self.lock();
        let time = state.now();
        let engine = state.set(dir.home)?;
        if !engine.store.bears(&dir.gfid, &parent.gfid, name.as_bytes())? {
            return Err(Errno::ENOENT);
        }
        let mut steps = vec![Step::RemoveDir { gfid: dir.gfid.0 }];
        steps.extend(engine.touch_steps(&[(parent.gfid, -1)])?);
        let outcome = Outcome { object: None, parent: known(parent), ..Outcome::default() };
        self.commit_tx(&mut state, tx, ask.asker, time, steps, outcome)
    }
}
