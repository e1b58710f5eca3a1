//! The style of the project, as far as a program can see it: which crate may use which, what every file opens with,
//! how long it may be, and that links in the documents lead somewhere.

use anyhow::{Context as _, ensure};
use brickfs_tests::at::At as _;
use brickfs_tests::run::{project_dir, run};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const FILE_LINES_MAX: usize = 800;
/// Directories that hold nothing of the project's own.
const FOREIGN: [&str; 2] = ["target", ".git"];

/// Crates of the project that each crate may use.
const EDGES: &[(&str, &[&str])] = &[
    ("brickfs-common", &[]),
    ("brickfs-proto", &["brickfs-common"]),
    ("brickfs-client", &["brickfs-common", "brickfs-proto"]),
    ("brickfs-client-fuse", &["brickfs-common", "brickfs-proto", "brickfs-client"]),
    ("brickfs-server", &["brickfs-common", "brickfs-proto", "brickfs-client"]),
    ("brickfs-cli", &["brickfs-common", "brickfs-proto", "brickfs-client"]),
    // What tests see of the product is its programs and its wire.
    ("brickfs-tests", &["brickfs-common", "brickfs-proto"]),
    ("brickfs-benches", &["brickfs-common", "brickfs-proto", "brickfs-client", "brickfs-server"]),
];

/// Every file of the project with one of these extensions.
fn files_with(extensions: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
    let (mut found, mut waiting) = (Vec::new(), vec![project_dir()]);
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory).at(&directory)? {
            let entry = entry.at(&directory)?;
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            if entry.file_type().at(&path)?.is_dir() {
                if !FOREIGN.contains(&name.as_str()) {
                    waiting.push(path);
                }
            } else if path.extension().is_some_and(|extension| extensions.iter().any(|wanted| extension == *wanted)) {
                found.push(path);
            }
        }
    }
    ensure!(!found.is_empty(), "no file with {extensions:?}");
    found.sort();
    Ok(found)
}

/// A path as people say it.
fn short(path: &Path) -> String {
    path.strip_prefix(project_dir()).unwrap_or(path).display().to_string()
}

fn must_be_empty(what: &str, wrong: &[String]) -> anyhow::Result<()> {
    ensure!(wrong.is_empty(), "{what}:\n  {}", wrong.join("\n  "));
    Ok(())
}

#[test]
fn crates_use_only_the_crates_below_them() -> anyhow::Result<()> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["metadata", "--format-version", "1", "--no-deps", "--offline"]).current_dir(project_dir());
    let metadata: Value = serde_json::from_str(&run(&mut command)?.ok()?)?;
    let mut wrong = Vec::new();
    for package in metadata["packages"].as_array().context("no packages")? {
        let name = package["name"].as_str().context("no name")?;
        let Some((_, allowed)) = EDGES.iter().find(|(known, _)| *known == name) else {
            wrong.push(format!("{name} is not in the table of crates"));
            continue;
        };
        for dependency in package["dependencies"].as_array().context("no dependencies")? {
            let used = dependency["name"].as_str().context("no name")?;
            let is_ours = used.starts_with("brickfs-");
            if is_ours && !allowed.contains(&used) {
                wrong.push(format!("{name} uses {used}"));
            }
            if !is_ours && dependency["path"].is_string() {
                wrong.push(format!("{name} uses {used} by its path"));
            }
        }
    }
    must_be_empty("dependencies that the design does not have", &wrong)
}

#[test]
fn third_party_versions_stand_in_the_root_manifest_only() -> anyhow::Result<()> {
    let mut wrong = Vec::new();
    for path in files_with(&["toml"])? {
        if path.file_name().is_none_or(|name| name != "Cargo.toml") || path.parent() == Some(project_dir().as_path()) {
            continue;
        }
        let text = fs::read_to_string(&path).at(&path)?;
        let mut is_dependencies = false;
        for (number, line) in text.lines().enumerate() {
            if let Some(section) = line.strip_prefix('[') {
                is_dependencies = section.trim_end_matches(']').ends_with("dependencies");
            } else if is_dependencies && line.contains('=') && !line.contains("workspace = true") {
                wrong.push(format!("{}:{}: {line}", short(&path), number + 1));
            }
        }
    }
    must_be_empty("dependencies with a version of their own", &wrong)
}

#[test]
fn every_file_says_what_it_is_for_and_is_not_too_long() -> anyhow::Result<()> {
    let mut wrong = Vec::new();
    for path in files_with(&["rs"])? {
        let text = fs::read_to_string(&path).at(&path)?;
        let lines: Vec<&str> = text.lines().collect();
        let name = short(&path);
        if !lines.first().is_some_and(|line| line.starts_with("//! ")) {
            wrong.push(format!("{name} does not open with //!"));
        }
        if lines.len() > FILE_LINES_MAX {
            wrong.push(format!("{name} has {} lines, more than {FILE_LINES_MAX}", lines.len()));
        }
    }
    must_be_empty("files out of style", &wrong)
}

#[test]
fn scripts_and_protocols_say_what_they_are_for() -> anyhow::Result<()> {
    let mut wrong = Vec::new();
    for path in files_with(&["proto", "sh", "brickfs"])? {
        let text = fs::read_to_string(&path).at(&path)?;
        let first = text.lines().find(|line| !line.starts_with("#!")).unwrap_or_default();
        if !first.starts_with("//") && !first.starts_with('#') {
            wrong.push(format!("{} does not open with a comment", short(&path)));
        }
    }
    must_be_empty("files out of style", &wrong)
}

#[test]
fn links_of_the_documents_lead_somewhere() -> anyhow::Result<()> {
    let mut wrong = Vec::new();
    for path in files_with(&["md"])? {
        let text = fs::read_to_string(&path).at(&path)?;
        for target in links_of(&text) {
            let (file, anchor) = target.split_once('#').map_or((target, None), |(file, anchor)| (file, Some(anchor)));
            let linked =
                if file.is_empty() { path.clone() } else { path.parent().unwrap_or(Path::new("/")).join(file) };
            if !linked.exists() {
                wrong.push(format!("{}: {target}", short(&path)));
            } else if let Some(anchor) = anchor {
                let text = fs::read_to_string(&linked).at(&linked)?;
                if !text.lines().filter(|line| line.starts_with('#')).any(|line| anchor_of(line) == anchor) {
                    wrong.push(format!("{}: {target} (no such heading)", short(&path)));
                }
            }
        }
    }
    must_be_empty("links that lead nowhere", &wrong)
}

/// Targets of `[text](target)` that are in the project.
fn links_of(text: &str) -> Vec<&str> {
    let mut links = Vec::new();
    let mut is_code = false;
    for line in text.lines() {
        is_code ^= line.trim_start().starts_with("```");
        let mut rest = if is_code { "" } else { line };
        while let Some((_, after)) = rest.split_once("](") {
            let Some((target, tail)) = after.split_once(')') else { break };
            if !target.contains("://") && !target.starts_with("mailto:") {
                links.push(target);
            }
            rest = tail;
        }
    }
    links
}

/// What a heading is linked by: lower case, words joined by hyphens, without punctuation.
fn anchor_of(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn the_readme_s_commands_exist() -> anyhow::Result<()> {
    let (readme, makefile) = (project_dir().join("README.md"), project_dir().join("Makefile"));
    let (text, rules) = (fs::read_to_string(&readme).at(&readme)?, fs::read_to_string(&makefile).at(&makefile)?);
    let mut wrong = Vec::new();
    for target in text.split("make ").skip(1).filter_map(|after| after.split([' ', '`', '\n', ',', '.']).next()) {
        let is_rule = rules.lines().any(|line| line.starts_with(&format!("{target}:")));
        if text.contains(&format!("`make {target}`")) && !is_rule {
            wrong.push(target.to_owned());
        }
    }
    for target in ["try", "test"] {
        ensure!(text.contains(&format!("make {target}")), "the README does not say 'make {target}'");
    }
    must_be_empty("targets that the README names and make does not have", &wrong)
}

#[test]
fn links_and_anchors_are_understood() {
    let text = "a [b](c.md#d-e) and [f](https://g) `x`\n```\n[no](no.md)\n```\n[h](#i)";
    assert_eq!(links_of(text), ["c.md#d-e", "#i"]);
    assert_eq!(anchor_of("## The wire: gRPC, and why"), "the-wire-grpc-and-why");
}
