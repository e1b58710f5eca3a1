//! Packets between nodes are lost: both ways, one way, between two of three only. A majority goes on, a minority
//! acknowledges nothing, and with the way back logs become one again without the loss of an acknowledged command.

use anyhow::{Context as _, bail, ensure};
use brickfs_tests::admin::{CommandId, Said};
use brickfs_tests::case::{Case, case, say};
use brickfs_tests::command_stream::CommandStream;
use brickfs_tests::eventually::eventually_ok;
use brickfs_tests::needs::CUTS;
use brickfs_tests::net::Net;
use brickfs_tests::nodes::{HEALTHY_TIMEOUT, Nodes, VOLUME, name_of};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const COMMAND_TIMEOUT: Duration = Duration::from_secs(20);
const SEEN_WITHIN: Duration = Duration::from_secs(10);

/// Three nodes, each in a namespace of its own. The nodes end before their network does.
struct Cuttable {
    nodes: Nodes,
    net: Net,
}

impl Cuttable {
    fn cluster(case: &Case) -> anyhow::Result<Cuttable> {
        let dir = case.in_memory()?;
        let net = Net::make(&dir, 3)?;
        let mut nodes = Nodes::none(&dir)?;
        for number in 1..=3 {
            nodes.add_at(net.place(number), None)?;
        }
        nodes.join_all()?;
        Ok(Cuttable { nodes, net })
    }

    fn others(&self, number: usize) -> Vec<usize> {
        self.nodes.numbers().filter(|other| *other != number).collect()
    }

    /// A leader of a higher term among these, which each of them takes for it.
    fn leader_among(&self, among: &[usize], term: u64) -> anyhow::Result<usize> {
        eventually_ok("these nodes have a leader", HEALTHY_TIMEOUT, || {
            let mut seen = BTreeSet::new();
            for number in among {
                let raft = self.nodes.raft(*number)?;
                seen.insert((raft["term"].as_u64(), raft["leader"].as_str().map(str::to_owned)));
            }
            let (Some((Some(now), Some(name))), 1) = (seen.first().cloned(), seen.len()) else { bail!("{seen:?}") };
            ensure!(now > term, "still term {now}");
            among.iter().copied().find(|number| name_of(*number) == name).context("somebody else leads")
        })
    }

    fn term(&self, number: usize) -> anyhow::Result<u64> {
        self.nodes.raft(number)?["term"].as_u64().context("no term")
    }
}

fn set(value: &str) -> Value {
    json!({"volume_set": {"name": VOLUME, "key": "comment", "value": value}})
}

/// A leader loses packets as `lost` says of it and the others; they go on without it. It may not acknowledge anything,
/// and its log becomes theirs when the way is free.
fn the_others_go_on(case: &Case, lost: impl Fn(usize, usize) -> Vec<(usize, usize)>) -> anyhow::Result<()> {
    let cut = Cuttable::cluster(case)?;
    let nodes = &cut.nodes;
    nodes.make_volume(1, VOLUME)?;
    let leader = nodes.leader()?;
    let (term, others) = (cut.term(leader)?, cut.others(leader));
    let stream = CommandStream::start(nodes, 2, &others)?;
    stream.wait_for_more(30)?;
    let pairs: Vec<(usize, usize)> = others.iter().flat_map(|other| lost(leader, *other)).collect();
    let since = Instant::now();
    cut.net.lose(&pairs)?;
    // What the old leader takes it cannot commit.
    let (mut admin, id): (_, CommandId) = (nodes.admin(leader)?, rand::random());
    let asked = std::thread::spawn(move || admin.change(id, &set("of the minority"), COMMAND_TIMEOUT));
    let next = cut.leader_among(&others, term)?;
    let elected = since.elapsed();
    // Who gets no answer gives it to another node: it runs once, whether its entry has come through or not.
    let said = nodes.admin(others[0])?.change(id, &set("of the minority"), COMMAND_TIMEOUT);
    ensure!(matches!(said, Said::Done(_)), "given to node-{}: {said:?}", others[0]);
    stream.wait_for_more(50)?;
    for number in &others {
        eventually_ok("the others say who is cut off", SEEN_WITHIN, || {
            let status = nodes.status(*number)?;
            ensure!(status["leader"] == name_of(next).as_str(), "{status:#}");
            let gone = &status["nodes"][leader - 1];
            ensure!(gone["is_reachable"] == false && status["healthy"] == false, "{status:#}");
            ensure!(gone["unreachable_from"].as_array().is_some_and(|from| from.len() == 2), "{status:#}");
            Ok(())
        })?;
    }
    let said = asked.join().map_err(|_| anyhow::anyhow!("asking panicked"))?;
    ensure!(matches!(said, Said::Unknown(_)), "a leader without a majority has answered {said:?}");
    eventually_ok("the old leader knows that it leads nobody", SEEN_WITHIN, || {
        let status = nodes.status(leader)?;
        ensure!(status["leader"].is_null() && status["healthy"] == false, "{status:#}");
        Ok(())
    })?;
    stream.wait_for_more(20)?;
    let back = Instant::now();
    cut.net.heal()?;
    nodes.wait_healthy()?;
    let healed = back.elapsed();
    let commands = stream.end_with(1, nodes)?;
    let leader_now = nodes.leader()?;
    say(&format!(
        "{}: another leads after {} ms, healthy {} ms after the cut, {commands} commands, node-{leader_now} leads",
        case.name(),
        elected.as_millis(),
        healed.as_millis()
    ));
    Ok(())
}

#[test]
fn a_leader_that_is_cut_off_both_ways_is_replaced() {
    case(CUTS, |case| the_others_go_on(case, |leader, other| vec![(leader, other), (other, leader)]));
}

#[test]
fn a_leader_that_hears_nothing_is_replaced() {
    case(CUTS, |case| the_others_go_on(case, |leader, other| vec![(other, leader)]));
}

#[test]
fn a_leader_that_is_not_heard_is_replaced() {
    case(CUTS, |case| the_others_go_on(case, |leader, other| vec![(leader, other)]));
}

/// Two of three nodes do not see each other, and both see the third: a leader exists, commands work through every node
/// that sees it, and every node shows the cut as what it is.
fn partly_cut(case: &Case, cut_leader: bool) -> anyhow::Result<()> {
    let cut = Cuttable::cluster(case)?;
    let nodes = &cut.nodes;
    let leader = nodes.leader()?;
    let others = cut.others(leader);
    // Either the leader and one follower do not see each other, or the two followers.
    let (a, b) = if cut_leader { (leader, others[0]) } else { (others[0], others[1]) };
    let c = nodes.numbers().find(|number| *number != a && *number != b).context("there are three")?;
    let see_leader: Vec<usize> = nodes.numbers().filter(|number| !cut_leader || *number != b).collect();
    let stream = CommandStream::start(nodes, 3, &see_leader)?;
    stream.wait_for_more(30)?;
    cut.net.lose(&[(a, b), (b, a)])?;
    for number in nodes.numbers() {
        eventually_ok("the cut is shown as what it is", SEEN_WITHIN, || {
            let status = nodes.status(number)?;
            for (about, from) in [(a, b), (b, a)] {
                // One that is cut off itself cannot ask the other what that one sees.
                let may_say = number == c || number == from;
                let complaints = status["nodes"][about - 1]["unreachable_from"].as_array().context("no list")?;
                let says = complaints.iter().any(|one| one["from"] == name_of(from).as_str());
                ensure!(says || !may_say, "node-{number} does not say that {from} does not reach {about}: {status:#}");
                ensure!(complaints.len() <= 1, "{status:#}");
            }
            let complaints = status["nodes"][c - 1]["unreachable_from"].as_array().context("no list")?;
            ensure!(complaints.is_empty(), "{status:#}");
            ensure!(status["healthy"] == false, "{status:#}");
            Ok(())
        })?;
    }
    // Whoever leads now, goes on leading.
    stream.wait_for_more(50)?;
    let term = cut.term(c)?;
    for number in &see_leader {
        let mut admin = nodes.admin(*number)?;
        for round in 0..5 {
            let call = json!({"volume_set": {"name": "stream-0", "key": "reserve", "value": format!("{round}%")}});
            let said = admin.change(rand::random(), &call, COMMAND_TIMEOUT);
            ensure!(matches!(said, Said::Done(_)), "through node-{number}: {said:?}");
        }
    }
    ensure!(cut.term(c)? <= term + 1, "leaders chase each other: from term {term} to {}", cut.term(c)?);
    cut.net.heal()?;
    nodes.wait_healthy()?;
    let commands = stream.end_with(5 * see_leader.len() as u64, nodes)?;
    say(&format!("{}: {commands} commands", case.name()));
    Ok(())
}

#[test]
fn two_followers_that_do_not_see_each_other_are_shown_and_disturb_nobody() {
    case(CUTS, |case| partly_cut(case, false));
}

#[test]
fn a_leader_and_a_follower_that_do_not_see_each_other_disturb_nobody_for_long() {
    case(CUTS, |case| partly_cut(case, true));
}

#[test]
fn a_follower_that_was_cut_off_is_taken_back_in() {
    case(CUTS, |case| {
        let cut = Cuttable::cluster(case)?;
        let nodes = &cut.nodes;
        let leader = nodes.leader()?;
        let others = cut.others(leader);
        let (follower, third) = (others[0], others[1]);
        let stream = CommandStream::start(nodes, 2, &[leader, third])?;
        for one_way in [false, true] {
            let pairs = [(leader, follower), (third, follower), (follower, leader), (follower, third)];
            cut.net.lose(if one_way { &pairs[..2] } else { &pairs[..] })?;
            eventually_ok("it is seen to be away", SEEN_WITHIN, || {
                let status = nodes.status(leader)?;
                ensure!(status["nodes"][follower - 1]["is_reachable"] == false, "{status:#}");
                Ok(())
            })?;
            stream.wait_for_more(200)?;
            cut.net.heal()?;
            nodes.wait_healthy()?;
            stream.wait_for_more(50)?;
        }
        stream.finish(nodes).map(drop)
    });
}
