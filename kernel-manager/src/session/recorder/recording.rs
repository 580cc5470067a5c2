//! Appends messages to the log: those of clients before they are sent, and those of the kernel.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use jupyter_protocol::message::Message;
use jupyter_protocol::{Channel, WireMessage, header};
use kernel_log::{Lifecycle, NewEntry, Origin, Seq};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::{ConnectionState, OUR_SESSION, Recording, SendError, lock};
use crate::session::agent_position::SendNumber;
use crate::session::execution_state::{ExecutionState, StatusFollower};
use crate::session::executions::message_at;
use crate::session::index_keys as keys;
use crate::session::known_requests::Known;
use crate::session::msg_type::msg_type;
use crate::session::pending_requests::{Addressee, Requester};
use crate::session::questions::{Answered, Question};
use crate::session::replay::kernel_session;
use crate::session::request_index::RequestIndex;
use crate::session::synthetic_reply;

/// Up to this many bytes of a kernel with an agent are stored by the recorder's own thread, because waking another
/// thread takes longer.
const STORE_HERE_BYTES: usize = 16 << 10;
/// How long storing a kernel's last entries may delay its end.
const LAST_ENTRIES_DEADLINE: Duration = Duration::from_secs(2);

impl Recording {
    /// Locks the index and ignores poisoning: a panic loses at most the message that was being indexed.
    pub(super) fn requests(&self) -> MutexGuard<'_, RequestIndex> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the last entries of a kernel that has ended are stored. Returns `false` if that takes too long, as on
    /// a full disk.
    pub(super) async fn store_last_entries(&self) -> bool {
        timeout(LAST_ENTRIES_DEADLINE, self.log.flushed()).await.is_ok()
    }

    /// Sends one of the recorder's own requests; `None` if the kernel restarts before it answers.
    pub(super) async fn request(&self, channel: Channel, request: &Message) -> Result<Option<WireMessage>, SendError> {
        let (reply, answer) = oneshot::channel();
        self.send(channel, OUR_SESSION, request.to_wire(), Requester::Internal(reply))
            .await?;
        Ok(answer.await.ok())
    }

    pub(super) async fn send(
        &self,
        channel: Channel,
        session: &str,
        message: WireMessage,
        requester: Requester,
    ) -> Result<(), SendError> {
        if !matches!(channel, Channel::Shell | Channel::Control | Channel::Stdin) {
            return Err(SendError::NotToBeSentOn(channel));
        }
        let header = message.header_ref()?;
        let mut sender = self.sender_for(channel, session).await?;
        let generation = self.generation.load(Ordering::Acquire);
        let ours = matches!(requester, Requester::Internal(_));
        // The sender's lock is held, so no other message of the channel can be appended between this check and the
        // append.
        if !ours && self.was_sent_before(&header.msg_id, &message).await {
            debug!(msg_id = %header.msg_id, "dropped a message that was sent to the kernel before");
            return Ok(());
        }
        if header.msg_type.ends_with("_request") {
            self.pending_requests.expect_reply(&header.msg_id, requester);
        }
        let question = if channel == Channel::Stdin && header.msg_type == "input_reply" {
            let answered = self.requests().answer(&message);
            match answered {
                Answered::Question(question) => Some(question),
                // The kernel would take this answer for the answer to its next question.
                Answered::TooLate => {
                    debug!(session, "dropped an answer to a question that is not open");
                    return Ok(());
                }
                Answered::Unknown => None,
            }
        } else {
            None
        };
        drop(header);
        self.touch();
        let entry = NewEntry {
            origin: Origin::Client,
            channel,
            session,
            message: &message,
        };
        let seq = if ours {
            self.log.append([entry])
        } else {
            let now = Utc::now();
            let mut requests = self.requests();
            self.log.append_indexed(now, [entry], |seq| {
                requests.on_request(seq, now, session, channel, &message);
                requests.take_updates()
            })
        };
        let unsent = UnsentRequest {
            recording: self,
            msg_id: &message.header_ref()?.msg_id,
            question: question.as_ref(),
        };
        if !ours && !is_read_only(&message) {
            // Store before sending. A crash in between loses the request, and its record shows this. In the other
            // order, the request would run twice if the client repeats it.
            self.log.stored(seq).await;
        }
        let number = SendNumber::of(seq);
        let sent = self.send_on(&mut sender, channel, message.clone(), number).await;
        drop(sender);
        let sent = match sent {
            Ok(()) => Ok(()),
            Err(error) => {
                self.send_again(generation, channel, session, message.clone(), number, error)
                    .await
            }
        };
        if let Err(error) = &sent {
            if !is_execution(&message) {
                return sent;
            }
            // The client saw the request in the log or waits for its reply, and will not repeat it. So mark the
            // execution as lost. If the kernel was restarted, the execution has already ended.
            if !matches!(error, SendError::Restarted) {
                self.mark_lost(&[unsent.msg_id.into()], &self.kernel_session());
            }
        }
        unsent.was_sent();
        if let Some(question) = question {
            self.notify_answered(&question, session);
        }
        sent
    }

    /// Whether this program or an earlier run of it sent this message to the kernel. A different message with the same
    /// id does not count.
    pub(super) async fn was_sent_before(&self, msg_id: &str, message: &WireMessage) -> bool {
        let known = self.requests().knows(msg_id);
        if known == Known::No {
            return false;
        }
        let before = match self.log.index_get(keys::request(msg_id)).await {
            Ok(seq) => seq.and_then(|seq| keys::seq_of(&seq)),
            Err(error) => {
                warn!(%error, "the index cannot be read to check for a repeated message");
                return known == Known::Yes;
            }
        };
        // An ended execution may be removed from the index before it is removed from memory.
        let Some(before) = before else {
            return known == Known::Yes;
        };
        if known == Known::Yes {
            self.log.stored(before).await;
        } else if before > self.log.head() {
            // Some stores make index updates visible before entries.
            return false;
        }
        match message_at(&self.log, before).await {
            Ok(Some((_, before))) => is_same_request(&before, message),
            // A message with this id was sent, although its content cannot be compared.
            Ok(None) | Err(_) => true,
        }
    }

    /// The session that requested the execution to which this reply belongs, even if an earlier run of this program
    /// sent the request.
    pub(super) fn session_of_execution(&self, message: &WireMessage) -> Option<Arc<str>> {
        let parent = message.parent_ref().ok()?;
        Some(self.requests().session_of(&parent.msg_id)?.into())
    }

    /// Appends messages of the kernel that arrived together, and sets the resulting state.
    pub(super) fn record(
        &self,
        channel: Channel,
        session: &str,
        messages: &[WireMessage],
        state: Option<ExecutionState>,
        now: DateTime<Utc>,
    ) {
        self.touch();
        let mut requests = self.requests();
        let entries = messages.iter().map(|message| NewEntry {
            origin: Origin::Kernel,
            channel,
            session,
            message,
        });
        let unstored = self.log.append_indexed_unstored(now, entries, |first| {
            for (seq, message) in (first.0..).zip(messages) {
                requests.on_kernel_message(Seq(seq), now, channel, message);
            }
            // Set the state before readers see the entries, so that a client that has received `idle` does not read
            // `busy`.
            if let Some(state) = state {
                self.set_state(state);
            }
            requests.take_updates()
        });
        let (has_agent, has_ended) = (requests.agent().is_some(), requests.take_ended());
        // Storing may take long, and others need the lock.
        drop(requests);
        if has_agent && self.has_runtime {
            unstored.store_here(STORE_HERE_BYTES);
        } else {
            drop(unstored);
        }
        if has_ended {
            // Results that took long to compute must survive a machine failure.
            self.log.sync_soon();
        }
    }

    /// Appends a batch of iopub messages and updates the kernel's state.
    pub(super) fn record_published(&self, messages: &[WireMessage], status: &mut StatusFollower, now: DateTime<Utc>) {
        let statuses: Vec<_> = messages
            .iter()
            .filter_map(|message| Some((status.follow(message)?, message)))
            .collect();
        let newest_status = statuses.last().copied();
        self.record(Channel::Iopub, "", messages, newest_status.map(|(state, _)| state), now);
        for (_, message) in statuses {
            self.statuses.notify(message);
        }
        if let Some((_, message)) = newest_status
            && let Ok(header) = message.header_ref()
            && let mut session = lock(&self.kernel_session)
            && **session != *header.session
        {
            *session = (*header.session).into();
        }
        if let Some((ExecutionState::Idle, message)) = newest_status
            && status.idle_for_the_first_time()
            && let Ok(header) = message.header_ref()
        {
            let session = header.session.into_owned();
            self.lifecycle(&Lifecycle::Idle { session });
        }
        self.connection_state.send_if_modified(|state| {
            let now = match *state {
                ConnectionState::Connected | ConnectionState::Unconfirmed | ConnectionState::Subscribed
                    if newest_status.is_some() =>
                {
                    ConnectionState::Live
                }
                ConnectionState::Connected | ConnectionState::Unconfirmed => ConnectionState::Subscribed,
                other => other,
            };
            std::mem::replace(state, now) != now
        });
    }

    /// Notifies the other sessions that received this question that `session` answered it.
    fn notify_answered(&self, question: &Question, session: &str) {
        let message = question.answered_message(&self.kernel_session());
        self.log.append([NewEntry {
            origin: Origin::Lifecycle,
            channel: Channel::Iopub,
            session,
            message: &message,
        }]);
    }

    /// Appends a message from shell, control or stdin, addressed to the session that sent its request.
    pub(super) fn record_reply(&self, channel: Channel, message: WireMessage, now: DateTime<Utc>) {
        let mut addressee = self.pending_requests.addressee(channel, &message);
        if matches!(addressee, Addressee::All)
            && let Some(session) = self.session_of_execution(&message)
        {
            addressee = Addressee::Session(session);
        }
        let session = match &addressee {
            Addressee::Session(session) => session,
            Addressee::Internal(_) => OUR_SESSION,
            Addressee::Setup => return self.setup.on_reply(&message),
            Addressee::All => "",
        };
        self.record(channel, session, std::slice::from_ref(&message), None, now);
        if let Addressee::Internal(waiting) = addressee {
            // The requester may have stopped waiting.
            let _ = waiting.send(message);
        }
    }

    pub(super) fn lifecycle(&self, event: &Lifecycle) -> Seq {
        self.lifecycle_of(event, Seq(u64::MAX))
    }

    /// As [`lifecycle`](Self::lifecycle), but ends only executions that were requested before entry `requested_before`.
    pub(super) fn lifecycle_of(&self, event: &Lifecycle, requested_before: Seq) -> Seq {
        let message = event.to_message(OUR_SESSION);
        if !matches!(event, Lifecycle::Quiet | Lifecycle::Culling { .. }) {
            self.touch();
        }
        let entry = NewEntry {
            origin: Origin::Lifecycle,
            channel: Channel::Iopub,
            session: "",
            message: &message,
        };
        // Plain Jupyter clients must see their executions end before the kernel is dead or restarting.
        self.end_with_kernel(event, requested_before);
        self.log.append([entry])
    }

    /// The session of the kernel's newest status; the recorder's own session before the first one.
    pub(super) fn kernel_session(&self) -> Arc<str> {
        lock(&self.kernel_session).clone()
    }

    /// Restores the kernel's session from the first message that the kernel sent after the request of its oldest
    /// running execution.
    pub(super) async fn find_kernel_session(&self) {
        let running = self.requests().running();
        if let Some(execution) = running.first()
            && let Ok(Some(session)) = kernel_session(&self.log, execution).await
        {
            *lock(&self.kernel_session) = session.into();
        }
    }

    /// Appends notices for plain Jupyter clients that output of running executions is missing.
    pub(super) fn report_missing_output(&self, text: &str, amount_unknown: bool) {
        let kernel_session = self.kernel_session();
        let now = Utc::now();
        let mut requests = self.requests();
        for execution in requests.running() {
            let notice = synthetic_reply::notice(&execution, text, &kernel_session);
            let entry = NewEntry {
                origin: Origin::Lifecycle,
                channel: Channel::Iopub,
                session: "",
                message: &notice,
            };
            self.log.append_indexed(now, [entry], |seq| {
                requests.mark_incomplete(execution.msg_id(), seq, amount_unknown);
                requests.take_updates()
            });
        }
    }

    pub(super) fn touch(&self) {
        self.last_activity
            .store(Utc::now().timestamp_micros(), Ordering::Relaxed);
    }

    pub(super) fn set_state(&self, state: ExecutionState) {
        self.state.send_if_modified(|current| {
            let changed = *current != state;
            *current = state;
            changed
        });
    }
}

/// The message, with missing header fields filled in.
pub(super) fn completed(message: WireMessage, session: &str) -> WireMessage {
    let Some(header) = header::completed(message.header(), session) else {
        return message;
    };
    let [_, parent, metadata, content] = message.parts().map(Bytes::clone);
    WireMessage::from_parts(
        [header.into(), parent, metadata, content],
        message.buffers().iter().cloned(),
    )
}

/// Whether both messages have the same type, buffers and content. For executions, the same code is enough.
fn is_same_request(one: &WireMessage, other: &WireMessage) -> bool {
    #[derive(Deserialize)]
    struct Execute {
        code: String,
    }
    fn parsed<T: DeserializeOwned>(message: &WireMessage) -> Option<T> {
        serde_json::from_slice(message.content()).ok()
    }
    if msg_type(one) != msg_type(other) || one.buffers() != other.buffers() {
        return false;
    }
    one.content() == other.content()
        || is_execution(one)
            && matches!((parsed::<Execute>(one), parsed::<Execute>(other)), (Some(one), Some(other)) if one.code == other.code)
}

/// Whether the message runs code, so that it belongs to one process of the kernel and ends with it.
pub(super) fn is_execution(message: &WireMessage) -> bool {
    &*msg_type(message) == "execute_request"
}

/// Whether the request changes nothing in the kernel, so that sending it twice is harmless and it need not be stored
/// first.
fn is_read_only(message: &WireMessage) -> bool {
    matches!(
        &*msg_type(message),
        "kernel_info_request"
            | "complete_request"
            | "inspect_request"
            | "is_complete_request"
            | "history_request"
            | "comm_info_request"
    )
}

/// Guards an appended message. If the message is not sent, because the socket broke or the caller was cancelled,
/// dropping the guard allows a client to repeat the message.
struct UnsentRequest<'a> {
    recording: &'a Recording,
    msg_id: &'a str,
    /// The question that the message answers.
    question: Option<&'a Question>,
}

impl UnsentRequest<'_> {
    fn was_sent(self) {
        self.recording.requests().mark_sent(self.msg_id);
        std::mem::forget(self);
    }
}

impl Drop for UnsentRequest<'_> {
    fn drop(&mut self) {
        let mut requests = self.recording.requests();
        requests.mark_unsent(self.msg_id);
        if let Some(question) = self.question {
            requests.reopen(question);
        }
        self.recording.log.update_index(requests.take_updates());
    }
}
