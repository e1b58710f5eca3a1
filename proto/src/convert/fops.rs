//! File operations on the wire.

use super::attr::{gfid, set_id};
use crate::v1::{self, Op};
use brickfs_common::attr::{Kind, SetAttr};
use brickfs_common::errno::Errno;
use brickfs_common::fop::{
    CallHeader, Fop, FopReply, Hello, LOCKS_OF_CLIENT_MAX, Making, ObjectRef, OwnedLock, PIECE_BYTES, RenameFlags,
    Welcome, WriteFlags,
};
use brickfs_common::ids::{ClientId, ClusterId, Gfid, VolumeId};
use brickfs_common::locks::{HeldLock, LockKind, LockRange};
use brickfs_common::name::{NAME_MAX, Name, TARGET_MAX};
use bytes::Bytes;

/// `flags` of OP_MAKE_FILE.
const MAKE_OPEN: u32 = 1;
const MAKE_EXCLUSIVE: u32 = 2;
const MAKE_TRUNCATE: u32 = 4;
/// `flags` of OP_WRITE.
const WRITE_APPEND: u32 = 1;
const WRITE_KILL_PRIV: u32 = 2;
const WRITE_SYNC: u32 = 4;
/// `flags` of OP_OPEN (truncate), OP_FSYNC (data only) and OP_READDIR (with attributes).
const YES: u32 = 1;
/// `flags` of OP_OPEN: for writing.
const OPEN_WRITES: u32 = 2;
/// `flags` of OP_LOOKUP: a file is opened, too, and may come with the reply.
const LOOKUP_OPENS: u32 = 1;
/// `flags` of OP_OPEN and OP_READ: the brick's file may come with the reply.
const WANTS_DESCRIPTOR: u32 = 4;
/// `flags` of OP_LOCK and OP_TEST_LOCK; neither of the first two takes a lock away.
const LOCK_SHARED: u32 = 1;
const LOCK_EXCLUSIVE: u32 = 2;
const LOCK_WAITS: u32 = 4;
/// A write of so many bytes takes longer to send than to ask for.
const BULK_BYTES: usize = 64 << 10;
/// Most entries of one listing page.
const PAGE_ENTRIES_MAX: u64 = 4096;
/// Longest xattr value in bytes.
const XATTR_VALUE_MAX: usize = 65536;
/// Longest volume name in bytes that a greeting may carry.
const VOLUME_NAME_MAX: usize = 255;
/// Most open objects that a greeting may carry.
const OPEN_OBJECTS_MAX: usize = 65536;

/// What a client sends.
#[derive(Clone, PartialEq, Debug)]
pub enum ClientMessage {
    /// The first message.
    Hello(Hello),
    /// An operation.
    Call(CallHeader, Fop),
}

/// What a server sends.
#[derive(Clone, PartialEq, Debug)]
#[allow(clippy::large_enum_variant)] // nearly all are replies: a box for each would cost more
pub enum ServerMessage {
    /// The greeting was accepted.
    Welcome(Welcome),
    /// The greeting was refused.
    Refused(String),
    /// The answer to a call.
    Reply(FopReply),
    /// The files that came beside replies are not to be read any more.
    FilesVoid,
}

/// A message that is not understood.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("request {request} is malformed: {errno}")]
pub struct Malformed {
    /// The request, 0 if it has none.
    pub request: u64,
    /// What to answer.
    pub errno: Errno,
}

fn put_object(call: &mut v1::Call, object: ObjectRef) {
    call.gfid = Bytes::copy_from_slice(&object.gfid.0);
    call.home = u32::from(object.home.0);
}

fn put_object2(call: &mut v1::Call, object: ObjectRef, name: Name) {
    call.gfid2 = Bytes::copy_from_slice(&object.gfid.0);
    call.home2 = u32::from(object.home.0);
    call.name2 = name.into_bytes();
}

impl From<Hello> for v1::Call {
    fn from(h: Hello) -> v1::Call {
        let open = |(object, count): (ObjectRef, u32)| v1::OpenObject {
            gfid: Bytes::copy_from_slice(&object.gfid.0),
            home: u32::from(object.home.0),
            count,
        };
        let hello = v1::Hello {
            protocol_min: h.protocol_min,
            protocol_max: h.protocol_max,
            features: h.features,
            cluster: h.cluster.map(|id| Bytes::copy_from_slice(&id.0)).unwrap_or_default(),
            volume: h.volume,
            volume_id: h.volume_id.map(|id| Bytes::copy_from_slice(&id.0)).unwrap_or_default(),
            client: Bytes::copy_from_slice(&h.client.0),
            session: h.session,
            open_objects: h.open_objects.into_iter().map(open).collect(),
            lowest_unanswered: h.lowest_unanswered,
            locks: h.locks.iter().map(|owned| lock_to_wire(Some(owned.gfid), owned.owner, &owned.lock)).collect(),
        };
        v1::Call { hello: Some(hello), ..v1::Call::default() }
    }
}

pub(super) fn lock_to_wire(gfid: Option<Gfid>, owner: u64, lock: &HeldLock) -> v1::Lock {
    v1::Lock {
        gfid: gfid.map(|gfid| Bytes::copy_from_slice(&gfid.0)).unwrap_or_default(),
        owner,
        first: lock.range.first(),
        last: lock.range.last(),
        exclusive: lock.kind == LockKind::Exclusive,
        pid: lock.pid,
    }
}

pub(super) fn read_lock(lock: &v1::Lock) -> Result<HeldLock, Errno> {
    let kind = if lock.exclusive { LockKind::Exclusive } else { LockKind::Shared };
    Ok(HeldLock { range: LockRange::new(lock.first, lock.last)?, kind, pid: lock.pid })
}

/// Whether a call brings so much data that others should not wait for it. One that the node answers only when its
/// disk has it is not: it is on its way for long without filling it.
pub fn is_bulk(call: &v1::Call) -> bool {
    call.op() == Op::Write && call.data.len() >= BULK_BYTES && call.flags & WRITE_SYNC == 0
}

/// The wire form of a call.
pub fn call_to_wire(header: &CallHeader, fop: Fop) -> v1::Call {
    let mut c = v1::Call {
        request: header.request,
        lowest_unanswered: header.lowest_unanswered,
        set: u32::from(header.set),
        generation: header.generation,
        epoch: header.epoch,
        deadline_ms: header.deadline_ms,
        uid: header.uid,
        gid: header.gid,
        fence: header.fence,
        ..v1::Call::default()
    };
    let op = put_fop(&mut c, fop);
    c.set_op(op);
    c
}

fn put_fop(c: &mut v1::Call, fop: Fop) -> Op {
    match fop {
        Fop::Lookup { parent, name } => put_name(c, parent, name, Op::Lookup),
        Fop::LookupOpen { parent, name } => {
            c.flags = LOOKUP_OPENS;
            put_name(c, parent, name, Op::Lookup)
        }
        Fop::Unlink { parent, name } => put_name(c, parent, name, Op::Unlink),
        Fop::Rmdir { parent, name } => put_name(c, parent, name, Op::Rmdir),
        Fop::Make { parent, name, making, perm, umask } => {
            put_object(c, parent);
            (c.name, c.perm, c.umask) = (name.into_bytes(), perm, umask);
            put_making(c, making)
        }
        Fop::Rename { parent, name, new_parent, new_name, flags } => {
            put_object2(c, new_parent, new_name);
            c.flags = flags.bits();
            put_name(c, parent, name, Op::Rename)
        }
        Fop::Link { object, new_parent, new_name } => {
            put_object2(c, new_parent, new_name);
            with_object(c, object, Op::Link)
        }
        Fop::GetAttr { object } => with_object(c, object, Op::Getattr),
        Fop::ReadLink { object } => with_object(c, object, Op::Readlink),
        Fop::Release { object } => with_object(c, object, Op::Release),
        Fop::ListXattr { object } => with_object(c, object, Op::Listxattr),
        Fop::SetAttr { object, set } => {
            c.set_attr = Some(set.into());
            with_object(c, object, Op::Setattr)
        }
        Fop::StatFs => Op::Statfs,
        Fop::Renew => Op::Renew,
        Fop::Lock { .. } | Fop::TestLock { .. } | Fop::CancelLock { .. } => put_lock_fop(c, fop),
        other => put_data_fop(c, other),
    }
}

fn put_data_fop(c: &mut v1::Call, fop: Fop) -> Op {
    match fop {
        Fop::Open { object, truncate, writes, wants_descriptor } => {
            c.flags = bit(truncate, YES) | bit(writes, OPEN_WRITES) | bit(wants_descriptor, WANTS_DESCRIPTOR);
            with_object(c, object, Op::Open)
        }
        Fop::Read { object, offset, size, wants_descriptor } => {
            (c.offset, c.length, c.flags) = (offset, u64::from(size), bit(wants_descriptor, WANTS_DESCRIPTOR));
            with_object(c, object, Op::Read)
        }
        Fop::Write { object, offset, data, flags } => {
            (c.offset, c.data) = (offset, data);
            c.flags =
                bit(flags.append, WRITE_APPEND) | bit(flags.kill_priv, WRITE_KILL_PRIV) | bit(flags.sync, WRITE_SYNC);
            with_object(c, object, Op::Write)
        }
        Fop::Fallocate { object, mode, offset, length } => {
            (c.flags, c.offset, c.length) = (mode as u32, offset, length);
            with_object(c, object, Op::Fallocate)
        }
        Fop::CopyRange { object, offset, source, source_offset, length } => {
            (c.offset, c.offset2, c.length) = (offset, source_offset, length);
            (c.gfid2, c.home2) = (Bytes::copy_from_slice(&source.gfid.0), u32::from(source.home.0));
            with_object(c, object, Op::CopyRange)
        }
        Fop::Seek { object, offset, whence } => {
            (c.flags, c.offset) = (whence as u32, offset);
            with_object(c, object, Op::Seek)
        }
        Fop::Fsync { object, data_only } => {
            c.flags = u32::from(data_only);
            with_object(c, object, Op::Fsync)
        }
        Fop::ReadDir { directory, after, limit, plus } => {
            (c.offset, c.length, c.flags) = (after, u64::from(limit), u32::from(plus));
            with_object(c, directory, Op::Readdir)
        }
        Fop::SetXattr { object, name, value, flags } => {
            (c.name, c.data, c.flags) = (name, value, flags);
            with_object(c, object, Op::Setxattr)
        }
        Fop::GetXattr { object, name } => {
            c.name = name;
            with_object(c, object, Op::Getxattr)
        }
        Fop::RemoveXattr { object, name } => {
            c.name = name;
            with_object(c, object, Op::Removexattr)
        }
        _ => Op::None,
    }
}

fn put_lock_fop(c: &mut v1::Call, fop: Fop) -> Op {
    let bits = |kind| match kind {
        LockKind::Shared => LOCK_SHARED,
        LockKind::Exclusive => LOCK_EXCLUSIVE,
    };
    match fop {
        Fop::Lock { object, owner, range, kind, pid, waits } => {
            (c.owner, c.offset, c.length, c.pid) = (owner, range.first(), range.last(), pid);
            c.flags = kind.map_or(0, bits) | if waits { LOCK_WAITS } else { 0 };
            with_object(c, object, Op::Lock)
        }
        Fop::TestLock { object, owner, range, kind } => {
            (c.owner, c.offset, c.length, c.flags) = (owner, range.first(), range.last(), bits(kind));
            with_object(c, object, Op::TestLock)
        }
        Fop::CancelLock { object, request } => {
            c.offset = request;
            with_object(c, object, Op::CancelLock)
        }
        _ => Op::None,
    }
}

fn bit(is_set: bool, bit: u32) -> u32 {
    if is_set { bit } else { 0 }
}

fn with_object(c: &mut v1::Call, object: ObjectRef, op: Op) -> Op {
    put_object(c, object);
    op
}

fn put_name(c: &mut v1::Call, parent: ObjectRef, name: Name, op: Op) -> Op {
    put_object(c, parent);
    c.name = name.into_bytes();
    op
}

fn put_making(c: &mut v1::Call, making: Making) -> Op {
    match making {
        Making::File { open, exclusive, truncate } => {
            c.flags = bit(open, MAKE_OPEN) | bit(exclusive, MAKE_EXCLUSIVE) | bit(truncate, MAKE_TRUNCATE);
            Op::MakeFile
        }
        Making::Directory => Op::MakeDirectory,
        Making::Symlink(target) => {
            c.data = target;
            Op::MakeSymlink
        }
        Making::Record(kind, rdev) => {
            (c.kind, c.rdev) = (kind.mode_bits(), rdev);
            Op::MakeRecord
        }
    }
}

impl TryFrom<v1::Call> for ClientMessage {
    type Error = Malformed;
    fn try_from(mut c: v1::Call) -> Result<ClientMessage, Malformed> {
        let request = c.request;
        let malformed = |errno| Malformed { request, errno };
        if let Some(hello) = c.hello.take() {
            return read_hello(hello).map(ClientMessage::Hello).map_err(malformed);
        }
        let header = CallHeader {
            request,
            lowest_unanswered: c.lowest_unanswered,
            set: set_id(c.set).map_err(malformed)?.0,
            generation: c.generation,
            epoch: c.epoch,
            deadline_ms: c.deadline_ms,
            uid: c.uid,
            gid: c.gid,
            fence: c.fence,
        };
        read_fop(c).map(|fop| ClientMessage::Call(header, fop)).map_err(malformed)
    }
}

fn read_hello(h: v1::Hello) -> Result<Hello, Errno> {
    let is_too_much = h.open_objects.len() > OPEN_OBJECTS_MAX || h.locks.len() > LOCKS_OF_CLIENT_MAX;
    if h.volume.len() > VOLUME_NAME_MAX || is_too_much {
        return Err(Errno::EINVAL);
    }
    let cluster = match h.cluster.len() {
        0 => None,
        _ => Some(ClusterId::from_slice(&h.cluster).ok_or(Errno::EINVAL)?),
    };
    let volume_id = match h.volume_id.len() {
        0 => None,
        _ => Some(VolumeId::from_slice(&h.volume_id).ok_or(Errno::EINVAL)?),
    };
    let open_objects = h
        .open_objects
        .iter()
        .map(|o| Ok((ObjectRef { gfid: gfid(&o.gfid)?, home: set_id(o.home)? }, o.count)))
        .collect::<Result<Vec<_>, Errno>>()?;
    let owned = |lock: &v1::Lock| Ok(OwnedLock { gfid: gfid(&lock.gfid)?, owner: lock.owner, lock: read_lock(lock)? });
    let locks = h.locks.iter().map(owned).collect::<Result<Vec<_>, Errno>>()?;
    Ok(Hello {
        protocol_min: h.protocol_min,
        protocol_max: h.protocol_max,
        features: h.features,
        cluster,
        volume: h.volume,
        volume_id,
        client: ClientId::from_slice(&h.client).ok_or(Errno::EINVAL)?,
        session: h.session,
        open_objects,
        lowest_unanswered: h.lowest_unanswered,
        locks,
    })
}

fn object(c: &v1::Call) -> Result<ObjectRef, Errno> {
    Ok(ObjectRef { gfid: gfid(&c.gfid)?, home: set_id(c.home)? })
}

fn object2(c: &v1::Call) -> Result<(ObjectRef, Name), Errno> {
    Ok((ObjectRef { gfid: gfid(&c.gfid2)?, home: set_id(c.home2)? }, Name::new(c.name2.clone())?))
}

fn xattr_name(c: &v1::Call) -> Result<Bytes, Errno> {
    match c.name.len() {
        1..=NAME_MAX if !c.name.contains(&0) => Ok(c.name.clone()),
        _ => Err(Errno::ERANGE),
    }
}

fn read_fop(c: v1::Call) -> Result<Fop, Errno> {
    match c.op() {
        Op::None => Err(Errno::EOPNOTSUPP),
        Op::Statfs => Ok(Fop::StatFs),
        Op::Renew => Ok(Fop::Renew),
        Op::Lookup | Op::Unlink | Op::Rmdir | Op::Rename | Op::Link => read_name_fop(&c),
        Op::MakeFile | Op::MakeDirectory | Op::MakeSymlink | Op::MakeRecord => read_make(&c),
        Op::Setxattr | Op::Getxattr | Op::Listxattr | Op::Removexattr => read_xattr_fop(&c),
        Op::Lock | Op::TestLock | Op::CancelLock => read_lock_fop(&c),
        _ => read_data_fop(c),
    }
}

fn read_name_fop(c: &v1::Call) -> Result<Fop, Errno> {
    let parent = object(c)?;
    if c.op() == Op::Link {
        let (new_parent, new_name) = object2(c)?;
        return Ok(Fop::Link { object: parent, new_parent, new_name });
    }
    let name = Name::new(c.name.clone())?;
    Ok(match c.op() {
        Op::Lookup if c.flags & LOOKUP_OPENS != 0 => Fop::LookupOpen { parent, name },
        Op::Lookup => Fop::Lookup { parent, name },
        Op::Unlink => Fop::Unlink { parent, name },
        Op::Rmdir => Fop::Rmdir { parent, name },
        _ => {
            let (new_parent, new_name) = object2(c)?;
            Fop::Rename { parent, name, new_parent, new_name, flags: RenameFlags::from_bits(c.flags)? }
        }
    })
}

fn read_make(c: &v1::Call) -> Result<Fop, Errno> {
    let making = match c.op() {
        Op::MakeFile => Making::File {
            open: c.flags & MAKE_OPEN != 0,
            exclusive: c.flags & MAKE_EXCLUSIVE != 0,
            truncate: c.flags & MAKE_TRUNCATE != 0,
        },
        Op::MakeDirectory => Making::Directory,
        Op::MakeSymlink => match c.data.len() {
            0 => return Err(Errno::ENOENT),
            1..=TARGET_MAX if !c.data.contains(&0) => Making::Symlink(c.data.clone()),
            1..=TARGET_MAX => return Err(Errno::EINVAL),
            _ => return Err(Errno::ENAMETOOLONG),
        },
        _ => {
            let kind = Kind::from_mode(c.kind).filter(|kind| kind.is_record()).ok_or(Errno::EINVAL)?;
            Making::Record(kind, c.rdev)
        }
    };
    let name = Name::new(c.name.clone())?;
    Ok(Fop::Make { parent: object(c)?, name, making, perm: c.perm & 0o7777, umask: c.umask & 0o777 })
}

fn read_xattr_fop(c: &v1::Call) -> Result<Fop, Errno> {
    let object = object(c)?;
    Ok(match c.op() {
        Op::Listxattr => Fop::ListXattr { object },
        Op::Getxattr => Fop::GetXattr { object, name: xattr_name(c)? },
        Op::Removexattr => Fop::RemoveXattr { object, name: xattr_name(c)? },
        _ if c.data.len() > XATTR_VALUE_MAX => return Err(Errno::E2BIG),
        _ => Fop::SetXattr { object, name: xattr_name(c)?, value: c.data.clone(), flags: c.flags & 3 },
    })
}

fn read_lock_fop(c: &v1::Call) -> Result<Fop, Errno> {
    let object = object(c)?;
    if c.op() == Op::CancelLock {
        return Ok(Fop::CancelLock { object, request: c.offset });
    }
    let (owner, range) = (c.owner, LockRange::new(c.offset, c.length)?);
    let kind = match c.flags & (LOCK_SHARED | LOCK_EXCLUSIVE) {
        0 => None,
        LOCK_SHARED => Some(LockKind::Shared),
        LOCK_EXCLUSIVE => Some(LockKind::Exclusive),
        _ => return Err(Errno::EINVAL),
    };
    match c.op() {
        Op::Lock => Ok(Fop::Lock { object, owner, range, kind, pid: c.pid, waits: c.flags & LOCK_WAITS != 0 }),
        _ => Ok(Fop::TestLock { object, owner, range, kind: kind.ok_or(Errno::EINVAL)? }),
    }
}

fn read_data_fop(c: v1::Call) -> Result<Fop, Errno> {
    let object = object(&c)?;
    Ok(match c.op() {
        Op::Getattr => Fop::GetAttr { object },
        Op::Readlink => Fop::ReadLink { object },
        Op::Release => Fop::Release { object },
        Op::Open => Fop::Open {
            object,
            truncate: c.flags & YES != 0,
            writes: c.flags & OPEN_WRITES != 0,
            wants_descriptor: c.flags & WANTS_DESCRIPTOR != 0,
        },
        Op::Fsync => Fop::Fsync { object, data_only: c.flags & YES != 0 },
        Op::Seek => Fop::Seek { object, offset: c.offset, whence: c.flags as i32 },
        Op::Fallocate => Fop::Fallocate { object, mode: c.flags as i32, offset: c.offset, length: c.length },
        Op::CopyRange => {
            let source = ObjectRef { gfid: gfid(&c.gfid2)?, home: set_id(c.home2)? };
            Fop::CopyRange { object, offset: c.offset, source, source_offset: c.offset2, length: c.length }
        }
        Op::Setattr => {
            let set: SetAttr = c.set_attr.ok_or(Errno::EINVAL)?.try_into()?;
            Fop::SetAttr { object, set }
        }
        Op::Readdir => {
            let limit = c.length.clamp(1, PAGE_ENTRIES_MAX) as u32;
            Fop::ReadDir { directory: object, after: c.offset, limit, plus: c.flags & YES != 0 }
        }
        Op::Read if c.length <= 2 * PIECE_BYTES as u64 => Fop::Read {
            object,
            offset: c.offset,
            size: c.length as u32,
            wants_descriptor: c.flags & WANTS_DESCRIPTOR != 0,
        },
        Op::Write if c.data.len() <= PIECE_BYTES => {
            let flags = WriteFlags {
                append: c.flags & WRITE_APPEND != 0,
                kill_priv: c.flags & WRITE_KILL_PRIV != 0,
                sync: c.flags & WRITE_SYNC != 0,
            };
            Fop::Write { object, offset: c.offset, data: c.data, flags }
        }
        _ => return Err(Errno::EINVAL),
    })
}

#[cfg(test)]
mod tests;
