use std::fmt;

use jupyter_protocol::KernelId;
use kernel_log::StoreError;
use kernel_provider::LaunchError;

/// Why a kernel was not started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// No kernelspec has this name.
    #[error("no kernelspec named {spec:?}; there are: {known}")]
    NoSuchSpec {
        /// The requested name.
        spec: String,
        /// The existing names, separated by commas.
        known: String,
    },
    /// The kernel.json is invalid.
    #[error("the kernelspec {spec:?} cannot be used: {reason}")]
    BrokenSpec {
        /// The kernelspec's name.
        spec: String,
        /// The problem and the file.
        reason: String,
    },
    /// A kernel with this id exists or is starting.
    #[error("kernel {0} exists already; attach to it, or choose another id")]
    Duplicate(KernelId),
    /// The log of an earlier kernel with this id belongs to another owner.
    #[error("the log of kernel {0} belongs to another user; choose another id")]
    OtherOwner(KernelId),
    /// The kernel limit is reached.
    #[error("the limit of {limit} kernels{counted} is reached; shut one down first")]
    LimitReached {
        /// The limit.
        limit: usize,
        /// The kernels that it counts.
        counted: Counted,
    },
    /// The provider failed to launch the kernel.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The kernel was launched but did not answer, and was ended.
    #[error("the kernel started and did not answer: {reason}{}", with_output(output))]
    NoAnswer {
        /// The cause.
        reason: String,
        /// The end of its standard output and error.
        output: String,
    },
    /// The kernel's log cannot be opened.
    #[error("the kernel's log cannot be opened: {0}")]
    Log(#[from] StoreError),
    /// The manager has no provider.
    #[error("no provider can start kernels")]
    NoProvider,
    /// The manager is shutting down.
    #[error("no kernels can be started: the service is shutting down")]
    ShuttingDown,
}

/// The kernels that a limit counts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Counted {
    /// All kernels.
    All,
    /// Those of this owner.
    Owner(String),
    /// Those that were started for this [group](super::StartRequest::groups).
    Group(String),
}

impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => Ok(()),
            Self::Owner(owner) => write!(f, " of {owner}"),
            Self::Group(group) => write!(f, " of the group {group}"),
        }
    }
}

fn with_output(output: &str) -> String {
    if output.trim().is_empty() {
        String::new()
    } else {
        format!("; its last output:\n{}", output.trim_end())
    }
}
