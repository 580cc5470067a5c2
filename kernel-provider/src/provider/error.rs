use std::time::Duration;

use super::phase::{Exit, ExitCause};
use crate::KernelId;

/// Why a kernel could not be started.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// The provider has no such kernelspec.
    #[error("no kernelspec named {spec:?}; there are: {known}")]
    NoSuchSpec {
        /// The name that was asked for.
        spec: String,
        /// The names that there are, separated by commas.
        known: String,
    },
    /// The request is not one that the provider takes.
    #[error("{0}")]
    BadRequest(String),
    /// The process or pod could not be made at all: no such program, no permission, no such directory.
    #[error("cannot start {what}: {reason}")]
    CannotStart {
        /// What was to be started, such as the program's name.
        what: String,
        /// Why not, and what to do.
        reason: String,
    },
    /// There is no place for it: quota, limits, nothing schedulable.
    #[error("no room for the kernel: {reason}")]
    NoRoom {
        /// What is missing.
        reason: String,
    },
    /// It ended before its sockets were open.
    #[error("the kernel ended while it started: {}{}", exit.cause, output_of(&exit.output))]
    Died {
        /// How it ended, with its last output.
        exit: Exit,
    },
    /// It runs and did not open its sockets in time. It has been ended.
    #[error("the kernel did not answer within {timeout:?}{}", output_of(output))]
    TimedOut {
        /// How long was waited.
        timeout: Duration,
        /// The last of what it wrote.
        output: String,
    },
    /// The provider itself cannot be used.
    #[error(transparent)]
    Provider(#[from] ProviderError),
}

impl LaunchError {
    /// A kernel that ended while it started.
    #[must_use]
    pub fn died(cause: ExitCause, output: impl Into<String>) -> Self {
        Self::Died {
            exit: Exit::new(cause).with_output(output),
        }
    }

    /// How a kernel ended that was ended for a restart, which then failed like this.
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
    /// It does not run any more.
    #[error("kernel {id} no longer runs: {cause}")]
    Gone {
        /// The kernel.
        id: KernelId,
        /// What is known of its end.
        cause: ExitCause,
    },
    /// The record is another provider's.
    #[error("the kernel's record is of provider {theirs:?}, this is {ours:?}")]
    Foreign {
        /// The record's provider.
        theirs: String,
        /// This provider.
        ours: String,
    },
    /// The provider itself cannot be used.
    #[error(transparent)]
    Provider(#[from] ProviderError),
}

/// The provider cannot do what was asked.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProviderError {
    /// The kernel is gone.
    #[error("the kernel is gone: {0}")]
    Gone(ExitCause),
    /// The machine or cluster refused.
    #[error("cannot {action}: {reason}")]
    Failed {
        /// What was tried, such as `read /run/…/kernel.json`.
        action: String,
        /// What it said.
        reason: String,
    },
}

impl ProviderError {
    /// `action` was tried, and `error` came.
    #[must_use]
    pub fn failed(action: impl Into<String>, error: impl std::fmt::Display) -> Self {
        Self::Failed {
            action: action.into(),
            reason: error.to_string(),
        }
    }
}
