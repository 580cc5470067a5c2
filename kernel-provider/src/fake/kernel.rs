//! One fake kernel: a task that serves the protocol.

use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use async_trait::async_trait;
use jupyter_protocol::kernel::ServerHandle;
use jupyter_protocol::kernelspec::InterruptMode;
use jupyter_protocol::{ConnectionInfo, Key};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::spec::{Behaviour, FakeSpec};
use crate::{
    Exit, ExitCause, Interrupt, KernelHandle, KernelRecord, LaunchError, LaunchStage, Phase, Progress, ProviderError,
    lock,
};

/// How long a restarted kernel may take to open its sockets.
const RESTART_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) struct FakeKernel {
    pub(super) record: KernelRecord,
    spec: FakeSpec,
    phase: watch::Sender<Phase>,
    state: Mutex<KernelState>,
    /// Serializes restarts and ends.
    operation: tokio::sync::Mutex<()>,
    /// Cancels a restart in progress.
    cancel_restart: Notify,
}

#[derive(Default)]
struct KernelState {
    connection: ConnectionInfo,
    running: Option<Running>,
    output: String,
    interrupts: usize,
    is_restarting: bool,
    is_ending: bool,
}

/// The kernel's task; dropping this ends it.
struct Running {
    task: JoinHandle<()>,
    server: ServerHandle,
    /// Its sender is dropped when the task ends.
    is_gone: watch::Receiver<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl FakeKernel {
    /// Launches a kernel and waits until its sockets are open.
    pub(super) async fn launch(
        record: KernelRecord,
        spec: FakeSpec,
        limit: Duration,
        progress: &Progress,
    ) -> Result<Arc<Self>, LaunchError> {
        let kernel = Arc::new(Self {
            record,
            spec,
            phase: watch::Sender::new(Phase::Starting),
            state: Mutex::default(),
            operation: tokio::sync::Mutex::default(),
            cancel_restart: Notify::new(),
        });
        progress.report(LaunchStage::Scheduled);
        kernel.start(limit, progress).await?;
        Ok(kernel)
    }

    /// Waits until the sockets are open, and starts the task that serves them. Cancelling this leaves no task.
    async fn start(self: &Arc<Self>, limit: Duration, progress: &Progress) -> Result<(), LaunchError> {
        progress.report(LaunchStage::Starting);
        let bind = match &self.spec.behaviour {
            Behaviour::Serves(bind) => bind,
            Behaviour::Fails(error) => return Err(error.clone()),
            Behaviour::IsSilent(output) => {
                tokio::time::sleep(limit).await;
                return Err(LaunchError::TimedOut {
                    timeout: limit,
                    output: output.clone(),
                });
            }
        };
        let before = self.lock().connection.clone();
        let connection = ConnectionInfo {
            key: if before.key.is_empty() {
                Key::random()
            } else {
                before.key
            },
            kernel_name: self.record.spec.clone(),
            ..ConnectionInfo::default()
        };
        let server = timeout(limit, bind(connection))
            .await
            .map_err(|_| LaunchError::TimedOut {
                timeout: limit,
                output: String::new(),
            })?;
        let server = server.map_err(|error| LaunchError::CannotStart {
            what: "the fake kernel".to_owned(),
            reason: error.to_string(),
        })?;
        let (connection, handle) = (server.connection_info().clone(), server.handle());
        let (gone, is_gone) = watch::channel(());
        let mut state = self.lock();
        let kernel = Arc::downgrade(self);
        state.connection = connection;
        state.is_restarting = false;
        state.running = Some(Running {
            task: tokio::spawn(async move {
                // Dropped with the task, however it ends.
                let _gone = gone;
                server.run().await;
                // The server was shut down. A process would exit with code 0.
                Self::task_ended(&kernel, ExitCause::Code(0));
            }),
            server: handle,
            is_gone,
        });
        self.phase.send_replace(Phase::Running);
        drop(state);
        progress.report(LaunchStage::Ready);
        Ok(())
    }

    fn task_ended(kernel: &Weak<Self>, cause: ExitCause) {
        if let Some(kernel) = kernel.upgrade() {
            kernel.ended(cause);
        }
    }

    /// Ends the task, if it runs, and reports the exit unless a restart is in progress.
    pub(super) fn ended(&self, cause: ExitCause) {
        let mut state = self.lock();
        if state.running.take().is_none() || state.is_restarting {
            return;
        }
        self.exited(state, cause);
    }

    fn exited(&self, state: MutexGuard<'_, KernelState>, cause: ExitCause) {
        let cause = if state.is_ending { ExitCause::Requested } else { cause };
        let exit = Exit::new(cause).with_output(&state.output);
        self.phase.send_replace(Phase::Exited(exit));
    }

    pub(super) fn exit(&self) -> Option<Exit> {
        match &*self.phase.borrow() {
            Phase::Exited(exit) => Some(exit.clone()),
            _ => None,
        }
    }

    pub(super) fn write(&self, text: &str) {
        self.lock().output.push_str(text);
    }

    pub(super) fn interrupts(&self) -> usize {
        self.lock().interrupts
    }

    fn lock(&self) -> MutexGuard<'_, KernelState> {
        lock(&self.state)
    }

    /// Ends the task: gracefully, and by force after `grace`.
    async fn end_task(&self, grace: Duration) {
        let running = self
            .lock()
            .running
            .as_ref()
            .map(|running| (running.server.clone(), running.is_gone.clone()));
        let Some((server, mut is_gone)) = running else {
            return;
        };
        if !grace.is_zero() {
            server.shutdown();
            let _ = timeout(grace, is_gone.changed()).await;
        }
        self.ended(ExitCause::Signal(9));
    }

    async fn restart_now(self: &Arc<Self>, grace: Duration, progress: &Progress) -> Result<(), LaunchError> {
        let restarting = Restarting::begin(self)?;
        self.phase.send_replace(Phase::Restarting);
        self.end_task(grace).await;
        let started = self.start(RESTART_TIMEOUT, progress).await;
        drop(restarting);
        started
    }
}

/// A restart in progress. Dropping it before the kernel runs cancels the restart.
struct Restarting<'a>(&'a FakeKernel);

impl<'a> Restarting<'a> {
    fn begin(kernel: &'a FakeKernel) -> Result<Self, ProviderError> {
        let mut state = kernel.lock();
        if state.is_ending {
            return Err(ProviderError::Gone(ExitCause::Requested));
        }
        state.is_restarting = true;
        Ok(Self(kernel))
    }
}

impl Drop for Restarting<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if !state.is_restarting {
            return;
        }
        state.is_restarting = false;
        if state.running.is_some() {
            self.0.phase.send_replace(Phase::Running);
        } else {
            let cause = ExitCause::Unknown("its restart failed or was cancelled".to_owned());
            self.0.exited(state, cause);
        }
    }
}

/// The handle for embedders.
pub(super) struct FakeHandle(pub(super) Arc<FakeKernel>);

impl FakeHandle {
    fn check_running(&self) -> Result<(), ProviderError> {
        match self.0.exit() {
            Some(exit) => Err(ProviderError::Gone(exit.cause)),
            None => Ok(()),
        }
    }
}

#[async_trait]
impl KernelHandle for FakeHandle {
    fn record(&self) -> KernelRecord {
        self.0.record.clone()
    }

    async fn connection(&self) -> Result<ConnectionInfo, ProviderError> {
        self.check_running()?;
        Ok(self.0.lock().connection.clone())
    }

    fn phase(&self) -> watch::Receiver<Phase> {
        self.0.phase.subscribe()
    }

    async fn output(&self) -> Result<String, ProviderError> {
        Ok(self.0.lock().output.clone())
    }

    async fn interrupt(&self) -> Result<Interrupt, ProviderError> {
        self.check_running()?;
        let mut state = self.0.lock();
        state.interrupts += 1;
        if self.0.spec.spec.interrupt_mode == InterruptMode::Message {
            return Ok(Interrupt::ByMessage);
        }
        if let Some(running) = &state.running {
            running.server.interrupt();
        }
        Ok(Interrupt::Signalled)
    }

    async fn restart(&self, grace: Duration, progress: Progress) -> Result<(), LaunchError> {
        let _operation = self.0.operation.lock().await;
        tokio::select! {
            biased;
            () = self.0.cancel_restart.notified() => Err(ProviderError::Gone(ExitCause::Requested).into()),
            restarted = self.0.restart_now(grace, &progress) => restarted,
        }
    }

    async fn shutdown(&self, grace: Duration) -> Result<Exit, ProviderError> {
        self.0.cancel_restart.notify_waiters();
        let _operation = self.0.operation.lock().await;
        self.0.lock().is_ending = true;
        if let Some(exit) = self.0.exit() {
            return Ok(exit);
        }
        self.0.end_task(grace).await;
        Ok(self.wait().await)
    }
}
