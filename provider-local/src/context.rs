//! State that the kernels of a provider share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use kernel_provider::{ExitCause, ProviderError};
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

use crate::LocalOptions;
use crate::events::Events;
use crate::ports::PortAllocator;
use crate::process::ExitStatus;
use crate::process::oom::OomCounter;
use crate::state::StateDir;

/// State shared by the kernels of one provider.
pub(crate) struct ProviderContext {
    pub(crate) options: LocalOptions,
    pub(crate) state: StateDir,
    /// `None` with [`LocalOptions::output_pipes`], which does without watches.
    pub(crate) events: Option<Arc<Events>>,
    /// Tasks that copy kernels' output from pipes. Each ends once no process has its pipe open, which may be after the
    /// kernel has ended.
    pub(crate) copying: Mutex<JoinSet<()>>,
    pub(crate) oom: Arc<OomCounter>,
    pub(crate) ports: PortAllocator,
    /// Launches whose process has not been handed to the caller, or cleaned up, yet.
    pub(crate) pending_launches: TaskTracker,
    pub(crate) is_closed: AtomicBool,
}

impl ProviderContext {
    pub(crate) fn check_open(&self) -> Result<(), ProviderError> {
        if self.is_closed.load(Ordering::Acquire) {
            return Err(ProviderError::Closed);
        }
        Ok(())
    }

    /// Determines why a process ended, from its exit status and the count of out-of-memory kills.
    pub(crate) fn cause(&self, ended: ExitStatus) -> ExitCause {
        match ended {
            ExitStatus::Code(code) => ExitCause::Code(code),
            ExitStatus::Signal(9) | ExitStatus::Unknown if self.oom.claim() => ExitCause::OutOfMemory,
            ExitStatus::Signal(signal) => ExitCause::Signal(signal),
            ExitStatus::Unknown => ExitCause::Unknown(
                "it was started by a program that has ended since, and the system reports a process's exit status only \
                 to its parent"
                    .to_owned(),
            ),
        }
    }
}

/// Runs blocking code on tokio's blocking threads.
pub(crate) async fn blocking<T: Send + 'static>(
    action: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ProviderError> {
    tokio::task::spawn_blocking(run)
        .await
        .map_err(|error| ProviderError::failed(action, error))
}
