//! Volumes whose bricks are on several nodes: programs see one file system, whichever node they mount through, and a
//! node that is killed is a pause (N1 to N5, PROTOCOL 5-9, 13, 28 over real connections).

use anyhow::{Context as _, ensure};
use brickfs_tests::at::At as _;
use brickfs_tests::case::{Case, case, say};
use brickfs_tests::eventually::eventually_ok;
use brickfs_tests::mount::Mount;
use brickfs_tests::needs::Need;
use brickfs_tests::nodes::{Nodes, name_of};
use brickfs_tests::tree::{Detail, Tree};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

const NEEDS: &[Need] = &[Need::Root, Need::Fuse];
const VOLUME: &str = "wide";
const SEEN_WITHIN: Duration = Duration::from_secs(20);
/// Rounds of kills.
const KILLS: usize = 4;

/// A cluster with a started volume of two bricks on each node.
struct Wide {
    nodes: Nodes,
    dir: PathBuf,
}

impl Wide {
    fn start(case: &Case, count: usize) -> anyhow::Result<Wide> {
        let dir = case.in_memory()?;
        let nodes = Nodes::cluster(&dir, count)?;
        let wide = Wide { nodes, dir };
        let bricks: Vec<String> = (1..=2 * count)
            .map(|brick| format!("{}:{}", name_of((brick - 1) % count + 1), wide.brick(brick).display()))
            .collect();
        let mut args = vec!["volume", "create", VOLUME, "--force"];
        args.extend(bricks.iter().map(String::as_str));
        // Given to the last node: any of them can.
        wide.nodes.brickctl(count, &args)?.ok()?;
        wide.nodes.brickctl(1, &["volume", "start", VOLUME])?.ok()?;
        Ok(wide)
    }

    fn brick(&self, number: usize) -> PathBuf {
        self.dir.join(format!("brick-{number}"))
    }

    /// Mounts through a node.
    fn mount(&self, node: usize, name: &str) -> anyhow::Result<Mount> {
        let source = format!("{}:/{VOLUME}", name_of(node));
        Mount::start(&self.nodes.socket(node), &source, &self.dir.join(name), &["-o", "strict"])
    }

    fn is_healthy(&self, node: usize) -> anyhow::Result<()> {
        let status = self.nodes.json(node, &["volume", "status", VOLUME])?;
        ensure!(status["healthy"] == true, "{status}");
        Ok(())
    }
}

/// Names of both sorts in many directories: about half of what a rename or link concerns is on the other node.
fn make_tree(root: &Path) -> anyhow::Result<()> {
    for directory in 0..12 {
        let dir = root.join(format!("dir-{directory}"));
        fs::create_dir(&dir).at(&dir)?;
        for file in 0..20 {
            let path = dir.join(format!("file-{file}"));
            fs::write(&path, format!("{directory} {file}\n").repeat(file * 40)).at(&path)?;
        }
    }
    Ok(())
}

fn change_tree(root: &Path) -> anyhow::Result<()> {
    for directory in 0..12 {
        let dir = root.join(format!("dir-{directory}"));
        let other = root.join(format!("dir-{}", (directory + 5) % 12));
        for file in 0..20 {
            let path = dir.join(format!("file-{file}"));
            let target = other.join(format!("moved-{directory}-{file}"));
            match file % 4 {
                0 => fs::rename(&path, &target).at(&path)?,
                1 => fs::hard_link(&path, &target).at(&path)?,
                2 => fs::remove_file(&path).at(&path)?,
                _ => OpenOptions::new().append(true).open(&path).at(&path)?.write_all(b"more").at(&path)?,
            }
        }
    }
    for directory in 0..6 {
        let (from, to) = (root.join(format!("dir-{directory}")), root.join(format!("renamed-{directory}")));
        fs::rename(&from, &to).at(&from)?;
    }
    let gone = root.join("dir-7");
    fs::remove_dir_all(&gone).at(&gone)
}

#[test]
fn a_tree_over_two_nodes_is_what_a_local_one_is_through_either_node() {
    case(NEEDS, |case| {
        let wide = Wide::start(case, 2)?;
        wide.is_healthy(2)?;
        let local = wide.dir.join("local");
        fs::create_dir(&local).at(&local)?;
        let (first, second) = (wide.mount(1, "m1")?, wide.mount(2, "m2")?);
        for root in [first.path(), &local] {
            make_tree(root)?;
        }
        Tree::of(&local, Detail::Contents)?.must_equal(&Tree::of(second.path(), Detail::Contents)?)?;
        for root in [second.path(), &local] {
            change_tree(root)?;
        }
        let expected = Tree::of(&local, Detail::Contents)?;
        for root in [first.path(), second.path()] {
            expected.must_equal(&Tree::of(root, Detail::Contents)?)?;
        }
        let linked = fs::metadata(first.path().join("renamed-5/file-1")).context("the linked file")?;
        ensure!(linked.nlink() == 2, "{} links", linked.nlink());
        for brick in 1..=4 {
            let count = fs::read_dir(wide.brick(brick)).at(wide.brick(brick))?.count();
            ensure!(count > 3, "brick {brick} has {count} entries: its node got no part of the volume");
        }
        first.unmount()?;
        second.unmount()
    });
}

#[test]
fn names_and_appends_from_mounts_of_two_nodes_are_exact() {
    case(NEEDS, |case| {
        let wide = Wide::start(case, 2)?;
        let mounts = [wide.mount(1, "m1")?, wide.mount(2, "m2")?];
        let (won, start) = (AtomicU64::new(0), Barrier::new(2));
        let appended = "appended";
        thread::scope(|scope| -> anyhow::Result<()> {
            let race = |root: PathBuf, who: u64| {
                let (won, start) = (&won, &start);
                scope.spawn(move || -> anyhow::Result<()> {
                    start.wait();
                    for name in 0..100 {
                        let path = root.join(format!("once-{name}"));
                        match File::create_new(&path) {
                            Ok(_) => drop(won.fetch_add(1, Ordering::Relaxed)),
                            Err(error) => ensure!(error.kind() == ErrorKind::AlreadyExists, "{error}"),
                        }
                    }
                    let path = root.join(appended);
                    let mut file = OpenOptions::new().create(true).append(true).open(&path).at(&path)?;
                    (0..200).try_for_each(|line| file.write_all(format!("{who} {line:03}\n").as_bytes()).at(&path))
                })
            };
            let racers = [race(mounts[0].path().into(), 1), race(mounts[1].path().into(), 2)];
            racers.into_iter().try_for_each(|racer| racer.join().expect("a racer panicked"))
        })?;
        let won = won.into_inner();
        ensure!(won == 100, "{won} of 100 names were made");
        let text = fs::read_to_string(mounts[0].path().join(appended)).context("what was appended")?;
        let lines: Vec<&str> = text.lines().collect();
        ensure!(lines.len() == 400, "{} lines of 400", lines.len());
        for who in ["1 ", "2 "] {
            let own: Vec<&&str> = lines.iter().filter(|line| line.starts_with(who)).collect();
            ensure!(own.len() == 200 && own.is_sorted(), "the lines of {who}are not all there and in order");
        }
        mounts.into_iter().try_for_each(Mount::unmount)
    });
}

/// Makes, fills, renames and looks at files until it is told to stop; gives how many. No step may fail.
fn work(root: &Path, who: usize, stop: &AtomicBool, done: &AtomicU64) -> anyhow::Result<()> {
    let dir = root.join(format!("worker-{who}"));
    fs::create_dir(&dir).at(&dir)?;
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let (made, kept) = (dir.join(format!("made-{number}")), dir.join(format!("kept-{number}")));
        let text = format!("{who} {number}\n");
        let mut file = File::create_new(&made).at(&made)?;
        file.write_all(text.as_bytes()).at(&made)?;
        file.sync_all().at(&made)?;
        drop(file);
        fs::rename(&made, &kept).at(&made)?;
        let read = fs::read_to_string(&kept).at(&kept)?;
        ensure!(read == text, "{}: {read:?}", kept.display());
        done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

#[test]
fn a_node_that_is_killed_is_a_pause_for_programs_and_nothing_is_lost() {
    case(NEEDS, |case| {
        let mut wide = Wide::start(case, 3)?;
        let mount = wide.mount(1, "m")?;
        let (stop, root) = (Arc::new(AtomicBool::new(false)), mount.path().to_owned());
        let counts: Vec<Arc<AtomicU64>> = (0..3).map(|_| Arc::default()).collect();
        let workers: Vec<_> = (0..3)
            .map(|who| {
                let (stop, done, root) = (stop.clone(), counts[who].clone(), root.clone());
                thread::spawn(move || work(&root, who, &stop, &done))
            })
            .collect();
        let progress = |more: u64| {
            let before: Vec<u64> = counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
            eventually_ok("all workers go on", SEEN_WITHIN, || {
                for (worker, (count, before)) in workers.iter().zip(counts.iter().zip(&before)) {
                    ensure!(!worker.is_finished(), "a worker has ended");
                    let now = count.load(Ordering::Relaxed);
                    ensure!(now >= before + more, "{now} files, {before} before");
                }
                Ok(())
            })
        };
        let run = (|| {
            for round in 0..KILLS {
                progress(20)?;
                // The third one is mounted through.
                let node = [2, 3, 1, 2][round % 4];
                wide.nodes.kill(node)?;
                wide.nodes.start(node)?;
                progress(20)?;
            }
            Ok(())
        })();
        stop.store(true, Ordering::Relaxed);
        let ended: Vec<anyhow::Result<()>> =
            workers.into_iter().map(|worker| worker.join().expect("a worker panicked")).collect();
        ended.into_iter().collect::<anyhow::Result<()>>()?;
        let outcome: anyhow::Result<()> = run;
        outcome?;
        mount.unmount()?;
        let again = wide.mount(2, "again")?;
        for (who, count) in counts.iter().enumerate() {
            let count = count.load(Ordering::Relaxed);
            for number in 0..count {
                let path = again.path().join(format!("worker-{who}/kept-{number}"));
                let read = fs::read_to_string(&path).at(&path)?;
                ensure!(read == format!("{who} {number}\n"), "{}: {read:?}", path.display());
            }
            say(&format!("worker {who}: {count} files"));
        }
        again.unmount()
    });
}

#[test]
fn a_create_that_one_node_refuses_leaves_nothing_on_any() {
    case(NEEDS, |case| {
        let mut wide = Wide::start(case, 2)?;
        let brick = |node: usize, name: &str| format!("{}:{}", name_of(node), wide.dir.join(name).display());
        let create = |volume: &str, bricks: &[String]| {
            let mut args = vec!["volume", "create", volume, "--force"];
            args.extend(bricks.iter().map(String::as_str));
            wide.nodes.brickctl(1, &args)?.refused(1)
        };
        let blocked = wide.dir.join("blocked");
        fs::write(&blocked, "a file").at(&blocked)?;
        let line = create("v2", &[brick(1, "new-1"), brick(2, "blocked")])?;
        ensure!(line.contains("blocked") && line.contains("not a directory"), "{line}");
        ensure!(!wide.dir.join("new-1").exists(), "a brick of a refused volume is left");
        let line = create("v2", &[brick(1, "new-1"), format!("node-9:{}", wide.dir.join("x").display())])?;
        ensure!(line.contains("there is no node 'node-9'"), "{line}");
        let line = create("v2", &[brick(1, "new-1"), format!("node-2:{}", wide.brick(2).display())])?;
        ensure!(line.contains(VOLUME), "{line}");
        wide.nodes.kill(2)?;
        let away = [brick(1, "new-1"), brick(2, "new-2")];
        let mut args = vec!["volume", "create", "v2", "--force"];
        args.extend(away.iter().map(String::as_str));
        let line = wide.nodes.brickctl(1, &args)?.refused(1)?;
        ensure!(line.contains("node-2"), "{line}");
        ensure!(!wide.dir.join("new-1").exists(), "a brick of a refused volume is left");
        wide.nodes.start(2)?;
        eventually_ok("all bricks are served again", SEEN_WITHIN, || wide.is_healthy(1))?;
        wide.nodes.brickctl(1, &args)?.ok()?;
        let volumes = wide.nodes.json(2, &["volume", "list"])?;
        ensure!(volumes.as_array().is_some_and(|volumes| volumes.len() == 2), "{volumes}");
        Ok(())
    });
}
