//! The life cycle of a kernel's process: connecting, interrupts, restarts, recovery and shutdown.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use jupyter_protocol::content::{InterruptRequest, ShutdownRequest};
use jupyter_protocol::zmq::SocketError;
use jupyter_protocol::{Channel, ConnectionInfo};
use kernel_log::{Lifecycle, Seq};
use kernel_provider::{
    Exit, ExitCause, Interrupt, KernelHandle, LaunchError, Phase, Progress, ProviderError, own_metadata,
};
use tokio::sync::{MutexGuard, watch};
use tokio::time::timeout;
use tracing::{info, warn};

use super::{Kernel, KernelEventKind, RestartError};
use crate::session::{ExecutionState, RequestError, SendError};

/// Timeout for connecting to a running kernel.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// How long to drain the iopub socket of a kernel that has ended.
const DRAIN_DEADLINE: Duration = Duration::from_secs(2);
/// How long to read the entries that the agent of an ended kernel has recorded. There may be many.
const AGENT_DRAIN_DEADLINE: Duration = Duration::from_secs(60);
/// How long a restarted kernel has to answer.
const RESTART_DEADLINE: Duration = Duration::from_secs(60);

/// Tolerated clock difference to the cluster that reports a kernel's launch time.
const CLOCK_TOLERANCE: TimeDelta = TimeDelta::seconds(5);

/// Result of recovering a kernel whose process or pod ended by itself.
pub(crate) enum Recovery {
    /// The supervisor restarted the kernel.
    Restarted,
    /// The kernel was already restarted on request.
    NotNeeded,
    /// The kernel is dead or being shut down, so its supervisor ends.
    Over,
}

/// Ends a kernel that failed to start or to restart.
async fn abandon(handle: &dyn KernelHandle) {
    if let Err(error) = handle.shutdown(Duration::ZERO).await {
        warn!(%error, "a kernel that failed to start cannot be ended");
    }
}

/// Ends a kernel whose start failed, unless it was launched before `began`. In that case, the provider found a running
/// kernel with the same id.
pub(crate) async fn abandon_new(handle: &dyn KernelHandle, began: DateTime<Utc>) {
    if handle.record().launched < began - CLOCK_TOLERANCE {
        warn!("left a running kernel with the same id alone");
    } else {
        abandon(handle).await;
    }
}

/// The error for a kernel whose connection information the provider cannot return.
fn unreachable(error: &ProviderError) -> SendError {
    SocketError::Broken(error.to_string()).into()
}

impl Kernel {
    /// Connects to a kernel that was just launched and waits for its first answer.
    pub(crate) async fn connect(&self, deadline: Duration) -> Result<(), RequestError> {
        let link = self.handle.agent();
        let info = match &link {
            None => Some(self.connection().await?),
            Some(_) => None,
        };
        // The guard releases clients' requests even if this future is dropped, because the sockets then stay connected.
        let _ends_setup = self.recorder.ends_setup();
        let connecting = async {
            match (&link, &info) {
                (Some(link), _) => self.recorder.connect_agent(link, deadline).await,
                (None, Some(info)) => self.recorder.connect(info, deadline).await,
                (None, None) => Ok(()),
            }
        };
        connecting.await.map_err(SendError::from)?;
        // If the kernel dies first, fail at once and not at the deadline.
        tokio::select! {
            ready = self.recorder.ready(deadline, self.waits_for_subscriber()) => ready,
            exit = self.handle.wait() => Err(unreachable(&ProviderError::Gone(exit.cause)).into()),
        }
    }

    /// Whether the kernelspec allows setting up ipykernel to wait for the recorder instead of dropping output.
    fn waits_for_subscriber(&self) -> bool {
        let setting = self
            .spec
            .as_ref()
            .and_then(|spec| own_metadata(&spec.spec, "wait_for_subscriber"));
        setting != Some(&serde_json::Value::Bool(false))
    }

    /// Locks `process_lock`. A connection attempt that holds the lock releases it first.
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

    /// Connects to a kernel that an earlier process started, unless it is already connected or was restarted or ended.
    /// Returns whether nothing is left to do; an attempt that yielded to a restart or an end must be repeated.
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

    /// Connects to a kernel that an earlier process started. The kernel may be busy for a long time, so this does not
    /// wait for an answer.
    async fn reconnect(&self) -> Result<(), SendError> {
        if let Some(link) = self.handle.agent() {
            return Ok(self.recorder.reconnect_agent(&link).await?);
        }
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

    /// Interrupts the running code, by signal or by message as the kernelspec specifies.
    ///
    /// # Errors
    /// [`RestartError::Provider`] if the kernel is gone.
    pub async fn interrupt(&self) -> Result<(), RestartError> {
        if self.handle.interrupt().await? == Interrupt::ByMessage {
            let answered = self
                .recorder
                .request(Channel::Control, InterruptRequest::default(), self.grace)
                .await;
            if let Err(error) = answered {
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
    /// [`RestartError::ShutDown`] if the kernel was shut down. [`RestartError::Log`] if its log has no room, as on a
    /// full disk; the kernel keeps running. After any other error the kernel is dead and can be restarted again.
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
        self.request_shutdown(true).await;
        if let Err(error) = self.relaunch().await {
            self.die(self.exit_after(&error)).await;
            return Err(error);
        }
        if let Some(keeper) = self.keeper.upgrade()
            && !self.watched.swap(true, Ordering::AcqRel)
        {
            keeper.watch(self);
        }
        self.publish(KernelEventKind::Restarted);
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

    /// Restarts a kernel whose process ended by itself, at most `attempts_left` more times. Does nothing if it
    /// has been restarted or shut down since.
    pub(crate) async fn recover(&self, exit: Exit, attempts_left: u32) -> Recovery {
        let _locked = self.lock_process().await;
        if !matches!(*self.handle.phase().borrow(), Phase::Exited(_)) {
            return Recovery::NotNeeded;
        }
        let is_over = self.ending.load(Ordering::Acquire) || self.died_at().is_some();
        // Another gateway with the same kernels, or an earlier one, may have ended it.
        let attempts_left = match exit.cause {
            ExitCause::Deleted | ExitCause::Requested => 0,
            _ => attempts_left,
        };
        if !is_over && self.try_restarts(exit, attempts_left).await {
            return Recovery::Restarted;
        }
        self.watched.store(false, Ordering::Release);
        Recovery::Over
    }

    /// Restarts the kernel and returns whether an attempt succeeded; otherwise the kernel is dead.
    async fn try_restarts(&self, exit: Exit, attempts_left: u32) -> bool {
        let mut exit = exit;
        for left in (0..attempts_left).rev() {
            warn!(kernel_id = %self.id(), cause = %exit.cause, left, "the kernel ended by itself and is being restarted");
            // Disconnect before the event is logged, so that later messages wait for the new process.
            self.drain().await;
            self.recorder.disconnect().await;
            self.recorder.set_state(ExecutionState::Restarting);
            self.recorder.lifecycle(&Lifecycle::RestartingByItself {
                reason: exit.cause.to_string(),
                output: exit.output.clone(),
            });
            self.publish(KernelEventKind::RestartingByItself(exit.cause.clone()));
            match self.relaunch().await {
                Ok(()) => {
                    self.publish(KernelEventKind::Restarted);
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
        if !matches!(*self.handle.phase().borrow(), Phase::Exited(_)) {
            return;
        }
        match self.handle.agent() {
            None => self.recorder.drain(DRAIN_DEADLINE).await,
            Some(link) => {
                // The kernel may have ended before this process connected to the agent.
                if !self.recorder.is_publishing() && self.recorder.is_disconnected() {
                    let reading = self.recorder.reconnect_agent(&link);
                    if !matches!(timeout(CONNECT_DEADLINE, reading).await, Ok(Ok(()))) {
                        return;
                    }
                }
                self.recorder.drain(AGENT_DRAIN_DEADLINE).await;
            }
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
        // Set before the event is appended, because a client may attach again as soon as it sees the event. Another
        // entry may get this number, and the event a later one.
        self.died_at.store(self.recorder.next_entry().0, Ordering::Release);
        self.recorder.lifecycle(&dead);
        self.publish(KernelEventKind::Dead(exit.cause));
    }

    /// While the kernel is dead, the number of the entry that announces its death, or of one shortly before it. Every
    /// client that attaches receives the entries from this one on, because an earlier acknowledgement may come from a
    /// proxy.
    pub(crate) fn died_at(&self) -> Option<Seq> {
        match self.died_at.load(Ordering::Acquire) {
            0 => None,
            seq => Some(Seq(seq)),
        }
    }

    /// Sends the kernel a shutdown request and waits for its end, at most for the grace period.
    async fn request_shutdown(&self, restart: bool) {
        // A kernel that is not connected does not receive the message.
        if *self.state().borrow() == ExecutionState::Dead || self.recorder.is_disconnected() {
            return;
        }
        let ended = async {
            // A busy kernel that handles control only between cells receives the request sooner after an interrupt.
            let _ = self.handle.interrupt().await;
            let _ = self
                .recorder
                .request(Channel::Control, ShutdownRequest::new(restart), self.grace)
                .await;
            self.handle.wait().await
        };
        if timeout(self.grace, ended).await.is_err() {
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

    /// As [`shutdown`](Self::shutdown), with `cause` as the reported reason.
    pub(crate) async fn end(&self, cause: ExitCause) -> Result<(), ProviderError> {
        let _locked = self.lock_process().await;
        if self.ending.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.request_shutdown(false).await;
        if let Err(error) = self.handle.shutdown(self.grace).await {
            self.ending.store(false, Ordering::Release);
            return Err(error);
        }
        self.drain().await;
        self.end_cause.get_or_init(|| cause.clone());
        self.recorder.finish().await;
        self.recorder.lifecycle(&Lifecycle::Dead {
            reason: cause.to_string(),
            output: String::new(),
        });
        // A client that sees that the kernel is gone can then read how it ended.
        self.recorder.store_last_entries().await;
        self.log().close();
        if let Some(keeper) = self.keeper.upgrade() {
            keeper.remove(self.id());
        }
        info!(kernel_id = %self.id(), %cause, "kernel ended");
        self.publish(match cause {
            ExitCause::Culled(_) | ExitCause::TooOld(_) => KernelEventKind::Culled,
            _ => KernelEventKind::ShutDown,
        });
        Ok(())
    }

    /// Disconnects from the kernel and stores all recorded entries. Waits for a restart or shutdown that is under way,
    /// because an interrupted restart would leave no kernel.
    pub(crate) async fn detach(&self) {
        let _locked = self.lock_process().await;
        self.recorder.disconnect().await;
        self.log().flushed().await;
        self.log().close();
    }
}
