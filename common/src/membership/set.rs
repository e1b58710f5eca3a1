//! What can be asked of a set's membership, and what always holds of it.

use crate::cluster::map::{MemberMap, SetMap};
use crate::ids::{BrickId, SetId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Why a member leaves in_sync.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaveReason {
    /// Nobody reaches it.
    Lost,
    /// Its disk failed a flush, or an effect that others applied (R8). It comes back by a catch-up only.
    Failed,
    /// It is too slow (PROTOCOL 38).
    Slow,
    /// It alone has no space left (PROTOCOL 22).
    Full,
}

/// A reset by an operator who accepted a loss (PROTOCOL 23).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SetReset {
    /// The epoch that began with it.
    pub epoch: u64,
    /// The member whose contents are the set's since.
    pub from: BrickId,
    /// The last change that this member knows to have been acknowledged, in milliseconds since 1970.
    pub last_acked_ms: Option<u64>,
}

/// How a member stands to its set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It has every acknowledged change.
    InSync,
    /// It is being brought there.
    CatchingUp,
    /// It may be any way behind.
    Out,
}

/// The fewest members by which a set of so many acknowledges a change: one of two, else a majority.
pub fn min_in_sync(members: usize) -> usize {
    match members {
        0..=2 => 1,
        _ => members / 2 + 1,
    }
}

impl SetMap {
    /// A new set: everybody in sync, the first member leads.
    pub fn first(id: SetId, members: Vec<MemberMap>) -> SetMap {
        SetMap {
            id,
            epoch: 1,
            primary: members[0].brick,
            in_sync: members.iter().map(|member| member.brick).collect(),
            members,
            catching_up: Vec::new(),
            held: BTreeMap::new(),
            last_reset: None,
        }
    }

    /// The member of this id.
    pub fn member(&self, brick: BrickId) -> Option<&MemberMap> {
        self.members.iter().find(|member| member.brick == brick)
    }

    /// How a brick stands to the set, `None` if it is not of it.
    pub fn standing(&self, brick: BrickId) -> Option<Standing> {
        self.member(brick)?;
        Some(match (self.in_sync.contains(&brick), self.catching_up.contains(&brick)) {
            (true, _) => Standing::InSync,
            (false, true) => Standing::CatchingUp,
            (false, false) => Standing::Out,
        })
    }

    /// The fewest members by which this set acknowledges a change.
    pub fn min_in_sync(&self) -> usize {
        min_in_sync(self.members.len())
    }

    /// Whether the set takes no changes: a member that it needs is known to be lost or broken, or it was
    /// reset and the others are not back yet (PROTOCOL 23).
    pub fn is_read_only(&self) -> bool {
        !self.held.is_empty() || self.in_sync.len() < self.min_in_sync()
    }

    /// The members that may lead after `lost`, in order of preference: in sync (R4) and not held.
    pub fn successors(&self, lost: BrickId) -> impl Iterator<Item = &MemberMap> {
        let may_lead = move |brick: &BrickId| *brick != lost && !self.held.contains_key(brick);
        self.in_sync.iter().filter(move |brick| may_lead(brick)).filter_map(|brick| self.member(*brick))
    }

    /// What always holds; a broken one is our own mistake.
    pub(super) fn check(&self) {
        let known = |brick: &BrickId| self.member(*brick).is_some();
        assert!(self.in_sync.contains(&self.primary), "the primary is in sync: {self:?}");
        assert!(self.in_sync.iter().all(known) && self.catching_up.iter().all(known), "members: {self:?}");
        assert!(!self.catching_up.iter().any(|brick| self.in_sync.contains(brick)), "one standing: {self:?}");
        assert!(self.held.keys().all(|brick| self.in_sync.contains(brick)), "held are in sync: {self:?}");
    }
}
