//! `brickctl`: the command line of BrickFS. It talks to `brickd` over its Unix socket; `playground` runs a
//! whole cluster on one machine. Exit codes: 0 ok, 1 failed, 2 usage, 3 degraded (only with `--check`).

mod admin;
mod args;
mod clock;
mod cmd;
mod members;
mod output;
mod playground;
mod raft_table;

use args::{Args, Group};
use clap::Parser as _;
use std::process::ExitCode;

/// A wrong use of the command that only shows while it runs: exit code 2.
#[derive(Debug)]
pub struct UsageError(pub String);

impl std::fmt::Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// How a command that did not fail ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// All is well.
    Fine,
    /// Asked with `--check`, and something is not as it should be.
    Degraded,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let result = match &args.group {
        Group::Volume(command) => cmd::volume::run(&args.global, command),
        Group::Cluster(command) => cmd::cluster::run(&args.global, command),
        Group::Peer(command) => cmd::peer::run(&args.global, command),
        Group::Playground(command) => playground::run(&args.global, command),
    };
    match result {
        Ok(Outcome::Fine) => ExitCode::SUCCESS,
        Ok(Outcome::Degraded) => ExitCode::from(3),
        Err(error) => {
            eprintln!("brickctl: {error:#}");
            if error.is::<UsageError>() { ExitCode::from(2) } else { ExitCode::from(1) }
        }
    }
}
