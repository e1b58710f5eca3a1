//! Tests of the Raft member: the stores alone, members together, and what a crash leaves.

mod suite;
