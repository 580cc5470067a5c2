//! Where kernels come from: the trait that a provider implements.

mod error;
mod follow;
mod launch;
mod own_metadata;
mod phase;
mod record;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jupyter_protocol::ConnectionInfo;
use tokio::sync::watch;

pub use error::{AttachError, LaunchError, ProviderError};
pub use follow::follow_specs;
pub use launch::{LaunchRequest, LaunchStage, Progress, Specs};
pub use own_metadata::own_metadata;
pub use phase::{Exit, ExitCause, Phase};
pub use record::{KernelRecord, Selector};

/// A place that runs kernels: this machine, a cluster.
///
/// The provider is the source of truth about what runs: an embedder that was restarted finds its kernels again with
/// [`list`](Self::list) and [`attach`](Self::attach). Every future is cancel-safe.
///
/// A provider starts, signals and ends kernels; it never sends them messages. Messages are the
/// [recorder](crate::session)'s, the only one on a kernel's sockets.
#[async_trait]
pub trait KernelProvider: Send + Sync + 'static {
    /// The provider's name, such as `local`: the part before the slash in `local/python3`. Without a slash itself.
    fn name(&self) -> &str;

    /// What can be launched: the set now, then each change.
    fn specs(&self) -> watch::Receiver<Arc<Specs>>;

    /// Starts a kernel and returns once its sockets can be connected to.
    ///
    /// Launching an id that runs already attaches to it. Dropping the future before it is done leaves nothing behind.
    ///
    /// # Errors
    /// [`LaunchError`], by cause, with the kernel's last output where it has any.
    async fn launch(&self, request: LaunchRequest, progress: Progress) -> Result<Arc<dyn KernelHandle>, LaunchError>;

    /// The kernels that run here, whoever launched them, as far as the selector lets them through.
    ///
    /// # Errors
    /// [`ProviderError`] where the provider cannot be asked.
    async fn list(&self, selector: &Selector) -> Result<Vec<KernelRecord>, ProviderError>;

    /// Takes hold of a running kernel, for instance one that an embedder launched before it was restarted. One that is
    /// still being started is waited for.
    ///
    /// # Errors
    /// [`AttachError::Gone`] where it does not run any more, [`AttachError::Foreign`] for another provider's record.
    async fn attach(&self, record: &KernelRecord) -> Result<Arc<dyn KernelHandle>, AttachError>;

    /// Waits until what launches that were given up had made is cleared away. An embedder that is about to end calls it
    /// last, with a deadline of its own; launches that are under way may be waited for as well. Returns at once where
    /// dropping a launch clears all of it away.
    async fn settle(&self) {}
}

/// A running kernel. Dropping the handle leaves the kernel running.
#[async_trait]
pub trait KernelHandle: Send + Sync + 'static {
    /// What identifies the kernel; can be stored and given to [`KernelProvider::attach`]. Holds no secrets.
    fn record(&self) -> KernelRecord;

    /// Where the kernel's sockets are, and the key. Changes with each restart.
    ///
    /// # Errors
    /// [`ProviderError`] where it is not known (any more).
    async fn connection(&self) -> Result<ConnectionInfo, ProviderError>;

    /// What the kernel is doing as a process or pod: the phase now, then each change.
    fn phase(&self) -> watch::Receiver<Phase>;

    /// The last of what the kernel wrote to its standard output and error, outside the protocol. At most some tens of
    /// kilobytes.
    ///
    /// # Errors
    /// [`ProviderError`] where it cannot be read.
    async fn output(&self) -> Result<String, ProviderError>;

    /// Interrupts what the kernel runs, where its kernelspec says `interrupt_mode: signal`. Where it says `message`,
    /// returns [`Interrupt::ByMessage`]: the caller then sends `interrupt_request` on the control channel.
    ///
    /// # Errors
    /// [`ProviderError`] where the kernel is gone.
    async fn interrupt(&self) -> Result<Interrupt, ProviderError>;

    /// Says that the kernel is about to be asked by message to end, for a [`restart`](Self::restart) that follows at once.
    /// A provider that can restart in place, as in a pod, keeps the place from now on; the process's end is told as ever.
    /// By default nothing is done, and nothing depends on it.
    async fn prepare_restart(&self) {}

    /// Ends the process or pod, if it still runs, and starts a new one under the same id. Returns once its sockets can
    /// be connected to; the [connection](Self::connection) may be another.
    ///
    /// # Errors
    /// [`LaunchError`] as for a launch.
    async fn restart(&self, grace: Duration, progress: Progress) -> Result<(), LaunchError>;

    /// Ends the kernel: asks it (as SIGTERM does), and after `grace` makes it. Returns when it is gone, which includes
    /// all that it started. Ending a kernel that is gone is no error.
    ///
    /// # Errors
    /// [`ProviderError`] where it cannot be ended.
    async fn shutdown(&self, grace: Duration) -> Result<Exit, ProviderError>;

    /// Waits for the kernel's end and says what caused it.
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

/// How an interrupt is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// The kernel was signalled.
    Signalled,
    /// The kernel takes an `interrupt_request` on its control channel, which the caller sends.
    ByMessage,
}
