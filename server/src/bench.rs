//! A volume's bricks without a wire, for benchmarks: what an operation costs on the brick.

use crate::brick::host::{Host, SessionHandle};
use crate::brick::volume::dispatch::Outcome;
use crate::manager::startup::{self, Opened, Settings};
use crate::manager::{CERTIFICATE_LIFE_S, Manager};
use anyhow::Context as _;
use brickfs_common::cluster::admin::AdminCall;
use brickfs_common::cluster::map::VolumeMap;
use brickfs_common::cluster::state::NodeRole;
use brickfs_common::errno::Errno;
use brickfs_common::fop::{CallHeader, Fop, FopReply, Hello, ObjectRef, PROTOCOL_VERSION};
use brickfs_common::ids::{ClientId, Gfid, SetId};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;

/// Name of the node.
pub const NODE: &str = "node-1";
/// Name of the volume.
pub const VOLUME: &str = "bench";

/// A started volume on new bricks, and one client of it.
pub struct Bricks {
    opened: Opened,
    manager: Arc<Manager>,
    host: Arc<Host>,
    session: SessionHandle,
    map: VolumeMap,
    runtime: Runtime,
    request: u64,
}

/// The state of the node whose bricks are made in `dir`, as `brickd --state` takes it.
pub fn state_dir(dir: &Path) -> PathBuf {
    dir.join("state")
}

impl Bricks {
    /// So many bricks in `dir`, which is empty.
    pub fn make(dir: &Path, count: usize) -> anyhow::Result<Bricks> {
        std::fs::create_dir_all(state_dir(dir))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let inside = runtime.enter();
        let settings = Settings {
            name: Some(NODE.to_owned()),
            default_name: NODE.to_owned(),
            addresses: Vec::new(),
            connect_from: None,
            certificate_life: Duration::from_secs(CERTIFICATE_LIFE_S),
        };
        let opened = startup::open(&state_dir(dir), &settings)?;
        let host = Host::new(
            opened.cluster,
            opened.node.id,
            opened.identity_path(),
            opened.node.peers.ask_sets(runtime.handle().clone()),
        );
        let manager = Manager::start(&opened, host.clone(), NodeRole::Server, Vec::new());
        manager.serve_bricks();
        let bricks = (1..=count).map(|number| format!("{NODE}:{}", dir.join(format!("b{number}")).display())).collect();
        let name = VOLUME.to_owned();
        let create = AdminCall::VolumeCreate { name: name.clone(), replica: 1, stripe: 1, force: true, bricks };
        manager.run(Some(rand::random()), create, NODE)?;
        manager.run(Some(rand::random()), AdminCall::VolumeStart { name }, NODE)?;
        let map = manager.state()?.volumes.get(VOLUME).context("the volume is not there")?.map.clone();
        let hello = Hello {
            protocol_min: PROTOCOL_VERSION,
            protocol_max: PROTOCOL_VERSION,
            features: 0,
            cluster: None,
            volume: VOLUME.to_owned(),
            volume_id: None,
            client: ClientId(rand::random()),
            session: 1,
            open_objects: Vec::new(),
            locks: Vec::new(),
            lowest_unanswered: 1,
        };
        let (_, session) = host.hello(&hello).map_err(|reason| anyhow::anyhow!("{reason}"))?;
        drop(inside);
        Ok(Bricks { opened, manager, host, session, map, runtime, request: 0 })
    }

    /// The root directory.
    pub fn root(&self) -> ObjectRef {
        ObjectRef { gfid: Gfid::ROOT, home: self.map.root_home }
    }

    /// Runs an operation to its end, as a session does: of a name on its dentry set, else where its object is.
    pub fn call(&mut self, fop: Fop) -> FopReply {
        self.request += 1;
        let request = self.request;
        let set = self.set_of(&fop);
        let epoch = self.map.sets.get(usize::from(set.0)).map_or(0, |set| set.epoch);
        let generation = self.map.layout.generation;
        let header =
            CallHeader { request, lowest_unanswered: request, set: set.0, generation, epoch, ..CallHeader::default() };
        let (host, session) = (&self.host, &self.session);
        self.runtime.block_on(async {
            let reply = match host.call(session, &header, fop) {
                Outcome::Reply(reply) => reply,
                Outcome::Later(work) => work(),
                Outcome::Waiting(reply) => reply.await,
                Outcome::SessionOver => FopReply::failed(request, Errno::EIO),
            };
            // What the operation has begun beside its answer goes on.
            tokio::task::yield_now().await;
            reply
        })
    }

    fn set_of(&self, fop: &Fop) -> SetId {
        match fop {
            Fop::Lookup { parent, name }
            | Fop::Make { parent, name, .. }
            | Fop::Unlink { parent, name }
            | Fop::Rmdir { parent, name }
            | Fop::Rename { parent, name, .. } => self.map.layout.dentry_set(&parent.gfid, name),
            Fop::GetAttr { object }
            | Fop::Open { object, .. }
            | Fop::Release { object }
            | Fop::Read { object, .. }
            | Fop::Write { object, .. } => object.home,
            _ => self.map.root_home,
        }
    }

    /// Stops the volume's bricks.
    pub fn close(self) {
        let _inside = self.runtime.enter();
        self.manager.stop();
        drop(self.manager);
        self.opened.stop();
    }
}
