//! What the conversion of calls takes, refuses, and gives back as it was.

use super::*;
use brickfs_common::ids::{NodeId, SetId};
use prost::Message as _;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn hello() -> Hello {
    let object = ObjectRef { gfid: Gfid([9; 16]), home: SetId(3) };
    Hello {
        protocol_min: 1,
        protocol_max: 1,
        features: 0,
        cluster: Some(ClusterId([1; 16])),
        volume: "demo".to_owned(),
        volume_id: Some(VolumeId([2; 16])),
        client: ClientId([3; 16]),
        session: 7,
        open_objects: vec![(object, 2)],
        lowest_unanswered: 42,
        locks: Vec::new(),
    }
}

#[test] // the first message is what versions agree by: its form is fixed for life
fn the_first_message_of_a_session_keeps_its_golden_bytes() {
    let bytes = v1::Call::from(hello()).encode_to_vec();
    let golden = "f2015c080110012210010101010101010101010101010101012a0464656d6f\
                  3210020202020202020202020202020202023a100303030303030303030303030303030340074a160a10\
                  0909090909090909090909090909090910031802502a";
    assert_eq!(hex(&bytes), golden);
    let read = v1::Call::decode(&bytes[..]).unwrap();
    assert_eq!(ClientMessage::try_from(read), Ok(ClientMessage::Hello(hello())));
    let lock = HeldLock { range: LockRange::new(5, LockRange::END).unwrap(), kind: LockKind::Exclusive, pid: 8 };
    let locking = Hello { locks: vec![OwnedLock { gfid: Gfid([9; 16]), owner: 300, lock }], ..hello() };
    let bytes = v1::Call::from(locking.clone()).encode_to_vec();
    let with_lock = golden.replacen("f2015c", "f2018301", 1)
        + "5a250a100909090909090909090909090909090910ac02180520ffffffffffffffff7f28013008";
    assert_eq!(hex(&bytes), with_lock);
    let read = v1::Call::decode(&bytes[..]).unwrap();
    assert_eq!(ClientMessage::try_from(read), Ok(ClientMessage::Hello(locking)));
    let bare = Hello { cluster: None, volume_id: None, open_objects: Vec::new(), ..hello() };
    let read = v1::Call::decode(&v1::Call::from(bare.clone()).encode_to_vec()[..]).unwrap();
    assert_eq!(ClientMessage::try_from(read), Ok(ClientMessage::Hello(bare)));
}

#[test]
fn what_a_server_answers_to_it_keeps_its_golden_bytes() {
    let welcome = Welcome {
        protocol: 1,
        features: 0,
        lease_ms: 15_000,
        map_json: Bytes::from_static(b"{}"),
        locks_lost: false,
        node: NodeId([3; 16]),
        nodes: vec![(NodeId([4; 16]), vec!["a:1".to_owned(), "b:2".to_owned()])],
        identity_path: "/state/tls/node.pem".to_owned(),
    };
    let bytes = v1::Reply::from(ServerMessage::Welcome(welcome.clone())).encode_to_vec();
    let (old, ids) = ("080118987522027b7d", ["03", "04"].map(|byte| byte.repeat(16)));
    let [own, other] = &ids;
    let nodes = format!("3210{own}3a1c0a10{other}1203613a311203623a32");
    let path = "42132f73746174652f746c732f6e6f64652e70656d";
    assert_eq!(hex(&bytes), format!("a2014e{old}{nodes}{path}"));
    // As a node without others wrote it.
    let alone =
        v1::Welcome { protocol: 1, lease_ms: 15_000, map_json: Bytes::from_static(b"{}"), ..v1::Welcome::default() };
    assert_eq!(hex(&alone.encode_to_vec()), old);
    let read = ServerMessage::try_from(v1::Reply { welcome: Some(alone), ..v1::Reply::default() });
    let (node, nodes) = (NodeId::default(), Vec::new());
    assert_eq!(read, Ok(ServerMessage::Welcome(Welcome { node, nodes, identity_path: String::new(), ..welcome })));
    let bytes = v1::Reply::from(ServerMessage::Refused("no".to_owned())).encode_to_vec();
    assert_eq!(hex(&bytes), "aa01026e6f");
    let void = v1::Reply::from(ServerMessage::FilesVoid);
    assert_eq!(hex(&void.encode_to_vec()), "6801");
    assert_eq!(ServerMessage::try_from(void), Ok(ServerMessage::FilesVoid));
}

#[test]
fn calls_read_back_and_malformed_ones_do_not() {
    let name = |text: &str| Name::new(text.as_bytes().to_vec()).unwrap();
    let object = ObjectRef { gfid: Gfid([9; 16]), home: SetId(3) };
    let header = CallHeader { request: 5, set: 3, generation: 1, epoch: 1, ..CallHeader::default() };
    let flags = RenameFlags { whiteout: true, ..RenameFlags::default() };
    let range = LockRange::new(5, 9).unwrap();
    let other = ObjectRef { gfid: Gfid([8; 16]), home: SetId(2) };
    for fop in [
        Fop::Rename { parent: object, name: name("a"), new_parent: object, new_name: name("b"), flags },
        Fop::Make { parent: object, name: name("a"), making: Making::Directory, perm: 0o1777, umask: 0o22 },
        Fop::Write { object, offset: 1 << 40, data: Bytes::from_static(b"x"), flags: WriteFlags::default() },
        Fop::StatFs,
        Fop::Lock { object, owner: u64::MAX, range, kind: Some(LockKind::Exclusive), pid: 7, waits: true },
        Fop::Lock { object, owner: 1, range: LockRange::ALL, kind: None, pid: 0, waits: false },
        Fop::TestLock { object, owner: 1, range, kind: LockKind::Shared },
        Fop::CancelLock { object, request: 4 },
        Fop::CopyRange { object, offset: 1 << 40, source: other, source_offset: 9, length: 1 << 33 },
        Fop::Fallocate { object, mode: -1, offset: 1, length: 1 << 33 },
    ] {
        let call = call_to_wire(&header, fop.clone());
        assert_eq!(ClientMessage::try_from(call), Ok(ClientMessage::Call(header.clone(), fop)));
    }
    let lookup = call_to_wire(&header, Fop::Lookup { parent: object, name: name("a") });
    let broken: [fn(&mut v1::Call); 6] = [
        |c| c.gfid = Bytes::from_static(b"short"),
        |c| c.name = Bytes::from_static(b".."),
        |c| c.name = Bytes::from_static(b"a/b"),
        |c| c.name = Bytes::from(vec![b'x'; 256]),
        |c| c.home = 1 << 16,
        |c| c.op = 9999,
    ];
    for break_it in broken {
        let mut call = lookup.clone();
        break_it(&mut call);
        let malformed = ClientMessage::try_from(call.clone()).unwrap_err();
        assert_eq!(malformed.request, 5, "{call:?}");
    }
}
