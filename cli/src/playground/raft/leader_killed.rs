//! Step 3: the leader is killed, the others cannot reach it, one of them leads; the killed one comes back and follows.

use super::Telling;
use super::observe::{Observer, Reign, find_reign, has_caught_up};
use super::quiet::{names_of, settled};
use crate::clock::span;
use crate::playground::nodes;
use std::time::{Duration, Instant};

/// What it takes is shown; this is when the play gives up.
const ELECTION_WITHIN: Duration = Duration::from_secs(15);
const COMPLAINT_WITHIN: Duration = Duration::from_secs(10);
const RETURN_WITHIN: Duration = Duration::from_secs(30);

pub fn play(observer: &Observer, telling: &mut Telling) -> anyhow::Result<()> {
    let old = settled(observer)?;
    let index = observer.index_of(&old.leader)?;
    nodes::kill(&observer.dir, index)?;
    let killed_at = Instant::now();
    telling.say(format!("{}, the leader of term {}, is killed.", old.leader, old.term))?;

    let others: Vec<String> = names_of(observer)?.into_iter().filter(|name| *name != old.leader).collect();
    let new = wait_for_next(observer, &others, &old)?;
    let elected_after = killed_at.elapsed();
    for asked in &others {
        let complaint = observer.wait_for_complaint(asked, &old.leader, COMPLAINT_WITHIN)?;
        telling.say(format!("{asked} cannot reach {}: {}", old.leader, complaint.reason))?;
        telling.figure(&format!("said_by_{asked}"), complaint.reason.as_str());
    }
    telling.say(format!("{} leads in term {}, {} after the kill.", new.leader, new.term, span(elected_after)))?;

    let pid = nodes::start(&observer.dir, index)?;
    let (leader, killed) = (new.leader.as_str(), old.leader.as_str());
    observer.wait_for(&format!("{killed} back, with the log of {leader}"), RETURN_WITHIN, |report| {
        has_caught_up(report, killed, leader).then_some(())
    })?;
    telling.say(format!("{killed} was started again (pid {pid}), follows {leader} and has its log."))?;
    telling.figure("killed", killed);
    telling.figure("old_term", old.term);
    telling.figure("leader", leader);
    telling.figure("term", new.term);
    telling.figure("elected_after_ms", u64::try_from(elected_after.as_millis()).unwrap_or(u64::MAX));
    Ok(())
}

/// The leader that `others` have after `old`.
pub fn wait_for_next(observer: &Observer, others: &[String], old: &Reign) -> anyhow::Result<Reign> {
    observer.wait_for(&format!("a leader after {}", old.leader), ELECTION_WITHIN, |report| {
        find_reign(report, others, 1, Some(old.term))
    })
}
