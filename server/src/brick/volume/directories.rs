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
    /// Makes sure that a set of this node has a directory and takes entries in it, after asking the home
    /// whether it lives: ESTALE if it does not.
    pub(super) async fn ensure_dir(&self, set: SetId, dir: ObjectRef) -> Result<(), Errno> {
        'again: loop {
            let mut missing = Vec::new();
            let mut at = dir;
            loop {
                let closing = {
                    let mut state = self.lock();
                    let engine = state.set(set)?;
                    match engine.takes_entries(&at.gfid)? {
                        Ok(true) => break,
                        Ok(false) => Ok(engine.closings),
                        Err(tx) => Err(tx),
                    }
                };
                if let Err(tx) = closing {
                    self.wait_for(set, tx).await?;
                    continue 'again;
                }
                if at.gfid == Gfid::ROOT || at.home == set || missing.len() > DEPTH_MAX {
                    return Err(Errno::ESTALE);
                }
                let asked_at = closing.unwrap_or_default();
                match self.peer(at.home, PeerCall::Describe { dir: at.gfid }).await {
                    Ok(PeerReply::Described(described)) => {
                        at = described.parent;
                        missing.push((asked_at, described));
                    }
                    Ok(_) | Err(Errno::ENOENT) => return Err(Errno::ESTALE),
                    Err(error) => return Err(error),
                }
            }
            let Some((asked_at, _)) = missing.first() else { return Ok(()) };
            let mut state = self.lock();
            // A closing that found nothing here came between a question and now: ask again.
            if *asked_at != state.set(set)?.closings {
                continue;
            }
            let time = state.now();
            while let Some((_, described)) = missing.pop() {
                let place = Place { parent: described.parent.gfid.0, name: described.name };
                let step = Step::Copy { place, copy: described.copy };
                state.commit(set, None, time, vec![step], Default::default())?;
            }
            return Ok(());
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
