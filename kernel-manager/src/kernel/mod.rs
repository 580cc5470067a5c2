//! A kernel: its process, its log and its clients.

mod attachment;
mod error;
mod events;
mod execute_options;
mod execution;
mod process;
mod room;
mod run;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use chrono::{DateTime, Utc};
use jupyter_protocol::{Channel, InstalledKernelspec, KernelId, WireMessage};
use kernel_log::{Cursor, Log, Seq};
use kernel_provider::{ExitCause, KernelHandle, KernelRecord};
use tokio::sync::{Mutex, Semaphore, watch};
use tokio::time::timeout;

use crate::session::{Comm, ExecutionState, Executions, Recorder, SendError, Sessions};
use room::ROOM;

pub use attachment::{Attachment, Client};
pub use error::RestartError;
pub use events::{KernelEvent, KernelEventKind};
pub use execute_options::ExecuteOptions;
pub use execution::{Execution, ExecutionError, FollowError};
pub use room::Room;
pub use run::{Loss, RunResult};

pub(crate) use events::Events;
pub(crate) use process::{Recovery, abandon_new};

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
    end_cause: OnceLock<ExitCause>,
    /// The number of the entry that announces the kernel's death, or of one shortly before it; 0 while the kernel is
    /// not dead.
    died_at: AtomicU64,
    /// Whether a supervisor watches the kernel. Changed only while `process_lock` is held.
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

/// The methods of the manager that its kernels call.
pub(crate) trait Keeper: Send + Sync {
    /// Watches the kernel's process and restarts it when it ends by itself.
    fn watch(&self, kernel: &Arc<Kernel>);

    /// Forgets a kernel that was shut down.
    fn remove(&self, id: KernelId);

    /// Publishes an event of a kernel.
    fn publish(&self, id: KernelId, kind: KernelEventKind);
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
            end_cause: OnceLock::new(),
            died_at: AtomicU64::new(0),
            watched: AtomicBool::new(true),
            room: Arc::new(Semaphore::new(ROOM)),
        }
    }

    /// Why the kernel was ended; `None` if it runs, or ended by itself.
    #[must_use]
    pub fn end_cause(&self) -> Option<&ExitCause> {
        self.end_cause.get()
    }

    /// The kernel's id.
    #[must_use]
    pub fn id(&self) -> KernelId {
        self.record.id
    }

    /// The name of the kernelspec, as in [`Manager::specs`](crate::Manager::specs).
    #[must_use]
    pub fn spec_name(&self) -> &str {
        &self.spec_name
    }

    /// The kernelspec, if the provider still has it.
    #[must_use]
    pub fn spec(&self) -> Option<&InstalledKernelspec> {
        self.spec.as_ref()
    }

    /// The kernel's owner.
    #[must_use]
    pub fn owner(&self) -> Option<&str> {
        self.record.owner.as_deref()
    }

    /// When the kernel was launched.
    #[must_use]
    pub fn launched(&self) -> DateTime<Utc> {
        self.record.launched
    }

    /// The kernel's state: the value now and each change.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<ExecutionState> {
        self.recorder.state()
    }

    /// When the kernel last sent or received a message, or had a life-cycle event such as its start.
    #[must_use]
    pub fn last_activity(&self) -> DateTime<Utc> {
        self.recorder.last_activity()
    }

    /// The number of attached sessions: the value now and each change.
    #[must_use]
    pub fn connections(&self) -> watch::Receiver<usize> {
        self.sessions.attached()
    }

    /// The kernel's log.
    #[must_use]
    pub fn log(&self) -> &Log {
        self.recorder.log()
    }

    /// The provider's handle of the kernel.
    #[must_use]
    pub fn handle(&self) -> &dyn KernelHandle {
        &*self.handle
    }

    /// The [groups](crate::StartRequest::groups) for which the kernel was started.
    #[must_use]
    pub fn groups(&self) -> Vec<String> {
        crate::groups::of_record(&self.record)
    }

    pub(crate) fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    pub(crate) fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Attaches a client. A session that was attached before resumes after its last acknowledged entry, and its earlier
    /// attachment is [superseded](Attachment::superseded).
    #[must_use]
    pub fn attach(self: &Arc<Self>, session: &str) -> Attachment {
        Attachment::of_session(self.clone(), session, false)
    }

    /// Attaches one of several connections of the same client, such as the connections of a proxy. Each connection
    /// receives all entries. The client's position is that of the newest connection over which it
    /// [sent](Client::send) a message; a reconnect resumes there.
    #[must_use]
    pub fn attach_shared(self: &Arc<Self>, session: &str) -> Attachment {
        Attachment::of_session(self.clone(), session, true)
    }

    /// Waits until the session's earlier connection is closed, at most for `limit`. A client that reconnects has closed
    /// that connection, but the client's last acknowledgement is known only once the connection has been read to its
    /// end.
    pub async fn session_left(&self, session: &str, limit: Duration) {
        let _ = timeout(limit, self.sessions.left(session)).await;
    }

    /// Attaches a client that tracks its own position, after entry `after`. Its session is forgotten when it detaches.
    #[must_use]
    pub fn attach_at(self: &Arc<Self>, session: &str, after: Seq) -> Attachment {
        Attachment::at(self.clone(), session, after)
    }

    /// The open comms with their current state. Comms come after those that their state refers to. The first call after
    /// a start of this process reads the log.
    ///
    /// # Errors
    /// [`ReadError::Store`](kernel_log::ReadError::Store) if the log cannot be read.
    pub async fn comms(&self) -> Result<Vec<Comm>, kernel_log::ReadError> {
        self.recorder.comms(Seq(u64::MAX)).await
    }

    /// The executions in the kernel's log.
    #[must_use]
    pub fn executions(&self) -> Executions {
        Executions::of(self.log().clone())
    }

    /// Runs code to its end and returns its status and outputs. The code cannot request input.
    ///
    /// If the kernel dies while the code runs, the result has the status `Died`; this is not an error. Entries that are
    /// missing in the log are listed in the result's [losses](RunResult::losses).
    ///
    /// # Errors
    /// [`ExecutionError::Send`] if the kernel is dead already or the request cannot be sent, [`ExecutionError::Read`]
    /// if the kernel's log cannot be read.
    pub async fn run(self: &Arc<Self>, code: impl Into<ExecuteOptions>) -> Result<RunResult, ExecutionError> {
        let options = code.into().with_stdin(false);
        RunResult::of(Execution::start(self, options).await?).await
    }

    /// Starts code and follows it through the log. Takes code, an `ExecuteRequest`, or [`ExecuteOptions`].
    ///
    /// # Errors
    /// [`SendError`] if the kernel is dead or the request cannot be sent.
    pub async fn execute(self: &Arc<Self>, code: impl Into<ExecuteOptions>) -> Result<Execution, SendError> {
        Execution::start(self, code.into()).await
    }

    /// Follows an execution that any client has requested, from the entry after the cursor, or from its beginning. The
    /// execution may have ended already. The stream ends with the execution, or with the kernel.
    ///
    /// # Errors
    /// [`FollowError::NoSuchExecution`] if the log does not have the execution, [`FollowError::OtherLog`] for a cursor
    /// of another log, [`FollowError::Store`] if the log's index cannot be read.
    pub async fn follow(self: &Arc<Self>, msg_id: &str, after: Option<Cursor>) -> Result<Execution, FollowError> {
        let record = self.executions().get(msg_id).await?;
        let record = record.ok_or_else(|| FollowError::NoSuchExecution(msg_id.to_owned()))?;
        Execution::follow(self, &record, after)
    }

    /// Sends a message for a session, attached or not. The reply goes to that session. A repeated message, with the
    /// same `msg_id` and the same content or code, is dropped. Waits while the kernel restarts or its connection is
    /// lost.
    ///
    /// # Errors
    /// [`SendError`] if the kernel is dead or the message cannot be sent.
    pub async fn send(&self, session: &Arc<str>, channel: Channel, message: WireMessage) -> Result<(), SendError> {
        match self.recorder.send(session, channel, message).await {
            Err(SendError::Dead) if self.ending.load(Ordering::Acquire) => Err(SendError::ShutDown),
            sent => sent,
        }
    }

    fn publish(&self, kind: KernelEventKind) {
        if let Some(keeper) = self.keeper.upgrade() {
            keeper.publish(self.id(), kind);
        }
    }
}
