//! A kernel and its handle.

mod restart;
mod supervisor;

use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use async_trait::async_trait;
use jupyter_protocol::kernelspec::InterruptMode;
use jupyter_protocol::{ConnectionInfo, KernelId};
use kernel_provider::{
    Exit, ExitCause, Interrupt, KernelHandle, KernelRecord, LaunchError, Phase, Progress, ProviderError, Usage,
};
use rustix::process::Signal;
use tokio::sync::{Notify, watch};
use tokio_util::task::AbortOnDrop;

use self::supervisor::supervise;
use crate::context::{ProviderContext, blocking};
use crate::output;
use crate::process::{Process, usage};
use crate::registry::Registry;
use crate::state::{KernelFiles, SavedKernel, Stage};

/// How long a killed process may take to be gone. Only a process stuck in a system call takes longer.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// A kernel of a [`LocalProvider`](crate::LocalProvider).
pub(crate) struct LocalKernel {
    id: KernelId,
    context: Arc<ProviderContext>,
    registry: Weak<Registry>,
    files: KernelFiles,
    phase: watch::Sender<Phase>,
    state: Mutex<KernelState>,
    /// Serializes restarts and shutdown.
    operation: tokio::sync::Mutex<()>,
    /// Cancels a restart in progress.
    cancel_restart: Notify,
}

struct KernelState {
    saved: SavedKernel,
    /// Kept after the kernel ended, so that a restart uses the same key, and the same ports if they are free.
    connection: Option<ConnectionInfo>,
    running: Option<RunningProcess>,
    is_restarting: bool,
    /// Whether the kernel is being shut down.
    is_ending: bool,
    /// Whether the provider was closed. Another provider may use the kernel's files afterwards.
    is_closed: bool,
}

struct RunningProcess {
    process: Arc<Process>,
    /// Becomes `true` when all processes of the kernel's session are gone.
    is_gone: watch::Receiver<bool>,
    supervisor: AbortOnDrop,
}

impl LocalKernel {
    /// Creates the `LocalKernel` of a running process and starts to watch the process.
    pub(crate) fn running(
        context: &Arc<ProviderContext>,
        registry: &Arc<Registry>,
        files: KernelFiles,
        saved: SavedKernel,
        process: Arc<Process>,
        connection: Option<ConnectionInfo>,
    ) -> Arc<Self> {
        let kernel = Self::new(context, registry, files, saved, Phase::Running);
        {
            let mut state = crate::lock(&kernel.state);
            state.connection = connection;
            let from = state.saved.output_from;
            state.running = Some(kernel.supervise(process, from));
        }
        kernel
    }

    /// Creates the `LocalKernel` of a kernel that has ended by itself.
    pub(crate) fn ended(
        context: &Arc<ProviderContext>,
        registry: &Arc<Registry>,
        files: KernelFiles,
        saved: SavedKernel,
        exit: Exit,
    ) -> Arc<Self> {
        Self::new(context, registry, files, saved, Phase::Exited(exit))
    }

    fn new(
        context: &Arc<ProviderContext>,
        registry: &Arc<Registry>,
        files: KernelFiles,
        saved: SavedKernel,
        phase: Phase,
    ) -> Arc<Self> {
        Arc::new(Self {
            id: saved.record.id,
            context: Arc::clone(context),
            registry: Arc::downgrade(registry),
            files,
            phase: watch::Sender::new(phase),
            state: Mutex::new(KernelState {
                saved,
                connection: None,
                running: None,
                is_restarting: false,
                is_ending: false,
                is_closed: false,
            }),
            operation: tokio::sync::Mutex::default(),
            cancel_restart: Notify::new(),
        })
    }

    pub(crate) fn id(&self) -> KernelId {
        self.id
    }

    /// How the kernel ended, or `None` while it runs.
    pub(crate) fn exit(&self) -> Option<Exit> {
        match &*self.phase.borrow() {
            Phase::Exited(exit) => Some(exit.clone()),
            _ => None,
        }
    }

    /// Stops watching the kernel, which keeps running.
    pub(crate) fn close(&self) {
        let mut state = crate::lock(&self.state);
        state.is_closed = true;
        state.running = None;
    }

    /// Removes the files of a kernel that was replaced or is no longer remembered. Blocks briefly.
    pub(crate) fn discard(&self) {
        crate::lock(&self.state).is_ending = true;
        self.files.remove_all();
    }

    fn supervise(self: &Arc<Self>, process: Arc<Process>, output_from: u64) -> RunningProcess {
        let (gone, is_gone) = watch::channel(false);
        let task = supervise(
            Arc::downgrade(self),
            self.context.events.clone(),
            self.files.clone(),
            Arc::clone(&process),
            output_from,
        );
        let task = tokio::spawn(async move {
            task.await;
            gone.send_replace(true);
        });
        RunningProcess {
            process,
            is_gone,
            supervisor: AbortOnDrop::new(task.abort_handle()),
        }
    }

    /// Records the end of the process, which is also the end of the kernel unless a restart is in progress. Blocks
    /// briefly on files.
    fn process_ended(&self, exit: Exit) {
        let mut state = crate::lock(&self.state);
        if state.is_closed {
            return;
        }
        if let Some(running) = state.running.take() {
            // The supervisor itself calls this, and still has to notify waiting callers.
            running.supervisor.detach();
        }
        if !state.is_restarting {
            self.exited(state, exit);
        }
    }

    /// Records the end of the kernel. Blocks briefly on files.
    fn exited(&self, mut state: MutexGuard<'_, KernelState>, mut exit: Exit) {
        let is_ending = state.is_ending;
        if is_ending {
            exit.cause = ExitCause::Requested;
            self.files.remove_all();
        } else {
            tracing::info!(kernel = %self.id, cause = %exit.cause, "a kernel ended");
            state.saved.stage = Stage::Ended(exit.clone());
            self.files.remove_connection();
            if let Err(error) = self.files.save(&state.saved) {
                tracing::warn!(kernel = %self.id, %error, "cannot record the kernel's end");
            }
            // If this fails, the output file only takes more space than necessary.
            let _ = output::compact(&self.files.output());
        }
        drop(state);
        if let Some(registry) = self.registry.upgrade() {
            if is_ending {
                registry.remove(self);
            } else {
                registry.ended(self, self.context.options.keep_ended);
            }
        }
        self.phase.send_replace(Phase::Exited(exit));
    }

    fn check_open(&self) -> Result<(), ProviderError> {
        if crate::lock(&self.state).is_closed {
            return Err(ProviderError::Closed);
        }
        Ok(())
    }

    fn check_running(&self) -> Result<(), ProviderError> {
        self.check_open()?;
        match self.exit() {
            Some(exit) => Err(ProviderError::Gone(exit.cause)),
            None => Ok(()),
        }
    }

    /// Ends the running process, if there is one: with SIGTERM, and after `grace` with SIGKILL.
    async fn end_process(&self, grace: Duration) -> Result<(), ProviderError> {
        let running = crate::lock(&self.state)
            .running
            .as_ref()
            .map(|running| (Arc::clone(&running.process), running.is_gone.clone()));
        let Some((process, mut is_gone)) = running else {
            return Ok(());
        };
        // The channel closes early only if closing the provider aborts the supervisor. This counts as an end.
        if !grace.is_zero() && process.signal_group(Signal::TERM).is_ok() {
            // A stopped process handles SIGTERM only after SIGCONT.
            let _ = process.signal_group(Signal::CONT);
            if tokio::time::timeout(grace, is_gone.wait_for(|gone| *gone))
                .await
                .is_ok()
            {
                return Ok(());
            }
            tracing::info!(kernel = %self.id, ?grace, "the kernel did not end within its grace period; killing it");
        }
        process.kill();
        match tokio::time::timeout(KILL_TIMEOUT, is_gone.wait_for(|gone| *gone)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(ProviderError::failed(
                format!("end process {}", process.identity().pid),
                format!(
                    "it still exists {KILL_TIMEOUT:?} after SIGKILL; it may be stuck in a system call, for example on a failed disk"
                ),
            )),
        }
    }
}

#[async_trait]
impl KernelHandle for LocalKernelHandle {
    fn record(&self) -> KernelRecord {
        let state = crate::lock(&self.0.state);
        let mut record = state.saved.record.clone();
        record.data = serde_json::json!({
            "pid": state.saved.process.as_ref().map(|process| process.pid),
            "dir": self.0.files.dir,
        });
        record
    }

    async fn connection(&self) -> Result<ConnectionInfo, ProviderError> {
        self.0.check_running()?;
        crate::lock(&self.0.state).connection.clone().ok_or_else(|| {
            ProviderError::failed(
                format!("read {}", self.0.files.connection_file().display()),
                "the connection file is missing or damaged; restart the kernel",
            )
        })
    }

    fn phase(&self) -> watch::Receiver<Phase> {
        self.0.phase.subscribe()
    }

    async fn usage(&self) -> Result<Option<Usage>, ProviderError> {
        let leader = {
            let state = crate::lock(&self.0.state);
            state.running.as_ref().map(|running| running.process.identity().clone())
        };
        let Some(leader) = leader else { return Ok(None) };
        blocking("measure a kernel", move || usage::of_session(&leader)).await
    }

    async fn output(&self) -> Result<String, ProviderError> {
        let path = self.0.files.output();
        let process = {
            let state = crate::lock(&self.0.state);
            state.running.as_ref().map(|running| running.process.clone())
        };
        let read = blocking("read a kernel's output", move || {
            if let Some(process) = process {
                process.drain_output();
            }
            output::tail(&path, 0, output::TAIL)
                .map_err(|error| ProviderError::failed(format!("read {}", path.display()), error))
        })
        .await?;
        match (read, self.0.exit()) {
            (Err(_), Some(exit)) => Ok(exit.output),
            (read, _) => read,
        }
    }

    async fn interrupt(&self) -> Result<Interrupt, ProviderError> {
        self.0.check_running()?;
        let process = {
            let state = crate::lock(&self.0.state);
            if state.saved.start.spec.interrupt_mode == InterruptMode::Message {
                return Ok(Interrupt::ByMessage);
            }
            state.running.as_ref().map(|running| Arc::clone(&running.process))
        };
        let signalled = process
            .ok_or_else(|| std::io::ErrorKind::NotFound.into())
            .and_then(|process| process.signal_group(Signal::INT));
        match signalled {
            Ok(()) => Ok(Interrupt::Signalled),
            Err(error) => {
                self.0.check_running()?;
                Err(ProviderError::failed("interrupt the kernel", error))
            }
        }
    }

    fn kill(&self) {
        let state = crate::lock(&self.0.state);
        if let Some(running) = &state.running {
            running.process.kill_all();
        }
    }

    async fn restart(&self, grace: Duration, progress: Progress) -> Result<(), LaunchError> {
        let _operation = self.0.operation.lock().await;
        tokio::select! {
            biased;
            () = self.0.cancel_restart.notified() => Err(ProviderError::Gone(ExitCause::Requested).into()),
            restarted = self.0.restart_now(grace, progress) => restarted,
        }
    }

    async fn shutdown(&self, grace: Duration) -> Result<Exit, ProviderError> {
        self.0.cancel_restart.notify_waiters();
        let _operation = self.0.operation.lock().await;
        self.0.check_open()?;
        if let Some(exit) = self.0.exit() {
            // The kernel ended earlier, and its files are no longer needed.
            let (kernel, registry) = (Arc::clone(&self.0), self.0.registry.upgrade());
            blocking("remove a kernel's files", move || {
                kernel.discard();
                if let Some(registry) = registry {
                    registry.remove(&kernel);
                }
            })
            .await?;
            return Ok(exit);
        }
        crate::lock(&self.0.state).is_ending = true;
        self.0.end_process(grace).await?;
        Ok(self.wait().await)
    }
}

/// The handle that the provider returns.
pub(crate) struct LocalKernelHandle(pub(crate) Arc<LocalKernel>);
