use std::collections::VecDeque;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jupyter_protocol::codec::websocket_v1::V1Message;
use jupyter_protocol::{Channel, WireMessage};
use kernel_log::{Block, Entry, LIFECYCLE, Lifecycle, Origin, ReadError, Reader, Seq};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::warn;

use super::Kernel;
use crate::session::{
    Audience, ExecutionRecord, ExecutionState, Followed, Joining, ReplayedEntries, SendError, is_answered_notice,
    refusal, replay, reported_state, wants_comms,
};

/// A client attached to a kernel. It reads the kernel's log from a position, and sends messages.
///
/// Dropping the attachment and all clones of its [`Client`] detaches the client; the kernel keeps running. A session
/// that reconnects resumes after the entry that it last [acknowledged](Client::acknowledge), and executions that it may
/// have seen in part are [replayed](Attachment::replay). A new session starts at the end of the log.
pub struct Attachment {
    client: Client,
    /// Executions to replay, oldest first.
    in_doubt: VecDeque<InDoubt>,
    acknowledged: Seq,
    reader: Reader,
    /// The number of the session's newest attachment.
    current: watch::Receiver<u64>,
}

impl fmt::Debug for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attachment")
            .field("client", &self.client)
            .finish_non_exhaustive()
    }
}

/// An execution to replay, because the client may have received only a part of it.
enum InDoubt {
    Known(Box<ExecutionRecord>),
    /// The execution's record is no longer in memory; the log's index may have it.
    InLog(Arc<str>),
}

/// The cloneable part of an [`Attachment`]: sends and acknowledges.
#[derive(Clone)]
pub struct Client {
    lease: Arc<SessionLease>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("kernel", &self.lease.kernel.id())
            .field("session", &self.lease.session)
            .finish_non_exhaustive()
    }
}

/// Detaches the client when its [`Attachment`] and all clones of its [`Client`] are dropped.
struct SessionLease {
    kernel: Arc<Kernel>,
    session: Arc<str>,
    attachment: u64,
    replayed: AllReplayedEntries,
    followed: Arc<Followed>,
    /// The last entry of the newest gap that was reported to the client; 0 before the first.
    gap_end: AtomicU64,
}

/// Entries that the client received in replays, before the reader reached them.
#[derive(Default)]
struct AllReplayedEntries {
    /// The last of these entries, over all executions.
    until: AtomicU64,
    by_execution: Mutex<Vec<ReplayedEntries>>,
}

impl AllReplayedEntries {
    fn lock(&self) -> MutexGuard<'_, Vec<ReplayedEntries>> {
        self.by_execution.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the entries that a replay contained, for a reader that has read up to `position`.
    fn extend(&self, replayed: Option<ReplayedEntries>, position: Seq) {
        if let Some(replayed) = replayed {
            self.until.fetch_max(replayed.until.0, Ordering::Relaxed);
            let mut by_execution = self.lock();
            by_execution.retain(|replayed| replayed.until > position);
            by_execution.push(replayed);
        }
    }

    fn contains(&self, entry: &Entry) -> bool {
        entry.seq().0 <= self.until.load(Ordering::Relaxed)
            && self.lock().iter().any(|replayed| replayed.contains(entry))
    }
}

impl SessionLease {
    fn leave(&self) {
        self.kernel.sessions().leave(&self.session, self.attachment);
    }
}

impl Drop for SessionLease {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Attachment {
    /// Attaches a client that knows only its session. With `shared`, the session may have several connections.
    pub(crate) fn of_session(kernel: Arc<Kernel>, session: &str, shared: bool) -> Self {
        let joining = if shared { Joining::Shared } else { Joining::Alone };
        let head = kernel.log().head();
        let session: Arc<str> = session.into();
        let joined = kernel.sessions().join(&session, head, joining);
        let acknowledged = joined.position.map_or(head, |position| position.acknowledged);
        // A session without a position but with requests was forgotten, for example by a gateway that was killed before
        // it stored the position. What the client received is unknown.
        let sure = joined.position.map_or(Seq::START, |position| position.sure);
        let in_doubt = kernel.recorder().active_after(&session, sure);
        for execution in &in_doubt {
            if execution.session != *session {
                joined.followed.insert(execution.msg_id());
            }
        }
        let is_known = |msg_id: &str| in_doubt.iter().any(|execution| execution.msg_id() == msg_id);
        let in_log = joined.replays.into_iter().filter(|msg_id| !is_known(msg_id));
        // Executions that are no longer in memory are older.
        let mut all: VecDeque<_> = in_log.map(InDoubt::InLog).collect();
        all.extend(in_doubt.into_iter().map(Box::new).map(InDoubt::Known));
        let from = match kernel.died_at() {
            Some(died) => acknowledged.min(Seq(died.0 - 1)),
            None => acknowledged,
        };
        Self {
            in_doubt: all,
            acknowledged,
            reader: kernel.log().reader(from),
            current: joined.current,
            client: Client::new(kernel, session, joined.attachment, joined.followed),
        }
    }

    /// Attaches a client that tracks its own position.
    pub(crate) fn at(kernel: Arc<Kernel>, session: &str, after: Seq) -> Self {
        let session: Arc<str> = session.into();
        let joined = kernel.sessions().join(&session, after, Joining::TracksPosition);
        Self {
            in_doubt: VecDeque::new(),
            acknowledged: after,
            reader: kernel.log().reader(after),
            current: joined.current,
            client: Client::new(kernel, session, joined.attachment, joined.followed),
        }
    }

    /// The messages of the next replay, to send before anything else: they clear an execution's output and show it
    /// again. `None` when no execution is left that the client may have received in part, and for clients that track
    /// their own position.
    ///
    /// # Errors
    /// [`ReadError::Store`] if the log cannot be read; this execution is skipped.
    pub async fn replay(&mut self) -> Option<Result<Vec<(Channel, WireMessage)>, ReadError>> {
        let execution = loop {
            match self.in_doubt.pop_front()? {
                InDoubt::Known(execution) => break *execution,
                InDoubt::InLog(msg_id) => match self.client.kernel().executions().get(&msg_id).await {
                    Ok(Some(execution)) => break execution,
                    // Retention has removed the execution.
                    Ok(None) => {}
                    Err(error) => return Some(Err(error.into())),
                },
            }
        };
        Some(self.shown(&execution, self.acknowledged, Audience::Reconnected).await)
    }

    async fn shown(
        &self,
        execution: &ExecutionRecord,
        until: Seq,
        audience: Audience,
    ) -> Result<Vec<(Channel, WireMessage)>, ReadError> {
        let replay = replay(self.client.kernel().log(), execution, until, audience).await?;
        self.client
            .lease
            .replayed
            .extend(replay.replayed, self.reader.position());
        Ok(replay.messages)
    }

    /// Answers a [request to follow](crate::is_follow_request) an execution, usually of another session, and returns
    /// the messages to send before the next entries. They show the execution as it was at the reader's position, so
    /// that each output is in them or among the later entries. From then on, the session also
    /// [receives](Client::delivers) the execution's replies and questions, and may answer them.
    ///
    /// If the request's metadata also has `"kernelmux": {"comms": true}`, the messages begin with a `comm_open` for
    /// each open Jupyter widget, with its current state. Widgets come after those that they refer to.
    ///
    /// If the execution is unknown or cannot be read, the messages are an error reply to the request.
    pub async fn follow(&self, request: &WireMessage) -> Vec<(Channel, WireMessage)> {
        let kernel = self.client.kernel();
        let refused = |ename, evalue: &str| refusal(request, ename, evalue, &kernel.recorder().kernel_session());
        let msg_id = request.header_ref().map(|header| header.msg_id.into_owned());
        let msg_id = msg_id.unwrap_or_default();
        let unreadable = |error: &dyn std::error::Error| {
            warn!(kernel_id = %kernel.id(), %error, "an execution cannot be replayed");
            refused("UnreadableExecution", &error.to_string())
        };
        let position = self.reader.position();
        self.client.mark_active();
        // Registered before the log is read, so that no reply after the position is missed.
        let execution = match kernel.recorder().follow(&msg_id, self.client.session()).await {
            Ok(Some(execution)) => execution,
            Ok(None) => {
                let evalue = format!(
                    "the kernel's log has no execution {msg_id:?}: it was never requested, or its entries were \
                     removed; run the code again"
                );
                return refused("UnknownExecution", &evalue);
            }
            Err(error) => return unreadable(&error),
        };
        if execution.session != self.client.session() {
            self.client.lease.followed.insert(&msg_id);
        }
        let before = Seq(execution.request.0.saturating_sub(1));
        let SessionLease {
            session, attachment, ..
        } = &*self.client.lease;
        kernel.sessions().record_replay(session, *attachment, &msg_id, before);
        let mut messages = Vec::new();
        if wants_comms(request) {
            match kernel.recorder().widgets(position, &execution.header).await {
                Ok(widgets) => messages.extend(widgets.into_iter().map(|widget| (Channel::Iopub, widget))),
                Err(error) => warn!(kernel_id = %kernel.id(), %error, "the open comms cannot be read"),
            }
        }
        // The client's live messages wait for this, so it has a deadline.
        match timeout(READ_DEADLINE, self.shown(&execution, position, Audience::New)).await {
            Ok(Ok(replay)) => messages.extend(replay),
            Ok(Err(error)) => messages.extend(unreadable(&error)),
            Err(elapsed) => messages.extend(unreadable(&elapsed)),
        }
        messages
    }

    /// The cloneable part, which sends and acknowledges.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The last entry that was read, or the start position.
    #[must_use]
    pub fn position(&self) -> Seq {
        self.reader.position()
    }

    /// Waits for the next entries. [`Client::delivers`] decides which of them the client receives. `None` if the kernel
    /// was shut down and everything is read. Cancel-safe.
    ///
    /// # Errors
    /// [`ReadError::Gap`] if entries are missing: call again to continue after them. [`ReadError::Store`] if the store
    /// cannot be read.
    pub async fn next(&mut self) -> Result<Option<Block>, ReadError> {
        self.reader.next().await
    }

    /// Returns the next entries if they are in memory. If not, [`next`](Self::next) may read them from the store.
    ///
    /// # Errors
    /// [`ReadError::Gap`] as for [`next`](Self::next).
    pub fn recent(&mut self) -> Result<Option<Block>, ReadError> {
        self.reader.recent()
    }

    /// Waits until another connection attaches the same session. That connection replaces this one, unless this one is
    /// [shared](Kernel::attach_shared).
    pub fn superseded(&self) -> impl Future<Output = ()> + Send + use<> {
        let mine = self.client.lease.attachment;
        let mut current = self.current.clone();
        async move {
            // The sender lives as long as the session is attached.
            let _ = current.wait_for(|current| *current != mine).await;
        }
    }
}

/// Deadline for reading an execution that a client asks to follow.
const READ_DEADLINE: Duration = Duration::from_secs(60);
/// Index of the parent header among a message's parts.
const PARENT: usize = 2;

/// Whether this message announces the start of a kernel: an `iopub_welcome`, or a `starting` status without a parent.
/// jupyter_server does not forward these, and many clients read `parent_header["msg_id"]` of every message.
fn is_of_start(entry: &Entry) -> bool {
    let message = entry.v1();
    // Nearly every message has a parent, so check that first, without decoding the message.
    let has_parent = V1Message::parse(&message).is_ok_and(|message| message.part(PARENT).len() > b"{}".len());
    if has_parent || entry.channel() != Channel::Iopub {
        return false;
    }
    let message = entry.message();
    message.header_ref().is_ok_and(|header| match &*header.msg_type {
        "iopub_welcome" => true,
        "status" => reported_state(message.content()) == Some(ExecutionState::Starting),
        _ => false,
    })
}

impl Client {
    fn new(kernel: Arc<Kernel>, session: Arc<str>, attachment: u64, followed: Arc<Followed>) -> Self {
        Self {
            lease: Arc::new(SessionLease {
                kernel,
                session,
                attachment,
                replayed: AllReplayedEntries::default(),
                followed,
                gap_end: AtomicU64::new(0),
            }),
        }
    }

    /// The kernel.
    #[must_use]
    pub fn kernel(&self) -> &Arc<Kernel> {
        &self.lease.kernel
    }

    /// The session id.
    #[must_use]
    pub fn session(&self) -> &str {
        &self.lease.session
    }

    /// Sends a message to the kernel. Waits while the kernel restarts. Drops [requests to follow an
    /// execution](crate::is_follow_request).
    ///
    /// # Errors
    /// [`SendError`] if the kernel is dead or the message cannot be sent.
    pub async fn send(&self, channel: Channel, message: WireMessage) -> Result<(), SendError> {
        let sessions = self.lease.kernel.sessions();
        self.mark_active();
        if channel == Channel::Stdin
            && let recorder = self.lease.kernel.recorder()
            && let Some(question) = recorder.question_answered(self.session(), &message).await
        {
            sessions.has_seen(&self.lease.session, self.lease.attachment, question);
        }
        self.lease.kernel.send(&self.lease.session, channel, message).await
    }

    /// Whether [`answer_from_log`](Self::answer_from_log) answers this message, in place of the kernel: a
    /// `kernel_info_request` or `comm_info_request` while an execution keeps the kernel's main shell busy. Otherwise a
    /// page that is opened at that time would get neither the kernel's features, such as subshells, nor its widgets.
    #[must_use]
    pub fn is_answered_from_log(&self, channel: Channel, message: &WireMessage) -> bool {
        self.lease.kernel.recorder().is_answered_from_log(channel, message)
    }

    /// Answers a request for which [`is_answered_from_log`](Self::is_answered_from_log) is true. The messages are only
    /// for this client; send them unchanged.
    pub async fn answer_from_log(&self, request: &WireMessage) -> Vec<(Channel, WireMessage)> {
        self.lease.kernel.recorder().answer_from_log(request).await
    }

    fn mark_active(&self) {
        let sessions = self.lease.kernel.sessions();
        sessions.mark_active(&self.lease.session, self.lease.attachment);
    }

    /// Detaches the client even if clones of it remain, for example in a task that waits to send the client's messages.
    pub fn leave(&self) {
        self.lease.leave();
    }

    /// Records that the client has everything up to `seq`, so that a reconnect resumes there. Has no effect for a
    /// client that tracks its own position.
    pub fn acknowledge(&self, seq: Seq) {
        self.lease
            .kernel
            .sessions()
            .acknowledge(&self.lease.session, self.lease.attachment, seq);
    }

    /// Returns messages for a plain Jupyter client that replace missing entries of the log. Each execution that may
    /// have output there gets a notice on stderr, but only one for adjacent gaps. Each execution that ended there gets
    /// a reply and an idle status, because the client would otherwise wait forever.
    #[must_use]
    pub fn gap_messages(&self, missing: &RangeInclusive<Seq>) -> Vec<(Channel, WireMessage)> {
        let gap_end = self.lease.gap_end.swap(missing.end().0, Ordering::Relaxed);
        let has_notice = gap_end.checked_add(1) == Some(missing.start().0) && gap_end != 0;
        let recorder = self.lease.kernel.recorder();
        recorder.gap_messages(self.session(), missing, has_notice)
    }

    /// Whether a plain Jupyter client receives this entry. It receives iopub messages, the replies and questions of its
    /// own requests and of executions that it [follows](Attachment::follow), life-cycle events that have a message in
    /// the Jupyter protocol, warnings before the kernel is culled, and notices that another session has answered a
    /// question. It does not receive entries that
    /// were already [replayed](Attachment::replay), or the kernel's messages about its start.
    #[must_use]
    pub fn delivers(&self, entry: &Entry) -> bool {
        match entry.origin() {
            Origin::Client => false,
            Origin::Kernel => self.is_addressed(entry) && !self.lease.replayed.contains(entry) && !is_of_start(entry),
            Origin::Lifecycle => {
                let message = entry.message();
                if is_answered_notice(&message) {
                    return self.has_question(entry, &message) && !self.lease.replayed.contains(entry);
                }
                self.is_addressed(entry)
                    && !self.lease.replayed.contains(entry)
                    && (message.header_ref().is_ok_and(|header| header.msg_type != LIFECYCLE)
                        || matches!(entry.lifecycle(), Some(Lifecycle::Culling { .. })))
            }
        }
    }

    /// Whether the entry reports that another session has answered a question which this client received, too.
    fn has_question(&self, entry: &Entry, message: &WireMessage) -> bool {
        entry.session() != self.session()
            && (self.lease.followed.has(message) || self.lease.kernel.recorder().concerns(message, self.session()))
    }

    fn is_addressed(&self, entry: &Entry) -> bool {
        entry.channel() == Channel::Iopub
            || entry.session().is_empty()
            || entry.session() == self.session()
            || self.lease.followed.has(&entry.message())
    }
}
