//! A simulated kernel: the real recorder, log, sessions and attachments, without a process and sockets. It has no tasks
//! and no threads; its log comes from [`Logs::stepped`](kernel_log::Logs::stepped).

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use chrono::DateTime;
use jupyter_protocol::zmq::MessageMemory;
use jupyter_protocol::{Channel, ConnectionInfo, KernelId, WireMessage};
use kernel_log::{Lifecycle, Log, Seq, StoreError};
use kernel_provider::{
    Exit, ExitCause, Interrupt, KernelHandle, KernelRecord, LaunchError, Phase, Progress, ProviderError,
};
use tokio::sync::{mpsc, watch};

use crate::kernel::{Keeper, Kernel, KernelEventKind};
use crate::session::{Recorder, RecorderOptions, SendError, Sessions};

/// A kernel whose process is simulated.
pub struct SimulatedKernel {
    kernel: Arc<Kernel>,
}

impl fmt::Debug for SimulatedKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatedKernel").finish_non_exhaustive()
    }
}

impl SimulatedKernel {
    /// Attaches to the kernel of this log, as a newly started gateway does. `requests` receives the messages that are
    /// sent to the kernel.
    ///
    /// # Errors
    /// [`StoreError`] if the log's index cannot be read.
    pub async fn attach(log: Log, requests: &mpsc::Sender<(Channel, WireMessage)>) -> Result<Self, StoreError> {
        let is_new = log.head() == Seq::START;
        let handle = Arc::new(NoProcess {
            id: log.kernel_id(),
            phase: watch::Sender::new(Phase::Running),
        });
        let options = RecorderOptions {
            runtime: None,
            memory: MessageMemory::new(256 << 20),
            refused: Arc::default(),
        };
        let recorder = Recorder::load(log.clone(), options).await?;
        let sessions = Sessions::load(log).await?;
        let keeper: Weak<dyn Keeper> = Weak::<NoManager>::new();
        let name = "simulated".to_owned();
        let kernel = Kernel::new(keeper, name, None, handle, recorder, sessions, Duration::ZERO);
        let kernel = Arc::new(kernel);
        if is_new {
            kernel.recorder().lifecycle(&Lifecycle::Started);
        } else {
            kernel.recorder().attached(Some(0));
        }
        kernel.recorder().connect_simulated(requests).await;
        Ok(Self { kernel })
    }

    /// The kernel as clients see it.
    #[must_use]
    pub fn kernel(&self) -> &Arc<Kernel> {
        &self.kernel
    }

    /// Delivers these messages from the kernel on iopub, in one batch.
    pub fn publish(&self, messages: &[WireMessage]) {
        self.kernel.recorder().on_published(messages);
    }

    /// Delivers a message from the kernel on shell, control or stdin.
    pub fn reply(&self, channel: Channel, message: WireMessage) {
        self.kernel.recorder().on_reply(channel, message);
    }

    /// Recovers pending executions: waits until the kernel has handled all messages, and ends the executions whose
    /// reply was lost.
    ///
    /// # Errors
    /// [`SendError`] if requests cannot be sent to the kernel.
    pub async fn recover(&self) -> Result<(), SendError> {
        self.kernel.recorder().recover().await
    }

    /// Restarts the kernel, which ends its unfinished executions. `requests` receives the messages that are sent to the
    /// new process.
    pub async fn restart(&self, requests: &mpsc::Sender<(Channel, WireMessage)>) {
        let recorder = self.kernel.recorder();
        recorder.lifecycle(&Lifecycle::Restarting);
        recorder.disconnect().await;
        let requested_before = recorder.next_entry();
        recorder.connect_simulated(requests).await;
        recorder.restarted(requested_before);
    }
}

/// Replaces the manager, which a simulated kernel does not have.
struct NoManager;

impl Keeper for NoManager {
    fn watch(&self, _kernel: &Arc<Kernel>) {}

    fn remove(&self, _id: KernelId) {}

    fn publish(&self, _id: KernelId, _kind: KernelEventKind) {}
}

/// A handle without a process behind it.
struct NoProcess {
    id: KernelId,
    phase: watch::Sender<Phase>,
}

#[async_trait]
impl KernelHandle for NoProcess {
    fn record(&self) -> KernelRecord {
        KernelRecord::new(
            "simulated",
            self.id,
            "simulated",
            None,
            DateTime::UNIX_EPOCH,
            serde_json::Value::Null,
        )
    }

    async fn connection(&self) -> Result<ConnectionInfo, ProviderError> {
        Err(ProviderError::Gone(ExitCause::Requested))
    }

    fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    async fn output(&self) -> Result<String, ProviderError> {
        Ok(String::new())
    }

    async fn interrupt(&self) -> Result<Interrupt, ProviderError> {
        Ok(Interrupt::Signalled)
    }

    async fn restart(&self, _grace: Duration, _progress: Progress) -> Result<(), LaunchError> {
        Ok(())
    }

    async fn shutdown(&self, _grace: Duration) -> Result<Exit, ProviderError> {
        Ok(Exit::new(ExitCause::Requested))
    }
}
