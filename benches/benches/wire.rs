//! Encoding and decoding: a small call, one with 512 KiB, their replies, and a page of a listing.

use brickfs_benches::{name, write};
use brickfs_common::attr::{Attr, Kind, Timestamp};
use brickfs_common::fop::{Answer, CallHeader, DirEntry, Fop, FopReply, ObjectRef, PIECE_BYTES};
use brickfs_common::ids::{Gfid, SetId};
use brickfs_proto::convert::fops::{ClientMessage, ServerMessage, call_to_wire};
use brickfs_proto::v1::{Call, Reply};
use bytes::{Bytes, BytesMut};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use prost::Message as _;

const OBJECT: ObjectRef = ObjectRef { gfid: Gfid([7; 16]), home: SetId(3) };

fn attr() -> Attr {
    let time = Timestamp { sec: 1_700_000_000, nsec: 123_456_789 };
    Attr {
        gfid: OBJECT.gfid,
        home: OBJECT.home,
        kind: Kind::File,
        perm: 0o644,
        uid: 1000,
        gid: 1000,
        nlink: 1,
        size: 4096,
        blocks: 8,
        rdev: 0,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
        project: 0,
        has_capability: false,
        has_acl: false,
        change: 1,
    }
}

fn header() -> CallHeader {
    let (request, lowest_unanswered) = (1_000_000, 999_990);
    CallHeader { request, lowest_unanswered, set: 3, generation: 1, epoch: 1, ..CallHeader::default() }
}

fn reply(answer: Answer) -> FopReply {
    let (attr, parent) = (Some(attr()), Some(attr()));
    FopReply {
        request: 1_000_000,
        result: Ok(answer),
        attr,
        parent,
        new_parent: None,
        descriptor: None,
        opened: false,
        go_to: None,
    }
}

fn calls(c: &mut Criterion) {
    let look_up = Fop::Lookup { parent: OBJECT, name: name("a-file-of-usual-length", 1).expect("a good name") };
    let data = Bytes::from(vec![7; PIECE_BYTES]);
    for (what, fop) in [("lookup", look_up), ("write of 512 KiB", write(OBJECT, 1 << 20, data))] {
        let mut buffer = BytesMut::with_capacity(2 * PIECE_BYTES);
        let mut encode = || {
            buffer.clear();
            call_to_wire(&header(), fop.clone()).encode(&mut buffer).expect("there is room");
            buffer.len()
        };
        encode();
        c.bench_function(&format!("wire/encode the call of a {what}"), |b| b.iter(&mut encode));
        let bytes = buffer.freeze();
        let decode = |bytes: Bytes| ClientMessage::try_from(Call::decode(bytes).expect("whole")).expect("well formed");
        c.bench_function(&format!("wire/decode the call of a {what}"), |b| {
            b.iter_batched(|| bytes.clone(), decode, BatchSize::SmallInput);
        });
    }
}

fn replies(c: &mut Criterion) {
    let entry = |number| DirEntry {
        name: name("a-file-of-usual-length", number).expect("a good name"),
        cookie: number << 7,
        gfid: OBJECT.gfid,
        kind: Kind::File,
        attr: Some(attr()),
    };
    let page = Answer::Entries { entries: (0..256).map(entry).collect(), end: false };
    let data = Answer::Data(Bytes::from(vec![7; PIECE_BYTES]));
    for (what, answer) in [("a lookup", Answer::Done), ("a read of 512 KiB", data), ("a page of 256 entries", page)] {
        let mut buffer = BytesMut::with_capacity(2 * PIECE_BYTES);
        let mut encode = || {
            buffer.clear();
            let message = ServerMessage::Reply(reply(answer.clone()));
            Reply::from(message).encode(&mut buffer).expect("there is room");
            buffer.len()
        };
        encode();
        c.bench_function(&format!("wire/encode the reply to {what}"), |b| b.iter(&mut encode));
        let bytes = buffer.freeze();
        let decode = |bytes: Bytes| ServerMessage::try_from(Reply::decode(bytes).expect("whole")).expect("well formed");
        c.bench_function(&format!("wire/decode the reply to {what}"), |b| {
            b.iter_batched(|| bytes.clone(), decode, BatchSize::SmallInput);
        });
    }
}

criterion_group!(benches, calls, replies);
criterion_main!(benches);
