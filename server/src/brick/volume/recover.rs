//! The start of a volume, and what goes on in the background: transactions that a crash cut are finished
//! or undone before anybody is served; barriers let go what other disks were waited for (PROTOCOL 5, 8).

use super::peer::TxState;
use super::{PeerCall, PeerReply, State, Volume};
use crate::brick::effect::{Effect, Item, Outcome, Stamp, Step};
use crate::brick::set::Stage;
use crate::brick::store::BrickStore;
use brickfs_common::attr::Timestamp;
use brickfs_common::errno::Errno;
use brickfs_common::fop::ObjectRef;
use brickfs_common::ids::{Gfid, SetId, TxId};
use std::collections::BTreeMap;
use std::time::Instant;

impl<S: BrickStore> Volume<S> {
    /// Settles what an earlier process of any node has left between the sets. `last` are the last effects
    /// of the sets of this node, and all those that changed numbers of subdirectories: homes may not have
    /// been told of them. Done again when a node comes back.
    pub async fn recover(&self, last: Vec<(SetId, Effect)>) {
        {
            let mut state = self.lock();
            state.hold_again();
            state.finish_again();
        }
        self.settle_all().await;
        for (set, effect) in last {
            if let Ok(engine) = self.lock().set(set) {
                engine.note_touches(&effect, true);
            }
            self.pass_on_again(set, &effect).await;
        }
        self.tell_all_touches().await;
    }

    async fn tell_all_touches(&self) {
        let sets: Vec<SetId> = self.lock().set_ids().collect();
        for set in sets {
            self.tell_touches(set).await;
        }
    }

    /// Asks what became of transactions that others decide, and tells others of what was decided here: an
    /// answer, an abort or a finish may have been lost on its way.
    async fn settle_all(&self) {
        let (held, committed) = self.lock().unsettled();
        for (set, tx, coordinator) in held {
            if let Err(error) = self.settle(set, tx, coordinator).await {
                tracing::warn!(%set, %tx, "a transaction waits for the set that decided it: {error}");
            }
        }
        for (set, tx) in committed {
            self.finish(set, tx).await;
        }
    }

    async fn settle(&self, set: SetId, tx: TxId, coordinator: SetId) -> Result<(), Errno> {
        let PeerReply::Tx(tx_state) = self.peer(coordinator, PeerCall::Ask { tx }).await? else {
            return Err(Errno::EPROTO);
        };
        let is_committed = match tx_state {
            TxState::Committed => true,
            TxState::Unknown => false,
            TxState::Undecided => return Ok(()),
        };
        self.peer(set, PeerCall::Finish { tx, is_committed, items: Vec::new() }).await?;
        self.tell_touches(set).await;
        Ok(())
    }

    /// A participant has finished a transaction. One that shares this set's fate keeps no record of its own:
    /// what it has done is written off here, where others keep the transaction alive.
    pub(super) fn note_finished_by(&self, set: SetId, tx: TxId, by: SetId) {
        let mut state = self.lock();
        let context = state.peer_context();
        let Ok(engine) = state.set(set) else { return };
        let Some(committed) = engine.committed.get(&tx) else { return };
        let outlives = |other: &SetId| context.needs_record(*other, set);
        if outlives(&by) || !committed.commitment.participants.iter().any(|(other, _)| outlives(other)) {
            return;
        }
        let mut rest = committed.commitment.clone();
        rest.participants.retain(|(other, _)| *other != by);
        let at = engine.next_stamp(context.now);
        match engine.store.apply(&Step::Commit { tx, commitment: rest.clone() }, &at) {
            Ok(()) => drop(engine.committed.get_mut(&tx).map(|committed| committed.commitment = rest)),
            Err(error) => tracing::warn!(%set, %tx, "what a set has finished could not be written off: {error}"),
        }
    }

    /// All participants of a transaction have finished it.
    pub(super) fn note_finished(&self, set: SetId, tx: TxId) {
        let mut state = self.lock();
        let context = state.peer_context();
        let Ok(engine) = state.set(set) else { return };
        let Some(committed) = engine.committed.get_mut(&tx) else { return };
        committed.stage = Stage::Finished;
        let shares_fate = |(other, _): &(SetId, _)| !context.needs_record(*other, set);
        if committed.commitment.participants.iter().all(shares_fate) {
            // One journal keeps all of it in order, or nothing.
            engine.forget(&tx, &context);
        }
    }

    /// Lets go what was only waited for because of other disks. Called every few seconds; may sleep.
    pub async fn pass_barriers(&self) {
        self.settle_all().await;
        self.tell_all_touches().await;
        let waiting = self.lock().waiting_for_barriers();
        let mut sets: Vec<SetId> =
            waiting.iter().flat_map(|(set, _, _, others)| others.iter().copied().chain([*set])).collect();
        sets.sort_unstable();
        sets.dedup();
        let mut lives = BTreeMap::new();
        for set in sets {
            match self.flush_set(set).await {
                Ok(life) => drop(lives.insert(set, life)),
                Err(error) => tracing::warn!(%set, "a barrier failed: {error}"),
            }
        }
        for (set, tx, stage, others) in waiting {
            if others.iter().chain([&set]).all(|involved| lives.contains_key(involved)) {
                self.pass_stage((set, tx, stage), &others, &lives).await;
            }
        }
    }

    /// All sets of a transaction have passed a barrier, in these lives.
    async fn pass_stage(&self, (set, tx, stage): (SetId, TxId, Stage), others: &[SetId], lives: &BTreeMap<SetId, u64>) {
        if stage != Stage::Flushed {
            let mut state = self.lock();
            let context = state.peer_context();
            let Ok(engine) = state.set(set) else { return };
            let Some(committed) = engine.committed.get_mut(&tx).filter(|committed| committed.stage == stage) else {
                return;
            };
            let is_flushed = others.iter().all(|other| committed.lives.get(other) == lives.get(other));
            match (stage, is_flushed) {
                (Stage::Released, true) => engine.forget(&tx, &context),
                (_, true) => engine.note_flushed(&tx, &context),
                // Some set has started anew in between, and may have lost what it had done.
                (Stage::Released, false) => committed.stage = Stage::Flushed,
                (_, false) => committed.stage = Stage::Finishing,
            }
            return;
        }
        for other in others {
            let done = self.peer(*other, PeerCall::Release { tx }).await;
            if let Err(error) = self.note_life(set, tx, *other, done) {
                tracing::warn!(set = %other, %tx, "what a transaction parked could not be let go yet: {error}");
                return;
            }
        }
        if let Ok(engine) = self.lock().set(set)
            && let Some(committed) = engine.committed.get_mut(&tx)
        {
            committed.stage = Stage::Released;
        }
    }

    /// Notes in which life a set has done what a transaction wants of it.
    pub(super) fn note_life(
        &self,
        set: SetId,
        tx: TxId,
        by: SetId,
        done: Result<PeerReply, Errno>,
    ) -> Result<(), Errno> {
        let PeerReply::DoneIn { life } = done? else { return Err(Errno::EPROTO) };
        if let Some(committed) = self.lock().set(set)?.committed.get_mut(&tx) {
            committed.lives.insert(by, life);
        }
        Ok(())
    }

    /// Flushes a set's disk, outside of the volume's lock; answers the life in which it did.
    async fn flush_set(&self, set: SetId) -> Result<u64, Errno> {
        if !self.is_here(set) {
            return match self.peer(set, PeerCall::Barrier).await? {
                PeerReply::DoneIn { life } => Ok(life),
                _ => Err(Errno::EPROTO),
            };
        }
        let (flusher, applied) = {
            let mut state = self.lock();
            let engine = state.set(set)?;
            (engine.store.flusher(), engine.applied)
        };
        let flushed = flusher();
        let mut state = self.lock();
        let engine = state.set(set)?;
        if let Err(error) = flushed {
            // Told once: the next fsync would not hear of it (R8).
            engine.fail("a barrier", error);
            return Err(error);
        }
        engine.flushed = engine.flushed.max(applied);
        Ok(engine.life)
    }

    /// Ends what silent clients hold and deletes orphans that nobody has open. Called every second.
    pub fn tick(&self) {
        let mut state = self.lock();
        for (gfid, home) in state.clients.end_silent(Instant::now()) {
            state.delete_if_orphan(ObjectRef { gfid, home });
        }
        if state.clients.is_grace() || state.are_orphans_swept {
            return;
        }
        state.are_orphans_swept = true;
        for home in state.set_ids().collect::<Vec<_>>() {
            let orphans = state.set(home).and_then(|engine| engine.store.orphans()).unwrap_or_default();
            for gfid in orphans {
                state.delete_if_orphan(ObjectRef { gfid, home });
            }
        }
    }
}

/// A transaction on its way through the barriers: its set, itself, its stage, the other sets.
type Waiting = (SetId, TxId, Stage, Vec<SetId>);

impl<S: BrickStore> State<S> {
    /// What is held for others (set, transaction, coordinator), and own transactions to finish.
    #[allow(clippy::type_complexity)] // used in this file only
    fn unsettled(&mut self) -> (Vec<(SetId, TxId, SetId)>, Vec<(SetId, TxId)>) {
        let (mut held, mut committed) = (Vec::new(), Vec::new());
        for engine in self.open_sets() {
            let elsewhere = engine.held.decided_elsewhere(engine.id);
            held.extend(elsewhere.into_iter().map(|(tx, coordinator)| (engine.id, tx, coordinator)));
            let unfinished = engine.committed.iter().filter(|(_, c)| c.stage == Stage::Finishing);
            committed.extend(unfinished.map(|(tx, _)| (engine.id, *tx)));
        }
        (held, committed)
    }

    /// A set that shares the fate of a coordinator has no record of what it holds for it: after a restart the
    /// coordinator's record says so, until the set has finished.
    fn hold_again(&mut self) {
        let context = self.peer_context();
        let mut to_hold = Vec::new();
        for engine in self.open_sets() {
            let unfinished = engine.committed.iter().filter(|(_, committed)| committed.stage == Stage::Finishing);
            for (tx, committed) in unfinished {
                let no_record =
                    committed.commitment.participants.iter().filter(|(set, _)| !context.needs_record(*set, engine.id));
                to_hold.extend(no_record.map(|(set, items)| (*set, *tx, engine.id, items.clone())));
            }
        }
        for (set, tx, coordinator, items) in to_hold {
            if let Ok(engine) = self.set(set)
                && engine.held.get(&tx).is_none()
                && engine.held.blocker(&tx, &items).is_none()
            {
                engine.held.hold(tx, coordinator, items, 0);
            }
        }
    }

    /// A set of a node that comes back may have lost what it has finished and not flushed: it is told again.
    /// Where it has not, its own record keeps it from doing so again.
    fn finish_again(&mut self) {
        for engine in self.open_sets() {
            for committed in engine.committed.values_mut() {
                match committed.stage {
                    Stage::Finished => committed.stage = Stage::Finishing,
                    Stage::Released => committed.stage = Stage::Flushed,
                    Stage::Finishing | Stage::Flushed => {}
                }
            }
        }
    }

    fn waiting_for_barriers(&mut self) -> Vec<Waiting> {
        let mut waiting = Vec::new();
        for engine in self.open_sets() {
            let past = engine.committed.iter().filter(|(_, c)| c.stage != Stage::Finishing);
            waiting.extend(past.map(|(tx, c)| {
                (engine.id, *tx, c.stage, c.commitment.participants.iter().map(|(set, _)| *set).collect())
            }));
        }
        waiting
    }

    /// Deletes an orphan that nobody has open, or may still say so.
    pub fn delete_if_orphan(&mut self, object: ObjectRef) {
        if self.clients.opens().is_open(&object.gfid) {
            return;
        }
        if let Ok(engine) = self.set(object.home)
            && let Err(error) = engine.store.delete_orphan(&object.gfid)
        {
            tracing::warn!(gfid = %object.gfid, "an orphan could not be deleted: {error}");
        }
    }
}

impl<S: BrickStore> crate::brick::set::SetEngine<S> {
    /// Writes that a transaction is on the disks everywhere.
    fn note_flushed(&mut self, tx: &TxId, context: &super::peer::Context) {
        let at = self.next_stamp(context.now);
        let written = self.store.apply(&Step::Flushed { tx: *tx }, &at);
        match (written, self.committed.get_mut(tx)) {
            (Ok(()), Some(committed)) => committed.stage = Stage::Flushed,
            (Ok(()), None) => {}
            (Err(error), _) => tracing::warn!(set = %self.id, %tx, "a transaction stays as it is: {error}"),
        }
    }

    /// Forgets a transaction that is on the disks everywhere. Not an effect: nothing depends on it.
    fn forget(&mut self, tx: &TxId, context: &super::peer::Context) {
        let at = self.next_stamp(context.now);
        match self.store.apply(&Step::Forget { tx: *tx }, &at) {
            Ok(()) => drop(self.committed.remove(tx)),
            Err(error) => tracing::warn!(set = %self.id, %tx, "a transaction could not be forgotten: {error}"),
        }
    }
}

/// The effects of a set's log whose touches may not have reached the homes of the directories: the last,
/// and, since counts of subdirectories must be right in the end, all that changed one.
pub fn untold(effects: &[Effect]) -> impl Iterator<Item = &Effect> {
    let last = effects.iter().filter(|effect| !effect.steps.is_empty()).map(|effect| effect.position).max();
    let changes_count = |step: &Step| matches!(step, Step::TouchDir { subdirs: Some(_), .. });
    effects.iter().filter(move |effect| Some(effect.position) == last || effect.steps.iter().any(changes_count))
}

/// Where the order of a set goes on. A power loss may have cut the log below positions that objects carry:
/// the clock in microseconds, which no set's effects outrun, is above those. There is a gap to what is logged,
/// by which the effects of two processes are told apart.
pub fn first_seq(effects: &[Effect], now: Timestamp) -> u64 {
    let logged = effects.iter().map(|effect| effect.position.seq).max().unwrap_or(0);
    let micros = now.sec.saturating_mul(1_000_000).saturating_add(i64::from(now.nsec / 1000));
    (logged + 1).max(u64::try_from(micros).unwrap_or(0))
}

/// Takes back commitments whose change here a power loss has lost, after `redo_last` has done what can be
/// done: nobody has let go anything for them, because that takes a barrier of this set.
pub fn drop_unchanged<S: BrickStore>(store: &mut S, set: SetId) -> Result<(), Errno> {
    for (tx, commitment, is_flushed) in store.commits()? {
        let Some(change) = commitment.change.filter(|_| !is_flushed) else { continue };
        let (gfid, position) = (Gfid(change.gfid), change.position);
        let is_named = match &change.name {
            Some(place) => store.bears(&gfid, &place.parent(), &place.name)?,
            None => false,
        };
        match store.meta(&gfid) {
            Ok(meta) if meta.home == set && meta.position < position && !is_named => {
                tracing::warn!(%set, %tx, "a transaction is undone: a power loss has kept its record alone");
                store.apply(&Step::Forget { tx }, &Stamp { position, time: meta.ctime })?;
            }
            Ok(_) | Err(Errno::ESTALE) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Finishes the effect of a set's log that was cut and says what of the log still counts. After the death of a
/// process that is the last one; a power loss may leave a log that is newer than the brick, and then it is the
/// first that the brick has not seen. What comes behind it is lost.
pub fn redo_last<S: BrickStore>(store: &mut S, effects: &mut Vec<Effect>, lost_power: bool) {
    let Some(cut) = find_cut(store, effects) else { return };
    let mut lost: Vec<Effect> = effects.extract_if(.., |effect| effect.position > cut.position).collect();
    match store.redo(&cut) {
        Ok(true) => {}
        Ok(false) => lost.extend(effects.extract_if(.., |effect| effect.position == cut.position)),
        // What it stands on is not there either.
        Err(error) if lost_power => {
            tracing::info!("the effect {:?} is lost: {error}", cut.position);
            lost.extend(effects.extract_if(.., |effect| effect.position == cut.position));
        }
        Err(error) => {
            let gfid = cut.outcome.object.map(|(gfid, _)| Gfid(gfid).to_string()).unwrap_or_default();
            store.report_damage(format!(
                "the last effect before the restart could not be finished: object {gfid}: {error}"
            ));
        }
    }
    write_off(store, effects, lost);
}

/// What did not happen must not be found in the log again: each of it gets a record that says so, in its
/// order, with a gap before each, so that nothing behind is taken for a part of what comes.
fn write_off<S: BrickStore>(store: &mut S, effects: &mut Vec<Effect>, mut lost: Vec<Effect>) {
    lost.sort_unstable_by_key(|effect| effect.position);
    let Some(mut position) = lost.last().map(|effect| effect.position) else { return };
    for effect in lost {
        position.seq += 2;
        let outcome = Outcome { aborted: true, ..Outcome::default() };
        let gone = Effect { position, steps: Vec::new(), outcome, ..effect };
        if let Err(error) = store.append(&gone) {
            store.report_damage(format!("an effect that did not happen could not be written off: {error}"));
        }
        effects.push(gone);
    }
}

fn find_cut<S: BrickStore>(store: &mut S, effects: &[Effect]) -> Option<Effect> {
    let mut order: Vec<&Effect> =
        effects.iter().filter(|effect| !effect.steps.is_empty() || effect.outcome.aborted).collect();
    order.sort_unstable_by_key(|effect| std::cmp::Reverse(effect.position));
    let mut cut = *order.first()?;
    // Each process starts with a gap, and what an earlier one left has been settled.
    let one_process = order.windows(2).take_while(|pair| pair[0].position.seq == pair[1].position.seq + 1);
    for pair in one_process.filter(|pair| !pair[0].outcome.aborted) {
        match is_applied(store, pair[1]) {
            Some(true) => break,
            Some(false) => cut = pair[1],
            None => {}
        }
    }
    Some(cut.clone())
}

/// Whether the objects of an effect have seen it; `None` if that cannot be seen.
fn is_applied<S: BrickStore>(store: &mut S, effect: &Effect) -> Option<bool> {
    let is_made = |step: &Step| matches!(step, Step::Make { object, .. } if store.meta(&Gfid(object.gfid)).is_ok());
    if effect.steps.iter().any(is_made) {
        return Some(true);
    }
    let changed = effect.steps.iter().find_map(|step| match step {
        Step::Finish { is_committed: true, items, .. } => items.iter().find_map(moved_object),
        step => step.changed_object(),
    });
    // What is gone by now cannot be asked.
    Some(store.meta(&changed?).ok()?.position >= effect.position)
}

fn moved_object(item: &Item) -> Option<Gfid> {
    match item {
        Item::Move { gfid, .. } => Some(Gfid(*gfid)),
        _ => None,
    }
}
