//! Another name for a file: one effect at its home, with a claim where the new name's dentry set is
//! another one (N3, N5; PROTOCOL 5, 6).

use super::names::Seen;
use super::rename::name_item;
use super::transaction::{ATTEMPTS_MAX, NotPrepared, Tx};
use super::{Ask, Ran, Stop, Volume, known};
use crate::brick::effect::{Claim, Effect, Item, Old, Outcome, Place, Step};
use crate::brick::store::BrickStore;
use brickfs_common::attr::Kind;
use brickfs_common::errno::Errno;
use brickfs_common::fop::ObjectRef;
use brickfs_common::ids::Gfid;
use brickfs_common::name::Name;

/// Most names that a file gets: the least of the local file systems that we know (ext4), less the handle.
const LINK_MAX: u32 = 64_999;

impl<S: BrickStore> Volume<S> {
    pub(super) async fn link(&self, ask: Ask, object: ObjectRef, new_parent: ObjectRef, new_name: &Name) -> Ran {
        if new_parent.gfid == Gfid::ROOT && new_name.is_reserved_in_root() {
            return Err(Errno::EPERM.into());
        }
        if !self.is_here(object.home) {
            return Err(Stop::GoTo(object.home));
        }
        for attempt in 0..ATTEMPTS_MAX {
            self.ensure_dir(object.home, new_parent).await?;
            let mut tx = self.begin(object.home, attempt)?;
            if let Err(why) = self.prepare_link(&mut tx, object, new_parent, new_name).await {
                self.abort_and_wait(tx, why).await?;
                continue;
            }
            let id = tx.id;
            let effect = match self.commit_link(&ask, &tx, object, new_parent, new_name) {
                Ok(Some(effect)) => effect,
                Ok(None) => {
                    self.abort(tx).await;
                    continue;
                }
                Err(why) => {
                    self.abort_and_wait(tx, why).await?;
                    continue;
                }
            };
            self.finish(object.home, id).await;
            let fresh = self.send_touches(object.home, &effect).await;
            return Ok(self.reply_names(&ask, Some(object), new_parent, None, &fresh).await);
        }
        Err(Errno::EIO.into())
    }

    /// Holds the new name, which must not exist.
    async fn prepare_link(
        &self,
        tx: &mut Tx,
        object: ObjectRef,
        new_parent: ObjectRef,
        new_name: &Name,
    ) -> Result<(), NotPrepared> {
        let dentry_set = self.lock().dentry_set(&new_parent.gfid, new_name);
        let claim = Claim { gfid: object.gfid.0, home: object.home };
        let new = (dentry_set != object.home).then_some(claim);
        let item = name_item(Place::new(new_parent.gfid, new_name), new);
        match self.hold_names(tx, vec![(dentry_set, item)]).await?[0] {
            Old::Absent => Ok(()),
            Old::Native(..) => Err(Errno::EEXIST.into()),
            Old::Claim(claim) => match self.confirm(new_parent.gfid, new_name, claim, 0).await? {
                Seen::Found(_) => Err(Errno::EEXIST.into()),
                Seen::Absent(_) => Ok(()),
            },
        }
    }

    /// `None`: the new directory is being closed here; start anew.
    fn commit_link(
        &self,
        ask: &Ask,
        tx: &Tx,
        object: ObjectRef,
        new_parent: ObjectRef,
        new_name: &Name,
    ) -> Result<Option<Effect>, NotPrepared> {
        let mut state = self.lock();
        let time = state.now();
        let engine = state.set(object.home)?;
        if engine.store.meta(&object.gfid)?.kind == Kind::Directory {
            return Err(Errno::EPERM.into());
        }
        match engine.store.link_count(&object.gfid)? {
            0 => return Err(Errno::ENOENT.into()),
            LINK_MAX.. => return Err(Errno::EMLINK.into()),
            _ => {}
        }
        if !matches!(engine.takes_entries(&new_parent.gfid)?, Ok(true)) {
            return Ok(None);
        }
        let place = Place::new(new_parent.gfid, new_name);
        if let Some((gfid, other)) = engine.leaving(&place)
            && other != tx.id
        {
            return Err(NotPrepared::Busy(object.home, vec![Item::Drop { place, gfid }]));
        }
        let mut steps = vec![Step::Link { gfid: object.gfid.0, place: Place::new(new_parent.gfid, new_name) }];
        steps.extend(engine.touch_steps(&[(new_parent.gfid, 0)])?);
        let outcome = Outcome { object: known(object), parent: known(new_parent), ..Outcome::default() };
        Ok(Some(self.commit_tx(&mut state, tx, ask.asker, time, steps, outcome)?))
    }
}
