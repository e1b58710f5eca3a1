//! The engine of one replica set on this node: its brick, its order of effects, what transactions hold on
//! it and which of its own are not finished elsewhere. Decisions are made in `volume`; here they become
//! effects: logged, then applied (R9; PROTOCOL 1).

use crate::brick::effect::{Claim, Commitment, Effect, Outcome, Place, Stamp, Step};
use crate::brick::held::Held;
use crate::brick::meta::{Meta, Position};
use crate::brick::store::BrickStore;
use brickfs_common::attr::{Kind, Timestamp};
use brickfs_common::errno::Errno;
use brickfs_common::ids::{ClientId, Gfid, SetId, TxId};
use std::collections::{BTreeMap, HashSet};

/// Who asked for an effect.
#[derive(Clone, Copy)]
pub struct Asker {
    /// The client.
    pub client: ClientId,
    /// Its request number.
    pub request: u64,
}

/// A transaction that this set has committed and others may not have finished on their disks.
pub struct Committed {
    /// The others, with what they have to do, and the change here.
    pub commitment: Commitment,
    /// How far it has come.
    pub stage: Stage,
    /// The others are being told to finish.
    pub is_busy: bool,
    /// In which life (`SetEngine::life`) each of the others did what it was told last.
    pub lives: BTreeMap<SetId, u64>,
}

/// ```text
/// Finishing --all finished--> Finished --barrier--> Flushed --barrier, release--> Released --barrier--> (forgotten)
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Some participant has not answered.
    Finishing,
    /// All have finished, not all of it is on the disks.
    Finished,
    /// All is on the disks, and this set has written so: nobody is told to finish again, not even after a
    /// restart, because who has let go what it parked would do it over what came later.
    Flushed,
    /// All have let go what they had parked, not all of that is on the disks.
    Released,
}

/// What a directory's home is to be told: at once one thing only, for what is told later to arrive later.
#[derive(Clone, Copy, Default)]
pub struct Touch {
    /// When entries changed last.
    pub time: Timestamp,
    /// Counts the changes.
    pub changes: u64,
    /// The home is being told.
    pub is_sent: bool,
    /// It may have been told before, or others may have told it of later changes.
    pub is_late: bool,
}

/// What a dentry set knows of a name by itself.
pub enum Look {
    /// An object that is homed here.
    Native(Meta),
    /// A claim, to be confirmed by the home.
    Claim(Claim),
    /// Nothing.
    Absent,
    /// A transaction holds the name.
    Held(TxId),
}

/// The engine of one set.
pub struct SetEngine<S> {
    /// The set.
    pub id: SetId,
    /// The brick.
    pub store: S,
    /// What transactions hold here.
    pub held: Held,
    /// Transactions of this set that are being decided in this process.
    pub undecided: HashSet<TxId>,
    /// Transactions of this set that are decided and not yet forgotten.
    pub committed: BTreeMap<TxId, Committed>,
    /// Counts closings of directories that were not here: what a materialise asked before is void.
    pub closings: u64,
    /// Which process over this brick this is: what was done in another one a power loss may have undone.
    pub life: u64,
    /// Counts what transactions did to names here, over restarts too: a claim that was denied before is
    /// not the claim that was made since, even if it reads the same.
    pub name_changes: u64,
    /// Directories of which the homes have not been told yet that entries changed here.
    pub touches: BTreeMap<Gfid, Touch>,
    /// Effects applied in this process, and how many of them a barrier has passed.
    pub applied: u64,
    /// See `applied`.
    pub flushed: u64,
    /// Why this set takes no more changes: its disk has failed to keep some (R8).
    pub failed: Option<String>,
    position: Position,
}

impl<S: BrickStore> SetEngine<S> {
    /// The engine of a set whose log ends at `position`, with what transactions left on the brick.
    pub fn new(id: SetId, mut store: S, position: Position) -> Result<SetEngine<S>, Errno> {
        let mut held = Held::default();
        let parts = store.pending_parts()?;
        let finished: HashSet<TxId> = parts.iter().filter(|part| part.is_finished).map(|part| part.tx).collect();
        for part in parts {
            match finished.contains(&part.tx) {
                true => held.hold_finished(part.tx, part.coordinator, part.items),
                false => held.hold(part.tx, part.coordinator, part.items, 1),
            }
        }
        let stage = |is_flushed| if is_flushed { Stage::Flushed } else { Stage::Finishing };
        let commits = store.commits()?.into_iter();
        let committed = commits
            .map(|(tx, commitment, is_flushed)| {
                (tx, Committed { commitment, stage: stage(is_flushed), is_busy: false, lives: BTreeMap::new() })
            })
            .collect();
        Ok(SetEngine {
            id,
            store,
            held,
            undecided: HashSet::new(),
            committed,
            closings: 0,
            life: position.seq,
            name_changes: position.seq + 1,
            touches: BTreeMap::new(),
            applied: 0,
            flushed: 0,
            failed: None,
            position,
        })
    }

    /// Logs an effect and applies it. An error of a step takes the result back: a retry runs as if new.
    pub fn commit(
        &mut self,
        asker: Option<Asker>,
        time: Timestamp,
        steps: Vec<Step>,
        outcome: Outcome,
    ) -> Result<Effect, Errno> {
        let effect = self.log(asker, time, steps, outcome)?;
        let at = effect.stamp();
        for step in &effect.steps {
            let Err(error) = self.store.apply(step, &at) else { continue };
            match step {
                // What it counts has happened; the next change of the directory counts anew.
                Step::TouchDir { .. } => tracing::warn!(set = %self.id, %error, "not done, and left so: {step}"),
                // Begun: only forward, which the next start does (`redo_last`).
                Step::Move { gfid, to, .. } if self.store.bears(&Gfid(*gfid), &to.parent(), &to.name) == Ok(true) => {
                    self.fail("the end of a rename", error);
                    return Err(error);
                }
                _ => {
                    self.take_back(&effect, asker, step, error);
                    return Err(error);
                }
            }
        }
        self.applied += 1;
        Ok(effect)
    }

    /// Gives an effect its position and writes its record.
    pub fn log(
        &mut self,
        asker: Option<Asker>,
        time: Timestamp,
        steps: Vec<Step>,
        outcome: Outcome,
    ) -> Result<Effect, Errno> {
        if self.failed.is_some() {
            return Err(Errno::EROFS);
        }
        self.position.seq += 1;
        let (client, request) = asker.map_or(([0; 16], 0), |asker| (asker.client.0, asker.request));
        let effect = Effect { position: self.position, time, client, request, steps, outcome };
        self.store.append(&effect)?;
        Ok(effect)
    }

    fn take_back(&mut self, effect: &Effect, asker: Option<Asker>, failed: &Step, error: Errno) {
        if let Step::Make { object, .. } = failed {
            self.store.undo_make(&Gfid(object.gfid), object.kind);
        }
        if let Some(Step::Commit { tx, .. }) = effect.steps.first()
            && let Err(error) = self.store.apply(&Step::Forget { tx: *tx }, &effect.stamp())
        {
            tracing::error!(set = %self.id, %tx, "a commit that failed could not be taken back: {error}");
        }
        tracing::warn!(set = %self.id, %error, position = ?effect.position, "effect taken back at {failed}");
        self.log_aborted(asker, effect.time);
    }

    /// A flush failed: what the kernel had not written may be gone, and no later flush brings it back. The
    /// set answers reads and takes no more changes (R8; PROTOCOL 23: its last member stays).
    pub fn fail(&mut self, what: &str, error: Errno) {
        tracing::error!(set = %self.id, "{what} failed ({error}): the set takes no more changes");
        self.failed
            .get_or_insert_with(|| format!("{what} failed ({error}): read-only; check the disk and restart brickd"));
    }

    /// Writes that the last effect of this request did not happen.
    pub fn log_aborted(&mut self, asker: Option<Asker>, time: Timestamp) {
        let aborted = Outcome { aborted: true, ..Outcome::default() };
        if let Err(error) = self.log(asker, time, Vec::new(), aborted) {
            tracing::error!(set = %self.id, "the effect log cannot be written: {error}");
        }
    }

    /// What this dentry set knows of a name.
    pub fn look(&mut self, parent: &Gfid, name: &[u8]) -> Result<Look, Errno> {
        if !self.held.is_empty() {
            let place = Place { parent: parent.0, name: name.to_vec() };
            if let Some(tx) = self.held.name_holder(&place) {
                return Ok(Look::Held(tx));
            }
        }
        self.look_below(parent, name)
    }

    /// The same, below what a transaction holds.
    pub fn look_below(&mut self, parent: &Gfid, name: &[u8]) -> Result<Look, Errno> {
        match self.native(parent, name)? {
            Some(meta) => Ok(Look::Native(meta)),
            None => match self.store.claim(parent, name) {
                Ok(claim) => Ok(claim.map_or(Look::Absent, Look::Claim)),
                Err(error) => {
                    let path = self.store.shown_path(parent, name);
                    self.store.report_damage(format!("the claim of {path} in directory {parent} is damaged"));
                    Err(error)
                }
            },
        }
    }

    /// The object of this name that is homed here.
    pub fn native(&mut self, parent: &Gfid, name: &[u8]) -> Result<Option<Meta>, Errno> {
        let is_homed_here = |meta: &Meta| meta.kind != Kind::Directory || meta.home == self.id;
        Ok(self.store.entry(parent, name)?.filter(is_homed_here))
    }

    /// Whether a directory is here and takes new entries; `Err` is the transaction that closes it.
    pub fn takes_entries(&mut self, dir: &Gfid) -> Result<Result<bool, TxId>, Errno> {
        if let Some(tx) = self.held.object_holder(dir)
            && self.held.get(&tx).is_some_and(|h| h.items.iter().any(|i| closes(i, dir)))
        {
            return Ok(Err(tx));
        }
        self.store.has_dir(dir).map(Ok)
    }

    /// Whether a directory has an entry that is homed here; copies of subdirectories do not count: their
    /// own homes answer for them. What is damaged counts.
    pub fn has_entries(&mut self, dir: &Gfid) -> Result<bool, Errno> {
        for name in self.store.names(dir)? {
            match self.native(dir, &name) {
                Ok(None) => {}
                Ok(Some(_)) | Err(_) => return Ok(true),
            }
        }
        Ok(false)
    }

    /// The steps that say that entries of directories changed here by so many subdirectories.
    pub fn touch_steps(&mut self, changes: &[(Gfid, i32)]) -> Result<Vec<Step>, Errno> {
        let mut merged: Vec<(Gfid, i32)> = Vec::with_capacity(changes.len());
        for (dir, delta) in changes {
            match merged.iter_mut().find(|(known, _)| known == dir) {
                Some((_, sum)) => *sum += delta,
                None => merged.push((*dir, *delta)),
            }
        }
        let mut steps = Vec::with_capacity(merged.len());
        for (dir, delta) in merged {
            let subdirs = match delta {
                0 => None,
                delta => match self.store.meta(&dir) {
                    Ok(meta) => Some(meta.subdirs.saturating_add_signed(delta)),
                    Err(Errno::ESTALE) => continue, // removed since: a finish that is done again
                    Err(error) => return Err(error),
                },
            };
            steps.push(Step::TouchDir { gfid: dir.0, subdirs });
        }
        Ok(steps)
    }

    /// The stamp of an effect that is logged next, for what has to be known before.
    pub fn next_stamp(&self, time: Timestamp) -> Stamp {
        Stamp { position: Position { seq: self.position.seq + 1, ..self.position }, time }
    }
}

fn closes(item: &crate::brick::effect::Item, dir: &Gfid) -> bool {
    matches!(item, crate::brick::effect::Item::Close { gfid } if *gfid == dir.0)
}
