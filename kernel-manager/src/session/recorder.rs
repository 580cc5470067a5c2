//! Owns a kernel's sockets and logs every message of both directions.

mod agent;
mod comms;
mod connection;
mod error;
mod iopub;
mod log_answer;
mod reconnect;
mod recording;
mod recovery;
mod refused;
mod replies;
mod runtime;
mod senders;
mod setup;

#[cfg(feature = "testing")]
mod simulated;

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use jupyter_protocol::content::{Content, KernelInfoRequest};
use jupyter_protocol::message::Message;
use jupyter_protocol::zmq::{MAX_MESSAGE_BYTES, MessageMemory};
use jupyter_protocol::{Channel, KernelId, WireMessage};
use kernel_log::{Lifecycle, Log, Seq, StoreError};
use tokio::runtime::Handle;
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::debug;

pub use self::error::{RequestError, SendError};
use self::recording::completed;
use self::recovery::StatusWaiters;
pub(crate) use self::refused::RefusedCounters;
pub use self::refused::RefusedMessages;
use self::senders::Senders;
use self::setup::Setup;
use super::execution_record::ExecutionRecord;
use super::execution_state::ExecutionState;
use super::executions::{Executions, message_at};
use super::follow::is_follow_request;
use super::pending_requests::{PendingRequests, Requester};
use super::request_index::RequestIndex;
use super::synthetic_reply::{self, MISSING, NOT_KEPT};
use crate::fold::answers;

/// A message of at least this many bytes is stored before the next one is received, so that few copies of it exist.
const LARGE: usize = 1 << 20;
/// How long to wait for a kernel's answer before the request is repeated.
const NUDGE_AFTER: Duration = Duration::from_millis(250);
/// The session of the recorder's own requests. Their replies are delivered to no client.
const OUR_SESSION: &str = "kernelmux";

/// The notice that replaces a skipped message.
fn skipped_text(bytes: u64, too_large: bool) -> String {
    let reason = if too_large {
        format!("a message may have at most {} MiB", MAX_MESSAGE_BYTES >> 20)
    } else {
        "there was no memory for it".to_owned()
    };
    format!("An output of {} MiB is left out: {reason}.", bytes >> 20)
}

/// How the kernels of a manager are recorded.
#[derive(Clone, Debug)]
pub(crate) struct RecorderOptions {
    /// The runtime that reads iopub; `None` for the caller's.
    pub(crate) runtime: Option<Handle>,
    /// Budget for the large messages of all kernels.
    pub(crate) memory: MessageMemory,
    pub(crate) refused: Arc<RefusedCounters>,
}

/// Records one kernel across all its restarts.
pub(crate) struct Recorder {
    recording: Arc<Recording>,
    runtime: Option<Handle>,
    /// The socket tasks. They end with the connection.
    connection: Mutex<Option<JoinSet<()>>>,
}

struct Recording {
    id: KernelId,
    log: Log,
    requests: Mutex<RequestIndex>,
    /// Whether the recorder has a runtime of its own, which may wait for the disk while an agent keeps the messages.
    has_runtime: bool,
    pending_requests: PendingRequests,
    statuses: StatusWaiters,
    senders: Senders,
    /// Connection generation, incremented on every disconnect.
    generation: AtomicU64,
    connection_state: watch::Sender<ConnectionState>,
    /// Whether iopub may deliver more messages.
    publishing: watch::Sender<bool>,
    setup: Setup,
    state: watch::Sender<ExecutionState>,
    last_activity: AtomicI64,
    kernel_session: Mutex<Arc<str>>,
    memory: MessageMemory,
    refused: Arc<RefusedCounters>,
    /// Held while the open comms are read from the log.
    reading_comms: Arc<AsyncMutex<()>>,
}

/// Locks the kernel's session and ignores poisoning, because a panic cannot leave it half-written.
fn lock(session: &Mutex<Arc<str>>) -> MutexGuard<'_, Arc<str>> {
    session.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ConnectionState {
    /// Not connected, or connecting.
    Down,
    /// Connected, but nothing has arrived on iopub yet: the subscription may not be active.
    Connected,
    /// As `Connected`, but clients have waited long enough for the subscription and may send requests.
    Unconfirmed,
    /// The subscription is active; the kernel has not reported its status yet.
    Subscribed,
    /// The kernel has reported its status since it was connected.
    Live,
    /// Closed for good.
    Dead,
}

impl Recorder {
    /// Restores requests and executions from the log's index.
    pub(crate) async fn load(log: Log, options: RecorderOptions) -> Result<Self, StoreError> {
        let RecorderOptions {
            runtime,
            memory,
            refused,
        } = options;
        let requests = RequestIndex::load(&log).await?;
        Ok(Self {
            recording: Arc::new(Recording {
                id: log.kernel_id(),
                log,
                requests: Mutex::new(requests),
                has_runtime: runtime.is_some(),
                pending_requests: PendingRequests::default(),
                statuses: StatusWaiters::default(),
                senders: Senders::default(),
                generation: AtomicU64::new(0),
                connection_state: watch::Sender::new(ConnectionState::Down),
                publishing: watch::Sender::new(false),
                setup: Setup::default(),
                state: watch::Sender::new(ExecutionState::Starting),
                last_activity: AtomicI64::new(Utc::now().timestamp_micros()),
                kernel_session: Mutex::new(OUR_SESSION.into()),
                memory,
                refused,
                reading_comms: Arc::default(),
            }),
            runtime,
            connection: Mutex::new(None),
        })
    }

    pub(crate) fn log(&self) -> &Log {
        &self.recording.log
    }

    pub(crate) fn state(&self) -> watch::Receiver<ExecutionState> {
        self.recording.state.subscribe()
    }

    pub(crate) fn set_state(&self, state: ExecutionState) {
        self.recording.set_state(state);
    }

    pub(crate) fn last_activity(&self) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(self.recording.last_activity.load(Ordering::Relaxed)).unwrap_or_default()
    }

    /// Executions that the session requested or follows and that have entries after `seq` or are unfinished, oldest
    /// request first.
    pub(crate) fn active_after(&self, session: &str, seq: Seq) -> Vec<ExecutionRecord> {
        self.recording.requests().active_after(session, seq)
    }

    /// Makes the session follow the execution, and returns it; `None` if the log does not have it.
    pub(crate) async fn follow(&self, msg_id: &str, session: &str) -> Result<Option<ExecutionRecord>, StoreError> {
        {
            let mut requests = self.recording.requests();
            let execution = requests.follow(msg_id, session);
            self.recording.log.update_index(requests.take_updates());
            if execution.is_some() {
                return Ok(execution);
            }
        }
        // An execution that is not in memory has ended, so there are no replies to follow.
        Executions::of(self.recording.log.clone()).get(msg_id).await
    }

    /// Whether this session requested or follows the execution to which the message belongs.
    pub(crate) fn concerns(&self, message: &WireMessage, session: &str) -> bool {
        message
            .parent_ref()
            .is_ok_and(|parent| self.recording.requests().concerns(&parent.msg_id, session))
    }

    /// The session that the kernel uses in its messages.
    pub(crate) fn kernel_session(&self) -> Arc<str> {
        self.recording.kernel_session()
    }

    /// The number that the next appended entry will get.
    pub(crate) fn next_entry(&self) -> Seq {
        self.recording.log.append([]).next()
    }

    /// Records that a restarted kernel has answered. Requests before entry `requested_before` ended with the previous
    /// process; later requests waited for the new process.
    pub(crate) fn restarted(&self, requested_before: Seq) {
        self.recording.lifecycle_of(&Lifecycle::Restarted, requested_before);
    }

    /// Ends the executions of a kernel that died. Call it before the death is announced.
    pub(crate) fn end_with_kernel(&self, event: &Lifecycle) {
        self.recording.end_with_kernel(event, Seq(u64::MAX));
    }

    /// Records that a running kernel was attached to, and how long its output went unrecorded.
    pub(crate) fn attached(&self, unrecorded_ms: Option<i64>) {
        self.lifecycle(&Lifecycle::Attached { unrecorded_ms });
        self.recording.report_missing_output(MISSING, true);
    }

    /// Messages that replace missing entries for a client. Each of the session's executions that may have output there
    /// gets a notice, unless the client already `has_notice`, and the reply and idle status that are missing.
    pub(crate) fn gap_messages(
        &self,
        session: &str,
        missing: &RangeInclusive<Seq>,
        has_notice: bool,
    ) -> Vec<(Channel, WireMessage)> {
        let kernel_session = self.recording.kernel_session();
        let is_missing = |seq: Option<Seq>| seq.is_some_and(|seq| missing.contains(&seq));
        let mut messages = Vec::new();
        for execution in self.active_after(session, Seq(missing.start().0.saturating_sub(1))) {
            if execution.started.is_some() && execution.request <= *missing.end() && !has_notice {
                let notice = synthetic_reply::notice(&execution, NOT_KEPT, &kernel_session);
                messages.push((Channel::Iopub, notice));
            }
            let (reply, idle) = (is_missing(execution.reply), is_missing(execution.idle));
            messages.extend(synthetic_reply::trimmed_end(&execution, reply, idle, &kernel_session));
        }
        messages
    }

    /// Appends a life-cycle event and returns its number.
    pub(crate) fn lifecycle(&self, event: &Lifecycle) -> Seq {
        self.recording.lifecycle(event)
    }

    /// A guard that releases clients' requests when dropped, so that they are released even if the start fails.
    pub(crate) fn ends_setup(&self) -> impl Drop + use<'_> {
        self.recording.setup.ends()
    }

    /// Waits until the kernel answers and its output arrives. Releases clients' requests after the first answer. With
    /// `lossless`, ipykernel is set up before that to drop no output.
    pub(crate) async fn ready(&self, deadline: Duration, lossless: bool) -> Result<(), RequestError> {
        let end = Instant::now() + deadline;
        let mut state = self.recording.connection_state.subscribe();
        let mut answered = false;
        let mut repeat_after = NUDGE_AFTER;
        loop {
            // Each request makes the kernel publish its status, which proves that the subscription is active.
            let until = end.min(Instant::now() + repeat_after);
            let left = until.saturating_duration_since(Instant::now());
            let subscribed = matches!(*state.borrow(), ConnectionState::Subscribed | ConnectionState::Live);
            match self.request(Channel::Shell, KernelInfoRequest::default(), left).await {
                Ok(reply) => {
                    if !std::mem::replace(&mut answered, true) {
                        self.recording.set_up(&reply, lossless).await;
                    }
                }
                // Another try would fail at once.
                Err(dead @ RequestError::Send(SendError::Dead)) => return Err(dead),
                Err(_) => {}
            }
            // The status is lost if the kernel publishes it before the subscription is active. Repeat the request as
            // soon as the subscription is active.
            if answered
                && let Ok(Ok(reached)) = timeout_at(
                    until,
                    state.wait_for(|state| {
                        *state == ConnectionState::Live || !subscribed && *state == ConnectionState::Subscribed
                    }),
                )
                .await
                && *reached == ConnectionState::Live
            {
                return Ok(());
            }
            if Instant::now() >= end {
                return Err(RequestError::NoAnswer {
                    msg_type: "kernel_info_request".to_owned(),
                    deadline,
                });
            }
            repeat_after *= 2;
        }
    }

    /// Sends one of the recorder's own requests and waits for the reply.
    pub(crate) async fn request(
        &self,
        channel: Channel,
        content: impl Into<Content>,
        deadline: Duration,
    ) -> Result<WireMessage, RequestError> {
        let message = Message::new(content, OUR_SESSION);
        let no_answer = || RequestError::NoAnswer {
            msg_type: message.msg_type().to_owned(),
            deadline,
        };
        match timeout(deadline, self.recording.request(channel, &message)).await {
            Ok(answer) => answer?.ok_or_else(no_answer),
            Err(_) => Err(no_answer()),
        }
    }

    /// The entry of the session's open `input_request` that this message answers.
    pub(crate) async fn question_answered(&self, session: &str, message: &WireMessage) -> Option<Seq> {
        let open = self.recording.requests().open_questions(session);
        for seq in open {
            if let Ok(Some((_, question))) = message_at(&self.recording.log, seq).await
                && answers(message, &question)
            {
                return Some(seq);
            }
        }
        None
    }

    /// Logs a client's message and sends it. Waits while the kernel restarts, while its connection is lost, and while
    /// the socket's queue is full.
    pub(crate) async fn send(
        &self,
        session: &Arc<str>,
        channel: Channel,
        message: WireMessage,
    ) -> Result<(), SendError> {
        if is_follow_request(&message) {
            debug!(
                session = &**session,
                "dropped a request to follow an execution, which is not for the kernel"
            );
            return Ok(());
        }
        let message = completed(message, session);
        self.recording
            .send(channel, session, message, Requester::Session(session.clone()))
            .await
    }
}
