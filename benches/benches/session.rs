//! A round trip over a session: a client in this process, a `brickd` of its own, a Unix socket between them.

use brickfs_benches::{Brickd, create, done, name, object_of, write};
use brickfs_client::volume::Caller;
use brickfs_common::fop::{Fop, FopReply, ObjectRef};
use brickfs_common::ids::Gfid;
use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::time::Duration;

const SMALL_BYTES: usize = 4 << 10;
const LARGE_BYTES: usize = 128 << 10;

fn round_trips(c: &mut Criterion) {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    let (brickd, volume) = Brickd::start(dir.path()).expect("a brickd");
    let root = ObjectRef { gfid: Gfid::ROOT, home: volume.map().root_home };
    let run = |fop: Fop| -> FopReply { done(volume.call(Caller::default(), fop)).expect("done") };
    let object = object_of(run(create(root, name("file", 0).expect("a good name")))).expect("a file");
    let (small, large) = (Bytes::from(vec![7; SMALL_BYTES]), Bytes::from(vec![7; LARGE_BYTES]));
    run(write(object, 0, large.clone()));
    let mut group = c.benchmark_group("session");
    group.sample_size(20).measurement_time(Duration::from_secs(3));
    group.bench_function("getattr", |b| b.iter(|| run(Fop::GetAttr { object: root })));
    group.throughput(Throughput::Bytes(SMALL_BYTES as u64));
    group.bench_function("write of 4 KiB", |b| b.iter(|| run(write(object, 0, small.clone()))));
    group.throughput(Throughput::Bytes(LARGE_BYTES as u64));
    group.bench_function("write of 128 KiB", |b| b.iter(|| run(write(object, 0, large.clone()))));
    let size = LARGE_BYTES as u32;
    group.bench_function("read of 128 KiB", |b| {
        b.iter(|| run(Fop::Read { object, offset: 0, size, wants_descriptor: false }));
    });
    group.finish();
    volume.shutdown();
    drop(brickd);
}

criterion_group!(benches, round_trips);
criterion_main!(benches);
