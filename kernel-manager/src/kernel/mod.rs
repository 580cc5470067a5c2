//! A kernel: its process, its log and its clients.

mod attachment;
mod error;
mod events;
mod execute_options;
mod execution;
mod run;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use jupyter_protocol::content::{InterruptRequest, ShutdownRequest};
use jupyter_protocol::zmq::SocketError;
use jupyter_protocol::{Channel, ConnectionInfo, InstalledKernelspec, KernelId, WireMessage};
use kernel_log::{Cursor, Lifecycle, Log, Seq};
use kernel_provider::{
    Exit, ExitCause, Interrupt, KernelHandle, KernelRecord, LaunchError, Phase, Progress, ProviderError, own_metadata,
};
use tokio::sync::{Mutex, MutexGuard, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;
use tracing::{info, warn};

use crate::session::{ExecutionState, Executions, Recorder, RequestError, SendError, Sessions};

pub use attachment::{Attachment, Client};
pub use error::RestartError;
pub use events::{KernelEvent, KernelEventKind};
pub use execute_options::ExecuteOptions;
pub use execution::{Execution, ExecutionError, FollowError};
pub use run::RunResult;

pub(crate) use events::Events;

/// Timeout for connecting to a running kernel.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// How long a restarted kernel has to answer.
const RESTART_DEADLINE: Duration = Duration::from_secs(60);

/// A kernel: its process, its log and its clients.
pub struct Kernel {
    record: KernelRecord,
    spec_name: String,
    spec: Option<InstalledKernelspec>,
    handle: Arc<dyn KernelHandle>,
    recorder: Recorder,
    sessions: Sessions,
    keeper: Weak<dyn Keeper>,
    grace: Duration,
    /// Serializes starts and ends of the process: see [`lock_process`](Self::lock_process).
    process_lock: Mutex<()>,
    /// How many tasks wait for `process_lock`. A connection attempt that holds it yields to them.
    process_lock_waiters: watch::Sender<usize>,
    /// Whether a shutdown is under way, so that the kernel's end is expected.
    ending: AtomicBool,
    /// The entry that announces its death; 0 while it lives.
    died_at: AtomicU64,
    /// Whether a supervisor watches it. Changed only while `process_lock` is held.
    watched: AtomicBool,
    /// Budget of bytes for messages that wait to be sent.
    room: Arc<Semaphore>,
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel")
            .field("id", &self.id())
            .field("spec_name", &self.spec_name)
            .finish_non_exhaustive()
    }
}

/// What a kernel needs of the manager that keeps it.
pub(crate) trait Keeper: Send + Sync {
    /// Watches the kernel's process and restarts it when it ends by itself.
    fn watch(&self, kernel: &Arc<Kernel>);

    /// Forgets a kernel that was shut down.
    fn remove(&self, id: KernelId);

    /// Tells subscribers what happened to a kernel.
    fn tell(&self, id: KernelId, kind: KernelEventKind);
}

/// A reservation from [`Kernel::room`] for one message; released when dropped.
pub struct Room {
    permit: Option<OwnedSemaphorePermit>,
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Room").finish_non_exhaustive()
    }
}

impl Room {
    /// Adds the reservation for another piece of the message.
    ///
    /// # Panics
    /// If the other reservation is for another kernel.
    pub fn merge(&mut self, mut other: Self) {
        match (&mut self.permit, other.permit.take()) {
            (Some(permit), Some(other)) => permit.merge(other),
            (permit, other) => *permit = permit.take().or(other),
        }
    }
}

/// Tolerated clock difference to the cluster that reports a kernel's launch time.
const CLOCK_TOLERANCE: TimeDelta = TimeDelta::seconds(5);

/// The most bytes of messages that may wait for a kernel that does not read them.
const ROOM: usize = 256 << 20;

/// How a kernel whose process or pod ended by itself continues.
pub(crate) enum Recovery {
    /// Its supervisor restarted it.
    Restarted,
    /// It was restarted on request.
    NotNeeded,
    /// It is dead or being shut down, so its supervisor ends.
    Over,
}

/// Ends a kernel that failed to start.
async fn abandon(handle: &dyn KernelHandle) {
    if let Err(error) = handle.shutdown(Duration::ZERO).await {
        warn!(%error, "a kernel that failed to start cannot be ended");
    }
}

/// Ends a kernel whose start failed, unless it was launched before `began`: the provider then found a running kernel
/// with the same id.
pub(crate) async fn abandon_new(handle: &dyn KernelHandle, began: DateTime<Utc>) {
    if handle.record().launched < began - CLOCK_TOLERANCE {
        warn!("left a running kernel with the same id alone");
    } else {
        abandon(handle).await;
    }
}

/// The provider cannot say where the kernel's sockets are.
fn unreachable(error: &ProviderError) -> SendError {
    SocketError::Broken(error.to_string()).into()
}

impl Kernel {
    pub(crate) fn new(
        keeper: Weak<dyn Keeper>,
        spec_name: String,
        spec: Option<InstalledKernelspec>,
        handle: Arc<dyn KernelHandle>,
        recorder: Recorder,
        sessions: Sessions,
        grace: Duration,
    ) -> Self {
        Self {
            record: handle.record(),
            spec_name,
            spec,
            handle,
            recorder,
            sessions,
            keeper,
            grace,
            process_lock: Mutex::new(()),
            process_lock_waiters: watch::Sender::new(0),
            ending: AtomicBool::new(false),
            died_at: AtomicU64::new(0),
            watched: AtomicBool::new(true),
            room: Arc::new(Semaphore::new(ROOM)),
        }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> KernelId {
        self.record.id
    }

    /// The name of its kernelspec, as [`Manager::specs`](crate::Manager::specs) has it.
    #[must_use]
    pub fn spec_name(&self) -> &str {
        &self.spec_name
    }

    /// Its kernelspec, if the provider still has it.
    #[must_use]
    pub fn spec(&self) -> Option<&InstalledKernelspec> {
        self.spec.as_ref()
    }

    /// Its owner.
    #[must_use]
    pub fn owner(&self) -> Option<&str> {
        self.record.owner.as_deref()
    }

    /// When it was launched.
    #[must_use]
    pub fn launched(&self) -> DateTime<Utc> {
        self.record.launched
    }

    /// Its state: the value now and each change.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<ExecutionState> {
        self.recorder.state()
    }

    /// When it last sent or received a message.
    #[must_use]
    pub fn last_activity(&self) -> DateTime<Utc> {
        self.recorder.last_activity()
    }

    /// The number of attached clients: the value now and each change.
    #[must_use]
    pub fn connections(&self) -> watch::Receiver<usize> {
        self.sessions.attached()
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> &Log {
        self.recorder.log()
    }

    /// Its record at the provider.
    #[must_use]
    pub fn handle(&self) -> &dyn KernelHandle {
        &*self.handle
    }

    pub(crate) fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    pub(crate) fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Attaches a client. A session that was attached before resumes after what it acknowledged last, and its earlier
    /// attachment is [superseded](Attachment::superseded).
    #[must_use]
    pub fn attach(self: &Arc<Self>, session: &str) -> Attachment {
        Attachment::of_session(self.clone(), session, false)
    }

    /// Attaches one of several connections to the same client, as servers in between have them. Each receives
    /// everything. The client's position is that of the newest one over which it [sent](Client::send) a
    /// message; a reconnect resumes there.
    #[must_use]
    pub fn attach_shared(self: &Arc<Self>, session: &str) -> Attachment {
        Attachment::of_session(self.clone(), session, true)
    }

    /// Waits until the session's earlier connection is closed, or for this long. A client that reconnects because of
    /// the last messages has closed the old connection, and only reading that to its end shows what the client
    /// received.
    pub async fn session_left(&self, session: &str, patience: Duration) {
        let _ = timeout(patience, self.sessions.left(session)).await;
    }

    /// Attaches a client that tracks its own position, after entry `after`. Its session is forgotten when it detaches.
    #[must_use]
    pub fn attach_at(self: &Arc<Self>, session: &str, after: Seq) -> Attachment {
        Attachment::at(self.clone(), session, after)
    }

    /// Its executions.
    #[must_use]
    pub fn executions(&self) -> Executions {
        Executions::of(self.log().clone())
    }

    /// Runs code to its end and returns its status and outputs. It cannot ask for input.
    ///
    /// A kernel that dies meanwhile is a result with the status `Died`, not an error.
    ///
    /// # Errors
    /// [`ExecutionError::Send`] if the kernel is dead already, [`ExecutionError::Read`] if its log cannot be read.
    pub async fn run(self: &Arc<Self>, code: impl Into<ExecuteOptions>) -> Result<RunResult, ExecutionError> {
        let options = code.into().with_stdin(false);
        RunResult::of(Execution::start(self, options).await?).await
    }

    /// Starts code and follows it through the log. Takes code, an `ExecuteRequest`, or [`ExecuteOptions`].
    ///
    /// # Errors
    /// [`SendError`] if the kernel is dead.
    pub async fn execute(self: &Arc<Self>, code: impl Into<ExecuteOptions>) -> Result<Execution, SendError> {
        Execution::start(self, code.into()).await
    }

    /// Follows an execution that was requested before, by any client: after the cursor, or from its beginning. It may
    /// have ended. The stream ends with the execution, and with the kernel.
    ///
    /// # Errors
    /// [`FollowError::NoSuchExecution`] if the log does not have it, [`FollowError::OtherLog`] for a cursor of another
    /// log, [`FollowError::Store`] if the log's index cannot be read.
    pub async fn follow(self: &Arc<Self>, msg_id: &str, after: Option<Cursor>) -> Result<Execution, FollowError> {
        let record = self.executions().get(msg_id).await?;
        let record = record.ok_or_else(|| FollowError::NoSuchExecution(msg_id.to_owned()))?;
        Execution::follow(self, &record, after)
    }

    /// Reserves room for a message of this many bytes among those that wait for the kernel: 256 MiB in total, so that a
    /// kernel that reads nothing cannot fill the memory. Keep the reservation until the message is sent.
    pub async fn room(&self, bytes: usize) -> Room {
        let bytes = u32::try_from(bytes.min(ROOM)).unwrap_or(u32::MAX);
        Room {
            // The semaphore is never closed.
            permit: Arc::clone(&self.room).acquire_many_owned(bytes).await.ok(),
        }
    }

    /// Sends a message for a session, attached or not. The reply goes to that session. A message that the kernel was
    /// sent before, by its `msg_id`, is dropped. Waits while the kernel restarts.
    ///
    /// # Errors
    /// [`SendError`] if the kernel is dead or the message cannot be sent.
    pub async fn send(&self, session: &Arc<str>, channel: Channel, message: WireMessage) -> Result<(), SendError> {
        match self.recorder.send(session, channel, message).await {
            Err(SendError::Dead) if self.ending.load(Ordering::Acquire) => Err(SendError::ShutDown),
            sent => sent,
        }
    }

    /// Connects to a kernel that was just launched and waits for its first answer.
    pub(crate) async fn connect(&self, deadline: Duration) -> Result<(), RequestError> {
        let info = self.connection().await?;
        // Also runs if this future is dropped midway; the sockets stay connected.
        let _ends_setup = self.recorder.ends_setup();
        self.recorder.connect(&info, deadline).await.map_err(SendError::from)?;
        // Fails at once if the kernel dies first, not at the deadline.
        tokio::select! {
            ready = self.recorder.ready(deadline, self.waits_for_subscriber()) => ready,
            exit = self.handle.wait() => Err(unreachable(&ProviderError::Gone(exit.cause)).into()),
        }
    }

    /// Whether ipykernel is set up to wait for the recorder instead of dropping output.
    fn waits_for_subscriber(&self) -> bool {
        let says = self
            .spec
            .as_ref()
            .and_then(|spec| own_metadata(&spec.spec, "wait_for_subscriber"));
        says != Some(&serde_json::Value::Bool(false))
    }

    /// Locks `process_lock`; a connection attempt that holds it yields.
    async fn lock_process(&self) -> MutexGuard<'_, ()> {
        /// Counts a waiter until dropped.
        struct Waiter<'a>(&'a watch::Sender<usize>);

        impl Drop for Waiter<'_> {
            fn drop(&mut self) {
                self.0.send_modify(|waiting| *waiting -= 1);
            }
        }

        self.process_lock_waiters.send_modify(|waiting| *waiting += 1);
        let _waiter = Waiter(&self.process_lock_waiters);
        self.process_lock.lock().await
    }

    /// Connects to a kernel that was running before, unless it is already connected or was restarted or ended. Returns
    /// whether nothing is left to do; an attempt that yielded to a restart or an end must be repeated.
    pub(crate) async fn reconnect_once(&self) -> Result<bool, SendError> {
        let _locked = self.process_lock.lock().await;
        if self.ending.load(Ordering::Acquire) || !self.recorder.is_disconnected() {
            return Ok(true);
        }
        let mut waiting = self.process_lock_waiters.subscribe();
        tokio::select! {
            connected = self.reconnect() => connected.map(|()| true),
            _ = waiting.wait_for(|waiting| *waiting > 0) => Ok(false),
        }
    }

    /// Connects to a kernel that was running before. It may be busy for long, so this does not wait for an answer.
    async fn reconnect(&self) -> Result<(), SendError> {
        let recorded = self.last_entry_time().await;
        let info = self.connection().await?;
        self.recorder.reconnect(&info, CONNECT_DEADLINE, recorded).await?;
        Ok(())
    }

    async fn connection(&self) -> Result<ConnectionInfo, SendError> {
        self.handle.connection().await.map_err(|error| unreachable(&error))
    }

    async fn last_entry_time(&self) -> Option<DateTime<Utc>> {
        let before_last = Seq(self.log().head().0.checked_sub(1)?);
        let block = self.log().reader(before_last).next().await.ok()??;
        block.entries().last().map(|entry| entry.time())
    }

    /// Interrupts the running code, by signal or by message as the kernelspec says.
    ///
    /// # Errors
    /// [`RestartError::Provider`] if the kernel is gone.
    pub async fn interrupt(&self) -> Result<(), RestartError> {
        if self.handle.interrupt().await? == Interrupt::ByMessage {
            let asked = self
                .recorder
                .request(Channel::Control, InterruptRequest::default(), self.grace)
                .await;
            if let Err(error) = asked {
                // The kernel has the request and may answer late.
                warn!(kernel_id = %self.id(), %error, "the interrupt was not confirmed");
            }
        }
        Ok(())
    }

    /// Restarts the process or pod under the same id. Clients stay attached, and their messages wait. Returns once the
    /// kernel has answered.
    ///
    /// # Errors
    /// [`RestartError::Log`] if its log has no room, as on a full disk; the kernel keeps running. After any other error
    /// the kernel is dead and can be restarted again.
    pub async fn restart(self: &Arc<Self>) -> Result<(), RestartError> {
        let _locked = self.lock_process().await;
        if self.ending.load(Ordering::Acquire) {
            return Err(RestartError::ShutDown);
        }
        // The new process could not start without room for its files.
        self.log().check_room().await.map_err(RestartError::Log)?;
        info!(kernel_id = %self.id(), "restarting");
        self.recorder.lifecycle(&Lifecycle::Restarting);
        self.recorder.set_state(ExecutionState::Restarting);
        self.handle.prepare_restart().await;
        self.ask_to_end(true).await;
        if let Err(error) = self.relaunch().await {
            self.die(self.exit_after(&error)).await;
            return Err(error);
        }
        if let Some(keeper) = self.keeper.upgrade()
            && !self.watched.swap(true, Ordering::AcqRel)
        {
            keeper.watch(self);
        }
        self.tell(KernelEventKind::Restarted);
        Ok(())
    }

    /// Starts a new process in place of one that ended. The caller holds `process_lock`.
    async fn relaunch(&self) -> Result<(), RestartError> {
        self.drain().await;
        self.recorder.revive();
        self.recorder.disconnect().await;
        let requested_before = self.recorder.next_entry();
        let started = async {
            self.handle.restart(self.grace, Progress::ignored()).await?;
            self.connect(RESTART_DEADLINE)
                .await
                .map_err(|error| RestartError::NoAnswer(error.to_string()))
        };
        started.await?;
        self.died_at.store(0, Ordering::Release);
        self.recorder.restarted(requested_before);
        Ok(())
    }

    /// Restarts a kernel whose process ended by itself, at most `attempts_left` more times. Does nothing if it was
    /// restarted or shut down meanwhile.
    pub(crate) async fn recover(&self, exit: Exit, attempts_left: u32) -> Recovery {
        let _locked = self.lock_process().await;
        if !matches!(*self.handle.phase().borrow(), Phase::Exited(_)) {
            return Recovery::NotNeeded;
        }
        let is_over = self.ending.load(Ordering::Acquire) || self.died_at().is_some();
        // Another gateway with the same kernels may have deleted it.
        let attempts_left = if exit.cause == ExitCause::Deleted {
            0
        } else {
            attempts_left
        };
        if !is_over && self.start_anew(exit, attempts_left).await {
            return Recovery::Restarted;
        }
        self.watched.store(false, Ordering::Release);
        Recovery::Over
    }

    /// Whether an attempt succeeded; otherwise the kernel is dead.
    async fn start_anew(&self, exit: Exit, attempts_left: u32) -> bool {
        let mut exit = exit;
        for left in (0..attempts_left).rev() {
            warn!(kernel_id = %self.id(), cause = %exit.cause, left, "the kernel ended by itself and is being restarted");
            // Before the event, so that later messages wait for the new process.
            self.drain().await;
            self.recorder.disconnect().await;
            self.recorder.set_state(ExecutionState::Restarting);
            self.recorder.lifecycle(&Lifecycle::RestartingByItself {
                reason: exit.cause.to_string(),
                output: exit.output.clone(),
            });
            self.tell(KernelEventKind::RestartingByItself(exit.cause.clone()));
            match self.relaunch().await {
                Ok(()) => {
                    self.tell(KernelEventKind::Restarted);
                    return true;
                }
                Err(error) => exit = self.exit_after(&error),
            }
        }
        self.die(exit).await;
        false
    }

    /// The exit to report for a kernel that could not be restarted: that of its process, if it ended.
    fn exit_after(&self, error: &RestartError) -> Exit {
        match (&*self.handle.phase().borrow(), error) {
            (_, RestartError::Launch(LaunchError::Died { exit })) | (Phase::Exited(exit), _) => exit.clone(),
            _ => Exit::new(ExitCause::Unknown(error.to_string())),
        }
    }

    /// Drains the output of a process that has ended.
    async fn drain(&self) {
        if matches!(*self.handle.phase().borrow(), Phase::Exited(_)) {
            self.recorder.drain().await;
        }
    }

    async fn die(&self, exit: Exit) {
        warn!(kernel_id = %self.id(), cause = %exit.cause, "the kernel is dead");
        if !matches!(*self.handle.phase().borrow(), Phase::Exited(_)) {
            abandon(&*self.handle).await;
        }
        self.drain().await;
        self.recorder.finish().await;
        let dead = Lifecycle::Dead {
            reason: exit.cause.to_string(),
            output: exit.output.clone(),
        };
        self.recorder.end_with_kernel(&dead);
        // Set before the event is appended, to an entry not after it: a client may attach again as soon as it sees the
        // event.
        self.died_at.store(self.recorder.next_entry().0, Ordering::Release);
        self.recorder.lifecycle(&dead);
        self.tell(KernelEventKind::Dead(exit.cause));
    }

    /// The entry that announces the kernel's death, while it is dead. Every client that attaches receives it, because
    /// an earlier acknowledgement may be a proxy's.
    pub(crate) fn died_at(&self) -> Option<Seq> {
        match self.died_at.load(Ordering::Acquire) {
            0 => None,
            seq => Some(Seq(seq)),
        }
    }

    /// Asks the kernel by message to shut down and waits a while.
    async fn ask_to_end(&self, restart: bool) {
        // A kernel that was never connected cannot be asked.
        if *self.state().borrow() == ExecutionState::Dead || self.recorder.is_disconnected() {
            return;
        }
        let asked = async {
            // A busy kernel that handles control only between cells hears the request sooner after an interrupt.
            let _ = self.handle.interrupt().await;
            let _ = self
                .recorder
                .request(Channel::Control, ShutdownRequest::new(restart), self.grace)
                .await;
            self.handle.wait().await
        };
        if timeout(self.grace, asked).await.is_err() {
            info!(kernel_id = %self.id(), "the kernel did not end after a shutdown request");
        }
    }

    /// Shuts the kernel down: by message, then through its provider, gracefully and then by force. Its log stays.
    /// Shutting down a dead kernel succeeds.
    ///
    /// # Errors
    /// [`ProviderError`] if the kernel cannot be ended.
    pub async fn shutdown(&self) -> Result<(), ProviderError> {
        self.end(ExitCause::Requested).await
    }

    /// As [`shutdown`](Self::shutdown); `cause` is the reported reason.
    pub(crate) async fn end(&self, cause: ExitCause) -> Result<(), ProviderError> {
        let _locked = self.lock_process().await;
        if self.ending.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.ask_to_end(false).await;
        if let Err(error) = self.handle.shutdown(self.grace).await {
            self.ending.store(false, Ordering::Release);
            return Err(error);
        }
        self.drain().await;
        self.recorder.finish().await;
        self.recorder.lifecycle(&Lifecycle::Dead {
            reason: cause.to_string(),
            output: String::new(),
        });
        self.log().close();
        if let Some(keeper) = self.keeper.upgrade() {
            keeper.remove(self.id());
        }
        info!(kernel_id = %self.id(), %cause, "kernel ended");
        self.tell(match cause {
            ExitCause::Culled(_) => KernelEventKind::Culled,
            _ => KernelEventKind::ShutDown,
        });
        Ok(())
    }

    /// Disconnects from the kernel and stores what was recorded, after any restart or shutdown under way: half a
    /// restart would leave no kernel.
    pub(crate) async fn detach(&self) {
        let _locked = self.lock_process().await;
        self.recorder.disconnect().await;
        self.log().flushed().await;
        self.log().close();
    }

    fn tell(&self, kind: KernelEventKind) {
        if let Some(keeper) = self.keeper.upgrade() {
            keeper.tell(self.id(), kind);
        }
    }
}
