//! `brickctl peer`: the nodes of the cluster. A token is the only thing that standard output gets of
//! `peer token`, so that it can be piped to the other machine.

use crate::admin::{call, unexpected};
use crate::args::{Format, Global, PeerCommand};
use crate::clock::{date, now_ms, span};
use crate::cmd::cluster::role_name;
use crate::output::{confirm, print_done, print_json, table, write_out};
use crate::{Outcome, UsageError, playground};
use anyhow::Context as _;
use brickfs_common::cluster::admin::{AdminCall, AdminResult, JoinToken, Joined, PeerInfo};
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

/// A token has a few hundred bytes.
const TOKEN_MAX_BYTES: u64 = 64 << 10;

/// Runs a command of the group.
pub fn run(global: &Global, command: &PeerCommand) -> anyhow::Result<Outcome> {
    // Before a brickd is looked for: a wrong use is one whether or not it runs.
    let token = match command {
        PeerCommand::Join { token, .. } => read_token(token)?,
        _ => String::new(),
    };
    let socket = playground::socket_of(global)?;
    match command {
        PeerCommand::Token { valid } => print_token(global, &make_token(&socket, Some(*valid))?)?,
        PeerCommand::Join { host, .. } => print_joined(global, &join(&socket, host.clone(), token)?)?,
        PeerCommand::List => match call(&socket, &AdminCall::PeerList {})? {
            AdminResult::Peers(peers) => print_peers(global, &peers)?,
            other => return Err(unexpected(&other)),
        },
        PeerCommand::Remove { node } => {
            confirm(global, &format!("Removing node '{node}' ends its part in the cluster for good. Go on?"))?;
            call(&socket, &AdminCall::PeerRemove { node: node.clone() })?;
            let text =
                format!("Node '{node}' is removed. To join again it needs an empty state directory and a token.");
            print_done(global, &text)?;
        }
    }
    Ok(Outcome::Fine)
}

/// Asks a member for a token.
pub fn make_token(socket: &Path, valid: Option<Duration>) -> anyhow::Result<JoinToken> {
    match call(socket, &AdminCall::PeerToken { valid_s: valid.map(|valid| valid.as_secs()) })? {
        AdminResult::Token(token) => Ok(token),
        other => Err(unexpected(&other)),
    }
}

/// Lets the node that is asked join.
pub fn join(socket: &Path, address: Option<String>, token: String) -> anyhow::Result<Joined> {
    match call(socket, &AdminCall::PeerJoin { address, token })? {
        AdminResult::Joined(joined) => Ok(joined),
        other => Err(unexpected(&other)),
    }
}

fn read_token(typed: &str) -> anyhow::Result<String> {
    let mut text = typed.to_owned();
    if typed == "-" {
        text.clear();
        let read = std::io::stdin().lock().take(TOKEN_MAX_BYTES).read_to_string(&mut text);
        read.context("cannot read the token from standard input")?;
    }
    let token = text.trim();
    if token.is_empty() || token.chars().any(|c| c.is_whitespace() || c.is_control()) {
        let text = "--token: that is no token; make one with 'brickctl peer token' on a node of the cluster";
        return Err(UsageError(text.to_owned()).into());
    }
    Ok(token.to_owned())
}

fn print_token(global: &Global, token: &JoinToken) -> anyhow::Result<()> {
    if global.output == Format::Json {
        return print_json(token);
    }
    write_out(&format!("{}\n", token.token))?;
    eprint!("{}", describe_token(token, now_ms()));
    Ok(())
}

fn describe_token(token: &JoinToken, now_ms: u64) -> String {
    let left = span(Duration::from_millis(token.ends_ms.saturating_sub(now_ms)));
    let addresses = match token.addresses.as_slice() {
        [] => "names no address: give 'peer join' one".to_owned(),
        addresses => format!("leads to {}", addresses.join(", ")),
    };
    format!(
        "The token is good for one node, until {} ({left}), and {addresses}.\n\
         Next, on the new node, with the token on standard input:\n  brickctl peer join --token -\n",
        date(token.ends_ms)
    )
}

fn print_joined(global: &Global, joined: &Joined) -> anyhow::Result<()> {
    match global.output {
        Format::Json => print_json(joined),
        Format::Text => {
            let (name, cluster, nodes) = (&joined.name, joined.cluster, joined.nodes.join(", "));
            write_out(&format!("Node '{name}' is a member of cluster {cluster}: {nodes}.\n"))
        }
    }
}

fn print_peers(global: &Global, peers: &[PeerInfo]) -> anyhow::Result<()> {
    match global.output {
        Format::Json => print_json(&peers),
        Format::Text => write_out(&describe_peers(peers)),
    }
}

fn describe_peers(peers: &[PeerInfo]) -> String {
    let heading = ["NODE", "ROLE", "ADDRESSES", "BRICKS", "MEMBER SINCE", "CERTIFICATE ENDS"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    let date_of = |ms: Option<u64>| ms.map_or_else(|| "-".to_owned(), date);
    rows.extend(peers.iter().map(|peer| {
        let addresses = if peer.addresses.is_empty() { "-".to_owned() } else { peer.addresses.join(", ") };
        let since = date_of(Some(peer.joined_ms).filter(|ms| *ms > 0));
        let (role, bricks) = (role_name(peer.role).to_owned(), peer.bricks_count.to_string());
        vec![peer.name.clone(), role, addresses, bricks, since, date_of(peer.certificate_ends_ms)]
    }));
    table(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use brickfs_common::cluster::state::NodeRole;
    use brickfs_common::ids::NodeId;

    #[test]
    fn a_token_is_one_word() {
        assert_eq!(read_token(" abc.def\n").unwrap(), "abc.def");
        for bad in ["", " \n", "a b", "a\u{7}b"] {
            assert!(read_token(bad).unwrap_err().is::<UsageError>(), "{bad:?}");
        }
    }

    #[test]
    fn what_is_said_of_a_token_holds_no_token() {
        let token =
            JoinToken { token: "secret".to_owned(), ends_ms: 3_600_000, addresses: vec!["10.0.0.1:24007".to_owned()] };
        let text = describe_token(&token, 0);
        assert!(!text.contains("secret"), "{text}");
        assert!(text.contains("until 1970-01-01 01:00:00 UTC (60 min), and leads to 10.0.0.1:24007."), "{text}");
        assert!(text.ends_with("brickctl peer join --token -\n"), "{text}");
        assert!(describe_token(&JoinToken { addresses: Vec::new(), ..token }, 0).contains("names no address"));
    }

    #[test]
    fn peers_are_a_line_each() {
        let peer = PeerInfo {
            name: "node-1".to_owned(),
            id: NodeId([1; 16]),
            role: NodeRole::Witness,
            addresses: vec!["127.0.0.1:10000".to_owned()],
            bricks_count: 4,
            joined_ms: 0,
            certificate_ends_ms: Some(1000),
        };
        let text = describe_peers(&[peer]);
        let line = text.lines().nth(1).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(line, "node-1 witness 127.0.0.1:10000 4 - 1970-01-01 00:00:01 UTC");
    }
}
