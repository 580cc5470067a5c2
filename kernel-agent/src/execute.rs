//! Replaces this process with the kernel, and makes the kernel end when the agent ends.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

/// Executes the command that follows the agent's process id. Returns only if that fails.
pub(crate) fn execute(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let agent = arguments
        .next()
        .and_then(|pid| pid.to_str()?.parse().ok())
        .and_then(Pid::from_raw);
    let (Some(agent), Some(program)) = (agent, arguments.next()) else {
        eprintln!("usage: kernelmux-agent exec PID PROGRAM [ARGUMENT…]");
        return ExitCode::from(2);
    };
    // A kernel that outlived its agent could not be controlled. The setting is kept when `exec` replaces the program.
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        eprintln!("kernelmux-agent: cannot make the kernel end with its agent: {error}");
    }
    // The agent may have ended before the setting took effect.
    if getppid() != Some(agent) {
        return ExitCode::from(1);
    }
    let error = Command::new(&program).args(arguments).exec();
    eprintln!("cannot start {}: {error}", program.to_string_lossy());
    ExitCode::from(127)
}
