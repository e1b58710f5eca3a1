//! Certificates of nodes: signed by a voter, written down in the cluster state before they are given out, and renewed
//! long before they end.

use crate::manager::node::{CommandError, Node, now_ms};
use crate::manager::peers::describe;
use crate::security::authority::Grant;
use crate::security::identity::{Identity, NewKey};
use crate::security::role::{Holder, Role, Serial};
use anyhow::{Context as _, bail};
use brickfs_common::cluster::command::{Command, RenewCertificate};
use brickfs_common::ids::NodeId;
use brickfs_proto::v1::RenewRequest;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::{sleep, timeout};

/// How long certificates last unless asked otherwise: 90 days.
pub const CERTIFICATE_LIFE_S: u64 = 90 * 24 * 3_600;
/// Longest pause between two looks at the own certificate, so that a clock that was set is noticed.
const LOOK_MAX: Duration = Duration::from_secs(600);
const RENEW_TIMEOUT: Duration = Duration::from_secs(15);

/// A certificate that may be signed: its number is in the cluster state.
#[derive(Clone, Copy, Debug)]
pub struct Planned {
    /// What it says.
    pub grant: Grant,
    /// When it ends, in milliseconds since 1970.
    pub ends_ms: u64,
}

impl Node {
    /// What the next certificate of a node would say.
    pub fn plan_certificate(&self, node: NodeId) -> Planned {
        let grant = Grant {
            holder: Holder { role: Role::Peer, id: node },
            serial: Serial::random(),
            lifetime: self.certificate_life,
        };
        let life_ms = u64::try_from(self.certificate_life.as_millis()).unwrap_or(u64::MAX);
        Planned { grant, ends_ms: now_ms().saturating_add(life_ms) }
    }

    /// Signs a further certificate for a member; only with the authority's key.
    pub async fn sign_renewal(&self, node: NodeId, request: &str) -> anyhow::Result<String> {
        let authority = self.authority().context("this node is no voter: it cannot sign")?;
        let planned = self.plan_certificate(node);
        let certificate = authority.sign(request, &planned.grant, SystemTime::now())?;
        let (serial, ends_ms) = (planned.grant.serial.in_state(), planned.ends_ms);
        let renew = RenewCertificate { node, serial, ends_ms, now_ms: now_ms() };
        let outcome = self.run(rand::random(), Command::RenewCertificate(renew)).await?;
        match outcome.refusal {
            None => Ok(certificate),
            Some(refusal) => bail!("{refusal}"),
        }
    }

    /// Gets a new certificate for this node and uses it from now on.
    async fn renew(&self) -> anyhow::Result<()> {
        let key = NewKey::make()?;
        let certificate = match self.authority() {
            Some(_) => self.sign_renewal(self.id, key.request()).await?,
            None => self.ask_for_renewal(key.request()).await?,
        };
        let (now, holder) = (SystemTime::now(), Holder { role: Role::Peer, id: self.id });
        let authority = self.credentials.identity().authority().clone();
        let identity = Identity::install(&self.state_dir, &key, &certificate, &authority, holder, now)?;
        self.credentials.replace_identity(identity);
        tracing::info!("the certificate of this node was renewed");
        Ok(())
    }

    async fn ask_for_renewal(&self, request: &str) -> anyhow::Result<String> {
        let mut last = CommandError::NoState.to_string();
        for voter in self.member.voters() {
            let Some(mut client) = self.peers.client(voter) else { continue };
            let request = RenewRequest { request: request.to_owned() };
            match timeout(RENEW_TIMEOUT, client.renew(request)).await {
                Ok(Ok(reply)) => return Ok(reply.into_inner().certificate),
                Ok(Err(status)) => last = describe(&status),
                Err(_) => last = format!("voter {voter} did not answer in time"),
            }
        }
        bail!("no voter has signed: {last}")
    }

    /// Renews this node's certificate whenever it is time to, until it is dropped.
    pub async fn keep_certificate(self: Arc<Self>) {
        loop {
            let identity = self.credentials.identity();
            if identity.wants_renewal(SystemTime::now())
                && let Err(error) = self.renew().await
            {
                let left = identity.expires().duration_since(SystemTime::now()).unwrap_or_default();
                let error = format!("{error:#}");
                tracing::warn!(left_s = left.as_secs(), error, "the certificate of this node could not be renewed");
            }
            sleep(self.credentials.identity().renewal_pause().min(LOOK_MAX)).await;
        }
    }
}
