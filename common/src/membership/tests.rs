//! Transitions and leases, one rule each. What they give together is in `sim`.

use crate::cluster::map::{MemberMap, SetMap};
use crate::ids::{BrickId, NodeId, SetId};
use crate::membership::lease::{Grant, GrantRequest, Lease, NoGrant};
use crate::membership::set::{LeaveReason, Standing, min_in_sync};
use crate::membership::transition::{SetChange, SetRefusal, apply_change, apply_node_loss};
use proptest::prelude::prop;
use proptest::{prop_assert, proptest};
use std::collections::BTreeSet;

const A: BrickId = BrickId([0; 16]);
const B: BrickId = BrickId([1; 16]);
const C: BrickId = BrickId([2; 16]);

/// Members A, B, C, ..., each on a node of its own.
fn set_of(members: u8) -> SetMap {
    let member = |i| MemberMap {
        brick: BrickId([i; 16]),
        incarnation: 1,
        node: NodeId([i; 16]),
        node_name: format!("n{i}"),
        path: "/b".to_owned(),
    };
    SetMap::first(SetId(0), (0..members).map(member).collect())
}

fn change(set: &SetMap, change: SetChange) -> Result<SetMap, SetRefusal> {
    apply_change(set, set.epoch, &change)
}

fn remove(brick: BrickId, successor: Option<BrickId>) -> SetChange {
    SetChange::RemoveMember { brick, reason: LeaveReason::Lost, successor }
}

fn done(set: &SetMap, changes: &[SetChange]) -> SetMap {
    changes.iter().fold(set.clone(), |set, one| change(&set, *one).unwrap())
}

fn rejoin(brick: BrickId, incarnation: u64) -> [SetChange; 2] {
    [SetChange::StartCatchUp { brick, incarnation }, SetChange::JoinInSync { brick, incarnation }]
}

#[test] // R3
fn members_leave_down_to_the_least_and_are_held_there() {
    assert_eq!([1, 2, 3, 4, 5].map(min_in_sync), [1, 1, 2, 3, 3]);
    let two = change(&set_of(3), remove(C, None)).unwrap();
    assert_eq!((two.epoch, two.in_sync.as_slice(), two.is_read_only()), (2, [A, B].as_slice(), false));
    let held = change(&two, remove(B, None)).unwrap();
    assert_eq!((held.epoch, held.in_sync.as_slice(), held.is_read_only()), (2, [A, B].as_slice(), true));
    // Either brings the set back: B itself, or C after a catch-up, and then B goes.
    assert!(!change(&held, SetChange::MemberBack { brick: B }).unwrap().is_read_only());
    let joined = done(&held, &rejoin(C, 1));
    assert_eq!((joined.epoch, joined.in_sync.as_slice(), joined.is_read_only()), (3, [A, C].as_slice(), false));
    assert_eq!(joined.standing(B), Some(Standing::Out));
}

#[test] // R4
fn only_a_member_in_sync_leads() {
    let set = done(&set_of(3), &[remove(C, None)]);
    assert_eq!(change(&set, SetChange::PromotePrimary { brick: C }), Err(SetRefusal::CannotLead(C)));
    assert_eq!(change(&set, SetChange::PromotePrimary { brick: A }), Err(SetRefusal::PrimaryAlready(A)));
    assert_eq!(change(&set, remove(A, Some(C))), Err(SetRefusal::CannotLead(C)));
    let catching = change(&set, SetChange::StartCatchUp { brick: C, incarnation: 1 }).unwrap();
    assert_eq!(change(&catching, SetChange::PromotePrimary { brick: C }), Err(SetRefusal::CannotLead(C)));
    let promoted = change(&set, SetChange::PromotePrimary { brick: B }).unwrap();
    assert_eq!((promoted.primary, promoted.epoch, promoted.in_sync.len()), (B, 3, 2));
    let stranger = BrickId([77; 16]);
    assert_eq!(change(&set, SetChange::PromotePrimary { brick: stranger }), Err(SetRefusal::NoSuchMember(stranger)));
}

#[test] // R2
fn what_was_decided_in_another_epoch_is_refused() {
    let old = set_of(3);
    let set = change(&old, remove(C, None)).unwrap();
    let stale = SetRefusal::StaleEpoch { decided: 1, current: 2 };
    for late in [remove(B, None), SetChange::PromotePrimary { brick: B }, rejoin(C, 1)[0]] {
        assert_eq!(apply_change(&set, old.epoch, &late), Err(stale.clone()));
        assert!(apply_change(&set, set.epoch + 1, &late).is_err());
    }
}

#[test] // PROTOCOL 18, R7
fn a_member_joins_only_after_a_catch_up_of_the_disk_that_it_has() {
    let set = change(&set_of(3), remove(C, None)).unwrap();
    let [start, join] = rejoin(C, 1);
    assert_eq!(change(&set, join), Err(SetRefusal::NotCatchingUp(C)));
    let catching = change(&set, start).unwrap();
    assert_eq!((catching.epoch, catching.standing(C)), (2, Some(Standing::CatchingUp)));
    let wiped = change(&catching, SetChange::RenewBrick { brick: C, incarnation: 1, successor: None }).unwrap();
    assert_eq!((wiped.standing(C), wiped.member(C).unwrap().incarnation), (Some(Standing::Out), 2));
    assert!(matches!(change(&wiped, start), Err(SetRefusal::OtherIncarnation { given: 1, current: 2, .. })));
    let back = done(&wiped, &rejoin(C, 2));
    assert_eq!((back.epoch, back.in_sync.len()), (4, 3));
    assert_eq!(change(&back, rejoin(C, 2)[0]), Err(SetRefusal::InSyncAlready(C)));
    // A join that is under way when the catch-up is given up does not come true in a later one.
    let given_up = change(&catching, remove(C, None)).unwrap();
    assert_eq!((given_up.standing(C), given_up.epoch), (Some(Standing::Out), 3));
    let again = change(&given_up, start).unwrap();
    assert!(matches!(apply_change(&again, catching.epoch, &join), Err(SetRefusal::StaleEpoch { .. })));
}

#[test] // R7
fn a_wiped_member_that_the_set_needs_is_not_renewed() {
    let renew = |brick, successor| SetChange::RenewBrick { brick, incarnation: 1, successor };
    let set = set_of(3);
    let without = change(&set, renew(A, Some(B))).unwrap();
    assert_eq!((without.primary, without.in_sync.as_slice(), without.epoch), (B, [B, C].as_slice(), 2));
    assert_eq!(change(&set, renew(A, None)), Err(SetRefusal::Needed(A)));
    assert_eq!(change(&without, renew(C, None)), Err(SetRefusal::Needed(C)));
    assert_eq!(change(&set_of(1), renew(A, None)), Err(SetRefusal::Needed(A)));
}

#[test] // R8, PROTOCOL 23
fn the_last_member_stays_and_is_marked() {
    let failed = SetChange::RemoveMember { brick: A, reason: LeaveReason::Failed, successor: None };
    let marked = change(&set_of(1), failed).unwrap();
    assert_eq!((marked.epoch, marked.held.get(&A)), (1, Some(&LeaveReason::Failed)));
    assert!(marked.is_read_only());
    let lost = change(&marked, remove(A, None)).unwrap();
    assert_eq!(change(&lost, SetChange::MemberBack { brick: A }), Err(SetRefusal::HasFailed(A)));
    let handed =
        change(&set_of(2), SetChange::RemoveMember { brick: A, reason: LeaveReason::Failed, successor: Some(B) });
    assert_eq!((handed.clone().unwrap().primary, handed.unwrap().in_sync), (B, vec![B]));
}

#[test] // PROTOCOL 23
fn a_reset_gives_up_the_others_only_when_they_are_known_to_be_gone() {
    let reset = |from, accept_loss| SetChange::ResetSet { from, accept_loss, last_acked_ms: Some(7) };
    let set = done(&set_of(3), &[remove(C, None)]);
    assert_eq!(change(&set, reset(C, true)), Err(SetRefusal::NotStuck(A)));
    let stuck = done(&set, &[remove(A, None), remove(B, None)]);
    assert_eq!(change(&stuck, reset(C, false)), Err(SetRefusal::LossNotAccepted));
    let after = change(&stuck, reset(C, true)).unwrap();
    assert_eq!((after.primary, after.in_sync.as_slice(), after.epoch), (C, [C].as_slice(), stuck.epoch + 1));
    assert_eq!(after.members.iter().map(|member| member.incarnation).collect::<Vec<_>>(), [2, 2, 1]);
    assert!(after.is_read_only() && after.last_reset.unwrap().last_acked_ms == Some(7));
    assert!(!done(&after, &rejoin(A, 2)).is_read_only());
}

#[test] // R3, R4, cost 7
fn the_loss_of_a_node_hands_the_lead_to_one_that_is_there() {
    let nodes = |ids: &[u8]| ids.iter().map(|id| NodeId([*id; 16])).collect::<BTreeSet<_>>();
    let set = set_of(3);
    let lost = apply_node_loss(&set, NodeId([0; 16]), &nodes(&[2]));
    assert_eq!((lost.primary, lost.in_sync.as_slice(), lost.epoch), (C, [B, C].as_slice(), 2));
    let both = apply_node_loss(&lost, NodeId([1; 16]), &nodes(&[2]));
    assert_eq!((both.in_sync.as_slice(), both.is_read_only()), ([B, C].as_slice(), true));
    // Nobody is there to lead: the set waits (R4).
    let alone = apply_node_loss(&both, NodeId([2; 16]), &nodes(&[]));
    assert_eq!((alone.primary, alone.epoch, alone.held.len()), (C, 2, 2));
    let back = change(&alone, SetChange::PromotePrimary { brick: B }).unwrap();
    assert_eq!((back.primary, back.held.len(), back.in_sync.len()), (B, 1, 2));
    assert_eq!(apply_node_loss(&set, NodeId([9; 16]), &nodes(&[])), set);
}

const LEASE: u64 = 1000;

fn lease(me: BrickId, set: &SetMap) -> Lease {
    Lease::new(me, LEASE, 1, 0, set)
}

#[test] // R5
fn a_primary_serves_while_every_member_in_sync_has_granted() {
    let set = set_of(3);
    let (mut a, mut b, mut c) = (lease(A, &set), lease(B, &set), lease(C, &set));
    let request = a.request(2000).unwrap();
    a.on_grant(2001, &b.on_request(5000, &request).unwrap());
    assert!(!a.may_serve(2001) && a.missing(2001).eq([C]));
    a.on_grant(2400, &c.on_request(0, &request).unwrap());
    assert!(a.may_serve(2999) && !a.may_serve(3000));
    // A late repetition gives nothing new, a removed member is not needed.
    a.on_grant(2990, &Grant { epoch: 1, from: B, run: 1, sent_ms: 2000 });
    assert!(!a.may_serve(3000));
    a.on_map(&change(&set, remove(C, None)).unwrap());
    let request = a.request(3000).unwrap();
    a.on_grant(3001, &Grant { epoch: request.epoch, from: B, run: 1, sent_ms: request.sent_ms });
    assert!(a.may_serve(3001) && b.request(9).is_none());
}

#[test] // R5
fn a_member_leads_only_after_its_own_grant_and_a_process_after_a_whole_lease() {
    let set = set_of(2);
    let mut b = lease(B, &set);
    b.on_request(5000, &lease(A, &set).request(7).unwrap()).unwrap();
    b.on_map(&change(&set, remove(A, Some(B))).unwrap());
    assert!(b.holds_grants(5001) && !b.may_serve(6099) && b.may_serve(6100));
    let alone = lease(A, &set_of(1));
    assert!(alone.may_serve(0), "a set of one member needs no lease");
    let restarted = lease(B, &change(&set, remove(A, Some(B))).unwrap());
    assert!(!restarted.may_serve(1099) && restarted.may_serve(1100));
}

#[test] // R2
fn grants_are_of_one_epoch_one_process_and_one_primary() {
    let set = set_of(2);
    let (mut a, mut b) = (lease(A, &set), lease(B, &set));
    let request = a.request(2000).unwrap();
    let newer = change(&set, SetChange::PromotePrimary { brick: B }).unwrap();
    assert_eq!(b.on_request(1, &GrantRequest { epoch: 2, ..request }), Err(NoGrant::Behind));
    assert_eq!(b.on_request(1, &GrantRequest { from: C, ..request }), Err(NoGrant::NotPrimary));
    b.on_map(&newer);
    assert_eq!(b.on_request(1, &request), Err(NoGrant::Stale { epoch: 2 }));
    b.on_map(&set);
    assert_eq!(b.epoch(), 2);
    let good = Grant { epoch: 1, from: B, run: 1, sent_ms: 2000 };
    for bad in [
        Grant { run: 2, ..good },
        Grant { epoch: 2, ..good },
        Grant { from: C, ..good },
        Grant { sent_ms: 9999, ..good },
    ] {
        a.on_grant(2001, &bad);
        assert!(!a.may_serve(2001), "{bad:?}");
    }
    a.on_grant(2001, &good);
    assert!(a.may_serve(2001));
    // Who leads again has to be granted again.
    a.on_map(&newer);
    a.on_map(&change(&newer, SetChange::PromotePrimary { brick: A }).unwrap());
    assert!(!a.may_serve(2001));
}

#[test] // PROTOCOL 15 with 18
fn who_is_about_to_join_has_to_grant_as_well() {
    let alone = done(&set_of(2), &[remove(B, None)]);
    let catching = change(&alone, rejoin(B, 1)[0]).unwrap();
    let mut a = lease(A, &alone);
    a.on_map(&catching);
    assert!(a.may_serve(5000) && !a.needs(B));
    a.expect(B);
    assert!(!a.may_serve(5000) && a.needs(B) && a.missing(5000).eq([B]));
    let mut b = lease(B, &catching);
    a.on_grant(5001, &b.on_request(9, &a.request(5000).unwrap()).unwrap());
    assert!(a.may_serve(5001));
    // A process that starts does not know what a former one asked for, until the next epoch.
    let mut again = lease(A, &catching);
    assert!(again.needs(B) && !again.may_serve(5000));
    again.on_map(&change(&catching, remove(B, None)).unwrap());
    assert!(!again.needs(B) && again.may_serve(5000));
}

fn any_change(pick: (u8, u8, u8, u8)) -> SetChange {
    let (brick, other) = (BrickId([pick.1; 16]), BrickId([pick.2; 16]));
    let (incarnation, successor) = (1 + u64::from(pick.3 % 2), (pick.3 > 2).then_some(other));
    let reason =
        [LeaveReason::Lost, LeaveReason::Failed, LeaveReason::Slow, LeaveReason::Full][usize::from(pick.3 % 4)];
    match pick.0 {
        0..=2 => SetChange::RemoveMember { brick, reason, successor },
        3 => SetChange::PromotePrimary { brick },
        4 | 5 => SetChange::StartCatchUp { brick, incarnation },
        6 | 7 => SetChange::JoinInSync { brick, incarnation },
        8 => SetChange::MemberBack { brick },
        9 => SetChange::RenewBrick { brick, incarnation, successor },
        _ => SetChange::ResetSet { from: brick, accept_loss: true, last_acked_ms: None },
    }
}

proptest! {
    #[test] // R2, R3, R4, R7
    fn no_order_of_changes_breaks_a_set(
        members in 1u8..6,
        picks in prop::collection::vec((0u8..11, 0u8..6, 0u8..6, 0u8..6), 0..60),
    ) {
        let mut set = set_of(members);
        for pick in picks {
            let one = any_change(pick);
            let Ok(next) = change(&set, one) else { continue };
            let is_reset = matches!(one, SetChange::ResetSet { .. });
            let stays = (next.primary, &next.in_sync) == (set.primary, &set.in_sync);
            prop_assert!(next.epoch == set.epoch + 1 || (next.epoch == set.epoch && stays));
            prop_assert!(is_reset || next.in_sync.len() >= next.min_in_sync().min(set.in_sync.len()));
            prop_assert!(is_reset || set.in_sync.contains(&next.primary), "R4: {one:?} on {set:?}");
            for joined in next.in_sync.iter().filter(|brick| !set.in_sync.contains(brick)) {
                prop_assert!(is_reset || set.catching_up.contains(joined));
            }
            for given_up in set.catching_up.iter().filter(|brick| next.standing(**brick) == Some(Standing::Out)) {
                prop_assert!(next.epoch > set.epoch, "a join of {given_up} may be under way");
            }
            for (old, new) in set.members.iter().zip(&next.members) {
                let is_wiped = new.incarnation > old.incarnation;
                prop_assert!(new.incarnation >= old.incarnation);
                prop_assert!(!is_wiped || next.standing(new.brick) == Some(Standing::Out));
            }
            set = next;
        }
    }
}

#[test]
fn a_map_of_before_still_reads_and_one_of_now_reads_back() {
    let golden = include_str!("../cluster/golden_state_v1.json");
    let state = crate::cluster::stored::read_state(golden.as_bytes()).unwrap();
    let set = &state.volumes["demo"].map.sets[0];
    assert!(set.catching_up.is_empty() && set.held.is_empty() && set.last_reset.is_none() && !set.is_read_only());
    let busy = done(&set_of(3), &[remove(C, None), rejoin(C, 1)[0], remove(B, None)]);
    assert_eq!(serde_json::from_str::<SetMap>(&serde_json::to_string(&busy).unwrap()).unwrap(), busy);
}
