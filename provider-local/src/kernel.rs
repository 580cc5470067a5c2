//! A kernel's handle, and the task that watches its process.

use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use async_trait::async_trait;
use jupyter_protocol::kernelspec::InterruptMode;
use jupyter_protocol::{ConnectionInfo, KernelId};
use kernel_provider::{
    Exit, ExitCause, Interrupt, KernelHandle, KernelRecord, LaunchError, Phase, Progress, ProviderError,
};
use rustix::fs::inotify::WatchFlags;
use rustix::process::Signal;
use tokio::sync::{Notify, watch};
use tokio_util::task::AbortOnDrop;

use crate::context::{ProviderContext, blocking};
use crate::events::Events;
use crate::launch::{self, Ready};
use crate::output::{self, Trimmer};
use crate::process::Process;
use crate::registry::Registry;
use crate::state::{KernelFiles, SavedKernel, Stage};

/// How long a restarted kernel may take to accept connections.
const RESTART_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a killed process may take to be gone. Only a process stuck in a system call takes longer.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// Minimum time between checks of the output file, so that continuous output does not keep the task busy.
const TRIM_PAUSE: Duration = Duration::from_millis(200);

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
    /// Whether the provider was closed. The kernel's files may be another provider's now.
    is_closed: bool,
}

struct RunningProcess {
    process: Arc<Process>,
    /// Becomes `true` when the process and everything that it started are gone.
    is_gone: watch::Receiver<bool>,
    supervisor: AbortOnDrop,
}

impl LocalKernel {
    /// Creates the handle of a running kernel and starts to watch its process.
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

    /// Creates the handle of a kernel that ended by itself.
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
            Arc::clone(&self.context.events),
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

    /// Records the end of the process, unless a restart is in progress. Blocks briefly on files.
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
            // If this fails, the output file merely stays long.
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
        // The channel closes only when the supervisor has ended, which is after the process.
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
                    "it still exists {KILL_TIMEOUT:?} after SIGKILL; it may be stuck in a system call, such as on a failed disk"
                ),
            )),
        }
    }

    async fn restart_now(self: &Arc<Self>, grace: Duration, progress: Progress) -> Result<(), LaunchError> {
        let restarting = RestartGuard::begin(self)?;
        self.phase.send_replace(Phase::Restarting);
        self.end_process(grace).await?;
        let (saved, connection) = {
            let state = crate::lock(&self.state);
            (state.saved.clone(), state.connection.clone())
        };
        let connection = connection.unwrap_or_else(|| launch::new_connection(&saved.start));
        let ready = launch::start(
            &self.context,
            &self.files,
            saved,
            connection,
            false,
            RESTART_TIMEOUT,
            &progress,
        )
        .await;
        match ready {
            Ok(ready) => {
                restarting.done(ready);
                Ok(())
            }
            Err(error) => {
                restarting.failed(&error);
                Err(error)
            }
        }
    }
}

/// A restart in progress. Dropping it cancels the restart.
struct RestartGuard<'a> {
    kernel: &'a Arc<LocalKernel>,
    exit: Exit,
    is_over: bool,
}

impl<'a> RestartGuard<'a> {
    fn begin(kernel: &'a Arc<LocalKernel>) -> Result<Self, ProviderError> {
        let mut state = crate::lock(&kernel.state);
        if state.is_closed {
            return Err(ProviderError::Closed);
        }
        if state.is_ending {
            return Err(ProviderError::Gone(ExitCause::Requested));
        }
        state.is_restarting = true;
        let exit = Exit::new(ExitCause::Unknown(
            "it was ended for a restart that was cancelled".to_owned(),
        ));
        Ok(Self {
            kernel,
            exit,
            is_over: false,
        })
    }

    fn done(mut self, ready: Ready) {
        self.is_over = true;
        let mut state = crate::lock(&self.kernel.state);
        state.is_restarting = false;
        // A kernel that was started while the provider was closed is found by the next provider.
        if state.is_closed {
            return;
        }
        let from = ready.saved.output_from;
        state.saved = ready.saved;
        state.connection = Some(ready.connection);
        state.running = Some(self.kernel.supervise(ready.process, from));
        self.kernel.phase.send_replace(Phase::Running);
    }

    fn failed(mut self, error: &LaunchError) {
        self.exit = error.exit_after_restart();
    }
}

impl Drop for RestartGuard<'_> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let mut state = crate::lock(&self.kernel.state);
        state.is_restarting = false;
        if state.is_closed {
            return;
        }
        if state.running.is_some() {
            // The old process still exists. If it was asked to end, its supervisor reports the exit.
            self.kernel.phase.send_replace(Phase::Running);
        } else {
            self.kernel.exited(state, self.exit.clone());
        }
    }
}

/// Watches a process until it is gone, and keeps its output bounded until then.
///
/// Holds nothing that keeps the state directory locked, so dropping the provider and all handles unlocks it at once.
async fn supervise(
    kernel: Weak<LocalKernel>,
    events: Arc<Events>,
    files: KernelFiles,
    process: Arc<Process>,
    output_from: u64,
) {
    let ended = tokio::select! {
        ended = process.ended() => ended,
        never = bound_output(&events, &files) => match never {},
    };
    let Ok(ended) = ended else {
        // The runtime is shutting down.
        return;
    };
    let ended = blocking("end what the kernel started", move || {
        process.reap();
        if let Some(kernel) = kernel.upgrade() {
            let output = output::tail(&files.output(), output_from, output::ERROR_TAIL).unwrap_or_default();
            let cause = kernel.context.cause(ended);
            kernel.process_ended(Exit::new(cause).with_output(output));
        }
    });
    if let Err(error) = ended.await {
        tracing::error!(%error, "cannot process the end of a kernel");
    }
}

async fn bound_output(events: &Events, files: &KernelFiles) -> std::convert::Infallible {
    let path = files.output();
    let wrote = Arc::new(Notify::new());
    let mut trimmer = Trimmer::default();
    loop {
        // One event, then none until the pause is over, so that continuous output does not cause continuous events.
        let once = WatchFlags::MODIFY | WatchFlags::ONESHOT;
        let watch = events.watch(&path, None, once, &wrote);
        let trimmed = trimmer.trim(&path);
        if let Err(error) = watch.as_ref().map(drop).and(trimmed.as_ref().map(drop)) {
            tracing::warn!(%error, path = %path.display(), "cannot limit the size of the kernel's output");
            return std::future::pending().await;
        }
        wrote.notified().await;
        drop(watch);
        tokio::time::sleep(TRIM_PAUSE).await;
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

    async fn output(&self) -> Result<String, ProviderError> {
        let path = self.0.files.output();
        let read = blocking("read a kernel's output", move || {
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
