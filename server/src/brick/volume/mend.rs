//! What a loss of power leaves that no record tells of, found by looking (PROTOCOL 8, 19). Names and files
//! that were not flushed may be gone or back, on each disk for itself; what was flushed is there. So that
//! nothing invisible stays: every object has a name, every name its claim, every copy of a directory a
//! home that knows it, and directories count their subdirectories right.
//!
//! Runs beside all operations: one object at a time is looked at and changed under the volume's lock, by
//! effects like any other; what a transaction holds is left to it, and looked at again in the next pass.

use super::names::Seen;
use super::{PeerCall, PeerReply, Volume};
use crate::brick::effect::{Claim, Old, Place, Step};
use crate::brick::meta::Meta;
use crate::brick::store::{BrickStore, TouchedAt};
use brickfs_common::attr::Kind;
use brickfs_common::errno::Errno;
use brickfs_common::fop::ObjectRef;
use brickfs_common::ids::{Gfid, SetId};
use brickfs_common::name::Name;
use std::sync::atomic::{AtomicBool, Ordering};

/// What was mended may let other things be seen; this many times is looked.
const PASSES_MAX: usize = 6;
/// A place that is nowhere: of a file without a name.
const NOWHERE: Place = Place { parent: [0; 16], name: Vec::new() };

/// What looking through has come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mended {
    /// Objects, names and counts that were mended.
    pub total: usize,
    /// The last pass saw all and found nothing more; otherwise it is to be looked again.
    pub is_done: bool,
}

/// One look at everything.
struct Pass {
    /// All names have been looked at once, so that directories which moved have their handles.
    again: bool,
    /// Something could not be looked at, or not be mended.
    has_left: AtomicBool,
}

impl Pass {
    /// A transaction holds it, somebody changes it, or it could not be mended.
    fn leave(&self) -> usize {
        self.has_left.store(true, Ordering::Relaxed);
        0
    }

    /// What came of one object.
    fn count(&self, set: SetId, gfid: &Gfid, result: Result<usize, Errno>) -> usize {
        result.unwrap_or_else(|error| {
            tracing::warn!(%set, %gfid, "an object could not be looked at or mended: {error}");
            self.leave()
        })
    }
}

impl<S: BrickStore> Volume<S> {
    /// Looks through the bricks of this node, until there is nothing to mend.
    pub async fn mend(&self) -> Mended {
        let mut total = 0;
        for number in 0..PASSES_MAX {
            // What transactions parked is given back or let go first.
            for _ in 0..3 {
                self.pass_barriers().await;
            }
            let pass = Pass { again: number > 0, has_left: AtomicBool::new(false) };
            let mut mended = 0;
            let sets: Vec<SetId> = self.lock().open_sets().map(|engine| engine.id).collect();
            for set in sets {
                mended += self.mend_set(set, &pass).await.unwrap_or_else(|error| {
                    tracing::warn!(%set, "a brick could not be looked through: {error}");
                    pass.leave()
                });
            }
            total += mended;
            if mended == 0 && pass.again {
                return Mended { total, is_done: !pass.has_left.into_inner() };
            }
        }
        Mended { total, is_done: false }
    }

    async fn mend_set(&self, set: SetId, pass: &Pass) -> Result<usize, Errno> {
        let mut mended = pass.count(set, &Gfid::ROOT, self.mend_dir(set, Gfid::ROOT, pass).await);
        for first in 0..=u8::MAX {
            let handles = self.lock().set(set)?.store.handles(first)?;
            for (gfid, is_dir) in handles {
                let result =
                    if is_dir { self.mend_dir(set, gfid, pass).await } else { self.mend_file(set, gfid, pass) };
                mended += pass.count(set, &gfid, result);
            }
        }
        let claimed = self.lock().set(set)?.store.claim_parents()?;
        for dir in claimed {
            mended += pass.count(set, &dir, self.mend_claims(set, dir, pass).await);
        }
        Ok(mended)
    }

    /// Claims in a directory that no set knows go.
    async fn mend_claims(&self, set: SetId, dir: Gfid, pass: &Pass) -> Result<usize, Errno> {
        if dir == Gfid::ROOT || self.lock().set(set)?.store.has_dir(&dir)? {
            return Ok(0);
        }
        let all: Vec<SetId> = self.lock().set_ids().collect();
        for other in all {
            if let PeerReply::Attr(Some(attr)) = self.peer(other, PeerCall::GetAttr { gfid: dir }).await?
                && attr.home == other
            {
                return Ok(0);
            }
        }
        let mut state = self.lock();
        let now = state.now();
        let engine = state.set(set)?;
        if !engine.held.holders_in(&dir).is_empty() || engine.held.concerns(&dir) {
            return Ok(pass.leave());
        }
        if engine.store.has_dir(&dir)? {
            return Ok(0);
        }
        engine.commit(None, now, vec![Step::RemoveDir { gfid: dir.0 }], Default::default())?;
        Ok(1)
    }

    /// A file without a name was being made, or removed.
    fn mend_file(&self, set: SetId, gfid: Gfid, pass: &Pass) -> Result<usize, Errno> {
        let mut state = self.lock();
        let context = state.peer_context();
        let engine = state.set(set)?;
        if engine.held.concerns(&gfid) {
            return Ok(pass.leave());
        }
        if engine.store.drop_unfinished(&gfid)? {
            tracing::info!(%set, %gfid, "a file that a loss of power cut short while it was made goes");
            return Ok(1);
        }
        match engine.store.link_count(&gfid) {
            Ok(0) => {}
            Ok(_) | Err(Errno::ESTALE) => return Ok(0),
            Err(error) => return Err(error),
        }
        let rest = engine.rest_without(&context, &gfid)?;
        let unlink = Step::Unlink { gfid: gfid.0, place: NOWHERE, rest };
        tracing::info!(%set, %gfid, "a file that a loss of power left without a name goes");
        state.commit(set, None, context.now, vec![unlink], Default::default())?;
        Ok(1)
    }

    async fn mend_dir(&self, set: SetId, dir: Gfid, pass: &Pass) -> Result<usize, Errno> {
        let home = {
            let mut state = self.lock();
            let now = state.now();
            let engine = state.set(set)?;
            if engine.held.concerns(&dir) {
                return Ok(pass.leave());
            }
            if !engine.store.has_dir(&dir)? {
                if !pass.again {
                    return Ok(0);
                }
                engine.commit(None, now, vec![Step::RemoveDir { gfid: dir.0 }], Default::default())?;
                return Ok(1);
            }
            if dir == Gfid::ROOT { state.map.root_home } else { engine.store.meta(&dir)?.home }
        };
        if home != set && dir != Gfid::ROOT {
            match self.peer(home, PeerCall::GetAttr { gfid: dir }).await? {
                PeerReply::Attr(Some(attr)) if attr.home == home => {}
                // A handle on the way to it may be stale until all names have been looked at once.
                PeerReply::Attr(_) if !pass.again => return Ok(0),
                PeerReply::Attr(_) => return self.mend_dead_copy(set, dir, pass).await,
                _ => return Err(Errno::EPROTO),
            }
        }
        let mut mended = 0;
        let names = self.lock().set(set)?.store.names(&dir)?;
        for name in names {
            mended += pass.count(set, &dir, self.mend_name(set, dir, name, pass).await);
        }
        mended += self.mend_count(set, ObjectRef { gfid: dir, home }).await?;
        Ok(mended)
    }

    /// The home does not know the directory: removed, then it was empty and what is in it here had been removed
    /// or moved away before; or it has lost that the directory was made. What holds data has lost its place.
    async fn mend_dead_copy(&self, set: SetId, dir: Gfid, pass: &Pass) -> Result<usize, Errno> {
        let names = self.lock().set(set)?.store.names(&dir)?;
        let mut mended = 0;
        for name in names {
            let found = self.lock().set(set)?.native(&dir, &name)?;
            let Some(meta) = found else { continue };
            let place = Place { parent: dir.0, name };
            mended += self.displace(set, place, &meta, Displaced::WithoutDirectory, pass).await?;
        }
        let mut state = self.lock();
        let now = state.now();
        let engine = state.set(set)?;
        if engine.has_entries(&dir)? || engine.held.concerns(&dir) {
            pass.leave();
            return Ok(mended);
        }
        engine.commit(None, now, vec![Step::RemoveDir { gfid: dir.0 }], Default::default())?;
        Ok(mended + 1)
    }

    /// Takes away a name that leads nowhere. What would be lost with it is rescued, or else reported.
    async fn displace(
        &self,
        set: SetId,
        place: Place,
        meta: &Meta,
        why: Displaced,
        pass: &Pass,
    ) -> Result<usize, Errno> {
        let is_worth_it = match (meta.kind, why) {
            (Kind::Directory, _) => self.may_have_entries(set, &meta.gfid).await?,
            (Kind::File, Displaced::WithoutDirectory) => self.has_last_data(set, &place, meta)?,
            // Its name was given to another: so this one was replaced.
            _ => false,
        };
        let displaced = match is_worth_it {
            true => self.rescue(set, place.clone(), meta).await,
            false => drop_native(&mut self.lock(), set, place.clone(), meta),
        };
        match displaced {
            Ok(Some(())) => Ok(1),
            Ok(None) => Ok(pass.leave()),
            Err(error) => {
                let mut state = self.lock();
                let store = &mut state.set(set)?.store;
                let path = store.shown_path(&place.parent(), &place.name);
                let goal = if is_worth_it { " to lost+found" } else { "" };
                store.report_damage(format!("{path}: {} has lost its place and cannot go{goal}: {error}", meta.gfid));
                Ok(pass.leave())
            }
        }
    }

    /// Whether a directory that is homed here has entries here, or another set has it, for entries of its own.
    async fn may_have_entries(&self, set: SetId, dir: &Gfid) -> Result<bool, Errno> {
        if self.lock().set(set)?.has_entries(dir)? {
            return Ok(true);
        }
        let others: Vec<SetId> = self.lock().set_ids().filter(|other| *other != set).collect();
        for other in others {
            if let PeerReply::HasDir { has_it: true, .. } = self.peer(other, PeerCall::HasDir { dir: *dir }).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a file's data go with this name.
    fn has_last_data(&self, set: SetId, place: &Place, meta: &Meta) -> Result<bool, Errno> {
        let mut state = self.lock();
        let store = &mut state.set(set)?.store;
        if matches!(store.link_count(&meta.gfid), Err(Errno::ESTALE)) {
            store.heal_file_handle(&meta.gfid, &place.parent(), &place.name)?;
        }
        Ok(store.link_count(&meta.gfid)? < 2 && store.attr(&meta.gfid)?.size > 0)
    }

    /// An object that is homed here and named by another set needs that set's claim.
    async fn mend_name(&self, set: SetId, dir: Gfid, text: Vec<u8>, pass: &Pass) -> Result<usize, Errno> {
        let meta = {
            let mut state = self.lock();
            let engine = state.set(set)?;
            let Some(meta) = engine.native(&dir, &text)? else { return Ok(0) };
            if meta.kind != Kind::Directory && matches!(engine.store.link_count(&meta.gfid), Err(Errno::ESTALE)) {
                tracing::info!(%set, gfid = %meta.gfid, "a file gets its handle back");
                engine.store.heal_file_handle(&meta.gfid, &dir, &text)?;
            }
            meta
        };
        let name = Name::new(text)?;
        let place = Place::new(dir, &name);
        let dentry_set = self.lock().dentry_set(&dir, &name);
        if dentry_set == set {
            return Ok(0);
        }
        let PeerReply::Name { old, .. } = self.peer(dentry_set, PeerCall::Look { place: place.clone() }).await? else {
            return Err(Errno::EPROTO);
        };
        let own = Claim { gfid: meta.gfid.0, home: set };
        let is_hidden = match old {
            Old::Claim(claim) if claim == own => return Ok(0),
            Old::Claim(claim) => matches!(self.confirm(dir, &name, claim, 0).await?, Seen::Found(_)),
            Old::Native(..) => true,
            Old::Absent => false,
        };
        {
            let mut state = self.lock();
            let engine = state.set(set)?;
            if engine.held.concerns(&meta.gfid) || !engine.store.bears(&meta.gfid, &dir, name.as_bytes())? {
                return Ok(pass.leave());
            }
        }
        if is_hidden {
            return self.displace(set, place, &meta, Displaced::ByAnother, pass).await;
        }
        tracing::info!(%set, gfid = %meta.gfid, "a name that a loss of power left without a claim gets it back");
        match self.peer(dentry_set, PeerCall::Reclaim { place, old, claim: own }).await? {
            PeerReply::Done => Ok(1),
            _ => Ok(pass.leave()),
        }
    }

    /// Subdirectories are counted where they are homed, and told to the directory's home.
    async fn mend_count(&self, set: SetId, dir: ObjectRef) -> Result<usize, Errno> {
        let (count, mut mended, spread) = {
            let mut state = self.lock();
            let now = state.now();
            let engine = state.set(set)?;
            if !engine.store.has_dir(&dir.gfid)? {
                return Ok(0);
            }
            let mut count = 0;
            for name in engine.store.names(&dir.gfid)? {
                count += u32::from(engine.native(&dir.gfid, &name)?.is_some_and(|meta| meta.kind == Kind::Directory));
            }
            let meta = engine.store.meta(&dir.gfid)?;
            let is_wrong = meta.subdirs != count;
            if is_wrong {
                let touch = Step::TouchDir { gfid: dir.gfid.0, subdirs: Some(count) };
                engine.commit(None, now, vec![touch], Default::default())?;
            }
            (count, usize::from(is_wrong), if dir.home == set { meta.spread } else { Vec::new() })
        };
        if dir.home != set {
            let touch = PeerCall::Touch { dir: dir.gfid, set, touch: TouchedAt::NEVER, subdirs: Some(count) };
            self.peer(dir.home, touch).await?;
        }
        for (other, told) in spread {
            if told > 0
                && let PeerReply::HasDir { has_it: false, .. } =
                    self.peer(other, PeerCall::HasDir { dir: dir.gfid }).await?
            {
                self.lock().set(set)?.store.touch_from(&dir.gfid, other, TouchedAt::NEVER, Some(0))?;
                mended += 1;
            }
        }
        Ok(mended)
    }
}

/// Why a name leads nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Displaced {
    /// Its directory is no more.
    WithoutDirectory,
    /// It leads to another object.
    ByAnother,
}

/// Takes away a name that leads nowhere, with what has no other one; `None` if that cannot be now.
fn drop_native<S: BrickStore>(
    state: &mut super::State<S>,
    set: SetId,
    place: Place,
    meta: &Meta,
) -> Result<Option<()>, Errno> {
    let context = state.peer_context();
    let engine = state.set(set)?;
    if engine.held.concerns(&meta.gfid) {
        return Ok(None);
    }
    let (step, delta) = if meta.kind == Kind::Directory {
        if engine.has_entries(&meta.gfid)? {
            return Ok(None);
        }
        (Step::RemoveDir { gfid: meta.gfid.0 }, -1)
    } else {
        let rest = engine.rest_without(&context, &meta.gfid)?;
        (Step::Unlink { gfid: meta.gfid.0, place: place.clone(), rest }, 0)
    };
    let path = engine.store.shown_path(&place.parent(), &place.name);
    tracing::info!(%set, gfid = %meta.gfid, "a name that a loss of power brought back goes: {path}");
    let mut steps = vec![step];
    steps.extend(engine.touch_steps(&[(place.parent(), delta)])?);
    state.commit(set, None, context.now, steps, Default::default())?;
    Ok(Some(()))
}
