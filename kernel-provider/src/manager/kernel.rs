use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use jupyter_protocol::content::{ExecuteRequest, InterruptRequest, ShutdownRequest};
use jupyter_protocol::zmq::SocketError;
use jupyter_protocol::{Channel, ConnectionInfo, InstalledKernelspec, WireMessage};
use tokio::sync::{Mutex, MutexGuard, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;
use tracing::{info, warn};

use super::events::KernelEventKind;
use super::{RestartError, Shared};
use crate::KernelId;
use crate::log::{Log, Seq};
use crate::provider::{
    Exit, ExitCause, Interrupt, KernelHandle, KernelRecord, LaunchError, Phase, Progress, ProviderError, own_metadata,
};
use crate::session::{
    Attachment, Execution, ExecutionState, Executions, Lifecycle, Recorder, RequestError, SendError, Sessions,
};

/// The longest that connecting to a running kernel may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// The longest that a restarted kernel may take to answer.
const RESTART_DEADLINE: Duration = Duration::from_secs(60);

/// A kernel: its life, its log, its clients.
pub struct Kernel {
    record: KernelRecord,
    spec_name: String,
    spec: Option<InstalledKernelspec>,
    handle: Arc<dyn KernelHandle>,
    recorder: Recorder,
    sessions: Sessions,
    manager: Weak<Shared>,
    grace: Duration,
    /// Held by whoever starts or ends the process, one at a time: see [`life`](Self::life).
    life: Mutex<()>,
    /// How many wait for `life`. A connection attempt that holds it gives way to them.
    waiting_for_life: watch::Sender<usize>,
    /// Whether it is to end: its end is then no accident.
    ending: AtomicBool,
    /// The entry that tells of its death; 0 while it lives.
    died_at: AtomicU64,
    /// Whether a supervisor watches it. Changed by who holds `life`.
    watched: AtomicBool,
    /// The bytes that messages may have that wait to be sent to it.
    room: Arc<Semaphore>,
}

/// [Room](Kernel::room) for a message that waits to be sent; given back when dropped.
pub struct Room {
    permit: Option<OwnedSemaphorePermit>,
}

impl Room {
    /// Adds the room of another piece of the message.
    ///
    /// # Panics
    /// If the other is of another kernel.
    pub fn merge(&mut self, mut other: Self) {
        match (&mut self.permit, other.permit.take()) {
            (Some(permit), Some(other)) => permit.merge(other),
            (permit, other) => *permit = permit.take().or(other),
        }
    }
}

/// How far the clock of a cluster that says when a kernel was launched may be behind this one.
const CLOCK_TOLERANCE: TimeDelta = TimeDelta::seconds(5);

/// How many bytes messages may have that wait for a kernel that does not take them.
const ROOM: usize = 256 << 20;

/// What became of a kernel whose process or pod had ended by itself.
pub(super) enum Recovery {
    /// Its supervisor has started it anew.
    Restarted,
    /// Somebody else has.
    NotNeeded,
    /// It is dead, or somebody ends it: its supervisor goes.
    Over,
}

/// Ends a kernel that cannot be used.
async fn abandon(handle: &dyn KernelHandle) {
    if let Err(error) = handle.shutdown(Duration::ZERO).await {
        warn!(%error, "a kernel that did not start well cannot be ended");
    }
}

/// Ends a kernel whose start, which began at this time, failed. One that ran before, which its provider has found under
/// the same id, is left alone.
pub(super) async fn abandon_new(handle: &dyn KernelHandle, began: DateTime<Utc>) {
    if handle.record().launched < began - CLOCK_TOLERANCE {
        warn!("a kernel of this id ran already and is left alone");
    } else {
        abandon(handle).await;
    }
}

/// The provider cannot say where the kernel's sockets are.
fn unreachable(error: &ProviderError) -> SendError {
    SocketError::Broken(error.to_string()).into()
}

impl Kernel {
    pub(super) fn new(
        manager: &Arc<Shared>,
        spec_name: String,
        spec: Option<InstalledKernelspec>,
        handle: Arc<dyn KernelHandle>,
        recorder: Recorder,
        sessions: Sessions,
    ) -> Self {
        Self {
            record: handle.record(),
            spec_name,
            spec,
            handle,
            recorder,
            sessions,
            manager: Arc::downgrade(manager),
            grace: manager.options.shutdown_grace,
            life: Mutex::new(()),
            waiting_for_life: watch::Sender::new(0),
            ending: AtomicBool::new(false),
            died_at: AtomicU64::new(0),
            watched: AtomicBool::new(true),
            room: Arc::new(Semaphore::new(ROOM)),
        }
    }

    /// One without a manager.
    #[cfg(feature = "testing")]
    pub(crate) fn unmanaged(handle: Arc<dyn KernelHandle>, recorder: Recorder, sessions: Sessions) -> Self {
        Self {
            record: handle.record(),
            spec_name: "simulated".to_owned(),
            spec: None,
            handle,
            recorder,
            sessions,
            manager: Weak::new(),
            grace: Duration::ZERO,
            life: Mutex::new(()),
            waiting_for_life: watch::Sender::new(0),
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

    /// The name of its kernelspec among those of all providers.
    #[must_use]
    pub fn spec_name(&self) -> &str {
        &self.spec_name
    }

    /// Its kernelspec, where the provider still has it.
    #[must_use]
    pub fn spec(&self) -> Option<&InstalledKernelspec> {
        self.spec.as_ref()
    }

    /// Whose it is.
    #[must_use]
    pub fn owner(&self) -> Option<&str> {
        self.record.owner.as_deref()
    }

    /// When it was launched.
    #[must_use]
    pub fn launched(&self) -> DateTime<Utc> {
        self.record.launched
    }

    /// What it does: the state now, then each change.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<ExecutionState> {
        self.recorder.state()
    }

    /// When it last said or was asked anything.
    #[must_use]
    pub fn last_activity(&self) -> DateTime<Utc> {
        self.recorder.last_activity()
    }

    /// How many clients are attached: the number now, then each change.
    #[must_use]
    pub fn connections(&self) -> watch::Receiver<usize> {
        self.sessions.attached()
    }

    /// All that it said and was asked.
    #[must_use]
    pub fn log(&self) -> &Log {
        self.recorder.log()
    }

    /// What the provider knows of it.
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

    /// Attaches a client. A session that was attached before reads on after what it acknowledged last, and its earlier
    /// attachment, if it is still there, is told that it is [superseded](Attachment::superseded).
    #[must_use]
    pub fn attach(self: &Arc<Self>, session: &str) -> Attachment {
        Attachment::of_session(self.clone(), session, false)
    }

    /// Attaches one of several connections that lead, or led, to the same client, as servers that stand between have them:
    /// each reads everything. Where the client stands is known from the newest one over which it has
    /// [sent](crate::session::Client::send) something; a session that comes back reads on from there.
    #[must_use]
    pub fn attach_shared(self: &Arc<Self>, session: &str) -> Attachment {
        Attachment::of_session(self.clone(), session, true)
    }

    /// Waits until the connection over which a session was attached is gone, or for so long. A client that connects anew
    /// because of what it was just sent has closed the old one, and only what is read from that to its end tells what the
    /// client has.
    pub async fn session_left(&self, session: &str, patience: Duration) {
        let _ = timeout(patience, self.sessions.left(session)).await;
    }

    /// Attaches a client that remembers its place in the log: it reads the entries after `after`. Nothing is remembered
    /// of its session once it is gone.
    #[must_use]
    pub fn attach_at(self: &Arc<Self>, session: &str, after: Seq) -> Attachment {
        Attachment::at(self.clone(), session, after)
    }

    /// What it was asked to run, and what came of it.
    #[must_use]
    pub fn executions(&self) -> Executions {
        Executions::of(self.log().clone())
    }

    /// Runs code and follows it through the log.
    ///
    /// # Errors
    /// [`SendError`] where the kernel is dead.
    pub async fn execute(self: &Arc<Self>, request: ExecuteRequest) -> Result<Execution, SendError> {
        Execution::start(self, request).await
    }

    /// Waits until there is room for a message of so many bytes among those that wait to be sent to the kernel: 256 MiB
    /// in all, so that a kernel that takes nothing does not fill the memory. What is returned is kept until the message
    /// is sent.
    pub async fn room(&self, bytes: usize) -> Room {
        let bytes = u32::try_from(bytes.min(ROOM)).unwrap_or(u32::MAX);
        Room {
            // It is never closed.
            permit: Arc::clone(&self.room).acquire_many_owned(bytes).await.ok(),
        }
    }

    /// Sends a message on behalf of a session, attached or not: its reply is for that session. A message whose `msg_id`
    /// the kernel was sent before is dropped. Waits while the kernel is being restarted.
    ///
    /// # Errors
    /// [`SendError`] where the kernel is dead, or the message cannot be sent.
    pub async fn send(&self, session: &Arc<str>, channel: Channel, message: WireMessage) -> Result<(), SendError> {
        self.recorder.send(session, channel, message).await
    }

    /// Connects to a kernel that was just launched, and waits for its first answer.
    pub(super) async fn connect(&self, deadline: Duration) -> Result<(), RequestError> {
        let info = self.connection().await?;
        // Also where this is dropped in the middle, and the sockets stay.
        let _ends_setup = self.recorder.ends_setup();
        self.recorder.connect(&info, deadline).await.map_err(SendError::from)?;
        // A kernel that dies before it answers is told at once, not after the deadline.
        tokio::select! {
            ready = self.recorder.ready(deadline, self.waits_for_subscriber()) => ready,
            exit = self.handle.wait() => Err(unreachable(&ProviderError::Gone(exit.cause)).into()),
        }
    }

    /// Whether ipykernel is made to wait for the recorder instead of dropping output.
    fn waits_for_subscriber(&self) -> bool {
        let says = self
            .spec
            .as_ref()
            .and_then(|spec| own_metadata(&spec.spec, "wait_for_subscriber"));
        says != Some(&serde_json::Value::Bool(false))
    }

    /// Takes `life`, from a connection attempt too.
    async fn life(&self) -> MutexGuard<'_, ()> {
        /// Counted as long as this is there, however the wait ends.
        struct Waiting<'a>(&'a watch::Sender<usize>);

        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.send_modify(|waiting| *waiting -= 1);
            }
        }

        self.waiting_for_life.send_modify(|waiting| *waiting += 1);
        let _waiting = Waiting(&self.waiting_for_life);
        self.life.lock().await
    }

    /// Connects to a kernel that ran before, unless that has been done, or it was restarted or ended meanwhile. Returns
    /// whether nothing is left to do; an attempt that gives way to a restart or an end is to be repeated.
    pub(super) async fn reconnect_once(&self) -> Result<bool, SendError> {
        let _life = self.life.lock().await;
        if self.ending.load(Ordering::Acquire) || !self.recorder.is_disconnected() {
            return Ok(true);
        }
        let mut waiting = self.waiting_for_life.subscribe();
        tokio::select! {
            connected = self.reconnect() => connected.map(|()| true),
            _ = waiting.wait_for(|waiting| *waiting > 0) => Ok(false),
        }
    }

    /// Connects to a kernel that ran before. It may be busy for long, so its answer is not waited for.
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

    /// Interrupts what it runs: by signal or by message, as its kernelspec says.
    ///
    /// # Errors
    /// [`RestartError::Provider`] where it is gone.
    pub async fn interrupt(&self) -> Result<(), RestartError> {
        if self.handle.interrupt().await? == Interrupt::ByMessage {
            let asked = self
                .recorder
                .request(Channel::Control, InterruptRequest::default(), self.grace)
                .await;
            if let Err(error) = asked {
                // The kernel has the request, and may answer late.
                warn!(kernel_id = %self.id(), %error, "the interrupt was not confirmed");
            }
        }
        Ok(())
    }

    /// Ends its process or pod and starts a new one under the same id; clients stay attached, and what they send
    /// meanwhile waits. Returns once it has answered.
    ///
    /// # Errors
    /// [`RestartError::Log`] where its log has no room, as on a full disk; the kernel runs on. With any other the kernel is
    /// dead, and can be restarted again.
    pub async fn restart(self: &Arc<Self>) -> Result<(), RestartError> {
        let _life = self.life().await;
        if self.ending.load(Ordering::Acquire) {
            return Err(RestartError::ShutDown);
        }
        // Where files cannot be written the new process could not be started.
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
        if let Some(manager) = self.manager.upgrade()
            && !self.watched.swap(true, Ordering::AcqRel)
        {
            manager.watch(self);
        }
        self.tell(KernelEventKind::Restarted);
        Ok(())
    }

    /// Starts a new process in place of one that ended; whoever calls it holds `life`.
    async fn relaunch(&self) -> Result<(), RestartError> {
        self.drain().await;
        self.recorder.revive();
        self.recorder.disconnect().await;
        let asked_before = self.recorder.next_entry();
        let started = async {
            self.handle.restart(self.grace, Progress::ignored()).await?;
            self.connect(RESTART_DEADLINE)
                .await
                .map_err(|error| RestartError::NoAnswer(error.to_string()))
        };
        started.await?;
        self.died_at.store(0, Ordering::Release);
        self.recorder.restarted(asked_before);
        Ok(())
    }

    /// Starts a new process after the last one ended by itself; `attempts_left` is how often this may still be done.
    /// Nothing is done where somebody else has restarted or ended it meanwhile, or could not restart it.
    pub(super) async fn recover(&self, exit: Exit, attempts_left: u32) -> Recovery {
        let _life = self.life().await;
        if !matches!(*self.handle.phase().borrow(), Phase::Exited(_)) {
            return Recovery::NotNeeded;
        }
        let is_over = self.ending.load(Ordering::Acquire) || self.died_at().is_some();
        // What somebody has deleted, as another gateway that has the same kernels does, is not wanted any more.
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

    /// Whether one of the attempts succeeds; the kernel is dead otherwise.
    async fn start_anew(&self, exit: Exit, attempts_left: u32) -> bool {
        let mut exit = exit;
        for left in (0..attempts_left).rev() {
            warn!(kernel_id = %self.id(), cause = %exit.cause, left, "the kernel ended by itself and is started anew");
            // Before anyone is told: what is sent from then on waits for the new process.
            self.drain().await;
            self.recorder.disconnect().await;
            self.recorder.set_state(ExecutionState::Restarting);
            self.recorder
                .lifecycle(&Lifecycle::RestartingByItself { exit: exit.clone() });
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

    /// How the kernel ended that could not be started anew: as its process did, where that ended.
    fn exit_after(&self, error: &RestartError) -> Exit {
        match (&*self.handle.phase().borrow(), error) {
            (_, RestartError::Launch(LaunchError::Died { exit })) | (Phase::Exited(exit), _) => exit.clone(),
            _ => Exit::new(ExitCause::Unknown(error.to_string())),
        }
    }

    /// Records the last words of a process that has ended.
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
        let dead = Lifecycle::Dead { exit: exit.clone() };
        self.recorder.end_with_kernel(&dead);
        // Known before it is told, at an entry that is surely not after it: who is told may attach anew at once.
        self.died_at.store(self.recorder.next_entry().0, Ordering::Release);
        self.recorder.lifecycle(&dead);
        self.tell(KernelEventKind::Dead(exit.cause));
    }

    /// The entry that tells of the kernel's death, while it is dead. Whoever attaches is told of it again: who has
    /// acknowledged it may have been a proxy with nobody behind it.
    pub(crate) fn died_at(&self) -> Option<Seq> {
        match self.died_at.load(Ordering::Acquire) {
            0 => None,
            seq => Some(Seq(seq)),
        }
    }

    /// Asks the kernel by message to end, and waits for it a while.
    async fn ask_to_end(&self, restart: bool) {
        // One that was never reached cannot be asked.
        if *self.state().borrow() == ExecutionState::Dead || self.recorder.is_disconnected() {
            return;
        }
        let asked = async {
            // A busy kernel hears the request sooner where it handles control between cells only.
            let _ = self.handle.interrupt().await;
            let _ = self
                .recorder
                .request(Channel::Control, ShutdownRequest::new(restart), self.grace)
                .await;
            self.handle.wait().await
        };
        if timeout(self.grace, asked).await.is_err() {
            info!(kernel_id = %self.id(), "the kernel did not end when it was asked to by message");
        }
    }

    /// Ends the kernel: by message, then as its provider does, politely and then firmly. Its log stays. Ending a kernel
    /// that has been ended is no error.
    ///
    /// # Errors
    /// [`ProviderError`] where it cannot be ended.
    pub async fn shutdown(&self) -> Result<(), ProviderError> {
        self.end(ExitCause::Requested).await
    }

    /// The same; `cause` is what is told of its end.
    pub(super) async fn end(&self, cause: ExitCause) -> Result<(), ProviderError> {
        let _life = self.life().await;
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
            exit: Exit::new(cause.clone()),
        });
        self.log().close();
        if let Some(manager) = self.manager.upgrade() {
            manager.registry.remove(self.id());
        }
        info!(kernel_id = %self.id(), %cause, "kernel ended");
        self.tell(match cause {
            ExitCause::Culled(_) => KernelEventKind::Culled,
            _ => KernelEventKind::ShutDown,
        });
        Ok(())
    }

    /// Lets go of the kernel's sockets and stores what was recorded, once nobody restarts or ends it: half a restart
    /// would leave no kernel at all.
    pub(super) async fn detach(&self) {
        let _life = self.life().await;
        self.recorder.disconnect().await;
        self.log().flushed().await;
        self.log().close();
    }

    fn tell(&self, kind: KernelEventKind) {
        if let Some(manager) = self.manager.upgrade() {
            manager.events.tell(self.id(), kind);
        }
    }
}
