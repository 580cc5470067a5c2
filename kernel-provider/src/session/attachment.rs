use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jupyter_protocol::codec::websocket_v1::V1Message;
use jupyter_protocol::{Channel, WireMessage};
use tokio::sync::watch;

use super::execution_state::{ExecutionState, told};
use super::lifecycle::LIFECYCLE;
use super::replay::{Ahead, replay};
use super::sessions::Joining;
use super::{ExecutionRecord, SendError};
use crate::log::{Block, Entry, Origin, ReadError, Reader, Seq};
use crate::manager::Kernel;

/// A client attached to a kernel: a position in its log, and a way to send.
///
/// Dropping it detaches the client and lets the kernel run. When a session comes back, it reads on after what it
/// [acknowledged](Client::acknowledge) last, and what it may or may not have seen is [replayed](Attachment::replay); a
/// session that was never there reads from the end of the log.
pub struct Attachment {
    client: Client,
    /// The executions in doubt, with the entry up to which they are replayed.
    in_doubt: VecDeque<ExecutionRecord>,
    acknowledged: Seq,
    reader: Reader,
    current: watch::Receiver<u64>,
}

/// The part of an [`Attachment`] that can be shared: sends and acknowledges.
#[derive(Clone)]
pub struct Client {
    hold: Arc<Hold>,
}

/// Detaches when the last of an attachment's parts is dropped.
struct Hold {
    kernel: Arc<Kernel>,
    session: Arc<str>,
    attachment: u64,
    ahead: AllAhead,
}

/// What the client was sent ahead of its place in the log.
#[derive(Default)]
struct AllAhead {
    /// Nothing is after this.
    until: AtomicU64,
    by_execution: Mutex<Vec<Ahead>>,
}

impl AllAhead {
    fn lock(&self) -> MutexGuard<'_, Vec<Ahead>> {
        self.by_execution.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn extend(&self, ahead: Option<Ahead>) {
        if let Some(ahead) = ahead {
            self.until.fetch_max(ahead.until.0, Ordering::Relaxed);
            self.lock().push(ahead);
        }
    }

    fn has(&self, entry: &Entry) -> bool {
        entry.seq().0 <= self.until.load(Ordering::Relaxed) && self.lock().iter().any(|ahead| ahead.has(entry))
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
    /// Attaches a client that only knows its session; `shared` where it may have several connections.
    pub(crate) fn of_session(kernel: Arc<Kernel>, session: &str, shared: bool) -> Self {
        let joining = if shared { Joining::Shared } else { Joining::Alone };
        let head = kernel.log().head();
        let session: Arc<str> = session.into();
        let joined = kernel.sessions().join(&session, head, joining);
        let acknowledged = joined.position.map_or(head, |position| position.acknowledged);
        // A session that is new here and has asked something was forgotten, as by a process that was killed before it
        // could store where the session was: what it has of that is not known.
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

    /// Attaches a client that remembers its place in the log.
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

    /// The messages to be sent before anything else, an execution at a time: they clear what the client shows of it and
    /// put it anew. `None` once all executions are done that the client may not have whole. Clients that remember their
    /// place have none.
    ///
    /// # Errors
    /// [`ReadError::Store`] where the log cannot be read; the execution is left out then.
    pub async fn replay(&mut self) -> Option<Result<Vec<(Channel, WireMessage)>, ReadError>> {
        let execution = self.in_doubt.pop_front()?;
        let replay = replay(self.client.kernel().log(), &execution, self.acknowledged).await;
        Some(replay.map(|replay| {
            self.client.hold.ahead.extend(replay.ahead);
            replay.messages
        }))
    }

    /// The part that sends and acknowledges.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The next entries of the log, of which [`delivers`](Client::delivers) says whether this client is to see them;
    /// waits until there are some. `None` where the kernel was shut down and all is read. Cancel-safe.
    ///
    /// # Errors
    /// [`ReadError::Gap`] where entries are missing: call again to read on after them. [`ReadError::Store`] where the
    /// store cannot be read.
    pub async fn next(&mut self) -> Result<Option<Block>, ReadError> {
        self.reader.next().await
    }

    /// The next entries where some are in memory already.
    ///
    /// # Errors
    /// [`ReadError::Gap`] as for [`next`](Self::next).
    pub fn recent(&mut self) -> Result<Option<Block>, ReadError> {
        self.reader.recent()
    }

    /// Waits until the same session is attached anew, by another connection: this one is not wanted any more.
    pub fn superseded(&self) -> impl Future<Output = ()> + Send + use<> {
        let mine = self.client.hold.attachment;
        let mut current = self.current.clone();
        async move {
            // The sender lives as long as the session is known, which it is while it is attached.
            let _ = current.wait_for(|current| *current != mine).await;
        }
    }
}

/// The part of a message in the log's layout that is the parent's header.
const PARENT: usize = 2;

/// Whether this is what a kernel says of its own start: an `iopub_welcome`, or that it is starting, in answer to no
/// request. Clients of jupyter_server are not sent them, and many read `parent_header["msg_id"]` of each message.
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
        "status" => told(message.content()) == Some(ExecutionState::Starting),
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
                ahead: AllAhead::default(),
            }),
        }
    }

    /// The kernel.
    #[must_use]
    pub fn kernel(&self) -> &Arc<Kernel> {
        &self.hold.kernel
    }

    /// The session's key.
    #[must_use]
    pub fn session(&self) -> &str {
        &self.hold.session
    }

    /// Sends a message to the kernel. Waits while the kernel is being restarted.
    ///
    /// # Errors
    /// [`SendError`] where the kernel is dead, or the message cannot be sent.
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

    /// Detaches the client although parts of its attachment are kept, as by what it sent and the kernel does not take.
    pub fn leave(&self) {
        self.hold.leave();
    }

    /// Says that the client surely has everything up to `seq`: should it come back, it reads on from there.
    pub fn acknowledge(&self, seq: Seq) {
        self.hold
            .kernel
            .sessions()
            .acknowledge(&self.hold.session, self.hold.attachment, seq);
    }

    /// What a client that knows only the Jupyter protocol is told of entries from `first` on that it cannot get, since
    /// they are not in the log: a notice on stderr of each of its executions that may have had some.
    #[must_use]
    pub fn gap_notices(&self, first: Seq) -> Vec<WireMessage> {
        let before = Seq(first.0.saturating_sub(1));
        self.hold.kernel.recorder().gap_notices(self.session(), before)
    }

    /// Whether a client that knows only the Jupyter protocol is to see this entry: what is published, replies to what
    /// it asked, and such news of the kernel's life as have a message in that protocol. What was [replayed](Attachment::replay)
    /// ahead of it is not.
    #[must_use]
    pub fn delivers(&self, entry: &Entry) -> bool {
        match entry.origin() {
            Origin::Client => false,
            Origin::Kernel => self.is_addressed(entry) && !self.hold.ahead.has(entry) && !is_of_start(entry),
            Origin::Lifecycle => {
                let message = entry.message();
                self.is_addressed(entry)
                    && !self.hold.ahead.has(entry)
                    && message.header_ref().is_ok_and(|header| header.msg_type != LIFECYCLE)
            }
        }
    }

    fn is_addressed(&self, entry: &Entry) -> bool {
        entry.channel() == Channel::Iopub || entry.session().is_empty() || entry.session() == self.session()
    }
}
