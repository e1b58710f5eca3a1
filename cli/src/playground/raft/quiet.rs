//! The steps without a fault: who leads, and how a command gets into every log.

use super::Telling;
use super::observe::{Observer, Reign, find_reign, row};
use anyhow::Context as _;
use std::time::Duration;

const SETTLE_WITHIN: Duration = Duration::from_secs(15);
const REPLICATED_WITHIN: Duration = Duration::from_secs(10);

/// The leader that all nodes agree on, with its two followers at least.
pub fn settled(observer: &Observer) -> anyhow::Result<Reign> {
    let names = names_of(observer)?;
    observer.wait_for("a leader that all nodes follow, two of them with a vote", SETTLE_WITHIN, |report| {
        find_reign(report, &names, 2, None)
    })
}

pub fn names_of(observer: &Observer) -> anyhow::Result<Vec<String>> {
    Ok(observer.record()?.nodes.into_iter().map(|node| node.name).collect())
}

/// Step 1.
pub fn show_leader(observer: &Observer, telling: &mut Telling) -> anyhow::Result<()> {
    let reign = settled(observer)?;
    telling.figure("leader", reign.leader.as_str());
    telling.figure("term", reign.term);
    telling.say(format!("{} leads in term {}; {} follow it.", reign.leader, reign.term, reign.followers.join(" and ")))
}

/// Step 2.
pub fn show_command(observer: &Observer, telling: &mut Telling) -> anyhow::Result<()> {
    let reign = settled(observer)?;
    let before = row(&observer.look()?, &reign.leader).and_then(|raft| raft.last_log);
    let asked = reign.followers.first().context("nobody follows")?;
    observer.give_command(asked)?;
    // The entry of the command; a second one behind it would be somebody else's.
    let index = before.map_or(0, |before| before + 1);
    let wanted = Some(index);
    let names = names_of(observer)?;
    observer.wait_for(&format!("entry {index} in the state of every node"), REPLICATED_WITHIN, |report| {
        let has_it = |name: &String| {
            let own = row(report, name);
            own.is_some_and(|raft| raft.last_log >= wanted && raft.committed >= wanted && raft.applied >= wanted)
        };
        names.iter().all(has_it).then_some(())
    })?;
    telling.figure("asked", asked.as_str());
    telling.figure("leader", reign.leader.as_str());
    telling.figure("index", index);
    telling.figure("last_log_before", before);
    telling
        .say(format!("The command (make a join token) was given to {asked}, which passed it to {}.", reign.leader))?;
    telling.say(format!("It is entry {index}: appended to every log, committed by a majority, applied by all."))
}
