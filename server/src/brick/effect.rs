//! Effects: what a set has decided, as steps that can be applied again. One decision is one effect of one
//! set: its record in that set's effect log is written before it is applied (PROTOCOL 1), and each step
//! does nothing when it finds itself done (PROTOCOL 20).
//!
//! An operation that concerns several sets is a transaction (PROTOCOL 5): a `Prepare` on the others, a
//! `Commit` together with the change itself on the coordinator's set, a `Finish` on the others, and, once
//! all of it is on the disks, a `Release` there and a `Forget` here (PROTOCOL 8).

use crate::brick::meta::Position;
use brickfs_common::attr::{Kind, Timestamp};
use brickfs_common::ids::{ClientId, Gfid, SetId, TxId};
use brickfs_common::name::Name;
use serde::{Deserialize, Serialize};

/// A directory entry's place: parent directory and name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Place {
    /// Parent directory.
    pub parent: [u8; 16],
    /// Name in it.
    pub name: Vec<u8>,
}

impl Place {
    /// The place of `name` in `parent`.
    pub fn new(parent: Gfid, name: &Name) -> Place {
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
}

/// What a copy of a directory has of its home, so that this set can compute what children inherit
/// (PROTOCOL 27).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CopyOf {
    /// The directory.
    pub gfid: [u8; 16],
    /// Its home.
    pub home: SetId,
    /// Position at the home that this is known from.
    pub position: Position,
    /// Permission bits; only the setgid bit counts here.
    pub perm: u32,
    /// Owner, for who looks at the brick.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Project number.
    pub project: u32,
    /// POSIX default ACL.
    pub default_acl: Option<Vec<u8>>,
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

/// A claim: a name belongs to an object that is homed on another set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Claim {
    /// The object.
    pub gfid: [u8; 16],
    /// Its home.
    pub home: SetId,
}

/// What a name held by a transaction was before.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Old {
    /// There was nothing.
    Absent,
    /// A claim.
    Claim(Claim),
    /// An object homed here.
    Native([u8; 16], Kind),
}

/// What a transaction means for one of its participants.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Item {
    /// This dentry set's name is held. Afterwards it has the claim `new`, or with `None` no claim (the
    /// name is gone, or it is the coordinator's own object on this set).
    Name { place: Place, new: Option<Claim>, old: Old },
    /// A file that is homed here loses a name.
    Drop { place: Place, gfid: [u8; 16] },
    /// An object that is homed here gets another name (the other half of an exchange).
    Move { gfid: [u8; 16], from: Place, to: Place },
    /// A directory takes no new entry, and afterwards is removed here.
    Close { gfid: [u8; 16] },
}

/// One participant of a transaction: a set and what it has to do.
pub type Participant = (SetId, Vec<Item>);

/// What a set remembers of a transaction that it has committed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Commitment {
    /// What the others have to do.
    pub participants: Vec<Participant>,
    /// The change here, which a power loss may lose while it keeps the commitment.
    pub change: Option<Change>,
}

/// How to see whether a commit has changed its object.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Change {
    /// The object.
    pub gfid: [u8; 16],
    /// The name that it has got; `None`: it is gone.
    pub name: Option<Place>,
    /// The effect's position, which the object's record gets last.
    pub position: Position,
}

/// One step on one set.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[allow(missing_docs)] // fields are those of the step's sentence
pub enum Step {
    /// Makes an object under its first name.
    Make { place: Place, object: NewObject },
    /// Makes a copy of a directory that is homed elsewhere.
    Copy { place: Place, copy: CopyOf },
    /// Gives a file another name.
    Link { gfid: [u8; 16], place: Place },
    /// Takes a name from a file.
    Unlink { gfid: [u8; 16], place: Place, rest: Rest },
    /// Removes an empty directory or a copy of one, with its claims.
    RemoveDir { gfid: [u8; 16] },
    /// Moves a name; what the new name held on this set is replaced.
    Move { gfid: [u8; 16], from: Place, to: Place, replaced: Option<([u8; 16], Rest)> },
    /// Swaps two names of this set.
    Exchange { first: [u8; 16], from: Place, second: [u8; 16], to: Place },
    /// Moves the copy of a directory to where its home has it (PROTOCOL 26).
    Follow { gfid: [u8; 16], to: Place, position: Position },
    /// Takes over what children of a directory inherit (PROTOCOL 27).
    Inherit { copy: CopyOf },
    /// Removes a claim that the home has denied.
    DropClaim { place: Place, gfid: [u8; 16] },
    /// Entries of this directory changed on this set; `subdirs` is how many subdirectories are homed on
    /// it now. At the directory's home its times change too.
    TouchDir { gfid: [u8; 16], subdirs: Option<u32> },
    /// Changes attributes. A size also sets mtime.
    SetAttr {
        gfid: [u8; 16],
        perm: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<Timestamp>,
        mtime: Option<Timestamp>,
    },
    /// Sets (or with `None` removes) an extended attribute.
    Xattr { gfid: [u8; 16], name: Vec<u8>, value: Option<Vec<u8>> },
    /// Writes data that are not in the log: a retry brings them again.
    Write { gfid: [u8; 16], offset: u64, length: u32, append: bool },
    /// fallocate(2).
    Fallocate { gfid: [u8; 16], mode: i32, offset: u64, length: u64 },
    /// Remembers what a transaction holds here.
    Prepare { tx: TxId, part: u16, coordinator: SetId, items: Vec<Item> },
    /// Does what a committed transaction means here, or with `is_committed` false undoes it. `rests` has
    /// one entry for each item, set where a file loses a name. With `is_parked` what is taken away is kept
    /// until `Release`, else the `parts` of the preparation go now.
    Finish { tx: TxId, is_committed: bool, items: Vec<Item>, rests: Vec<Option<Rest>>, parts: u16, is_parked: bool },
    /// Lets go what a finished transaction has parked here: (index of the item, object, what becomes of
    /// the file, or `None` for a directory).
    Release { tx: TxId, parts: u16, parked: Vec<(u16, [u8; 16], Option<Rest>)> },
    /// Remembers what others have to do about a transaction that commits with this effect.
    Commit { tx: TxId, commitment: Commitment },
    /// Remembers that all others have finished a transaction on their disks.
    Flushed { tx: TxId },
    /// Forgets a transaction that is on the disks everywhere.
    Forget { tx: TxId },
}

impl Step {
    /// How to see whether the step was done, if it can be seen.
    pub fn change(&self, position: Position) -> Option<Change> {
        let (gfid, name) = match self {
            Step::Link { gfid, place } => (*gfid, Some(place.clone())),
            Step::Move { gfid, to, .. } => (*gfid, Some(to.clone())),
            Step::Exchange { second, from, .. } => (*second, Some(from.clone())),
            Step::RemoveDir { gfid } => (*gfid, None),
            _ => return None,
        };
        Some(Change { gfid, name, position })
    }

    /// The object whose record the step writes last.
    pub fn changed_object(&self) -> Option<Gfid> {
        match self {
            Step::Link { gfid, .. } | Step::Unlink { gfid, .. } | Step::RemoveDir { gfid } => Some(Gfid(*gfid)),
            Step::Move { gfid, .. } | Step::Exchange { second: gfid, .. } => Some(Gfid(*gfid)),
            Step::SetAttr { gfid, .. } | Step::Xattr { gfid, .. } | Step::Fallocate { gfid, .. } => Some(Gfid(*gfid)),
            _ => None,
        }
    }
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

/// When and in which order an effect was decided: what its steps need beside their own fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    /// Position within the set.
    pub position: Position,
    /// The time that it gives to what it changes.
    pub time: Timestamp,
}

/// One record of the effect log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Effect {
    /// Its place in the set's order.
    pub position: Position,
    /// When it was decided.
    pub time: Timestamp,
    /// The client that asked; zero for none.
    pub client: [u8; 16],
    /// Its request number.
    pub request: u64,
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// The answer.
    pub outcome: Outcome,
}

impl Effect {
    /// The client that asked, if one did.
    pub fn client(&self) -> Option<ClientId> {
        (self.client != [0; 16]).then_some(ClientId(self.client))
    }

    /// What its steps need of it.
    pub fn stamp(&self) -> Stamp {
        Stamp { position: self.position, time: self.time }
    }
}

/// The name of a step with its object, for messages.
impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (what, id) = match self {
            Step::Make { object, .. } => ("make", object.gfid),
            Step::Copy { copy, .. } => ("copy", copy.gfid),
            Step::Link { gfid, .. } => ("link", *gfid),
            Step::Unlink { gfid, .. } => ("unlink", *gfid),
            Step::RemoveDir { gfid } => ("remove directory", *gfid),
            Step::Move { gfid, .. } => ("move", *gfid),
            Step::Exchange { first, .. } => ("exchange", *first),
            Step::Follow { gfid, .. } => ("follow", *gfid),
            Step::Inherit { copy } => ("inherit", copy.gfid),
            Step::DropClaim { gfid, .. } => ("drop claim", *gfid),
            Step::TouchDir { gfid, .. } => ("touch directory", *gfid),
            Step::SetAttr { gfid, .. } => ("set attributes", *gfid),
            Step::Xattr { gfid, .. } => ("set xattr", *gfid),
            Step::Write { gfid, .. } => ("write", *gfid),
            Step::Fallocate { gfid, .. } => ("fallocate", *gfid),
            Step::Prepare { tx, .. } => ("prepare", tx.0),
            Step::Finish { tx, .. } => ("finish", tx.0),
            Step::Release { tx, .. } => ("release", tx.0),
            Step::Commit { tx, .. } => ("commit", tx.0),
            Step::Flushed { tx, .. } => ("flushed", tx.0),
            Step::Forget { tx } => ("forget", tx.0),
        };
        write!(f, "{what} {}", Gfid(id))
    }
}
