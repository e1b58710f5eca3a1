//! Deterministic simulation of the namespace operations between sets on several nodes: a seed decides
//! which task goes on, which message arrives or is lost, when a process dies at which call of its file
//! system, what a power loss leaves. When all is over, the oracle looks at what is there (N1-N5).
//!
//! `BRICKFS_SIM_SEED=S` replays one seed, `BRICKFS_SIM_SEEDS=N` runs the first N (`make sim`), and
//! `BRICKFS_SIM_POWER_SEEDS=N` the first N with losses of power.

mod calls;
mod client;
mod cluster;
mod crashes;
mod network;
mod oracle;
mod power;
mod rescued;
mod rng;
mod sabotage;
mod shape;
mod stage;
mod traces;

use brickfs_common::errno::Errno;
use brickfs_common::fop::{Fop, Making, ObjectRef};
use brickfs_common::ids::{Gfid, SetId};
use client::{ALWAYS, Client, Ended, Known, attrs, choose_fop, name};
use cluster::Cluster;
use oracle::Findings;
use rng::Rng;
use shape::Shape;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Seeds of a normal test run.
const SEEDS: u64 = 400;
/// Nothing takes longer, however many faults there are.
const STEPS_MAX: u64 = 400_000;

/// Turns of bad weather at most.
const TURNS_MAX: usize = 30_000;

/// How bad the weather is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Weather {
    /// A message in so many is lost; 0 for none.
    loses_one_in: usize,
    /// Processes die.
    kills: bool,
    /// Power fails.
    loses_power: bool,
    /// Nodes stop for a while.
    pauses: bool,
}

struct Sim {
    cluster: Cluster,
    rng: Rng,
    clients: Vec<Client>,
    known: Known,
    weather: Weather,
    ended: Vec<Ended>,
    /// Files that were made under names that are never unlinked or replaced.
    kept: BTreeSet<Gfid>,
    findings: Findings,
}

/// Most nodes in a history: BRICKFS_SIM_NODES, or three.
/// Losses of power are those of one node, which is what this release serves.
fn nodes_max(loses_power: bool) -> usize {
    let usual = if loses_power { 1 } else { 3 };
    env_number("BRICKFS_SIM_NODES").map_or(usual, |nodes| nodes.clamp(1, 3) as usize)
}

fn shape(rng: &mut Rng, seed: u64, keeps_history: bool) -> Shape {
    let sets = 2 + rng.below(3);
    let nodes = 1 + rng.below(sets.min(nodes_max(keeps_history)));
    let node_of: Vec<usize> = (0..sets).map(|set| set % nodes).collect();
    let root_home = SetId(rng.below(sets) as u16);
    Shape { seed, node_of, shares_device: rng.is_one_in(2), root_home, keeps_history }
}

impl Sim {
    fn new(seed: u64, loses_power: bool) -> Sim {
        let mut rng = Rng::new(seed);
        let weather = Weather {
            loses_one_in: rng.pick(&[0, 0, 100, 20]),
            kills: !rng.is_one_in(4),
            loses_power,
            pauses: rng.is_one_in(3),
        };
        let shape = shape(&mut rng, seed, weather.loses_power);
        let clients = (0..2 + rng.below(2)).map(|number| Client::new(1 + number as u8, 25)).collect();
        let known = Known::new(shape.root_home);
        let cluster = Cluster::new(shape);
        Sim {
            cluster,
            rng,
            clients,
            known,
            weather,
            ended: Vec::new(),
            kept: BTreeSet::new(),
            findings: Findings::new(),
        }
    }

    /// The whole history of a seed; answers what was found wrong.
    fn run(&mut self) -> Findings {
        let root = ObjectRef { gfid: Gfid::ROOT, home: self.cluster.shape.root_home };
        let making = Making::File { open: false, exclusive: true, truncate: false };
        let make = Fop::Make { parent: root, name: name(ALWAYS), making, perm: 0o644, umask: 0 };
        let set = self.cluster.dentry_set(root.gfid, &name(ALWAYS));
        if let Err(errno) = oracle::ask(&mut self.cluster, set, make) {
            self.findings.push(format!("the first file cannot be made: {errno}"));
        }
        self.cluster.flush();
        self.cluster.shared.lock().loses_one_in = self.weather.loses_one_in;
        for _ in 0..TURNS_MAX {
            if !self.clients.iter().any(|client| client.ops_left > 0) || !self.is_alive() {
                break;
            }
            self.bad_weather();
            self.advance(true);
        }
        self.clear_up();
        let (tree, findings) = oracle::check(&mut self.cluster);
        self.findings.extend(findings);
        oracle::check_results(&self.cluster, &self.ended, &mut self.findings);
        oracle::check_stale(&tree, &self.ended, &mut self.findings);
        for gfid in &self.kept {
            if !tree.names.contains_key(gfid) {
                self.findings.push(format!("file {gfid} is lost (N3)"));
            }
        }
        std::mem::take(&mut self.findings)
    }

    fn is_alive(&self) -> bool {
        self.cluster.steps < STEPS_MAX
    }

    /// What comes from outside.
    fn bad_weather(&mut self) {
        let node = self.rng.below(self.cluster.nodes.len());
        match self.rng.below(600) {
            0..=2 if self.weather.kills && self.cluster.is_up(node) => {
                self.cluster.nodes[node].process.die_after(self.rng.below(40) as u64);
            }
            3 if self.weather.kills && self.cluster.is_up(node) => self.cluster.kill(node),
            4 if self.weather.loses_power && self.cluster.is_up(node) => self.cluster.lose_power(node),
            5 if self.weather.pauses => self.cluster.nodes[node].is_paused = true,
            6..=19 => self.cluster.nodes[node].is_paused = false,
            20..=39 if !self.cluster.is_up(node) => self.cluster.start_node(node),
            40..=44 => self.tick(node),
            45 => self.end_grace(node),
            _ => {}
        }
    }

    fn tick(&mut self, node: usize) {
        self.cluster.pass_barriers(node);
        if let Some(volume) = &self.cluster.nodes[node].volume {
            volume.tick();
        }
    }

    fn end_grace(&mut self, node: usize) {
        if let Some(volume) = &self.cluster.nodes[node].volume {
            volume.lock().clients.end_grace();
        }
    }

    /// One step of the cluster, and what clients do about it.
    fn advance(&mut self, starts: bool) -> bool {
        let moved = self.cluster.step();
        for (id, back) in self.cluster.take_backs() {
            let loses_reply = self.weather.loses_one_in > 0 && starts && self.rng.is_one_in(10);
            let Some(client) = self.clients.iter_mut().find(|client| client.waits_for(id)) else { continue };
            if let Some(ended) = client.take(back, loses_reply) {
                self.note_end(ended);
            }
        }
        for client in &mut self.clients {
            client.retry(&mut self.cluster);
            if client.is_idle() && client.ops_left > 0 && starts && self.rng.is_one_in(10) {
                let fop = choose_fop(&mut self.rng, &self.known);
                client.start(&mut self.cluster, fop);
            }
        }
        moved
    }

    fn note_end(&mut self, ended: Ended) {
        if let Some(Ok(reply)) = &ended.result {
            for attr in attrs(reply) {
                self.known.learn(&mut self.rng, &attr);
            }
            if let (Fop::Make { name, .. }, Some(attr)) = (&ended.call.fop, &reply.attr)
                && name.as_bytes().starts_with(b"kept")
            {
                self.kept.insert(attr.gfid);
            }
        }
        if let (Fop::Lookup { name, .. }, Some(Err(Errno::ENOENT))) = (&ended.call.fop, &ended.result)
            && name.as_bytes() == ALWAYS.as_bytes()
        {
            self.findings.push("a name that is only ever replaced was missing (N2)".into());
        }
        self.ended.push(ended);
    }

    /// The weather clears: all nodes come back, all that was begun comes to its end.
    fn clear_up(&mut self) {
        self.cluster.shared.lock().loses_one_in = 0;
        for node in 0..self.cluster.nodes.len() {
            self.cluster.nodes[node].is_paused = false;
            self.cluster.nodes[node].process.live();
            if !self.cluster.is_up(node) {
                self.cluster.start_node(node);
            }
        }
        for round in 0..12 {
            while self.advance(false) && self.is_alive() {}
            for node in 0..self.cluster.nodes.len() {
                if !self.cluster.is_up(node) {
                    self.cluster.start_node(node);
                }
                if round == 2 {
                    self.end_grace(node);
                }
                self.tick(node);
                if self.weather.loses_power && (4..7).contains(&round) {
                    self.cluster.mend(node);
                }
            }
        }
        if self.cluster.steps >= STEPS_MAX {
            self.findings.push("no end of it".into());
        }
        let waiting: Vec<String> = self.clients.iter().filter_map(Client::describe).collect();
        if !waiting.is_empty() {
            let tasks = self.cluster.waiting();
            self.findings.push(format!("an operation hangs: {waiting:#?}\ntasks: {tasks:#?}"));
        }
    }
}

/// Plays a history to its end; what was found wrong, a panic included.
fn judge(sim: &mut Sim) -> Findings {
    let result = catch_unwind(AssertUnwindSafe(|| sim.run()));
    result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        vec![format!("panic: {}", text.unwrap_or_default())]
    })
}

/// Runs a seed; what was found, with the history.
fn run_seed(seed: u64, loses_power: bool) -> Result<(), String> {
    let mut sim = Sim::new(seed, loses_power);
    let mut findings = judge(&mut sim);
    if loses_power {
        findings.retain(|finding| !is_loss(finding));
    }
    if findings.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{}seed {seed}, {:?}, {:?}:\n{}\nreplay: BRICKFS_SIM_SEED={seed} cargo test --release -p brickfs-server sim::seeds",
        sim.cluster.shared.history(),
        sim.cluster.shape,
        sim.weather,
        findings.join("\n")
    ))
}

fn env_number(key: &str) -> Option<u64> {
    std::env::var(key).ok()?.parse().ok()
}

/// What a loss of power excuses: that what was not flushed is gone, or back, though its request was answered.
fn is_loss(finding: &str) -> bool {
    finding.ends_with("is lost (N3)") || finding.starts_with("Call {")
}

fn run_seeds(loses_power: bool) {
    if let Some(seed) = env_number("BRICKFS_SIM_SEED") {
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .without_time()
            .with_writer(std::io::stderr)
            .try_init()
            .ok();
        run_seed(seed, loses_power).unwrap_or_else(|report| panic!("{report}"));
        return;
    }
    let key = if loses_power { "BRICKFS_SIM_POWER_SEEDS" } else { "BRICKFS_SIM_SEEDS" };
    let count = env_number(key).unwrap_or(SEEDS);
    let failed: Vec<String> = (0..count).filter_map(|seed| run_seed(seed, loses_power).err()).collect();
    let shown = failed
        .iter()
        .take(env_number("BRICKFS_SIM_SHOW").unwrap_or(5) as usize)
        .cloned()
        .collect::<Vec<_>>()
        .join("\n\n");
    assert!(failed.is_empty(), "{} of {count} seeds failed:\n{shown}", failed.len());
}

#[test] // N1-N5; PROTOCOL 5-9, 13, 20, 25-28
fn seeds_end_with_a_whole_volume() {
    run_seeds(false);
}

#[test] // PROTOCOL 8
fn seeds_with_losses_of_power_end() {
    run_seeds(true);
}
