//! Step 4: a leader is cut off. What it appends cannot be committed; the others elect, and commit other entries at the
//! same indexes in a higher term. When the cut is healed the old leader follows, and its entries are replaced.

use super::Telling;
use super::leader_killed::wait_for_next;
use super::observe::{Observer, Reign, find_reign, give_command, has_caught_up, row};
use super::quiet::{names_of, settled};
use crate::clock::span;
use crate::playground::nodes;
use crate::raft_table::last_log;
use anyhow::{Context as _, bail};
use brickfs_common::cluster::report::RaftMemberReport;
use std::time::{Duration, Instant};

/// How many commands the cut-off leader gets. A new leader begins its term with an entry of its own: with two, the
/// second index is that of the command which the others commit.
const STALE_COMMANDS: u64 = 2;
const APPEND_WITHIN: Duration = Duration::from_secs(5);
/// Lost packets are sent again after growing pauses.
const MERGE_WITHIN: Duration = Duration::from_secs(30);
const REPLICATED_WITHIN: Duration = Duration::from_secs(10);

pub fn play(observer: &Observer, telling: &mut Telling) -> anyhow::Result<()> {
    let old = settled(observer)?;
    let index = observer.index_of(&old.leader)?;
    let before = own_row(observer, &old.leader)?;
    nodes::cut_off(&observer.dir, index, None, false)?;
    let apart = while_cut_off(observer, telling, &old, &before);
    // Healed whatever came of it: a playground of somebody's goes on as it was.
    let healed = nodes::heal(&observer.dir, index);
    let (stale, new) = apart?;
    healed?;
    merge(observer, telling, &old, &new, &stale)
}

/// The stale end of the old leader's log, and who leads the others.
fn while_cut_off(
    observer: &Observer,
    telling: &mut Telling,
    old: &Reign,
    before: &RaftMemberReport,
) -> anyhow::Result<(RaftMemberReport, Reign)> {
    let cut_at = Instant::now();
    // At once: after a while without answers it does not take itself for the leader any more.
    let stale = append_in_vain(observer, &old.leader, before)?;
    telling.say(format!("{}, the leader of term {}, is cut off from the others.", old.leader, old.term))?;
    telling.say(format!(
        "It still takes commands: its log ends with {} now, and {} is still the last committed.",
        last_log(&stale),
        index_of(stale.committed)
    ))?;

    let others: Vec<String> = names_of(observer)?.into_iter().filter(|name| *name != old.leader).collect();
    let new = wait_for_next(observer, &others, old)?;
    // Up to a second late: a node that is asked waits that long for the one that it does not reach.
    let elected_after = cut_at.elapsed();
    telling.say(format!(
        "{} leads the others in term {}, seen {} after the cut.",
        new.leader,
        new.term,
        span(elected_after)
    ))?;
    telling.figure("elected_after_ms", u64::try_from(elected_after.as_millis()).unwrap_or(u64::MAX));

    let committed = commit_beside(observer, &new, &stale)?;
    telling.say(format!(
        "They commit a command: entry {}, where {} has one of term {} that nobody else has.",
        last_log(&committed),
        old.leader,
        old.term
    ))?;
    let now = own_row(observer, &old.leader)?;
    if now.committed >= stale.last_log || now.last_log_term != stale.last_log_term {
        bail!("{} was cut off and yet its log went on: {}", old.leader, last_log(&now));
    }
    telling.figure("cut_off", old.leader.as_str());
    telling.figure("old_term", old.term);
    telling.figure("stale_index", stale.last_log);
    telling.figure("stale_index_term", stale.last_log_term);
    telling.figure("stale_committed", stale.committed);
    telling.figure("leader", new.leader.as_str());
    telling.figure("term", new.term);
    telling.figure("committed_index", committed.last_log);
    telling.figure("committed_index_term", committed.last_log_term);
    Ok((stale, new))
}

/// Gives the cut-off leader commands, on threads of their own: their answers would be long in coming, and what they
/// are does not matter here.
fn append_in_vain(observer: &Observer, leader: &str, before: &RaftMemberReport) -> anyhow::Result<RaftMemberReport> {
    for _ in 0..STALE_COMMANDS {
        let socket = observer.socket(leader);
        std::thread::spawn(move || give_command(&socket));
    }
    let wanted = before.last_log.map(|last| last + STALE_COMMANDS);
    let what = format!("entries that {leader} appends and cannot commit");
    let stale = observer
        .wait_for(&what, APPEND_WITHIN, |report| row(report, leader).filter(|raft| raft.last_log >= wanted).cloned())?;
    if stale.committed != before.committed {
        bail!("{leader} was cut off and yet entry {} is committed", index_of(stale.committed));
    }
    Ok(stale)
}

/// Gives the others a command, and waits until their log is committed as far as the stale one goes.
fn commit_beside(observer: &Observer, new: &Reign, stale: &RaftMemberReport) -> anyhow::Result<RaftMemberReport> {
    let what = format!("entry {} committed in term {}", index_of(stale.last_log), new.term);
    observer.give_command(&new.leader)?;
    observer.wait_for(&what, REPLICATED_WITHIN, |report| {
        let led = row(report, &new.leader)?;
        let is_beside = led.committed >= stale.last_log && led.committed == led.last_log;
        (is_beside && led.last_log_term > stale.last_log_term).then(|| led.clone())
    })
}

fn merge(
    observer: &Observer,
    telling: &mut Telling,
    old: &Reign,
    new: &Reign,
    stale: &RaftMemberReport,
) -> anyhow::Result<()> {
    let healed_at = Instant::now();
    let names = names_of(observer)?;
    let back = observer.wait_for(&format!("{} back, with the others' log", old.leader), MERGE_WITHIN, |report| {
        // Its return may cost an election more: whoever leads then has all that was committed.
        let reign = find_reign(report, &names, 2, Some(old.term))?;
        let own = row(report, &old.leader)?;
        let is_back = reign.leader == old.leader || has_caught_up(report, &old.leader, &reign.leader);
        (is_back && own.applied == own.last_log).then(|| (own.clone(), reign))
    })?;
    let (own, reign) = back;
    let took = healed_at.elapsed();
    if own.last_log < stale.last_log || own.last_log_term < Some(new.term) {
        bail!("the log of {} ends with {}: its stale entries are still there", old.leader, last_log(&own));
    }
    telling.say(format!("The cut is healed: {} follows {} after {}.", old.leader, reign.leader, span(took)))?;
    telling.say(format!(
        "Its entries up to {} are gone: its log ends with {}, as that of all others.",
        last_log(stale),
        last_log(&own)
    ))?;
    telling.figure("merged_after_ms", u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
    telling.figure("merged_last_log", own.last_log);
    telling.figure("merged_last_log_term", own.last_log_term);
    Ok(())
}

fn own_row(observer: &Observer, name: &str) -> anyhow::Result<RaftMemberReport> {
    row(&observer.look()?, name).cloned().with_context(|| format!("{name} does not answer on its own socket"))
}

fn index_of(index: Option<u64>) -> String {
    index.map_or_else(|| "none".to_owned(), |index| index.to_string())
}
