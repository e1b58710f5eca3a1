//! `brickctl playground raft`: how nodes agree, played with real processes and told step by step. Each step waits for
//! what has to be seen and fails, and the command with it, if it is not seen in time.

mod leader_cut;
mod leader_killed;
mod observe;
mod quiet;

use super::process::Life;
use super::record::Playground;
use super::{absolute, cut, remembered, require_record, start, stop};
use crate::args::{Format, Global, PlaygroundStart};
use crate::output::{print_json, write_out};
use crate::raft_table::describe_raft;
use anyhow::{Context as _, bail};
use brickfs_common::cluster::report::RaftReport;
use observe::Observer;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Three nodes: the fewest of which one can be lost.
const NODES: u16 = 3;
const BASE_PORT: u16 = 10000;
/// Where the playground is that the play makes for itself.
const TEMPORARY_DIR: &str = "/var/tmp/brickfs-playground-raft";

/// What a step showed.
#[derive(Serialize)]
struct Step {
    step: u8,
    title: &'static str,
    /// What happened, in plain words.
    told: Vec<String>,
    /// The same as figures; times in milliseconds.
    figures: serde_json::Map<String, serde_json::Value>,
    /// Each node's own row at the end of the step.
    raft: RaftReport,
}

/// Prints steps as they come, or keeps them for the JSON at the end.
struct Stage<'a> {
    global: &'a Global,
    steps: Vec<Step>,
}

impl Stage<'_> {
    /// A line of a step, at once: the next may take seconds.
    fn tell(&self, told: &mut Vec<String>, line: String) -> anyhow::Result<()> {
        if self.global.output == Format::Text {
            write_out(&format!("   {line}\n"))?;
        }
        told.push(line);
        Ok(())
    }

    fn begin(&self, step: u8, title: &'static str) -> anyhow::Result<()> {
        match self.global.output {
            Format::Text => write_out(&format!("{}{step}. {title}\n", if step > 1 { "\n" } else { "" })),
            Format::Json => Ok(()),
        }
    }

    fn end(&mut self, step: Step) -> anyhow::Result<()> {
        if self.global.output == Format::Text {
            let table = describe_raft(&step.raft);
            let lines: Vec<String> = table.lines().map(|line| format!("   {line}\n")).collect();
            write_out(&lines.concat())?;
        }
        self.steps.push(step);
        Ok(())
    }
}

/// A step: what it is called, and what plays it.
struct Act {
    title: &'static str,
    play: fn(&Observer, &mut Telling<'_, '_>) -> anyhow::Result<()>,
}

const ACTS: [Act; 4] = [
    Act { title: "Who leads", play: quiet::show_leader },
    Act { title: "A command goes into every log", play: quiet::show_command },
    Act { title: "The leader is killed", play: leader_killed::play },
    Act { title: "The leader is cut off: two logs, and the merge", play: leader_cut::play },
];

/// What an act tells.
struct Telling<'a, 'b> {
    stage: &'a Stage<'b>,
    told: Vec<String>,
    figures: serde_json::Map<String, serde_json::Value>,
}

impl Telling<'_, '_> {
    fn say(&mut self, line: impl Into<String>) -> anyhow::Result<()> {
        self.stage.tell(&mut self.told, line.into())
    }

    fn figure(&mut self, name: &str, value: impl Into<serde_json::Value>) {
        self.figures.insert(name.to_owned(), value.into());
    }
}

/// Plays on the playground that is running; without one it starts one, and stops it at the end.
pub fn raft(global: &Global) -> anyhow::Result<()> {
    cut::require_nft()?;
    let (dir, is_temporary) = match find_running(global)? {
        Some(dir) => (dir, false),
        None => (start_temporary(global)?, true),
    };
    let mut stage = Stage { global, steps: Vec::new() };
    let played = play(&dir, &mut stage);
    if is_temporary {
        let stopped = require_record(&dir).and_then(|record| stop::take_down(&dir, &record));
        match (&played, stopped) {
            (Ok(()), stopped) => stopped.context("the playground does not stop")?,
            (Err(_), Err(left)) => eprintln!("brickctl: the playground does not stop: {left:#}"),
            (Err(_), Ok(())) => (),
        }
    }
    played?;
    match global.output {
        Format::Json => print_json(&stage.steps),
        Format::Text => write_out("\nEverything came out as it should.\n"),
    }
}

fn play(dir: &Path, stage: &mut Stage) -> anyhow::Result<()> {
    let observer = Observer::new(dir);
    require_all_well(dir)?;
    for (index, act) in ACTS.iter().enumerate() {
        let step = u8::try_from(index + 1).unwrap_or(u8::MAX);
        stage.begin(step, act.title)?;
        let mut telling = Telling { stage, told: Vec::new(), figures: serde_json::Map::new() };
        (act.play)(&observer, &mut telling).with_context(|| format!("step {step} ({}) failed", act.title))?;
        let (told, figures) = (telling.told, telling.figures);
        stage.end(Step { step, title: act.title, told, figures, raft: observer.look()? })?;
    }
    Ok(())
}

fn find_running(global: &Global) -> anyhow::Result<Option<PathBuf>> {
    let Some(dir) = &global.dir else { return Ok(remembered()) };
    let dir = absolute(dir)?;
    Ok(Playground::load(&dir)?.is_some_and(|record| record.is_running(&dir)).then_some(dir))
}

fn start_temporary(global: &Global) -> anyhow::Result<PathBuf> {
    let dir = absolute(global.dir.as_deref().unwrap_or(Path::new(TEMPORARY_DIR)))?;
    if global.output == Format::Text {
        let last = BASE_PORT + NODES - 1;
        write_out(&format!("No playground runs: starting {NODES} nodes on ports {BASE_PORT} to {last}.\n\n"))?;
    }
    let options = PlaygroundStart {
        nodes: NODES,
        bricks: 1,
        replica: 1,
        stripe: 1,
        volume: "demo".to_owned(),
        mount: PathBuf::new(),
        no_mount: true,
        base_port: Some(BASE_PORT),
    };
    start::make(&dir, &options)?;
    Ok(dir)
}

/// The play needs three nodes, all running and none cut off: it brings its own faults.
fn require_all_well(dir: &Path) -> anyhow::Result<()> {
    let record = require_record(dir)?;
    if record.nodes.len() < usize::from(NODES) {
        let have = record.nodes.len();
        bail!(
            "the playground in {} has {have} of the {NODES} nodes that this needs: see 'brickctl playground \
             join-node', or stop it and this starts its own",
            dir.display()
        );
    }
    for node in &record.nodes {
        let name = &node.name;
        match record.life_of(dir, node) {
            Life::Running => (),
            Life::Paused => bail!("{name} is paused: 'brickctl playground resume-node {name}' first"),
            Life::Gone => bail!("{name} is not running: 'brickctl playground start-node {name}' first"),
        }
        if !cut::cut_from(&record, node.index()?).is_empty() {
            bail!("{name} is cut off: 'brickctl playground heal-node {name}' first");
        }
    }
    Ok(())
}
