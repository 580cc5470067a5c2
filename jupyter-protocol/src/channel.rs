use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One of a kernel's sockets, as the protocol names them.
///
/// <https://jupyter-client.readthedocs.io/en/stable/messaging.html#introduction>
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Channel {
    /// Requests that run in order: execute, complete, inspect, comms.
    Shell,
    /// Requests that must not wait behind shell: interrupt, shutdown, debug.
    Control,
    /// The kernel asks its user for input.
    Stdin,
    /// What the kernel publishes to all clients.
    Iopub,
    /// Raw bytes, echoed: is the kernel alive?
    #[serde(rename = "hb")]
    Heartbeat,
}

impl Channel {
    /// The channels that carry messages, which are all but the heartbeat.
    pub const WITH_MESSAGES: [Self; 4] = [Self::Shell, Self::Control, Self::Stdin, Self::Iopub];

    /// The channel's name on the wire, such as `"iopub"`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Shell => "shell",
            Self::Control => "control",
            Self::Stdin => "stdin",
            Self::Iopub => "iopub",
            Self::Heartbeat => "hb",
        }
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name that is none of the protocol's channels.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no channel; the channels are shell, control, stdin, iopub and hb")]
pub struct UnknownChannel(
    /// The name that was given, cut off after 64 bytes.
    pub String,
);

impl FromStr for Channel {
    type Err = UnknownChannel;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Ok(match name {
            "shell" => Self::Shell,
            "control" => Self::Control,
            "stdin" => Self::Stdin,
            "iopub" => Self::Iopub,
            "hb" => Self::Heartbeat,
            other => return Err(UnknownChannel(other.chars().take(64).collect())),
        })
    }
}
