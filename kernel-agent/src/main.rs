//! `kernelmux-agent`: starts a kernel, records its messages, and outlives the gateway.
//!
//! ```text
//! kernelmux-agent run FOLDER      reads a launch from standard input and runs its kernel; FOLDER only identifies the
//!                                 agent in a list of processes
//! kernelmux-agent exec PID …      used by `run`: executes a kernel's command, which is killed when process PID ends
//! ```

mod agent;
mod controls;
mod delivery;
mod execute;
mod kernel_process;
mod recording;
mod server;
mod session;

use std::io::{IsTerminal as _, Read as _};
use std::process::ExitCode;
use std::time::Duration;

use kernel_provider::agent::Launch;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

/// Maximum size of a launch, in bytes. It contains the kernel's environment.
const MAX_LAUNCH: u64 = 16 << 20;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next().as_deref().and_then(|argument| argument.to_str()) {
        Some("run") => run(),
        Some("exec") => execute::execute(arguments),
        Some("--version") => {
            println!("kernelmux-agent {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!(
                "kernelmux-agent is started by a gateway: `kernelmux-agent run FOLDER`, with a launch on standard input"
            );
            ExitCode::from(2)
        }
    }
}

fn run() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_env("KERNELMUX_LOG").unwrap_or_else(|_| "info".into()))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    // The kernel runs as the same user, and must not read the agent's credentials from its memory.
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "cannot keep the kernel from reading the agent's memory");
    }
    let launch = match read_launch() {
        Ok(launch) => launch,
        Err(error) => {
            eprintln!("kernelmux-agent: the launch on standard input cannot be read: {error}");
            return ExitCode::from(2);
        }
    };
    // A kernel ends with the thread that started it (see `execute`), so threads must not end before the agent does.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(Duration::from_secs(u64::from(u32::MAX)))
        .build();
    let outcome = runtime.and_then(|runtime| runtime.block_on(agent::run(launch)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the agent failed");
            ExitCode::FAILURE
        }
    }
}

fn read_launch() -> std::io::Result<Launch> {
    let mut json = Vec::new();
    std::io::stdin().lock().take(MAX_LAUNCH).read_to_end(&mut json)?;
    Ok(serde_json::from_slice(&json)?)
}
