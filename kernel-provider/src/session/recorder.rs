//! The only one on a kernel's sockets: writes every message of both directions into the log.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use jupyter_protocol::content::{Content, KernelInfoRequest};
use jupyter_protocol::message::Message;
use jupyter_protocol::signing::DigestHistory;
use jupyter_protocol::wire::WireError;
use jupyter_protocol::zmq::{self, DealerReceiver, DealerSender, IopubSubscriber, SocketError};
use jupyter_protocol::{Channel, ConnectionInfo, Signer, WireMessage};
use tokio::sync::{Mutex as AsyncMutex, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tracing::{Instrument, info_span, warn};

use super::askers::{Addressee, Asker, Askers};
use super::execution_state::{ExecutionState, StatusFollower};
use super::flood::Flood;
use super::lifecycle::Lifecycle;
use crate::KernelId;
use crate::log::{Log, NewEntry, Origin};

/// How many iopub messages are appended in one go at the most, so that a flood does not hold back its first output.
const MAX_BATCH: usize = 256;
/// The same in bytes.
const MAX_BATCH_BYTES: usize = 256 << 10;
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
    /// The header is no JSON object.
    #[error(transparent)]
    Header(#[from] jupyter_protocol::header::HeaderError),
    /// The socket is broken.
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

/// Records one kernel, over all its restarts.
pub(crate) struct Recorder {
    recording: Arc<Recording>,
    /// The tasks on the sockets; ended with the connection.
    connection: Mutex<Option<JoinSet<()>>>,
}

struct Recording {
    id: KernelId,
    log: Log,
    askers: Askers,
    senders: AsyncMutex<Option<Senders>>,
    link: watch::Sender<Link>,
    state: watch::Sender<ExecutionState>,
    last_activity: AtomicI64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    /// No sockets, for now.
    Down,
    /// Sockets connected; nothing heard on iopub yet, so the subscription may not be live.
    Connected,
    /// The subscription is live.
    Live,
    /// No sockets ever again.
    Dead,
}

struct Senders {
    signer: Signer,
    shell: DealerSender,
    control: DealerSender,
    stdin: DealerSender,
}

impl Recorder {
    pub(crate) fn new(log: Log) -> Self {
        Self {
            recording: Arc::new(Recording {
                id: log.kernel_id(),
                log,
                askers: Askers::default(),
                senders: AsyncMutex::new(None),
                link: watch::Sender::new(Link::Down),
                state: watch::Sender::new(ExecutionState::Starting),
                last_activity: AtomicI64::new(Utc::now().timestamp_micros()),
            }),
            connection: Mutex::new(None),
        }
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

    /// Appends what became of the kernel.
    pub(crate) fn lifecycle(&self, event: &Lifecycle) {
        self.recording.lifecycle(event);
    }

    /// Takes the kernel's sockets, in place of those before.
    pub(crate) async fn connect(&self, info: &ConnectionInfo, deadline: Duration) -> Result<(), SocketError> {
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
        let (iopub, shell, control, stdin) = tokio::try_join!(
            IopubSubscriber::connect(&iopub_at, deadline),
            zmq::dealer(&shell_at, &identity, deadline),
            zmq::dealer(&control_at, &identity, deadline),
            zmq::dealer(&stdin_at, &identity, deadline),
        )?;
        let mut tasks = JoinSet::new();
        let span = info_span!("recorder", kernel_id = %self.recording.id);
        tasks.spawn(record_iopub(self.recording.clone(), iopub, signer.clone()).instrument(span.clone()));
        for (channel, receiver) in [
            (Channel::Shell, shell.1),
            (Channel::Control, control.1),
            (Channel::Stdin, stdin.1),
        ] {
            let replies = record_replies(self.recording.clone(), channel, receiver, signer.clone());
            tasks.spawn(replies.instrument(span.clone()));
        }
        *self.recording.senders.lock().await = Some(Senders {
            signer,
            shell: shell.0,
            control: control.0,
            stdin: stdin.0,
        });
        self.set_connection(Some(tasks));
        self.recording.link.send_replace(Link::Connected);
        Ok(())
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
        self.set_connection(None);
        *self.recording.senders.lock().await = None;
        self.recording.askers.clear();
    }

    /// Lets go of the sockets for good: what clients send is refused from now on.
    pub(crate) async fn finish(&self) {
        self.disconnect().await;
        self.recording.link.send_replace(Link::Dead);
        self.set_state(ExecutionState::Dead);
    }

    /// Undoes [`finish`](Self::finish), for a dead kernel that is restarted.
    pub(crate) fn revive(&self) {
        self.recording.link.send_replace(Link::Down);
    }

    fn set_connection(&self, tasks: Option<JoinSet<()>>) {
        *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = tasks;
    }

    /// Waits until the kernel answers and what it publishes arrives.
    pub(crate) async fn ready(&self, deadline: Duration) -> Result<(), RequestError> {
        let end = Instant::now() + deadline;
        let mut link = self.recording.link.subscribe();
        let mut answered = false;
        let mut patience = NUDGE_AFTER;
        loop {
            // Each try makes the kernel publish its status, which shows that the subscription is live.
            let until = end.min(Instant::now() + patience);
            let left = until.saturating_duration_since(Instant::now());
            answered |= self
                .request(Channel::Shell, KernelInfoRequest::default(), left)
                .await
                .is_ok();
            if answered
                && timeout_at(until, link.wait_for(|link| *link == Link::Live))
                    .await
                    .is_ok()
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
        let (reply, answer) = oneshot::channel();
        let end = Instant::now() + deadline;
        match timeout_at(
            end,
            self.recording
                .send(channel, OUR_SESSION, message.to_wire(), Asker::Ourselves(reply)),
        )
        .await
        {
            Ok(sent) => sent?,
            Err(_) => return Err(no_answer()),
        }
        match timeout_at(end, answer).await {
            Ok(Ok(reply)) => Ok(reply),
            _ => Err(no_answer()),
        }
    }

    /// Logs a client's message and sends it to the kernel. Waits while the kernel is being restarted, and where its
    /// socket's queue is full.
    pub(crate) async fn send(
        &self,
        session: &Arc<str>,
        channel: Channel,
        message: WireMessage,
    ) -> Result<(), SendError> {
        self.recording
            .send(channel, session, message, Asker::Session(session.clone()))
            .await
    }
}

impl Recording {
    async fn send(&self, channel: Channel, session: &str, message: WireMessage, asker: Asker) -> Result<(), SendError> {
        if !matches!(channel, Channel::Shell | Channel::Control | Channel::Stdin) {
            return Err(SendError::NotToBeSentOn(channel));
        }
        let header = message.header_ref()?;
        let mut link = self.link.subscribe();
        let mut senders = loop {
            let up = link
                .wait_for(|link| *link != Link::Down)
                .await
                .map_or(Link::Dead, |link| *link);
            if up == Link::Dead {
                return Err(SendError::Dead);
            }
            let senders = self.senders.lock().await;
            if senders.is_some() {
                break senders;
            }
        };
        let Some(senders) = senders.as_mut() else {
            return Err(SendError::Dead);
        };
        if header.msg_type.ends_with("_request") {
            self.askers.expect_reply(&header.msg_id, asker);
        }
        drop(header);
        self.touch();
        self.log.append([NewEntry {
            origin: Origin::Client,
            channel,
            session,
            message: &message,
        }]);
        let message = message.with_identities([]).signed(&senders.signer);
        let sender = match channel {
            Channel::Control => &mut senders.control,
            Channel::Stdin => &mut senders.stdin,
            _ => &mut senders.shell,
        };
        Ok(sender.send(message).await?)
    }

    fn lifecycle(&self, event: &Lifecycle) {
        let message = event.message(OUR_SESSION);
        self.touch();
        self.log.append([NewEntry {
            origin: Origin::Lifecycle,
            channel: Channel::Iopub,
            session: "",
            message: &message,
        }]);
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

/// Checks what arrives on one socket.
struct Gate {
    signer: Signer,
    seen: DigestHistory,
}

impl Gate {
    fn new(signer: Signer) -> Self {
        Self {
            signer,
            seen: DigestHistory::default(),
        }
    }

    fn check(&mut self, message: &WireMessage) -> Result<(), WireError> {
        message.verify(&self.signer)?;
        if self.signer.signs() && !self.seen.insert(message.signature()) {
            return Err(WireError::Replayed);
        }
        Ok(())
    }

    /// The message where it passes; what does not is told in the process's log. `None` too where the socket is broken.
    fn admit(&mut self, channel: Channel, received: Result<WireMessage, SocketError>) -> Option<WireMessage> {
        let checked = received.and_then(|message| {
            self.check(&message)?;
            Ok(message)
        });
        checked
            .inspect_err(|error| warn!(%channel, %error, "a message from the kernel was refused"))
            .ok()
    }
}

/// Drains iopub and never waits for a reader. Where the store falls far behind it waits for that.
async fn record_iopub(recording: Arc<Recording>, mut iopub: IopubSubscriber, signer: Signer) {
    let mut gate = Gate::new(signer);
    let mut status = StatusFollower::default();
    let mut batch: Vec<WireMessage> = Vec::new();
    let mut flood = Flood::new();
    loop {
        recording.log.room().await;
        let mut next = Some(iopub.recv_gapless().await);
        let mut broken = false;
        let mut drained = true;
        let mut bytes = 0;
        while let Some(received) = next {
            broken = matches!(&received, Err(error) if !error.is_one_message());
            if let Some(message) = gate.admit(Channel::Iopub, received) {
                bytes += message.parts_and_buffers().iter().map(bytes::Bytes::len).sum::<usize>();
                batch.push(message);
            }
            if broken || batch.len() >= MAX_BATCH || bytes >= MAX_BATCH_BYTES {
                drained = false;
                break;
            }
            next = iopub.try_recv();
        }
        if !batch.is_empty() {
            recording.touch();
            recording.log.append(batch.iter().map(|message| NewEntry {
                origin: Origin::Kernel,
                channel: Channel::Iopub,
                session: "",
                message,
            }));
            for state in batch.iter().filter_map(|message| status.follow(message)) {
                recording.set_state(state);
            }
            recording.link.send_if_modified(|link| {
                let first = *link == Link::Connected;
                if first {
                    *link = Link::Live;
                }
                first
            });
            if flood.goes_on(batch.len()) && drained {
                flood.gather().await;
            }
            batch.clear();
        }
        if broken {
            // The subscriber connects again by itself. A hole is never silent.
            recording.lifecycle(&Lifecycle::Disconnected);
        }
    }
}

async fn record_replies(recording: Arc<Recording>, channel: Channel, mut socket: DealerReceiver, signer: Signer) {
    let mut gate = Gate::new(signer);
    loop {
        recording.log.room().await;
        let received = socket.recv().await;
        if matches!(&received, Err(error) if !error.is_one_message()) {
            warn!(%channel, "the kernel's socket is broken; nothing more comes from it");
            return;
        }
        let Some(message) = gate.admit(channel, received) else {
            continue;
        };
        let addressee = recording.askers.addressee(channel, &message);
        let session = match &addressee {
            Addressee::Session(session) => session,
            Addressee::Ourselves(_) => OUR_SESSION,
            Addressee::All => "",
        };
        recording.touch();
        recording.log.append([NewEntry {
            origin: Origin::Kernel,
            channel,
            session,
            message: &message,
        }]);
        if let Addressee::Ourselves(waiting) = addressee {
            // Who asked may have stopped waiting.
            let _ = waiting.send(message);
        }
    }
}
