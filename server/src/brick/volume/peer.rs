//! What sets ask of each other: questions about objects, and the parts of a transaction (PROTOCOL 5-9).
//! A set of this node is asked by a plain call; the answer is there when the call returns. A set of another
//! node is asked through `World::send`. A set that is asked never asks a third one.

use super::Volume;
use crate::brick::effect::{Claim, CopyOf, Item, Old, Place, Step};
use crate::brick::held::HELD_MAX;
use crate::brick::meta::{Meta, Position};
use crate::brick::set::{Look, SetEngine};
use crate::brick::store::{BrickStore, TouchedAt};
use brickfs_common::attr::{Attr, Kind, Timestamp};
use brickfs_common::errno::Errno;
use brickfs_common::fop::ObjectRef;
use brickfs_common::ids::{Gfid, SetId, TxId};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

/// A question or order from one set to another.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum PeerCall {
    /// What a dentry set knows of a name, once no transaction holds it.
    Look { place: Place },
    /// Where a directory is and what its children inherit; of its home.
    Describe { dir: Gfid },
    /// Whether this set has a directory, once nothing closes it.
    HasDir { dir: Gfid },
    /// Makes copies of directories, the outermost first, unless a directory was closed since `closings`.
    MakeCopies { closings: u64, copies: Vec<(Place, CopyOf)> },
    /// Whether an object bears a name; of its home.
    Confirm { gfid: Gfid, place: Place },
    /// Attributes of an object; of its home.
    GetAttr { gfid: Gfid },
    /// Holds the items of a transaction. A patient one waits for what stands in the way of names.
    Prepare { tx: TxId, coordinator: SetId, items: Vec<Item>, is_patient: bool },
    /// Answers when none of the items is held any more.
    Await { tx: TxId, items: Vec<Item> },
    /// The transaction is decided. The items are repeated for a set that has lost its preparation.
    Finish { tx: TxId, is_committed: bool, items: Vec<Item> },
    /// What the transaction parked is needed no more.
    Release { tx: TxId },
    /// Flushes everything that this set has applied to its disk.
    Barrier,
    /// What became of a transaction; of its coordinator.
    Ask { tx: TxId },
    /// Entries of a directory changed at the asking set; of its home (PROTOCOL 28).
    Touch { dir: Gfid, set: SetId, touch: TouchedAt, subdirs: Option<u32> },
    /// The object has lost the name since the dentry set was asked for it: its claim goes, unless something
    /// was done to names there since (`SetEngine::name_changes`).
    DropClaim { place: Place, gfid: Gfid, name_changes: u64 },
    /// A name without a claim gets one, if it is still what it was when it was looked at.
    Reclaim { place: Place, old: Old, claim: Claim },
    /// What children of a directory inherit has changed (PROTOCOL 27).
    Inherit { copy: CopyOf },
    /// A directory was renamed at its home (PROTOCOL 26).
    Follow { dir: Gfid, to: Place, position: Position },
    /// Takes the volume's lock on directory renames; of the root's home (PROTOCOL 25).
    LockRenames { tx: TxId, coordinator: SetId },
    /// Gives it back.
    UnlockRenames { tx: TxId },
}

/// A directory as its home describes it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Described {
    /// Its parent directory.
    pub parent: ObjectRef,
    /// Its name there.
    pub name: Vec<u8>,
    /// What a copy has of it.
    pub copy: CopyOf,
}

/// What became of a transaction, as its coordinator knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum TxState {
    /// It is committed.
    Committed,
    /// It is not decided yet.
    Undecided,
    /// Nothing is known of it, and it will never be committed (presumed abort).
    Unknown,
}

/// The answer to a `PeerCall`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum PeerReply {
    /// Done.
    Done,
    /// To `Finish`, `Release` and `Barrier`: done, in this life of the set (`SetEngine::life`).
    DoneIn { life: u64 },
    /// To `Look`, with `SetEngine::name_changes`.
    Name { old: Old, name_changes: u64 },
    /// To `HasDir`: whether it has; how often a directory was closed here that was not.
    HasDir { has_it: bool, closings: u64 },
    /// To `Describe`.
    Described(Box<Described>),
    /// To `Confirm`: the attributes if it does; to `GetAttr` and `Touch`, if there is such an object.
    Attr(Option<Box<Attr>>),
    /// To `Prepare`: what the names were, in the order of the `Name` items; whether anything is held.
    Prepared { olds: Vec<Old>, is_held: bool },
    /// To `Prepare`: something is held by another transaction.
    Busy,
    /// To `Ask`.
    Tx(TxState),
}

/// The answer of a set to a call: at once, or when a transaction is done there.
pub(super) enum Answer {
    Now(Result<PeerReply, Errno>),
    /// Ask again after this.
    After(oneshot::Receiver<()>),
}

impl<S: BrickStore> Volume<S> {
    /// Asks a set.
    pub(super) async fn peer(&self, to: SetId, call: PeerCall) -> Result<PeerReply, Errno> {
        if self.is_here(to) { self.serve_peer(to, call).await } else { self.world.send(to, call).await }
    }

    /// Answers a call to a set of this node.
    pub async fn serve_peer(&self, to: SetId, call: PeerCall) -> Result<PeerReply, Errno> {
        loop {
            let answer = {
                let mut state = self.lock();
                let context = state.peer_context();
                match state.set(to) {
                    Ok(set) => serve(set, &context, &call),
                    Err(error) => Answer::Now(Err(error)),
                }
            };
            match answer {
                Answer::Now(result) => {
                    if matches!(call, PeerCall::Finish { .. }) {
                        self.tell_touches_later(to);
                    }
                    return result;
                }
                // The sender is dropped only with the volume: then the next round answers with an error.
                Answer::After(receiver) => drop(receiver.await),
            }
        }
    }
}

impl<S: BrickStore> Volume<S> {
    /// Tells homes of changes on a set beside the caller, who must not wait for a third set.
    fn tell_touches_later(&self, set: SetId) {
        let Some(me) = self.me.upgrade() else { return };
        if me.lock().set(set).is_ok_and(|engine| engine.touches.values().any(|touch| !touch.is_sent)) {
            self.world.spawn(Box::pin(async move { drop(me.tell_touches(set).await) }));
        }
    }
}

/// What a set needs to know of the volume to answer.
pub(super) struct Context {
    pub now: Timestamp,
    pub root_home: SetId,
    /// Devices of the sets of this node, for who shares whose power loss.
    pub devices: std::sync::Arc<[Option<u64>]>,
    /// Objects that clients have open.
    pub opens: super::clients::OpenObjects,
}

impl<S: BrickStore> super::State<S> {
    pub(super) fn peer_context(&mut self) -> Context {
        Context {
            now: self.now(),
            root_home: self.map.root_home,
            devices: self.devices.clone(),
            opens: self.clients.opens(),
        }
    }
}

impl Context {
    /// Whether a transaction of `coordinator` needs records here: not if both sets end together, by
    /// SIGKILL and by power loss, because then the coordinator's record alone says what to do.
    pub fn needs_record(&self, here: SetId, coordinator: SetId) -> bool {
        let device = |set: SetId| self.devices.get(usize::from(set.0)).copied().flatten();
        device(here).is_none() || device(here) != device(coordinator)
    }
}

fn serve<S: BrickStore>(set: &mut SetEngine<S>, context: &Context, call: &PeerCall) -> Answer {
    match call {
        PeerCall::Prepare { tx, coordinator, items, is_patient } => {
            if let Some(blocker) = set.held.blocker(tx, items) {
                return match set.held.wait(&blocker) {
                    Some(receiver) if *is_patient => Answer::After(receiver),
                    _ => Answer::Now(Ok(PeerReply::Busy)),
                };
            }
            Answer::Now(prepare(set, context, *tx, *coordinator, items))
        }
        PeerCall::Look { place } => match set.look(&place.parent(), &place.name) {
            Ok(Look::Held(tx)) => match set.held.wait(&tx) {
                Some(receiver) => Answer::After(receiver),
                None => Answer::Now(Err(Errno::EAGAIN)),
            },
            Ok(look) => Answer::Now(Ok(PeerReply::Name { old: old_of(look), name_changes: set.name_changes })),
            Err(error) => Answer::Now(Err(error)),
        },
        PeerCall::Await { tx, items } => match set.held.blocker(tx, items).and_then(|b| set.held.wait(&b)) {
            Some(receiver) => Answer::After(receiver),
            None => Answer::Now(Ok(PeerReply::Done)),
        },
        PeerCall::Confirm { gfid, place } => {
            // Its coordinator may have committed what this set has not done yet.
            match set.held.mover(gfid, place).and_then(|tx| set.held.wait(&tx)) {
                Some(receiver) => Answer::After(receiver),
                None => Answer::Now(confirm(set, gfid, place)),
            }
        }
        PeerCall::HasDir { dir } => match set.takes_entries(dir) {
            Ok(Err(tx)) => match set.held.wait(&tx) {
                Some(receiver) => Answer::After(receiver),
                None => Answer::Now(Err(Errno::EAGAIN)),
            },
            Ok(Ok(has_it)) => Answer::Now(Ok(PeerReply::HasDir { has_it, closings: set.closings })),
            Err(error) => Answer::Now(Err(error)),
        },
        PeerCall::MakeCopies { copies, .. } if set.place_holder(copies).is_some() => {
            match set.place_holder(copies).and_then(|tx| set.held.wait(&tx)) {
                Some(receiver) => Answer::After(receiver),
                None => Answer::Now(Ok(PeerReply::Busy)),
            }
        }
        PeerCall::Describe { dir } => match set.takes_entries(dir) {
            Ok(Err(tx)) => match set.held.wait(&tx) {
                Some(receiver) => Answer::After(receiver),
                None => Answer::Now(Err(Errno::ENOENT)),
            },
            Ok(Ok(true)) => Answer::Now(describe(set, context, dir)),
            Ok(Ok(false)) => Answer::Now(Err(Errno::ENOENT)),
            Err(error) => Answer::Now(Err(error)),
        },
        PeerCall::LockRenames { tx, coordinator } => {
            let lock = [rename_lock()];
            match set.held.blocker(tx, &lock).and_then(|blocker| set.held.wait(&blocker)) {
                Some(receiver) => Answer::After(receiver),
                None => {
                    set.held.hold(*tx, *coordinator, lock.to_vec(), 0);
                    Answer::Now(Ok(PeerReply::Done))
                }
            }
        }
        other => Answer::Now(serve_now(set, context, other)),
    }
}

fn old_of(look: Look) -> Old {
    match look {
        Look::Native(meta) => Old::Native(meta.gfid.0, meta.kind),
        Look::Claim(claim) => Old::Claim(claim),
        Look::Absent | Look::Held(_) => Old::Absent,
    }
}

/// The key of the volume's lock on directory renames: no object has this gfid.
fn rename_lock() -> Item {
    Item::Close { gfid: [0; 16] }
}

fn serve_now<S: BrickStore>(set: &mut SetEngine<S>, context: &Context, call: &PeerCall) -> Result<PeerReply, Errno> {
    match call {
        PeerCall::MakeCopies { closings, copies } => make_copies(set, context, *closings, copies),
        PeerCall::GetAttr { gfid } => match set.store.attr(gfid) {
            Ok(attr) => Ok(PeerReply::Attr(Some(Box::new(attr)))),
            Err(Errno::ESTALE | Errno::ENOENT) => Ok(PeerReply::Attr(None)),
            Err(error) => Err(error),
        },
        PeerCall::Finish { tx, is_committed, items } => {
            set.finish_part(context, tx, *is_committed, items).map(|()| PeerReply::DoneIn { life: set.life })
        }
        PeerCall::Release { tx } => set.release_part(context, tx).map(|()| PeerReply::DoneIn { life: set.life }),
        PeerCall::Barrier => match set.store.flusher()() {
            Ok(()) => Ok(PeerReply::DoneIn { life: set.life }),
            Err(error) => {
                set.fail("a barrier", error);
                Err(error)
            }
        },
        PeerCall::Ask { tx } => Ok(PeerReply::Tx(match tx {
            tx if set.committed.contains_key(tx) => TxState::Committed,
            tx if set.undecided.contains(tx) => TxState::Undecided,
            _ => TxState::Unknown,
        })),
        PeerCall::Touch { dir, set: from, touch, subdirs } => {
            set.store.touch_from(dir, *from, *touch, *subdirs)?;
            serve_now(set, context, &PeerCall::GetAttr { gfid: *dir })
        }
        PeerCall::DropClaim { place, gfid, name_changes } => {
            let is_it = set.name_changes == *name_changes
                && set.store.claim(&place.parent(), &place.name)?.is_some_and(|claim| claim.gfid == gfid.0);
            if is_it && set.held.name_holder(place).is_none() {
                let step = Step::DropClaim { place: place.clone(), gfid: gfid.0 };
                set.commit(None, context.now, vec![step], Default::default())?;
            }
            Ok(PeerReply::Done)
        }
        PeerCall::Reclaim { place, old, claim } => {
            let is_it = old_of(set.look_below(&place.parent(), &place.name)?) == *old;
            if !is_it || set.held.name_holder(place).is_some() {
                return Ok(PeerReply::Busy);
            }
            let items = vec![Item::Name { place: place.clone(), new: Some(*claim), old: *old }];
            let (tx, rests) = (TxId([0; 16]), vec![None]);
            let step = Step::Finish { tx, is_committed: true, items, rests, parts: 0, is_parked: false };
            set.name_changes += 1;
            set.commit(None, context.now, vec![step], Default::default())?;
            Ok(PeerReply::Done)
        }
        PeerCall::Inherit { copy } => {
            if set.store.has_dir(&Gfid(copy.gfid))? {
                set.commit(None, context.now, vec![Step::Inherit { copy: copy.clone() }], Default::default())?;
            }
            Ok(PeerReply::Done)
        }
        PeerCall::Follow { dir, to, position } => {
            // What has lost the name and does not know yet is in the way: then the copy stays.
            let is_free = set.native(&to.parent(), &to.name)?.is_none();
            if is_free && set.store.has_dir(dir)? && set.store.has_dir(&to.parent())? {
                let step = Step::Follow { gfid: dir.0, to: to.clone(), position: *position };
                set.commit(None, context.now, vec![step], Default::default())?;
            }
            Ok(PeerReply::Done)
        }
        PeerCall::UnlockRenames { tx } => {
            set.held.release(tx);
            Ok(PeerReply::Done)
        }
        PeerCall::Prepare { .. } | PeerCall::Await { .. } | PeerCall::Describe { .. } => Err(Errno::EPROTO),
        PeerCall::Look { .. } | PeerCall::HasDir { .. } | PeerCall::LockRenames { .. } => Err(Errno::EPROTO),
        PeerCall::Confirm { .. } => Err(Errno::EPROTO),
    }
}

impl<S: BrickStore> SetEngine<S> {
    /// The transaction that will take away what is still where a copy is to be: the directory's home knows
    /// that it is committed, this set does not yet.
    fn place_holder(&mut self, copies: &[(Place, CopyOf)]) -> Option<TxId> {
        if self.held.is_empty() {
            return None;
        }
        copies.iter().find_map(|(place, _)| self.leaving(place).map(|(_, tx)| tx))
    }

    /// The object of this set that is still at a place, and the transaction that will take it away from
    /// there: it may be committed, and the name given to another one.
    pub(super) fn leaving(&mut self, place: &Place) -> Option<([u8; 16], TxId)> {
        if self.held.is_empty() {
            return None;
        }
        let there = self.native(&place.parent(), &place.name).ok()??;
        let tx = self.held.name_holder(place).or_else(|| self.held.object_holder(&there.gfid))?;
        Some((there.gfid.0, tx))
    }
}

/// Makes copies of directories for who has asked their homes. `Busy`: a closing that found nothing here came
/// in between, so that the homes must be asked again.
fn make_copies<S: BrickStore>(
    set: &mut SetEngine<S>,
    context: &Context,
    closings: u64,
    copies: &[(Place, CopyOf)],
) -> Result<PeerReply, Errno> {
    if closings != set.closings {
        return Ok(PeerReply::Busy);
    }
    for (place, copy) in copies {
        // Another one may have made it meanwhile; what is closed is asked for again.
        match set.takes_entries(&Gfid(copy.gfid))? {
            Ok(true) => continue,
            Ok(false) => {}
            Err(_) => return Ok(PeerReply::Busy),
        }
        // What a home said of a place may be old: then another object can be there by now.
        if !set.store.has_dir(&place.parent())? || set.native(&place.parent(), &place.name)?.is_some() {
            return Ok(PeerReply::Busy);
        }
        let step = Step::Copy { place: place.clone(), copy: copy.clone() };
        set.commit(None, context.now, vec![step], Default::default())?;
    }
    Ok(PeerReply::Done)
}

/// Whether an object of this set bears a name. An exchange or a replacement that is under way has not
/// happened yet: its coordinator decides, and whoever holds the name knows of it.
fn confirm<S: BrickStore>(set: &mut SetEngine<S>, gfid: &Gfid, place: &Place) -> Result<PeerReply, Errno> {
    if !set.store.bears(gfid, &place.parent(), &place.name)? {
        return Ok(PeerReply::Attr(None));
    }
    match set.store.attr(gfid) {
        // The object is named and its home has lost it: damage, which is not the same as absence.
        Err(Errno::ESTALE) => {
            let path = set.store.shown_path(&place.parent(), &place.name);
            set.store.report_damage(format!("{path}: object {gfid} has no handle"));
            Err(Errno::EIO)
        }
        other => Ok(PeerReply::Attr(Some(Box::new(other?)))),
    }
}

fn describe<S: BrickStore>(set: &mut SetEngine<S>, context: &Context, dir: &Gfid) -> Result<PeerReply, Errno> {
    let meta = set.store.meta(dir)?;
    if meta.kind != Kind::Directory || meta.home != set.id {
        return Err(Errno::ENOENT);
    }
    let (parent, name) = set.store.dir_place(dir)?.ok_or(Errno::ENOENT)?;
    let parent = ObjectRef { gfid: parent, home: home_of_dir(set, context, &parent)? };
    let copy = describe_copy(set, dir, &meta)?;
    Ok(PeerReply::Described(Box::new(Described { parent, name, copy })))
}

/// The home of a directory that this set has, as home or as a copy.
fn home_of_dir<S: BrickStore>(set: &mut SetEngine<S>, context: &Context, dir: &Gfid) -> Result<SetId, Errno> {
    if *dir == Gfid::ROOT { Ok(context.root_home) } else { Ok(set.store.meta(dir)?.home) }
}

/// What copies of a directory have of it.
pub(super) fn describe_copy<S: BrickStore>(set: &mut SetEngine<S>, dir: &Gfid, meta: &Meta) -> Result<CopyOf, Errno> {
    let attr = set.store.attr(dir)?;
    Ok(CopyOf {
        gfid: dir.0,
        home: set.id,
        position: meta.position,
        perm: attr.perm,
        uid: attr.uid,
        gid: attr.gid,
        project: attr.project,
        default_acl: set.store.default_acl(dir)?,
    })
}

fn prepare<S: BrickStore>(
    set: &mut SetEngine<S>,
    context: &Context,
    tx: TxId,
    coordinator: SetId,
    items: &[Item],
) -> Result<PeerReply, Errno> {
    if set.held.len() >= HELD_MAX {
        return Err(Errno::EAGAIN);
    }
    let (mut olds, mut held) = (Vec::new(), Vec::new());
    for item in items {
        match item {
            Item::Name { place, new, .. } => {
                // A closed directory takes no name; one that is not here has nothing under it.
                if let Err(closing) = set.takes_entries(&place.parent())?
                    && closing != tx
                {
                    return Ok(PeerReply::Busy);
                }
                let old = old_of(set.look_below(&place.parent(), &place.name)?);
                olds.push(old);
                held.push(Item::Name { place: place.clone(), new: *new, old });
            }
            Item::Close { gfid } => {
                let dir = Gfid(*gfid);
                // Also where the directory is not: a claim below it needs no copy of it.
                if set.held.holders_in(&dir).iter().any(|other| *other != tx) {
                    return Ok(PeerReply::Busy);
                }
                if !set.store.has_dir(&dir)? {
                    set.closings += 1;
                    // Claims that were denied and left go with the directory.
                    if set.store.has_claims(&dir)? {
                        held.push(item.clone());
                    }
                    continue;
                }
                if set.has_entries(&dir)? {
                    return Err(Errno::ENOTEMPTY);
                }
                held.push(item.clone());
            }
            Item::Move { to, .. } => {
                if set.leaving(to).is_some_and(|(_, other)| other != tx) {
                    return Ok(PeerReply::Busy);
                }
                // Its coordinator has seen to it that the directory is here.
                match set.takes_entries(&to.parent())? {
                    Ok(true) => held.push(item.clone()),
                    Err(closing) if closing == tx => held.push(item.clone()),
                    Ok(false) | Err(_) => return Ok(PeerReply::Busy),
                }
            }
            Item::Drop { .. } => held.push(item.clone()),
        }
    }
    let is_held = !held.is_empty();
    if is_held {
        hold(set, context, tx, coordinator, held)?;
    }
    Ok(PeerReply::Prepared { olds, is_held })
}

/// Holds items, with a record of it where this set may outlive its coordinator.
fn hold<S: BrickStore>(
    set: &mut SetEngine<S>,
    context: &Context,
    tx: TxId,
    coordinator: SetId,
    items: Vec<Item>,
) -> Result<(), Errno> {
    let has_record = coordinator != set.id && context.needs_record(set.id, coordinator);
    if has_record {
        let part = set.held.get(&tx).map_or(0, |holding| holding.parts);
        let step = Step::Prepare { tx, part, coordinator, items: items.clone() };
        set.commit(None, context.now, vec![step], Default::default())?;
    }
    set.held.hold(tx, coordinator, items, u16::from(has_record));
    Ok(())
}
