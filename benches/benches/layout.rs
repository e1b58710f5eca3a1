//! Where a name lives: the hash, the set that it falls on, and the making of a layout.

use brickfs_benches::name;
use brickfs_common::ids::Gfid;
use brickfs_common::layout::generation::Layout;
use brickfs_common::layout::slots::{compute_slot, readdir_cookie};
use criterion::{Criterion, criterion_group, criterion_main};
use std::hint::black_box;

fn layout(c: &mut Criterion) {
    let names: Vec<_> = (0..1024).map(|number| name("a-file-of-usual-length", number).expect("a good name")).collect();
    let layout = Layout::first(&[1; 64]);
    let (mut at, parent) = (0, Gfid([7; 16]));
    let mut next = || {
        at = (at + 1) % names.len();
        &names[at]
    };
    c.bench_function("layout/slot of a name", |b| b.iter(|| compute_slot(&parent, next())));
    c.bench_function("layout/dentry set of a name, 64 sets", |b| b.iter(|| layout.dentry_set(&parent, next())));
    c.bench_function("layout/cookie of a name", |b| b.iter(|| readdir_cookie(next().as_bytes())));
    for sets in [4, 1024] {
        let weights = vec![1 << 40; sets];
        let what = format!("layout/first layout of {sets} sets");
        c.bench_function(&what, |b| b.iter(|| Layout::first(black_box(&weights))));
    }
}

criterion_group!(benches, layout);
criterion_main!(benches);
