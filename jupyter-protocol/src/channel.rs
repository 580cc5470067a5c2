use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Channel of a kernel, each of which is a socket.
///
/// <https://jupyter-client.readthedocs.io/en/stable/messaging.html#introduction>
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Channel {
    /// Requests that run in order: execute, complete, inspect, comms.
    Shell,
    /// Requests that do not wait for those on shell: interrupt, shutdown, debug.
    Control,
    /// Input requests from the kernel to the user.
    Stdin,
    /// Messages that the kernel publishes to all clients.
    Iopub,
    /// Echoed bytes, which show that the kernel is alive.
    #[serde(rename = "hb")]
    Heartbeat,
}

impl Channel {
    /// The channels that carry messages: all but the heartbeat.
    pub const WITH_MESSAGES: [Self; 4] = [Self::Shell, Self::Control, Self::Stdin, Self::Iopub];

    /// Returns the name of the channel on the wire, such as `"iopub"`.
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

/// Error of parsing an unknown channel name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown channel {0:?}; the channels are shell, control, stdin, iopub and hb")]
pub struct UnknownChannel(
    /// The unknown name, truncated to 64 characters.
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
