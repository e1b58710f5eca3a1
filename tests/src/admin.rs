//! The unary call of administration as the test itself sends it: no process for each of thousands of commands, and
//! command ids that the test chooses, so that one can be sent again.

use crate::wire::{ADMIN, Connection, message};
use anyhow::{Context as _, bail, ensure};
use brickfs_proto::v1::{AdminReply, AdminRequest};
use bytes::{Buf as _, BytesMut};
use prost::Message as _;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::time::timeout;

const ADMIN_VERSION: u32 = 1;
/// gRPC's flag and length before a message.
const PREFIX_BYTES: usize = 5;

/// Identity of a command: sent again under it, it runs once.
pub type CommandId = [u8; 16];

/// What came of one call.
#[derive(Clone, PartialEq, Debug)]
pub enum Said {
    /// It was done; the answer.
    Done(Value),
    /// Refused, with the line for people.
    Refused(String),
    /// No answer, or one that says that it is not known: it may be done.
    Unknown(String),
}

/// A connection to one `brickd`, made again after its loss.
pub struct Admin {
    runtime: Runtime,
    socket: PathBuf,
    connection: Option<Connection>,
}

impl Admin {
    /// Connects with the first call.
    pub fn new(socket: &Path) -> anyhow::Result<Admin> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Admin { runtime, socket: socket.to_owned(), connection: None })
    }

    /// Sends a change under its id.
    pub fn change(&mut self, id: CommandId, call: &Value, patience: Duration) -> Said {
        self.send(id.to_vec(), call, patience)
    }

    /// Asks for something.
    pub fn ask(&mut self, call: &Value, patience: Duration) -> Said {
        self.send(Vec::new(), call, patience)
    }

    /// `volume_get` of one option.
    pub fn option(&mut self, volume: &str, key: &str, patience: Duration) -> anyhow::Result<String> {
        match self.ask(&json!({"volume_get": {"name": volume, "key": key}}), patience) {
            Said::Done(value) => Ok(value["options"][0]["value"].as_str().context("no value")?.to_owned()),
            other => bail!("{key} of {volume}: {other:?}"),
        }
    }

    fn send(&mut self, command_id: Vec<u8>, call: &Value, patience: Duration) -> Said {
        let request =
            AdminRequest { version: ADMIN_VERSION, command_id: command_id.into(), json: call.to_string().into() };
        let Admin { runtime, socket, connection } = self;
        let asked = runtime.block_on(async { timeout(patience, run(connection, socket, &request)).await });
        match asked.context("no answer in time").flatten() {
            Ok(reply) => read(&reply),
            Err(error) => {
                *connection = None;
                Said::Unknown(format!("{error:#}"))
            }
        }
    }
}

async fn run(connection: &mut Option<Connection>, socket: &Path, request: &AdminRequest) -> anyhow::Result<AdminReply> {
    let open = match connection {
        Some(open) => open,
        None => connection.insert(Connection::open(socket).await?),
    };
    let mut call = open.call(ADMIN).await?;
    call.send(message(request), true).await?;
    let (_send, mut body) = call.start_reading().await?;
    let mut received = BytesMut::new();
    while let Some(bytes) = body.data().await {
        let bytes = bytes?;
        body.flow_control().release_capacity(bytes.len())?;
        received.extend(bytes);
    }
    ensure!(received.len() >= PREFIX_BYTES, "the call was not answered");
    received.advance(PREFIX_BYTES);
    Ok(AdminReply::decode(received)?)
}

/// What `brickd` itself does not know is not known.
fn read(reply: &AdminReply) -> Said {
    const NOT_KNOWN: [&str; 3] = ["no leader: ", "whether the command was done is not known", "this node waits for"];
    if !reply.ok {
        let error = reply.error.clone();
        let is_known = !NOT_KNOWN.iter().any(|start| error.starts_with(start));
        return if is_known { Said::Refused(error) } else { Said::Unknown(error) };
    }
    match serde_json::from_slice(&reply.json) {
        Ok(value) => Said::Done(value),
        Err(error) => Said::Unknown(format!("not JSON: {error}")),
    }
}
