use std::time::Duration;

use jupyter_protocol::ConnectionInfo;
use serde::{Deserialize, Serialize};

use crate::{Exit, LaunchError, ProviderError, Usage};

/// A request to the agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// A random number. A request that is repeated after a reconnect with the same id is carried out once.
    pub id: u64,
    /// What to do.
    pub control: Control,
}

/// The actions of an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Control {
    /// Answer when the kernel has started or has failed to start.
    Started,
    /// Interrupt the kernel in the way that its kernelspec specifies.
    Interrupt,
    /// End the process and start another one.
    Restart {
        /// The grace period.
        grace: Duration,
    },
    /// End the kernel, and then the agent, once its entries are acknowledged.
    Shutdown {
        /// The grace period.
        grace: Duration,
    },
    /// Record that the kernel waits for its reader instead of dropping output, so reading may pause.
    NoDrop,
    /// Return the end of the kernel's standard output and error.
    Output,
    /// Return the resources that the kernel uses.
    Usage,
    /// Return the kernel's connection information, with the key.
    Connection,
}

/// The agent's answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reply {
    /// The request's id.
    pub id: u64,
    /// The result.
    pub answer: Answer,
}

/// The result of a request.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Answer {
    /// The request was carried out.
    Done,
    /// The caller has to send an `interrupt_request`.
    InterruptByMessage,
    /// The kernel ended.
    Ended(Exit),
    /// The answer to [`Control::Output`].
    Output(String),
    /// The answer to [`Control::Usage`].
    Usage(Option<Usage>),
    /// The answer to [`Control::Connection`].
    Connection(ConnectionInfo),
    /// The kernel did not start.
    NotStarted(LaunchError),
    /// The request failed.
    Failed(ProviderError),
}
