//! `kernelmux-agent`: starts a kernel, records its messages, and outlives the gateway.
//!
//! ```text
//! kernelmux-agent run FOLDER           reads a launch from standard input and runs its kernel; FOLDER only identifies
//!                                      the agent in a list of processes
//! kernelmux-agent run --launch FILE    reads the launch from a file instead
//! kernelmux-agent exec PID …           used by `run`: executes a kernel's command, which is killed when process PID ends
//! kernelmux-agent install FOLDER       copies this program into the folder
//! ```

mod agent;
mod controls;
mod delivery;
mod execute;
mod install;
mod kernel_process;
mod listener;
mod recording;
mod server;
mod session;

use std::ffi::{OsStr, OsString};
use std::io::{IsTerminal as _, Read as _};
use std::process::ExitCode;
use std::time::Duration;

use kernel_provider::agent::Launch;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

/// Maximum size of a launch in bytes, including the kernel's environment.
const MAX_LAUNCH: u64 = 16 << 20;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next().as_deref().and_then(|argument| argument.to_str()) {
        Some("run") => run(arguments),
        Some("install") => install::install(arguments),
        Some("exec") => execute::execute(arguments),
        Some("--version") => {
            println!("kernelmux-agent {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!(
                "kernelmux-agent is started by a gateway: `kernelmux-agent run FOLDER`, with a launch on standard input, or \
                 `kernelmux-agent run --launch FILE`"
            );
            ExitCode::from(2)
        }
    }
}

fn run(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let file = arguments
        .next()
        .filter(|argument| argument == "--launch")
        .and_then(|_| arguments.next());
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_env("KERNELMUX_LOG").unwrap_or_else(|_| "info".into()))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    // The kernel runs as the same user, and must not be able to read credentials from the agent's memory.
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "cannot keep the kernel from reading the agent's memory");
    }
    let launch = match read_launch(file.as_deref()) {
        Ok(launch) => launch,
        Err(error) => {
            eprintln!("kernelmux-agent: the launch cannot be read: {error}");
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
        Ok(code) => code.into(),
        Err(error) => {
            tracing::error!(%error, "the agent failed");
            ExitCode::FAILURE
        }
    }
}

/// Reads the launch from the file, or from standard input.
fn read_launch(file: Option<&OsStr>) -> std::io::Result<Launch> {
    let mut json = Vec::new();
    match file {
        Some(file) => std::fs::File::open(file)?.take(MAX_LAUNCH).read_to_end(&mut json)?,
        None => std::io::stdin().lock().take(MAX_LAUNCH).read_to_end(&mut json)?,
    };
    // Only the error's position is reported, because its text could contain a part of a secret.
    serde_json::from_slice(&json).map_err(|error| {
        std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            format!(
                "line {}, column {}: it is not a launch that this version knows",
                error.line(),
                error.column()
            ),
        )
    })
}
