//! `brickfs`: mounts a BrickFS volume. `brickfs [SOURCE] MOUNTPOINT [-o OPTIONS]`.

mod adapter;
mod cli;
mod daemon;
mod fs;
mod hosts;
mod kernel_mount;
mod local_file;
mod tables;

use std::process::ExitCode;

/// Exit code of mount(8) for "mount failure".
const EXIT_MOUNT_FAILURE: u8 = 32;
/// Exit code of mount(8) for "incorrect invocation".
const EXIT_USAGE: u8 = 1;

fn main() -> ExitCode {
    let plan = match cli::read_arguments(std::env::args_os()) {
        Ok(plan) => plan,
        Err(cli::ArgumentError::Shown(code)) => return ExitCode::from(code),
        Err(cli::ArgumentError::Bad(line)) => {
            eprintln!("brickfs: {line}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let outcome = match &plan {
        plan if plan.remount => daemon::remount(plan),
        plan if plan.foreground => daemon::run_foreground(plan),
        plan => daemon::run_background(plan),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("brickfs: {error:#}");
            ExitCode::from(EXIT_MOUNT_FAILURE)
        }
    }
}
