//! The server's messages on the wire: greetings answered, replies with their entries.

use super::attr::gfid;
use super::fops::{Malformed, ServerMessage, lock_to_wire, read_lock};
use crate::v1;
use brickfs_common::attr::{Attr, Kind, StatFs};
use brickfs_common::errno::Errno;
use brickfs_common::fop::{Answer, DirEntry, FopReply, Welcome};
use brickfs_common::ids::{NodeId, SetId};
use brickfs_common::name::Name;
use bytes::Bytes;

impl From<ServerMessage> for v1::Reply {
    fn from(message: ServerMessage) -> v1::Reply {
        match message {
            ServerMessage::Welcome(w) => {
                let welcome = v1::Welcome {
                    protocol: w.protocol,
                    features: w.features,
                    lease_ms: w.lease_ms,
                    map_json: w.map_json,
                    locks_lost: w.locks_lost,
                    node: Bytes::copy_from_slice(&w.node.0),
                    nodes: w.nodes.into_iter().map(addresses_to_wire).collect(),
                    identity_path: w.identity_path,
                };
                v1::Reply { welcome: Some(welcome), ..v1::Reply::default() }
            }
            ServerMessage::Refused(reason) => v1::Reply { refused: reason, ..v1::Reply::default() },
            ServerMessage::Reply(reply) => reply.into(),
            ServerMessage::FilesVoid => v1::Reply { files_void: true, ..v1::Reply::default() },
        }
    }
}

impl From<FopReply> for v1::Reply {
    fn from(r: FopReply) -> v1::Reply {
        use v1::reply::Answer as Wire;
        let errno = r.result.as_ref().err().map_or(0, |errno| errno.0);
        let answer = r.result.ok().and_then(|answer| match answer {
            Answer::Done => None,
            Answer::Data(data) => Some(Wire::Data(data)),
            Answer::Written { count, offset } => Some(Wire::Written(v1::Written { count, offset })),
            Answer::Offset(offset) => Some(Wire::Offset(offset)),
            Answer::Space(s) => Some(Wire::Space(v1::Space {
                total_bytes: s.total_bytes,
                free_bytes: s.free_bytes,
                available_bytes: s.available_bytes,
                total_inodes: s.total_inodes,
                free_inodes: s.free_inodes,
            })),
            Answer::Entries { entries, end } => {
                let entries = entries.into_iter().map(entry_to_wire).collect();
                Some(Wire::Entries(v1::Entries { entries, end }))
            }
            Answer::InTheWay(lock) => lock.map(|lock| Wire::Lock(lock_to_wire(None, 0, &lock))),
        });
        v1::Reply {
            request: r.request,
            errno,
            attr: r.attr.as_ref().map(Into::into),
            parent: r.parent.as_ref().map(Into::into),
            new_parent: r.new_parent.as_ref().map(Into::into),
            answer,
            descriptor: 0,
            files_void: false,
            opened: r.opened,
            go_to: r.go_to.map_or(0, |set| u32::from(set.0) + 1),
            welcome: None,
            refused: String::new(),
        }
    }
}

fn addresses_to_wire((node, addresses): (NodeId, Vec<String>)) -> v1::NodeAddresses {
    v1::NodeAddresses { node: Bytes::copy_from_slice(&node.0), addresses }
}

/// A node whose id is none is one of a release that names nodes otherwise.
fn read_addresses(wire: v1::NodeAddresses) -> Option<(NodeId, Vec<String>)> {
    Some((NodeId::from_slice(&wire.node)?, wire.addresses))
}

fn entry_to_wire(entry: DirEntry) -> v1::Entry {
    v1::Entry {
        name: entry.name.into_bytes(),
        cookie: entry.cookie,
        gfid: Bytes::copy_from_slice(&entry.gfid.0),
        kind: entry.kind.mode_bits(),
        attr: entry.attr.as_ref().map(Into::into),
    }
}

fn read_entry(entry: v1::Entry) -> Result<DirEntry, Errno> {
    Ok(DirEntry {
        name: Name::new(entry.name)?,
        cookie: entry.cookie,
        gfid: gfid(&entry.gfid)?,
        kind: Kind::from_mode(entry.kind).ok_or(Errno::EINVAL)?,
        attr: entry.attr.map(Attr::try_from).transpose()?,
    })
}

impl TryFrom<v1::Reply> for ServerMessage {
    type Error = Malformed;
    fn try_from(r: v1::Reply) -> Result<ServerMessage, Malformed> {
        if let Some(w) = r.welcome {
            let welcome = Welcome {
                protocol: w.protocol,
                features: w.features,
                lease_ms: w.lease_ms,
                map_json: w.map_json,
                locks_lost: w.locks_lost,
                node: NodeId::from_slice(&w.node).unwrap_or_default(),
                nodes: w.nodes.into_iter().filter_map(read_addresses).collect(),
                identity_path: w.identity_path,
            };
            return Ok(ServerMessage::Welcome(welcome));
        }
        if !r.refused.is_empty() {
            return Ok(ServerMessage::Refused(r.refused));
        }
        if r.files_void {
            return Ok(ServerMessage::FilesVoid);
        }
        let request = r.request;
        read_reply(r).map(ServerMessage::Reply).map_err(|errno| Malformed { request, errno })
    }
}

fn read_reply(r: v1::Reply) -> Result<FopReply, Errno> {
    use v1::reply::Answer as Wire;
    let answer = match r.answer {
        None => Answer::Done,
        Some(Wire::Data(data)) => Answer::Data(data),
        Some(Wire::Written(w)) => Answer::Written { count: w.count, offset: w.offset },
        Some(Wire::Offset(offset)) => Answer::Offset(offset),
        Some(Wire::Lock(lock)) => Answer::InTheWay(Some(read_lock(&lock)?)),
        Some(Wire::Space(s)) => Answer::Space(StatFs {
            total_bytes: s.total_bytes,
            free_bytes: s.free_bytes,
            available_bytes: s.available_bytes,
            total_inodes: s.total_inodes,
            free_inodes: s.free_inodes,
        }),
        Some(Wire::Entries(e)) => {
            Answer::Entries { entries: e.entries.into_iter().map(read_entry).collect::<Result<_, _>>()?, end: e.end }
        }
    };
    Ok(FopReply {
        request: r.request,
        result: if r.errno == 0 { Ok(answer) } else { Err(Errno(r.errno)) },
        attr: r.attr.map(Attr::try_from).transpose()?,
        parent: r.parent.map(Attr::try_from).transpose()?,
        new_parent: r.new_parent.map(Attr::try_from).transpose()?,
        descriptor: None,
        opened: r.opened,
        go_to: r.go_to.checked_sub(1).and_then(|set| u16::try_from(set).ok()).map(SetId),
    })
}
