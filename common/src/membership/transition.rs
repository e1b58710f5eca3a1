//! The transitions of a set's membership. Each names the epoch that it was decided on and is refused in
//! another one, so that what was decided on an old view changes nothing (R2-R4).
//!
//! The epoch grows with each change of primary or in_sync, and where a catch-up is given up: a join that the
//! primary asked for and does not know the outcome of must not come true after a later catch-up has begun
//! (PROTOCOL 18). What is only noted (who begins to catch up, who is held) leaves the epoch as it is, because
//! every change of it makes leases and streams start anew.

use crate::cluster::map::SetMap;
use crate::ids::{BrickId, NodeId};
pub use crate::membership::refusal::SetRefusal;
use crate::membership::set::{LeaveReason, SetReset, Standing};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// A change of one set's membership.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SetChange {
    /// A member leaves in_sync, before anything is acknowledged without it (R3). Where in_sync has its
    /// least size, or where nobody could lead instead, it is held: the set takes no changes.
    RemoveMember {
        /// The member.
        brick: BrickId,
        /// Why.
        reason: LeaveReason,
        /// Who leads then, if the member led.
        successor: Option<BrickId>,
    },
    /// A member of in_sync leads from now on (R4).
    PromotePrimary {
        /// The member.
        brick: BrickId,
    },
    /// The primary begins to bring a member in sync.
    StartCatchUp {
        /// The member.
        brick: BrickId,
        /// The disk that it has: a wiped one has another (R7).
        incarnation: u64,
    },
    /// The primary says that a member has everything and has flushed it (PROTOCOL 18).
    JoinInSync {
        /// The member.
        brick: BrickId,
        /// The disk that was caught up.
        incarnation: u64,
    },
    /// A member that is held is there again, with all that it had.
    MemberBack {
        /// The member.
        brick: BrickId,
    },
    /// A member's disk was wiped or swapped: it starts again, out and empty (R7).
    RenewBrick {
        /// The member.
        brick: BrickId,
        /// The incarnation that it had.
        incarnation: u64,
        /// Who leads then, if the member led.
        successor: Option<BrickId>,
    },
    /// An operator's last resort: what one member has is the set's, the others start again empty.
    ResetSet {
        /// That member.
        from: BrickId,
        /// Whether the operator said so.
        accept_loss: bool,
        /// The last change that this member knows to have been acknowledged, in milliseconds since 1970.
        last_acked_ms: Option<u64>,
    },
}

/// The set after a change that was decided in `epoch`.
pub fn apply_change(set: &SetMap, epoch: u64, change: &SetChange) -> Result<SetMap, SetRefusal> {
    if epoch != set.epoch {
        return Err(SetRefusal::StaleEpoch { decided: epoch, current: set.epoch });
    }
    set.check();
    let mut next = set.clone();
    match *change {
        SetChange::RemoveMember { brick, reason, successor } => remove_member(&mut next, brick, reason, successor)?,
        SetChange::PromotePrimary { brick } => promote(&mut next, brick)?,
        SetChange::StartCatchUp { brick, incarnation } => start_catch_up(&mut next, brick, incarnation)?,
        SetChange::JoinInSync { brick, incarnation } => join(&mut next, brick, incarnation)?,
        SetChange::MemberBack { brick } => member_back(&mut next, brick)?,
        SetChange::RenewBrick { brick, incarnation, successor } => renew(&mut next, brick, incarnation, successor)?,
        SetChange::ResetSet { from, accept_loss, last_acked_ms } => {
            reset(&mut next, from, accept_loss, last_acked_ms)?;
        }
    }
    settle(&mut next);
    let gives_up = set.catching_up.iter().any(|brick| next.standing(*brick) == Some(Standing::Out));
    if gives_up || (next.primary, &next.in_sync) != (set.primary, &set.in_sync) {
        next.epoch = set.epoch + 1;
    }
    next.check();
    Ok(next)
}

/// The set after the loss of a node: all its members there leave or are held, and if one of them led,
/// another leads whose node is reachable.
pub fn apply_node_loss(set: &SetMap, node: NodeId, reachable: &BTreeSet<NodeId>) -> SetMap {
    let lost: Vec<BrickId> =
        set.members.iter().filter(|member| member.node == node).map(|member| member.brick).collect();
    lost.into_iter().fold(set.clone(), |set, brick| {
        let successor = set.successors(brick).find(|other| other.node != node && reachable.contains(&other.node));
        let successor = successor.map(|other| other.brick).filter(|_| set.primary == brick);
        let remove = SetChange::RemoveMember { brick, reason: LeaveReason::Lost, successor };
        // Refused is only what is out already.
        apply_change(&set, set.epoch, &remove).unwrap_or(set)
    })
}

fn standing(set: &SetMap, brick: BrickId) -> Result<Standing, SetRefusal> {
    set.standing(brick).ok_or(SetRefusal::NoSuchMember(brick))
}

fn check_incarnation(set: &SetMap, brick: BrickId, given: u64) -> Result<(), SetRefusal> {
    let current = set.member(brick).ok_or(SetRefusal::NoSuchMember(brick))?.incarnation;
    match current == given {
        true => Ok(()),
        false => Err(SetRefusal::OtherIncarnation { brick, given, current }),
    }
}

/// Hands the lead over, if this member has it and a successor was named.
fn hand_over(set: &mut SetMap, brick: BrickId, successor: Option<BrickId>) -> Result<(), SetRefusal> {
    let Some(successor) = successor.filter(|_| set.primary == brick) else { return Ok(()) };
    if !set.successors(brick).any(|other| other.brick == successor) {
        return Err(SetRefusal::CannotLead(successor));
    }
    set.primary = successor;
    Ok(())
}

fn remove_member(
    set: &mut SetMap,
    brick: BrickId,
    reason: LeaveReason,
    successor: Option<BrickId>,
) -> Result<(), SetRefusal> {
    match standing(set, brick)? {
        Standing::Out => return Err(SetRefusal::NotInSync(brick)),
        Standing::CatchingUp => set.catching_up.retain(|other| *other != brick),
        Standing::InSync => {
            hand_over(set, brick, successor)?;
            // `settle` lets it leave at once where the set can do without. A failed disk does not get
            // better by being lost as well.
            let worst = if set.held.get(&brick) == Some(&LeaveReason::Failed) { LeaveReason::Failed } else { reason };
            set.held.insert(brick, worst);
        }
    }
    Ok(())
}

/// Lets held members go while more than the least number is in sync. A primary does not go this way: only a
/// member that was in sync before may lead instead (R4), and who that is has to be decided.
fn settle(set: &mut SetMap) {
    while set.in_sync.len() > set.min_in_sync() {
        let Some(brick) = set.in_sync.iter().find(|b| **b != set.primary && set.held.contains_key(b)).copied() else {
            return;
        };
        set.in_sync.retain(|other| *other != brick);
        set.held.remove(&brick);
    }
}

fn promote(set: &mut SetMap, brick: BrickId) -> Result<(), SetRefusal> {
    if standing(set, brick)? != Standing::InSync || set.held.get(&brick) == Some(&LeaveReason::Failed) {
        return Err(SetRefusal::CannotLead(brick));
    }
    if set.primary == brick {
        return Err(SetRefusal::PrimaryAlready(brick));
    }
    set.held.remove(&brick);
    set.primary = brick;
    Ok(())
}

fn start_catch_up(set: &mut SetMap, brick: BrickId, incarnation: u64) -> Result<(), SetRefusal> {
    check_incarnation(set, brick, incarnation)?;
    match standing(set, brick)? {
        Standing::InSync => return Err(SetRefusal::InSyncAlready(brick)),
        Standing::CatchingUp => (),
        Standing::Out => set.catching_up.push(brick),
    }
    Ok(())
}

fn join(set: &mut SetMap, brick: BrickId, incarnation: u64) -> Result<(), SetRefusal> {
    check_incarnation(set, brick, incarnation)?;
    if standing(set, brick)? != Standing::CatchingUp {
        return Err(SetRefusal::NotCatchingUp(brick));
    }
    set.catching_up.retain(|other| *other != brick);
    set.in_sync.push(brick);
    Ok(())
}

fn member_back(set: &mut SetMap, brick: BrickId) -> Result<(), SetRefusal> {
    standing(set, brick)?;
    match set.held.get(&brick) {
        None => return Err(SetRefusal::NotHeld(brick)),
        Some(LeaveReason::Failed) => return Err(SetRefusal::HasFailed(brick)),
        Some(LeaveReason::Lost | LeaveReason::Slow | LeaveReason::Full) => (),
    }
    set.held.remove(&brick);
    Ok(())
}

fn renew(set: &mut SetMap, brick: BrickId, incarnation: u64, successor: Option<BrickId>) -> Result<(), SetRefusal> {
    check_incarnation(set, brick, incarnation)?;
    if standing(set, brick)? == Standing::InSync {
        hand_over(set, brick, successor)?;
        // An empty disk cannot be held in sync: what the set needs of it is gone.
        if set.in_sync.len() <= set.min_in_sync() || set.primary == brick {
            return Err(SetRefusal::Needed(brick));
        }
    }
    set.in_sync.retain(|other| *other != brick);
    set.catching_up.retain(|other| *other != brick);
    set.held.remove(&brick);
    set.members.iter_mut().filter(|member| member.brick == brick).for_each(|member| member.incarnation += 1);
    Ok(())
}

fn reset(set: &mut SetMap, from: BrickId, accept_loss: bool, last_acked_ms: Option<u64>) -> Result<(), SetRefusal> {
    standing(set, from)?;
    if !accept_loss {
        return Err(SetRefusal::LossNotAccepted);
    }
    if let Some(fit) = set.in_sync.iter().find(|brick| **brick != from && !set.held.contains_key(brick)) {
        return Err(SetRefusal::NotStuck(*fit));
    }
    set.primary = from;
    set.in_sync = vec![from];
    set.catching_up.clear();
    set.held.clear();
    set.members.iter_mut().filter(|member| member.brick != from).for_each(|member| member.incarnation += 1);
    set.last_reset = Some(SetReset { epoch: set.epoch + 1, from, last_acked_ms });
    // The epoch grows also where this member led alone before: the others' disks are others now.
    set.epoch += 1;
    Ok(())
}
