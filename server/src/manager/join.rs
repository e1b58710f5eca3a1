//! How a node becomes a member of a cluster: the token that an operator carries, and both sides of the call.
//!
//! What a crash leaves: before the joining node has its new identity on disk it is alone, and the operator repeats the
//! command; after that the next start finishes the join (`startup`), for the cluster has it as a member.

use crate::manager::node::{CommandError, Node, now_ms};
use crate::manager::peers::{WIRE_MAX_BYTES, describe};
use crate::security::authority::AuthorityCertificate;
use crate::security::connect::connect_to_any;
use crate::security::identity::{Identity, NewKey};
use crate::security::role::Role;
use crate::security::tls::ClientTls;
use crate::security::token::{Secret, Token};
use anyhow::{Context as _, bail};
use brickfs_common::cluster::address::parse_address;
use brickfs_common::cluster::admin::{JoinToken, Joined};
use brickfs_common::cluster::command::{AddNode, AddToken, Command};
use brickfs_common::cluster::state::{CLUSTER_VERSION, NodeRole};
use brickfs_common::cluster::token::TokenHash;
use brickfs_common::ids::NodeId;
use brickfs_proto::v1::cluster_client::ClusterClient;
use brickfs_proto::v1::{JoinReply, JoinRequest};
use bytes::Bytes;
use std::time::{Duration, Instant, SystemTime};
use tokio::time::{sleep, timeout};
use tonic::transport::Endpoint;

/// Version of the forms of a join.
pub const JOIN_VERSION: u32 = 1;
/// How long a token lasts unless asked otherwise: an hour.
const TOKEN_LIFE_S: u64 = 3_600;
/// The port of a `HOST` without one.
pub const DEFAULT_PORT: u16 = 24_180;
const JOIN_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a node that has joined may take to get the cluster's state.
const STATE_TIMEOUT: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What a node asks to become.
pub struct Wish {
    /// Its addresses for the others.
    pub addresses: Vec<String>,
    /// What it is for.
    pub role: NodeRole,
}

impl Node {
    /// Makes a token that lets one node join.
    pub async fn make_token(&self, valid_s: Option<u64>, made_by: String) -> anyhow::Result<JoinToken> {
        let state = self.state()?;
        let own = state.nodes.get(&self.id).context("this node is not a member any more")?;
        if own.addresses.is_empty() {
            bail!("this node listens on its own socket alone: start brickd with --listen ADDRESS:PORT first");
        }
        let token = Token::new(self.credentials.identity().authority().hash(), own.addresses.clone())?;
        let now = now_ms();
        let ends_ms = now.saturating_add(valid_s.unwrap_or(TOKEN_LIFE_S).saturating_mul(1_000));
        let add = AddToken { hash: TokenHash(token.secret.hash()), ends_ms, made_by, now_ms: now };
        if let Some(refusal) = self.run(rand::random(), Command::AddToken(add)).await?.refusal {
            bail!("{refusal}");
        }
        Ok(JoinToken { token: token.text().to_string(), ends_ms, addresses: token.addresses.clone() })
    }

    /// Lets a node in that has shown a token: on a voter, for others cannot sign.
    pub async fn admit(&self, request: &JoinRequest) -> anyhow::Result<JoinReply> {
        if request.version != JOIN_VERSION {
            bail!("the node speaks join version {}, this one {JOIN_VERSION}: use the same release", request.version);
        }
        let node = NodeId::from_slice(&request.node).context("the node has no id")?;
        let secret = Secret::from_slice(&request.secret).context("the token has no secret")?;
        let Some(authority) = self.authority() else { return self.pass_join_on(request).await };
        let node = self.state()?.id_to_join(node, &request.name, &TokenHash(secret.hash()));
        let planned = self.plan_certificate(node);
        // Signed before it is written down: a request that cannot be signed changes nothing. Nobody gets to see the
        // certificate before its number is in the state.
        let certificate = authority.sign(&request.request, &planned.grant, SystemTime::now())?;
        let add = AddNode {
            token: TokenHash(secret.hash()),
            node,
            name: request.name.clone(),
            addresses: request.addresses.clone(),
            role: if request.is_witness { NodeRole::Witness } else { NodeRole::Server },
            serial: planned.grant.serial.in_state(),
            serial_ends_ms: planned.ends_ms,
            supports: request.supports,
            now_ms: now_ms(),
        };
        let outcome = self.run(rand::random(), Command::AddNode(add)).await?;
        let refusal = outcome.refusal.unwrap_or_default();
        let (certificate, authority) = match refusal.is_empty() {
            true => (certificate, authority.certificate().pem()),
            false => (String::new(), String::new()),
        };
        Ok(JoinReply { refusal, certificate, authority })
    }

    async fn pass_join_on(&self, request: &JoinRequest) -> anyhow::Result<JoinReply> {
        let leader = self.member.leader().filter(|leader| *leader != self.id);
        let client = leader.and_then(|leader| self.peers.client(leader));
        let mut client = client.context("no voter can be reached from here to sign: try again")?;
        let reply = timeout(JOIN_TIMEOUT, client.join(request.clone())).await.context("the leader is too slow")?;
        reply.map(tonic::Response::into_inner).map_err(|status| anyhow::anyhow!(describe(&status)))
    }

    /// Makes this node a member of the cluster of a token. It has to be alone. Once it is, everything on it starts
    /// anew; asked again, it says what it is a member of.
    pub async fn join(&self, address: Option<&str>, text: &str, wish: Wish) -> anyhow::Result<Joined> {
        let token = Token::parse(text)?;
        if self.credentials.identity().authority().hash() != token.authority_hash {
            self.check_alone()?;
        } else if let Ok(joined) = self.joined().await {
            return Ok(joined);
        }
        if wish.addresses.is_empty() {
            bail!("this node listens on its own socket alone: start brickd with --listen ADDRESS:PORT first");
        }
        let addresses = match address {
            None => token.addresses.clone(),
            Some(address) => vec![with_port(address)?],
        };
        let key = NewKey::make()?;
        let request = JoinRequest {
            version: JOIN_VERSION,
            secret: Bytes::copy_from_slice(token.secret.as_bytes()),
            node: Bytes::copy_from_slice(&self.id.0),
            name: self.name(),
            addresses: wish.addresses,
            is_witness: wish.role == NodeRole::Witness,
            request: key.request().to_owned(),
            supports: CLUSTER_VERSION,
        };
        let reply = self.ask_to_join(&addresses, token.authority_hash, request).await?;
        if !reply.refusal.is_empty() {
            bail!("the cluster does not let this node join: {}", reply.refusal);
        }
        let authority = AuthorityCertificate::from_pem(&reply.authority)?;
        if authority.hash() != token.authority_hash {
            bail!("the node that was asked has another authority than the token's: nothing was changed");
        }
        // Its own id, or that of the node whose place it takes in a restored cluster.
        let holder = Identity::holder_in(&reply.certificate)?;
        if holder.role != Role::Peer {
            bail!("the cluster has given a certificate of the role {}: nothing was changed", holder.role);
        }
        // From here on the next start finishes what a crash cuts short.
        Identity::install(&self.state_dir, &key, &reply.certificate, &authority, holder, SystemTime::now())?;
        tracing::info!(cluster = %authority.cluster(), "joined a cluster, starting anew as its member");
        self.set_rejoined();
        let (cluster, nodes) = (authority.cluster(), Vec::new());
        Ok(Joined { cluster, name: self.name(), nodes })
    }

    async fn ask_to_join(
        &self,
        addresses: &[String],
        authority_hash: [u8; 32],
        request: JoinRequest,
    ) -> anyhow::Result<JoinReply> {
        let tls = ClientTls::joining(authority_hash)?;
        let (addresses, from) = (addresses.to_vec(), self.peers.connect_from());
        let shown = addresses.join(", ");
        let connector = tower::service_fn(move |_| {
            let (addresses, tls) = (addresses.clone(), tls.clone());
            async move { connect_to_any(&addresses, &tls, from).await }
        });
        let channel = Endpoint::from_static("http://brickd").connect_with_connector(connector).await;
        let channel = channel.map_err(|error| {
            let status = tonic::Status::from_error(Box::new(error));
            anyhow::anyhow!("cannot reach the cluster: {}", describe(&status))
        })?;
        let mut client = ClusterClient::new(channel).max_decoding_message_size(WIRE_MAX_BYTES);
        let reply = timeout(JOIN_TIMEOUT, client.join(request)).await;
        let reply = reply.with_context(|| format!("{shown} did not answer in time: try again"))?;
        reply.map(tonic::Response::into_inner).map_err(|status| anyhow::anyhow!("{shown}: {}", describe(&status)))
    }

    /// Refuses on a node that would lose something.
    pub(super) fn check_alone(&self) -> anyhow::Result<()> {
        let state = self.state()?;
        if state.nodes.len() > 1 {
            bail!("this node is a member of a cluster of {} nodes: remove it there first", state.nodes.len());
        }
        if let Some(volume) = state.volumes.keys().next() {
            bail!(
                "this node has volumes ('{volume}'), which would be lost: delete them, or let the other nodes join it"
            );
        }
        Ok(())
    }

    /// What this node is a member of, once it knows and the others answer. They do not answer a node that they have
    /// removed, which may not have heard of that: it joins again.
    async fn joined(&self) -> anyhow::Result<Joined> {
        let deadline = Instant::now() + STATE_TIMEOUT;
        loop {
            let state = self.member.state().filter(|state| state.nodes.contains_key(&self.id));
            if let Some(state) = state.filter(|_| self.member.leader().is_some())
                && self.leader_answers().await
            {
                let mut nodes: Vec<String> = state.nodes.values().map(|node| node.name.clone()).collect();
                nodes.sort_unstable();
                return Ok(Joined { cluster: state.cluster, name: self.name(), nodes });
            }
            if Instant::now() >= deadline {
                return Err(CommandError::NoState.into());
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Asks: what was heard of it before says nothing about a removal since.
    async fn leader_answers(&self) -> bool {
        let looks = self.peers.look_at_all().await;
        self.member.leader().is_some_and(|leader| leader == self.id || looks.contains_key(&leader))
    }
}

/// An address as it is typed: `HOST:PORT`, or `HOST` with the default port.
fn with_port(text: &str) -> anyhow::Result<String> {
    let with_port = format!("{text}:{DEFAULT_PORT}");
    let address = if parse_address(text).is_ok() { text.to_owned() } else { with_port };
    match parse_address(&address) {
        Ok(_) => Ok(address),
        Err(_) => bail!("'{text}' is not an address: give HOST, HOST:PORT or [IPV6]:PORT"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_the_default_port_unless_it_names_one() {
        assert_eq!(with_port("host").unwrap(), "host:24180");
        assert_eq!(with_port("10.0.0.1:1").unwrap(), "10.0.0.1:1");
        assert_eq!(with_port("[fd00::1]").unwrap(), "[fd00::1]:24180");
        assert!(with_port("a b").is_err() && with_port("").is_err() && with_port("host:99999").is_err());
    }
}
