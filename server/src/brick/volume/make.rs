//! Making objects: files, directories, symbolic links, records. One effect on the dentry set, which is the
//! new object's home (N5; PROTOCOL 27).

use super::names::{Found, Seen};
use super::{Ask, Ran, State, Volume, done, known};
use crate::brick::effect::{Claim, Effect, NewObject, Outcome, Place, Step};
use crate::brick::set::Look;
use crate::brick::store::BrickStore;
use brickfs_common::acl::compute_inherited;
use brickfs_common::attr::{Kind, without_suidgid};
use brickfs_common::errno::Errno;
use brickfs_common::fop::{FopReply, Making, ObjectRef};
use brickfs_common::ids::{Gfid, SetId};
use brickfs_common::name::Name;

/// A setgid directory hands its group on.
const SETGID: u32 = 0o2000;
/// What a new object is thought to take of its brick, in bytes.
const OBJECT_BYTES: u64 = 4096;

/// What is to be made.
struct Order<'a> {
    ask: &'a Ask,
    parent: ObjectRef,
    name: &'a Name,
    making: &'a Making,
    perm: u32,
    umask: u32,
}

/// What came of an attempt on the dentry set.
enum Attempt {
    Made(Box<Effect>, ObjectRef),
    /// Something is there, or a transaction holds the name.
    InTheWay,
}

impl<S: BrickStore> Volume<S> {
    pub(super) async fn make(
        &self,
        ask: Ask,
        parent: ObjectRef,
        name: &Name,
        making: Making,
        (perm, umask): (u32, u32),
    ) -> Ran {
        if parent.gfid == Gfid::ROOT && name.is_reserved_in_root() {
            return Err(Errno::EPERM.into());
        }
        let set = self.lock().dentry_set(&parent.gfid, name);
        let order = Order { ask: &ask, parent, name, making: &making, perm, umask };
        let mut denied = None;
        loop {
            self.ensure_dir(set, parent).await?;
            let attempt = self.lock().try_make(set, &order, denied)?;
            match attempt {
                Attempt::Made(effect, object) => {
                    let fresh = self.send_touches(set, &effect).await;
                    return Ok(self.reply_names(&ask, Some(object), parent, None, &fresh).await);
                }
                Attempt::InTheWay => match self.see(parent.gfid, name, true).await? {
                    Seen::Found(found) => return self.make_existing(&ask, parent, &found, &making).await,
                    Seen::Absent(claim) => denied = claim,
                },
            }
        }
    }

    /// O_CREAT of a name that exists.
    async fn make_existing(&self, ask: &Ask, parent: ObjectRef, found: &Found, making: &Making) -> Ran {
        let Making::File { open, exclusive: false, truncate } = making else { return Err(Errno::EEXIST.into()) };
        match found.kind {
            Kind::File => {}
            Kind::Directory => return Err(Errno::EISDIR.into()),
            Kind::Symlink => return Err(Errno::ELOOP.into()),
            Kind::Fifo | Kind::Socket | Kind::CharDevice | Kind::BlockDevice => return Err(Errno::EEXIST.into()),
        }
        if !self.is_here(found.object.home) {
            return Err(super::Stop::GoTo(found.object.home));
        }
        if *open {
            self.lock().open_existing(ask, found.object, *truncate)?;
        }
        Ok(FopReply { attr: self.attr_of(found.object).await, ..self.reply_names(ask, None, parent, None, &[]).await })
    }
}

impl<S: BrickStore> State<S> {
    /// Makes the object if nothing is in the way. `denied` is a claim that its home has denied, as of
    /// `SetEngine::name_changes`.
    fn try_make(&mut self, set: SetId, order: &Order<'_>, denied: Option<(Claim, u64)>) -> Result<Attempt, Errno> {
        let (parent, name) = (order.parent.gfid, order.name);
        let mut steps = Vec::with_capacity(3);
        let engine = self.set(set)?;
        match engine.look(&parent, name.as_bytes())? {
            Look::Absent => {}
            Look::Claim(claim) if denied == Some((claim, engine.name_changes)) => {
                steps.push(Step::DropClaim { place: Place::new(parent, name), gfid: claim.gfid });
            }
            Look::Native(_) | Look::Claim(_) | Look::Held(_) => return Ok(Attempt::InTheWay),
        }
        let is_record = matches!(order.making, Making::Record(..));
        self.check_space(set, if is_record { 0 } else { OBJECT_BYTES })?;
        let object = self.choose_object(set, order)?;
        let made = ObjectRef { gfid: Gfid(object.gfid), home: set };
        let subdirs_delta = i32::from(object.kind == Kind::Directory);
        steps.push(Step::Make { place: Place::new(parent, name), object });
        steps.extend(self.set(set)?.touch_steps(&[(parent, subdirs_delta)])?);
        let outcome = Outcome { object: known(made), parent: known(order.parent), ..Outcome::default() };
        let time = self.now();
        let effect = self.commit(set, Some(order.ask.asker), time, steps, outcome)?;
        if let Making::File { open: true, .. } = order.making {
            self.clients.count_open(order.ask.asker.client, made.gfid, set, 1);
        }
        Ok(Attempt::Made(Box::new(effect), made))
    }

    /// Decides a new object: what it inherits is computed here from the directory as this set has it,
    /// never by the client (PROTOCOL 27).
    fn choose_object(&mut self, set: SetId, order: &Order<'_>) -> Result<NewObject, Errno> {
        let engine = self.set(set)?;
        let parent_attr = engine.store.attr(&order.parent.gfid)?;
        let default_acl = engine.store.default_acl(&order.parent.gfid)?;
        let (kind, target, rdev) = match order.making {
            Making::File { .. } => (Kind::File, Vec::new(), 0),
            Making::Directory => (Kind::Directory, Vec::new(), 0),
            Making::Symlink(target) => (Kind::Symlink, target.to_vec(), 0),
            Making::Record(kind, rdev) => (*kind, Vec::new(), *rdev),
        };
        let is_directory = kind == Kind::Directory;
        let mut inherited = compute_inherited(default_acl.as_deref(), order.perm & 0o7777, order.umask, is_directory);
        if kind == Kind::Symlink {
            (inherited.perm, inherited.access) = (0o777, None);
        }
        let hands_group_on = parent_attr.perm & SETGID != 0;
        if hands_group_on && is_directory {
            inherited.perm |= SETGID;
        }
        Ok(NewObject {
            gfid: engine.store.choose_gfid().0,
            kind,
            perm: inherited.perm,
            uid: order.ask.uid,
            gid: if hands_group_on { parent_attr.gid } else { order.ask.gid },
            project: parent_attr.project,
            rdev,
            target,
            access_acl: inherited.access,
            default_acl: inherited.default,
        })
    }

    /// Opens a file for the client; with `truncate` cuts it to nothing first.
    pub(super) fn open_existing(&mut self, ask: &Ask, object: ObjectRef, truncate: bool) -> Result<FopReply, Errno> {
        let asker = ask.asker;
        if truncate {
            let time = self.now();
            let before = self.set(object.home)?.store.attr(&object.gfid)?;
            let step = Step::SetAttr {
                gfid: object.gfid.0,
                perm: without_suidgid(before.perm).filter(|_| ask.uid != 0),
                uid: None,
                gid: None,
                size: Some(0),
                atime: None,
                mtime: Some(time),
            };
            let outcome = Outcome { object: known(object), ..Outcome::default() };
            self.commit(object.home, Some(asker), time, vec![step], outcome)?;
        }
        self.clients.count_open(asker.client, object.gfid, object.home, 1);
        Ok(FopReply { attr: Some(self.set(object.home)?.store.attr(&object.gfid)?), ..done(asker.request) })
    }
}
