//! Directories on several sets: copies for the children that live there, and what a change of entries
//! says to the directory's home (PROTOCOL 9, 26-28).

use super::transaction::ATTEMPTS_MAX;
use super::{PeerCall, PeerReply, State, Volume};
use crate::brick::effect::{Effect, Place, Step};
use crate::brick::set::{SetEngine, Touch};
use crate::brick::store::{BrickStore, TouchedAt};
use brickfs_common::attr::Attr;
use brickfs_common::errno::Errno;
use brickfs_common::fop::ObjectRef;
use brickfs_common::ids::{Gfid, SetId};
use std::collections::HashSet;

/// Deepest path that a copy is made for; a bound for damaged handles, not for users.
const DEPTH_MAX: usize = 100_000;

impl<S: BrickStore> Volume<S> {
    /// Makes sure that a set has a directory and takes entries in it, after asking the home whether it
    /// lives: ESTALE if it does not.
    pub(super) async fn ensure_dir(&self, set: SetId, dir: ObjectRef) -> Result<(), Errno> {
        // The usual case, without a question.
        if self.is_here(set) && matches!(self.lock().set(set)?.takes_entries(&dir.gfid)?, Ok(true)) {
            return Ok(());
        }
        for _ in 0..ATTEMPTS_MAX {
            if self.try_ensure_dir(set, dir).await? {
                return Ok(());
            }
        }
        Err(Errno::EIO)
    }

    /// False: something came in between.
    async fn try_ensure_dir(&self, set: SetId, dir: ObjectRef) -> Result<bool, Errno> {
        let mut copies = Vec::new();
        let mut asked_at = None;
        let mut at = dir;
        loop {
            match self.peer(set, PeerCall::HasDir { dir: at.gfid }).await? {
                PeerReply::HasDir { has_it: true, .. } => break,
                PeerReply::HasDir { has_it: false, closings } => asked_at = asked_at.or(Some(closings)),
                _ => return Err(Errno::EPROTO),
            }
            if at.gfid == Gfid::ROOT || at.home == set || copies.len() > DEPTH_MAX {
                return Err(Errno::ESTALE);
            }
            match self.peer(at.home, PeerCall::Describe { dir: at.gfid }).await {
                Ok(PeerReply::Described(described)) => {
                    at = described.parent;
                    copies.push((Place { parent: at.gfid.0, name: described.name }, described.copy));
                }
                Ok(_) | Err(Errno::ENOENT) => return Err(Errno::ESTALE),
                Err(error) => return Err(error),
            }
        }
        let Some(closings) = asked_at else { return Ok(true) };
        copies.reverse();
        match self.peer(set, PeerCall::MakeCopies { closings, copies }).await? {
            PeerReply::Done => Ok(true),
            _ => Ok(false),
        }
    }

    /// Tells the homes of directories that are homed elsewhere of an effect that changed entries of them
    /// on `set`. What cannot be told now is told with the next barrier, or when the set is opened again.
    /// Answers the attributes of the directories whose homes were told, as they are after it.
    pub(super) async fn send_touches(&self, set: SetId, effect: &Effect) -> Vec<Attr> {
        if let Ok(engine) = self.lock().set(set) {
            engine.note_touches(effect, false);
        }
        self.tell_touches(set).await
    }

    /// Tells what homes have to be told of changes on a set, if it is of this node. Answers what they say of the
    /// directories after it.
    pub(super) async fn tell_touches(&self, set: SetId) -> Vec<Attr> {
        let (mut not_told, mut attrs) = (HashSet::new(), Vec::new());
        loop {
            let next = match self.lock().next_touch(set, &not_told) {
                Ok(Some(next)) => next,
                Ok(None) | Err(_) => return attrs,
            };
            let (dir, home, touch, subdirs) = next;
            let at = TouchedAt { time: Some(touch.time), is_late: touch.is_late };
            let told = self.peer(home, PeerCall::Touch { dir, set, touch: at, subdirs }).await;
            if let Err(error) = &told {
                tracing::warn!(%dir, %home, "the home of a directory could not be told of a change yet: {error}");
                not_told.insert(dir);
            }
            if let Ok(engine) = self.lock().set(set) {
                engine.end_touch(&dir, &touch, told.is_ok());
            }
            if let Ok(PeerReply::Attr(Some(attr))) = told {
                attrs.push(*attr);
            }
        }
    }
}

/// What a home is told: directory, home, the touch, subdirectories on this set now.
type Told = (Gfid, SetId, Touch, Option<u32>);

impl<S: BrickStore> State<S> {
    /// The next directory whose home is to be told of changes on a set.
    fn next_touch(&mut self, set: SetId, not_told: &HashSet<Gfid>) -> Result<Option<Told>, Errno> {
        let root_home = self.map.root_home;
        let engine = self.set(set)?;
        let waiting: Vec<Gfid> = engine
            .touches
            .iter()
            .filter(|(dir, touch)| !touch.is_sent && !not_told.contains(dir))
            .map(|(dir, _)| *dir)
            .collect();
        for dir in waiting {
            let meta = engine.store.meta(&dir).ok();
            let home = if dir == Gfid::ROOT { Some(root_home) } else { meta.as_ref().map(|meta| meta.home) };
            match (home.filter(|home| *home != set), engine.touches.get_mut(&dir)) {
                (Some(home), Some(touch)) => {
                    touch.is_sent = true;
                    return Ok(Some((dir, home, *touch, meta.map(|meta| meta.subdirs))));
                }
                // It is homed here, or gone.
                _ => drop(engine.touches.remove(&dir)),
            }
        }
        Ok(None)
    }
}

impl<S: BrickStore> SetEngine<S> {
    /// Homes are to be told of what an effect touched, now or long ago (`is_late`).
    pub(super) fn note_touches(&mut self, effect: &Effect, is_late: bool) {
        for (dir, _) in touched(effect) {
            let touch = self.touches.entry(dir).or_insert(Touch { is_late: true, ..Touch::default() });
            touch.is_late &= is_late;
            touch.time = touch.time.max(effect.time);
            touch.changes += 1;
        }
    }

    /// A home was told, or not.
    fn end_touch(&mut self, dir: &Gfid, told: &Touch, is_told: bool) {
        let Some(touch) = self.touches.get_mut(dir) else { return };
        touch.is_sent = false;
        touch.is_late |= !is_told;
        if is_told && touch.changes == told.changes {
            self.touches.remove(dir);
        }
    }
}

/// Directories that an effect touched.
pub(super) fn touched(effect: &Effect) -> impl Iterator<Item = (Gfid, Option<u32>)> + '_ {
    effect.steps.iter().filter_map(|step| match step {
        Step::TouchDir { gfid, subdirs } => Some((Gfid(*gfid), *subdirs)),
        _ => None,
    })
}
