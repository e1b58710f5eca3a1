//! Tests of the Raft member: the stores alone, members together, and what a crash leaves.

mod elections;
mod kill;
mod mesh;
mod reopen;
mod snapshots;
mod suite;
mod voters;
