//! The lease inside a set (R5, PROTOCOL 15): whether this member may serve as primary now.
//!
//! ```text
//!   primary                                   another member in sync
//!      │  GrantRequest(epoch, sent_ms)                │
//!      ├─────────────────────────────────────────────▶│ promises not to lead for 1.1 x duration
//!      │                             Grant(sent_ms)   │ from its receipt
//!      │◀─────────────────────────────────────────────┤
//!      │ counts on it for duration from its sending   │
//! ```
//!
//! The holder counts from earlier and for less than the granter, so the promise outlasts the reliance even
//! where the clocks' rates differ by some percent. A primary serves while it holds the unexpired grants of
//! all other members in sync; a member leads only after what it granted has run out, and a process that
//! does not remember what it granted only after one whole lease.
//!
//! A member that is about to join counts like one in sync from the moment the primary asks for its join, for
//! grants as for acknowledgements (PROTOCOL 18): the join may have been committed, the joiner promoted and
//! this primary removed before it hears of any of it. Without this a primary that was in sync alone, and
//! therefore served without grants, served beside the new one. A process that starts does not know what a
//! former one asked for: it takes every member that catches up for such a one, until the next epoch.
//!
//! Times are of the member's own clock that only goes forward and also counts while the machine sleeps
//! (CLOCK_BOOTTIME): a process that was stopped finds its grants run out when it goes on. The caller asks
//! `may_serve` after it has read the data and before it replies.
//!
//! Members other than the primary do not serve reads yet. When they do, a primary has to grant as well, and
//! to acknowledge without a removed member only after its last grant to that one has run out.

use crate::cluster::map::SetMap;
use crate::ids::BrickId;
use std::collections::{BTreeMap, BTreeSet};

/// The default length of a lease.
pub const LEASE_MS: u64 = 2_000;
/// How often a primary asks for its grants again.
pub const RENEW_MS: u64 = 500;

/// A primary asks for a grant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GrantRequest {
    /// Its epoch.
    pub epoch: u64,
    /// The primary.
    pub from: BrickId,
    /// Its process: an answer to a former process of this brick counts for nothing.
    pub run: u64,
    /// When it sent this, by its own clock.
    pub sent_ms: u64,
}

/// A member grants: it does not lead for longer than the primary counts on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Grant {
    /// The epoch of the request.
    pub epoch: u64,
    /// The member.
    pub from: BrickId,
    /// The process that asked.
    pub run: u64,
    /// `sent_ms` of the request.
    pub sent_ms: u64,
}

/// Why a grant is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoGrant {
    /// The request is of a lower epoch (R2): who asks should look for the map.
    Stale {
        /// The epoch in force here.
        epoch: u64,
    },
    /// The request is of a higher epoch: look for the map, it will be asked again.
    Behind,
    /// Who asks does not lead in this epoch.
    NotPrimary,
}

/// The lease of one member of a set.
#[derive(Clone, Debug)]
pub struct Lease {
    me: BrickId,
    duration_ms: u64,
    run: u64,
    started_ms: u64,
    epoch: u64,
    primary: BrickId,
    members: usize,
    /// The other members in sync, and those that may have joined them.
    others: BTreeSet<BrickId>,
    /// Until when this member may count on another one's grant.
    held_until_ms: BTreeMap<BrickId, u64>,
    /// Until when another member may count on this one's, with the margin.
    given_until_ms: BTreeMap<BrickId, u64>,
}

impl Lease {
    /// The lease of a process that started now. `run` is another number in each process. `set` must not be older
    /// than what a former process of this member acted on: it is on the disk before anybody acts on it (R2).
    pub fn new(me: BrickId, duration_ms: u64, run: u64, now_ms: u64, set: &SetMap) -> Lease {
        let mut lease = Lease {
            me,
            duration_ms,
            run,
            started_ms: now_ms,
            epoch: 0,
            primary: set.primary,
            members: 0,
            others: BTreeSet::new(),
            held_until_ms: BTreeMap::new(),
            given_until_ms: BTreeMap::new(),
        };
        lease.on_map(set);
        if set.primary == me {
            lease.others.extend(&set.catching_up);
        }
        lease
    }

    /// From now on this member is needed as well, until the next epoch: before its join is asked for.
    pub fn expect(&mut self, joiner: BrickId) {
        self.others.insert(joiner);
    }

    /// Whether a primary needs this other member's grants and acknowledgements.
    pub fn needs(&self, brick: BrickId) -> bool {
        self.others.contains(&brick)
    }

    /// Takes over a newer epoch; an older one is left aside (R2). What was granted stays granted. What is
    /// held stays held only by a primary that goes on leading: it is a promise to this member, not to an epoch.
    pub fn on_map(&mut self, set: &SetMap) {
        if set.epoch <= self.epoch {
            return;
        }
        self.others = set.in_sync.iter().copied().filter(|brick| *brick != self.me).collect();
        let leads_on = self.primary == self.me && set.primary == self.me;
        self.held_until_ms.retain(|brick, _| leads_on && self.others.contains(brick));
        self.epoch = set.epoch;
        self.primary = set.primary;
        self.members = set.members.len();
    }

    /// The epoch in force here.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// What a primary sends every `RENEW_MS` to the other members in sync and to those that catch up.
    pub fn request(&self, now_ms: u64) -> Option<GrantRequest> {
        let asks = self.primary == self.me && self.members > 1;
        asks.then_some(GrantRequest { epoch: self.epoch, from: self.me, run: self.run, sent_ms: now_ms })
    }

    /// Grants what a primary of this epoch asks for. The reply is made after the promise is noted.
    pub fn on_request(&mut self, now_ms: u64, request: &GrantRequest) -> Result<Grant, NoGrant> {
        if request.epoch < self.epoch {
            return Err(NoGrant::Stale { epoch: self.epoch });
        }
        if request.epoch > self.epoch {
            return Err(NoGrant::Behind);
        }
        if request.from != self.primary || request.from == self.me {
            return Err(NoGrant::NotPrimary);
        }
        let until_ms = now_ms.saturating_add(self.given_ms());
        let given = self.given_until_ms.entry(request.from).or_default();
        *given = until_ms.max(*given);
        Ok(Grant { epoch: request.epoch, from: self.me, run: request.run, sent_ms: request.sent_ms })
    }

    /// Takes a grant. One for another process or epoch, from who is not asked, or from the future is left
    /// aside; a late one counts from its request, so it may count for nothing.
    pub fn on_grant(&mut self, now_ms: u64, grant: &Grant) {
        let is_mine = grant.run == self.run && grant.epoch == self.epoch && self.primary == self.me;
        if !is_mine || grant.sent_ms > now_ms || !self.others.contains(&grant.from) {
            return;
        }
        let held = self.held_until_ms.entry(grant.from).or_default();
        *held = grant.sent_ms.saturating_add(self.duration_ms).max(*held);
    }

    /// Whether this member may serve as primary at this moment.
    pub fn may_serve(&self, now_ms: u64) -> bool {
        self.primary == self.me && self.own_grants_are_over(now_ms) && self.holds_grants(now_ms)
    }

    /// Whether every other member that is needed has granted. True where there is none: nobody else can be promoted.
    pub fn holds_grants(&self, now_ms: u64) -> bool {
        self.others.iter().all(|brick| self.held_until_ms.get(brick).is_some_and(|until_ms| *until_ms > now_ms))
    }

    /// Whether nobody can count on a grant of this member any more. A process does not know what a former
    /// one granted and waits; a set with one member has nobody to grant to.
    pub fn own_grants_are_over(&self, now_ms: u64) -> bool {
        let remembers = self.members == 1 || now_ms >= self.started_ms.saturating_add(self.given_ms());
        remembers && self.given_until_ms.values().all(|until_ms| *until_ms <= now_ms)
    }

    /// Who has not granted for the moment: whom a primary that cannot serve is waiting for.
    pub fn missing(&self, now_ms: u64) -> impl Iterator<Item = BrickId> {
        let held = move |brick: &BrickId| self.held_until_ms.get(brick).is_some_and(|until_ms| *until_ms > now_ms);
        self.others.iter().copied().filter(move |brick| !held(brick))
    }

    /// How long a grant binds its giver: a tenth longer than the holder counts on it.
    fn given_ms(&self) -> u64 {
        self.duration_ms + self.duration_ms.div_ceil(10)
    }
}
