use std::time::Duration;

use jupyter_protocol::KernelId;
use serde::{Deserialize, Serialize};

use super::phase::{Exit, ExitCause};

/// Why a kernel was not launched.
#[derive(Clone, Debug, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LaunchError {
    /// The provider has no kernelspec with this name.
    #[error("no kernelspec named {spec:?}; there are: {known}")]
    NoSuchSpec {
        /// The requested name.
        spec: String,
        /// The existing names, separated by commas.
        known: String,
    },
    /// The provider refuses the request.
    #[error("{0}")]
    BadRequest(String),
    /// The process or pod could not be created: missing program, permission or directory.
    #[error("cannot start {what}: {reason}")]
    CannotStart {
        /// What failed to start, such as the program's name.
        what: String,
        /// The reason, and what to do.
        reason: String,
    },
    /// There is no capacity: a quota or limit is reached, or no node has room.
    #[error("no room for the kernel: {reason}")]
    NoRoom {
        /// What is missing.
        reason: String,
    },
    /// The kernel ended before its sockets were open.
    #[error("the kernel ended while it started: {}{}", exit.cause, output_of(&exit.output))]
    Died {
        /// How it ended, with the end of its output.
        exit: Exit,
    },
    /// The kernel did not open its sockets in time, and was ended.
    #[error("the kernel did not answer within {timeout:?}{}", output_of(output))]
    TimedOut {
        /// The timeout.
        timeout: Duration,
        /// The end of its output.
        output: String,
    },
    /// The provider failed.
    #[error(transparent)]
    Provider(#[from] ProviderError),
}

impl LaunchError {
    /// A kernel that ended during its start.
    #[must_use]
    pub fn died(cause: ExitCause, output: impl Into<String>) -> Self {
        Self::Died {
            exit: Exit::new(cause).with_output(output),
        }
    }

    /// The exit of a kernel whose restart failed with this error.
    #[must_use]
    pub fn exit_after_restart(&self) -> Exit {
        match self {
            Self::Died { exit } => exit.clone(),
            Self::TimedOut { timeout, output } => {
                let cause = format!("it did not answer within {timeout:?} after a restart, and was ended");
                Exit::new(ExitCause::Unknown(cause)).with_output(output)
            }
            other => Exit::new(ExitCause::Unknown(format!("it could not be restarted: {other}"))),
        }
    }
}

fn output_of(output: &str) -> String {
    if output.trim().is_empty() {
        String::new()
    } else {
        format!("; its last output:\n{}", output.trim_end())
    }
}

/// Why a kernel could not be attached to.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// The kernel no longer runs.
    #[error("kernel {id} no longer runs: {cause}")]
    Gone {
        /// The kernel.
        id: KernelId,
        /// What is known about its end.
        cause: ExitCause,
    },
    /// The record belongs to another provider.
    #[error("the kernel's record belongs to the provider {theirs:?}, not to {ours:?}")]
    Foreign {
        /// The record's provider.
        theirs: String,
        /// This provider.
        ours: String,
    },
    /// The provider failed.
    #[error(transparent)]
    Provider(#[from] ProviderError),
}

/// Why an operation of a provider or a kernel failed.
#[derive(Clone, Debug, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ProviderError {
    /// The kernel is gone.
    #[error("the kernel is gone: {0}")]
    Gone(ExitCause),
    /// The provider was [closed](crate::KernelProvider::close).
    #[error("the provider was closed; open it again")]
    Closed,
    /// The machine, the cluster or the agent did not carry out the operation.
    #[error("cannot {action}: {reason}")]
    Failed {
        /// The attempted action, such as `read /run/…/kernel.json`.
        action: String,
        /// The error.
        reason: String,
    },
}

impl ProviderError {
    /// An `action` that failed with `error`.
    #[must_use]
    pub fn failed(action: impl Into<String>, error: impl std::fmt::Display) -> Self {
        Self::Failed {
            action: action.into(),
            reason: error.to_string(),
        }
    }
}
