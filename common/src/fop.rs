//! The file operations as the client asks them and the brick answers them: the domain side of the
//! session stream. `proto::convert` carries them on the wire.
//!
//! Objects are addressed by gfid with the home set that the client knows of, dentries by (parent,
//! name), never by path.

use crate::attr::{Attr, Kind, SetAttr, StatFs};
use crate::errno::Errno;
use crate::ids::{ClientId, ClusterId, Gfid, NodeId, SetId, VolumeId};
use crate::locks::{HeldLock, LockKind, LockRange};
use crate::name::Name;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// An object and the set that holds its inode, as far as the sender knows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct ObjectRef {
    /// The object.
    pub gfid: Gfid,
    /// Its home set.
    pub home: SetId,
}

/// What accompanies every file operation.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CallHeader {
    /// Request number within the client, from 1, never reused: a retry has the same number (R6).
    pub request: u64,
    /// Every request below this one has been answered; their results may be dropped.
    pub lowest_unanswered: u64,
    /// The set that the client addresses: the dentry set of a name, else the home.
    pub set: u16,
    /// Layout generation that the client placed this call by.
    pub generation: u64,
    /// Epoch of the set as the client knows it.
    pub epoch: u64,
    /// Milliseconds that the client will still wait; 0 = for ever.
    pub deadline_ms: u32,
    /// User on whose behalf.
    pub uid: u32,
    /// Group of that user.
    pub gid: u32,
    /// Fence number of a held lease, 0 for none.
    pub fence: u64,
}

/// What `Fop::Make` makes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Making {
    /// A regular file. `open` counts as an `Open` of it; without `exclusive` an existing file is
    /// opened instead (and cut to nothing with `truncate`).
    File {
        /// Leave it open for this client.
        open: bool,
        /// O_EXCL.
        exclusive: bool,
        /// O_TRUNC for a file that exists.
        truncate: bool,
    },
    /// A directory.
    Directory,
    /// A symbolic link to the target.
    Symlink(Bytes),
    /// A fifo, socket or device record with its device number.
    Record(Kind, u32),
}

/// Flags of a rename; at most one of `NoReplace` and `Exchange`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RenameFlags {
    /// RENAME_NOREPLACE: EEXIST if the new name exists.
    pub no_replace: bool,
    /// RENAME_EXCHANGE: both names must exist and are swapped.
    pub exchange: bool,
    /// RENAME_WHITEOUT: leave a 0/0 character device at the old name.
    pub whiteout: bool,
}

impl RenameFlags {
    /// Reads renameat2(2) flags; EINVAL for unknown or contradicting ones.
    pub fn from_bits(bits: u32) -> Result<RenameFlags, Errno> {
        let flags = RenameFlags { no_replace: bits & 1 != 0, exchange: bits & 2 != 0, whiteout: bits & 4 != 0 };
        if bits & !7 != 0 || (flags.exchange && (flags.no_replace || flags.whiteout)) {
            return Err(Errno::EINVAL);
        }
        Ok(flags)
    }

    /// The renameat2(2) bits.
    pub fn bits(self) -> u32 {
        u32::from(self.no_replace) | u32::from(self.exchange) << 1 | u32::from(self.whiteout) << 2
    }
}

/// Flags of one write.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WriteFlags {
    /// O_APPEND: the brick decides the offset.
    pub append: bool,
    /// Drop setuid, setgid and capabilities (the writer lacks CAP_FSETID).
    pub kill_priv: bool,
    /// O_DSYNC or O_SYNC: reply only when the data are on the disk.
    pub sync: bool,
}

/// One file operation.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // operations and operands are those of the POSIX calls that they are named after
pub enum Fop {
    Lookup {
        parent: ObjectRef,
        name: Name,
    },
    /// Looks a name up; a file that is on this machine is opened, too, and comes with the reply, which says so.
    LookupOpen {
        parent: ObjectRef,
        name: Name,
    },
    GetAttr {
        object: ObjectRef,
    },
    SetAttr {
        object: ObjectRef,
        set: SetAttr,
    },
    ReadLink {
        object: ObjectRef,
    },
    Make {
        parent: ObjectRef,
        name: Name,
        making: Making,
        perm: u32,
        umask: u32,
    },
    Unlink {
        parent: ObjectRef,
        name: Name,
    },
    Rmdir {
        parent: ObjectRef,
        name: Name,
    },
    Rename {
        parent: ObjectRef,
        name: Name,
        new_parent: ObjectRef,
        new_name: Name,
        flags: RenameFlags,
    },
    Link {
        object: ObjectRef,
        new_parent: ObjectRef,
        new_name: Name,
    },
    Open {
        object: ObjectRef,
        truncate: bool,
        /// For writing: refused on a volume that is read-only.
        writes: bool,
        /// For reading: the brick's file may come with the reply.
        wants_descriptor: bool,
    },
    Release {
        object: ObjectRef,
    },
    Read {
        object: ObjectRef,
        offset: u64,
        size: u32,
        /// The brick's file may come with the reply.
        wants_descriptor: bool,
    },
    Write {
        object: ObjectRef,
        offset: u64,
        data: Bytes,
        flags: WriteFlags,
    },
    /// fallocate(2). The answer may say that only the front of the range is done.
    Fallocate {
        object: ObjectRef,
        mode: i32,
        offset: u64,
        length: u64,
    },
    /// Copies bytes of `source`, a file of the same set or the same file, to `offset` of `object`. The answer may say
    /// fewer than asked for.
    CopyRange {
        object: ObjectRef,
        offset: u64,
        source: ObjectRef,
        source_offset: u64,
        length: u64,
    },
    Seek {
        object: ObjectRef,
        offset: u64,
        whence: i32,
    },
    Fsync {
        object: ObjectRef,
        data_only: bool,
    },
    /// Entries of a directory that are homed on the addressed set, in cookie order, after `after`.
    ReadDir {
        directory: ObjectRef,
        after: u64,
        limit: u32,
        plus: bool,
    },
    StatFs,
    SetXattr {
        object: ObjectRef,
        name: Bytes,
        value: Bytes,
        flags: u32,
    },
    GetXattr {
        object: ObjectRef,
        name: Bytes,
    },
    ListXattr {
        object: ObjectRef,
    },
    RemoveXattr {
        object: ObjectRef,
        name: Bytes,
    },
    /// Sets an owner's lock in a range or, with `None`, takes it away. With `waits` the answer comes when it is
    /// granted; otherwise EAGAIN if another one is in its way.
    Lock {
        object: ObjectRef,
        /// The client's number of the owner: a process, or an open file.
        owner: u64,
        range: LockRange,
        kind: Option<LockKind>,
        pid: u32,
        waits: bool,
    },
    /// The first lock that is in the way of one.
    TestLock {
        object: ObjectRef,
        owner: u64,
        range: LockRange,
        kind: LockKind,
    },
    /// Nobody waits any more for the lock that the client asked for under this number.
    CancelLock {
        object: ObjectRef,
        request: u64,
    },
    /// Keeps the client's lease.
    Renew,
}

impl Fop {
    /// Whether the operation changes the volume: such a request runs once however often it arrives.
    pub fn is_mutation(&self) -> bool {
        use Fop::{
            CopyRange, Fallocate, Link, Make, Open, RemoveXattr, Rename, Rmdir, SetAttr, SetXattr, Unlink, Write,
        };
        match self {
            SetAttr { .. } | Make { .. } | Unlink { .. } | Rmdir { .. } | Rename { .. } | Link { .. } => true,
            Write { .. } | Fallocate { .. } | CopyRange { .. } => true,
            SetXattr { .. } | RemoveXattr { .. } => true,
            Open { truncate, .. } => *truncate,
            Fop::Lookup { .. }
            | Fop::LookupOpen { .. }
            | Fop::GetAttr { .. }
            | Fop::ReadLink { .. }
            | Fop::Release { .. } => false,
            Fop::Read { .. } | Fop::Seek { .. } | Fop::Fsync { .. } | Fop::ReadDir { .. } => false,
            Fop::StatFs | Fop::GetXattr { .. } | Fop::ListXattr { .. } | Fop::Renew => false,
            // Asked again they say the same: the greeting in between has said what the client holds.
            Fop::Lock { .. } | Fop::TestLock { .. } | Fop::CancelLock { .. } => false,
        }
    }
}

/// One entry of a directory listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirEntry {
    /// Its name.
    pub name: Name,
    /// Hash of the name that orders the listing (see `readdir_cookie`); the client adds an ordinal
    /// among equal ones.
    pub cookie: u64,
    /// The object.
    pub gfid: Gfid,
    /// What it is.
    pub kind: Kind,
    /// Its attributes, when asked for with `plus`.
    pub attr: Option<Attr>,
}

/// What a successful operation answers, besides attributes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Nothing more.
    Done,
    /// Bytes read, a link target, an xattr's value, or NUL-separated xattr names.
    Data(Bytes),
    /// Bytes written, copied or allocated and where they went (the decided offset of an append).
    Written {
        /// Bytes.
        count: u32,
        /// First byte.
        offset: u64,
    },
    /// Entries in cookie order; `end` when none follow.
    Entries {
        /// The entries.
        entries: Vec<DirEntry>,
        /// No entry follows the last one.
        end: bool,
    },
    /// Space of the set's volume.
    Space(StatFs),
    /// Offset found by a seek.
    Offset(u64),
    /// The lock that is in the way, if there is one.
    InTheWay(Option<HeldLock>),
}

/// The reply to one call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FopReply {
    /// The request that this answers.
    pub request: u64,
    /// The answer, or why there is none.
    pub result: Result<Answer, Errno>,
    /// Attributes of the object of the operation after it.
    pub attr: Option<Attr>,
    /// Attributes of the parent directory after a namespace operation.
    pub parent: Option<Attr>,
    /// Attributes of the new parent after a rename.
    pub new_parent: Option<Attr>,
    /// The brick's file, open for reading, where client and brick are on one machine.
    pub descriptor: Option<Descriptor>,
    /// The object was opened, though that was not all that was asked for.
    pub opened: bool,
    /// The operation did not run, for another set is the one to run it: it is to be sent there.
    pub go_to: Option<SetId>,
}

/// An open file that is passed beside a reply.
#[derive(Clone, Debug)]
pub struct Descriptor(pub Arc<OwnedFd>);

impl PartialEq for Descriptor {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Descriptor {}

impl FopReply {
    /// A reply that the operation is done, with nothing else to say.
    pub fn done(request: u64) -> FopReply {
        FopReply {
            request,
            result: Ok(Answer::Done),
            attr: None,
            parent: None,
            new_parent: None,
            descriptor: None,
            opened: false,
            go_to: None,
        }
    }

    /// A reply that failed.
    pub fn failed(request: u64, errno: Errno) -> FopReply {
        FopReply { result: Err(errno), ..FopReply::done(request) }
    }
}

/// The session's first message. Its wire form is fixed for life.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Oldest protocol version that the client speaks.
    pub protocol_min: u32,
    /// Newest protocol version that the client speaks.
    pub protocol_max: u32,
    /// Feature bits that the client has.
    pub features: u64,
    /// The cluster that the client expects, if it knows.
    pub cluster: Option<ClusterId>,
    /// The volume's name.
    pub volume: String,
    /// The volume's id, if known: a re-created volume of the same name is another one.
    pub volume_id: Option<VolumeId>,
    /// The client.
    pub client: ClientId,
    /// Counts the sessions of this client on this node; a lower one is refused from then on.
    pub session: u64,
    /// Objects that the client holds open, announced again after a lost session or a restart.
    pub open_objects: Vec<(ObjectRef, u32)>,
    /// The lowest request number not yet answered.
    pub lowest_unanswered: u64,
    /// Locks that the client holds, announced again after a lost session or a restart.
    pub locks: Vec<OwnedLock>,
}

/// A lock as a greeting announces it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OwnedLock {
    /// The file.
    pub gfid: Gfid,
    /// The client's number of the owner.
    pub owner: u64,
    /// The lock.
    pub lock: HeldLock,
}

/// The server's answer to `Hello`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Welcome {
    /// Protocol version of this session.
    pub protocol: u32,
    /// Feature bits that both have.
    pub features: u64,
    /// The client's lease in milliseconds, renewed by any message.
    pub lease_ms: u32,
    /// The volume map as JSON (`cluster::state::VolumeMap`).
    pub map_json: Bytes,
    /// The client's lease had ended: the locks that it announced may be others' by now, and it has none.
    pub locks_lost: bool,
    /// The node that greets.
    pub node: NodeId,
    /// The nodes that have sets of the volume, and where they are reached.
    pub nodes: Vec<(NodeId, Vec<String>)>,
    /// On the node's own socket: the file with the node's key and certificate, by which a mount on this machine reaches
    /// the other nodes. Empty elsewhere.
    pub identity_path: String,
}

/// The protocol version of this build.
pub const PROTOCOL_VERSION: u32 = 1;
/// Feature of a client: it takes memory that is lent beside the greeting, and puts the data of large writes there.
pub const FEATURE_LENT_DATA: u64 = 1;
/// Longest piece of data in one message, in bytes.
pub const PIECE_BYTES: usize = 512 * 1024;
/// Longest message that a decoder accepts, in bytes: one piece, its names and some room.
pub const MESSAGE_MAX_BYTES: usize = PIECE_BYTES + 256 * 1024;
/// Longest message that a server accepts, in bytes: a greeting tells of all that a client has open and locked.
pub const GREETING_MAX_BYTES: usize = 2 * MESSAGE_MAX_BYTES;
/// Most locks that a client may hold, so that a greeting can tell of them; beyond it ENOLCK.
pub const LOCKS_OF_CLIENT_MAX: usize = 12_000;
