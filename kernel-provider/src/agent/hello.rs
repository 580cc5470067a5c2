use std::collections::BTreeMap;
use std::fmt;

use jupyter_protocol::{Channel, KernelId};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::Phase;

/// The first frame to the agent.
#[derive(Clone, Serialize, Deserialize)]
pub struct Hello {
    /// The gateway's version of the link.
    pub version: u32,
    /// The agent's token.
    pub token: String,
    /// Identifies this run of the gateway. A new connection with the same value replaces the previous one. Other
    /// clients are refused while it is connected.
    pub client: Uuid,
}

impl fmt::Debug for Hello {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hello")
            .field("version", &self.version)
            .field("client", &self.client)
            .finish_non_exhaustive()
    }
}

/// The agent's answer to an admitted [`Hello`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Welcome {
    /// The agent's version of the link.
    pub version: u32,
    /// The agent's kernel.
    pub kernel_id: KernelId,
    /// Identifies the agent's log, in which its entries are numbered.
    pub spool: Uuid,
    /// The kernel's phase.
    pub phase: ProcessPhase,
    /// Whether all entries so far are acknowledged.
    pub is_delivered: bool,
    /// The number of the last entry of the agent's log.
    pub head: u64,
    /// The messages that the agent has accepted.
    pub accepted: Accepted,
}

/// The phase of a kernel's process, with the process's number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessPhase {
    /// The number of the process, higher than those of the kernel's earlier processes. 0 before the first.
    pub process: u64,
    /// Its process id on the agent's machine, if it is known.
    pub pid: Option<i64>,
    /// Its phase.
    pub phase: Phase,
}

/// The last message of each channel that the agent has accepted: passed to the kernel, or dropped because its process
/// has ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Accepted {
    /// The gateway's log that numbers the messages; `None` before the first message.
    pub log: Option<Uuid>,
    /// The last number by channel: `shell`, `control`, `stdin`.
    pub numbers: BTreeMap<String, u64>,
}

impl Accepted {
    /// Whether this message, or a later one of its channel, was accepted.
    #[must_use]
    pub fn has(&self, channel: Channel, log: u128, number: u64) -> bool {
        self.log == Some(Uuid::from_u128(log)) && number <= self.last(channel)
    }

    /// The number of the channel's last message; 0 if there was none.
    #[must_use]
    pub fn last(&self, channel: Channel) -> u64 {
        self.numbers.get(channel.as_str()).copied().unwrap_or_default()
    }

    /// Adds an accepted message.
    pub fn add(&mut self, channel: Channel, log: u128, number: u64) {
        let log = Some(Uuid::from_u128(log));
        if self.log != log {
            self.log = log;
            self.numbers.clear();
        }
        self.numbers.insert(channel.as_str().to_owned(), number);
    }
}

/// Why the agent refuses a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reason")]
pub enum Refused {
    /// The token is wrong.
    Token,
    /// The agent has another version of the link.
    Version {
        /// The agent's version.
        speaks: u32,
    },
    /// Another gateway is connected.
    Busy,
}
