//! A node that was away comes back to what the others did meanwhile, by their log or by a snapshot; and certificates
//! that end are renewed while the cluster works.

use anyhow::{bail, ensure};
use brickfs_tests::admin::{Admin, CommandId, Said};
use brickfs_tests::case::{Case, case, say};
use brickfs_tests::command_stream::CommandStream;
use brickfs_tests::eventually::{eventually, eventually_ok};
use brickfs_tests::needs::{Need, is_soak};
use brickfs_tests::nodes::{Nodes, VOLUME, name_of};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};

const NODES: &[Need] = &[Need::Root];
const CLIENTS: u64 = 16;
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
/// How long 7,000 commands may take to reach a node.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the certificates of the test last, and how long it looks at them.
const LIFE: Duration = Duration::from_secs(20);

/// Commands at once over one node, many at a time; gives the commands a second.
fn run_commands(nodes: &Nodes, through: usize, count: u64) -> anyhow::Result<u64> {
    let (socket, started) = (nodes.socket(through), Instant::now());
    let run = |client: u64| {
        let socket: PathBuf = socket.clone();
        std::thread::spawn(move || -> anyhow::Result<()> {
            let mut admin = Admin::new(&socket)?;
            for number in (client..count).step_by(CLIENTS as usize) {
                let (id, value): (CommandId, _) = (rand::random(), number.to_string());
                let call = json!({"volume_set": {"name": VOLUME, "key": "comment", "value": value}});
                match admin.change(id, &call, COMMAND_TIMEOUT) {
                    Said::Done(_) => (),
                    other => bail!("command {number}: {other:?}"),
                }
            }
            Ok(())
        })
    };
    let clients: Vec<_> = (0..CLIENTS).map(run).collect();
    for client in clients {
        client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
    }
    Ok((count as f64 / started.elapsed().as_secs_f64()) as u64)
}

/// A node is away while so many commands run, and is then the same as the others; gives its row of `cluster raft`.
fn away_while(case: &Case, count: u64) -> anyhow::Result<Value> {
    let mut nodes = Nodes::cluster(&case.in_memory()?, 3)?;
    nodes.make_volume(1, VOLUME)?;
    let leader = nodes.leader()?;
    let away = leader % 3 + 1;
    nodes.wait_equal()?;
    nodes.kill(away)?;
    let a_second = run_commands(&nodes, leader, count)?;
    nodes.start(away)?;
    let (started, wanted) = (Instant::now(), nodes.commands(leader)?);
    eventually_ok("the node has caught up", CATCH_UP_TIMEOUT, || {
        let has = nodes.commands(away)?;
        ensure!(has >= wanted, "it has {has} commands of {wanted}");
        Ok(())
    })?;
    say(&format!("{}: {a_second} commands a second, caught up after {:?}", case.name(), started.elapsed()));
    nodes.wait_healthy()?;
    nodes.wait_equal()?;
    // It is not only the same, it takes part.
    let ran = nodes.brickctl(away, &["volume", "set", VOLUME, "comment", "after"])?;
    ran.ok()?;
    nodes.wait_equal()?;
    let row = nodes.raft(away)?;
    // And it is the same again after a restart of its own.
    nodes.kill(away)?;
    nodes.start(away)?;
    nodes.wait_healthy()?;
    nodes.wait_equal()?;
    Ok(row)
}

#[test]
fn a_node_that_was_away_for_1500_commands_follows_the_log() {
    case(NODES, |case| {
        let row = away_while(case, 1_500)?;
        ensure!(row["snapshot"].is_null(), "it needed a snapshot: {row}");
        Ok(())
    });
}

#[test]
fn a_node_that_was_away_for_7000_commands_gets_a_snapshot() {
    case(NODES, |case| {
        let row = away_while(case, 7_000)?;
        ensure!(row["snapshot"].as_u64().is_some_and(|index| index >= 4_000), "it got no snapshot: {row}");
        Ok(())
    });
}

#[test]
fn a_new_node_joins_a_cluster_with_a_long_past() {
    case(NODES, |case| {
        let mut nodes = Nodes::cluster(&case.in_memory()?, 1)?;
        nodes.make_volume(1, VOLUME)?;
        run_commands(&nodes, 1, 6_500)?;
        for new in [2, 3] {
            ensure!(nodes.add(&[])? == new);
            nodes.join(new, 1)?;
        }
        nodes.wait_healthy()?;
        let state = nodes.wait_equal()?;
        ensure!(state["volumes"][VOLUME].is_object(), "{state:#}");
        let row = nodes.raft(3)?;
        ensure!(row["snapshot"].as_u64().is_some_and(|index| index >= 4_000), "it got no snapshot: {row}");
        // What the first one knows outlives it.
        nodes.kill(1)?;
        nodes.leader()?;
        nodes.make_volume(2, "after").map(drop)
    });
}

#[test]
fn certificates_that_end_are_renewed_while_commands_run() {
    case(NODES, |case| {
        let watched = if is_soak() { Duration::from_secs(180) } else { Duration::from_secs(35) };
        let mut nodes = Nodes::none(&case.in_memory()?)?;
        for _ in 0..3 {
            nodes.add(&["--certificate-life-s", &LIFE.as_secs().to_string()])?;
        }
        nodes.join_all()?;
        let pids: anyhow::Result<Vec<u32>> = nodes.numbers().map(|n| Ok(nodes.process(n)?.pid())).collect();
        let pids = pids?;
        let voters = nodes.voters(1)?;
        let (mut client, mut ends) = (Quiet::new(&nodes)?, Vec::new());
        let started = Instant::now();
        while started.elapsed() < watched {
            client.command()?;
            for number in nodes.numbers() {
                ends.push((number, nodes.json(number, &["peer", "list"])?));
            }
            let status = nodes.status(1 + ends.len() % 3)?;
            ensure!(status["leader"].is_string(), "{:?} after the start nobody leads: {status:#}", started.elapsed());
            ensure!(nodes.voters(1)? == voters, "the voters change");
            std::thread::sleep(Duration::from_millis(200));
        }
        // Each node's certificate was renewed several times, by the processes that were there from the beginning.
        let wanted = usize::try_from(watched.as_secs() / LIFE.as_secs())?;
        for number in nodes.numbers() {
            let seen: std::collections::BTreeSet<u64> = ends
                .iter()
                .filter(|(by, _)| *by == 1)
                .filter_map(|(_, peers)| peers[number - 1]["certificate_ends_ms"].as_u64())
                .collect();
            say(&format!("{}: {} had {} certificates", case.name(), name_of(number), seen.len()));
            ensure!(seen.len() > wanted, "node-{number} had {} certificates in {watched:?}", seen.len());
            ensure!(nodes.process(number)?.pid() == pids[number - 1] && nodes.running().contains(&number));
            let log = nodes.log(number);
            ensure!(!log.contains("could not be renewed"), "node-{number} could not renew once: {log}");
        }
        nodes.wait_healthy()?;
        client.check(&nodes)
    });
}

/// Commands one after the other, each of which has to be done at once by the node that is asked.
struct Quiet {
    admins: Vec<Admin>,
    count: usize,
}

impl Quiet {
    fn new(nodes: &Nodes) -> anyhow::Result<Quiet> {
        nodes.make_volume(1, VOLUME)?;
        nodes.wait_equal()?;
        let admins: anyhow::Result<Vec<Admin>> = nodes.numbers().map(|number| nodes.admin(number)).collect();
        Ok(Quiet { admins: admins?, count: 0 })
    }

    fn command(&mut self) -> anyhow::Result<()> {
        self.count += 1;
        let call = json!({"volume_set": {"name": VOLUME, "key": "comment", "value": self.count.to_string()}});
        let admin = self.count % self.admins.len();
        match self.admins[admin].change(rand::random(), &call, COMMAND_TIMEOUT) {
            Said::Done(_) => Ok(()),
            other => bail!("command {}: {other:?}", self.count),
        }
    }

    fn check(mut self, nodes: &Nodes) -> anyhow::Result<()> {
        nodes.wait_equal()?;
        for admin in &mut self.admins {
            ensure!(admin.option(VOLUME, "comment", COMMAND_TIMEOUT)? == self.count.to_string());
        }
        Ok(())
    }
}

#[test]
fn a_voter_that_was_away_past_the_end_of_its_certificate_comes_back() {
    case(NODES, |case| {
        const SHORT: Duration = Duration::from_secs(8);
        let mut nodes = Nodes::none(&case.in_memory()?)?;
        for _ in 0..3 {
            nodes.add(&["--certificate-life-s", &SHORT.as_secs().to_string()])?;
        }
        nodes.join_all()?;
        let away = nodes.leader()? % 3 + 1;
        nodes.kill(away)?;
        let killed = Instant::now();
        eventually("its certificate has ended", SHORT * 2, || killed.elapsed() > SHORT)?;
        // It has the authority's key and signs for itself.
        nodes.start(away)?;
        nodes.wait_healthy()?;
        nodes.wait_equal().map(drop)
    });
}

#[test]
fn a_stream_of_commands_goes_on_while_followers_come_and_go() {
    case(NODES, |case| {
        let mut nodes = Nodes::cluster(&case.in_memory()?, 3)?;
        let stream = CommandStream::start(&nodes, 3, &[1, 2, 3])?;
        for round in 0..3 {
            let follower = (nodes.leader()? + round) % 3 + 1;
            nodes.stop(follower)?;
            stream.wait_for_more(100)?;
            nodes.start(follower)?;
            nodes.wait_healthy()?;
        }
        stream.finish(&nodes).map(drop)
    });
}
