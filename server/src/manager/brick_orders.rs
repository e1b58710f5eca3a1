//! What nodes ask of each other about bricks: checks and the making of new ones for a volume that one of them creates,
//! and how those that are there are.
//!
//! ```text
//! create: check on all nodes ─▶ make on all nodes, with a record each ─▶ commit ─▶ end on all nodes
//! ```
//! A node that hears nothing of the end finds out itself, by giving the create up under the id of its command.

use crate::brick::host::BrickStatus;
use crate::manager::brick_path::BrickPath;
use crate::manager::create::{self, Order, Site};
use crate::manager::node::Node;
use crate::manager::peers::describe;
use crate::manager::records::{PendingCreate, Records};
use crate::manager::{CommandId, Manager};
use anyhow::{Context as _, bail};
use brickfs_common::cluster::command::{Command, CreateVolume};
use brickfs_common::cluster::state::{ClusterState, VolumeState};
use brickfs_common::ids::{NodeId, VolumeId};
use brickfs_proto::v1::BricksRequest;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// How long a node may take for an order; bricks are made on slow disks, too.
const ORDER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a status waits for a node's state to be as new as the asking one's.
const FOLLOW_TIMEOUT: Duration = Duration::from_secs(5);
/// A record that is seen twice so far apart is of a create that nobody ends.
const RECORD_LOOK: Duration = Duration::from_secs(20);

/// Something to do with bricks of the node that gets it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum BrickOrder {
    /// Look whether these can be bricks of a new volume. Answers a `Site` for each.
    Check {
        /// Name of the volume.
        volume: String,
        /// Take doubtful ones.
        force: bool,
        /// The bricks.
        bricks: Vec<BrickPath>,
        /// How many commands made the state that they are checked against, at least.
        applied: u64,
    },
    /// Make the bricks of a volume that will be committed then.
    Make {
        /// Id of the command.
        id: CommandId,
        /// The volume.
        create: CreateVolume,
    },
    /// The create has ended.
    End {
        /// The volume.
        volume: VolumeId,
        /// Whether there is such a volume now.
        is_done: bool,
    },
    /// Answers a `BrickStatus` for each brick of a volume, once the node follows a state that is new enough.
    Status {
        /// The volume.
        volume: VolumeId,
        /// How many commands made that state.
        applied: u64,
    },
}

impl BrickOrder {
    /// As the audit log says it; `None` for what changes nothing.
    pub fn describe(&self) -> Option<String> {
        match self {
            BrickOrder::Check { .. } | BrickOrder::Status { .. } => None,
            BrickOrder::Make { create, .. } => Some(format!("bricks of volume {}", create.name)),
            BrickOrder::End { volume, is_done } => {
                Some(format!("end of the create of volume {volume}, {}", if *is_done { "done" } else { "given up" }))
            }
        }
    }
}

impl Manager {
    /// Carries out an order, on a thread that may block. Answers the JSON of its result.
    pub fn carry_out(&self, order: BrickOrder) -> anyhow::Result<Vec<u8>> {
        Ok(match order {
            BrickOrder::Check { volume, force, bricks, applied } => {
                let state = self.state_of(applied)?;
                serde_json::to_vec(&create::check_here(&state, self.node.id, &volume, force, bricks)?)?
            }
            BrickOrder::Make { id, create } => {
                create::make_here(&self.records, &*self.state()?, self.node.id, &id, &create)?;
                serde_json::to_vec(&())?
            }
            BrickOrder::End { volume, is_done } => {
                let is_there = self.state()?.volume_by_id(volume).is_some();
                create::end_create(&self.records, volume, is_done || is_there)?;
                serde_json::to_vec(&())?
            }
            BrickOrder::Status { volume, applied } => {
                self.bricks.follow(&*self.state_of(applied)?);
                serde_json::to_vec(&self.bricks.status(volume))?
            }
        })
    }

    /// The state, once so many commands have made it; after a while the one there is.
    fn state_of(&self, applied: u64) -> anyhow::Result<Arc<ClusterState>> {
        let mut watched = self.node.member.watch();
        self.block_on(async move {
            let has_it = watched.wait_for(|state| state.as_ref().is_some_and(|state| state.applied >= applied));
            drop(timeout(FOLLOW_TIMEOUT, has_it).await);
        })?;
        Ok(self.state()?)
    }

    /// Gives an order to a node, this one included.
    fn order<T: DeserializeOwned>(&self, node: NodeId, order: BrickOrder) -> anyhow::Result<T> {
        if node == self.node.id {
            return Ok(serde_json::from_slice(&self.carry_out(order)?)?);
        }
        let name = self.state()?.nodes.get(&node).map_or_else(|| node.to_string(), |node| node.name.clone());
        let mut client = self.node.peers.client(node).with_context(|| format!("node '{name}' has no address"))?;
        let json = serde_json::to_vec(&order)?.into();
        let asked = async move { timeout(ORDER_TIMEOUT, client.bricks(BricksRequest { json })).await };
        let reply = match self.block_on(asked)? {
            Ok(Ok(reply)) => reply.into_inner(),
            Ok(Err(status)) => bail!("node '{name}': {}", describe(&status)),
            Err(_) => bail!("node '{name}' did not answer within {} s", ORDER_TIMEOUT.as_secs()),
        };
        if !reply.refusal.is_empty() {
            bail!("{}", reply.refusal);
        }
        serde_json::from_slice(&reply.json).with_context(|| format!("the answer of node '{name}' cannot be read"))
    }

    /// Checks a create on all nodes that it concerns and makes its bricks there. Answers its command and the nodes; on
    /// an error nothing is left of it.
    pub(super) fn prepare_create(
        &self,
        state: &ClusterState,
        id: &CommandId,
        order: &Order<'_>,
    ) -> anyhow::Result<(CreateVolume, BTreeSet<NodeId>)> {
        let parsed = create::parse_bricks(state, order)?;
        let nodes: BTreeSet<NodeId> = parsed.iter().map(|(node, _)| *node).collect();
        let mut sites: Vec<Option<Site>> = vec![None; parsed.len()];
        for node in &nodes {
            let places: Vec<usize> = (0..parsed.len()).filter(|at| parsed[*at].0 == *node).collect();
            let bricks: Vec<BrickPath> = places.iter().map(|at| parsed[*at].1.clone()).collect();
            let (volume, force, applied) = (order.name.to_owned(), order.force, state.applied);
            let found: Vec<Site> = self.order(*node, BrickOrder::Check { volume, force, bricks, applied })?;
            for (at, site) in places.into_iter().zip(found) {
                sites[at] = Some(Site { node: *node, ..site });
            }
        }
        let sites: Option<Vec<Site>> = sites.into_iter().collect();
        let create =
            create::decide(id, order, &sites.context("a node has checked fewer bricks than it was asked for")?);
        for node in &nodes {
            if let Err(error) = self.order::<()>(*node, BrickOrder::Make { id: *id, create: create.clone() }) {
                self.end_create(create.id, &nodes, false);
                return Err(error);
            }
        }
        Ok((create, nodes))
    }

    /// Tells the nodes of a create that it has ended. Who does not hear it finds out.
    pub(super) fn end_create(&self, volume: VolumeId, nodes: &BTreeSet<NodeId>, is_done: bool) {
        for node in nodes {
            if let Err(error) = self.order::<()>(*node, BrickOrder::End { volume, is_done }) {
                let error = format!("{error:#}");
                tracing::warn!(%volume, error, "a node does not know yet that a create has ended");
            }
        }
    }

    /// The bricks of a started volume on all nodes, and the nodes that do not answer with the reason.
    #[allow(clippy::type_complexity)] // two parts of one answer, taken apart at once
    pub(super) fn statuses(
        &self,
        volume: &VolumeState,
    ) -> anyhow::Result<(Vec<BrickStatus>, BTreeMap<NodeId, String>)> {
        let (applied, id) = (self.state()?.applied, volume.map.id);
        let nodes: BTreeSet<NodeId> = volume.members().map(|member| member.node).collect();
        let (mut served, mut silent) = (Vec::new(), BTreeMap::new());
        for node in nodes {
            if node != self.node.id && !self.node.peers.is_reachable(node) {
                silent.insert(node, "it cannot be reached".to_owned());
                continue;
            }
            match self.order::<Vec<BrickStatus>>(node, BrickOrder::Status { volume: id, applied }) {
                Ok(bricks) => served.extend(bricks),
                Err(error) => drop(silent.insert(node, format!("{error:#}"))),
            }
        }
        Ok((served, silent))
    }
}

/// Ends creates whose records nobody has ended for a while, until it is dropped. At the start all records are such. Does
/// not hold the manager, which holds the thread that this runs on.
pub(super) async fn end_interrupted_creates(node: Arc<Node>, records: Records) {
    let mut old: BTreeSet<VolumeId> = pending(&records).iter().map(|pending| pending.volume).collect();
    loop {
        for pending in pending(&records).iter().filter(|pending| old.contains(&pending.volume)) {
            if let Err(error) = end_create_in_doubt(&node, &records, pending).await {
                let error = format!("{error:#}");
                tracing::warn!(volume = %pending.volume, error, "an interrupted volume create cannot be ended yet");
            }
        }
        old = pending(&records).iter().map(|pending| pending.volume).collect();
        sleep(RECORD_LOOK).await;
    }
}

fn pending(records: &Records) -> Vec<PendingCreate> {
    records.pending().unwrap_or_else(|error| {
        tracing::error!("the records of creates cannot be read: {error:#}");
        Vec::new()
    })
}

/// Finds out what became of a create and ends it. Giving it up has the id of its command: whichever of the two is
/// applied first is what both are answered, so that a create that is still on its way cannot come after this.
pub(super) async fn end_create_in_doubt(node: &Node, records: &Records, pending: &PendingCreate) -> anyhow::Result<()> {
    let is_given_up = match pending.command {
        // Of a release whose creates were not on their way for longer than its process lived.
        None => true,
        Some(id) => node.run(id, Command::GiveUpCreate { volume: pending.volume }).await?.refusal.is_some(),
    };
    // The state has all that was applied before. It is looked at also where the id of an old create is known no more, as
    // on a node that was away for long: the create may have been done, and its volume be in use.
    let is_done = !is_given_up || node.state()?.volume_by_id(pending.volume).is_some();
    if !is_done {
        tracing::warn!(volume = %pending.volume, "putting away what an interrupted volume create left");
    }
    let (records, volume) = (records.clone(), pending.volume);
    tokio::task::spawn_blocking(move || create::end_create(&records, volume, is_done)).await?
}
