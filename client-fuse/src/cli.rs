//! What was typed: by a person, by mount(8) or by /etc/fstab.

use clap::Parser;
use serde::Deserialize;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where `brickd` of this node listens.
pub const DEFAULT_SOCKET: &str = "/run/brickfs/brickd.sock";
/// Whether a mount polls unless told: see docs/design/performance.md for the figures.
const POLL_DEFAULT: bool = false;
const CLIENT_CONFIG: &str = "/etc/brickfs/client.toml";

/// Mounts a BrickFS volume.
#[derive(Parser)]
#[command(
    name = "brickfs",
    version,
    about,
    after_help = "Examples:\n  brickfs /mnt/vol\n  brickfs localhost:/vol /mnt/vol -o ro\n  mount -t fuse 'brickfs#localhost:/vol/sub' /mnt/vol\n  mount -t brickfs localhost:/vol /mnt/vol"
)]
struct Arguments {
    #[arg(
        help = "[SOURCE] MOUNTPOINT: the source is HOST[,HOST...]:/VOLUME[/SUBDIRECTORY]; without one the volume of \
        /etc/brickfs/client.toml, else the only volume of this node"
    )]
    #[arg(required = true, num_args = 1..=2, value_name = "SOURCE] [MOUNTPOINT")]
    names: Vec<String>,
    /// Mount options, comma-separated: ro, strict, timeout=SECONDS, poll=on|off, socket=PATH and those of mount(8)
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    /// Stay in the foreground
    #[arg(short, long)]
    foreground: bool,
    /// Unix socket of brickd
    #[arg(long)]
    socket: Option<PathBuf>,
    /// Append the log to this file (in the foreground it goes to standard error)
    #[arg(long)]
    log_file: Option<PathBuf>,
    /// Seconds that an operation waits for an absent server before EIO; 0 for ever
    #[arg(long)]
    timeout: Option<u64>,
    /// Look for the next message for a moment before sleeping: small operations are faster, at the price of
    /// CPU time that nobody else wants
    #[arg(long, value_name = "on|off")]
    poll: Option<Switch>,
    /// Accepted for mount(8)
    #[arg(short = 'n', hide = true)]
    no_mtab: bool,
    /// Accepted for mount(8)
    #[arg(short = 's', hide = true)]
    sloppy: bool,
    /// Accepted for mount(8)
    #[arg(short = 'v', hide = true)]
    verbose: bool,
    /// Accepted for mount(8)
    #[arg(short = 't', hide = true)]
    kind: Option<String>,
    /// Inherited pipe on which a background mount tells that it is up
    #[arg(long, hide = true)]
    status_fd: Option<i32>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct ClientConfig {
    volume: Option<String>,
    socket: Option<PathBuf>,
}

/// A switch as typed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Switch {
    On,
    Off,
}

/// Why nothing is mounted.
pub enum ArgumentError {
    /// Help or a usage error was printed; the exit code.
    Shown(u8),
    /// One line to print.
    Bad(String),
}

/// What to mount, where and how.
#[derive(Clone, Debug)]
pub struct MountPlan {
    /// What the kernel shows as source.
    pub source: String,
    /// The volume; empty for the only one.
    pub volume: String,
    /// Directory of the volume that becomes the mount's root, as names.
    pub subdirectory: Vec<String>,
    /// Where.
    pub mountpoint: PathBuf,
    /// Unix socket; `None` for the usual one of this machine.
    pub socket: Option<PathBuf>,
    /// Patience with an absent server.
    pub timeout: Option<Duration>,
    /// Exact close-to-open: no cached names and attributes.
    pub strict: bool,
    /// Look for the next message for a moment before sleeping.
    pub poll: bool,
    /// Read-only.
    pub read_only: bool,
    /// Change the flags of the mount that is there.
    pub remount: bool,
    /// Flags of mount(8) to pass on.
    pub flags: Vec<String>,
    /// Stay.
    pub foreground: bool,
    /// Log file.
    pub log_file: Option<PathBuf>,
    /// Inherited status pipe.
    pub status_fd: Option<i32>,
}

/// Beginnings of options that are for others: systemd, older helpers, and those that the kernel shows for a
/// mount and mount(8) hands back with `remount`.
const KERNEL_OPTIONS: [&str; 9] =
    ["x-", "fsname=", "subtype=", "comment=", "user_id=", "group_id=", "rootmode=", "max_read=", "blksize="];

/// Options of mount(8) and systemd that say nothing to a file system.
fn is_ignored(option: &str) -> bool {
    let ignored = [
        "defaults",
        "auto",
        "noauto",
        "_netdev",
        "nofail",
        "user",
        "users",
        "nouser",
        "allow_other",
        "default_permissions",
        "relatime",
        "strictatime",
        "async",
        "",
    ];
    ignored.contains(&option) || KERNEL_OPTIONS.iter().any(|prefix| option.starts_with(prefix))
}

/// Reads the command line.
pub fn read_arguments(arguments: impl Iterator<Item = OsString>) -> Result<MountPlan, ArgumentError> {
    let typed = Arguments::try_parse_from(arguments).map_err(|error| {
        error.print().ok();
        ArgumentError::Shown(if error.use_stderr() { 1 } else { 0 })
    })?;
    let config = read_config(Path::new(CLIENT_CONFIG))?;
    plan_mount(typed, config)
}

fn read_config(path: &Path) -> Result<ClientConfig, ArgumentError> {
    match std::fs::read_to_string(path) {
        Ok(text) => toml::from_str(&text)
            .map_err(|error| ArgumentError::Bad(format!("{}: {}", path.display(), error.message()))),
        Err(_) => Ok(ClientConfig::default()),
    }
}

fn plan_mount(typed: Arguments, config: ClientConfig) -> Result<MountPlan, ArgumentError> {
    let bad = |line: String| Err(ArgumentError::Bad(line));
    let mut names = typed.names;
    let mountpoint = PathBuf::from(names.pop().unwrap_or_default());
    let typed_source = names.pop().filter(|source| !source.is_empty() && source != "brickfs");
    let (volume, subdirectory) = match &typed_source {
        None => (config.volume.unwrap_or_default(), Vec::new()),
        Some(source) => match source.split_once(":/") {
            Some((_, path)) => {
                let mut parts = path.split('/').filter(|part| !part.is_empty()).map(str::to_owned);
                (parts.next().unwrap_or_default(), parts.collect::<Vec<_>>())
            }
            None => return bad(format!("'{source}' is not HOST:/VOLUME")),
        },
    };
    if subdirectory.iter().any(|part| part == "." || part == "..") {
        return bad("the subdirectory must not contain '.' or '..'".into());
    }
    let source = typed_source.unwrap_or_else(|| format!("localhost:/{volume}"));
    let mut plan = MountPlan {
        source,
        volume,
        subdirectory,
        mountpoint,
        socket: typed.socket.or(config.socket),
        timeout: Some(Duration::from_secs(30)),
        strict: false,
        poll: POLL_DEFAULT,
        read_only: false,
        remount: false,
        flags: Vec::new(),
        foreground: typed.foreground,
        log_file: typed.log_file,
        status_fd: typed.status_fd,
    };
    let seconds = |text: &str| match text.parse::<u64>() {
        Ok(0) => Ok(None),
        Ok(n) => Ok(Some(Duration::from_secs(n))),
        Err(_) => Err(ArgumentError::Bad(format!("timeout '{text}' is not a number of seconds"))),
    };
    for option in typed.options.iter().flat_map(|text| text.split(',')) {
        match option {
            "ro" => plan.read_only = true,
            "rw" => plan.read_only = false,
            "remount" => plan.remount = true,
            "strict" => plan.strict = true,
            "poll=on" => plan.poll = true,
            "poll=off" => plan.poll = false,
            "suid" | "nosuid" | "dev" | "nodev" | "exec" | "noexec" | "atime" | "noatime" | "nodiratime" | "sync"
            | "dirsync" => {
                plan.flags.push(option.to_owned());
            }
            _ if option.starts_with("timeout=") => plan.timeout = seconds(&option[8..])?,
            _ if option.starts_with("socket=") => plan.socket = Some(option[7..].into()),
            _ if is_ignored(option) => {}
            _ => return bad(format!("unknown mount option '{option}'; see brickfs --help")),
        }
    }
    if let Some(poll) = typed.poll {
        plan.poll = poll == Switch::On;
    }
    if let Some(timeout) = typed.timeout {
        plan.timeout = seconds(&timeout.to_string())?;
    }
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(words: &[&str]) -> Result<MountPlan, String> {
        let typed = Arguments::try_parse_from([&["brickfs"], words].concat()).map_err(|e| e.to_string())?;
        plan_mount(typed, ClientConfig::default()).map_err(|error| match error {
            ArgumentError::Bad(line) => line,
            ArgumentError::Shown(code) => code.to_string(),
        })
    }

    #[test]
    fn all_forms_of_mount_are_understood() {
        let p = plan(&["/mnt/vol"]).unwrap();
        assert_eq!((p.volume.as_str(), p.mountpoint.to_str()), ("", Some("/mnt/vol")));
        let p =
            plan(&["host1,host2:/vol/sub/dir", "/mnt", "-o", "rw,_netdev,nofail,x-systemd.automount,nodev"]).unwrap();
        assert_eq!(
            (p.volume.as_str(), p.subdirectory, p.flags),
            ("vol", vec!["sub".into(), "dir".into()], vec!["nodev".into()])
        );
        let p = plan(&["h:/v", "/mnt", "-o", "ro,strict,timeout=0"]).unwrap();
        assert!(p.read_only && p.strict && p.timeout.is_none());
        assert!(plan(&["h:/v", "/mnt", "-o", "poll=on"]).unwrap().poll);
        assert!(!plan(&["h:/v", "/mnt", "-o", "poll=on", "--poll", "off"]).unwrap().poll);
    }

    #[test]
    fn what_is_not_understood_is_said_in_one_line() {
        assert_eq!(plan(&["nonsense", "/mnt"]).unwrap_err(), "'nonsense' is not HOST:/VOLUME");
        assert!(plan(&["h:/v", "/mnt", "-o", "frobnicate"]).unwrap_err().contains("'frobnicate'"));
        assert!(plan(&["h:/v", "/mnt", "-o", "timeout=x"]).unwrap_err().contains("'x'"));
        assert!(plan(&["h:/v/../x", "/mnt"]).is_err());
        assert!(plan(&["h:/v", "/mnt", "-o", "poll=maybe"]).is_err());
    }
}
