//! How a node comes to its member, its certificate and its state: the first start, every later one, the first one of
//! a release with Raft, and the one after a join.
//!
//! ```text
//! nothing on disk ──▶ ids, `founding` ──▶ authority ──▶ certificate ──▶ first state in Raft ──▶ `founding` gone
//! join: certificate of the other cluster ──▶ its authority's certificate ──▶ own Raft forgotten ──▶ ids
//! restore: `restore.json` ──▶ authority ──▶ own certificate gone ──▶ own Raft forgotten ──▶ ids, `founding` ──▶
//!     certificate ──▶ restored state in Raft ──▶ `founding` gone ──▶ `restore.json` gone
//! ```
//!
//! Each arrow is durable before the next one, and each start goes on where the last one ended.

use crate::config::Config;
use crate::manager::cluster_db::ClusterDb;
use crate::manager::node::{Node, now_ms};
use crate::manager::old_store::{self, OldStore};
use crate::manager::peers::Peers;
use crate::manager::raft::{ManagerThread, RaftMember, Timing, forget_cluster};
use crate::manager::records::{Own, Records};
use crate::manager::restore::Restoring;
use crate::security::audit::Audit;
use crate::security::authority::{Authority, Grant};
use crate::security::identity::{Identity, NewKey};
use crate::security::revocation::Revocations;
use crate::security::role::{Holder, Role, Serial};
use crate::security::tls::Credentials;
use anyhow::{Context as _, bail};
use brickfs_common::cluster::command::{Command, RenewCertificate};
use brickfs_common::cluster::state::{CLUSTER_VERSION, ClusterState};
use brickfs_common::ids::{ClusterId, NodeId};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;
use tokio::time::sleep;

const DB_NAME: &str = "raft.sled";
/// The first state of a cluster of one needs nobody else; a disk may be slow.
const FOUND_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a member of a larger cluster waits at its start to hear from it, so that its volumes start by what the
/// cluster says now and not by what it said when the node was stopped.
const HEAR_TIMEOUT: Duration = Duration::from_secs(3);
/// Between two tries to tell the cluster what has changed about this node.
const TELL_AGAIN: Duration = Duration::from_secs(1);

/// A node that has been opened, and its thread. Stopped by `stop`.
pub struct Opened {
    /// The node.
    pub node: Arc<Node>,
    /// Its records.
    pub records: Records,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Where its Raft member and its connections run.
    pub thread: Arc<ManagerThread>,
}

/// What of the settings concerns the cluster.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The node's name where one was given.
    pub name: Option<String>,
    /// What a new node is called without one.
    pub default_name: String,
    /// `host:port` where other nodes reach it.
    pub addresses: Vec<String>,
    /// The own address of connections to others.
    pub connect_from: Option<std::net::IpAddr>,
    /// How long the certificates last that it signs.
    pub certificate_life: Duration,
}

impl Settings {
    /// Out of the process's settings.
    pub fn of(config: &Config) -> Settings {
        Settings {
            name: config.node_name.clone(),
            default_name: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            addresses: config.addresses.clone(),
            connect_from: config.connect_from,
            certificate_life: config.certificate_life,
        }
    }
}

/// Opens the node of a state directory; the first time it makes a cluster of this one node.
pub fn open(dir: &Path, settings: &Settings) -> anyhow::Result<Opened> {
    let old = old_store::read(dir)?;
    let db_path = dir.join(DB_NAME);
    let (is_new, json) = (!db_path.exists() && old.is_none(), dir.join("cluster.json"));
    if is_new && json.exists() {
        bail!(
            "{} has no cluster state but {} exists: bring the store back from a backup, or move {} away to start a new, \
             empty cluster",
            db_path.display(),
            json.display(),
            json.display()
        );
    }
    let db = ClusterDb::open(&db_path)?;
    let records = Records::open(&db)?;
    let restoring = Restoring::load(dir)?;
    if let Some(restoring) = &restoring {
        restoring.begin(dir, &db, &records)?;
    }
    let own = own_or_new(&records, old.as_ref())?;
    let (own, identity) = open_identity(dir, &db, &records, own, settings.certificate_life)?;
    let audit = Arc::new(Audit::open(dir).context("cannot open the audit log")?);
    let credentials = Credentials::new(identity, Revocations::default());
    let thread = Arc::new(ManagerThread::start("manager")?);
    let peers = Peers::new(own.node, credentials.clone(), settings.connect_from, thread.handle());
    let member = {
        let (db, link, json) = (db.clone(), peers.clone(), json.clone());
        let open = async move { RaftMember::open(&db, own.node, json, link, Timing::default()).await };
        thread.block_on(open).context("the manager thread ended")??
    };
    let given_name = settings.name.clone().unwrap_or_else(|| settings.default_name.clone());
    if own.is_founding {
        let state =
            restoring.as_ref().map(|restoring| &restoring.state).or(old.as_ref().map(|old| &old.state)).cloned();
        let state = state.unwrap_or_else(|| ClusterState::of_one_node(own.cluster, own.node, &given_name));
        found(&thread, &member, own, state)?;
        records.set_own(Own { is_founding: false, ..own })?;
    }
    old_store::put_aside(dir)?;
    if let Some(restoring) = restoring {
        restoring.end(dir, &records)?;
    }
    let authority = Mutex::new(Authority::open(dir)?.map(Arc::new));
    let node = Arc::new(Node {
        id: own.node,
        given_name,
        state_dir: dir.to_owned(),
        member,
        peers,
        credentials,
        audit,
        certificate_life: settings.certificate_life,
        authority,
        is_rejoined: watch::Sender::new(false),
    });
    let opened = Opened { node, records, cluster: own.cluster, thread };
    opened.begin(settings)?;
    Ok(opened)
}

/// Who this node is; new ids at its first start.
fn own_or_new(records: &Records, old: Option<&OldStore>) -> anyhow::Result<Own> {
    if let Some(own) = records.own()? {
        return Ok(own);
    }
    let own = match old {
        Some(old) => Own { node: old.node, cluster: old.state.cluster, is_founding: true },
        None => Own { node: NodeId(rand::random()), cluster: ClusterId(rand::random()), is_founding: true },
    };
    for pending in old.map(|old| old.pending.as_slice()).unwrap_or_default() {
        records.put_pending(pending)?;
    }
    records.set_own(own)?;
    Ok(own)
}

/// The certificate of this node. One of another cluster is that of a join that was cut short, which ends here; it says
/// under which id.
fn open_identity(
    dir: &Path,
    db: &ClusterDb,
    records: &Records,
    own: Own,
    life: Duration,
) -> anyhow::Result<(Own, Identity)> {
    let now = SystemTime::now();
    if let Some(identity) = Identity::load(dir)? {
        let who = *identity.who();
        let is_own = who.id == own.node || who.cluster != own.cluster;
        if !is_own || who.role != Role::Peer {
            bail!("{} holds the certificate of {who}, and this is node {}", dir.display(), own.node);
        }
        if who.cluster != own.cluster {
            Authority::store_certificate(identity.authority(), dir)?;
            futures::executor::block_on(forget_cluster(db))?;
            let own = Own { node: who.id, cluster: who.cluster, is_founding: false };
            records.set_own(own)?;
            return Ok((own, identity));
        }
        if identity.expires() > now {
            return Ok((own, identity));
        }
        let Some(authority) = Authority::open(dir)? else {
            tracing::error!("the certificate of this node has expired: no other node listens to it; join it again");
            return Ok((own, identity));
        };
        return Ok((own, sign_own(dir, &authority, own, life)?));
    }
    let authority = match Authority::open(dir)? {
        Some(authority) if authority.certificate().cluster() == own.cluster => authority,
        Some(authority) => bail!(
            "{} holds the authority of cluster {}, and this is a node of {}",
            dir.display(),
            authority.certificate().cluster(),
            own.cluster
        ),
        None => Authority::found(own.cluster, dir)?,
    };
    let identity = sign_own(dir, &authority, own, life)?;
    Ok((own, identity))
}

fn sign_own(dir: &Path, authority: &Authority, own: Own, lifetime: Duration) -> anyhow::Result<Identity> {
    let (key, now) = (NewKey::make()?, SystemTime::now());
    let holder = Holder { role: Role::Peer, id: own.node };
    let certificate = authority.sign(key.request(), &Grant { holder, serial: Serial::random(), lifetime }, now)?;
    Identity::install(dir, &key, &certificate, authority.certificate(), holder, now)
}

fn found(thread: &ManagerThread, member: &RaftMember, own: Own, state: ClusterState) -> anyhow::Result<()> {
    let member = member.clone();
    let founded = thread.block_on(async move { member.found(state, Instant::now() + FOUND_TIMEOUT).await });
    founded.context("the manager thread ended")?.context("cannot write the first state of the cluster")?;
    tracing::info!(cluster = %own.cluster, node = %own.node, "this node has begun a cluster");
    Ok(())
}

impl Opened {
    /// Starts what runs beside, and brings the state up to what the settings say of this node.
    fn begin(&self, settings: &Settings) -> anyhow::Result<()> {
        let node = self.node.clone();
        if let Some(state) = node.member.state() {
            node.follow(&state);
        }
        drop(self.thread.run(node.clone().follow_state()));
        drop(self.thread.run(node.peers.clone().watch()));
        drop(self.thread.run(node.clone().care()));
        drop(self.thread.run(node.clone().keep_certificate()));
        let is_alone = node.member.state().is_some_and(|state| state.nodes.len() == 1);
        let tell = node.clone().tell(settings.clone());
        if is_alone {
            // A setting that cannot be is said at once, by a start that fails.
            return self.thread.block_on(tell).context("the manager thread ended")?;
        }
        drop(self.thread.run(node.keep_telling(settings.clone())));
        Ok(())
    }

    /// The file with the node's key and certificate.
    pub fn identity_path(&self) -> String {
        Identity::path(&self.node.state_dir).to_string_lossy().into_owned()
    }

    /// Ends the member; on return nothing of it runs any more.
    pub fn stop(self) {
        let Opened { node, thread, .. } = self;
        let member = node.member.clone();
        thread.block_on(async move { member.stop().await });
    }
}

impl Node {
    /// Waits until the cluster is heard of, for a while, where this node is not alone. Others have to reach it
    /// meanwhile.
    pub async fn hear(&self) {
        if self.member.state().is_some_and(|state| state.nodes.len() == 1) {
            return;
        }
        if self.member.wait_leader(Instant::now() + HEAR_TIMEOUT).await.is_none() {
            tracing::warn!("nothing was heard of the cluster: volumes start by its state of before");
        }
    }

    /// Takes over what a state says of other nodes and of certificates.
    pub fn follow(&self, state: &ClusterState) {
        self.peers.follow(state);
        let revoked = state.revoked.iter().map(|(serial, ends_ms)| (Serial::from(*serial), ends_ms.div_ceil(1_000)));
        let revocations = Revocations::new(revoked);
        if *self.credentials.revocations() != revocations {
            self.credentials.replace_revocations(revocations);
        }
    }

    /// Does so at each change, until it is dropped.
    async fn follow_state(self: Arc<Self>) {
        let mut watched = self.member.watch();
        loop {
            let state = watched.borrow_and_update().clone();
            if let Some(state) = state {
                self.follow(&state);
            }
            if watched.changed().await.is_err() {
                return;
            }
        }
    }

    /// Tells the cluster what it does not know of this node: its name, where one is given, its addresses, what it
    /// supports, its certificate.
    async fn tell(self: Arc<Self>, settings: Settings) -> anyhow::Result<()> {
        while let Some(command) = self.next_to_tell(&settings)? {
            if let Some(refusal) = self.run(rand::random(), command).await?.refusal {
                bail!("{refusal}");
            }
        }
        Ok(())
    }

    async fn keep_telling(self: Arc<Self>, settings: Settings) {
        let mut last = String::new();
        while let Err(error) = self.clone().tell(settings.clone()).await {
            let error = format!("{error:#}");
            if error != last {
                tracing::warn!(error, "the cluster does not know yet what has changed about this node");
                last = error;
            }
            sleep(TELL_AGAIN).await;
        }
    }

    fn next_to_tell(&self, settings: &Settings) -> anyhow::Result<Option<Command>> {
        let state = self.state()?;
        let own = state.nodes.get(&self.id).context("this node is not a member of its cluster any more")?;
        let node = self.id;
        if let Some(name) = settings.name.as_ref().filter(|name| **name != own.name) {
            return Ok(Some(Command::RenameNode { node, name: name.clone() }));
        }
        if settings.addresses != own.addresses {
            return Ok(Some(Command::SetAddresses { node, addresses: settings.addresses.clone() }));
        }
        if own.supports != CLUSTER_VERSION {
            return Ok(Some(Command::SetSupports { node, supports: CLUSTER_VERSION }));
        }
        let who = *self.credentials.identity().who();
        let serial = who.serial.in_state();
        if own.certificates.iter().any(|known| known.serial == serial) {
            return Ok(None);
        }
        let (ends_ms, now_ms) = (who.not_after_s.saturating_mul(1_000), now_ms());
        Ok(Some(Command::RenewCertificate(RenewCertificate { node, serial, ends_ms, now_ms })))
    }
}

#[cfg(test)]
#[path = "startup_tests.rs"]
mod tests;
