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
    #[error("the limit of {limit} kernels{} is reached; shut one down first", of_owner(owner.as_deref()))]
    LimitReached {
        /// The limit.
        limit: usize,
        /// The owner to whom the limit applies; `None` for the limit of all kernels.
        owner: Option<String>,
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
