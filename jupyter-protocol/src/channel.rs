use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Channel between a kernel and its clients. Each channel has its own socket.
///
/// <https://jupyter-client.readthedocs.io/en/stable/messaging.html#introduction>
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Channel {
    /// Requests that the kernel handles in order, such as execute and complete, and comm messages.
    Shell,
    /// Requests that do not wait for those on shell, such as interrupt, shutdown and debug.
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

/// Error of a channel name that is unknown, or that is `hb` where a channel for messages is required.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("channel {0:?} carries no messages; those that do are shell, control, stdin and iopub")]
pub struct UnknownChannel(
    /// The name, truncated to 64 characters.
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
