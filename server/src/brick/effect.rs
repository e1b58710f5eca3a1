//! Effects: what was decided, as steps that can be applied again. One operation of a client becomes one
//! effect; its record in the effect log is the decision (PROTOCOL 1), its steps are applied in order and
//! each of them does nothing when it finds itself done (PROTOCOL 20).
//!
//! The order of steps of a transaction between sets is prepare (claims, copies of directories), commit
//! (the visible name on the home set), finish (what the commit replaced, old claims, directory times).

use brickfs_common::attr::{Kind, Timestamp};
use brickfs_common::ids::{ClientId, Gfid, SetId};
use serde::{Deserialize, Serialize};

/// A directory entry's place: parent directory and name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Place {
    /// Parent directory.
    pub parent: [u8; 16],
    /// Name in it.
    pub name: Vec<u8>,
}

impl Place {
    /// The place of `name` in `parent`.
    pub fn new(parent: Gfid, name: &brickfs_common::name::Name) -> Place {
        Place { parent: parent.0, name: name.as_bytes().to_vec() }
    }
    /// The parent directory.
    pub fn parent(&self) -> Gfid {
        Gfid(self.parent)
    }
}

/// A new object, fully decided.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NewObject {
    /// The object.
    pub gfid: [u8; 16],
    /// What it is.
    pub kind: Kind,
    /// Permission bits after umask and inheritance.
    pub perm: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Project number.
    pub project: u32,
    /// Device number.
    pub rdev: u32,
    /// Target of a symbolic link.
    pub target: Vec<u8>,
    /// Inherited POSIX access ACL.
    pub access_acl: Option<Vec<u8>>,
    /// Inherited POSIX default ACL.
    pub default_acl: Option<Vec<u8>>,
    /// Birth, and the first atime, mtime and ctime.
    pub time: Timestamp,
    /// The home set: another set than the one that applies it makes a copy of a directory.
    pub home: SetId,
}

/// What becomes of an object that lost a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Rest {
    /// It has other names.
    Linked,
    /// No name is left, a client has it open: it becomes an orphan.
    Orphan,
    /// No name and no opener is left.
    Gone,
}

/// One step on one set.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[allow(missing_docs)] // fields are those of the step's sentence
pub enum Step {
    /// Makes an object under its first name.
    Make { place: Place, object: NewObject },
    /// Gives a file another name.
    Link { gfid: [u8; 16], place: Place, time: Timestamp },
    /// Takes a name from a file.
    Unlink { gfid: [u8; 16], place: Place, rest: Rest, time: Timestamp },
    /// Removes an empty directory or a copy of one, with its claims.
    RemoveDir { gfid: [u8; 16], place: Place },
    /// Moves a name; what the new name held on this set is replaced.
    Move { gfid: [u8; 16], from: Place, to: Place, replaced: Option<([u8; 16], Rest)>, time: Timestamp },
    /// Swaps two names of this set.
    Exchange { first: [u8; 16], from: Place, second: [u8; 16], to: Place, time: Timestamp },
    /// Stores a claim: the name belongs to an object that lives on another set.
    PutClaim { place: Place, gfid: [u8; 16], home: SetId },
    /// Removes a claim.
    DropClaim { place: Place },
    /// Entries of this directory changed; `subdirs` is the new number of subdirectories.
    TouchDir { gfid: [u8; 16], time: Timestamp, subdirs: Option<u32> },
    /// Changes attributes; `time` is the ctime. Sizes also set mtime to `time`.
    SetAttr {
        gfid: [u8; 16],
        perm: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<Timestamp>,
        mtime: Option<Timestamp>,
        time: Timestamp,
    },
    /// Sets (or with `None` removes) an extended attribute.
    Xattr { gfid: [u8; 16], name: Vec<u8>, value: Option<Vec<u8>>, time: Timestamp },
    /// Writes data that are not in the log: a retry brings them again.
    Write { gfid: [u8; 16], offset: u64, length: u32, append: bool },
    /// fallocate(2).
    Fallocate { gfid: [u8; 16], mode: i32, offset: u64, length: u64 },
}

/// What a retry of the request is answered with.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// The object of the operation and its home.
    pub object: Option<([u8; 16], SetId)>,
    /// The parent directory and its home.
    pub parent: Option<([u8; 16], SetId)>,
    /// The new parent directory and its home.
    pub new_parent: Option<([u8; 16], SetId)>,
    /// Bytes and offset of a write.
    pub written: Option<(u32, u64)>,
    /// The effect was taken back: a retry runs as if new.
    pub aborted: bool,
}

/// One record of the effect log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Effect {
    /// Orders the effects of all sets of a volume on one node.
    pub stamp: u64,
    /// Epoch of the set's position.
    pub epoch: u64,
    /// Sequence number of the set's position.
    pub seq: u64,
    /// The client that asked; zero for none.
    pub client: [u8; 16],
    /// Its request number.
    pub request: u64,
    /// The steps, in order.
    pub steps: Vec<(SetId, Step)>,
    /// The answer.
    pub outcome: Outcome,
}

impl Effect {
    /// The client that asked.
    pub fn client(&self) -> ClientId {
        ClientId(self.client)
    }
}
