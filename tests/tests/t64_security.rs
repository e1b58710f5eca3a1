//! Who is let in over TCP: nobody in clear, without a certificate, with another authority's, an expired or a revoked
//! one; and with one of the cluster each role makes its own calls alone. Every refusal is in the audit log.

use anyhow::{Context as _, ensure};
use brickfs_tests::at::At as _;
use brickfs_tests::case::case;
use brickfs_tests::eventually::eventually_ok;
use brickfs_tests::impostor::{Shown, Signer, call_all};
use brickfs_tests::needs::Need;
use brickfs_tests::nodes::Nodes;
use brickfs_tests::wire::Answer;
use prost::Message as _;
use serde_json::Value;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

const NEEDS: &[Need] = &[Need::Root];
const WRITTEN_WITHIN: Duration = Duration::from_secs(10);
const STRANGER: &str = "0badc0de-0000-4000-8000-000000000001";
const JOIN: &str = "/brickfs.v1.Cluster/Join";
const ADMIN: &str = "/brickfs.v1.Admin/Run";
const PERMISSION_DENIED: i32 = 7;
const DAY_S: i64 = 24 * 3_600;

/// The paths of all RPCs that there are.
fn rpcs() -> anyhow::Result<Vec<String>> {
    let set = prost_types::FileDescriptorSet::decode(brickfs_proto::FILE_DESCRIPTOR_SET)?;
    let mut paths = Vec::new();
    for file in &set.file {
        for service in &file.service {
            paths.extend(service.method.iter().map(|m| format!("/{}.{}/{}", file.package(), service.name(), m.name())));
        }
    }
    ensure!(paths.len() >= 10, "only {} RPCs are known", paths.len());
    Ok(paths)
}

fn run<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

fn audit(state_dir: &Path) -> anyhow::Result<Vec<Value>> {
    let path = state_dir.join("audit.log");
    let text = fs::read_to_string(&path).at(&path)?;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

/// Waits for a line of the audit log with these words.
fn audited(nodes: &Nodes, number: usize, is_it: impl Fn(&Value) -> bool, what: &str) -> anyhow::Result<()> {
    eventually_ok(&format!("the audit log has {what}"), WRITTEN_WITHIN, || {
        let lines = audit(nodes.state_dir(number))?;
        ensure!(lines.iter().any(&is_it), "{lines:?}");
        Ok(())
    })
}

fn is_refused(answer: &Answer) -> bool {
    answer.grpc == Some(PERMISSION_DENIED)
}

#[test]
fn a_connection_in_clear_gets_nothing() {
    case(NEEDS, |case| {
        let nodes = Nodes::cluster(&case.in_memory()?, 1)?;
        for words in [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"] {
            let mut socket = TcpStream::connect(nodes.address(1))?;
            socket.set_read_timeout(Some(WRITTEN_WITHIN))?;
            socket.write_all(words)?;
            let mut answer = Vec::new();
            // An alert of TLS, or nothing; a reset is an end as well.
            socket.read_to_end(&mut answer).ok();
            ensure!(answer.len() < 16 && !answer.starts_with(b"HTTP"), "{answer:?}");
        }
        audited(&nodes, 1, |line| line["result"].as_str().is_some_and(|r| r.contains("does not speak TLS")), "both")
    });
}

#[test]
fn without_a_certificate_nothing_can_be_called_but_a_join() {
    case(NEEDS, |case| {
        let nodes = Nodes::cluster(&case.in_memory()?, 1)?;
        let rpcs = rpcs()?;
        let answers = run(call_all(nodes.address(1), None, &rpcs))?;
        for (rpc, answer) in rpcs.iter().zip(&answers) {
            ensure!(answer.grpc != Some(0), "{rpc} was done: {answer:?}");
            ensure!(is_refused(answer) == (rpc != JOIN), "{rpc}: {answer:?}");
        }
        for rpc in rpcs.iter().filter(|rpc| *rpc != JOIN) {
            let is_it = |line: &Value| line["role"] == "stranger" && line["what"] == rpc.as_str();
            audited(&nodes, 1, is_it, rpc)?;
        }
        Ok(())
    });
}

#[test]
fn certificates_of_others_and_of_the_past_are_refused() {
    case(NEEDS, |case| {
        let nodes = Nodes::cluster(&case.in_memory()?, 1)?;
        let rpcs = rpcs()?;
        let signer = Signer::of_node(nodes.state_dir(1))?;
        // With a good one the connection works: what is refused below is refused for its certificate.
        let answers = run(call_all(nodes.address(1), Some(&signer.sign("peer", STRANGER, DAY_S)?), &rpcs))?;
        ensure!(answers.len() == rpcs.len(), "{answers:?}");
        let other = signer.pretended()?.sign("peer", STRANGER, DAY_S)?;
        let old = signer.sign("peer", STRANGER, -60)?;
        let unknown = signer.sign("root", STRANGER, DAY_S)?;
        for (shown, reason) in [(other, "not signed"), (old, "expired"), (unknown, "OU")] {
            let refused = run(call_all(nodes.address(1), Some(&shown), &rpcs));
            ensure!(refused.is_err(), "{reason}: {:?}", refused.ok());
            let is_it = |line: &Value| {
                line["what"] == "connection" && line["result"].as_str().is_some_and(|result| result.contains(reason))
            };
            audited(&nodes, 1, is_it, reason)?;
        }
        Ok(())
    });
}

#[test]
fn a_removed_node_is_refused_with_the_certificate_that_it_has() {
    case(NEEDS, |case| {
        let mut nodes = Nodes::cluster(&case.in_memory()?, 3)?;
        let shown = Shown::of_node(nodes.state_dir(3))?;
        let look = ["/brickfs.v1.Cluster/Look".to_owned()];
        let answers = run(call_all(nodes.address(1), Some(&shown), &look))?;
        ensure!(answers.iter().all(|answer| answer.grpc == Some(0)), "{answers:?}");
        nodes.kill(3)?;
        nodes.brickctl(1, &["peer", "remove", "node-3"])?.ok()?;
        eventually_ok("the certificate is refused", WRITTEN_WITHIN, || {
            let refused = run(call_all(nodes.address(1), Some(&shown), &look));
            ensure!(refused.is_err(), "{:?}", refused.ok());
            Ok(())
        })?;
        audited(&nodes, 1, |line| line["result"].as_str().is_some_and(|r| r.contains("revoked")), "the revoked one")
    });
}

#[test]
fn each_role_makes_its_own_calls_alone() {
    case(NEEDS, |case| {
        let nodes = Nodes::cluster(&case.in_memory()?, 1)?;
        let (rpcs, signer) = (rpcs()?, Signer::of_node(nodes.state_dir(1))?);
        for (role, allowed) in [("client", &[][..]), ("admin", &[ADMIN][..])] {
            let shown = signer.sign(role, STRANGER, DAY_S)?;
            let answers = run(call_all(nodes.address(1), Some(&shown), &rpcs))?;
            for (rpc, answer) in rpcs.iter().zip(&answers) {
                ensure!(is_refused(answer) != allowed.contains(&rpc.as_str()), "{role} {rpc}: {answer:?}");
            }
            for rpc in rpcs.iter().filter(|rpc| !allowed.contains(&rpc.as_str())) {
                let is_it =
                    |line: &Value| line["role"] == role && line["who"] == STRANGER && line["what"] == rpc.as_str();
                audited(&nodes, 1, is_it, &format!("{role} {rpc}"))?;
            }
        }
        let state = nodes.cluster_json(1)?;
        ensure!(state["volumes"].as_object().is_some_and(serde_json::Map::is_empty), "{state}");
        Ok(())
    });
}

#[test]
fn the_authoritys_key_is_on_voters_alone_and_in_no_other_file() {
    case(NEEDS, |case| {
        let dir = case.in_memory()?;
        let nodes = Nodes::cluster(&dir, 4)?;
        let voters = nodes.voters(1)?;
        ensure!(voters.len() == 3, "{voters:?}");
        let mut body = String::new();
        for number in nodes.numbers() {
            let key = nodes.state_dir(number).join("tls/ca.key");
            let is_voter = voters.contains(&brickfs_tests::nodes::name_of(number));
            ensure!(key.exists() == is_voter, "node-{number} votes: {is_voter}, and has the key: {}", key.exists());
            if is_voter {
                ensure!(fs::metadata(&key).at(&key)?.permissions().mode() & 0o777 == 0o600, "{}", key.display());
                body = fs::read_to_string(&key).at(&key)?.lines().nth(1).context("an empty key")?.to_owned();
            }
        }
        let backup = dir.join("backup");
        nodes.brickctl(1, &["cluster", "backup", &backup.display().to_string()])?.ok()?;
        let mut waiting = vec![dir.clone()];
        while let Some(directory) = waiting.pop() {
            for entry in fs::read_dir(&directory).at(&directory)? {
                let path = entry?.path();
                if path.is_dir() {
                    waiting.push(path);
                } else if path.file_name().is_some_and(|name| name != "ca.key") && path.is_file() {
                    let bytes = fs::read(&path).at(&path)?;
                    let has_it = bytes.windows(body.len()).any(|window| window == body.as_bytes());
                    ensure!(!has_it, "{} has the authority's key in it", path.display());
                }
            }
        }
        Ok(())
    });
}
