//! Opens and closes the sockets of a kernel.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use jupyter_protocol::zmq::{self, IopubSubscriber, SocketError};
use jupyter_protocol::{Channel, ConnectionInfo};
use kernel_log::Lifecycle;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{Instrument, info_span};

use super::iopub::record_iopub;
use super::replies::record_replies;
use super::runtime::in_runtime;
use super::senders::{Destination, Sender};
use super::{ConnectionState, Recorder, reconnect};
use crate::session::execution_state::ExecutionState;

impl Recorder {
    /// Connects to a kernel that was just started and replaces the previous connection.
    pub(crate) async fn connect(&self, info: &ConnectionInfo, deadline: Duration) -> Result<(), SocketError> {
        // Begin the setup before the senders are set, so that no client's request is sent first.
        let connected = || self.recording.setup.begin();
        self.connect_sockets(info, deadline, connected).await.map(drop)
    }

    /// Connects to a kernel that was already running and has not been recorded since `recorded`. Once it answers, its
    /// pending executions are recovered.
    pub(crate) async fn reconnect(
        &self,
        info: &ConnectionInfo,
        deadline: Duration,
        recorded: Option<DateTime<Utc>>,
    ) -> Result<(), SocketError> {
        self.recording.find_kernel_session().await;
        // The attach is logged before any message of this connection.
        let attached = || {
            let unrecorded_ms = recorded.map(|recorded| (Utc::now() - recorded).num_milliseconds());
            self.attached(unrecorded_ms);
        };
        self.connect_sockets(info, deadline, attached).await?.notify_one();
        Ok(())
    }

    /// Connects the sockets and starts the tasks that read them. Returns the `Notify` that signals each reconnect of a
    /// socket.
    async fn connect_sockets(
        &self,
        info: &ConnectionInfo,
        deadline: Duration,
        connected: impl FnOnce(),
    ) -> Result<Arc<Notify>, SocketError> {
        let signer = info.signer().map_err(|error| SocketError::Invalid {
            kind: "signature scheme",
            what: info.signature_scheme.clone(),
            reason: error.to_string(),
        })?;
        self.disconnect().await;
        let identity = format!("kernelmux-{}", self.recording.id);
        let address = |channel| info.address(channel);
        let (shell_at, control_at, stdin_at, iopub_at) = (
            address(Channel::Shell),
            address(Channel::Control),
            address(Channel::Stdin),
            address(Channel::Iopub),
        );
        let runtime = self.runtime.clone().unwrap_or_else(Handle::current);
        let (iopub, shell, control, stdin) = tokio::try_join!(
            in_runtime(&runtime, IopubSubscriber::connect(&iopub_at, deadline)),
            zmq::dealer(&shell_at, &identity, deadline),
            zmq::dealer(&control_at, &identity, deadline),
            zmq::dealer(&stdin_at, &identity, deadline),
        )?;
        connected();
        for (channel, socket) in [
            (Channel::Shell, shell.0),
            (Channel::Control, control.0),
            (Channel::Stdin, stdin.0),
        ] {
            let sender = Sender {
                signer: signer.clone(),
                to: Destination::Socket(socket),
            };
            self.recording.senders.set(channel, Some(sender)).await;
        }
        self.recording.publishing.send_replace(true);
        let mut tasks = JoinSet::new();
        let span = info_span!("recorder", kernel_id = %self.recording.id);
        let reconnected = Arc::new(Notify::new());
        let published = record_iopub(
            self.recording.clone(),
            iopub.with_memory(&self.recording.memory),
            iopub_at,
            signer.clone(),
            reconnected.clone(),
        );
        tasks.spawn_on(published.instrument(span.clone()), &runtime);
        tasks.spawn(reconnect::recover(self.recording.clone(), reconnected.clone()).instrument(span.clone()));
        for (channel, receiver, address) in [
            (Channel::Shell, shell.1, shell_at),
            (Channel::Control, control.1, control_at),
            (Channel::Stdin, stdin.1, stdin_at),
        ] {
            let replies = record_replies(
                self.recording.clone(),
                channel,
                receiver.with_memory(&self.recording.memory),
                (address, identity.clone()),
                signer.clone(),
                reconnected.clone(),
            );
            tasks.spawn(replies.instrument(span.clone()));
        }
        self.set_connection(tasks);
        self.recording.connection_state.send_replace(ConnectionState::Connected);
        Ok(reconnected)
    }

    /// Whether messages of the kernel may still arrive.
    pub(crate) fn is_publishing(&self) -> bool {
        *self.recording.publishing.borrow()
    }

    /// Records the remaining output of a kernel that has ended. If another process keeps the iopub socket open past the
    /// deadline, output may be missing, and the log gets an entry for that.
    pub(crate) async fn drain(&self, deadline: Duration) {
        let mut publishing = self.recording.publishing.subscribe();
        let ended = timeout(deadline, publishing.wait_for(|publishing| !publishing)).await;
        if ended.is_err() {
            self.lifecycle(&Lifecycle::Disconnected);
        }
    }

    /// Closes the sockets. Clients' messages wait for the next connection.
    pub(crate) async fn disconnect(&self) {
        self.recording.connection_state.send_if_modified(|state| {
            let up = !matches!(state, ConnectionState::Dead);
            if up {
                *state = ConnectionState::Down;
            }
            up
        });
        let tasks = self.take_connection();
        if let Some(mut tasks) = tasks {
            // Wait until the tasks have ended, so that they append nothing after the disconnect.
            tasks.shutdown().await;
        }
        self.recording.publishing.send_replace(false);
        self.recording.senders.clear().await;
        self.recording.setup.end();
        // No task holds a socket of the previous generation any more.
        self.recording.generation.fetch_add(1, Ordering::AcqRel);
        self.recording.pending_requests.clear();
    }

    /// Closes the sockets for good and refuses further messages.
    pub(crate) async fn finish(&self) {
        self.disconnect().await;
        self.recording.connection_state.send_replace(ConnectionState::Dead);
        self.set_state(ExecutionState::Dead);
    }

    /// Waits until the last entries of a kernel that has ended are stored. On a full disk, the wait is short.
    pub(crate) async fn store_last_entries(&self) {
        self.recording.store_last_entries().await;
    }

    /// Whether the kernel is not connected, but may be. False for a dead kernel.
    pub(crate) fn is_disconnected(&self) -> bool {
        *self.recording.connection_state.borrow() == ConnectionState::Down
    }

    /// Undoes [`finish`](Self::finish) for a dead kernel that is restarted.
    pub(crate) fn revive(&self) {
        self.recording.connection_state.send_replace(ConnectionState::Down);
    }

    pub(super) fn set_connection(&self, tasks: JoinSet<()>) {
        *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = Some(tasks);
    }

    fn take_connection(&self) -> Option<JoinSet<()>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
