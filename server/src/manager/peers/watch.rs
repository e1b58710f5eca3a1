//! Asks every other node twice a second how it is: an answer is the sign that it can be reached.

use crate::manager::peers::look::Look;
use crate::manager::peers::{PeerClient, Peers, describe, lock};
use brickfs_common::ids::NodeId;
use brickfs_proto::v1::LookRequest;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// How often. With the timeout a silent node is known within 1.5 s, a closed port within 0.5 s.
const INTERVAL: Duration = Duration::from_millis(500);
/// How long an answer may take.
pub const ANSWER_TIMEOUT: Duration = Duration::from_millis(1_000);

impl Peers {
    /// Watches the others until it is dropped.
    pub async fn watch(self: Arc<Self>) {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut asked: JoinSet<NodeId> = JoinSet::new();
        let mut waiting = std::collections::HashSet::new();
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    // A node that has not answered yet is not asked once more.
                    for node in self.others().into_iter().filter(|node| !waiting.contains(node)).collect::<Vec<_>>() {
                        waiting.insert(node);
                        let peers = self.clone();
                        asked.spawn(async move {
                            peers.look(node).await;
                            node
                        });
                    }
                }
                Some(Ok(node)) = asked.join_next() => {
                    waiting.remove(&node);
                }
            }
        }
    }

    /// Asks all others at once; those that do not answer are missing. One that did not answer last is not waited for:
    /// the watch goes on asking it, and who wants to know how things are gets to know it at once.
    pub async fn look_at_all(self: &Arc<Self>) -> BTreeMap<NodeId, Look> {
        let mut asked = JoinSet::new();
        for node in self.others().into_iter().filter(|node| !self.is_known_away(*node)) {
            let peers = self.clone();
            asked.spawn(async move { peers.look(node).await });
        }
        asked.join_all().await.into_iter().flatten().map(|look| (look.node, look)).collect()
    }

    /// Asks one and notes whether it answers.
    async fn look(&self, node: NodeId) -> Option<Look> {
        let client = self.client(node)?;
        let asked = timeout(ANSWER_TIMEOUT, ask(client)).await;
        match asked.unwrap_or_else(|_| Err(format!("no answer within {} ms", ANSWER_TIMEOUT.as_millis()))) {
            Ok(look) if look.node == node => {
                if !lock(&self.reach).is_reachable(node) {
                    tracing::info!(%node, "the node is reachable");
                }
                lock(&self.reach).note_answer(node, Instant::now());
                let mut keyless = lock(&self.keyless);
                if look.has_key {
                    keyless.remove(&node)
                } else {
                    keyless.insert(node)
                };
                Some(look)
            }
            Ok(look) => self.note_fault(node, format!("node {} answers there", look.node)),
            Err(reason) => self.note_fault(node, reason),
        }
    }

    fn note_fault(&self, node: NodeId, reason: String) -> Option<Look> {
        if lock(&self.reach).note_fault(node, reason.clone()) {
            tracing::info!(%node, reason, "the node is not reachable");
        }
        None
    }
}

async fn ask(mut client: PeerClient) -> Result<Look, String> {
    let reply = client.look(LookRequest {}).await.map_err(|status| describe(&status))?;
    serde_json::from_slice(&reply.into_inner().json).map_err(|error| format!("its answer cannot be read: {error}"))
}
