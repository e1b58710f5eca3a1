//! How much the threads of `brickd` want the CPU (nice(2); on Linux each thread has its own).

/// Niceness of a thread that does work nobody waits for.
const BACKGROUND_NICE: i32 = 0;

/// Sets the niceness of the thread that serves. Beside the programs that wait for it, a server of the same
/// weight is often behind one of them on one CPU while another CPU idles, and all of them wait.
pub fn serve_with(nice: i32) {
    if nice == BACKGROUND_NICE {
        return;
    }
    if let Err(error) = rustix::process::setpriority_process(None, nice) {
        tracing::info!("serving without a niceness of {nice}: {error}");
    }
}

/// For a thread whose work can wait.
pub fn be_in_background() {
    // Giving priority up is always allowed.
    rustix::process::setpriority_process(None, BACKGROUND_NICE).ok();
}
