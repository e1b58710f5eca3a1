//! `brickd`, the daemon of a node: see the library, which is it.

use std::process::ExitCode;

fn main() -> ExitCode {
    brickfs_server::run()
}
