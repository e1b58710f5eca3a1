//! What comes over the socket may be anything: malformed, cut off, oversized, or well-formed with names that cannot be.
//! It is refused, nothing changes, and `brickd` goes on serving everybody else.

use anyhow::ensure;
use brickfs_proto::v1::{Call, Op};
use brickfs_tests::at::At as _;
use brickfs_tests::case::{Case, case, say};
use brickfs_tests::cluster::{Cluster, VOLUME};
use brickfs_tests::needs::MOUNT;
use brickfs_tests::tree::{Detail, Tree};
use brickfs_tests::wire::{
    ADMIN, Answer, Connection, SESSION, Session, block_on, framed, hello, memory_below, message,
};
use bytes::Bytes;
use rand::RngCore as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const MIB: usize = 1 << 20;
const MEMORY_MAX_BYTES: u64 = 400 << 20;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A cluster that must be as it was after `attack`: same process, same files, and it serves.
fn survives(case: &Case, attack: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let cluster = Cluster::in_memory(case)?;
    let root = cluster.mount();
    for name in ["a", "b", "c"] {
        fs::write(root.join(name), name).at(root)?;
    }
    let before = (Tree::of(root, Detail::Everything)?, cluster.cluster_json()?);
    let pid = cluster.brickd()?.pid();
    attack(&cluster.socket())?;
    ensure!(brickfs_tests::process::state_of(pid).is_some(), "brickd has ended");
    ensure!(cluster.status()?["healthy"] == true, "not healthy: {:#}", cluster.status()?);
    let memory = memory_below(pid, MEMORY_MAX_BYTES, Duration::from_secs(20))?;
    say(&format!("{}: brickd uses {} MiB afterwards", case.name(), memory >> 20));
    cluster.remount()?;
    before.0.must_equal(&Tree::of(root, Detail::Everything)?)?;
    ensure!(cluster.cluster_json()? == before.1, "the cluster state changed");
    fs::write(root.join("after"), b"after").at(root)
}

fn must_fail(what: &str, answer: &Answer) -> anyhow::Result<()> {
    ensure!(answer.http != 200 || answer.grpc.is_some_and(|status| status != 0), "{what} succeeds: {answer:?}");
    Ok(())
}

#[test]
fn bytes_that_are_no_http_do_no_harm() {
    case(MOUNT, |case| {
        let mut rng = case.rng(0);
        survives(case, |socket| {
            for round in 0..100 {
                let mut stream = UnixStream::connect(socket).at(socket)?;
                stream.set_read_timeout(Some(Duration::from_secs(5))).at(socket)?;
                let mut garbage = vec![0; 1 + rng.next_u32() as usize % 5000];
                rng.fill_bytes(&mut garbage);
                if round % 2 == 0 {
                    stream.write_all(PREFACE).at(socket)?;
                }
                // The server may have closed the connection before all is written.
                let _ = stream.write_all(&garbage);
                let _ = stream.shutdown(std::net::Shutdown::Write);
                let _ = stream.read_to_end(&mut Vec::new());
            }
            let mut stream = UnixStream::connect(socket).at(socket)?;
            stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").at(socket)
        })
    });
}

#[test]
fn connections_that_say_nothing_keep_nobody_out() {
    case(MOUNT, |case| {
        let mut idle = Vec::new();
        survives(case, |socket| {
            for number in 0..300 {
                let mut stream = UnixStream::connect(socket).at(socket)?;
                if number % 2 == 0 {
                    stream.write_all(&PREFACE[..number % PREFACE.len()]).at(socket)?;
                }
                idle.push(stream);
            }
            Ok(())
        })
    });
}

#[test]
fn malformed_messages_are_refused() {
    case(MOUNT, |case| {
        let mut random = vec![0; 1000];
        case.rng(0).fill_bytes(&mut random);
        let good = message(&hello(VOLUME, [7; 16]));
        let tries: [(&str, Bytes); 9] = [
            ("not protobuf", framed(0, 4, &[0xff; 4])),
            ("random bytes", framed(0, 1000, &random)),
            ("an empty message", framed(0, 0, b"")),
            ("no message", Bytes::new()),
            ("half a prefix", Bytes::from_static(&[0, 0, 0])),
            ("a message cut off", good.slice(..good.len() - 3)),
            ("a length that lies", framed(0, 1000, b"short")),
            ("a compressed message", framed(1, 4, b"\0\0\0\0")),
            ("an unknown flag", framed(200, 4, b"\0\0\0\0")),
        ];
        survives(case, |socket| {
            block_on(async {
                for (what, bytes) in &tries {
                    for method in [SESSION, ADMIN] {
                        let mut call = Connection::open(socket).await?.call(method).await?;
                        call.send(bytes.clone(), true).await?;
                        must_fail(what, &call.finish().await?)?;
                    }
                }
                for method in ["/brickfs.v1.Fops/Nothing", "/nothing", "/brickfs.v9.Fops/Session"] {
                    let mut call = Connection::open(socket).await?.call(method).await?;
                    call.send(good.clone(), true).await?;
                    must_fail(method, &call.finish().await?)?;
                }
                Ok(())
            })
        })
    });
}

#[test]
fn oversized_messages_are_refused_and_cost_no_memory() {
    case(MOUNT, |case| {
        survives(case, |socket| {
            block_on(async {
                for (length, sent) in [(u32::MAX, MIB), (1 << 30, MIB), (16 << 20, 16 * MIB), (200 << 20, 40 * MIB)] {
                    for method in [SESSION, ADMIN] {
                        let mut connections = Vec::new();
                        for _ in 0..8 {
                            let mut connection = Connection::open(socket).await?;
                            let mut call = connection.call(method).await?;
                            call.send(framed(0, length, b""), false).await?;
                            // Refused at the length already, so that the rest may not be taken.
                            let _ = call.send(vec![0; sent].into(), true).await;
                            connections.push((connection, call));
                        }
                        for (_connection, call) in connections {
                            if let Ok(answer) = call.finish().await {
                                must_fail("an oversized message", &answer)?;
                            }
                        }
                    }
                }
                Ok(())
            })
        })
    });
}

#[test]
fn greetings_that_are_wrong_are_refused() {
    case(MOUNT, |case| {
        survives(case, |socket| {
            block_on(async {
                let good = || hello(VOLUME, [9; 16]);
                let mut tries = vec![("an unknown volume", hello("nope", [9; 16]))];
                let mut with = |what, change: fn(&mut brickfs_proto::v1::Hello)| {
                    let mut call = good();
                    call.hello.iter_mut().for_each(change);
                    tries.push((what, call));
                };
                with("a later protocol", |hello| (hello.protocol_min, hello.protocol_max) = (900, 999));
                with("protocol 0", |hello| (hello.protocol_min, hello.protocol_max) = (0, 0));
                with("a client id of 3 bytes", |hello| hello.client = Bytes::from_static(b"abc"));
                with("no client id", |hello| hello.client = Bytes::new());
                with("a cluster id of 100 bytes", |hello| hello.cluster = vec![1; 100].into());
                with("another cluster", |hello| hello.cluster = vec![1; 16].into());
                with("another volume id", |hello| hello.volume_id = vec![1; 16].into());
                tries.push(("a call instead", Call { op: Op::Getattr.into(), ..Call::default() }));
                for (what, greeting) in tries {
                    ensure!(Session::open(socket, &greeting).await.is_err(), "{what} is welcome");
                }
                Session::open(socket, &good()).await.map(drop)
            })
        })
    });
}

/// A call on the root directory.
fn on_root(op: Op, name: &[u8]) -> Call {
    let mut root = [0; 16];
    root[15] = 1;
    Call {
        op: op.into(),
        gfid: root.to_vec().into(),
        gfid2: root.to_vec().into(),
        name: name.to_vec().into(),
        name2: b"unused".to_vec().into(),
        perm: 0o755,
        ..Call::default()
    }
}

#[test]
fn names_that_cannot_be_are_refused_by_the_server() {
    case(MOUNT, |case| {
        let long = [b'x'; 256];
        let names: [&[u8]; 10] =
            [b"", b".", b"..", b"a/b", b"/", b"a\0b", b"\0", &long, b".brickfs", b"../../../etc/passwd"];
        let ops = [Op::MakeDirectory, Op::MakeFile, Op::MakeSymlink, Op::MakeRecord, Op::Rmdir, Op::Unlink, Op::Lookup];
        survives(case, |socket| {
            block_on(async {
                let mut session = Session::open(socket, &hello(VOLUME, [3; 16])).await?;
                for set in 0..4 {
                    for name in names {
                        for op in ops {
                            let reply = session.ask(Call { set, ..on_root(op, name) }).await?;
                            let shown = String::from_utf8_lossy(name).into_owned();
                            ensure!(reply.errno != 0, "{op:?} of '{shown}' on set {set} succeeds");
                        }
                        for (from, to) in [(name, b"new".as_slice()), (b"a", name)] {
                            for op in [Op::Rename, Op::Link] {
                                let mut call = on_root(op, from);
                                (call.set, call.name2) = (set, to.to_vec().into());
                                let reply = session.ask(call).await?;
                                ensure!(reply.errno != 0, "{op:?} of {from:?} to {to:?} on set {set} succeeds");
                            }
                        }
                    }
                }
                Ok(())
            })
        })
    });
}

#[test]
fn calls_with_impossible_operands_are_refused() {
    case(MOUNT, |case| {
        let mut rng = case.rng(0);
        survives(case, |socket| {
            block_on(async {
                let mut session = Session::open(socket, &hello(VOLUME, [4; 16])).await?;
                for op in 0..40 {
                    for round in 0..20 {
                        // No name, an unknown object, numbers at their limits, a set that does not exist.
                        let mut gfid = vec![0; [0, 3, 16, 17][round % 4]];
                        rng.fill_bytes(&mut gfid);
                        let number = [0, 1, u64::MAX, i64::MAX as u64, rng.next_u64()][round % 5];
                        let call = Call {
                            op,
                            set: [0, 3, 4, u32::MAX][round % 4],
                            home: [0, 4, u32::MAX][round % 3],
                            gfid: gfid.clone().into(),
                            gfid2: gfid.into(),
                            offset: number,
                            length: number,
                            flags: rng.next_u32(),
                            perm: rng.next_u32(),
                            kind: rng.next_u32(),
                            ..Call::default()
                        };
                        if op != i32::from(Op::Renew) && op != i32::from(Op::Statfs) {
                            let reply = session.ask(call).await?;
                            let is_done = reply.errno == 0 && op != i32::from(Op::Release);
                            ensure!(!is_done, "operation {op} with impossible operands succeeds: {reply:?}");
                        }
                    }
                }
                Ok(())
            })
        })
    });
}

#[test]
fn data_in_memory_that_was_not_lent_ends_the_session() {
    case(MOUNT, |case| {
        survives(case, |socket| {
            block_on(async {
                // This client has not said that it takes memory, so nothing was lent to it.
                for (number, (lent_offset, lent_length)) in
                    [(0, 1), (0, 512 << 10), (u32::MAX, u32::MAX)].into_iter().enumerate()
                {
                    let mut session = Session::open(socket, &hello(VOLUME, [40 + number as u8; 16])).await?;
                    let answer = session.ask(Call { lent_offset, lent_length, ..on_root(Op::Write, b"") }).await;
                    let said = answer.err().map(|error| format!("{error:#}")).unwrap_or_default();
                    ensure!(said.contains("ended by the server"), "{lent_length} bytes from {lent_offset}: {said}");
                }
                Ok(())
            })
        })
    });
}
