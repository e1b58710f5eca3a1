//! `brickctl volume`: each command is one call to `brickd` and the printing of its answer.

use crate::admin::{call, unexpected};
use crate::args::{Format, Global, VolumeCommand};
use crate::output::{confirm, print_done, print_json, size, table, write_out};
use crate::{Outcome, playground};
use anyhow::bail;
use brickfs_common::cluster::admin::{AdminCall, AdminResult, OptionValue, VolumeInfo, VolumeStatus};
use std::fmt::Write as _;

/// Runs a command of the group.
pub fn run(global: &Global, command: &VolumeCommand) -> anyhow::Result<Outcome> {
    let socket = playground::socket_of(global)?;
    let ask = |request: AdminCall| call(&socket, &request);
    match command {
        VolumeCommand::Create { name, replica, stripe, force, bricks } => {
            let (name, bricks) = (name.clone(), bricks.clone());
            let (replica, stripe, force) = (*replica, *stripe, *force);
            let info = volume_of(ask(AdminCall::VolumeCreate { name, replica, stripe, force, bricks })?)?;
            print_created(global, &info)?;
        }
        VolumeCommand::Start { name } => start(global, ask(AdminCall::VolumeStart { name: name.clone() })?)?,
        VolumeCommand::Stop { name } => {
            confirm(global, &format!("Stopping volume '{name}' makes it unreachable for its mounts. Go on?"))?;
            ask(AdminCall::VolumeStop { name: name.clone() })?;
            print_done(global, &format!("Volume '{name}' is stopped."))?;
        }
        VolumeCommand::Delete { name } => {
            confirm(
                global,
                &format!("Deleting volume '{name}' cannot be taken back (its bricks keep their files). Go on?"),
            )?;
            ask(AdminCall::VolumeDelete { name: name.clone() })?;
            print_done(global, &format!("Volume '{name}' is deleted. Its brick directories keep what they hold."))?;
        }
        VolumeCommand::List => list(global, &volumes_of(ask(AdminCall::VolumeList {})?)?)?,
        VolumeCommand::Info { name: Some(name) } => {
            let info = volume_of(ask(AdminCall::VolumeInfo { name: name.clone() })?)?;
            match global.output {
                Format::Json => print_json(&info)?,
                Format::Text => write_out(&describe_volume(&info))?,
            }
        }
        VolumeCommand::Info { name: None } => {
            let volumes = volumes_of(ask(AdminCall::VolumeList {})?)?;
            let texts: Vec<String> = volumes.iter().map(describe_volume).collect();
            match global.output {
                Format::Json => print_json(&volumes)?,
                Format::Text => write_out(&texts.join("\n"))?,
            }
        }
        VolumeCommand::Status { name, check } => {
            let status = status_of(ask(AdminCall::VolumeStatus { name: name.clone() })?)?;
            match global.output {
                Format::Json => print_json(&status)?,
                Format::Text => write_out(&describe_status(&status))?,
            }
            return Ok(if *check && !status.healthy { Outcome::Degraded } else { Outcome::Fine });
        }
        VolumeCommand::Set { name, key, value } => {
            let (name, key, value) = (name.clone(), key.clone(), value.clone());
            let text = format!("Option '{key}' of volume '{name}' is set.");
            ask(AdminCall::VolumeSet { name, key, value })?;
            print_done(global, &text)?;
        }
        VolumeCommand::Get { name, key } => {
            options(global, ask(AdminCall::VolumeGet { name: name.clone(), key: key.clone() })?)?;
        }
        VolumeCommand::Reset { name, key } => {
            ask(AdminCall::VolumeReset { name: name.clone(), key: key.clone() })?;
            let what = key.as_ref().map_or("All options".to_owned(), |key| format!("Option '{key}'"));
            print_done(global, &format!("{what} of volume '{name}': back to default."))?;
        }
    }
    Ok(Outcome::Fine)
}

fn print_created(global: &Global, info: &VolumeInfo) -> anyhow::Result<()> {
    match global.output {
        Format::Json => print_json(info),
        Format::Text => write_out(&format!(
            "Volume '{0}' is made ({1}, {2} bricks). Start it with 'brickctl volume start {0}'.\n",
            info.name,
            info.kind,
            info.bricks.len()
        )),
    }
}

fn volume_of(result: AdminResult) -> anyhow::Result<VolumeInfo> {
    match result {
        AdminResult::Volume(info) => Ok(info),
        other => Err(unexpected(&other)),
    }
}

fn volumes_of(result: AdminResult) -> anyhow::Result<Vec<VolumeInfo>> {
    match result {
        AdminResult::Volumes(volumes) => Ok(volumes),
        other => Err(unexpected(&other)),
    }
}

fn status_of(result: AdminResult) -> anyhow::Result<VolumeStatus> {
    match result {
        AdminResult::Status(status) => Ok(status),
        other => Err(unexpected(&other)),
    }
}

/// A volume that starts with some bricks missing is started, and says so; with none it is an error.
fn start(global: &Global, result: AdminResult) -> anyhow::Result<()> {
    let status = status_of(result)?;
    for brick in status.bricks.iter().filter(|brick| !brick.online) {
        let error = brick.error.as_deref().unwrap_or("unknown reason");
        eprintln!("brickctl: brick {}:{} is not served: {error}", brick.node, brick.path);
    }
    if status.bricks.iter().all(|brick| !brick.online) {
        bail!(
            "volume '{0}' is started but none of its bricks is served: see 'brickctl volume status {0}'",
            status.name
        );
    }
    match global.output {
        Format::Json => print_json(&status),
        Format::Text => write_out(&format!("Volume '{}' is started.\n", status.name)),
    }
}

fn list(global: &Global, volumes: &[VolumeInfo]) -> anyhow::Result<()> {
    if global.output == Format::Json {
        return print_json(&volumes);
    }
    if volumes.is_empty() {
        return write_out("There are no volumes. Make one with 'brickctl volume create NAME NODE:/PATH...'.\n");
    }
    let mut rows = vec![["NAME", "TYPE", "BRICKS", "STATUS"].map(str::to_owned).to_vec()];
    rows.extend(volumes.iter().map(|volume| {
        vec![volume.name.clone(), volume.kind.clone(), volume.bricks.len().to_string(), volume.status.clone()]
    }));
    write_out(&table(&rows))
}

fn describe_volume(info: &VolumeInfo) -> String {
    let mut text = String::new();
    let replica = u64::from(info.replica.max(1));
    let stripe = u64::from(info.stripe.max(1));
    let count = info.bricks.len() as u64;
    let _ = writeln!(text, "Volume Name: {}", info.name);
    let _ = writeln!(text, "Type: {}", info.kind);
    let _ = writeln!(text, "Volume ID: {}", info.id);
    let _ = writeln!(text, "Status: {}", info.status);
    let _ = writeln!(text, "Number of Bricks: {} x {stripe} x {replica} = {count}", count / replica / stripe);
    let _ = writeln!(text, "Bricks:");
    for (i, brick) in info.bricks.iter().enumerate() {
        let _ = writeln!(text, "Brick{}: {}:{} (set {})", i + 1, brick.node, brick.path, brick.set);
    }
    if !info.options.is_empty() {
        let _ = writeln!(text, "Options Reconfigured:");
        for (key, value) in &info.options {
            let _ = writeln!(text, "{key}: {value}");
        }
    }
    text
}

fn describe_status(status: &VolumeStatus) -> String {
    let state = if status.started { "started" } else { "stopped" };
    let health = if status.healthy { "healthy" } else { "not healthy" };
    let mut text = format!("Volume {}: {state}, {health}\n", status.name);
    let mut rows = vec![["BRICK", "SET", "ONLINE", "SIZE", "FREE"].map(str::to_owned).to_vec()];
    for brick in &status.bricks {
        let online = if brick.online { "yes" } else { "no" };
        rows.push(vec![
            format!("{}:{}", brick.node, brick.path),
            brick.set.to_string(),
            online.to_owned(),
            size(brick.total_bytes),
            size(brick.free_bytes),
        ]);
    }
    text.push_str(&table(&rows));
    for brick in &status.bricks {
        if let Some(error) = &brick.error {
            let _ = writeln!(text, "{}:{}: {error}", brick.node, brick.path);
        }
        if brick.mending {
            let _ = writeln!(text, "{}:{}: is looked through after a loss of power", brick.node, brick.path);
        }
        for damage in &brick.damage {
            let _ = writeln!(text, "{}:{}: damaged: {damage}", brick.node, brick.path);
        }
    }
    text
}

fn options(global: &Global, result: AdminResult) -> anyhow::Result<()> {
    let AdminResult::Options(values) = result else { return Err(unexpected(&result)) };
    if global.output == Format::Json {
        return print_json(&values);
    }
    let shown = |option: &OptionValue| if option.value.is_empty() { "(none)".to_owned() } else { option.value.clone() };
    let mut rows = vec![["OPTION", "VALUE", "", "WHAT IT DOES"].map(str::to_owned).to_vec()];
    rows.extend(values.iter().map(|option| {
        let default = if option.is_default { "default" } else { "set" };
        vec![option.key.clone(), shown(option), default.to_owned(), option.help.clone()]
    }));
    write_out(&table(&rows))
}
