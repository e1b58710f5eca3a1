//! `brickctl playground start`: every check first, then the processes, the volume and the mount. If a step
//! fails, what was made before it is taken down again.

use super::{
    MADE, NODE_NAME, NodePaths, Playground, PlaygroundNode, RECORD_VERSION, absolute, make_volume, mounts, process,
    remember, take_down,
};
use crate::UsageError;
use crate::args::{Format, Global, PlaygroundStart};
use crate::output::{print_json, write_out};
use anyhow::{Context as _, bail};
use brickfs_common::volume_spec::{VOLUME_BRICKS_MAX, is_volume_name};
use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

/// Room for `/node-1/brickd.sock` within a Unix socket's 107 bytes.
const DIR_MAX_BYTES: usize = 107 - "/node-1/brickd.sock".len();

pub fn start(global: &Global, dir: &Path, options: &PlaygroundStart) -> anyhow::Result<()> {
    check_options(dir, options)?;
    let mount = if options.no_mount { None } else { Some(absolute(&options.mount)?) };
    check_surroundings(dir, mount.as_deref())?;
    let mut record = Playground {
        version: RECORD_VERSION,
        volume: options.volume.clone(),
        is_mount_dir_made: mount.as_deref().is_some_and(|mount| fs::symlink_metadata(mount).is_err()),
        mount,
        is_dir_made: !dir.exists(),
        nodes: Vec::new(),
    };
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    if let Err(error) = build(dir, &mut record, options) {
        if let Err(left) = take_down(dir, &record) {
            eprintln!("brickctl: not everything could be removed again: {left:#}");
        }
        return Err(error.context("the playground did not start"));
    }
    report(global, dir, &record, options)
}

fn check_options(dir: &Path, options: &PlaygroundStart) -> anyhow::Result<()> {
    let usage = |text: String| Err(UsageError(text).into());
    if options.nodes != 1 {
        return usage(format!("--nodes {}: this version runs one node only, give --nodes 1", options.nodes));
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
    if let Some(name) = MADE.iter().find(|name| fs::symlink_metadata(dir.join(name)).is_ok()) {
        bail!("{} is in the way: give another --dir, or remove it", dir.join(name).display());
    }
    let Some(mount) = mount else { return Ok(()) };
    process::sibling("brickfs")?;
    if let Some(there) = mounts::find_mount(mount) {
        bail!("{} is mounted on {} already: unmount it, or give another --mount", there.source, mount.display());
    }
    if mount.starts_with(dir) && MADE.iter().any(|name| mount.starts_with(dir.join(name))) {
        bail!("{} lies in what the playground makes: give another --mount", mount.display());
    }
    match fs::metadata(mount) {
        Ok(meta) if !meta.is_dir() => bail!("{} is not a directory: give another --mount", mount.display()),
        _ => Ok(()),
    }
}

fn build(dir: &Path, record: &mut Playground, options: &PlaygroundStart) -> anyhow::Result<()> {
    record.save(dir)?;
    let paths = NodePaths::of(dir, NODE_NAME);
    fs::DirBuilder::new().mode(0o700).create(&paths.dir)?;
    fs::create_dir(dir.join("bricks"))?;
    let pid = process::start_brickd(&paths, NODE_NAME)?;
    record.nodes.push(PlaygroundNode { name: NODE_NAME.to_owned(), pid });
    record.save(dir)?;
    make_volume(dir, options)?;
    if let Some(mount) = &record.mount {
        fs::create_dir_all(mount).with_context(|| format!("cannot make {}", mount.display()))?;
        mounts::mount_volume(dir, &paths.socket, NODE_NAME, &record.volume, mount)?;
    }
    remember(dir)
}

fn report(global: &Global, dir: &Path, record: &Playground, options: &PlaygroundStart) -> anyhow::Result<()> {
    if global.output == Format::Json {
        return print_json(&serde_json::json!({
            "dir": dir, "volume": record.volume, "mount": record.mount, "bricks": options.bricks,
            "nodes": record.nodes.iter().map(|node| &node.name).collect::<Vec<_>>(),
        }));
    }
    let volume = &record.volume;
    let mut text = format!("The playground runs in {}\n", dir.display());
    for node in &record.nodes {
        text.push_str(&format!("  {}: brickd, pid {}\n", node.name, node.pid));
    }
    text.push_str(&format!("  volume '{volume}': {} bricks in {}\n", options.bricks, dir.join("bricks").display()));
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
    for command in [format!("volume info {volume}"), format!("volume status {volume}"), "playground stop".to_owned()] {
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
        for bad in ["--nodes 3", "--bricks 0", "--bricks 65", "--volume a/b"] {
            let error = check_options(dir, &options(bad)).unwrap_err();
            assert!(error.is::<UsageError>(), "{bad}: {error}");
        }
        assert!(check_options(Path::new(&format!("/{}", "x".repeat(100))), &options("")).is_err());
    }
}
