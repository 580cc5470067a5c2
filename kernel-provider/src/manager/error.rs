use crate::KernelId;
use crate::log::StoreError;
use crate::provider::{LaunchError, ProviderError};

/// Why a kernel was not started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// There is no such kernelspec.
    #[error("no kernelspec named {spec:?}; there are: {known}")]
    NoSuchSpec {
        /// The name that was asked for.
        spec: String,
        /// The names that there are, separated by commas.
        known: String,
    },
    /// Its kernel.json cannot be used.
    #[error("the kernelspec {spec:?} cannot be used: {reason}")]
    BrokenSpec {
        /// Its name.
        spec: String,
        /// What is wrong, and in which file.
        reason: String,
    },
    /// A kernel of this id runs or is being started.
    #[error("kernel {0} exists already; attach to it, or choose another id")]
    Duplicate(KernelId),
    /// The limit on kernels is reached.
    #[error("the limit of {limit} kernels{} is reached; shut one down first", of_owner(owner.as_deref()))]
    LimitReached {
        /// The limit.
        limit: usize,
        /// Whose limit it is; `None` for all together.
        owner: Option<String>,
    },
    /// The provider could not launch it.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// It runs and does not answer. It has been ended.
    #[error("the kernel started and did not answer: {reason}{}", with_output(output))]
    NoAnswer {
        /// What was waited for.
        reason: String,
        /// The last of what it wrote outside the protocol.
        output: String,
    },
    /// Its log cannot be opened.
    #[error("the kernel's log cannot be opened: {0}")]
    Log(#[from] StoreError),
    /// The manager has no provider.
    #[error("there is no provider that could start a kernel")]
    NoProvider,
    /// The manager is being shut down.
    #[error("no kernel is started any more: the service is shutting down")]
    ShuttingDown,
}

fn of_owner(owner: Option<&str>) -> String {
    owner.map_or_else(String::new, |owner| format!(" of {owner}"))
}

fn with_output(output: &str) -> String {
    if output.trim().is_empty() {
        String::new()
    } else {
        format!("; its last output:\n{}", output.trim_end())
    }
}

/// Why a kernel was not restarted, interrupted or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestartError {
    /// The provider could not launch it again.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// It runs again and does not answer.
    #[error("the kernel was restarted and did not answer: {0}")]
    NoAnswer(String),
    /// It has been shut down.
    #[error("the kernel has been shut down")]
    ShutDown,
    /// The provider cannot reach it.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// Its log has no room. The kernel runs on.
    #[error("the kernel is not restarted, since its log takes nothing: {0}")]
    Log(StoreError),
}
