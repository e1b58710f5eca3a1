//! The settings of the `brickd` process: command line over TOML file over defaults, all checked before
//! anything starts.

use crate::manager::{CERTIFICATE_LIFE_S, DEFAULT_PORT};
use crate::metrics::parse_setting;
use anyhow::{Context as _, bail};
use brickfs_common::cluster::address::parse_address;
use brickfs_common::cluster::state::{ADDRESSES_MAX, NodeRole};
use brickfs_common::volume_spec::is_node_name;
use clap::Parser;
use serde::Deserialize;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

const DEFAULT_STATE: &str = "/var/lib/brickfs";
const DEFAULT_SOCKET: &str = "/run/brickfs/brickd.sock";
const DEFAULT_CONFIG: &str = "/etc/brickfs/brickd.toml";
/// openraft says again and again that a node is away, and so does this project once.
const DEFAULT_LOG: &str = "info,openraft=off";
/// What nice(2) knows.
const NICE: std::ops::RangeInclusive<i32> = -20..=19;
/// A second is what a test may want; more than the authority lasts, nobody gets.
const CERTIFICATE_LIFE_RANGE_S: std::ops::RangeInclusive<u64> = 5..=3_650 * 24 * 3_600;
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
    /// Where other nodes and clients reach this node, over TLS: ADDRESS:PORT, or none for the Unix socket alone
    /// [default: port 24180 of every address of this machine]
    #[arg(long, value_name = "ADDRESS:PORT|none")]
    listen: Option<String>,
    /// HOST:PORT that the cluster is told for it; may be given more than once [default: the address to listen on, or
    /// the one that this machine goes out by]
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Vec<String>,
    /// Own address that connections to other nodes are made from [default: what the routes say]
    #[arg(long, value_name = "ADDRESS")]
    connect_from: Option<IpAddr>,
    /// Be a witness once this node joins a cluster: it votes and has no bricks
    #[arg(long)]
    witness: bool,
    /// How many seconds the certificates last that this node signs [default: 7776000, which is 90 days]
    #[arg(long, value_name = "SECONDS")]
    certificate_life_s: Option<u64>,
    /// Where programs read metrics, GET /metrics: ADDRESS:PORT, or none. On an address of this machine alone, such as
    /// 127.0.0.1, in plain HTTP; elsewhere over TLS with a certificate of the cluster [default: none]
    #[arg(long, value_name = "ADDRESS:PORT|none")]
    metrics: Option<String>,
    /// Settings file with the keys state, socket, node_name, log, poll, nice, listen, advertise, connect_from, witness,
    /// certificate_life_s, metrics [default: /etc/brickfs/brickd.toml if it exists]
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
    listen: Option<String>,
    #[serde(default)]
    advertise: Vec<String>,
    connect_from: Option<IpAddr>,
    #[serde(default)]
    witness: bool,
    certificate_life_s: Option<u64>,
    metrics: Option<String>,
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
    /// Where to listen for other nodes and clients; `None` for the Unix socket alone.
    pub listen: Option<SocketAddr>,
    /// `host:port` where they reach this node; none where it does not listen.
    pub addresses: Vec<String>,
    /// Own address of connections to other nodes.
    pub connect_from: Option<IpAddr>,
    /// What this node is for in a cluster that it joins.
    pub role: NodeRole,
    /// How long the certificates last that this node signs.
    pub certificate_life: Duration,
    /// Where metrics are read.
    pub metrics: Option<SocketAddr>,
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
    let listen = parse_listen(args.listen.or(file.listen).as_deref())?;
    let advertise = if args.advertise.is_empty() { file.advertise } else { args.advertise };
    let life_s = args.certificate_life_s.or(file.certificate_life_s).unwrap_or(CERTIFICATE_LIFE_S);
    let config = Config {
        listen,
        addresses: addresses_of(listen, advertise)?,
        connect_from: args.connect_from.or(file.connect_from),
        role: if args.witness || file.witness { NodeRole::Witness } else { NodeRole::Server },
        certificate_life: Duration::from_secs(life_s),
        metrics: parse_setting(args.metrics.or(file.metrics).as_deref())?,
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
    if !CERTIFICATE_LIFE_RANGE_S.contains(&life_s) {
        let range = CERTIFICATE_LIFE_RANGE_S;
        bail!("certificate_life_s must be from {} to {}, not {life_s}", range.start(), range.end());
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

fn parse_listen(text: Option<&str>) -> anyhow::Result<Option<SocketAddr>> {
    match text {
        None => Ok(Some(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), DEFAULT_PORT))),
        Some("none") => Ok(None),
        Some(text) => match text.parse::<SocketAddr>() {
            Ok(address) if address.port() != 0 => Ok(Some(address)),
            _ => bail!("listen must be ADDRESS:PORT with numbers, as in 192.0.2.1:24180, or none, not '{text}'"),
        },
    }
}

fn addresses_of(listen: Option<SocketAddr>, advertise: Vec<String>) -> anyhow::Result<Vec<String>> {
    let Some(listen) = listen else {
        if let Some(address) = advertise.first() {
            bail!("advertise '{address}' is of no use with listen none: nobody could connect");
        }
        return Ok(Vec::new());
    };
    if !advertise.is_empty() {
        if advertise.len() > ADDRESSES_MAX {
            bail!("advertise takes at most {ADDRESSES_MAX} addresses, not {}", advertise.len());
        }
        advertise.iter().try_for_each(|address| parse_address(address).map(drop))?;
        return Ok(advertise);
    }
    let ip = if listen.ip().is_unspecified() { own_ip() } else { Some(listen.ip()) };
    let name = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    Ok(vec![match ip {
        Some(ip) => SocketAddr::new(ip, listen.port()).to_string(),
        None => format!("{}:{}", name(), listen.port()),
    }])
}

/// The address that this machine goes out by: what the routes say for one that is reserved for documents. Nothing is
/// sent.
fn own_ip() -> Option<IpAddr> {
    let of = |own: &str, to: &str| {
        let socket = UdpSocket::bind(own).ok()?;
        socket.connect(to).ok()?;
        socket.local_addr().ok().map(|address| address.ip())
    };
    of("0.0.0.0:0", "192.0.2.1:9").or_else(|| of("[::]:0", "[2001:db8::1]:9"))
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
        assert!(with(Args { listen: Some("host:1".into()), ..Args::default() }).is_err());
        assert!(with(Args { listen: Some("127.0.0.1:0".into()), ..Args::default() }).is_err());
        assert!(with(Args { advertise: vec!["x".into()], ..Args::default() }).is_err());
        let none = Args { listen: Some("none".into()), advertise: vec!["h:1".into()], ..Args::default() };
        assert!(with(none).is_err(), "nobody could connect");
        assert!(with(Args { metrics: Some("localhost:9".into()), ..Args::default() }).is_err());
        assert!(with(Args { certificate_life_s: Some(1), ..Args::default() }).is_err());
    }

    #[test]
    fn others_are_told_where_this_node_listens() {
        let with = |args: Args| merge(args, File::default()).unwrap();
        let all = with(Args::default());
        assert_eq!(all.listen.unwrap().port(), DEFAULT_PORT);
        assert_eq!(all.addresses.len(), 1);
        parse_address(&all.addresses[0]).unwrap();
        let one = with(Args { listen: Some("[::1]:7".into()), ..Args::default() });
        assert_eq!((one.listen, one.addresses), ("[::1]:7".parse().ok(), vec!["[::1]:7".to_owned()]));
        let told = with(Args { advertise: vec!["a.example:9".into(), "10.0.0.1:9".into()], ..Args::default() });
        assert_eq!(told.addresses, ["a.example:9", "10.0.0.1:9"]);
        let none = with(Args { listen: Some("none".into()), ..Args::default() });
        assert_eq!((none.listen, none.addresses.len()), (None, 0));
    }
}
