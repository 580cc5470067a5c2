#![doc = include_str!("../README.md")]

#[cfg(feature = "agent")]
pub mod agent;
#[cfg(feature = "testing")]
pub mod conformance;
mod error;
#[cfg(feature = "testing")]
pub mod fake;
#[cfg(feature = "follow-specs")]
mod follow_specs;
mod launch;
mod lock;
mod own_metadata;
mod phase;
mod record;
mod usage;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jupyter_protocol::ConnectionInfo;
use tokio::sync::watch;

pub use error::{AttachError, LaunchError, ProviderError};
#[cfg(feature = "follow-specs")]
pub use follow_specs::follow_specs;
pub use launch::{LaunchRequest, LaunchStage, Progress, Specs};
pub use lock::lock;
pub use own_metadata::own_metadata;
pub use phase::{Exit, ExitCause, Phase};
pub use record::{KernelRecord, Selector};
pub use usage::Usage;

/// Runs kernels somewhere: on this machine or in a cluster.
///
/// The provider knows which kernels run. After a restart, an embedder finds its kernels with [`list`](Self::list) and
/// [`attach`](Self::attach). Every future is cancel-safe.
///
/// A provider starts, signals and ends kernels. It never sends them messages: their sockets belong to the embedder that
/// requested the kernel, or to the kernel's agent.
#[async_trait]
pub trait KernelProvider: Send + Sync + 'static {
    /// The provider's name, such as `local` in `local/python3`. It contains no slash.
    fn name(&self) -> &str;

    /// The available kernelspecs: the set now and each change.
    fn specs(&self) -> watch::Receiver<Arc<Specs>>;

    /// Starts a kernel and returns once its sockets accept connections.
    ///
    /// The kernel gets the request's environment variables unchanged. They take precedence over those of its
    /// kernelspec. It runs in the request's working directory if the provider allows that. If a kernel with this id
    /// runs already, attaches to it. Dropping the future cancels the launch and leaves nothing behind.
    ///
    /// # Errors
    /// [`LaunchError`], by cause, with the end of the kernel's output if there is any.
    async fn launch(&self, request: LaunchRequest, progress: Progress) -> Result<Arc<dyn KernelHandle>, LaunchError>;

    /// Lists the running kernels that match the selector, including those that other processes launched, and kernels
    /// that ended while no program was attached to them and whose last output can still be read.
    ///
    /// # Errors
    /// [`ProviderError`] if the provider was closed or cannot list its kernels.
    async fn list(&self, selector: &Selector) -> Result<Vec<KernelRecord>, ProviderError>;

    /// Attaches to a running kernel, for example one that an earlier process launched. Waits for a kernel that is still
    /// starting.
    ///
    /// # Errors
    /// [`AttachError::Gone`] if it no longer runs, [`AttachError::Foreign`] for a record of another provider.
    async fn attach(&self, record: &KernelRecord) -> Result<Arc<dyn KernelHandle>, AttachError>;

    /// Waits for pending launches and the cleanup of cancelled ones, then releases what the provider holds, such as the
    /// lock on its folder, even if handles of kernels are left. Kernels keep running. Later calls, also of handles,
    /// fail with [`ProviderError::Closed`]. An embedder calls it last, with a timeout. The default does nothing.
    async fn close(&self) {}
}

/// A running kernel. Dropping the handle leaves the kernel running.
#[async_trait]
pub trait KernelHandle: Send + Sync + 'static {
    /// A storable record for [`KernelProvider::attach`]. It contains no secrets.
    fn record(&self) -> KernelRecord;

    /// The connection information with the key. A [restart](Self::restart) may change it.
    ///
    /// # Errors
    /// [`ProviderError`] if it is unknown.
    async fn connection(&self) -> Result<ConnectionInfo, ProviderError>;

    /// The link to the kernel's agent, which owns the kernel's sockets and records what arrives on them; `None` if
    /// there is no agent. It changes if a restart replaces the agent. The default is `None`.
    #[cfg(feature = "agent")]
    fn agent(&self) -> Option<Arc<agent::Link>> {
        None
    }

    /// The phase of the process or pod: the value now and each change.
    fn phase(&self) -> watch::Receiver<Phase>;

    /// The end of the kernel's standard output and error, at most some tens of kilobytes.
    ///
    /// # Errors
    /// [`ProviderError`] if it cannot be read.
    async fn output(&self) -> Result<String, ProviderError>;

    /// The resources that the kernel uses; `None` if it is not running, or the provider cannot measure them. The default
    /// is `None`.
    ///
    /// # Errors
    /// [`ProviderError`] if they cannot be read.
    async fn usage(&self) -> Result<Option<Usage>, ProviderError> {
        Ok(None)
    }

    /// Interrupts the kernel by signal, which ends the code that it runs. If its kernelspec says `interrupt_mode:
    /// message`, returns [`Interrupt::ByMessage`] instead, and the caller sends an `interrupt_request` on control.
    ///
    /// # Errors
    /// [`ProviderError`] if the kernel is gone.
    async fn interrupt(&self) -> Result<Interrupt, ProviderError>;

    /// Announces a [`restart`](Self::restart), before the kernel gets a shutdown request. A provider that restarts
    /// kernels in place then keeps that place, such as a pod, but still reports the end of the process. The default
    /// does nothing.
    async fn prepare_restart(&self) {}

    /// Ends the process or pod if it runs and starts a new one under the same id. Returns once its sockets accept
    /// connections; the [connection](Self::connection) may have changed.
    ///
    /// # Errors
    /// [`LaunchError`] as for a launch.
    async fn restart(&self, grace: Duration, progress: Progress) -> Result<(), LaunchError>;

    /// Ends the kernel: gracefully, as with SIGTERM, and by force after `grace`. Returns when the kernel and everything
    /// that it started are gone. Ending a kernel that is gone succeeds.
    ///
    /// # Errors
    /// [`ProviderError`] if it cannot be ended.
    async fn shutdown(&self, grace: Duration) -> Result<Exit, ProviderError>;

    /// Kills the kernel without waiting for its end, for embedders that are dropped and cannot wait. It may be called
    /// outside of a runtime. The default does nothing, so the kernel keeps running.
    fn kill(&self) {}

    /// Waits for the kernel's end and returns its cause.
    async fn wait(&self) -> Exit {
        let mut phase = self.phase();
        loop {
            if let Phase::Exited(exit) = &*phase.borrow_and_update() {
                return exit.clone();
            }
            if phase.changed().await.is_err() {
                return Exit::new(ExitCause::Unknown("the provider stopped watching it".to_owned()));
            }
        }
    }
}

/// How a kernel is interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// It was sent a signal.
    Signalled,
    /// It needs an `interrupt_request` on control, which the caller sends.
    ByMessage,
}
