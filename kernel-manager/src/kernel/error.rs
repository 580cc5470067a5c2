use kernel_log::StoreError;
use kernel_provider::{LaunchError, ProviderError};

/// Why a kernel could not be restarted or interrupted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestartError {
    /// The provider failed to launch the kernel again.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The kernel was restarted but does not answer.
    #[error("the kernel was restarted and did not answer: {0}")]
    NoAnswer(String),
    /// The kernel was shut down.
    #[error("the kernel has been shut down")]
    ShutDown,
    /// The provider cannot reach the kernel.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// The kernel's log has no room. The kernel keeps running.
    #[error("the kernel was not restarted because its log has no room: {0}")]
    Log(#[source] StoreError),
}
