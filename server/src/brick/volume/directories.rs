//! Directories on several sets: copies for the children that live there, and what a change of entries
//! says to the directory's home (PROTOCOL 9, 26-28).

use super::{PeerCall, PeerReply, Volume};
use crate::brick::effect::{Effect, Place, Step};
use crate::brick::store::BrickStore;
use brickfs_common::attr::Timestamp;
use brickfs_common::errno::Errno;
use brickfs_common::fop::ObjectRef;
use brickfs_common::ids::{Gfid, SetId};

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
        while !self.try_ensure_dir(set, dir).await? {}
        Ok(())
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
    /// on `set`. What cannot be told now is told when the set is opened again.
    pub(super) async fn send_touches(&self, set: SetId, effect: &Effect) {
        for (dir, subdirs) in touched(effect) {
            let Some(home) = self.home_seen_from(set, &dir) else { continue };
            if home != set {
                self.touch(home, dir, set, effect.time, subdirs).await;
            }
        }
    }

    async fn touch(&self, home: SetId, dir: Gfid, set: SetId, time: Timestamp, subdirs: Option<u32>) {
        if let Err(error) = self.peer(home, PeerCall::Touch { dir, set, time, subdirs }).await {
            tracing::warn!(%dir, %home, "the home of a directory could not be told of a change: {error}");
        }
    }

    fn home_seen_from(&self, set: SetId, dir: &Gfid) -> Option<SetId> {
        let mut state = self.lock();
        if *dir == Gfid::ROOT {
            return Some(state.map.root_home);
        }
        state.set(set).ok()?.store.meta(dir).ok().map(|meta| meta.home)
    }
}

/// Directories that an effect touched.
pub(super) fn touched(effect: &Effect) -> impl Iterator<Item = (Gfid, Option<u32>)> + '_ {
    effect.steps.iter().filter_map(|step| match step {
        Step::TouchDir { gfid, subdirs } => Some((Gfid(*gfid), *subdirs)),
        _ => None,
    })
}
