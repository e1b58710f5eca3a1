//! What operations cost on the bricks, without a wire: four bricks in memory, decided, logged and applied as in `brickd`.

use brickfs_benches::{BRICKS, create, done, name, object_of, write};
use brickfs_common::fop::{Fop, Making, ObjectRef, RenameFlags};
use brickfs_server::bench::Bricks;
use bytes::Bytes;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use std::cell::{Cell, RefCell};
use std::time::Duration;

/// The bricks, and names that nothing has had.
struct Rig {
    bricks: RefCell<Bricks>,
    directory: ObjectRef,
    next: Cell<u64>,
}

impl Rig {
    fn call(&self, fop: Fop) -> anyhow::Result<brickfs_common::fop::FopReply> {
        done(self.bricks.borrow_mut().call(fop))
    }

    fn fresh(&self) -> anyhow::Result<brickfs_common::name::Name> {
        self.next.set(self.next.get() + 1);
        name("file", self.next.get())
    }

    /// A file that nobody has open.
    fn file(&self) -> anyhow::Result<(brickfs_common::name::Name, ObjectRef)> {
        let name = self.fresh()?;
        let object = object_of(self.call(create(self.directory, name.clone()))?)?;
        self.call(Fop::Release { object })?;
        Ok((name, object))
    }
}

fn operations(c: &mut Criterion) {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    let mut bricks = Bricks::make(dir.path(), BRICKS).expect("a volume");
    let root = bricks.root();
    let making = Fop::Make {
        parent: root,
        name: name("directory", 0).expect("a good name"),
        making: Making::Directory,
        perm: 0o755,
        umask: 0,
    };
    let directory = object_of(bricks.call(making)).expect("a directory");
    let rig = Rig { bricks: RefCell::new(bricks), directory, next: Cell::new(0) };
    let mut group = c.benchmark_group("bricks");
    group.sample_size(20).measurement_time(Duration::from_secs(3));
    let fresh = || rig.fresh().expect("a good name");
    let file = || rig.file().expect("a file");
    let run = |fop: Fop| rig.call(fop).expect("done");
    group.bench_function("create", |b| {
        b.iter_batched(fresh, |name| run(create(directory, name)), BatchSize::PerIteration);
    });
    let (known, object) = file();
    group.bench_function("lookup", |b| b.iter(|| run(Fop::Lookup { parent: directory, name: known.clone() })));
    group.bench_function("getattr", |b| b.iter(|| run(Fop::GetAttr { object })));
    for (what, size) in [("write of 4 KiB", 4 << 10), ("write of 128 KiB", 128 << 10)] {
        let data = Bytes::from(vec![7; size]);
        group.bench_function(what, |b| b.iter(|| run(write(object, 0, data.clone()))));
    }
    group.bench_function("rename", |b| {
        let names = || (file().0, fresh());
        let rename = |(name, new_name)| {
            let flags = RenameFlags::default();
            run(Fop::Rename { parent: directory, name, new_parent: directory, new_name, flags })
        };
        b.iter_batched(names, rename, BatchSize::PerIteration);
    });
    group.bench_function("unlink", |b| {
        b.iter_batched(file, |(name, _)| run(Fop::Unlink { parent: directory, name }), BatchSize::PerIteration);
    });
    group.finish();
}

criterion_group!(benches, operations);
criterion_main!(benches);
