use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The state of a kernel's process or pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Phase {
    /// Started; its sockets do not accept connections yet.
    Starting,
    /// Its sockets accept connections.
    Running,
    /// Being restarted: the old process has not ended, or the new one does not accept connections yet.
    Restarting,
    /// Gone.
    Exited(Exit),
}

/// How a kernel ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Exit {
    /// The cause.
    pub cause: ExitCause,
    /// The end of its output outside the protocol; may be empty.
    pub output: String,
}

impl Exit {
    /// An exit without known output.
    #[must_use]
    pub fn new(cause: ExitCause) -> Self {
        Self {
            cause,
            output: String::new(),
        }
    }

    /// The same exit with the end of the kernel's output.
    #[must_use]
    pub fn with_output(mut self, output: impl Into<String>) -> Self {
        self.output = output.into();
        self
    }
}

/// Why a kernel ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ExitCause {
    /// On request.
    Requested,
    /// Culled after it was idle for this long.
    Culled(Duration),
    /// Culled because it had run for this long, longer than it may.
    TooOld(Duration),
    /// By itself, with this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// Out of memory.
    OutOfMemory,
    /// Evicted or preempted; the text has the reason.
    Evicted(String),
    /// Its machine is gone.
    NodeLost(String),
    /// Removed by a user or another program.
    Deleted,
    /// Unknown; the text says what is known.
    Unknown(String),
}

impl fmt::Display for ExitCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Requested => f.write_str("shut down as requested"),
            Self::Culled(idle) => write!(f, "culled: idle for {} s", idle.as_secs()),
            Self::TooOld(age) => write!(f, "culled: it had run for {} s, longer than it may", age.as_secs()),
            Self::Code(code) => write!(f, "exited with code {code}"),
            Self::Signal(signal) => write!(f, "killed by signal {signal}{}", signal_name(*signal)),
            Self::OutOfMemory => f.write_str("killed because it ran out of memory"),
            Self::Evicted(why) => write!(f, "evicted: {why}"),
            Self::NodeLost(why) => write!(f, "its machine is lost: {why}"),
            Self::Deleted => f.write_str("deleted by someone else"),
            Self::Unknown(what) => write!(f, "gone for an unknown reason: {what}"),
        }
    }
}

/// The name of a signal that ends kernels in practice, in parentheses; empty for other signals.
fn signal_name(signal: i32) -> &'static str {
    match signal {
        1 => " (SIGHUP)",
        2 => " (SIGINT)",
        6 => " (SIGABRT)",
        7 => " (SIGBUS)",
        9 => " (SIGKILL)",
        11 => " (SIGSEGV)",
        15 => " (SIGTERM)",
        _ => "",
    }
}
