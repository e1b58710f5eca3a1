//! The oracle bites: each of these breaks a rule behind the product's back, and some history shows it.

use super::network::Meddle;
use super::{Sim, judge};
use crate::brick::effect::Item;
use crate::brick::volume::{PeerCall, PeerReply};

/// Histories among which one has to show it.
const SEEDS: u64 = 300;

fn is_noticed(meddle: fn() -> Option<Meddle>, loses_commits: bool) -> bool {
    // What the product reports of it on the way is expected.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let notices = |seed: &u64| {
        let mut sim = Sim::new(*seed, false);
        sim.cluster.loses_commits = loses_commits;
        sim.cluster.shared.lock().meddle = meddle();
        !judge(&mut sim).is_empty()
    };
    let noticed = (0..SEEDS).find(notices);
    std::panic::set_hook(hook);
    noticed.is_some()
}

#[test] // PROTOCOL 5
fn a_finish_that_never_arrives_is_noticed() {
    let never = || -> Option<Meddle> {
        Some(Box::new(|call| match call {
            PeerCall::Finish { .. } => Err(PeerReply::DoneIn { life: 0 }),
            other => Ok(other),
        }))
    };
    assert!(is_noticed(never, false));
}

#[test] // PROTOCOL 6
fn a_home_that_confirms_every_claim_is_noticed() {
    let always = || -> Option<Meddle> {
        Some(Box::new(|call| match call {
            PeerCall::Confirm { gfid, .. } => Ok(PeerCall::GetAttr { gfid }),
            other => Ok(other),
        }))
    };
    assert!(is_noticed(always, false));
}

#[test] // PROTOCOL 5, 8
fn commits_that_a_restart_loses_are_noticed() {
    assert!(is_noticed(|| None, true));
}

#[test] // PROTOCOL 5
fn an_abort_that_is_taken_for_a_commit_is_noticed() {
    let commits = || -> Option<Meddle> {
        Some(Box::new(|call| match call {
            PeerCall::Finish { tx, items, .. } => Ok(PeerCall::Finish { tx, is_committed: true, items }),
            other => Ok(other),
        }))
    };
    assert!(is_noticed(commits, false));
}

#[test] // PROTOCOL 9
fn a_closing_that_is_ignored_is_noticed() {
    let ignores = || -> Option<Meddle> {
        Some(Box::new(|call| match call {
            PeerCall::Prepare { items, .. } if items.iter().all(|item| matches!(item, Item::Close { .. })) => {
                Err(PeerReply::Prepared { olds: Vec::new(), is_held: false })
            }
            other => Ok(other),
        }))
    };
    assert!(is_noticed(ignores, false));
}
