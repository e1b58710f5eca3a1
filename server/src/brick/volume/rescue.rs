//! `lost+found` in the volume's root, as fsck(8) has it: where what a loss of power has left without a place goes,
//! each under its gfid, whole. Its owner sees it again there, and may move or remove it like anything else.

use super::Volume;
use super::names::Seen;
use crate::brick::effect::{NewObject, Place, Step};
use crate::brick::meta::Meta;
use crate::brick::set::Look;
use crate::brick::store::BrickStore;
use brickfs_common::attr::Kind;
use brickfs_common::errno::Errno;
use brickfs_common::fop::ObjectRef;
use brickfs_common::ids::{Gfid, SetId};
use brickfs_common::name::Name;

const LOST_AND_FOUND: &str = "lost+found";
/// Its permission bits.
const LOST_AND_FOUND_PERM: u32 = 0o700;

impl<S: BrickStore> Volume<S> {
    /// Moves an object that is homed on `set` to `lost+found`; `None` if that cannot be now.
    pub(super) async fn rescue(&self, set: SetId, from: Place, meta: &Meta) -> Result<Option<()>, Errno> {
        let Some(dir) = self.lost_and_found().await? else { return Ok(None) };
        self.ensure_dir(set, dir).await?;
        let to = Place::new(dir.gfid, &Name::new(meta.gfid.to_string().into_bytes())?);
        let effect = {
            let mut state = self.lock();
            let now = state.now();
            let engine = state.set(set)?;
            if engine.held.concerns(&meta.gfid) || !engine.store.bears(&meta.gfid, &from.parent(), &from.name)? {
                return Ok(None);
            }
            // Somebody may be removing it, or have given the name to something.
            let is_free = matches!(engine.look(&dir.gfid, &to.name)?, Look::Absent);
            if !is_free || !matches!(engine.takes_entries(&dir.gfid)?, Ok(true)) {
                return Ok(None);
            }
            let path = engine.store.shown_path(&from.parent(), &from.name);
            let gfid = meta.gfid;
            tracing::warn!(%set, %gfid, "a loss of power has left {path} without a place: it is in {LOST_AND_FOUND} now");
            let subdirs = i32::from(meta.kind == Kind::Directory);
            let touched = engine.touch_steps(&[(from.parent(), -subdirs), (dir.gfid, subdirs)])?;
            let mut steps = vec![Step::Move { gfid: meta.gfid.0, from, to, replaced: None }];
            steps.extend(touched);
            state.commit(set, None, now, steps, Default::default())?
        };
        self.send_touches(set, &effect).await;
        Ok(Some(()))
    }

    /// The directory, made if it is not there; `None` if somebody is changing its name. EACCES if it is another's,
    /// or open to others: what comes there may have been in a directory that was not.
    async fn lost_and_found(&self) -> Result<Option<ObjectRef>, Errno> {
        let name = Name::new(LOST_AND_FOUND.as_bytes().to_vec())?;
        let denied = match self.see(Gfid::ROOT, &name, true).await? {
            Seen::Found(found) => {
                let attr = self.attr_of(found.object).await.ok_or(Errno::ESTALE)?;
                let is_ours = attr.kind == Kind::Directory && attr.uid == 0 && attr.perm & 0o077 == 0;
                return if is_ours { Ok(Some(found.object)) } else { Err(Errno::EACCES) };
            }
            Seen::Absent(denied) => denied,
        };
        let (set, root) = {
            let state = self.lock();
            let root = ObjectRef { gfid: Gfid::ROOT, home: state.map.root_home };
            (state.dentry_set(&Gfid::ROOT, &name), root)
        };
        self.ensure_dir(set, root).await?;
        let place = Place::new(Gfid::ROOT, &name);
        let (gfid, effect) = {
            let mut state = self.lock();
            let now = state.now();
            let engine = state.set(set)?;
            let mut steps = Vec::new();
            match engine.look(&Gfid::ROOT, name.as_bytes())? {
                Look::Absent => {}
                Look::Claim(claim) if denied == Some((claim, engine.name_changes)) => {
                    steps.push(Step::DropClaim { place: place.clone(), gfid: claim.gfid });
                }
                Look::Native(_) | Look::Claim(_) | Look::Held(_) => return Ok(None),
            }
            let gfid = engine.store.choose_gfid();
            let object = NewObject {
                gfid: gfid.0,
                kind: Kind::Directory,
                perm: LOST_AND_FOUND_PERM,
                uid: 0,
                gid: 0,
                project: 0,
                rdev: 0,
                target: Vec::new(),
                access_acl: None,
                default_acl: None,
            };
            steps.push(Step::Make { place, object });
            steps.extend(engine.touch_steps(&[(Gfid::ROOT, 1)])?);
            (gfid, state.commit(set, None, now, steps, Default::default())?)
        };
        self.send_touches(set, &effect).await;
        Ok(Some(ObjectRef { gfid, home: set }))
    }
}
