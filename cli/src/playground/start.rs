//! `brickctl playground start`: every check first, then the nodes, the cluster of them, the volume and the mount. If
//! a step fails, what was made before it is taken down again.

use super::record::{Playground, RECORD_VERSION, node_name, port_of};
use super::{absolute, cut, mounts, nodes, process, remember, stop, volume};
use crate::UsageError;
use crate::args::{Format, Global, NODES_MAX, PlaygroundStart};
use crate::output::{print_json, write_out};
use anyhow::{Context as _, bail};
use brickfs_common::volume_spec::{VOLUME_BRICKS_MAX, is_volume_name};
use std::fs;
use std::path::Path;

/// Room for `/node-1/brickd.sock` within a Unix socket's 107 bytes.
const DIR_MAX_BYTES: usize = 107 - "/node-1/brickd.sock".len();
/// Port of node-1 where there are several.
const DEFAULT_BASE_PORT: u16 = 10000;

/// Starts a playground and says what was done.
pub fn start(global: &Global, dir: &Path, options: &PlaygroundStart) -> anyhow::Result<()> {
    let record = make(dir, options)?;
    report(global, dir, &record, options)
}

/// Starts a playground.
pub fn make(dir: &Path, options: &PlaygroundStart) -> anyhow::Result<Playground> {
    check_options(dir, options)?;
    let mount = if options.no_mount { None } else { Some(absolute(&options.mount)?) };
    let base_port = base_port_of(options);
    check_surroundings(dir, mount.as_deref())?;
    check_nodes(dir, options.nodes, base_port)?;
    let mut record = Playground {
        version: RECORD_VERSION,
        volume: options.volume.clone(),
        is_mount_dir_made: mount.as_deref().is_some_and(|mount| fs::symlink_metadata(mount).is_err()),
        mount,
        is_dir_made: !dir.exists(),
        base_port,
        nodes: Vec::new(),
        cuts: Vec::new(),
    };
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    if let Err(error) = build(dir, &mut record, options) {
        if let Err(left) = stop::take_down(dir, &record) {
            eprintln!("brickctl: not everything could be removed again: {left:#}");
        }
        return Err(error.context("the playground did not start"));
    }
    Ok(record)
}

/// A node alone needs no port, unless others are to join it.
fn base_port_of(options: &PlaygroundStart) -> Option<u16> {
    options.base_port.or_else(|| (options.nodes > 1).then_some(DEFAULT_BASE_PORT))
}

fn check_options(dir: &Path, options: &PlaygroundStart) -> anyhow::Result<()> {
    let usage = |text: String| Err(UsageError(text).into());
    if !(1..=NODES_MAX).contains(&options.nodes) {
        return usage(format!("--nodes {}: give 1 to {NODES_MAX}", options.nodes));
    }
    if let Some(base_port) = base_port_of(options) {
        let most = u16::MAX - (options.nodes - 1);
        if !(1..=most).contains(&base_port) {
            return usage(format!("--base-port {base_port}: give 1 to {most}, node I has the port I-1 above it"));
        }
    }
    if !(1..=VOLUME_BRICKS_MAX).contains(&usize::from(options.bricks)) {
        return usage(format!("--bricks {}: give 1 to {VOLUME_BRICKS_MAX}", options.bricks));
    }
    if !is_volume_name(&options.volume) {
        return usage("--volume: give 1 to 64 letters, digits, '_' or '-'".to_owned());
    }
    if dir.as_os_str().len() > DIR_MAX_BYTES {
        return usage(format!("--dir {}: give a path of at most {DIR_MAX_BYTES} bytes", dir.display()));
    }
    Ok(())
}

fn check_surroundings(dir: &Path, mount: Option<&Path>) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("a playground needs root: bricks keep owners and trusted attributes");
    }
    process::sibling("brickd")?;
    match Playground::load(dir)? {
        Some(record) if record.is_running(dir) => bail!(
            "a playground is running in {0} already: see 'brickctl playground status --dir {0}', or end it with \
             'brickctl playground stop --dir {0}'",
            dir.display()
        ),
        Some(_) => bail!(
            "{0} holds a playground that no longer runs: remove it with 'brickctl playground stop --dir {0}'",
            dir.display()
        ),
        None => (),
    }
    let Some(mount) = mount else { return Ok(()) };
    process::sibling("brickfs")?;
    if let Some(there) = mounts::find_mount(mount) {
        bail!("{} is mounted on {} already: unmount it, or give another --mount", there.source, mount.display());
    }
    let all_nodes = (1..=NODES_MAX).map(node_name);
    if stop::made_names(all_nodes).iter().any(|name| mount.starts_with(dir.join(name))) {
        bail!("{} lies in what the playground makes: give another --mount", mount.display());
    }
    match fs::metadata(mount) {
        Ok(meta) if !meta.is_dir() => bail!("{} is not a directory: give another --mount", mount.display()),
        _ => Ok(()),
    }
}

/// Nothing is in the way of the nodes: neither in the directory nor on their ports.
fn check_nodes(dir: &Path, nodes: u16, base_port: Option<u16>) -> anyhow::Result<()> {
    let made = stop::made_names((1..=nodes).map(node_name));
    if let Some(name) = made.iter().find(|name| fs::symlink_metadata(dir.join(name)).is_ok()) {
        bail!("{} is in the way: give another --dir, or remove it", dir.join(name).display());
    }
    let Some(base_port) = base_port else { return Ok(()) };
    (1..=nodes).try_for_each(|index| nodes::require_free_port(port_of(base_port, index)))
}

fn build(dir: &Path, record: &mut Playground, options: &PlaygroundStart) -> anyhow::Result<()> {
    record.save(dir)?;
    if record.base_port.is_some() {
        cut::remove_table(dir).context("cannot remove the cuts of an earlier playground")?;
    }
    fs::create_dir(dir.join("bricks"))?;
    let mut started = Vec::new();
    for index in 1..=options.nodes {
        started.push((index, nodes::spawn_new(dir, record, index)?));
    }
    for (index, child) in &mut started {
        nodes::wait_until_ready(dir, *index, child)?;
    }
    if options.nodes > 1 {
        join_first(dir, options.nodes)?;
        nodes::wait_until_healthy(dir, &node_name(1))?;
    }
    volume::make(dir, options)?;
    if let Some(mount) = &record.mount {
        fs::create_dir_all(mount).with_context(|| format!("cannot make {}", mount.display()))?;
        volume::mount(dir, &record.volume, mount)?;
    }
    remember(dir)
}

/// All at once: each starts its services again, which takes a while.
fn join_first(dir: &Path, nodes: u16) -> anyhow::Result<()> {
    std::thread::scope(|scope| {
        let join = |index| scope.spawn(move || nodes::join(dir, &node_name(1), index));
        let joins: Vec<_> = (2..=nodes).map(join).collect();
        joins.into_iter().try_for_each(|join| match join.join() {
            Ok(joined) => joined.map(drop),
            Err(_) => bail!("joining a node panicked"),
        })
    })
}

fn report(global: &Global, dir: &Path, record: &Playground, options: &PlaygroundStart) -> anyhow::Result<()> {
    if global.output == Format::Json {
        return print_json(&serde_json::json!({
            "dir": dir, "volume": record.volume, "mount": record.mount, "bricks": options.bricks,
            "nodes": record.nodes.iter().map(|node| &node.name).collect::<Vec<_>>(), "base_port": record.base_port,
        }));
    }
    let volume = &record.volume;
    let mut text = format!("The playground runs in {}\n", dir.display());
    for node in &record.nodes {
        let port = record.base_port.map(|base_port| port_of(base_port, node.index().unwrap_or(1)));
        let port = port.map_or_else(String::new, |port| format!(", port {port}"));
        text.push_str(&format!("  {}: brickd, pid {}{port}\n", node.name, node.pid));
    }
    text.push_str(&format!("  volume '{volume}': {} bricks in {}\n", options.bricks, dir.join("bricks").display()));
    if options.nodes > 1 {
        text.push_str("  brick 1 is on node-1, brick 2 on node-2 and so on\n");
    }
    if let Some(mount) = &record.mount {
        text.push_str(&format!("  mounted on {}\n", mount.display()));
    }
    text.push_str("\nTry next:\n");
    if let Some(mount) = &record.mount {
        let mount = mount.display();
        text.push_str(&format!("  cp -a /usr/include {mount}/ && ls {mount}/include\n"));
        text.push_str(&format!(
            "  ls {}/b*              # the files are ordinary files on the bricks\n",
            dir.join("bricks").display()
        ));
    }
    let mut commands = vec![format!("volume info {volume}"), format!("volume status {volume}")];
    if options.nodes > 1 {
        commands.extend(["cluster status", "cluster raft --watch", "playground raft"].map(str::to_owned));
    }
    commands.push("playground stop".to_owned());
    for command in commands {
        text.push_str(&format!("  brickctl {command}\n"));
    }
    write_out(&text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Args, Group, PlaygroundCommand};
    use clap::Parser as _;

    fn options(typed: &str) -> PlaygroundStart {
        let words = ["brickctl", "playground", "start"].into_iter().chain(typed.split_whitespace());
        match Args::try_parse_from(words).unwrap().group {
            Group::Playground(PlaygroundCommand::Start(options)) => options,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_cannot_run_is_refused_before_anything_is_made() {
        let dir = Path::new("/p");
        check_options(dir, &options("")).unwrap();
        check_options(dir, &options("--nodes 9 --base-port 65527")).unwrap();
        let ports = ["--nodes 0", "--nodes 10", "--base-port 0", "--nodes 3 --base-port 65534"];
        for bad in ports.into_iter().chain(["--bricks 0", "--bricks 65", "--volume a/b"]) {
            let error = check_options(dir, &options(bad)).unwrap_err();
            assert!(error.is::<UsageError>(), "{bad}: {error}");
        }
        assert!(check_options(Path::new(&format!("/{}", "x".repeat(100))), &options("")).is_err());
    }

    #[test]
    fn a_node_alone_has_a_port_only_if_one_is_asked_for() {
        let port = |typed: &str| base_port_of(&options(typed));
        assert_eq!([port(""), port("--nodes 3"), port("--base-port 7000")], [None, Some(10000), Some(7000)]);
    }

    #[test]
    fn what_is_in_the_way_of_a_node_is_named() {
        let dir = tempfile::tempdir().unwrap();
        check_nodes(dir.path(), 2, None).unwrap();
        fs::create_dir(dir.path().join("node-2")).unwrap();
        check_nodes(dir.path(), 1, None).unwrap();
        assert!(check_nodes(dir.path(), 2, None).unwrap_err().to_string().contains("node-2 is in the way"));
        let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        assert!(check_nodes(dir.path(), 1, Some(port)).is_err());
    }
}
