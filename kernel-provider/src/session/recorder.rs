//! The only one on a kernel's sockets: writes every message of both directions into the log.

mod reconnect;
mod runtime;
mod settle;
mod setup;
#[cfg(feature = "testing")]
mod simulated;

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use jupyter_protocol::content::{Content, KernelInfoRequest};
use jupyter_protocol::header;
use jupyter_protocol::message::Message;
use jupyter_protocol::signing::DigestHistory;
use jupyter_protocol::wire::WireError;
use jupyter_protocol::zmq::{
    self, DealerReceiver, DealerSender, IopubSubscriber, MAX_MESSAGE_BYTES, MessageMemory, SocketError,
};
use jupyter_protocol::{Channel, ConnectionInfo, LogLimiter, Signer, WireMessage};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;
use tokio::sync::{Mutex as AsyncMutex, Notify, oneshot, watch};
use tokio::task::{JoinSet, spawn_blocking, yield_now};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{Instrument, debug, info, info_span, warn};

use self::reconnect::Pauses;
use self::runtime::in_runtime;
use self::settle::Statuses;
use self::setup::Setup;
use super::askers::{Addressee, Asker, Askers};
use super::execution_record::ExecutionRecord;
use super::execution_state::{ExecutionState, StatusFollower};
use super::executions::message_at;
use super::flood::{Flood, GATHER};
use super::index_keys as keys;
use super::journal::{Journal, Known};
use super::lifecycle::Lifecycle;
use super::peek;
use super::replay::kernel_session;
use super::synthetic_reply::{self, MISSING, NOT_KEPT};
use crate::KernelId;
use crate::fold::answers;
use crate::log::{Log, NewEntry, Origin, Seq, StoreError};

/// How many iopub messages are appended in one go at the most, so that a flood does not hold back its first output.
const MAX_BATCH: usize = 256;
/// The same in bytes.
const MAX_BATCH_BYTES: usize = 256 << 10;
/// After how many batches in a row the task yields.
const BATCHES: usize = 8;
/// From how many bytes on a message is verified on a thread of its own, so that other kernels need not wait for it, and
/// is stored before the next one is received, so that there are few copies of it.
const LARGE: usize = 1 << 20;
/// The longest that what a kernel said before it ended is waited for.
const LAST_WORDS_DEADLINE: Duration = Duration::from_secs(2);
/// How long a kernel has to answer before it is asked again whether it is there.
const NUDGE_AFTER: Duration = Duration::from_millis(250);
/// The session of our own requests: no client's, so their replies are delivered to none.
const OUR_SESSION: &str = "kernelmux";

/// Why a message could not be sent to a kernel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The kernel is gone and is not coming back.
    #[error("the kernel is dead; restart it or start another")]
    Dead,
    /// No client sends on iopub or the heartbeat.
    #[error("clients do not send on {0}; they send on shell, control and stdin")]
    NotToBeSentOn(Channel),
    /// The kernel was started anew before it took the `execute_request`, which is in the log and ended with the one before.
    #[error("the kernel was restarted before it took the code; send it again as another message")]
    Restarted,
    /// The header is no JSON object.
    #[error(transparent)]
    Header(#[from] jupyter_protocol::header::HeaderError),
    /// The kernel's socket was not to be reached for 60 seconds.
    #[error(transparent)]
    Socket(#[from] SocketError),
}

/// Why a request of our own had no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// It could not be sent.
    #[error(transparent)]
    Send(#[from] SendError),
    /// No answer came in time, or the kernel was restarted.
    #[error("the kernel did not answer {msg_type} within {deadline:?}")]
    NoAnswer {
        /// The request.
        msg_type: String,
        /// How long was waited.
        deadline: Duration,
    },
}

/// How kernels are recorded.
#[derive(Clone, Debug)]
pub(crate) struct RecorderOptions {
    /// Where iopub is read; `None` for the runtime of the caller.
    pub(crate) runtime: Option<Handle>,
    /// The memory for large messages.
    pub(crate) memory: MessageMemory,
}

/// Records one kernel, over all its restarts.
pub(crate) struct Recorder {
    recording: Arc<Recording>,
    runtime: Option<Handle>,
    /// The tasks on the sockets; ended with the connection.
    connection: Mutex<Option<JoinSet<()>>>,
}

struct Recording {
    id: KernelId,
    log: Log,
    journal: Mutex<Journal>,
    askers: Askers,
    statuses: Statuses,
    senders: Senders,
    /// How many times all sockets were let go of: who was given one knows by this whether it is of the kernel as it is now.
    lives: AtomicU64,
    link: watch::Sender<Link>,
    /// Whether more may come from the kernel's iopub.
    publishing: watch::Sender<bool>,
    setup: Setup,
    state: watch::Sender<ExecutionState>,
    last_activity: AtomicI64,
    kernel_session: Mutex<Arc<str>>,
    memory: MessageMemory,
}

/// A panic elsewhere while the lock was held leaves a session that was told.
fn lock(session: &Mutex<Arc<str>>) -> MutexGuard<'_, Arc<str>> {
    session.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    /// No sockets, for now.
    Down,
    /// Sockets connected; nothing heard on iopub yet, so the subscription may not be live.
    Connected,
    /// The same, and clients have waited for it long enough.
    Unheard,
    /// The subscription is live; the kernel has not said what it does.
    Subscribed,
    /// It has, so that its state is known from now on.
    Live,
    /// No sockets ever again.
    Dead,
}

/// The sending halves. One is missing while its connection is lost. Each is held by itself: a kernel that takes no more
/// requests may wait for an answer, or have to be interrupted.
#[derive(Default)]
struct Senders {
    shell: AsyncMutex<Option<Sender>>,
    control: AsyncMutex<Option<Sender>>,
    stdin: AsyncMutex<Option<Sender>>,
}

impl Senders {
    fn of(&self, channel: Channel) -> &AsyncMutex<Option<Sender>> {
        match channel {
            Channel::Control => &self.control,
            Channel::Stdin => &self.stdin,
            _ => &self.shell,
        }
    }

    async fn set(&self, channel: Channel, sender: Option<Sender>) {
        *self.of(channel).lock().await = sender;
    }

    async fn clear(&self) {
        for channel in [Channel::Shell, Channel::Control, Channel::Stdin] {
            self.set(channel, None).await;
        }
    }
}

/// Signs messages and takes them to the kernel.
struct Sender {
    signer: Signer,
    to: Destination,
}

enum Destination {
    Socket(DealerSender),
    #[cfg(feature = "testing")]
    Simulated(Channel, tokio::sync::mpsc::Sender<(Channel, WireMessage)>),
}

impl Recorder {
    /// Goes on with what the log's index says of requests and executions.
    pub(crate) async fn load(log: Log, options: RecorderOptions) -> Result<Self, StoreError> {
        let RecorderOptions { runtime, memory } = options;
        let journal = Journal::load(&log).await?;
        Ok(Self {
            recording: Arc::new(Recording {
                id: log.kernel_id(),
                log,
                journal: Mutex::new(journal),
                askers: Askers::default(),
                statuses: Statuses::default(),
                senders: Senders::default(),
                lives: AtomicU64::new(0),
                link: watch::Sender::new(Link::Down),
                publishing: watch::Sender::new(false),
                setup: Setup::default(),
                state: watch::Sender::new(ExecutionState::Starting),
                last_activity: AtomicI64::new(Utc::now().timestamp_micros()),
                kernel_session: Mutex::new(OUR_SESSION.into()),
                memory,
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

    /// The session's executions that had entries after `seq`, or have not ended, in the order in which they were asked.
    pub(super) fn active_after(&self, session: &str, seq: Seq) -> Vec<ExecutionRecord> {
        self.recording.journal().active_after(session, seq)
    }

    /// The number of the entry that is appended next.
    pub(crate) fn next_entry(&self) -> Seq {
        self.recording.log.append([]).next()
    }

    /// The kernel has answered for the first time after a restart: what was asked before entry `asked_before` ended with
    /// the process before. What was asked later waited for this one.
    pub(crate) fn restarted(&self, asked_before: Seq) {
        self.recording.lifecycle_of(&Lifecycle::Restarted, asked_before);
    }

    /// Ends the executions that the kernel's death ends, which is told after that.
    pub(crate) fn end_with_kernel(&self, event: &Lifecycle) {
        self.recording.end_with_kernel(event, Seq(u64::MAX));
    }

    /// The kernel, which ran before, is attached to: what it put out for so long nobody recorded.
    pub(crate) fn attached(&self, unrecorded_ms: Option<i64>) {
        self.lifecycle(&Lifecycle::Attached { unrecorded_ms });
        self.recording.tell_running(MISSING, true);
    }

    /// Notices for a client of this session that cannot get the entries after `seq`: of each of its executions that may
    /// have had some.
    pub(super) fn gap_notices(&self, session: &str, seq: Seq) -> Vec<WireMessage> {
        let kernel_session = self.recording.kernel_session();
        let executions = self.active_after(session, seq);
        let notices = executions
            .iter()
            .filter(|execution| execution.started.is_some())
            .map(|execution| synthetic_reply::notice(execution, NOT_KEPT, &kernel_session));
        notices.collect()
    }

    /// Appends what became of the kernel. Returns the entry's number.
    pub(crate) fn lifecycle(&self, event: &Lifecycle) -> Seq {
        self.recording.lifecycle(event)
    }

    /// Lets clients' requests pass when it is dropped, however the start of a kernel ends.
    pub(crate) fn ends_setup(&self) -> impl Drop + use<'_> {
        self.recording.setup.ends()
    }

    /// Takes the sockets of a kernel that was just started, in place of those before.
    pub(crate) async fn connect(&self, info: &ConnectionInfo, deadline: Duration) -> Result<(), SocketError> {
        // Before a client's request finds a socket.
        let connected = || self.recording.setup.begin();
        self.connect_sockets(info, deadline, connected).await.map(drop)
    }

    /// Takes the sockets of a kernel that ran before, of which nothing was recorded since `recorded`. Once it answers,
    /// what it had been sent is settled.
    pub(crate) async fn reconnect(
        &self,
        info: &ConnectionInfo,
        deadline: Duration,
        recorded: Option<DateTime<Utc>>,
    ) -> Result<(), SocketError> {
        self.recording.find_kernel_session().await;
        // Before anything of what it says from now on.
        let attached = || {
            let unrecorded_ms = recorded.map(|recorded| (Utc::now() - recorded).num_milliseconds());
            self.attached(unrecorded_ms);
        };
        self.connect_sockets(info, deadline, attached).await?.notify_one();
        Ok(())
    }

    /// Gives what is told of each connection that was made anew.
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
        tasks.spawn(reconnect::settle(self.recording.clone(), reconnected.clone()).instrument(span.clone()));
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
        self.recording.link.send_replace(Link::Connected);
        Ok(reconnected)
    }

    /// Records what a kernel that has ended said last: until its iopub is read to the end, or for a while where somebody
    /// else keeps that open, which is told: something may be on its way still.
    pub(crate) async fn hear_out(&self) {
        let mut publishing = self.recording.publishing.subscribe();
        let heard = timeout(LAST_WORDS_DEADLINE, publishing.wait_for(|publishing| !publishing)).await;
        if heard.is_err() {
            self.lifecycle(&Lifecycle::Disconnected);
        }
    }

    /// Lets go of the sockets. What clients send waits until there are new ones.
    pub(crate) async fn disconnect(&self) {
        self.recording.link.send_if_modified(|link| {
            let up = !matches!(link, Link::Dead);
            if up {
                *link = Link::Down;
            }
            up
        });
        let tasks = self.take_connection();
        if let Some(mut tasks) = tasks {
            // Waited for, so that nothing is appended after what is told next.
            tasks.shutdown().await;
        }
        self.recording.publishing.send_replace(false);
        self.recording.senders.clear().await;
        self.recording.setup.end();
        // Now that nobody has a socket of the kernel as it was.
        self.recording.lives.fetch_add(1, Ordering::AcqRel);
        self.recording.askers.clear();
    }

    /// Lets go of the sockets for good: what clients send is refused from now on.
    pub(crate) async fn finish(&self) {
        self.disconnect().await;
        self.recording.link.send_replace(Link::Dead);
        self.set_state(ExecutionState::Dead);
    }

    /// Whether there are no sockets for now, as before the first connection.
    pub(crate) fn is_disconnected(&self) -> bool {
        *self.recording.link.borrow() == Link::Down
    }

    /// Undoes [`finish`](Self::finish), for a dead kernel that is restarted.
    pub(crate) fn revive(&self) {
        self.recording.link.send_replace(Link::Down);
    }

    fn set_connection(&self, tasks: JoinSet<()>) {
        *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = Some(tasks);
    }

    fn take_connection(&self) -> Option<JoinSet<()>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Waits until the kernel answers and what it publishes arrives. Clients' requests are sent once it has answered; before
    /// them, where `lossless`, what makes ipykernel drop no output.
    pub(crate) async fn ready(&self, deadline: Duration, lossless: bool) -> Result<(), RequestError> {
        let end = Instant::now() + deadline;
        let mut link = self.recording.link.subscribe();
        let mut answered = false;
        let mut patience = NUDGE_AFTER;
        loop {
            // Each try makes the kernel publish its status, which shows that the subscription is live.
            let until = end.min(Instant::now() + patience);
            let left = until.saturating_duration_since(Instant::now());
            let subscribed = matches!(*link.borrow(), Link::Subscribed | Link::Live);
            match self.request(Channel::Shell, KernelInfoRequest::default(), left).await {
                Ok(reply) => {
                    if !std::mem::replace(&mut answered, true) {
                        self.recording.set_up(&reply, lossless).await;
                    }
                }
                // Asking again would fail at once, over and over.
                Err(dead @ RequestError::Send(SendError::Dead)) => return Err(dead),
                Err(_) => {}
            }
            // Where only the answer came, and the subscription was live too late for the status, it is asked again at once.
            if answered
                && let Ok(Ok(heard)) = timeout_at(
                    until,
                    link.wait_for(|link| *link == Link::Live || !subscribed && *link == Link::Subscribed),
                )
                .await
                && *heard == Link::Live
            {
                return Ok(());
            }
            if Instant::now() >= end {
                return Err(RequestError::NoAnswer {
                    msg_type: "kernel_info_request".to_owned(),
                    deadline,
                });
            }
            patience *= 2;
        }
    }

    /// Sends a request of our own and waits for its reply.
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
        match timeout(deadline, self.recording.ask(channel, &message)).await {
            Ok(answer) => answer?.ok_or_else(no_answer),
            Err(_) => Err(no_answer()),
        }
    }

    /// The entry of the open question that this session answers with this message.
    pub(crate) async fn question_answered(&self, session: &str, message: &WireMessage) -> Option<Seq> {
        let open = self.recording.journal().open_questions(session);
        for seq in open {
            if let Ok(Some((_, question))) = message_at(&self.recording.log, seq).await
                && answers(message, &question)
            {
                return Some(seq);
            }
        }
        None
    }

    /// Logs a client's message and sends it to the kernel. Waits while the kernel is being restarted or its connection
    /// is lost, and where its socket's queue is full.
    pub(crate) async fn send(
        &self,
        session: &Arc<str>,
        channel: Channel,
        message: WireMessage,
    ) -> Result<(), SendError> {
        let message = completed(message, session);
        self.recording
            .send(channel, session, message, Asker::Session(session.clone()))
            .await
    }
}

impl Recording {
    /// A panic elsewhere while the lock was held leaves a journal that lacks at most what was being looked at.
    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request of our own. Gives its reply; `None` where the kernel is started anew instead.
    async fn ask(&self, channel: Channel, request: &Message) -> Result<Option<WireMessage>, SendError> {
        let (reply, answer) = oneshot::channel();
        self.send(channel, OUR_SESSION, request.to_wire(), Asker::Ourselves(reply))
            .await?;
        Ok(answer.await.ok())
    }

    async fn send(&self, channel: Channel, session: &str, message: WireMessage, asker: Asker) -> Result<(), SendError> {
        if !matches!(channel, Channel::Shell | Channel::Control | Channel::Stdin) {
            return Err(SendError::NotToBeSentOn(channel));
        }
        let header = message.header_ref()?;
        let mut sender = self.sender_for(channel, session).await?;
        let life = self.lives.load(Ordering::Acquire);
        let ours = matches!(asker, Asker::Ourselves(_));
        // Nobody else sends meanwhile, so what is not known now is not known when it is appended.
        if !ours && self.was_asked(&header.msg_id, &message).await {
            debug!(msg_id = %header.msg_id, "a message that the kernel has been sent before is dropped");
            return Ok(());
        }
        if header.msg_type.ends_with("_request") {
            self.askers.expect_reply(&header.msg_id, asker);
        }
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
            let mut journal = self.journal();
            self.log.append_indexed(now, [entry], |seq| {
                journal.asked(seq, now, session, channel, &message);
                journal.take_updates()
            })
        };
        let unsent = Unsent {
            recording: self,
            msg_id: &message.header_ref()?.msg_id,
        };
        if !ours && !only_asks(&message) {
            // First the log has it: where the process is killed in between, the request is lost, which its record tells.
            // The other way about, a client that asks again would run it twice.
            self.log.stored(seq).await;
        }
        let sent = self.send_on(&mut sender, channel, message.clone()).await;
        drop(sender);
        let sent = match sent {
            Ok(()) => Ok(()),
            Err(error) => self.send_again(life, channel, session, message.clone(), error).await,
        };
        if let Err(error) = &sent {
            if !is_execution(&message) {
                return sent;
            }
            // Its client has seen it in the log, or waits for its reply: neither sends it again. What the restart ends is
            // told with that.
            if !matches!(error, SendError::Restarted) {
                self.lose(&[unsent.msg_id.into()], &self.kernel_session());
            }
        }
        unsent.was_sent();
        sent
    }

    /// Whether the kernel was sent this message, over whichever connection, by this process or one before it. Another
    /// message of the same id was not.
    async fn was_asked(&self, msg_id: &str, message: &WireMessage) -> bool {
        let known = self.journal().knows(msg_id);
        if known == Known::No {
            return false;
        }
        let before = match self.log.index_get(keys::request(msg_id)).await {
            Ok(seq) => seq.and_then(|seq| keys::seq_of(&seq)),
            Err(error) => {
                warn!(%error, "the index does not say whether a message was sent before");
                return known == Known::Yes;
            }
        };
        // An ended execution's record goes from the index before it goes from memory.
        let Some(before) = before else {
            return known == Known::Yes;
        };
        if known == Known::Yes {
            self.log.stored(before).await;
        } else if before > self.log.head() {
            // With some stores the index may be ahead of the entries.
            return false;
        }
        match message_at(&self.log, before).await {
            Ok(Some((_, before))) => is_same_request(&before, message),
            // What it was is not known any more, but that there was one is.
            Ok(None) | Err(_) => true,
        }
    }

    /// The session that asked for what this message answers, before this process was started.
    fn asked_before(&self, message: &WireMessage) -> Option<Arc<str>> {
        let parent = message.parent_ref().ok()?;
        Some(self.journal().session_of(&parent.msg_id)?.into())
    }

    /// Appends messages of the kernel that came together, after which it is in this state.
    fn record(&self, channel: Channel, session: &str, messages: &[WireMessage], state: Option<ExecutionState>) {
        self.touch();
        let now = Utc::now();
        let mut journal = self.journal();
        let entries = messages.iter().map(|message| NewEntry {
            origin: Origin::Kernel,
            channel,
            session,
            message,
        });
        self.log.append_indexed(now, entries, |first| {
            for (seq, message) in (first.0..).zip(messages) {
                journal.said(Seq(seq), now, channel, message);
            }
            // Before a client can read the entries: one that is told idle and asks for the state is not told busy.
            if let Some(state) = state {
                self.set_state(state);
            }
            journal.take_updates()
        });
        if journal.take_ended() {
            // What somebody may have waited for long is to survive the machine too.
            self.log.sync_soon();
        }
    }

    /// Appends what came together on iopub, and learns from it what the kernel does.
    fn record_published(&self, messages: &[WireMessage], status: &mut StatusFollower) {
        let statuses: Vec<_> = messages
            .iter()
            .filter_map(|message| Some((status.follow(message)?, message)))
            .collect();
        let told = statuses.last().copied();
        self.record(Channel::Iopub, "", messages, told.map(|(state, _)| state));
        for (_, message) in statuses {
            self.statuses.heard(message);
        }
        if let Some((_, message)) = told
            && let Ok(header) = message.header_ref()
            && let mut session = lock(&self.kernel_session)
            && **session != *header.session
        {
            *session = (*header.session).into();
        }
        if let Some((ExecutionState::Idle, message)) = told
            && status.idle_for_the_first_time()
            && let Ok(header) = message.header_ref()
        {
            let session = header.session.into_owned();
            self.lifecycle(&Lifecycle::Idle { session });
        }
        self.link.send_if_modified(|link| {
            let now = match *link {
                Link::Connected | Link::Unheard | Link::Subscribed if told.is_some() => Link::Live,
                Link::Connected | Link::Unheard => Link::Subscribed,
                other => other,
            };
            std::mem::replace(link, now) != now
        });
    }

    /// Appends what came on shell, control or stdin, for whom it is.
    fn record_reply(&self, channel: Channel, message: WireMessage) {
        let mut addressee = self.askers.addressee(channel, &message);
        if matches!(addressee, Addressee::All)
            && let Some(session) = self.asked_before(&message)
        {
            addressee = Addressee::Session(session);
        }
        let session = match &addressee {
            Addressee::Session(session) => session,
            Addressee::Ourselves(_) => OUR_SESSION,
            Addressee::Setup => return setup::answered(&message),
            Addressee::All => "",
        };
        self.record(channel, session, std::slice::from_ref(&message), None);
        if let Addressee::Ourselves(waiting) = addressee {
            // Who asked may have stopped waiting.
            let _ = waiting.send(message);
        }
    }

    fn lifecycle(&self, event: &Lifecycle) -> Seq {
        self.lifecycle_of(event, Seq(u64::MAX))
    }

    /// The same, where it is about executions that were asked before this entry.
    fn lifecycle_of(&self, event: &Lifecycle, asked_before: Seq) -> Seq {
        let message = event.message(OUR_SESSION);
        if !matches!(event, Lifecycle::Quiet) {
            self.touch();
        }
        let entry = NewEntry {
            origin: Origin::Lifecycle,
            channel: Channel::Iopub,
            session: "",
            message: &message,
        };
        // Clients of the Jupyter protocol have the ends of their executions before they see the kernel dead or restarting.
        self.end_with_kernel(event, asked_before);
        self.log.append([entry])
    }

    /// The session that the kernel named last in a status; ours where it has named none.
    fn kernel_session(&self) -> Arc<str> {
        lock(&self.kernel_session).clone()
    }

    /// Sets the kernel's session to what it named while its oldest execution that has not ended ran.
    async fn find_kernel_session(&self) {
        let running = self.journal().running();
        if let Some(execution) = running.first()
            && let Ok(Some(session)) = kernel_session(&self.log, execution).await
        {
            *lock(&self.kernel_session) = session.into();
        }
    }

    /// Tells clients that know only the Jupyter protocol that output of what runs is missing; `is_hole` where it is not
    /// known how much.
    fn tell_running(&self, text: &str, is_hole: bool) {
        let kernel_session = self.kernel_session();
        let now = Utc::now();
        let mut journal = self.journal();
        for execution in journal.running() {
            let notice = synthetic_reply::notice(&execution, text, &kernel_session);
            let entry = NewEntry {
                origin: Origin::Lifecycle,
                channel: Channel::Iopub,
                session: "",
                message: &notice,
            };
            self.log.append_indexed(now, [entry], |seq| {
                journal.told_missing(execution.msg_id(), seq, is_hole);
                journal.take_updates()
            });
        }
    }

    fn touch(&self) {
        self.last_activity
            .store(Utc::now().timestamp_micros(), Ordering::Relaxed);
    }

    fn set_state(&self, state: ExecutionState) {
        self.state.send_if_modified(|current| {
            let changed = *current != state;
            *current = state;
            changed
        });
    }
}

/// The message with what its header lacks filled in.
fn completed(message: WireMessage, session: &str) -> WireMessage {
    let Some(header) = header::completed(message.header(), session) else {
        return message;
    };
    let [_, parent, metadata, content] = message.parts().map(Bytes::clone);
    WireMessage::from_parts(
        [header.into(), parent, metadata, content],
        message.buffers().iter().cloned(),
    )
}

/// Whether both ask for the same: to run the same code, or anything else with the same content.
fn is_same_request(one: &WireMessage, other: &WireMessage) -> bool {
    #[derive(Deserialize)]
    struct Execute {
        code: String,
    }
    fn parsed<T: DeserializeOwned>(message: &WireMessage) -> Option<T> {
        serde_json::from_slice(message.content()).ok()
    }
    if peek::msg_type(one) != peek::msg_type(other) || one.buffers() != other.buffers() {
        return false;
    }
    one.content() == other.content()
        || is_execution(one)
            && matches!((parsed::<Execute>(one), parsed::<Execute>(other)), (Some(one), Some(other)) if one.code == other.code)
}

/// Whether this is code of a client's, which runs in the kernel that it was for or in none.
fn is_execution(message: &WireMessage) -> bool {
    &*peek::msg_type(message) == "execute_request"
}

/// Whether this changes nothing in the kernel, so that it may be sent twice. Who completes while typing is not to wait for
/// a disk.
fn only_asks(message: &WireMessage) -> bool {
    matches!(
        &*peek::msg_type(message),
        "kernel_info_request"
            | "complete_request"
            | "inspect_request"
            | "is_complete_request"
            | "history_request"
            | "comm_info_request"
    )
}

/// Lets a message that was appended be tried again, should it not be sent: the socket is broken, or whoever sends has
/// given up waiting.
struct Unsent<'a> {
    recording: &'a Recording,
    msg_id: &'a str,
}

impl Unsent<'_> {
    fn was_sent(self) {
        self.recording.journal().sent(self.msg_id);
        std::mem::forget(self);
    }
}

impl Drop for Unsent<'_> {
    fn drop(&mut self) {
        let mut journal = self.recording.journal();
        journal.not_sent(self.msg_id);
        self.recording.log.update_index(journal.take_updates());
    }
}

/// A received message that was not admitted.
enum Refused {
    /// This one message.
    Message(WireMessage),
    /// What was received is no message; the socket goes on.
    Garbage,
    /// A message of so many bytes, which were passed over: it was too large, or there was no memory for it.
    LeftOut(u64),
    /// The socket is broken.
    Broken,
}

/// Checks what arrives on one socket.
struct Gate {
    channel: Channel,
    signer: Signer,
    seen: DigestHistory,
    refusals: LogLimiter,
}

impl Gate {
    fn new(channel: Channel, signer: Signer) -> Self {
        Self {
            channel,
            signer,
            seen: DigestHistory::default(),
            refusals: LogLimiter::new(),
        }
    }

    async fn check(&mut self, message: &WireMessage) -> Result<(), WireError> {
        if self.signer.signs() && size(message) >= LARGE {
            let (signer, message) = (self.signer.clone(), message.clone());
            let verified = spawn_blocking(move || message.verify(&signer)).await;
            // It fails where the process ends.
            verified.unwrap_or(Err(WireError::BadSignature))?;
        } else {
            message.verify(&self.signer)?;
        }
        if self.signer.signs() && !self.seen.insert(message.signature()) {
            return Err(WireError::Replayed);
        }
        Ok(())
    }

    /// Passes the message on where it is the kernel's; logs what is not.
    async fn admit(&mut self, received: Result<WireMessage, SocketError>) -> Result<WireMessage, Refused> {
        let (error, refused) = match received {
            Ok(message) => match self.check(&message).await {
                Ok(()) => return Ok(message),
                Err(error) => (error, Refused::Message(message)),
            },
            Err(SocketError::Wire(error)) => match error {
                WireError::TooLarge { bytes, .. } | WireError::NoMemory { bytes } => (error, Refused::LeftOut(bytes)),
                _ => (error, Refused::Garbage),
            },
            Err(error) => {
                // As with every connection whose kernel ends.
                info!(channel = %self.channel, %error, "nothing more comes from the kernel");
                return Err(Refused::Broken);
            }
        };
        if let Some(left_out) = self.refusals.due() {
            warn!(channel = %self.channel, %error, left_out, "a message from the kernel was refused");
        }
        Err(refused)
    }
}

fn size(message: &WireMessage) -> usize {
    message.parts_and_buffers().iter().map(Bytes::len).sum()
}

/// What was received on iopub and is recorded together. It is recorded also where its task is ended.
struct Batch {
    recording: Arc<Recording>,
    messages: Vec<WireMessage>,
    status: StatusFollower,
}

impl Batch {
    fn record(&mut self) {
        if !self.messages.is_empty() {
            self.recording.record_published(&self.messages, &mut self.status);
            self.messages.clear();
        }
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.record();
    }
}

/// Drains iopub and never waits for a reader. Where the store falls far behind it waits for that.
async fn record_iopub(
    recording: Arc<Recording>,
    mut iopub: IopubSubscriber,
    address: String,
    signer: Signer,
    reconnected: Arc<Notify>,
) {
    let mut pauses = Pauses::new();
    let mut silent = false;
    let mut gate = Gate::new(Channel::Iopub, signer);
    let mut batch = Batch {
        recording: recording.clone(),
        messages: Vec::new(),
        status: StatusFollower::default(),
    };
    let mut flood = Flood::new();
    // Whether messages are read as they arrive and recorded together a moment later.
    let mut collects = false;
    let mut batches = 0;
    loop {
        recording.log.room().await;
        let mut next = Some(iopub.recv().await);
        let until = Instant::now() + GATHER;
        let mut broken = false;
        let mut drained = true;
        let (mut received, mut bytes) = (0, 0);
        let mut left_out = None;
        while let Some(message) = next {
            received += 1;
            match gate.admit(message).await {
                Ok(message) => {
                    bytes += size(&message);
                    if !recording.setup.hides(&message) {
                        batch.messages.push(message);
                    }
                }
                Err(Refused::Message(message)) => {
                    bytes += size(&message);
                    iopub.refused(&message);
                }
                Err(Refused::Garbage) => {}
                Err(Refused::LeftOut(bytes)) => left_out = Some(bytes),
                Err(Refused::Broken) => broken = true,
            }
            if broken || left_out.is_some() || received >= MAX_BATCH || bytes >= MAX_BATCH_BYTES {
                drained = false;
                break;
            }
            next = match iopub.try_recv() {
                None if collects => timeout_at(until, iopub.recv()).await.ok(),
                next => next,
            };
        }
        if !batch.messages.is_empty() {
            let flooded = flood.goes_on(batch.messages.len());
            batch.record();
            silent = false;
            if !flooded {
                collects = false;
            } else if drained {
                collects = !iopub.gather(GATHER).await;
            }
            if bytes >= LARGE {
                recording.log.flushed().await;
            }
        }
        if let Some(bytes) = left_out {
            let reason = if bytes > MAX_MESSAGE_BYTES {
                format!("a message may have {} MiB", MAX_MESSAGE_BYTES >> 20)
            } else {
                "there was no memory for it beside other large outputs".to_owned()
            };
            let text = format!("An output of {} MiB is left out: {reason}.", bytes >> 20);
            recording.tell_running(&text, false);
        }
        if broken {
            // A hole is never silent, and one hole is one entry.
            if !silent {
                recording.lifecycle(&Lifecycle::Disconnected);
            }
            silent = true;
            recording.publishing.send_replace(false);
            iopub = recording.iopub_again(&address, &mut pauses).await;
            recording.publishing.send_replace(true);
            recording.tell_running(MISSING, true);
            // What ended meanwhile did so unheard.
            batch.status = StatusFollower::default();
            reconnected.notify_one();
        }
        // Other kernels and their clients have their turn, however much is at hand; not at each batch, for a kernel that
        // does not wait drops what is not read in time.
        batches = if drained { 0 } else { batches + 1 };
        if batches == BATCHES {
            batches = 0;
            yield_now().await;
        }
    }
}

async fn record_replies(
    recording: Arc<Recording>,
    channel: Channel,
    mut socket: DealerReceiver,
    (address, identity): (String, String),
    signer: Signer,
    reconnected: Arc<Notify>,
) {
    let mut pauses = Pauses::new();
    let mut gate = Gate::new(channel, signer.clone());
    loop {
        recording.log.room().await;
        let broken = match gate.admit(socket.recv().await).await {
            Ok(message) => {
                let is_large = size(&message) >= LARGE;
                recording.record_reply(channel, message);
                if is_large {
                    recording.log.flushed().await;
                }
                false
            }
            Err(Refused::Message(message)) => {
                socket.refused(&message);
                false
            }
            Err(Refused::Garbage) => false,
            Err(Refused::LeftOut(_)) => {
                // It may have been a reply that a client waits for.
                reconnected.notify_one();
                false
            }
            Err(Refused::Broken) => true,
        };
        if broken {
            // The kernel's side may not take two connections of one identity.
            drop(socket);
            socket = recording
                .dealer_again(channel, &address, &identity, &signer, &mut pauses)
                .await;
            // Replies may have been on the connection that is lost.
            reconnected.notify_one();
        }
    }
}
