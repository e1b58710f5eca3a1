//! Nodes lose their power under a stream of commands, one of them or all at one moment: what was acknowledged is there
//! afterwards, and every store opens by itself.

use anyhow::{Context as _, ensure};
use brickfs_tests::case::{Case, case, say};
use brickfs_tests::command_stream::CommandStream;
use brickfs_tests::loop_fs::{Kind, LoopFs};
use brickfs_tests::needs::{Need, is_soak};
use brickfs_tests::nodes::{Nodes, Place, free_port};
use rand::Rng as _;

const NEEDS: &[Need] = &[
    Need::Root,
    Need::Loop,
    Need::Program("mkfs.ext4"),
    Need::Program("mkfs.xfs"),
    Need::Program("xfs_io"),
    Need::Program("losetup"),
];
const CLIENTS: usize = 3;
/// XFS makes no file system below 300 MiB.
const DISK_MIB: u64 = 320;

/// Three nodes whose state directories lie on disks of their own. The nodes end before their disks go.
struct Powered {
    nodes: Nodes,
    disks: Vec<LoopFs>,
}

impl Powered {
    fn cluster(case: &Case, kind: Kind) -> anyhow::Result<Powered> {
        let dir = case.in_memory()?;
        let (mut nodes, mut disks) = (Nodes::none(&dir)?, Vec::new());
        for number in 1..=3 {
            let disk = LoopFs::make(&dir, &format!("disk{number}"), kind, DISK_MIB)?;
            let args = vec!["--connect-from".to_owned(), format!("127.0.1.{number}")];
            let place = Place { address: format!("127.0.0.1:{}", free_port()?), words_before: Vec::new(), args };
            nodes.add_at(place, Some(disk.path().join("state")))?;
            disks.push(disk);
        }
        nodes.join_all()?;
        Ok(Powered { nodes, disks })
    }

    /// These nodes stop at one moment, and what was not written is lost.
    fn lose_power(&mut self, numbers: &[usize]) -> anyhow::Result<()> {
        numbers.iter().try_for_each(|number| self.nodes.pause(*number))?;
        numbers.iter().try_for_each(|number| self.disks[number - 1].lose_power())?;
        numbers.iter().try_for_each(|number| self.nodes.kill(*number))
    }

    /// The power is back.
    fn come_back(&mut self, numbers: &[usize]) -> anyhow::Result<()> {
        numbers.iter().try_for_each(|number| self.disks[number - 1].mount_again())?;
        numbers.iter().try_for_each(|number| self.nodes.launch(*number))?;
        numbers.iter().try_for_each(|number| self.nodes.wait_ready(*number))?;
        self.nodes.wait_healthy()
    }
}

/// Rounds of commands and power loss of the nodes that `choose` says.
fn rounds(case: &Case, kind: Kind, choose: impl Fn(u64, &Nodes) -> anyhow::Result<Vec<usize>>) -> anyhow::Result<()> {
    let rounds = if is_soak() { 30 } else { 2 };
    let (mut powered, mut rng) = (Powered::cluster(case, kind)?, case.rng(1));
    let stream = CommandStream::start(&powered.nodes, CLIENTS, &[1, 2, 3])?;
    for round in 0..rounds {
        stream.wait_for_more(rng.random_range(30..150))?;
        let numbers = choose(round, &powered.nodes)?;
        powered.lose_power(&numbers).with_context(|| format!("round {round}, nodes {numbers:?}"))?;
        if numbers.len() == 1 {
            stream.wait_for_more(30)?;
        }
        powered.come_back(&numbers).with_context(|| format!("round {round}, nodes {numbers:?}"))?;
    }
    let commands = stream.finish(&powered.nodes)?;
    say(&format!("{}: {rounds} power losses, {commands} commands", case.name()));
    for number in powered.nodes.numbers() {
        let log = powered.nodes.log(number);
        let torn = log.lines().find(|line| line.contains("panicked"));
        ensure!(torn.is_none(), "node-{number}: {torn:?}");
    }
    Ok(())
}

#[test]
fn all_nodes_on_ext4_lose_power_at_once() {
    case(NEEDS, |case| rounds(case, Kind::Ext4, |_, _| Ok(vec![1, 2, 3])));
}

#[test]
fn all_nodes_on_xfs_lose_power_at_once() {
    case(NEEDS, |case| rounds(case, Kind::Xfs, |_, _| Ok(vec![1, 2, 3])));
}

#[test]
fn one_node_after_the_other_loses_power() {
    case(NEEDS, |case| rounds(case, Kind::Ext4, |round, _| Ok(vec![usize::try_from(round % 3)? + 1])));
}

#[test]
fn the_leader_loses_power() {
    case(NEEDS, |case| rounds(case, Kind::Xfs, |_, nodes| Ok(vec![nodes.leader()?])));
}

#[test]
fn two_of_three_nodes_lose_power() {
    case(NEEDS, |case| {
        rounds(case, Kind::Ext4, |_, nodes| {
            let leader = nodes.leader()?;
            Ok(vec![leader, leader % 3 + 1])
        })
    });
}
