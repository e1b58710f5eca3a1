//! A stream of commands under faults: each client sets an option of a volume of its own to 1, 2, 3 and so on, through
//! changing nodes, and sends a command whose answer was lost again under its id until it is answered. What was
//! acknowledged is then seen to be there, and the count of commands in the state says that none ran twice.

use crate::admin::{Admin, CommandId, Said};
use crate::eventually::eventually_ok;
use crate::nodes::Nodes;
use anyhow::{Context as _, bail, ensure};
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longer than a node looks for a leader.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// How long one command may stay unanswered, over all its tries.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(60);
/// Of so many commands one is read back where it was acknowledged.
const READ_BACK_EACH: u64 = 8;
const PAUSE: Duration = Duration::from_millis(5);

/// Clients at work.
pub struct CommandStream {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<anyhow::Result<u64>>>,
    /// Commands in the state before the first of these.
    commands_before: u64,
}

#[derive(Default)]
struct Shared {
    is_over: AtomicBool,
    /// The test has failed: nobody waits for the last answers.
    is_given_up: AtomicBool,
    acknowledged: AtomicU64,
}

fn volume_of(client: usize) -> String {
    format!("stream-{client}")
}

impl CommandStream {
    /// Makes the volumes and starts the clients, each through all nodes of `through`.
    pub fn start(nodes: &Nodes, clients: usize, through: &[usize]) -> anyhow::Result<CommandStream> {
        (0..clients).try_for_each(|client| nodes.make_volume(1, &volume_of(client)))?;
        nodes.wait_equal()?;
        let shared = Arc::new(Shared::default());
        let sockets: Vec<PathBuf> = through.iter().map(|number| nodes.socket(*number)).collect();
        let commands_before = nodes.commands(1)?;
        let start = |client: usize| {
            let (shared, sockets) = (shared.clone(), sockets.clone());
            std::thread::spawn(move || work(client, &sockets, &shared))
        };
        let clients = (0..clients).map(start).collect();
        Ok(CommandStream { shared, clients, commands_before })
    }

    /// Commands that were acknowledged until now.
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until so many more were acknowledged.
    pub fn wait_for_more(&self, count: u64) -> anyhow::Result<()> {
        let wanted = self.acknowledged() + count;
        eventually_ok("commands are acknowledged", PROGRESS_TIMEOUT, || {
            if let Some(client) = self.clients.iter().position(JoinHandle::is_finished) {
                bail!("client {client} has ended: its error is shown by 'finish'");
            }
            ensure!(self.acknowledged() >= wanted, "{} of {wanted}", self.acknowledged());
            Ok(())
        })
    }

    /// Ends the clients, each after its last command was acknowledged, and checks the state of all running nodes; gives
    /// the number of commands.
    pub fn finish(self, nodes: &Nodes) -> anyhow::Result<u64> {
        self.end_with(0, nodes)
    }

    /// The same where the test has had so many further commands run.
    pub fn end_with(mut self, further: u64, nodes: &Nodes) -> anyhow::Result<u64> {
        let counts = self.end()?;
        let sent = counts.iter().sum::<u64>() + further;
        let state = nodes.wait_equal()?;
        let commands = nodes.commands(*nodes.running().first().context("nobody runs")?)?;
        ensure!(
            commands == self.commands_before + sent,
            "{sent} commands were acknowledged, the state counts {}: {}",
            commands - self.commands_before,
            if commands < self.commands_before + sent { "some are lost" } else { "some ran twice" }
        );
        for (client, count) in counts.iter().enumerate() {
            let name = volume_of(client);
            let shown = state.to_string();
            for number in nodes.running() {
                let value = nodes.admin(number)?.option(&name, "comment", ANSWER_TIMEOUT)?;
                ensure!(value == count.to_string(), "{name} is at {value} on node-{number}, not {count}: {shown}");
            }
        }
        Ok(sent)
    }

    fn end(&mut self) -> anyhow::Result<Vec<u64>> {
        self.shared.is_over.store(true, Ordering::Relaxed);
        let ended: Vec<_> = self.clients.drain(..).map(JoinHandle::join).collect();
        ended.into_iter().map(|client| client.map_err(|_| anyhow::anyhow!("a client panicked"))?).collect()
    }
}

impl Drop for CommandStream {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        self.shared.is_given_up.store(true, Ordering::Relaxed);
    }
}

/// A client's way through the nodes.
struct Client {
    admins: Vec<Admin>,
    next: usize,
}

impl Client {
    /// Has one command acknowledged, by whichever node; gives which.
    fn change(&mut self, call: &serde_json::Value, shared: &Shared) -> anyhow::Result<usize> {
        let (id, started): (CommandId, _) = (rand::random(), Instant::now());
        loop {
            self.next = (self.next + 1) % self.admins.len();
            match self.admins[self.next].change(id, call, ANSWER_TIMEOUT) {
                Said::Done(_) => return Ok(self.next),
                Said::Refused(why) => bail!("{call} was refused: {why}"),
                Said::Unknown(why) if started.elapsed() > COMMAND_TIMEOUT => {
                    bail!("{call} is not acknowledged after {COMMAND_TIMEOUT:?}: {why}")
                }
                Said::Unknown(why) if shared.is_given_up.load(Ordering::Relaxed) => bail!("{why}"),
                Said::Unknown(_) => std::thread::sleep(PAUSE),
            }
        }
    }
}

fn work(client: usize, sockets: &[PathBuf], shared: &Shared) -> anyhow::Result<u64> {
    let admins: anyhow::Result<Vec<Admin>> = sockets.iter().map(|socket| Admin::new(socket)).collect();
    let (name, mut way) = (volume_of(client), Client { admins: admins?, next: client });
    let mut count = 0;
    while !shared.is_over.load(Ordering::Relaxed) {
        count += 1;
        let call = json!({"volume_set": {"name": name, "key": "comment", "value": count.to_string()}});
        let by = way.change(&call, shared).with_context(|| format!("client {client}"))?;
        shared.acknowledged.fetch_add(1, Ordering::Relaxed);
        if count % READ_BACK_EACH == 0 {
            // A node that has died since says nothing.
            if let Ok(value) = way.admins[by].option(&name, "comment", ANSWER_TIMEOUT) {
                ensure!(value == count.to_string(), "{name} is at {value} where {count} was acknowledged");
            }
        }
    }
    Ok(count)
}
