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

#[cfg(test)]
mod tests {
    use super::*;

    const A: [u8; 16] = [0xa; 16];
    const B: [u8; 16] = [0xb; 16];

    fn place(parent: [u8; 16], name: &str) -> Place {
        Place { parent, name: name.into() }
    }

    fn position() -> Position {
        Position { epoch: 1, seq: 300 }
    }

    /// Steps on objects and names.
    fn steps_on_names() -> Vec<Step> {
        let object = NewObject {
            gfid: A,
            kind: Kind::Symlink,
            perm: 0o777,
            uid: 1,
            gid: 2,
            project: 3,
            rdev: 4,
            target: b"t".to_vec(),
            access_acl: Some(vec![1]),
            default_acl: None,
        };
        let copy = CopyOf {
            gfid: A,
            home: SetId(1),
            position: position(),
            perm: 0o2755,
            uid: 1,
            gid: 2,
            project: 3,
            default_acl: Some(vec![9]),
        };
        vec![
            Step::Make { place: place(A, "m"), object },
            Step::Copy { place: place(A, "m"), copy: copy.clone() },
            Step::Link { gfid: A, place: place(B, "l") },
            Step::Unlink { gfid: A, place: place(B, "u"), rest: Rest::Linked },
            Step::RemoveDir { gfid: A },
            Step::Move { gfid: A, from: place(A, "f"), to: place(B, "t"), replaced: Some((B, Rest::Orphan)) },
            Step::Exchange { first: A, from: place(A, "f"), second: B, to: place(B, "t") },
            Step::Follow { gfid: A, to: place(B, "t"), position: position() },
            Step::Inherit { copy },
            Step::DropClaim { place: place(A, "c"), gfid: B },
            Step::TouchDir { gfid: A, subdirs: Some(2) },
        ]
    }

    /// Steps on attributes and data.
    fn steps_on_contents() -> Vec<Step> {
        vec![
            Step::SetAttr {
                gfid: A,
                perm: Some(0o644),
                uid: None,
                gid: Some(5),
                size: Some(300),
                atime: Some(Timestamp { sec: -1, nsec: 5 }),
                mtime: None,
            },
            Step::Xattr { gfid: A, name: b"user.x".to_vec(), value: Some(b"v".to_vec()) },
            Step::Write { gfid: A, offset: 300, length: 5, append: true },
            Step::Fallocate { gfid: A, mode: -1, offset: 1, length: 300 },
        ]
    }

    /// Steps of transactions, with every kind of item in them.
    fn steps_of_transactions() -> Vec<Step> {
        let tx = TxId([7; 16]);
        let claim = Claim { gfid: B, home: SetId(3) };
        let items = vec![
            Item::Name { place: place(A, "n"), new: Some(claim), old: Old::Absent },
            Item::Name { place: place(A, "o"), new: None, old: Old::Native(B, Kind::File) },
            Item::Name { place: place(A, "p"), new: None, old: Old::Claim(claim) },
            Item::Drop { place: place(A, "d"), gfid: B },
            Item::Move { gfid: B, from: place(A, "f"), to: place(B, "t") },
            Item::Close { gfid: B },
        ];
        let commitment = Commitment {
            participants: vec![(SetId(2), vec![Item::Close { gfid: B }])],
            change: Some(Change { gfid: A, name: Some(place(B, "c")), position: position() }),
        };
        let rests = vec![None, Some(Rest::Gone)];
        vec![
            Step::Prepare { tx, part: 1, coordinator: SetId(2), items: items.clone() },
            Step::Finish { tx, is_committed: true, items, rests, parts: 1, is_parked: true },
            Step::Release { tx, parts: 1, parked: vec![(0, A, Some(Rest::Gone)), (1, B, None)] },
            Step::Commit { tx, commitment },
            Step::Flushed { tx },
            Step::Forget { tx },
        ]
    }

    /// The bytes of these steps, in their order, as later versions have to read them.
    const GOLDEN: [&str; 21] = [
        "000a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a016d0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a02ff0301020304017401010100",
        "010a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a016d0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0101ac02ed0b010203010109",
        "020a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b016c",
        "030a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b017500",
        "040a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a",
        "050a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a01660b0b0b0b0b0b0b0b0b0b0b0b0b0b0b\
         0b0174010b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b01",
        "060a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a01660b0b0b0b0b0b0b0b0b0b0b0b0b0b0b\
         0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0174",
        "070a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b017401ac02",
        "080a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0101ac02ed0b010203010109",
        "090a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a01630b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b",
        "0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0102",
        "0b0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a01a40300010501ac0201010500",
        "0c0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a06757365722e78010176",
        "0d0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0aac020501",
        "0e0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0101ac02",
        "0f07070707070707070707070707070707010206000a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a016e010b0b0b0b0b0b0b0b0b0b\
         0b0b0b0b0b0b0300000a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a016f00020b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b00000a0a0a\
         0a0a0a0a0a0a0a0a0a0a0a0a0a017000010b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b03010a0a0a0a0a0a0a0a0a0a0a0a0a0a0a\
         0a01640b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b020b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0a0a0a0a0a0a0a0a0a0a0a0a0a0a\
         0a0a01660b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0174030b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b",
        "10070707070707070707070707070707070106000a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a016e010b0b0b0b0b0b0b0b0b0b0b\
         0b0b0b0b0b0300000a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a016f00020b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b00000a0a0a0a\
         0a0a0a0a0a0a0a0a0a0a0a0a017000010b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b03010a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a\
         01640b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b020b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a\
         0a01660b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0174030b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b020001020101",
        "11070707070707070707070707070707070102000a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0102010b0b0b0b0b0b0b0b0b0b0b\
         0b0b0b0b0b00",
        "1207070707070707070707070707070707010201030b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b010a0a0a0a0a0a0a0a0a0a0a0a\
         0a0a0a0a010b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b016301ac02",
        "1307070707070707070707070707070707",
        "1407070707070707070707070707070707",
    ];

    #[test]
    fn every_step_keeps_its_golden_bytes() {
        let steps = [steps_on_names(), steps_on_contents(), steps_of_transactions()].concat();
        assert_eq!(steps.len(), GOLDEN.len());
        for (number, (step, golden)) in steps.iter().zip(GOLDEN).enumerate() {
            let bytes = postcard::to_allocvec(step).unwrap();
            assert_eq!(usize::from(bytes[0]), number, "{step}: a step keeps its number, and none is left out here");
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hex, golden, "{step}");
            assert_eq!(&postcard::from_bytes::<Step>(&bytes).unwrap(), step);
        }
    }

    #[test]
    fn an_outcome_keeps_its_golden_bytes() {
        let outcome = Outcome {
            object: Some((A, SetId(1))),
            parent: None,
            new_parent: Some((B, SetId(2))),
            written: Some((5, 300)),
            aborted: true,
        };
        let hex: String = postcard::to_allocvec(&outcome).unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "010a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0100010b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b020105ac0201");
    }
}
