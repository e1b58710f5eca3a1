//! Several `brickd` are one cluster: any node takes a command, nodes join with tokens and are removed, voters follow
//! from who is there, and what is wrong is said within two seconds. Real processes on ports of this machine.

use anyhow::{Context as _, ensure};
use brickfs_tests::at::At as _;
use brickfs_tests::case::{case, say};
use brickfs_tests::eventually::eventually_ok;
use brickfs_tests::needs::Need;
use brickfs_tests::nodes::{HEALTHY_TIMEOUT, Nodes, VOLUME, free_port, name_of};
use serde_json::Value;
use std::fs;
use std::time::{Duration, Instant};

const NODES: &[Need] = &[Need::Root];
/// The leader says within this which nodes it cannot reach.
const SEEN_WITHIN: Duration = Duration::from_secs(2);
/// What asking with a process of its own takes where others use the machine.
const ASKING: Duration = Duration::from_millis(500);
/// Exit codes of `brickctl`.
const FAILED: i32 = 1;
const DEGRADED: i32 = 3;

/// What the nodes that answer say about one that they cannot reach: from whom, for how long, why.
fn complaints(status: &Value, about: usize) -> anyhow::Result<Vec<Value>> {
    let nodes = status["nodes"].as_array().context("no nodes")?;
    let node = nodes.iter().find(|node| node["name"] == name_of(about).as_str()).context("the node is not shown")?;
    Ok(node["unreachable_from"].as_array().context("no list")?.clone())
}

/// Every node of `by` says that it does not reach `gone`, and the cluster is degraded; gives how long that took.
fn seen_to_be_gone(nodes: &Nodes, gone: usize, by: &[usize]) -> anyhow::Result<Duration> {
    let since = Instant::now();
    eventually_ok("the loss of a node is seen", SEEN_WITHIN + ASKING, || {
        let ran = nodes.brickctl(by[0], &["cluster", "status", "--check", "-o", "json"])?;
        ensure!(ran.code == Some(DEGRADED), "exit code {:?}: {}{}", ran.code, ran.stdout, ran.stderr);
        let status: Value = serde_json::from_str(&ran.stdout)?;
        let complaints = complaints(&status, gone)?;
        for who in by {
            let complaint = complaints.iter().find(|one| one["from"] == name_of(*who).as_str());
            let complaint = complaint.with_context(|| format!("node-{who} says nothing: {status:#}"))?;
            ensure!(complaint["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "no reason: {complaint}");
            let for_ms = complaint["for_ms"].as_u64().context("not since when")?;
            let at_most = since.elapsed() + Duration::from_millis(1000);
            ensure!(u128::from(for_ms) <= at_most.as_millis(), "it is silent for {for_ms} ms already?");
        }
        Ok(())
    })?;
    let seen = since.elapsed();
    ensure!(seen <= SEEN_WITHIN + ASKING, "the loss of node-{gone} was seen after {seen:?}");
    Ok(seen)
}

#[test]
fn three_nodes_are_a_cluster_that_says_within_two_seconds_what_is_wrong() {
    case(NODES, |case| {
        let mut nodes = Nodes::cluster(&case.in_memory()?, 3)?;
        for number in nodes.numbers() {
            let ran = nodes.brickctl(number, &["cluster", "status", "--check"])?;
            ensure!(ran.code == Some(0), "{ran:?}");
            ensure!(nodes.voters(number)?.len() == 3, "node-{number} sees the voters {:?}", nodes.voters(number)?);
        }
        let leader = nodes.leader()?;
        for number in nodes.numbers() {
            ensure!(nodes.status(number)?["leader"] == name_of(leader).as_str());
        }
        // A follower dies, and comes back.
        let gone = leader % 3 + 1;
        let others: Vec<usize> = nodes.numbers().filter(|number| *number != gone).collect();
        nodes.kill(gone)?;
        let killed = seen_to_be_gone(&nodes, gone, &others)?;
        ensure!(nodes.status(others[0])?["leader"] == name_of(leader).as_str(), "the leader has changed for nothing");
        nodes.start(gone)?;
        nodes.wait_healthy()?;
        // One that stands still keeps its connections: only its silence tells.
        nodes.pause(gone)?;
        let paused = seen_to_be_gone(&nodes, gone, &others)?;
        nodes.resume(gone)?;
        nodes.wait_healthy()?;
        // The leader itself.
        nodes.kill(leader)?;
        let others: Vec<usize> = nodes.numbers().filter(|number| *number != leader).collect();
        let leader_killed = seen_to_be_gone(&nodes, leader, &others)?;
        nodes.start(leader)?;
        nodes.wait_healthy()?;
        say(&format!(
            "{}: seen after {} ms when killed, {} ms when paused, {} ms when it led",
            case.name(),
            killed.as_millis(),
            paused.as_millis(),
            leader_killed.as_millis()
        ));
        Ok(())
    });
}

#[test]
fn any_node_takes_a_command_and_all_show_the_same() {
    case(NODES, |case| {
        let nodes = Nodes::cluster(&case.in_memory()?, 3)?;
        nodes.make_volume(1, VOLUME)?;
        for number in nodes.numbers() {
            nodes.brickctl(number, &["volume", "set", VOLUME, "comment", &format!("by {number}")])?.ok()?;
            // Where it was said it is to be seen at once, elsewhere soon.
            let shown = nodes.json(number, &["volume", "get", VOLUME, "comment"])?;
            ensure!(shown[0]["value"] == format!("by {number}"), "{shown}");
            nodes.wait_equal()?;
        }
        // Each node can have bricks; what is refused is refused on each, in one line.
        for number in [2, 3] {
            nodes.make_volume(number, &format!("on-{number}"))?;
            let line = nodes.brickctl(number, &["volume", "delete", "no-such"])?.refused(FAILED)?;
            ensure!(line.contains("there is no volume 'no-such'"), "{line}");
        }
        let state = nodes.wait_equal()?;
        ensure!(state["volumes"].as_object().is_some_and(|volumes| volumes.len() == 3), "{state:#}");
        let peers = nodes.json(3, &["peer", "list"])?;
        let peers = peers.as_array().context("no list")?;
        ensure!(peers.len() == 3);
        for (peer, number) in peers.iter().zip(nodes.numbers()) {
            ensure!(peer["name"] == name_of(number).as_str() && peer["role"] == "server", "{peer}");
            ensure!(peer["addresses"][0] == nodes.address(number), "{peer}");
            ensure!(peer["bricks_count"] == 1 && peer["certificate_ends_ms"].is_u64(), "{peer}");
        }
        Ok(())
    });
}

#[test]
fn a_node_with_bricks_stays_and_a_removed_one_is_a_stranger() {
    case(NODES, |case| {
        let nodes = Nodes::cluster(&case.in_memory()?, 4)?;
        nodes.make_volume(4, VOLUME)?;
        let line = nodes.brickctl(1, &["peer", "remove", "node-4"])?.refused(FAILED)?;
        ensure!(line.contains("node-4") && line.contains(&format!("volume '{VOLUME}'")), "{line}");
        ensure!(line.contains("/dev/shm/"), "the brick is not named: {line}");
        nodes.brickctl(1, &["volume", "delete", VOLUME])?.ok()?;
        // A voter is removed: the fourth votes in its place.
        let voters = nodes.voters(1)?;
        ensure!(voters.len() == 3, "{voters:?}");
        let spare = nodes.numbers().find(|number| !voters.contains(&name_of(*number))).context("all four vote")?;
        let leader = nodes.leader()?;
        let removed = nodes.numbers().find(|n| *n != leader && *n != spare).context("nobody is left")?;
        let by = spare;
        nodes.brickctl(by, &["peer", "remove", &name_of(removed)])?.ok()?;
        let others: Vec<usize> = nodes.numbers().filter(|number| *number != removed).collect();
        for number in &others {
            eventually_ok("the spare votes", HEALTHY_TIMEOUT, || {
                let ran = nodes.brickctl(*number, &["cluster", "status", "--check"])?;
                ensure!(ran.code == Some(0), "{ran:?}");
                let wanted: Vec<String> = others.iter().map(|number| name_of(*number)).collect();
                let voters = nodes.voters(*number)?;
                ensure!(voters == wanted, "{voters:?} vote, not {wanted:?}");
                Ok(())
            })?;
        }
        // It has no say any more, and says why.
        let ran = nodes.brickctl(removed, &["volume", "set", "x", "comment", "y"])?;
        let line = ran.refused(FAILED)?;
        ensure!(!line.contains("there is no volume"), "a removed node had a command applied: {line}");
        let line = nodes.brickctl(by, &["peer", "remove", &name_of(removed)])?.refused(FAILED)?;
        ensure!(line.contains(&name_of(removed)) || line.contains("no node"), "{line}");
        // Its certificate is refused by each of the others, and they write that down.
        for number in others {
            eventually_ok("the removed node is in the audit log", HEALTHY_TIMEOUT, || {
                let path = nodes.state_dir(number).join("audit.log");
                let text = fs::read_to_string(&path).at(&path)?;
                ensure!(text.lines().any(|line| line.contains("revoked")), "node-{number} refuses nobody: {text}");
                Ok(())
            })?;
        }
        Ok(())
    });
}

#[test]
fn a_removed_leader_gives_its_place_away() {
    case(NODES, |case| {
        let nodes = Nodes::cluster(&case.in_memory()?, 4)?;
        let leader = nodes.leader()?;
        let by = leader % 4 + 1;
        nodes.brickctl(by, &["peer", "remove", &name_of(leader)])?.ok()?;
        for number in nodes.numbers().filter(|number| *number != leader) {
            eventually_ok("the other three are a healthy cluster", HEALTHY_TIMEOUT, || {
                let status = nodes.status(number)?;
                ensure!(status["healthy"] == true && status["leader"] != name_of(leader).as_str(), "{status:#}");
                ensure!(nodes.voters(number)?.len() == 3);
                Ok(())
            })?;
        }
        nodes.make_volume(by, VOLUME)
    });
}

#[test]
fn the_only_voter_is_not_removed_or_gives_its_place_away() {
    case(NODES, |case| {
        let nodes = Nodes::cluster(&case.in_memory()?, 2)?;
        ensure!(nodes.voters(1)? == ["node-1"]);
        let removed = nodes.brickctl(2, &["peer", "remove", "node-1"])?;
        if removed.code == Some(0) {
            eventually_ok("the other one leads", HEALTHY_TIMEOUT, || {
                let status = nodes.status(2)?;
                ensure!(status["leader"] == "node-2" && status["healthy"] == true, "{status:#}");
                Ok(())
            })?;
        } else {
            removed.refused(FAILED)?;
            nodes.wait_healthy()?;
        }
        nodes.make_volume(2, VOLUME)
    });
}

#[test]
fn a_witness_votes_before_servers_and_takes_no_bricks() {
    case(NODES, |case| {
        let mut nodes = Nodes::apart(&case.in_memory()?, 3)?;
        let witness = nodes.add(&["--witness"])?;
        nodes.join_all()?;
        let peers = nodes.json(1, &["peer", "list"])?;
        ensure!(peers[3]["role"] == "witness", "{peers:#}");
        eventually_ok("the witness votes", HEALTHY_TIMEOUT, || {
            let voters = nodes.voters(1)?;
            ensure!(voters.len() == 3 && voters.contains(&name_of(witness)), "{voters:?}");
            Ok(())
        })?;
        let brick = format!("{}:{}", name_of(witness), case.in_memory()?.join("b").display());
        let line = nodes.brickctl(witness, &["volume", "create", "w", "--force", &brick])?.refused(FAILED)?;
        ensure!(line.contains("witness"), "{line}");
        // Nothing is left where its brick would have been.
        let path = brick.split_once(':').context("a brick")?.1.to_owned();
        ensure!(!fs::exists(&path).at(&path)?, "{path} was made for a brick that there is not");
        Ok(())
    });
}

#[test]
fn three_of_four_and_five_of_five_nodes_vote() {
    case(NODES, |case| {
        let mut nodes = Nodes::cluster(&case.in_memory()?, 2)?;
        for (count, voters) in [(2, 1), (3, 3), (4, 3), (5, 5)] {
            if nodes.count() < count {
                let new = nodes.add(&[])?;
                nodes.join(new, 1)?;
            }
            nodes.wait_healthy()?;
            for number in nodes.numbers() {
                let now = nodes.voters(number)?;
                ensure!(now.len() == voters, "of {count} nodes {now:?} vote");
            }
        }
        // Two of five may be lost.
        let leader = nodes.leader()?;
        let lost = [leader, leader % 5 + 1];
        for number in lost {
            nodes.kill(number)?;
        }
        nodes.leader()?;
        let left = nodes.running();
        nodes.make_volume(left[0], VOLUME)?;
        for number in lost {
            nodes.start(number)?;
        }
        nodes.wait_healthy()?;
        nodes.wait_equal()?;
        // Of three nodes that are left all vote, and each of two may be lost again.
        let removed: Vec<usize> = nodes.numbers().filter(|number| *number != left[0]).take(2).collect();
        for number in &removed {
            nodes.brickctl(left[0], &["peer", "remove", &name_of(*number)])?.ok()?;
        }
        for number in nodes.numbers().filter(|number| !removed.contains(number)) {
            eventually_ok("three nodes vote", HEALTHY_TIMEOUT, || {
                ensure!(nodes.status(number)?["healthy"] == true, "{:#}", nodes.status(number)?);
                ensure!(nodes.voters(number)?.len() == 3, "{:?}", nodes.voters(number)?);
                Ok(())
            })?;
        }
        Ok(())
    });
}

#[test]
fn a_node_whose_address_changes_is_found_again() {
    case(NODES, |case| {
        let mut nodes = Nodes::cluster(&case.in_memory()?, 3)?;
        for number in [nodes.leader()?, 2, 3] {
            nodes.stop(number)?;
            let address = format!("127.0.0.1:{}", free_port()?);
            let place = nodes.place_mut(number);
            place.address = address.clone();
            place.args.extend(["--advertise".to_owned(), address.clone()]);
            nodes.start(number)?;
            nodes.wait_healthy()?;
            let status = nodes.status(number % 3 + 1)?;
            let shown = &status["nodes"][number - 1]["addresses"];
            ensure!(*shown == serde_json::json!([address]), "node-{number} is at {address}, not at {shown}");
            let place = nodes.place_mut(number);
            place.args.truncate(place.args.len() - 2);
        }
        Ok(())
    });
}

#[test]
fn a_node_with_a_wiped_disk_is_a_stranger() {
    case(NODES, |case| {
        let mut nodes = Nodes::cluster(&case.in_memory()?, 3)?;
        nodes.make_volume(1, VOLUME)?;
        nodes.wipe(2)?;
        nodes.start(2)?;
        // It is a cluster of its own, and the others do not take it for the one that they knew.
        ensure!(nodes.status(2)?["nodes"].as_array().is_some_and(|nodes| nodes.len() == 1));
        seen_to_be_gone(&nodes, 2, &[1, 3])?;
        let token = nodes.token(1)?;
        let line = nodes.brickctl(2, &["peer", "join", "--token", &token])?.refused(FAILED)?;
        ensure!(line.contains("node-2") && line.contains("already"), "{line}");
        nodes.brickctl(3, &["peer", "remove", "node-2"])?.ok()?;
        // The refusal used nothing up.
        nodes.brickctl(2, &["peer", "join", "--token", &token])?.ok()?;
        nodes.wait_healthy()?;
        let state = nodes.wait_equal()?;
        ensure!(state["volumes"][VOLUME].is_object(), "{state:#}");
        ensure!(nodes.voters(2)?.len() == 3);
        Ok(())
    });
}
