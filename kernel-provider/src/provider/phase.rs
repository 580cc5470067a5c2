use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a kernel is doing as a process or pod, whatever it says over the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// Started, its sockets are not open yet.
    Starting,
    /// Its sockets can be connected to.
    Running,
    /// Being ended to be started anew.
    Restarting,
    /// Gone.
    Exited(Exit),
}

/// How a kernel ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Exit {
    /// Why it ended.
    pub cause: ExitCause,
    /// The last of what it wrote outside the protocol; may be empty.
    pub output: String,
}

impl Exit {
    /// An end with no output known.
    #[must_use]
    pub fn new(cause: ExitCause) -> Self {
        Self {
            cause,
            output: String::new(),
        }
    }

    /// The same with the last of what the kernel wrote.
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
    /// It was asked to.
    Requested,
    /// It was ended since nobody had used it for this long.
    Culled(Duration),
    /// By itself, with this exit code.
    Code(i32),
    /// By a signal, with its number.
    Signal(i32),
    /// It took more memory than it may.
    OutOfMemory,
    /// Its place was taken from it; the text says why.
    Evicted(String),
    /// The machine it ran on is gone.
    NodeLost(String),
    /// Somebody else removed it.
    Deleted,
    /// It is gone and nobody can say why; the text says what is known.
    Unknown(String),
}

impl fmt::Display for ExitCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Requested => f.write_str("shut down as requested"),
            Self::Culled(idle) => write!(f, "culled: idle for {} s", idle.as_secs()),
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

/// The signals that end kernels in practice.
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
