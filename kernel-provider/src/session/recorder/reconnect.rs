//! Connections to a kernel that were lost while it lives, as by a network: each socket is connected anew by itself, for
//! as long as the provider does not say that the kernel is gone, and what clients send waits for it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jupyter_protocol::content::KernelInfoRequest;
use jupyter_protocol::message::Message;
use jupyter_protocol::zmq::{self, DealerReceiver, IopubSubscriber, SocketError};
use jupyter_protocol::{Channel, Signer, WireMessage};
use tokio::sync::{MutexGuard, Notify, oneshot};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{debug, info};

use super::{Destination, Link, NUDGE_AFTER, OUR_SESSION, Recording, SendError, Sender, is_execution};
use crate::session::ExecutionState;
use crate::session::askers::Asker;

/// How long to wait before the first try, then twice as long each time. Nothing tells when a network is back.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest wait between tries.
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// The longest that a try may take.
const TRY_DEADLINE: Duration = Duration::from_secs(10);
/// How long what a client sends waits for a socket that is lost.
const SEND_DEADLINE: Duration = Duration::from_secs(60);
/// How long a client's request waits for a new subscription to be live, so that what it makes the kernel publish is
/// heard. A kernel that is busy may say nothing for long.
const SUBSCRIBED_DEADLINE: Duration = Duration::from_secs(1);

/// When a socket is tried again. A connection that is lost soon after it was made is not tried at once.
pub(super) struct Pauses {
    next: Duration,
    connected: Instant,
}

impl Pauses {
    pub(super) fn new() -> Self {
        Self {
            next: FIRST_PAUSE,
            connected: Instant::now(),
        }
    }

    /// Tries until it connects. Who learns that the kernel is gone drops this.
    async fn connect<T, F>(&mut self, channel: Channel, connect: impl Fn() -> F) -> T
    where
        F: Future<Output = Result<T, SocketError>>,
    {
        info!(%channel, "the connection to the kernel is lost; connecting anew");
        if self.connected.elapsed() > MAX_PAUSE {
            self.next = FIRST_PAUSE;
        }
        loop {
            sleep(self.next).await;
            self.next = (self.next * 2).min(MAX_PAUSE);
            match timeout(TRY_DEADLINE, connect()).await {
                Ok(Ok(connected)) => {
                    info!(%channel, "connected to the kernel anew");
                    self.connected = Instant::now();
                    return connected;
                }
                Ok(Err(error)) => debug!(%channel, %error, "the kernel cannot be connected to"),
                Err(_) => debug!(%channel, "the kernel's socket does not answer"),
            }
        }
    }
}

impl Sender {
    async fn send(&mut self, message: WireMessage) -> Result<(), SocketError> {
        let message = message.with_identities([]).signed(&self.signer);
        match &mut self.to {
            Destination::Socket(socket) => socket.send(message).await,
            #[cfg(feature = "testing")]
            Destination::Simulated(channel, kernel) => {
                let sent = kernel.send((*channel, message)).await;
                sent.map_err(|_| unreachable(*channel))
            }
        }
    }
}

fn unreachable(channel: Channel) -> SocketError {
    SocketError::Broken(format!("its {channel} socket cannot be reached"))
}

impl Recording {
    /// What takes messages to this channel, once it is there.
    pub(super) async fn sender_for(
        &self,
        channel: Channel,
        session: &str,
    ) -> Result<MutexGuard<'_, Option<Sender>>, SendError> {
        let is_request = channel == Channel::Shell && session != OUR_SESSION;
        let mut link = self.link.subscribe();
        let mut deadline = None;
        loop {
            if is_request {
                self.setup.done().await;
                self.subscribed().await;
            }
            let up = *link.borrow_and_update();
            match up {
                Link::Dead => return Err(SendError::Dead),
                // Whoever starts the kernel anew has a deadline.
                Link::Down => deadline = None,
                Link::Connected | Link::Unheard | Link::Subscribed | Link::Live => {
                    let sender = self.senders.of(channel).lock().await;
                    // A client's request may make the kernel ask on stdin. What is held by somebody is there.
                    let can_answer = !is_request || self.senders.stdin.try_lock().map_or(true, |stdin| stdin.is_some());
                    // The kernel may have been started anew while somebody else sent.
                    if is_request && (*self.link.borrow() == Link::Connected || self.setup.is_pending()) {
                        continue;
                    }
                    if sender.is_some() && can_answer {
                        return Ok(sender);
                    }
                    deadline.get_or_insert_with(|| Instant::now() + SEND_DEADLINE);
                }
            }
            let changed = match deadline {
                Some(deadline) => timeout_at(deadline, link.changed())
                    .await
                    .map_err(|_| unreachable(channel))?,
                None => link.changed().await,
            };
            if changed.is_err() {
                return Err(SendError::Dead);
            }
        }
    }

    /// Waits a while for the subscription to be live.
    async fn subscribed(&self) {
        let mut link = self.link.subscribe();
        let heard = async {
            // The sender is `self`, so waiting cannot fail.
            let _ = link.wait_for(|link| *link != Link::Down).await;
            timeout(SUBSCRIBED_DEADLINE, link.wait_for(|link| *link != Link::Connected))
                .await
                .is_ok()
        };
        if !heard.await {
            self.link.send_if_modified(|link| {
                let waited = *link == Link::Connected;
                if waited {
                    *link = Link::Unheard;
                }
                waited
            });
        }
    }

    /// Sends a message, unless the sockets are given up meanwhile: a kernel that takes nothing would keep whoever ends
    /// it for that from doing so. A socket that fails is not there any more.
    pub(super) async fn send_on(
        &self,
        sender: &mut Option<Sender>,
        channel: Channel,
        message: WireMessage,
    ) -> Result<(), SocketError> {
        let mut link = self.link.subscribe();
        let Some(socket) = sender else {
            return Err(unreachable(channel));
        };
        let sent = tokio::select! {
            biased;
            sent = socket.send(message) => sent,
            _ = link.wait_for(|link| matches!(link, Link::Down | Link::Dead)) => Err(unreachable(channel)),
        };
        if sent.is_err() {
            *sender = None;
        }
        sent
    }

    /// Sends a message, which is logged, where the first try failed: once there is another connection. Code is for the
    /// kernel as it was in this `life` only: what was logged before a restart has ended with that.
    pub(super) async fn send_again(
        &self,
        life: u64,
        channel: Channel,
        session: &str,
        message: WireMessage,
        error: SocketError,
    ) -> Result<(), SendError> {
        let deadline = Instant::now() + SEND_DEADLINE;
        let mut error = error;
        while Instant::now() < deadline {
            let mut sender = self.sender_for(channel, session).await?;
            if is_execution(&message) && self.lives.load(Ordering::Acquire) != life {
                return Err(SendError::Restarted);
            }
            // Who asked is forgotten where the kernel was started anew meanwhile.
            let header = message.header_ref()?;
            if session != OUR_SESSION && header.msg_type.ends_with("_request") {
                self.askers.expect_reply(&header.msg_id, Asker::Session(session.into()));
            }
            drop(header);
            match self.send_on(&mut sender, channel, message.clone()).await {
                Ok(()) => return Ok(()),
                Err(again) => error = again,
            }
        }
        Err(error.into())
    }

    /// Connects a DEALER socket anew and gives its sending half to the clients.
    pub(super) async fn dealer_again(
        &self,
        channel: Channel,
        address: &str,
        identity: &str,
        signer: &Signer,
        pauses: &mut Pauses,
    ) -> DealerReceiver {
        self.senders.set(channel, None).await;
        let (socket, receiver) = pauses
            .connect(channel, || zmq::dealer(address, identity, TRY_DEADLINE))
            .await;
        let to = Destination::Socket(socket);
        let signer = signer.clone();
        self.senders.set(channel, Some(Sender { signer, to })).await;
        // Wakes who waits for it.
        self.link.send_modify(|_| {});
        receiver.with_memory(&self.memory)
    }

    /// Subscribes anew. What the kernel does is not known until it says so.
    pub(super) async fn iopub_again(&self, address: &str, pauses: &mut Pauses) -> IopubSubscriber {
        self.link.send_if_modified(|link| {
            let up = matches!(link, Link::Unheard | Link::Subscribed | Link::Live);
            if up {
                *link = Link::Connected;
            }
            up
        });
        self.state.send_if_modified(|state| {
            let idle = *state == ExecutionState::Idle;
            if idle {
                *state = ExecutionState::Busy;
            }
            idle
        });
        let subscriber = pauses
            .connect(Channel::Iopub, || IopubSubscriber::connect(address, TRY_DEADLINE))
            .await;
        subscriber.with_memory(&self.memory)
    }
}

/// After each new connection: makes the kernel say what it does, and settles what it was sent before.
pub(super) async fn settle(recording: Arc<Recording>, reconnected: Arc<Notify>) {
    loop {
        reconnected.notified().await;
        let settling = async {
            nudge(&recording).await;
            recording.settle().await
        };
        tokio::select! {
            settled = settling => {
                if let Err(error) = settled {
                    debug!(%error, "what the kernel was sent before is not settled");
                }
            }
            // Replies to our own requests may be lost too: from the beginning.
            () = reconnected.notified() => reconnected.notify_one(),
        }
    }
}

/// Waits until the kernel has said what it does, and makes it say so.
async fn nudge(recording: &Recording) {
    let mut link = recording.link.subscribe();
    let mut patience = NUDGE_AFTER;
    while *link.borrow() != Link::Live {
        let heard = async {
            // Its status is what is waited for; its reply is nobody's.
            let (nobody, _) = oneshot::channel();
            let request = Message::new(KernelInfoRequest::default(), OUR_SESSION).to_wire();
            let sent = recording
                .send(Channel::Shell, OUR_SESSION, request, Asker::Ourselves(nobody))
                .await;
            if let Err(error) = sent {
                debug!(%error, "the kernel cannot be asked");
            }
            let _ = link.wait_for(|link| *link == Link::Live).await;
        };
        if timeout(patience, heard).await.is_err() {
            patience = patience.saturating_mul(2);
        }
    }
}
