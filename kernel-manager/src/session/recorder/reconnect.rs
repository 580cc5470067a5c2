//! Reconnects sockets whose connection is lost while the kernel runs. Each socket reconnects independently until the
//! provider reports that the kernel is gone. Clients' messages wait.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jupyter_protocol::codec::websocket_v1;
use jupyter_protocol::content::KernelInfoRequest;
use jupyter_protocol::message::Message;
use jupyter_protocol::zmq::{self, DealerReceiver, IopubSubscriber, SocketError};
use jupyter_protocol::{Backoff, Channel, Signer, WireMessage};
use tokio::sync::{MutexGuard, Notify, oneshot};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{debug, info};

use super::recording::is_execution;
use super::senders::{Destination, Sender};
use super::{ConnectionState, NUDGE_AFTER, OUR_SESSION, Recording, SendError};
use crate::session::ExecutionState;
use crate::session::agent_position::SendNumber;
use crate::session::pending_requests::Requester;

/// Pause before the first try. No event reports that a network is back, so this polls.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause between tries.
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// Timeout of one try.
const TRY_DEADLINE: Duration = Duration::from_secs(10);
/// How long a client's message waits for a lost socket.
const SEND_DEADLINE: Duration = Duration::from_secs(60);
/// How long a client's request waits for a new subscription, so that its output is not missed. A busy kernel may
/// publish nothing for long.
const SUBSCRIBED_DEADLINE: Duration = Duration::from_secs(1);

/// The pauses between attempts to reconnect. They keep growing if a connection is lost soon after it was made.
pub(super) struct Pauses {
    backoff: Backoff,
    connected: Instant,
}

impl Pauses {
    pub(super) fn new() -> Self {
        Self {
            backoff: Backoff::new(FIRST_PAUSE, MAX_PAUSE),
            connected: Instant::now(),
        }
    }

    /// Calls `connect` until it succeeds. The caller drops the future when the kernel is gone.
    async fn connect<T, F>(&mut self, channel: Channel, connect: impl Fn() -> F) -> T
    where
        F: Future<Output = Result<T, SocketError>>,
    {
        info!(%channel, "the connection to the kernel is lost; reconnecting");
        if self.connected.elapsed() > MAX_PAUSE {
            self.backoff.reset();
        }
        loop {
            sleep(self.backoff.next_pause()).await;
            match timeout(TRY_DEADLINE, connect()).await {
                Ok(Ok(connected)) => {
                    info!(%channel, "reconnected to the kernel");
                    self.connected = Instant::now();
                    return connected;
                }
                Ok(Err(error)) => debug!(%channel, %error, "cannot connect to the kernel"),
                Err(_) => debug!(%channel, "the kernel's socket does not answer"),
            }
        }
    }
}

impl Sender {
    pub(super) async fn send(&mut self, message: WireMessage, number: SendNumber) -> Result<(), SocketError> {
        let message = message.with_identities([]);
        match &mut self.to {
            Destination::Socket(socket) => socket.send(message.signed(&self.signer)).await,
            // The agent signs.
            Destination::Agent(agent, numbering) => {
                let message = websocket_v1::encode(agent.channel(), &message);
                let sent = agent.send(numbering.of(number), message).await;
                sent.map_err(|error| SocketError::Broken(error.to_string()))
            }
            #[cfg(feature = "testing")]
            Destination::Simulated(channel, kernel) => {
                let sent = kernel.send((*channel, message.signed(&self.signer))).await;
                sent.map_err(|_| unreachable(*channel))
            }
        }
    }
}

fn unreachable(channel: Channel) -> SocketError {
    SocketError::Broken(format!("the kernel's {channel} socket cannot be reached"))
}

impl Recording {
    /// Waits until this session's message can be sent on the channel, and returns the locked sender.
    pub(super) async fn sender_for(
        &self,
        channel: Channel,
        session: &str,
    ) -> Result<MutexGuard<'_, Option<Sender>>, SendError> {
        let is_request = channel == Channel::Shell && session != OUR_SESSION;
        let mut state = self.connection_state.subscribe();
        let mut deadline = None;
        loop {
            if is_request {
                self.setup.done().await;
                self.subscribed().await;
            }
            let up = *state.borrow_and_update();
            match up {
                ConnectionState::Dead => return Err(SendError::Dead),
                // The restart that is under way has its own deadline.
                ConnectionState::Down => deadline = None,
                ConnectionState::Connected
                | ConnectionState::Unconfirmed
                | ConnectionState::Subscribed
                | ConnectionState::Live => {
                    let sender = self.senders.of(channel).lock().await;
                    // The request may make the kernel ask for input, so stdin must be connected, too. If its sender is
                    // locked, it is in use and so connected.
                    let can_answer = !is_request
                        || self
                            .senders
                            .of(Channel::Stdin)
                            .try_lock()
                            .map_or(true, |stdin| stdin.is_some());
                    // The kernel may have been restarted while this waited for the lock.
                    if is_request
                        && (*self.connection_state.borrow() == ConnectionState::Connected || self.setup.is_pending())
                    {
                        continue;
                    }
                    if sender.is_some() && can_answer {
                        return Ok(sender);
                    }
                    deadline.get_or_insert_with(|| Instant::now() + SEND_DEADLINE);
                }
            }
            let changed = match deadline {
                Some(deadline) => timeout_at(deadline, state.changed())
                    .await
                    .map_err(|_| unreachable(channel))?,
                None => state.changed().await,
            };
            if changed.is_err() {
                return Err(SendError::Dead);
            }
        }
    }

    /// Waits until the kernel is connected, and then at most [`SUBSCRIBED_DEADLINE`] for the subscription.
    async fn subscribed(&self) {
        let mut state = self.connection_state.subscribe();
        let subscribed = async {
            // `self` holds the sender, so this cannot fail.
            let _ = state.wait_for(|state| *state != ConnectionState::Down).await;
            timeout(
                SUBSCRIBED_DEADLINE,
                state.wait_for(|state| *state != ConnectionState::Connected),
            )
            .await
            .is_ok()
        };
        if !subscribed.await {
            self.connection_state.send_if_modified(|state| {
                let waited = *state == ConnectionState::Connected;
                if waited {
                    *state = ConnectionState::Unconfirmed;
                }
                waited
            });
        }
    }

    /// Sends a message, unless the connection is closed first: a kernel that reads nothing must not block its own
    /// shutdown. A failed socket is removed.
    pub(super) async fn send_on(
        &self,
        sender: &mut Option<Sender>,
        channel: Channel,
        message: WireMessage,
        number: SendNumber,
    ) -> Result<(), SocketError> {
        let mut state = self.connection_state.subscribe();
        let Some(socket) = sender else {
            return Err(unreachable(channel));
        };
        let sent = tokio::select! {
            biased;
            sent = socket.send(message, number) => sent,
            _ = state.wait_for(|state| matches!(state, ConnectionState::Down | ConnectionState::Dead)) => Err(unreachable(channel)),
        };
        if sent.is_err() {
            *sender = None;
        }
        sent
    }

    /// Sends a logged message again after a failure, once the socket is reconnected. Code is sent only in the
    /// connection generation in which it was logged: a restart begins a new generation and ends the execution.
    #[allow(clippy::too_many_arguments)]
    pub(super) async fn send_again(
        &self,
        generation: u64,
        channel: Channel,
        session: &str,
        message: WireMessage,
        number: SendNumber,
        error: SocketError,
    ) -> Result<(), SendError> {
        let deadline = Instant::now() + SEND_DEADLINE;
        let mut error = error;
        while Instant::now() < deadline {
            let mut sender = self.sender_for(channel, session).await?;
            if is_execution(&message) && self.generation.load(Ordering::Acquire) != generation {
                return Err(SendError::Restarted);
            }
            // A restart may have cleared the pending requests.
            let header = message.header_ref()?;
            if session != OUR_SESSION && header.msg_type.ends_with("_request") {
                self.pending_requests
                    .expect_reply(&header.msg_id, Requester::Session(session.into()));
            }
            drop(header);
            match self.send_on(&mut sender, channel, message.clone(), number).await {
                Ok(()) => return Ok(()),
                Err(again) => error = again,
            }
        }
        Err(error.into())
    }

    /// Reconnects a DEALER socket and makes its sending half available to clients.
    pub(super) async fn reconnect_dealer(
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
        // Wakes waiting senders.
        self.connection_state.send_modify(|_| {});
        receiver.with_memory(&self.memory)
    }

    /// Subscribes again. Until the kernel publishes its state, an idle kernel counts as busy.
    pub(super) async fn reconnect_iopub(&self, address: &str, pauses: &mut Pauses) -> IopubSubscriber {
        self.connection_state.send_if_modified(|state| {
            let up = matches!(
                state,
                ConnectionState::Unconfirmed | ConnectionState::Subscribed | ConnectionState::Live
            );
            if up {
                *state = ConnectionState::Connected;
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

/// After each reconnect, makes the kernel report its status and recovers pending executions.
pub(super) async fn recover(recording: Arc<Recording>, reconnected: Arc<Notify>) {
    loop {
        reconnected.notified().await;
        let recovering = async {
            nudge(&recording).await;
            recording.recover().await
        };
        tokio::select! {
            recovered = recovering => {
                if let Err(error) = recovered {
                    debug!(%error, "pending executions were not recovered");
                }
            }
            // The replies to the recovery's own requests may be lost, too, so start again.
            () = reconnected.notified() => reconnected.notify_one(),
        }
    }
}

/// Sends requests to the kernel until it reports its status.
async fn nudge(recording: &Recording) {
    let mut state = recording.connection_state.subscribe();
    let mut repeat_after = NUDGE_AFTER;
    while *state.borrow() != ConnectionState::Live {
        let reported = async {
            // Only the status matters; the reply is dropped.
            let (ignored, _) = oneshot::channel();
            let request = Message::new(KernelInfoRequest::default(), OUR_SESSION).to_wire();
            let sent = recording
                .send(Channel::Shell, OUR_SESSION, request, Requester::Internal(ignored))
                .await;
            if let Err(error) = sent {
                debug!(%error, "a request for the kernel's status cannot be sent");
            }
            let _ = state.wait_for(|state| *state == ConnectionState::Live).await;
        };
        if timeout(repeat_after, reported).await.is_err() {
            repeat_after = repeat_after.saturating_mul(2);
        }
    }
}
