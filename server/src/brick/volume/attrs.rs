//! Attributes, extended attributes and the volume's space. What children of a directory inherit is passed
//! on to its copies before a change of it is acknowledged (PROTOCOL 27).

use super::peer::describe_copy;
use super::{Ask, PeerCall, Ran, State, Volume, done, known};
use crate::brick::effect::{CopyOf, Effect, Outcome, Step};
use crate::brick::set::Asker;
use crate::brick::store::BrickStore;
use crate::brick::store::posix::PosixStore;
use brickfs_common::attr::{Attr, Kind, SetAttr, SetTime, StatFs, Timestamp, without_suidgid};
use brickfs_common::errno::Errno;
use brickfs_common::fop::{Answer, FopReply, ObjectRef};
use brickfs_common::ids::{Gfid, SetId};
use brickfs_common::name::RESERVED_XATTR_PREFIX;
use bytes::Bytes;
use std::collections::HashSet;

const XATTR_CREATE: u32 = 1;
const XATTR_REPLACE: u32 = 2;
/// XATTR_SIZE_MAX; the local file system may take less and says so.
const XATTR_VALUE_MAX: usize = 65536;
const SETGID: u32 = 0o2000;
const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

impl Volume<PosixStore> {
    pub(super) async fn set_attr(&self, ask: Ask, object: ObjectRef, set: SetAttr) -> Ran {
        let (reply, copy) = {
            let mut state = self.lock();
            let before = state.attr_at_home(object)?;
            let reply = state.set_attr(ask.asker, &before, set)?;
            let inherits = before.kind == Kind::Directory
                && reply.attr.as_ref().is_some_and(|after| inherited_part(&before) != inherited_part(after));
            (reply, if inherits { Some(state.describe(object)?) } else { None })
        };
        self.pass_on(object, copy).await?;
        Ok(reply)
    }

    pub(super) async fn change_xattr(
        &self,
        ask: Ask,
        object: ObjectRef,
        name: &Bytes,
        value: Option<&Bytes>,
        flags: u32,
    ) -> Ran {
        let (reply, copy) = {
            let mut state = self.lock();
            let reply = state.set_xattr(ask.asker, object, name, value, flags)?;
            let inherits = &name[..] == DEFAULT_ACL;
            (reply, if inherits { Some(state.describe(object)?) } else { None })
        };
        self.pass_on(object, copy).await?;
        Ok(reply)
    }
}

impl<S: BrickStore> Volume<S> {
    async fn pass_on(&self, object: ObjectRef, copy: Option<CopyOf>) -> Result<(), Errno> {
        let Some(copy) = copy else { return Ok(()) };
        let others: Vec<SetId> = self.lock().set_ids().filter(|set| *set != object.home).collect();
        for set in others {
            self.peer(set, PeerCall::Inherit { copy: copy.clone() }).await?;
        }
        Ok(())
    }

    /// Passes on again what a set's last effect before a restart may have changed for children.
    pub(super) async fn pass_on_again(&self, set: SetId, effect: &Effect) {
        for step in &effect.steps {
            let (Step::SetAttr { gfid, .. } | Step::Xattr { gfid, .. }) = step else { continue };
            let object = ObjectRef { gfid: Gfid(*gfid), home: set };
            let copy = {
                let mut state = self.lock();
                match state.attr_at_home(object) {
                    Ok(attr) if attr.kind == Kind::Directory => state.describe(object).ok(),
                    _ => None, // a file, or gone since
                }
            };
            if let Err(error) = self.pass_on(object, copy).await {
                tracing::warn!(gfid = %object.gfid, "a copy of the directory could not be told what children inherit: {error}");
            }
        }
    }
}

/// What of a directory's attributes its children get.
fn inherited_part(attr: &Attr) -> (u32, u32, u32) {
    (attr.gid, attr.perm & SETGID, attr.project)
}

impl<S: BrickStore> State<S> {
    /// An object's attributes at its home: ESTALE if it is another set's by now.
    pub(super) fn attr_at_home(&mut self, object: ObjectRef) -> Result<Attr, Errno> {
        let attr = self.set(object.home)?.store.attr(&object.gfid)?;
        let is_copy = attr.kind == Kind::Directory && attr.home != object.home;
        if is_copy && object.gfid != Gfid::ROOT { Err(Errno::ESTALE) } else { Ok(attr) }
    }

    fn describe(&mut self, object: ObjectRef) -> Result<CopyOf, Errno> {
        let engine = self.set(object.home)?;
        let meta = engine.store.meta(&object.gfid)?;
        describe_copy(engine, &object.gfid, &meta)
    }
}

impl State<PosixStore> {
    pub(super) fn get_attr(&mut self, request: u64, object: ObjectRef) -> Result<FopReply, Errno> {
        Ok(FopReply { attr: Some(self.attr_at_home(object)?), ..done(request) })
    }

    /// Changes attributes of an object that is `before` now.
    pub(super) fn set_attr(&mut self, asker: Asker, before: &Attr, set: SetAttr) -> Result<FopReply, Errno> {
        let object = ObjectRef { gfid: before.gfid, home: before.home };
        let time = self.now();
        let mut perm = set.perm.map(|perm| perm & 0o7777);
        if let Some(size) = set.size {
            match before.kind {
                Kind::File => {}
                Kind::Directory => return Err(Errno::EISDIR),
                _ => return Err(Errno::EINVAL),
            }
            if size > before.size {
                self.check_space(object.home, 0)?;
            }
            if set.kill_suidgid && perm.is_none() {
                perm = without_suidgid(before.perm);
            }
        }
        let at = |time_to_set: Option<SetTime>| -> Option<Timestamp> {
            time_to_set.map(|t| match t {
                SetTime::Now => time,
                SetTime::At(at) => at,
            })
        };
        let step = Step::SetAttr {
            gfid: object.gfid.0,
            perm,
            uid: set.uid,
            gid: set.gid,
            size: set.size,
            atime: at(set.atime),
            mtime: at(set.mtime).or(set.size.map(|_| time)),
        };
        self.commit(object.home, Some(asker), time, vec![step], of(object))?;
        Ok(FopReply { attr: Some(self.attr_at_home(object)?), ..done(asker.request) })
    }

    pub(super) fn read_link(&mut self, request: u64, object: ObjectRef) -> Result<FopReply, Errno> {
        let target = self.set(object.home)?.store.read_link(&object.gfid)?;
        Ok(FopReply { result: Ok(Answer::Data(Bytes::from(target))), ..done(request) })
    }

    pub(super) fn set_xattr(
        &mut self,
        asker: Asker,
        object: ObjectRef,
        name: &Bytes,
        value: Option<&Bytes>,
        flags: u32,
    ) -> Result<FopReply, Errno> {
        if name.starts_with(RESERVED_XATTR_PREFIX) {
            return Err(Errno::EPERM);
        }
        self.attr_at_home(object)?;
        let exists = match self.set(object.home)?.store.xattr(&object.gfid, name) {
            Ok(_) => true,
            Err(Errno::ENODATA) => false,
            Err(error) => return Err(error),
        };
        match value {
            None if !exists => return Err(Errno::ENODATA),
            Some(_) if exists && flags & XATTR_CREATE != 0 => return Err(Errno::EEXIST),
            Some(_) if !exists && flags & XATTR_REPLACE != 0 => return Err(Errno::ENODATA),
            Some(value) if value.len() > XATTR_VALUE_MAX => return Err(Errno::E2BIG),
            _ => {}
        }
        if value.is_some() {
            self.check_space(object.home, 0)?;
        }
        let time = self.now();
        let step = Step::Xattr { gfid: object.gfid.0, name: name.to_vec(), value: value.map(|v| v.to_vec()) };
        self.commit(object.home, Some(asker), time, vec![step], of(object))?;
        Ok(FopReply { attr: Some(self.attr_at_home(object)?), ..done(asker.request) })
    }

    pub(super) fn get_xattr(&mut self, request: u64, object: ObjectRef, name: &Bytes) -> Result<FopReply, Errno> {
        if name.starts_with(RESERVED_XATTR_PREFIX) {
            return Err(Errno::ENODATA);
        }
        let value = self.set(object.home)?.store.xattr(&object.gfid, name)?;
        Ok(FopReply { result: Ok(Answer::Data(Bytes::from(value))), ..done(request) })
    }

    pub(super) fn list_xattr(&mut self, request: u64, object: ObjectRef) -> Result<FopReply, Errno> {
        let names = self.set(object.home)?.store.xattr_names(&object.gfid)?;
        Ok(FopReply { result: Ok(Answer::Data(Bytes::from(names))), ..done(request) })
    }

    /// Sums the sets, bricks of one file system once, the reserve taken off (PROTOCOL 40).
    pub(super) fn stat_fs(&mut self, request: u64) -> Result<FopReply, Errno> {
        let mut seen = HashSet::new();
        let mut sum = StatFs::default();
        let reserve_percent = self.reserve_percent;
        for engine in self.open_sets() {
            if !seen.insert(engine.store.device()) {
                continue;
            }
            let space = engine.store.space()?;
            let reserve = space.reserve_bytes(reserve_percent);
            sum.total_bytes += space.total_bytes;
            sum.free_bytes += space.free_bytes.saturating_sub(reserve);
            sum.available_bytes += space.available_bytes.saturating_sub(reserve);
            sum.total_inodes += space.total_inodes;
            sum.free_inodes += space.free_inodes;
        }
        Ok(FopReply { result: Ok(Answer::Space(sum)), ..done(request) })
    }
}

/// The outcome of an operation on one object.
pub fn of(object: ObjectRef) -> Outcome {
    Outcome { object: known(object), ..Outcome::default() }
}
