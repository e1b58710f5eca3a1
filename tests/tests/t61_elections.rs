//! Leaders and other nodes are killed under a stream of commands: another leads within two seconds, what was
//! acknowledged stays, nothing runs twice, and a store that was killed in mid-write opens again.

use anyhow::{Context as _, bail, ensure};
use brickfs_tests::admin::{Admin, CommandId, Said};
use brickfs_tests::case::{case, say};
use brickfs_tests::command_stream::CommandStream;
use brickfs_tests::eventually::eventually_ok;
use brickfs_tests::needs::{Need, is_soak};
use brickfs_tests::nodes::{Nodes, VOLUME, name_of};
use rand::Rng as _;
use serde_json::json;
use std::time::{Duration, Instant};

const NODES: &[Need] = &[Need::Root];
const CLIENTS: usize = 3;
/// The median time from a SIGKILL to the next leader.
const ELECTED_WITHIN: Duration = Duration::from_secs(2);
const ELECTION_TIMEOUT: Duration = Duration::from_secs(20);
const COMMAND_TIMEOUT: Duration = Duration::from_secs(15);
/// Commands a second that three nodes have to take.
const RATE_MIN: f64 = 100.0;

fn scaled(short: u64, long: u64) -> u64 {
    if is_soak() { long } else { short }
}

/// Waits for a leader of a higher term among these, each asked for itself; gives when it was seen.
fn next_leader(nodes: &Nodes, among: &[usize], term: u64) -> anyhow::Result<Duration> {
    let started = Instant::now();
    let mut admins: Vec<(usize, Admin)> =
        among.iter().map(|number| Ok((*number, nodes.admin(*number)?))).collect::<anyhow::Result<_>>()?;
    eventually_ok("another leader", ELECTION_TIMEOUT, || {
        for (number, admin) in &mut admins {
            let Said::Done(report) = admin.ask(&json!({"cluster_raft": {}}), COMMAND_TIMEOUT) else { continue };
            let rows = report["raft"]["nodes"].as_array().context("no nodes")?;
            let own = &rows.iter().find(|row| row["name"] == name_of(*number).as_str()).context("no own row")?["raft"];
            if own["role"] == "leader" && own["term"].as_u64() > Some(term) {
                return Ok(started.elapsed());
            }
        }
        bail!("nobody leads")
    })
}

#[test]
fn another_leads_within_two_seconds_and_no_acknowledged_command_is_lost_or_runs_twice() {
    case(NODES, |case| {
        let mut nodes = Nodes::cluster(&case.in_memory()?, 3)?;
        let stream = CommandStream::start(&nodes, CLIENTS, &[1, 2, 3])?;
        let mut times = Vec::new();
        for _ in 0..scaled(5, 20) {
            let leader = nodes.leader()?;
            let term = nodes.raft(leader)?["term"].as_u64().context("no term")?;
            stream.wait_for_more(50)?;
            let others: Vec<usize> = nodes.numbers().filter(|number| *number != leader).collect();
            nodes.kill(leader)?;
            times.push(next_leader(&nodes, &others, term)?);
            stream.wait_for_more(20)?;
            nodes.start(leader)?;
            nodes.wait_healthy()?;
        }
        let commands = stream.finish(&nodes)?;
        times.sort_unstable();
        let (median, max) = (times[times.len() / 2], times[times.len() - 1]);
        say(&format!(
            "{}: {} leaders killed, {commands} commands, the next leader after {} ms (median), {} ms (maximum)",
            case.name(),
            times.len(),
            median.as_millis(),
            max.as_millis()
        ));
        ensure!(median <= ELECTED_WITHIN, "the median is {median:?}: {times:?}");
        Ok(())
    });
}

#[test]
fn all_nodes_are_killed_at_once_and_come_back_as_acknowledged() {
    case(NODES, |case| {
        let mut nodes = Nodes::cluster(&case.in_memory()?, 3)?;
        let stream = CommandStream::start(&nodes, CLIENTS, &[1, 2, 3])?;
        for _ in 0..scaled(3, 20) {
            stream.wait_for_more(100)?;
            // Standing still at one moment, so that none of them acts on the death of another.
            nodes.numbers().try_for_each(|number| nodes.pause(number))?;
            nodes.numbers().try_for_each(|number| nodes.kill(number))?;
            nodes.numbers().try_for_each(|number| nodes.launch(number))?;
            nodes.numbers().try_for_each(|number| nodes.wait_ready(number))?;
            nodes.wait_healthy()?;
        }
        let commands = stream.finish(&nodes)?;
        say(&format!("{}: {commands} commands", case.name()));
        Ok(())
    });
}

#[test]
fn a_store_that_is_killed_in_mid_write_always_opens_again() {
    case(NODES, |case| {
        let mut nodes = Nodes::cluster(&case.in_memory()?, 3)?;
        let (stream, mut rng) = (CommandStream::start(&nodes, CLIENTS, &[1, 2, 3])?, case.rng(1));
        let kills = scaled(30, 200);
        for _ in 0..kills {
            stream.wait_for_more(rng.random_range(1..40))?;
            let number = rng.random_range(1..=3);
            nodes.kill(number)?;
            nodes.start(number)?;
        }
        nodes.wait_healthy()?;
        let commands = stream.finish(&nodes)?;
        say(&format!("{}: {kills} kills, {commands} commands", case.name()));
        for number in nodes.numbers() {
            let log = nodes.log(number);
            // openraft calls each message that does not arrive an error.
            let error = log.lines().find(|line| line.contains(" ERROR brickfs") || line.contains("panicked"));
            ensure!(error.is_none(), "node-{number}: {error:?}");
        }
        Ok(())
    });
}

/// Commands a second of so many clients together, each through another node.
fn rate(nodes: &Nodes, clients: usize, time: Duration) -> anyhow::Result<f64> {
    let started = Instant::now();
    let work = |client: usize| {
        let socket = nodes.socket(client % nodes.count() + 1);
        std::thread::spawn(move || -> anyhow::Result<u64> {
            let (mut admin, mut count) = (Admin::new(&socket)?, 0u64);
            while started.elapsed() < time {
                count += 1;
                let (id, value): (CommandId, _) = (rand::random(), format!("{client} {count}"));
                let call = json!({"volume_set": {"name": VOLUME, "key": "comment", "value": value}});
                match admin.change(id, &call, COMMAND_TIMEOUT) {
                    Said::Done(_) => (),
                    other => bail!("command {count} of client {client}: {other:?}"),
                }
            }
            Ok(count)
        })
    };
    let clients: Vec<_> = (0..clients).map(work).collect();
    let mut count = 0;
    for client in clients {
        count += client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
    }
    Ok(count as f64 / started.elapsed().as_secs_f64())
}

#[test]
fn a_hundred_commands_a_second() {
    case(NODES, |case| {
        // On a disk, whose flushes are what a command costs.
        let nodes = Nodes::cluster(&case.on_disk()?, 3)?;
        nodes.make_volume(1, VOLUME)?;
        nodes.wait_equal()?;
        let time = Duration::from_secs(scaled(3, 10));
        let (one, several) = (rate(&nodes, 1, time)?, rate(&nodes, 9, time)?);
        say(&format!("{}: {one:.0} a second of one client, {several:.0} of nine", case.name()));
        ensure!(several >= RATE_MIN, "{several:.0} commands a second of nine clients");
        nodes.wait_equal().map(drop)
    });
}
