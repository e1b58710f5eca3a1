//! Rename with all its flags, within and between sets (N1-N5; PROTOCOL 5-7, 25, 26).
//!
//! The coordinator is the home of the object that moves; in an exchange that of the lower gfid, so that
//! two opposite exchanges agree on who decides.

use super::names::{Found, Seen};
use super::transaction::{ATTEMPTS_MAX, NotPrepared, Tx};
use super::{Ask, PeerCall, PeerReply, Ran, Stop, Volume, known};
use crate::brick::effect::{Claim, Effect, Item, NewObject, Old, Outcome, Place, Rest, Step};
use crate::brick::store::BrickStore;
use brickfs_common::attr::{Attr, Kind};
use brickfs_common::errno::Errno;
use brickfs_common::fop::{FopReply, ObjectRef, RenameFlags};
use brickfs_common::ids::{Gfid, SetId, TxId};
use brickfs_common::name::Name;

/// One of the two names of a rename.
#[derive(Clone)]
struct Side<'a> {
    parent: ObjectRef,
    name: &'a Name,
    place: Place,
    dentry_set: SetId,
}

/// A rename with what its names lead to.
struct Move<'a> {
    ask: &'a Ask,
    old: Side<'a>,
    new: Side<'a>,
    flags: RenameFlags,
    source: Found,
    target: Option<Found>,
    /// What is left at the old name, where one was asked for.
    whiteout: Option<NewObject>,
}

/// What came of an attempt.
enum Finished {
    /// Both names are the same file: nothing changes.
    Nothing,
    /// It is committed.
    Effect(Box<Effect>),
}

/// The item that holds a name.
pub(super) fn name_item(place: Place, new: Option<Claim>) -> Item {
    Item::Name { place, new, old: Old::Absent }
}

fn claim_of(found: &Found) -> Claim {
    Claim { gfid: found.object.gfid.0, home: found.object.home }
}

impl Move<'_> {
    /// The coordinator's set.
    fn set(&self) -> SetId {
        match (&self.target, self.flags.exchange) {
            (Some(target), true) if target.object.gfid < self.source.object.gfid => target.object.home,
            _ => self.source.object.home,
        }
    }

    fn moves_dir(&self) -> bool {
        self.source.kind == Kind::Directory
    }

    fn moves_dir_back(&self) -> bool {
        self.flags.exchange && self.target.as_ref().is_some_and(|t| t.kind == Kind::Directory)
    }
}

impl<S: BrickStore> Volume<S> {
    pub(super) async fn rename(
        &self,
        ask: Ask,
        (parent, name): (ObjectRef, &Name),
        (new_parent, new_name): (ObjectRef, &Name),
        flags: RenameFlags,
    ) -> Ran {
        for (dir, name) in [(parent, name), (new_parent, new_name)] {
            if dir.gfid == Gfid::ROOT && name.is_reserved_in_root() {
                return Err(Errno::EPERM.into());
            }
        }
        for attempt in 0..ATTEMPTS_MAX {
            let source = self.find(parent, name).await?;
            let mut it = Move {
                ask: &ask,
                old: self.side(parent, name),
                new: self.side(new_parent, new_name),
                flags,
                source,
                target: None,
                whiteout: None,
            };
            if flags.exchange {
                it.target = match self.see(new_parent.gfid, new_name, true).await? {
                    Seen::Found(found) => Some(found),
                    Seen::Absent(_) => return Err(Errno::ENOENT.into()),
                };
            }
            if let Some(done) = self.rename_once(&mut it, attempt).await? {
                return Ok(done);
            }
        }
        Err(Errno::EIO.into())
    }

    fn side<'a>(&self, parent: ObjectRef, name: &'a Name) -> Side<'a> {
        let dentry_set = self.lock().dentry_set(&parent.gfid, name);
        Side { parent, name, place: Place::new(parent.gfid, name), dentry_set }
    }

    /// One attempt; `None`: others were in the way and are done now.
    async fn rename_once(&self, it: &mut Move<'_>, attempt: usize) -> Result<Option<FopReply>, Stop> {
        let set = it.set();
        if !self.is_here(set) {
            return Err(Stop::GoTo(set));
        }
        self.make_room(it).await?;
        let mut tx = self.begin(set, attempt)?;
        let crosses = it.old.parent.gfid != it.new.parent.gfid;
        let walks = crosses && (it.moves_dir() || it.moves_dir_back());
        if walks && let Err(error) = self.lock_renames(&tx).await {
            // The lock may have been given and its answer lost.
            self.unlock_renames(set, tx.id).await;
            self.abort(tx).await;
            return Err(error.into());
        }
        let id = tx.id;
        let result = match self.rename_locked(it, &mut tx, walks).await {
            Ok(Some(Finished::Effect(effect))) => {
                self.finish(set, id).await;
                Ok(Some(Some(effect)))
            }
            Ok(Some(Finished::Nothing)) => {
                self.abort(tx).await;
                Ok(Some(None))
            }
            Ok(None) => {
                self.abort(tx).await;
                Ok(None)
            }
            Err(why) => self.abort_and_wait(tx, why).await.map(|()| None),
        };
        if walks {
            self.unlock_renames(set, id).await;
        }
        let Some(effect) = result? else { return Ok(None) };
        let mut fresh = Vec::new();
        if let Some(effect) = effect {
            fresh = self.send_touches(set, &effect).await;
            self.follow_moved(it).await;
        }
        Ok(Some(self.reply_rename(it, &fresh).await))
    }

    /// Takes the volume's lock on directory renames (PROTOCOL 25). It has an id of its own: the
    /// transaction may hold other things on the same set.
    async fn lock_renames(&self, tx: &Tx) -> Result<(), Errno> {
        let id = rename_lock_id(tx.id);
        let root_home = {
            let mut state = self.lock();
            state.set(tx.set)?.undecided.insert(id);
            state.map.root_home
        };
        self.peer(root_home, PeerCall::LockRenames { tx: id, coordinator: tx.set }).await.map(drop)
    }

    async fn unlock_renames(&self, set: SetId, tx: TxId) {
        let id = rename_lock_id(tx);
        let root_home = {
            let mut state = self.lock();
            if let Ok(engine) = state.set(set) {
                engine.undecided.remove(&id);
            }
            state.map.root_home
        };
        if let Err(error) = self.peer(root_home, PeerCall::UnlockRenames { tx: id }).await {
            tracing::warn!("the lock on directory renames could not be given back: {error}; its holder is asked");
        }
    }

    /// Brings the copies of moved directories to where their homes have them (PROTOCOL 26). Nothing
    /// depends on it: a copy that stays behind is reached by its handle.
    async fn follow_moved(&self, it: &Move<'_>) {
        let mut moved = Vec::new();
        if it.moves_dir() {
            moved.push(it.source.object);
        }
        if it.moves_dir_back() {
            moved.extend(it.target.as_ref().map(|t| t.object));
        }
        for dir in moved {
            if let Err(error) = self.follow_dir(dir).await {
                tracing::info!(dir = %dir.gfid, "copies of a moved directory stay where they are: {error}");
            }
        }
    }

    async fn follow_dir(&self, dir: ObjectRef) -> Result<(), Errno> {
        let PeerReply::Described(at) = self.peer(dir.home, PeerCall::Describe { dir: dir.gfid }).await? else {
            return Err(Errno::EPROTO);
        };
        let to = Place { parent: at.parent.gfid.0, name: at.name };
        let others: Vec<SetId> = self.lock().set_ids().filter(|set| *set != dir.home).collect();
        for set in others {
            let has_copy = match self.lock().set(set) {
                Ok(engine) => engine.store.has_dir(&dir.gfid)?,
                Err(_) => false,
            };
            if has_copy {
                self.ensure_dir(set, at.parent).await?;
            }
            let follow = PeerCall::Follow { dir: dir.gfid, to: to.clone(), position: at.copy.position };
            self.peer(set, follow).await?;
        }
        Ok(())
    }

    async fn reply_rename(&self, it: &Move<'_>, fresh: &[Attr]) -> FopReply {
        self.reply_names(it.ask, Some(it.source.object), it.old.parent, Some(it.new.parent), fresh).await
    }

    /// The directories that the moved objects come into must be on the objects' homes, and the old one
    /// where a whiteout will be.
    async fn make_room(&self, it: &Move<'_>) -> Result<(), Stop> {
        self.directory(it.new.parent).await?;
        self.ensure_dir(it.source.object.home, it.new.parent).await?;
        if let (Some(target), true) = (&it.target, it.flags.exchange) {
            self.ensure_dir(target.object.home, it.old.parent).await?;
        }
        Ok(())
    }

    /// Holds, checks, commits. `None`: a name changed meanwhile; start anew.
    async fn rename_locked(
        &self,
        it: &mut Move<'_>,
        tx: &mut Tx,
        walks: bool,
    ) -> Result<Option<Finished>, NotPrepared> {
        if it.flags.whiteout {
            it.whiteout = Some(self.choose_whiteout(it, tx.set)?);
        }
        if !self.hold_both(it, tx).await? {
            return Ok(None);
        }
        if walks {
            if it.moves_dir() && self.is_below(it.new.parent, it.source.object.gfid).await? {
                return Err(Errno::EINVAL.into()); // N4
            }
            if let Some(target) = it.target.as_ref().filter(|_| it.moves_dir_back())
                && self.is_below(it.old.parent, target.object.gfid).await?
            {
                return Err(Errno::EINVAL.into());
            }
        }
        check_target(it)?;
        if it.target.as_ref().is_some_and(|t| t.object.gfid == it.source.object.gfid) {
            return Ok(Some(Finished::Nothing));
        }
        if it.flags.exchange {
            self.prepare_exchange(it, tx).await?;
        } else if let Some(target) = it.target.clone() {
            self.prepare_replacement(it, tx, &target).await?;
        }
        Ok(self.commit_rename(it, tx)?.map(|effect| Finished::Effect(Box::new(effect))))
    }

    /// Holds both names; false if they are not (any more) what they were seen to be.
    async fn hold_both(&self, it: &mut Move<'_>, tx: &mut Tx) -> Result<bool, NotPrepared> {
        let source = claim_of(&it.source);
        let whiteout = it.whiteout.as_ref().map(|object| Claim { gfid: object.gfid, home: tx.set });
        let back = it.target.as_ref().filter(|_| it.flags.exchange).map(claim_of).or(whiteout);
        let claim_at = |claim: Option<Claim>, set: SetId| claim.filter(|claim| claim.home != set);
        let old_item = name_item(it.old.place.clone(), claim_at(back, it.old.dentry_set));
        let new_item = name_item(it.new.place.clone(), claim_at(Some(source), it.new.dentry_set));
        let mut names = vec![(it.old.dentry_set, old_item)];
        let is_same_name = it.old.place == it.new.place;
        if !is_same_name {
            names.push((it.new.dentry_set, new_item));
        }
        let olds = self.hold_names(tx, names).await?;
        let is_source = match olds[0] {
            Old::Native(gfid, _) => gfid == source.gfid && it.source.claim.is_none(),
            Old::Claim(claim) => claim == source,
            Old::Absent => false,
        };
        if !is_source {
            return Ok(false);
        }
        if is_same_name {
            it.target = Some(it.source.clone());
            return Ok(true);
        }
        let target = self.target_of(it, olds[1]).await?;
        if it.flags.exchange {
            let id = |found: &Option<Found>| found.as_ref().map(|f| f.object);
            return Ok(id(&target) == id(&it.target));
        }
        it.target = target;
        Ok(true)
    }

    /// What the held new name leads to.
    async fn target_of(&self, it: &Move<'_>, old: Old) -> Result<Option<Found>, Errno> {
        match old {
            Old::Absent => Ok(None),
            Old::Native(gfid, kind) => {
                let object = ObjectRef { gfid: Gfid(gfid), home: it.new.dentry_set };
                Ok(Some(Found { object, kind, claim: None, name_changes: 0, attr: None }))
            }
            Old::Claim(claim) => match self.confirm(it.new.parent.gfid, it.new.name, claim, 0).await? {
                Seen::Found(found) => Ok(Some(found)),
                Seen::Absent(_) => Ok(None),
            },
        }
    }

    /// Whether `dir` is `ancestor` or lies below it, asked from home to home.
    async fn is_below(&self, dir: ObjectRef, ancestor: Gfid) -> Result<bool, Errno> {
        let mut at = dir;
        while at.gfid != Gfid::ROOT {
            if at.gfid == ancestor {
                return Ok(true);
            }
            match self.peer(at.home, PeerCall::Describe { dir: at.gfid }).await? {
                PeerReply::Described(described) => at = described.parent,
                _ => return Err(Errno::EPROTO),
            }
        }
        Ok(ancestor == Gfid::ROOT)
    }

    /// The other half of an exchange, where it is homed elsewhere.
    async fn prepare_exchange(&self, it: &Move<'_>, tx: &mut Tx) -> Result<(), NotPrepared> {
        let Some(target) = &it.target else { return Err(Errno::ENOENT.into()) };
        let halves = [(&it.source, &it.old, &it.new), (target, &it.new, &it.old)];
        for (found, from, to) in halves {
            if found.object.home != tx.set {
                let (from, to) = (from.place.clone(), to.place.clone());
                let item = Item::Move { gfid: found.object.gfid.0, from, to };
                self.prepare(tx, found.object.home, vec![item], false).await?;
            }
        }
        Ok(())
    }

    /// What the new name has had so far: an empty directory is closed everywhere, a file that is homed on
    /// a third set will lose the name there.
    async fn prepare_replacement(&self, it: &Move<'_>, tx: &mut Tx, target: &Found) -> Result<(), NotPrepared> {
        let object = target.object;
        if target.kind == Kind::Directory {
            self.prepare(tx, object.home, vec![Item::Close { gfid: object.gfid.0 }], false).await?;
            return self.close_copies(tx, object.gfid, object.home).await;
        }
        if object.home != tx.set && target.claim.is_some() {
            let item = Item::Drop { place: it.new.place.clone(), gfid: object.gfid.0 };
            self.prepare(tx, object.home, vec![item], false).await?;
        }
        Ok(())
    }

    /// `None`: the directory that the object moves into is being closed here.
    fn commit_rename(&self, it: &Move<'_>, tx: &Tx) -> Result<Option<Effect>, NotPrepared> {
        let mut state = self.lock();
        let context = state.peer_context();
        let mut steps = Vec::with_capacity(6);
        let mut changes = Vec::with_capacity(4);
        let is_dir = |found: Option<&Found>| i32::from(found.is_some_and(|f| f.kind == Kind::Directory));
        let engine = state.set(tx.set)?;
        for dir in [&it.new.parent.gfid, &it.old.parent.gfid] {
            if let Err(closing) = engine.takes_entries(dir)?
                && closing != tx.id
            {
                return Ok(None);
            }
        }
        for place in [&it.new.place, &it.old.place] {
            if let Some((gfid, other)) = engine.leaving(place)
                && other != tx.id
            {
                let item = Item::Drop { place: place.clone(), gfid };
                return Err(NotPrepared::Busy(tx.set, vec![item]));
            }
        }
        let target = it.target.as_ref();
        let source = it.source.object;
        if source.home == tx.set && !engine.store.bears(&source.gfid, &it.old.parent.gfid, it.old.name.as_bytes())? {
            return Ok(None);
        }
        // Before the change of the object, by whose record a restart knows whether any of this is missing.
        steps.extend(tx.own_claims());
        if let (Some(target), true) = (target, it.flags.exchange) {
            let (one, two) = (&it.source, target);
            steps.push(exchange_step(tx, it, one, two));
            for (found, from, to) in [(one, &it.old, &it.new), (two, &it.new, &it.old)] {
                if found.object.home == tx.set {
                    let count = is_dir(Some(found));
                    changes.extend([(from.parent.gfid, -count), (to.parent.gfid, count)]);
                }
            }
        } else {
            let home_target = target.filter(|t| t.object.home == tx.set);
            let replaced = match home_target {
                Some(t) if t.kind == Kind::Directory => Some((t.object.gfid.0, Rest::Gone)),
                Some(t) => Some((t.object.gfid.0, engine.rest_without(&context, &t.object.gfid)?)),
                None => None,
            };
            let gfid = it.source.object.gfid;
            steps.push(Step::Move { gfid: gfid.0, from: it.old.place.clone(), to: it.new.place.clone(), replaced });
            changes.extend([
                (it.old.parent.gfid, -is_dir(Some(&it.source))),
                (it.new.parent.gfid, is_dir(Some(&it.source)) - is_dir(home_target)),
            ]);
        }
        // This set's copy of a directory that is replaced at its home.
        let replaced_copy =
            target.filter(|t| !it.flags.exchange && t.kind == Kind::Directory && t.object.home != tx.set);
        steps.extend(replaced_copy.map(|t| Step::RemoveDir { gfid: t.object.gfid.0 }));
        if let Some(object) = it.whiteout.clone() {
            steps.push(Step::Make { place: it.old.place.clone(), object });
        }
        steps.extend(engine.touch_steps(&changes)?);
        let outcome = Outcome {
            object: known(it.source.object),
            parent: known(it.old.parent),
            new_parent: known(it.new.parent),
            ..Outcome::default()
        };
        Ok(Some(self.commit_tx(&mut state, tx, it.ask.asker, context.now, steps, outcome)?))
    }
}

/// The lock on directory renames that a transaction takes.
fn rename_lock_id(tx: TxId) -> TxId {
    TxId(tx.0.map(|byte| !byte))
}

/// Whether the flags and what is at the new name go together.
fn check_target(it: &Move<'_>) -> Result<(), Errno> {
    let Some(target) = &it.target else { return Ok(()) };
    if it.flags.no_replace {
        return Err(Errno::EEXIST);
    }
    let is_same = target.object.gfid == it.source.object.gfid;
    match (it.moves_dir(), target.kind == Kind::Directory) {
        _ if is_same || it.flags.exchange => Ok(()),
        (true, false) => Err(Errno::ENOTDIR),
        (false, true) => Err(Errno::EISDIR),
        _ => Ok(()),
    }
}

/// What an exchange changes on the coordinator's set: both objects, or its own.
fn exchange_step(tx: &Tx, it: &Move<'_>, one: &Found, two: &Found) -> Step {
    let (old, new) = (it.old.place.clone(), it.new.place.clone());
    let (first, second) = (one.object.gfid.0, two.object.gfid.0);
    match (one.object.home == tx.set, two.object.home == tx.set) {
        (true, true) => Step::Exchange { first, from: old, second, to: new },
        (true, false) => Step::Move { gfid: first, from: old, to: new, replaced: None },
        (false, _) => Step::Move { gfid: second, from: new, to: old, replaced: None },
    }
}

impl<S: BrickStore> Volume<S> {
    /// The 0/0 character device that RENAME_WHITEOUT leaves; homed with the coordinator.
    fn choose_whiteout(&self, it: &Move<'_>, set: SetId) -> Result<NewObject, Errno> {
        let mut state = self.lock();
        let engine = state.set(set)?;
        Ok(NewObject {
            gfid: engine.store.choose_gfid().0,
            kind: Kind::CharDevice,
            perm: 0,
            uid: it.ask.uid,
            gid: it.ask.gid,
            project: engine.store.meta(&it.old.parent.gfid)?.project,
            rdev: 0,
            target: Vec::new(),
            access_acl: None,
            default_acl: None,
        })
    }
}
