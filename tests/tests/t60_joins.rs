//! Joining: a token lets one node in, once, in its time, into its own cluster; a node that has something to lose does
//! not join; what is refused changes nothing on either side.

use anyhow::{Context as _, ensure};
use brickfs_tests::at::At as _;
use brickfs_tests::case::case;
use brickfs_tests::eventually::{eventually, eventually_ok};
use brickfs_tests::needs::Need;
use brickfs_tests::nodes::{HEALTHY_TIMEOUT, Nodes, VOLUME, name_of};
use brickfs_tests::run::Ran;
use serde_json::Value;
use std::fs;
use std::time::{Duration, Instant};

const NODES: &[Need] = &[Need::Root];
const FAILED: i32 = 1;
/// Longer than a token of two seconds lasts.
const TOKEN_OVER: Duration = Duration::from_secs(10);

fn join(nodes: &Nodes, number: usize, token: &str) -> anyhow::Result<Ran> {
    nodes.brickctl(number, &["peer", "join", "--token", token])
}

/// What a node is a member of, and what it trusts.
fn identity_of(nodes: &Nodes, number: usize) -> anyhow::Result<(Value, Vec<u8>)> {
    let path = nodes.state_dir(number).join("tls/node.pem");
    Ok((nodes.cluster_json(number)?, fs::read(&path).at(&path)?))
}

/// A join is refused with one line that has these words, and neither side has changed.
fn refused(nodes: &Nodes, number: usize, token: &str, member: usize, words: &[&str]) -> anyhow::Result<()> {
    let before = (identity_of(nodes, number)?, nodes.json(member, &["peer", "list"])?);
    let line = join(nodes, number, token)?.refused(FAILED)?;
    for word in words {
        ensure!(line.contains(word), "'{word}' is not in: {line}");
    }
    ensure!(!line.contains(token), "the token is shown: {line}");
    let after = (identity_of(nodes, number)?, nodes.json(member, &["peer", "list"])?);
    ensure!(before == after, "a refused join ({line}) has changed something: {before:?}, {after:?}");
    Ok(())
}

#[test]
fn a_token_lets_one_node_in() {
    case(NODES, |case| {
        let nodes = Nodes::apart(&case.in_memory()?, 3)?;
        let token = nodes.token(1)?;
        let joined = join(&nodes, 2, &token)?.ok()?;
        ensure!(joined.contains("node-1, node-2"), "{joined}");
        refused(&nodes, 3, &token, 1, &["token", "used"])?;
        // Who repeats what has succeeded is told so, and nothing happens a second time.
        let before = nodes.wait_equal_of(&[1, 2])?;
        let again = join(&nodes, 2, &token)?.ok()?;
        ensure!(again == joined, "{again}, not {joined}");
        ensure!(nodes.wait_equal_of(&[1, 2])? == before, "a repeated join has changed the state");
        // Neither the state nor any log has the token or its secret.
        let shown = before.to_string() + &nodes.log(1) + &nodes.log(2);
        ensure!(!shown.contains(token.trim()), "the token is written down");
        Ok(())
    });
}

#[test]
fn a_token_that_is_over_damaged_or_of_elsewhere_lets_nobody_in() {
    case(NODES, |case| {
        let nodes = Nodes::apart(&case.in_memory()?, 3)?;
        let short = nodes.brickctl(1, &["peer", "token", "--valid", "2s"])?.ok()?;
        let (short, made) = (short.trim().to_owned(), Instant::now());
        let good = nodes.token(1)?;
        // One letter is another one.
        for at in [0, good.len() / 3, good.len() / 2, good.len() - 1] {
            let mut damaged = good.clone();
            let other = if &good[at..=at] == "A" { "B" } else { "A" };
            damaged.replace_range(at..=at, other);
            refused(&nodes, 2, &damaged, 1, &["token"])?;
        }
        refused(&nodes, 2, &good[..good.len() - 3], 1, &["token"])?;
        refused(&nodes, 2, "no-token", 1, &["token"])?;
        // Shown to the wrong cluster: what is there has another authority.
        let host = nodes.address(3).to_owned();
        let line = nodes.brickctl(2, &["peer", "join", &host, "--token", &good])?.refused(FAILED)?;
        ensure!(line.contains(&host), "{line}");
        ensure!(nodes.json(3, &["peer", "list"])?.as_array().is_some_and(|peers| peers.len() == 1));
        eventually("the short token is over", TOKEN_OVER, || made.elapsed() > Duration::from_secs(2))?;
        refused(&nodes, 2, &short, 1, &["token"])?;
        // All this has used nothing up.
        join(&nodes, 2, &good)?.ok()?;
        nodes.brickctl(1, &["cluster", "status"])?.ok().map(drop)
    });
}

#[test]
fn a_node_with_something_to_lose_does_not_join() {
    case(NODES, |case| {
        let nodes = Nodes::apart(&case.in_memory()?, 4)?;
        let token = nodes.token(1)?;
        nodes.make_volume(2, VOLUME)?;
        refused(&nodes, 2, &token, 1, &[VOLUME])?;
        // A member of one cluster does not become one of another.
        nodes.join(4, 3)?;
        nodes.wait_equal_of(&[3, 4])?;
        refused(&nodes, 4, &token, 1, &["member"])?;
        refused(&nodes, 3, &token, 1, &["member"])?;
        // Without its volume it may.
        nodes.brickctl(2, &["volume", "delete", VOLUME])?.ok()?;
        join(&nodes, 2, &token)?.ok()?;
        // The name of a volume that it had is free for the cluster.
        nodes.make_volume(1, VOLUME)
    });
}

#[test]
fn a_cluster_that_does_not_answer_is_named_and_the_token_stays_good() {
    case(NODES, |case| {
        let mut nodes = Nodes::apart(&case.in_memory()?, 2)?;
        let token = nodes.token(1)?;
        nodes.kill(1)?;
        let line = join(&nodes, 2, &token)?.refused(FAILED)?;
        ensure!(line.contains(nodes.address(1)), "who could not be reached is not said: {line}");
        nodes.start(1)?;
        join(&nodes, 2, &token)?.ok().map(drop)
    });
}

#[test]
fn a_node_joins_through_any_member_and_works_at_once() {
    case(NODES, |case| {
        let mut nodes = Nodes::cluster(&case.in_memory()?, 4)?;
        // One that does not vote cannot sign: it passes the join on.
        let voters = nodes.voters(1)?;
        let learner = nodes.numbers().find(|number| !voters.contains(&name_of(*number))).context("all four vote")?;
        let new = nodes.add(&[])?;
        nodes.join(new, learner)?;
        nodes.make_volume(new, VOLUME)?;
        nodes.wait_healthy()?;
        nodes.wait_equal().map(drop)
    });
}

#[test]
fn a_join_survives_the_death_of_either_side() {
    case(NODES, |case| {
        let mut nodes = Nodes::cluster(&case.in_memory()?, 3)?;
        for round in 0..3u64 {
            let new = nodes.add(&[])?;
            let token = nodes.token(2)?;
            let dir = nodes.state_dir(new).join("tls/node.pem");
            let before = fs::read(&dir).at(&dir)?;
            let socket = nodes.socket(new);
            let joining = std::thread::spawn({
                let token = token.clone();
                move || -> anyhow::Result<Ran> {
                    let mut command = std::process::Command::new(brickfs_tests::run::program("brickctl")?);
                    command.arg("--socket").arg(socket).args(["peer", "join", "--token", &token]);
                    brickfs_tests::run::run(&mut command)
                }
            });
            // At different moments: before its identity is there, and right after.
            if round > 0 {
                eventually_ok("it has its new identity", HEALTHY_TIMEOUT, || {
                    ensure!(fs::read(&dir).at(&dir)? != before, "not yet");
                    Ok(())
                })?;
            }
            nodes.kill(new)?;
            nodes.start(new)?;
            let _ = joining.join(); // whatever it was told: it is repeated
            join(&nodes, new, &token)?.ok()?;
            nodes.wait_healthy()?;
            let peers = nodes.json(1, &["peer", "list"])?;
            ensure!(peers.as_array().is_some_and(|peers| peers.len() == new), "round {round}: {peers:#}");
        }
        nodes.wait_equal().map(drop)
    });
}
