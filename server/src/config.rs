//! The settings of the `brickd` process: command line over TOML file over defaults, all checked before
//! anything starts.

use anyhow::{Context as _, bail};
use brickfs_common::volume_spec::is_node_name;
use clap::Parser;
use serde::Deserialize;
use std::path::{Path, PathBuf};

const DEFAULT_STATE: &str = "/var/lib/brickfs";
const DEFAULT_SOCKET: &str = "/run/brickfs/brickd.sock";
const DEFAULT_CONFIG: &str = "/etc/brickfs/brickd.toml";
const DEFAULT_LOG: &str = "info";
/// What nice(2) knows.
const NICE: std::ops::RangeInclusive<i32> = -20..=19;
/// A Unix socket's path has at most 107 bytes.
const SOCKET_PATH_MAX_BYTES: usize = 107;

/// brickd: serves the bricks of this node
#[derive(Parser, Debug, Default)]
#[command(name = "brickd", version, after_help = "Try 'brickctl playground start' for a cluster on one machine.")]
struct Args {
    /// Directory of this node's state [default: /var/lib/brickfs]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Unix socket to listen on [default: /run/brickfs/brickd.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Name of this node [default: its last name, else the host name]
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// Look for the next call for a moment before sleeping: faster where waking a CPU is slow, as on virtual
    /// machines; stops by itself where others want the CPU [default: on]
    #[arg(long, value_name = "on|off", value_parser = clap::builder::BoolishValueParser::new())]
    poll: Option<bool>,
    /// Niceness of the thread that serves, from -20 to 19: below 0 it goes before the programs that wait for
    /// it [default: -5 where that is allowed, or the one that brickd was started with]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    nice: Option<i32>,
    /// Settings file with the keys state, socket, node_name, log, poll, nice [default: /etc/brickfs/brickd.toml if it exists]
    #[arg(long, value_name = "TOML")]
    config: Option<PathBuf>,
    /// What to log: error, warn, info, debug, trace, or a filter such as brickd=debug [default: info]
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
}

#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields)]
struct File {
    state: Option<PathBuf>,
    socket: Option<PathBuf>,
    node_name: Option<String>,
    log: Option<String>,
    poll: Option<bool>,
    nice: Option<i32>,
}

/// The settings in force.
#[derive(Debug, PartialEq, Eq)]
pub struct Config {
    /// Directory of this node's state.
    pub state: PathBuf,
    /// Unix socket to listen on.
    pub socket: PathBuf,
    /// The node's name where one was given.
    pub node_name: Option<String>,
    /// Log filter.
    pub log: String,
    /// Poll before sleeping.
    pub poll: bool,
    /// Niceness of the thread that serves, where one was given.
    pub nice: Option<i32>,
}

impl Config {
    /// Reads command line and file. Ends the process for `--help` and bad usage.
    pub fn load() -> anyhow::Result<Config> {
        let args = Args::parse();
        let file = match &args.config {
            Some(path) => read_file(path)?,
            None if Path::new(DEFAULT_CONFIG).exists() => read_file(Path::new(DEFAULT_CONFIG))?,
            None => File::default(),
        };
        merge(args, file)
    }
}

fn read_file(path: &Path) -> anyhow::Result<File> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    // The parser's own message shows the line over several lines; one is enough.
    toml::from_str(&text).map_err(|error| anyhow::anyhow!("{}: {}", path.display(), error.message()))
}

fn merge(args: Args, file: File) -> anyhow::Result<Config> {
    let config = Config {
        state: args.state.or(file.state).unwrap_or_else(|| DEFAULT_STATE.into()),
        socket: args.socket.or(file.socket).unwrap_or_else(|| DEFAULT_SOCKET.into()),
        node_name: args.node_name.or(file.node_name),
        log: args.log.or(file.log).unwrap_or_else(|| DEFAULT_LOG.to_owned()),
        poll: args.poll.or(file.poll).unwrap_or(true),
        nice: args.nice.or(file.nice),
    };
    if let Some(nice) = config.nice.filter(|nice| !NICE.contains(nice)) {
        bail!("nice must be from {} to {}, not {nice}", NICE.start(), NICE.end());
    }
    for (what, path) in [("state", &config.state), ("socket", &config.socket)] {
        if !path.is_absolute() {
            bail!("{what} must be an absolute path, not '{}'", path.display());
        }
    }
    if config.socket.as_os_str().len() > SOCKET_PATH_MAX_BYTES {
        bail!("the socket path {} is longer than {SOCKET_PATH_MAX_BYTES} bytes", config.socket.display());
    }
    if let Some(name) = config.node_name.as_deref().filter(|name| !is_node_name(name)) {
        bail!("'{name}' cannot name a node: give letters, digits, '.', '_' or '-'");
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_wins_over_the_file_and_the_file_over_the_defaults() {
        let file: File = toml::from_str("state = '/s'\nlog = 'debug'\nnice = -20").unwrap();
        let args = Args { log: Some("warn".to_owned()), ..Args::default() };
        let config = merge(args, file).unwrap();
        assert_eq!(config.state, Path::new("/s"));
        assert_eq!(config.socket, Path::new(DEFAULT_SOCKET));
        assert_eq!(config.log, "warn");
        assert_eq!(config.nice, Some(-20));
    }

    #[test]
    fn bad_settings_are_refused() {
        assert!(toml::from_str::<File>("colour = 'red'").is_err());
        let with = |args: Args| merge(args, File::default());
        assert!(with(Args { state: Some("relative".into()), ..Args::default() }).is_err());
        assert!(with(Args { socket: Some(format!("/{}", "x".repeat(120)).into()), ..Args::default() }).is_err());
        assert!(with(Args { node_name: Some("a:b".into()), ..Args::default() }).is_err());
        assert!(with(Args { nice: Some(-21), ..Args::default() }).is_err());
    }
}
