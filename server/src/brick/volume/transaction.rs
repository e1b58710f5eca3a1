//! The course of a transaction between sets (PROTOCOL 5, 7, 8), seen from its coordinator, and what a
//! participant does when it is decided.
//!
//! ```text
//! coordinator:  begin -> hold, prepare others -> commit (one effect, with a record) -> finish others
//!                 -> [barriers] -> release -> [barriers] -> forget
//!                 \-> abort others                     (whoever asks later hears "unknown": aborted)
//! ```
//!
//! All names are tried at once; if one is held by another transaction, all are let go and taken set by
//! set in ascending order, waiting for each. That is an order over groups of keys instead of single keys,
//! which serves the same end: no circle of waits. An object or a directory that is held later on is never
//! waited for with anything in hand.

use super::peer::Context;
use super::{PeerCall, PeerReply, State, Volume};
use crate::brick::effect::{Commitment, Effect, Item, Old, Participant, Rest, Step};
use crate::brick::set::{Committed, SetEngine, Stage};
use crate::brick::store::BrickStore;
use brickfs_common::attr::Kind;
use brickfs_common::errno::Errno;
use brickfs_common::ids::{Gfid, SetId, TxId};
use std::collections::BTreeMap;

/// How often an operation starts anew because others were in the way, before EAGAIN becomes EIO.
pub(super) const ATTEMPTS_MAX: usize = 1000;

/// A transaction that this node coordinates.
pub(super) struct Tx {
    pub id: TxId,
    /// The coordinator's set.
    pub set: SetId,
    /// Everybody who holds something, the coordinator's set among them.
    participants: Vec<Participant>,
    is_patient: bool,
}

/// Why a preparation did not succeed.
pub(super) enum NotPrepared {
    /// A set refuses.
    Errno(Errno),
    /// Something is in the way on this set: wait for it with nothing in hand, then start anew.
    Busy(SetId, Vec<Item>),
}

impl From<Errno> for NotPrepared {
    fn from(errno: Errno) -> NotPrepared {
        NotPrepared::Errno(errno)
    }
}

impl<S: BrickStore> Volume<S> {
    /// A new transaction of a set. The first attempt tries, later ones wait.
    pub(super) fn begin(&self, set: SetId, attempt: usize) -> Result<Tx, Errno> {
        let id = TxId(self.world.random_id());
        self.lock().set(set)?.undecided.insert(id);
        Ok(Tx { id, set, participants: Vec::new(), is_patient: attempt > 0 })
    }

    /// Holds names: (set, place, new claim). Answers what they were, in the same order.
    pub(super) async fn hold_names(&self, tx: &mut Tx, names: Vec<(SetId, Item)>) -> Result<Vec<Old>, NotPrepared> {
        let mut groups: Vec<(SetId, Vec<usize>)> = Vec::new();
        for (index, (set, _)) in names.iter().enumerate() {
            match groups.iter_mut().find(|(known, _)| known == set) {
                Some((_, members)) => members.push(index),
                None => groups.push((*set, vec![index])),
            }
        }
        groups.sort_unstable();
        let mut olds = vec![Old::Absent; names.len()];
        for (set, members) in groups {
            let items = members.iter().map(|index| names[*index].1.clone()).collect();
            let got = self.prepare(tx, set, items, tx.is_patient).await?;
            for (index, old) in members.into_iter().zip(got) {
                olds[index] = old;
            }
        }
        Ok(olds)
    }

    /// Prepares a set; answers what its names were.
    pub(super) async fn prepare(
        &self,
        tx: &mut Tx,
        set: SetId,
        mut items: Vec<Item>,
        is_patient: bool,
    ) -> Result<Vec<Old>, NotPrepared> {
        let call = PeerCall::Prepare { tx: tx.id, coordinator: tx.set, items: items.clone(), is_patient };
        match self.peer(set, call).await {
            Ok(PeerReply::Prepared { olds, is_held }) => {
                let mut known = olds.iter();
                for item in &mut items {
                    if let (Item::Name { old, .. }, Some(seen)) = (item, known.next()) {
                        *old = *seen;
                    }
                }
                if is_held {
                    tx.add(set, items);
                }
                Ok(olds)
            }
            Ok(PeerReply::Busy) => Err(NotPrepared::Busy(set, items)),
            Ok(_) => Err(Errno::EPROTO.into()),
            Err(error) => {
                // The order may have been carried out and its answer lost: it is to be undone too.
                tx.add(set, items);
                Err(error.into())
            }
        }
    }

    /// Closes a directory on all sets but `home` that have it; ENOTEMPTY if any has entries (PROTOCOL 9).
    pub(super) async fn close_copies(&self, tx: &mut Tx, dir: Gfid, home: SetId) -> Result<(), NotPrepared> {
        let sets: Vec<SetId> = self.lock().set_ids().filter(|set| *set != home).collect();
        for set in sets {
            self.prepare(tx, set, vec![Item::Close { gfid: dir.0 }], false).await?;
        }
        Ok(())
    }

    /// Commits: `steps` on the coordinator's set, with a record of what the others have to do.
    pub(super) fn commit_tx(
        &self,
        state: &mut State<S>,
        tx: &Tx,
        asker: crate::brick::set::Asker,
        time: brickfs_common::attr::Timestamp,
        mut steps: Vec<Step>,
        outcome: crate::brick::effect::Outcome,
    ) -> Result<Effect, Errno> {
        let others: Vec<Participant> = tx.participants.iter().filter(|(set, _)| *set != tx.set).cloned().collect();
        let position = state.set(tx.set)?.next_stamp(time).position;
        let change = steps.iter().find_map(|step| step.change(position));
        let commitment = Commitment { participants: others, change };
        let is_shared = !commitment.participants.is_empty();
        if is_shared {
            steps.insert(0, Step::Commit { tx: tx.id, commitment: commitment.clone() });
        }
        let effect = state.commit(tx.set, Some(asker), time, steps, outcome)?;
        let engine = state.set(tx.set)?;
        engine.undecided.remove(&tx.id);
        engine.held.release(&tx.id);
        engine.name_changes += 1;
        if is_shared {
            engine.committed.insert(
                tx.id,
                Committed { commitment, stage: Stage::Finishing, is_busy: false, lives: BTreeMap::new() },
            );
        }
        Ok(effect)
    }

    /// Takes a transaction back on everybody who may hold something.
    pub(super) async fn abort(&self, tx: Tx) {
        if let Ok(engine) = self.lock().set(tx.set) {
            engine.undecided.remove(&tx.id);
            engine.held.release(&tx.id);
        }
        for (set, items) in tx.participants {
            if set == tx.set {
                continue;
            }
            let finish = PeerCall::Finish { tx: tx.id, is_committed: false, items };
            if let Err(error) = self.peer(set, finish).await {
                tracing::info!(%set, "a set could not be told that a transaction is off: {error}; it will ask");
            }
        }
    }

    /// Aborts, and if something was in the way waits for it. `Ok`: start anew.
    pub(super) async fn abort_and_wait(&self, tx: Tx, why: NotPrepared) -> Result<(), Errno> {
        let id = tx.id;
        self.abort(tx).await;
        match why {
            NotPrepared::Errno(error) => Err(error),
            NotPrepared::Busy(set, items) => self.peer(set, PeerCall::Await { tx: id, items }).await.map(drop),
        }
    }

    /// Tells the participants that a transaction is committed; objects first, names last, so that whoever
    /// waits for a name finds its object in place. Done at once on this node, else in the background.
    pub(super) async fn finish(&self, set: SetId, tx: TxId) {
        let Some(me) = self.me.upgrade() else { return };
        let participants = {
            let mut state = self.lock();
            let Ok(engine) = state.set(set) else { return };
            let Some(committed) = engine.committed.get_mut(&tx) else { return };
            // One at a time: an order that comes late must not be carried out over what came later.
            if committed.stage != Stage::Finishing || std::mem::replace(&mut committed.is_busy, true) {
                return;
            }
            committed.commitment.participants.clone()
        };
        if participants.iter().all(|(set, _)| self.is_here(*set)) {
            finish_all(&me, set, tx, participants).await;
        } else {
            let world = self.world.clone();
            world.spawn(Box::pin(async move { finish_all(&me, set, tx, participants).await }));
        }
    }
}

async fn finish_all<S: BrickStore>(volume: &Volume<S>, set: SetId, tx: TxId, participants: Vec<Participant>) {
    let is_done = finish_each(volume, set, tx, participants).await;
    if let Ok(engine) = volume.lock().set(set)
        && let Some(committed) = engine.committed.get_mut(&tx)
    {
        committed.is_busy = false;
    }
    if is_done {
        volume.note_finished(set, tx);
    }
}

/// Objects before names.
async fn finish_each<S: BrickStore>(volume: &Volume<S>, set: SetId, tx: TxId, participants: Vec<Participant>) -> bool {
    let holds_name = |(_, items): &Participant| items.iter().any(|item| matches!(item, Item::Name { .. }));
    let (last, first): (Vec<_>, Vec<_>) = participants.into_iter().partition(holds_name);
    for (to, items) in first.into_iter().chain(last) {
        let finish = PeerCall::Finish { tx, is_committed: true, items };
        let done = volume.peer(to, finish).await;
        if let Err(error) = volume.note_life(set, tx, to, done) {
            tracing::warn!(%set, %to, %tx, "a set could not finish a transaction yet: {error}");
            return false;
        }
        volume.note_finished_by(set, tx, to);
        volume.tell_touches(to).await;
    }
    true
}

impl Tx {
    fn add(&mut self, set: SetId, items: Vec<Item>) {
        match self.participants.iter_mut().find(|(known, _)| *known == set) {
            Some((_, known)) => known.extend(items),
            None => self.participants.push((set, items)),
        }
    }

    /// The claims that change on the coordinator's own set, as a step of its commit.
    pub fn own_claims(&self) -> Option<Step> {
        let own = self.participants.iter().filter(|(set, _)| *set == self.set).flat_map(|(_, items)| items);
        let changes_claim = |item: &&Item| match item {
            Item::Name { new, old, .. } => new.is_some() || matches!(old, Old::Claim(_)),
            _ => false,
        };
        // What else is at these names, the other steps of the commit take care of.
        let without_native = |item: Item| match item {
            Item::Name { place, new, old: Old::Native(..) } => Item::Name { place, new, old: Old::Absent },
            other => other,
        };
        let items: Vec<Item> = own.filter(changes_claim).cloned().map(without_native).collect();
        let rests = vec![None; items.len()];
        let finish = Step::Finish { tx: self.id, is_committed: true, items, rests, parts: 0, is_parked: false };
        matches!(&finish, Step::Finish { items, .. } if !items.is_empty()).then_some(finish)
    }
}

/// The items, in their places: an object that moves on in the same transaction (an exchange) is not taken
/// from its name as one is that is replaced.
fn without_moved(items: &[Item]) -> Vec<Item> {
    let moves =
        |gfid: &[u8; 16]| items.iter().any(|item| matches!(item, Item::Move { gfid: moved, .. } if moved == gfid));
    let without = |item: &Item| match item {
        Item::Name { place, new, old: Old::Native(gfid, _) } if moves(gfid) => {
            Item::Name { place: place.clone(), new: *new, old: Old::Absent }
        }
        other => other.clone(),
    };
    items.iter().map(without).collect()
}

impl<S: BrickStore> SetEngine<S> {
    /// A transaction is decided: does what it means here, or undoes it. What was prepared counts; for a
    /// commit whose preparation is lost, the coordinator's items do.
    pub(super) fn finish_part(
        &mut self,
        context: &Context,
        tx: &TxId,
        is_committed: bool,
        items: &[Item],
    ) -> Result<(), Errno> {
        let (mut items, parts, coordinator) = match self.held.get(tx) {
            Some(holding) if holding.is_finished && is_committed => return Ok(()),
            Some(holding) => (without_moved(&holding.items), holding.parts, Some(holding.coordinator)),
            None if is_committed => (without_moved(items), 0, None),
            None => return Ok(()),
        };
        if !is_committed && parts == 0 {
            self.held.release(tx);
            return Ok(());
        }
        if is_committed {
            self.drop_lost_moves(&mut items)?;
        }
        let is_parked = parts > 0 && is_committed;
        let mut changes = Vec::new();
        let mut rests = Vec::with_capacity(items.len());
        for item in &items {
            rests.push(self.choose_rest(context, item)?);
            if is_committed {
                self.entry_changes(item, &mut changes)?;
            }
        }
        tracing::debug!(set = %self.id, %tx, is_committed, ?items, "a transaction is decided");
        let mut steps = vec![Step::Finish { tx: *tx, is_committed, items, rests, parts, is_parked }];
        steps.extend(self.touch_steps(&changes)?);
        self.name_changes += 1;
        let effect = self.commit(None, context.now, steps, Default::default())?;
        self.note_touches(&effect, false);
        match coordinator {
            Some(_) if is_parked => self.held.finish(tx),
            _ => drop(self.held.release(tx)),
        }
        Ok(())
    }

    /// A power loss may have taken away what is to be moved: then the rest is done without it. Moves come
    /// last, so that what others park keeps its number.
    fn drop_lost_moves(&mut self, items: &mut Vec<Item>) -> Result<(), Errno> {
        while let Some(Item::Move { gfid, from, to }) = items.last() {
            let gfid = Gfid(*gfid);
            let mut borne = None;
            for place in [from, to] {
                if self.store.bears(&gfid, &place.parent(), &place.name)? {
                    borne = Some(place);
                }
            }
            if let Some(place) = borne {
                if matches!(self.store.meta(&gfid), Err(Errno::ESTALE)) {
                    self.store.heal_file_handle(&gfid, &place.parent(), &place.name)?;
                }
                break;
            }
            tracing::warn!(set = %self.id, %gfid, "what was to be moved has neither of its names: it is lost");
            items.pop();
        }
        Ok(())
    }

    /// What becomes of a file that an item takes a name from.
    fn choose_rest(&mut self, context: &Context, item: &Item) -> Result<Option<Rest>, Errno> {
        let (gfid, place) = match item {
            Item::Name { old: Old::Native(gfid, kind), place, .. } if *kind != Kind::Directory => (gfid, place),
            Item::Drop { gfid, place } => (gfid, place),
            _ => return Ok(None),
        };
        if !self.store.bears(&Gfid(*gfid), &place.parent(), &place.name)? {
            // Taken before a crash: what follows it may be missing.
            let rest = match self.store.link_count(&Gfid(*gfid)) {
                Ok(0) if context.opens.is_open(&Gfid(*gfid)) => Rest::Orphan,
                Ok(0) => Rest::Gone,
                Ok(_) | Err(Errno::ESTALE) => Rest::Linked,
                Err(error) => return Err(error),
            };
            return Ok(Some(rest));
        }
        match self.rest_without(context, &Gfid(*gfid)) {
            // A power loss has kept the name alone.
            Err(Errno::ESTALE) => self.store.heal_file_handle(&Gfid(*gfid), &place.parent(), &place.name)?,
            rest => return rest.map(Some),
        }
        self.rest_without(context, &Gfid(*gfid)).map(Some)
    }

    /// What becomes of a file of this set that loses one name.
    pub(super) fn rest_without(&mut self, context: &Context, gfid: &Gfid) -> Result<Rest, Errno> {
        Ok(match self.store.link_count(gfid)? {
            0 | 1 if context.opens.is_open(gfid) => Rest::Orphan,
            0 | 1 => Rest::Gone,
            _ => Rest::Linked,
        })
    }

    /// The directories whose entries on this set an item changes, and by how many subdirectories.
    fn entry_changes(&mut self, item: &Item, changes: &mut Vec<(Gfid, i32)>) -> Result<(), Errno> {
        match item {
            Item::Name { old: Old::Native(_, kind), place, .. } if *kind != Kind::Directory => {
                changes.push((place.parent(), 0));
            }
            Item::Name { .. } => {}
            Item::Drop { place, .. } => changes.push((place.parent(), 0)),
            // Else it is done already.
            Item::Move { gfid, from, to } if self.store.bears(&Gfid(*gfid), &from.parent(), &from.name)? => {
                let is_dir = i32::from(self.store.meta(&Gfid(*gfid))?.kind == Kind::Directory);
                changes.extend([(from.parent(), -is_dir), (to.parent(), is_dir)]);
            }
            Item::Move { .. } => {}
            Item::Close { gfid } => {
                let gfid = Gfid(*gfid);
                let is_home = self.store.has_dir(&gfid)? && self.store.meta(&gfid)?.home == self.id;
                if is_home && let Some((parent, _)) = self.store.dir_place(&gfid)? {
                    changes.push((parent, -1));
                }
            }
        }
        Ok(())
    }

    /// Lets go what a finished transaction has parked here.
    pub(super) fn release_part(&mut self, context: &Context, tx: &TxId) -> Result<(), Errno> {
        let Some(holding) = self.held.get(tx) else { return Ok(()) };
        let (items, parts) = (without_moved(&holding.items), holding.parts);
        let mut parked = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let (gfid, rest) = match item {
                Item::Name { old: Old::Native(gfid, kind), .. } if *kind != Kind::Directory => (gfid, true),
                Item::Drop { gfid, .. } => (gfid, true),
                Item::Close { gfid } => (gfid, false),
                _ => continue,
            };
            let rest = match rest {
                true => match self.store.link_count(&Gfid(*gfid)) {
                    Ok(0) if context.opens.is_open(&Gfid(*gfid)) => Some(Rest::Orphan),
                    Ok(0) => Some(Rest::Gone),
                    Ok(_) => Some(Rest::Linked),
                    Err(Errno::ESTALE) => Some(Rest::Gone),
                    Err(error) => return Err(error),
                },
                false => None,
            };
            parked.push((index as u16, *gfid, rest));
        }
        let step = Step::Release { tx: *tx, parts, parked };
        self.commit(None, context.now, vec![step], Default::default())?;
        self.held.release(tx);
        Ok(())
    }
}
