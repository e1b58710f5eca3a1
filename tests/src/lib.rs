//! What the tests of BrickFS speak with: clusters and mounts of real processes, loop file systems, faults, and what a
//! tree or a brick must look like afterwards. Every test is a [`case::case`]: it says what it needs, works in
//! directories of its own, and leaves no mount, process or loop device behind, also when it fails.

pub mod admin;
pub mod at;
pub mod bricks;
pub mod case;
pub mod close;
pub mod cluster;
pub mod command_stream;
pub mod crowd;
pub mod data;
pub mod eventually;
pub mod impostor;
pub mod install;
pub mod kernel_mounts;
pub mod launcher;
pub mod load;
pub mod locks;
pub mod loop_fs;
pub mod machine;
pub mod mapping;
pub mod memory;
pub mod mixed;
pub mod mount;
pub mod needs;
pub mod net;
pub mod nodes;
pub mod postgres;
pub mod process;
pub mod run;
pub mod scratch;
pub mod sqlite;
pub mod stories;
pub mod tree;
pub mod wire;
pub mod writer;
