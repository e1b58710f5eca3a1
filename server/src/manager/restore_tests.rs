//! Restores on nodes of their own state directories, to their end and cut short.

use super::*;
use crate::brick::host::Host;
use crate::manager::startup::{Opened, Settings, open};
use brickfs_common::cluster::command::{Command, CreateVolume, NewBrick};
use brickfs_common::cluster::state::NodeRole;
use brickfs_common::ids::{BrickId, VolumeId};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

const PASSPHRASE: &str = "correct horse battery";

/// A node with its manager.
struct Running {
    dir: TempDir,
    opened: Opened,
    manager: Arc<Manager>,
    runtime: tokio::runtime::Runtime,
}

impl Running {
    fn start(dir: TempDir, name: &str) -> Running {
        let settings = Settings {
            name: None,
            default_name: name.to_owned(),
            addresses: Vec::new(),
            connect_from: None,
            certificate_life: Duration::from_secs(3_600),
        };
        let opened = open(dir.path(), &settings).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let manager = {
            let _inside = runtime.enter();
            let ask = opened.node.peers.ask_sets(runtime.handle().clone());
            let host = Host::new(opened.cluster, opened.node.id, opened.identity_path(), ask);
            Manager::start(&opened, host, NodeRole::Server, Vec::new())
        };
        Running { dir, opened, manager, runtime }
    }

    fn new(name: &str) -> Running {
        Running::start(tempfile::tempdir().unwrap(), name)
    }

    fn stop(self) -> TempDir {
        let Running { dir, opened, manager, runtime } = self;
        drop(runtime);
        manager.stop();
        drop(manager);
        opened.stop();
        dir
    }

    fn run(&self, command: Command) {
        let node = self.opened.node.clone();
        let ran = async move { node.run(rand::random(), command).await };
        let outcome = self.opened.thread.block_on(ran).unwrap().unwrap();
        assert_eq!(outcome.refusal, None);
    }

    fn with_volume(self) -> Running {
        let brick = NewBrick { brick: BrickId([5; 16]), node: self.opened.node.id, path: "/none/b".into(), weight: 1 };
        let id = VolumeId([6; 16]);
        let create = CreateVolume { name: "demo".into(), id, replica: 1, stripe: 1, force: true, bricks: vec![brick] };
        self.run(Command::CreateVolume(create));
        self.run(Command::SetOption { name: "demo".into(), key: "reserve".into(), value: "5%".into() });
        self
    }

    fn backup(&self, passphrase: Option<&str>) -> String {
        let passphrase = passphrase.map(|text| Passphrase(text.to_owned()));
        match self.manager.run(None, AdminCall::ClusterBackup { passphrase }, "test").unwrap() {
            AdminResult::Backup(backup) => backup.text,
            other => panic!("{other:?}"),
        }
    }

    fn restore(&self, id: u8, text: &str, passphrase: Option<&str>) -> Result<Restored, String> {
        let passphrase = passphrase.map(|text| Passphrase(text.to_owned()));
        let (text, as_node) = (text.to_owned(), None);
        let call = AdminCall::ClusterRestore { text, passphrase, as_node, new_authority: false };
        match self.manager.run(Some([id; 16]), call, "test") {
            Ok(AdminResult::Restored(restored)) => Ok(restored),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(format!("{error:#}")),
        }
    }

    fn state(&self) -> ClusterState {
        (*self.opened.node.state().unwrap()).clone()
    }
}

#[test]
fn a_fresh_node_takes_the_place_of_the_lost_one() {
    let old = Running::new("node-1").with_volume();
    let (id, was) = (old.opened.node.id, old.state());
    let (text, plain) = (old.backup(Some(PASSPHRASE)), old.backup(None));
    let old_serial = old.opened.node.credentials.identity().who().serial.in_state();
    let authority = old.opened.node.credentials.identity().authority().clone();
    old.stop();
    let fresh = Running::new("elsewhere");
    let restored = fresh.restore(1, &text, Some(PASSPHRASE)).unwrap();
    assert_eq!((restored.name.as_str(), restored.volumes_count, restored.is_done), ("node-1", 1, false));
    let node = fresh.opened.node.clone();
    fresh.runtime.block_on(node.rejoined());
    drop(node);
    let fresh = Running::start(fresh.stop(), "elsewhere");
    let state = fresh.state();
    assert_eq!((state.cluster, &state.volumes), (was.cluster, &was.volumes));
    assert_eq!((fresh.opened.node.id, fresh.opened.node.name().as_str()), (id, "node-1"));
    assert!(state.revoked.contains_key(&old_serial), "the lost node does not get in with what it had");
    let identity = fresh.opened.node.credentials.identity();
    assert_eq!(identity.authority(), &authority);
    assert!(state.is_node_certificate(id, identity.who().serial.in_state()));
    assert!(fresh.opened.node.authority().is_some() && !fresh.dir.path().join(FILE).exists());
    drop(identity);
    assert!(fresh.restore(1, &text, Some(PASSPHRASE)).unwrap().is_done, "asked again");
    let error = fresh.restore(2, &plain, None).unwrap_err();
    assert!(error.contains("volumes ('demo')"), "{error}");
    fresh.run(Command::SetOption { name: "demo".into(), key: "reserve".into(), value: "6%".into() });
    let fresh = Running::start(fresh.stop(), "elsewhere");
    assert_eq!(fresh.state().volumes["demo"].map.options["reserve"], "6%", "it lives on");
    fresh.stop();
}

#[test]
fn a_backup_without_the_key_makes_another_authority() {
    let old = Running::new("node-1").with_volume();
    let (text, authority) = (old.backup(None), old.opened.node.credentials.identity().authority().clone());
    let was = old.state();
    old.stop();
    let fresh = Running::new("elsewhere");
    assert!(!fresh.restore(1, &text, None).unwrap().keeps_authority);
    let fresh = Running::start(fresh.stop(), "elsewhere");
    assert_eq!(fresh.state().volumes, was.volumes);
    assert_ne!(fresh.opened.node.credentials.identity().authority(), &authority);
    fresh.stop();
}

#[test]
fn what_is_refused_changes_nothing() {
    let old = Running::new("node-1");
    let (text, plain) = (old.backup(Some(PASSPHRASE)), old.backup(None));
    let fresh = Running::new("elsewhere");
    let was = fresh.state();
    let refusals = [
        fresh.restore(1, &text, Some("wrong passphrase")),
        fresh.restore(1, &text, None),
        fresh.restore(1, &plain, Some(PASSPHRASE)),
        fresh.restore(1, &text[..text.len() / 2], Some(PASSPHRASE)),
        fresh.restore(1, &text.replacen("node-1", "node-2", 1), Some(PASSPHRASE)),
        fresh.restore(1, "", None),
    ];
    for refusal in refusals {
        let error = refusal.unwrap_err();
        assert!(!error.contains('\n') && error.len() < 160, "{error}");
    }
    assert!(fresh.state() == was && !fresh.dir.path().join(FILE).exists());
    let missing = AdminCall::ClusterBackup { passphrase: Some(Passphrase("short".to_owned())) };
    assert!(fresh.manager.run(None, missing, "test").is_err());
    fresh.opened.node.set_authority(None);
    let call = AdminCall::ClusterBackup { passphrase: Some(Passphrase(PASSPHRASE.to_owned())) };
    let error = fresh.manager.run(None, call, "test").unwrap_err().to_string();
    assert!(error.ends_with("on one of elsewhere"), "{error}");
    fresh.stop();
    old.stop();
}

/// Each arrow of the diagram in `startup` may be the last one before a crash.
#[test]
fn a_restore_that_was_cut_short_is_finished_by_the_next_start() {
    let old = Running::new("node-1").with_volume();
    let (id, was) = (old.opened.node.id, old.state());
    old.stop();
    for done in 0..6 {
        let dir = Running::new("elsewhere").stop();
        let authority = Authority::make(was.cluster, SystemTime::now()).unwrap();
        let restoring = Restoring { state: was.clone(), command: [3; 16], node: id, authority };
        restoring.store(dir.path()).unwrap();
        let file = fs::read(dir.path().join(FILE)).unwrap();
        if done >= 1 {
            restoring.authority.store(dir.path()).unwrap();
        }
        if done >= 2 {
            Identity::remove(dir.path()).unwrap();
        }
        if done >= 3 {
            let db = ClusterDb::open(&dir.path().join("raft.sled")).unwrap();
            futures::executor::block_on(forget_cluster(&db)).unwrap();
            if done >= 4 {
                restoring.begin(dir.path(), &db, &Records::open(&db).unwrap()).unwrap();
            }
        }
        let dir = match done {
            // All of it, but that the file is still there.
            5 => Running::start(dir, "elsewhere").stop(),
            _ => dir,
        };
        fs::write(dir.path().join(FILE), &file).unwrap();
        let fresh = Running::start(dir, "elsewhere");
        assert_eq!((fresh.opened.node.id, fresh.state().volumes), (id, was.volumes.clone()), "{done}");
        let records = &fresh.opened.records;
        assert_eq!((records.restored().unwrap(), records.own().unwrap().unwrap().is_founding), (Some([3; 16]), false));
        assert!(!fresh.dir.path().join(FILE).exists());
        fresh.stop();
    }
}
