use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jupyter_protocol::codec::websocket_v1::V1Message;
use jupyter_protocol::{Channel, WireMessage};
use kernel_log::{Block, Entry, LIFECYCLE, Origin, ReadError, Reader, Seq};
use tokio::sync::watch;

use super::Kernel;
use crate::session::{ExecutionRecord, ExecutionState, Joining, ReplayedEntries, SendError, replay, reported_state};

/// A client attached to a kernel: a position in its log, and a way to send.
///
/// Dropping it detaches the client; the kernel keeps running. A session that reconnects resumes after the entry that it
/// last [acknowledged](Client::acknowledge), and executions that it may have seen in part are
/// [replayed](Attachment::replay). A new session starts at the end of the log.
pub struct Attachment {
    client: Client,
    /// Executions to replay. Each is left out of the live stream up to the entry that its replay covers.
    in_doubt: VecDeque<ExecutionRecord>,
    acknowledged: Seq,
    reader: Reader,
    current: watch::Receiver<u64>,
}

impl fmt::Debug for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attachment")
            .field("client", &self.client)
            .finish_non_exhaustive()
    }
}

/// The cloneable part of an [`Attachment`]: sends and acknowledges.
#[derive(Clone)]
pub struct Client {
    hold: Arc<Hold>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("kernel", &self.hold.kernel.id())
            .field("session", &self.hold.session)
            .finish_non_exhaustive()
    }
}

/// Detaches when the last part of an attachment is dropped.
struct Hold {
    kernel: Arc<Kernel>,
    session: Arc<str>,
    attachment: u64,
    replayed: AllReplayedEntries,
}

/// Entries that the client received in a replay, before the reader reached them.
#[derive(Default)]
struct AllReplayedEntries {
    /// The last such entry of all executions.
    until: AtomicU64,
    by_execution: Mutex<Vec<ReplayedEntries>>,
}

impl AllReplayedEntries {
    fn lock(&self) -> MutexGuard<'_, Vec<ReplayedEntries>> {
        self.by_execution.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn extend(&self, replayed: Option<ReplayedEntries>) {
        if let Some(replayed) = replayed {
            self.until.fetch_max(replayed.until.0, Ordering::Relaxed);
            self.lock().push(replayed);
        }
    }

    fn contains(&self, entry: &Entry) -> bool {
        entry.seq().0 <= self.until.load(Ordering::Relaxed)
            && self.lock().iter().any(|replayed| replayed.contains(entry))
    }
}

impl Hold {
    fn leave(&self) {
        self.kernel.sessions().leave(&self.session, self.attachment);
    }
}

impl Drop for Hold {
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
        // A session that is new here but has made requests was forgotten, for example by a process that was killed
        // before it stored the position. What the client received is unknown.
        let sure = joined.position.map_or(Seq::START, |position| position.sure);
        let in_doubt = kernel.recorder().active_after(&session, sure);
        let from = match kernel.died_at() {
            Some(died) => acknowledged.min(Seq(died.0 - 1)),
            None => acknowledged,
        };
        Self {
            in_doubt: in_doubt.into(),
            acknowledged,
            reader: kernel.log().reader(from),
            current: joined.current,
            client: Client::hold(kernel, session, joined.attachment),
        }
    }

    /// Attaches a client that tracks its own position.
    pub(crate) fn at(kernel: Arc<Kernel>, session: &str, after: Seq) -> Self {
        let session: Arc<str> = session.into();
        let joined = kernel.sessions().join(&session, after, Joining::KnowsItsPlace);
        Self {
            in_doubt: VecDeque::new(),
            acknowledged: after,
            reader: kernel.log().reader(after),
            current: joined.current,
            client: Client::hold(kernel, session, joined.attachment),
        }
    }

    /// The messages to send before anything else, one execution at a time. They clear what the client shows of the
    /// execution and show it again. `None` when no execution is left that the client may have in part. Clients that
    /// track their own position have none.
    ///
    /// # Errors
    /// [`ReadError::Store`] if the log cannot be read; this execution is skipped.
    pub async fn replay(&mut self) -> Option<Result<Vec<(Channel, WireMessage)>, ReadError>> {
        let execution = self.in_doubt.pop_front()?;
        let replay = replay(self.client.kernel().log(), &execution, self.acknowledged).await;
        Some(replay.map(|replay| {
            self.client.hold.replayed.extend(replay.replayed);
            replay.messages
        }))
    }

    /// The part that sends and acknowledges.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
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

    /// The next entries that are already in memory.
    ///
    /// # Errors
    /// [`ReadError::Gap`] as for [`next`](Self::next).
    pub fn recent(&mut self) -> Result<Option<Block>, ReadError> {
        self.reader.recent()
    }

    /// Waits until another connection attaches the same session and replaces this one.
    pub fn superseded(&self) -> impl Future<Output = ()> + Send + use<> {
        let mine = self.client.hold.attachment;
        let mut current = self.current.clone();
        async move {
            // The sender lives as long as the session is attached.
            let _ = current.wait_for(|current| *current != mine).await;
        }
    }
}

/// Index of the parent header among a message's parts.
const PARENT: usize = 2;

/// Whether a kernel announces its own start: an `iopub_welcome`, or a `starting` status without a parent.
/// jupyter_server does not forward these, and many clients read `parent_header["msg_id"]` of every message.
fn is_of_start(entry: &Entry) -> bool {
    let message = entry.v1();
    // Nearly every message has a parent, which is found without decoding the message.
    let answers = V1Message::parse(&message).is_ok_and(|message| message.part(PARENT).len() > b"{}".len());
    if answers || entry.channel() != Channel::Iopub {
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
    fn hold(kernel: Arc<Kernel>, session: Arc<str>, attachment: u64) -> Self {
        Self {
            hold: Arc::new(Hold {
                kernel,
                session,
                attachment,
                replayed: AllReplayedEntries::default(),
            }),
        }
    }

    /// The kernel.
    #[must_use]
    pub fn kernel(&self) -> &Arc<Kernel> {
        &self.hold.kernel
    }

    /// The session id.
    #[must_use]
    pub fn session(&self) -> &str {
        &self.hold.session
    }

    /// Sends a message to the kernel. Waits while the kernel restarts.
    ///
    /// # Errors
    /// [`SendError`] if the kernel is dead or the message cannot be sent.
    pub async fn send(&self, channel: Channel, message: WireMessage) -> Result<(), SendError> {
        let sessions = self.hold.kernel.sessions();
        sessions.spoke(&self.hold.session, self.hold.attachment);
        if channel == Channel::Stdin
            && let recorder = self.hold.kernel.recorder()
            && let Some(question) = recorder.question_answered(self.session(), &message).await
        {
            sessions.has_seen(&self.hold.session, self.hold.attachment, question);
        }
        self.hold.kernel.send(&self.hold.session, channel, message).await
    }

    /// Detaches the client even if clones of this remain, for example in messages that the kernel has not read yet.
    pub fn leave(&self) {
        self.hold.leave();
    }

    /// Records that the client has everything up to `seq`. A reconnect resumes there.
    pub fn acknowledge(&self, seq: Seq) {
        self.hold
            .kernel
            .sessions()
            .acknowledge(&self.hold.session, self.hold.attachment, seq);
    }

    /// Notices for a plain Jupyter client that cannot get the entries from `first` on because they are not in the log:
    /// text on stderr for each of its executions that may have output there.
    #[must_use]
    pub fn gap_notices(&self, first: Seq) -> Vec<WireMessage> {
        let before = Seq(first.0.saturating_sub(1));
        self.hold.kernel.recorder().gap_notices(self.session(), before)
    }

    /// Whether a plain Jupyter client receives this entry: iopub messages, replies to its own requests, and life-cycle
    /// events that have a message in the Jupyter protocol. Entries that were [replayed](Attachment::replay) already are
    /// left out.
    #[must_use]
    pub fn delivers(&self, entry: &Entry) -> bool {
        match entry.origin() {
            Origin::Client => false,
            Origin::Kernel => self.is_addressed(entry) && !self.hold.replayed.contains(entry) && !is_of_start(entry),
            Origin::Lifecycle => {
                let message = entry.message();
                self.is_addressed(entry)
                    && !self.hold.replayed.contains(entry)
                    && message.header_ref().is_ok_and(|header| header.msg_type != LIFECYCLE)
            }
        }
    }

    fn is_addressed(&self, entry: &Entry) -> bool {
        entry.channel() == Channel::Iopub || entry.session().is_empty() || entry.session() == self.session()
    }
}
