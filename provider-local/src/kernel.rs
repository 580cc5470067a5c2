//! One kernel: its handle, and the task that watches its process.

use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use async_trait::async_trait;
use jupyter_protocol::ConnectionInfo;
use jupyter_protocol::kernelspec::InterruptMode;
use kernel_provider::KernelId;
use kernel_provider::provider::{
    Exit, ExitCause, Interrupt, KernelHandle, KernelRecord, LaunchError, Phase, Progress, ProviderError,
};
use rustix::fs::inotify::WatchFlags;
use rustix::process::Signal;
use tokio::sync::{Notify, watch};

use crate::AbortOnDrop;
use crate::events::Events;
use crate::launch::{self, Machine, Ready, blocking};
use crate::output::{self, Trimmer};
use crate::process::Process;
use crate::registry::Registry;
use crate::state::{KernelFiles, Saved, Stage};

/// How long a restarted kernel may take until it answers.
const RESTART_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a killed process may take to be gone. Only one that hangs in the system takes longer.
const DEATH_TIMEOUT: Duration = Duration::from_secs(10);
/// A kernel that writes without end is looked after this often.
const TRIM_PAUSE: Duration = Duration::from_millis(200);

/// A kernel of a [`LocalProvider`](crate::LocalProvider).
pub(crate) struct LocalKernel {
    id: KernelId,
    machine: Arc<Machine>,
    registry: Weak<Registry>,
    files: KernelFiles,
    phase: watch::Sender<Phase>,
    state: Mutex<State>,
    /// Held by whoever restarts or ends it.
    operation: tokio::sync::Mutex<()>,
    /// Woken when a restart that is under way is no longer wanted.
    give_up_restart: Notify,
}

struct State {
    saved: Saved,
    /// Kept when it has ended: a restart gives it the same key, and the same ports if they are free.
    connection: Option<ConnectionInfo>,
    running: Option<Running>,
    is_restarting: bool,
    /// Whether it is to end for good.
    is_ending: bool,
}

struct Running {
    process: Arc<Process>,
    /// Becomes true when the process is gone and all that it started.
    is_gone: watch::Receiver<bool>,
    supervisor: AbortOnDrop,
}

impl LocalKernel {
    /// A kernel that runs.
    pub(crate) fn running(
        machine: &Arc<Machine>,
        registry: &Arc<Registry>,
        files: KernelFiles,
        saved: Saved,
        process: Arc<Process>,
        connection: Option<ConnectionInfo>,
    ) -> Arc<Self> {
        let kernel = Self::new(machine, registry, files, saved, Phase::Running);
        {
            let mut state = crate::lock(&kernel.state);
            state.connection = connection;
            let from = state.saved.output_from;
            state.running = Some(kernel.supervise(process, from));
        }
        kernel
    }

    /// A kernel that has ended by itself.
    pub(crate) fn ended(
        machine: &Arc<Machine>,
        registry: &Arc<Registry>,
        files: KernelFiles,
        saved: Saved,
        exit: Exit,
    ) -> Arc<Self> {
        Self::new(machine, registry, files, saved, Phase::Exited(exit))
    }

    fn new(
        machine: &Arc<Machine>,
        registry: &Arc<Registry>,
        files: KernelFiles,
        saved: Saved,
        phase: Phase,
    ) -> Arc<Self> {
        Arc::new(Self {
            id: saved.record.id,
            machine: Arc::clone(machine),
            registry: Arc::downgrade(registry),
            files,
            phase: watch::Sender::new(phase),
            state: Mutex::new(State {
                saved,
                connection: None,
                running: None,
                is_restarting: false,
                is_ending: false,
            }),
            operation: tokio::sync::Mutex::default(),
            give_up_restart: Notify::new(),
        })
    }

    pub(crate) fn id(&self) -> KernelId {
        self.id
    }

    /// How it ended, if it has.
    pub(crate) fn exit(&self) -> Option<Exit> {
        match &*self.phase.borrow() {
            Phase::Exited(exit) => Some(exit.clone()),
            _ => None,
        }
    }

    /// Another has taken its place, or too many others ended after it: its files go. Blocks shortly.
    pub(crate) fn forget(&self) {
        crate::lock(&self.state).is_ending = true;
        self.files.remove_all();
    }

    fn supervise(self: &Arc<Self>, process: Arc<Process>, output_from: u64) -> Running {
        let (gone, is_gone) = watch::channel(false);
        let task = supervise(
            Arc::downgrade(self),
            Arc::clone(&self.machine.events),
            self.files.clone(),
            Arc::clone(&process),
            output_from,
        );
        let task = tokio::spawn(async move {
            task.await;
            gone.send_replace(true);
        });
        Running {
            process,
            is_gone,
            supervisor: AbortOnDrop::new(&task),
        }
    }

    /// The process is gone. Blocks shortly, on files.
    fn process_ended(&self, exit: Exit) {
        let mut state = crate::lock(&self.state);
        if let Some(running) = state.running.take() {
            // It is the supervisor that calls this, and it has to tell others yet.
            running.supervisor.release();
        }
        if !state.is_restarting {
            self.exited(state, exit);
        }
    }

    /// The kernel is gone and no other process takes its place. Blocks shortly, on files.
    fn exited(&self, mut state: MutexGuard<'_, State>, mut exit: Exit) {
        let is_ending = state.is_ending;
        if is_ending {
            exit.cause = ExitCause::Requested;
            self.files.remove_all();
        } else {
            tracing::info!(kernel = %self.id, cause = %exit.cause, "a kernel ended");
            state.saved.stage = Stage::Ended(exit.clone());
            self.files.remove_connection();
            if let Err(error) = self.files.save(&state.saved) {
                tracing::warn!(kernel = %self.id, %error, "the kernel's end is not recorded");
            }
            // Where this fails the output is long, not lost.
            let _ = output::compact(&self.files.output());
        }
        drop(state);
        if let Some(registry) = self.registry.upgrade() {
            if is_ending {
                registry.remove(self);
            } else {
                registry.ended(self, self.machine.config.keep_ended);
            }
        }
        self.phase.send_replace(Phase::Exited(exit));
    }

    fn gone(&self) -> Result<(), ProviderError> {
        match self.exit() {
            Some(exit) => Err(ProviderError::Gone(exit.cause)),
            None => Ok(()),
        }
    }

    /// Ends the process that runs now, if one does: politely, and after `grace` with force.
    async fn end_process(&self, grace: Duration) -> Result<(), ProviderError> {
        let running = crate::lock(&self.state)
            .running
            .as_ref()
            .map(|running| (Arc::clone(&running.process), running.is_gone.clone()));
        let Some((process, mut is_gone)) = running else {
            return Ok(());
        };
        // An error of the channel means that the supervisor has ended, which it does after the process alone.
        if !grace.is_zero() && process.signal_group(Signal::TERM).is_ok() {
            // One that is stopped takes no other signal until it goes on.
            let _ = process.signal_group(Signal::CONT);
            if tokio::time::timeout(grace, is_gone.wait_for(|gone| *gone))
                .await
                .is_ok()
            {
                return Ok(());
            }
            tracing::info!(kernel = %self.id, ?grace, "the kernel did not end when it was asked to, and is killed");
        }
        process.kill();
        match tokio::time::timeout(DEATH_TIMEOUT, is_gone.wait_for(|gone| *gone)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(ProviderError::failed(
                format!("end process {}", process.identity().pid),
                format!(
                    "it is still there {DEATH_TIMEOUT:?} after SIGKILL; it hangs in the system, as for a dead disk"
                ),
            )),
        }
    }

    async fn restart_now(self: &Arc<Self>, grace: Duration, progress: Progress) -> Result<(), LaunchError> {
        let restarting = Restarting::begin(self)?;
        self.phase.send_replace(Phase::Restarting);
        self.end_process(grace).await?;
        let (saved, connection) = {
            let state = crate::lock(&self.state);
            (state.saved.clone(), state.connection.clone())
        };
        let connection = connection.unwrap_or_else(|| launch::fresh_connection(&saved.start));
        let ready = launch::start(
            &self.machine,
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

/// A restart that is under way. Dropping it gives the restart up.
struct Restarting<'a> {
    kernel: &'a Arc<LocalKernel>,
    exit: Exit,
    is_over: bool,
}

impl<'a> Restarting<'a> {
    fn begin(kernel: &'a Arc<LocalKernel>) -> Result<Self, ProviderError> {
        let mut state = crate::lock(&kernel.state);
        if state.is_ending {
            return Err(ProviderError::Gone(ExitCause::Requested));
        }
        state.is_restarting = true;
        let exit = Exit::new(ExitCause::Unknown(
            "it was ended for a restart that was given up".to_owned(),
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

impl Drop for Restarting<'_> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let mut state = crate::lock(&self.kernel.state);
        state.is_restarting = false;
        if state.running.is_some() {
            // The old process is there still. If it was asked to end, its supervisor will tell.
            self.kernel.phase.send_replace(Phase::Running);
        } else {
            self.kernel.exited(state, self.exit.clone());
        }
    }
}

/// Watches a process until it is gone, and keeps its output bounded until then.
///
/// It holds nothing that keeps the state directory locked: dropped provider and handles let go of it at once.
async fn supervise(
    kernel: Weak<LocalKernel>,
    events: Arc<Events>,
    files: KernelFiles,
    process: Arc<Process>,
    output_from: u64,
) {
    let ended = tokio::select! {
        ended = process.ended() => ended,
        never = keep_bounded(&events, &files) => match never {},
    };
    let Ok(ended) = ended else {
        // The async runtime is going down.
        return;
    };
    let ended = blocking("end what the kernel started", move || {
        process.bury();
        if let Some(kernel) = kernel.upgrade() {
            let output = output::tail(&files.output(), output_from, output::EVIDENCE).unwrap_or_default();
            let cause = kernel.machine.cause(ended);
            kernel.process_ended(Exit::new(cause).with_output(output));
        }
    });
    if let Err(error) = ended.await {
        tracing::error!(%error, "the end of a kernel was not dealt with");
    }
}

async fn keep_bounded(events: &Events, files: &KernelFiles) -> std::convert::Infallible {
    let path = files.output();
    let wrote = Arc::new(Notify::new());
    let mut trimmer = Trimmer::default();
    loop {
        // One event, then none until the pause is over: a flood of writes must not become a flood of events.
        let once = WatchFlags::MODIFY | WatchFlags::ONESHOT;
        let watch = events.watch(&path, None, once, &wrote);
        let trimmed = trimmer.trim(&path);
        if let Err(error) = watch.as_ref().map(drop).and(trimmed.as_ref().map(drop)) {
            tracing::warn!(%error, path = %path.display(), "the kernel's output is not kept bounded");
            return std::future::pending().await;
        }
        wrote.notified().await;
        drop(watch);
        tokio::time::sleep(TRIM_PAUSE).await;
    }
}

#[async_trait]
impl KernelHandle for Shared {
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
        self.0.gone()?;
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
        self.0.gone()?;
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
                self.0.gone()?;
                Err(ProviderError::failed("interrupt the kernel", error))
            }
        }
    }

    async fn restart(&self, grace: Duration, progress: Progress) -> Result<(), LaunchError> {
        let _operation = self.0.operation.lock().await;
        tokio::select! {
            biased;
            () = self.0.give_up_restart.notified() => Err(ProviderError::Gone(ExitCause::Requested).into()),
            restarted = self.0.restart_now(grace, progress) => restarted,
        }
    }

    async fn shutdown(&self, grace: Duration) -> Result<Exit, ProviderError> {
        self.0.give_up_restart.notify_waiters();
        let _operation = self.0.operation.lock().await;
        if let Some(exit) = self.0.exit() {
            // It ended before; now nobody wants its files any more.
            let (kernel, registry) = (Arc::clone(&self.0), self.0.registry.upgrade());
            blocking("remove a kernel's files", move || {
                kernel.forget();
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

/// What embedders hold.
pub(crate) struct Shared(pub(crate) Arc<LocalKernel>);
