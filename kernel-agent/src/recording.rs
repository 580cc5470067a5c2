//! Records messages from the kernel's sockets in the log.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jupyter_protocol::zmq::{self, DealerReceiver, IopubSubscriber, MAX_MESSAGE_BYTES, Refused, SocketError, Verifier};
use jupyter_protocol::{Backoff, Channel, Signer, WireMessage};
use kernel_log::{NewEntry, Origin};
use kernel_provider::Phase;
use kernel_provider::agent::Event;
use memchr::memmem;
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};
use tracing::debug;

use crate::agent::Agent;

/// The most messages in one append, so that a flood does not delay its first output.
const MAX_BATCH: usize = 256;
/// The most bytes in one append.
const MAX_BATCH_BYTES: usize = 256 << 10;
/// After an append of at least this many bytes, the next message is read once everything is stored, to save memory.
const LARGE: usize = 1 << 20;
/// The task yields after this many full batches in a row.
const MAX_FULL_BATCHES: usize = 8;
/// How long messages are gathered without wake-ups in a flood over TCP.
const GATHER_FOR: Duration = Duration::from_millis(1);
/// At least this many messages in one batch are a flood.
const FLOOD: usize = 16;
/// How long to wait for the process to end after its socket was closed. If it does not end, only the connection is
/// lost.
const END_DEADLINE: Duration = Duration::from_millis(500);
/// Time limit of one attempt to reconnect.
const RECONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Pauses between attempts to reconnect.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));

impl Agent {
    /// Waits until the log has room for more messages. If the kernel would drop output instead of waiting, it is read
    /// even if the spool is full, and the log drops its oldest entries.
    async fn room(&self) {
        self.log.room().await;
        if self.no_drop.load(Ordering::Relaxed) {
            self.log.acknowledged_below(self.launch.spool_bytes).await;
        }
    }

    /// Tracks whether the kernel is idle.
    fn follow_status(&self, message: &WireMessage) {
        // Few messages are statuses, and searching is cheaper than parsing.
        if memmem::find(message.header(), b"\"status\"").is_none() {
            return;
        }
        if let Ok(header) = message.header_ref()
            && header.msg_type == "status"
        {
            let is_idle = memmem::find(message.content(), b"\"idle\"").is_some();
            self.is_idle
                .send_if_modified(|before| std::mem::replace(before, is_idle) != is_idle);
        }
    }

    fn append_messages(&self, channel: Channel, messages: &[WireMessage]) {
        self.append(messages.iter().map(|message| NewEntry {
            origin: Origin::Kernel,
            channel,
            session: "",
            message,
        }));
    }

    /// Reconnects. Returns `None` once the process has ended.
    async fn reconnect<T, F>(&self, connect: impl Fn() -> F) -> Option<T>
    where
        F: Future<Output = Result<T, SocketError>>,
    {
        let connecting = async {
            let mut backoff = BACKOFF;
            loop {
                match connect().await {
                    Ok(connected) => return connected,
                    Err(error) => debug!(%error, "a socket of the kernel cannot be connected"),
                }
                sleep(backoff.next_pause()).await;
            }
        };
        tokio::select! {
            connected = connecting => Some(connected),
            () = self.process_ended() => None,
        }
    }

    /// Waits until the kernel's process has ended.
    async fn process_ended(&self) {
        if let Some(kernel) = self.kernel() {
            // Fails only if the kernel's handle is gone.
            let _ = kernel.phase().wait_for(|phase| *phase != Phase::Running).await;
        }
    }

    /// Whether the process has ended, after its socket was closed. Waits a little, because sockets close shortly before
    /// the exit is reported.
    async fn has_ended(&self) -> bool {
        timeout(END_DEADLINE, self.process_ended()).await.is_ok()
    }
}

/// Records iopub until the process has ended and all its messages are read.
pub(crate) async fn record_iopub(agent: Arc<Agent>, mut iopub: IopubSubscriber, address: String, signer: Signer) {
    let mut verifier = Verifier::new(Channel::Iopub, signer);
    let mut messages = Vec::new();
    let mut full = 0;
    loop {
        agent.room().await;
        let mut next = Some(iopub.recv().await);
        let (mut bytes, mut received) = (0, 0);
        let (mut broken, mut skipped) = (false, None);
        while let Some(message) = next {
            received += 1;
            match verifier.admit(message).await {
                Ok(message) => {
                    bytes += message.size();
                    agent.follow_status(&message);
                    messages.push(message);
                }
                Err(Refused::Message(message)) => iopub.refused(&message),
                Err(Refused::Invalid) => {}
                Err(Refused::Skipped(bytes)) => skipped = Some(bytes),
                Err(Refused::Broken) => broken = true,
            }
            if broken || skipped.is_some() || received >= MAX_BATCH || bytes >= MAX_BATCH_BYTES {
                break;
            }
            next = iopub.try_recv();
        }
        if !messages.is_empty() {
            agent.append_messages(Channel::Iopub, &messages);
            messages.clear();
            if bytes >= LARGE {
                agent.log.flushed().await;
            }
        }
        if let Some(bytes) = skipped {
            agent.append_event(&Event::Skipped {
                bytes,
                too_large: bytes > MAX_MESSAGE_BYTES,
            });
        }
        if broken {
            if agent.has_ended().await {
                return;
            }
            agent.append_event(&Event::Disconnected);
            let connected = agent
                .reconnect(|| IopubSubscriber::connect(&address, RECONNECT_TIMEOUT))
                .await;
            let Some(connected) = connected else { return };
            iopub = connected.with_memory(&agent.memory);
            agent.append_event(&Event::Reconnected);
        }
        let is_full = received >= MAX_BATCH || bytes >= MAX_BATCH_BYTES;
        full = if is_full { full + 1 } else { 0 };
        if full == MAX_FULL_BATCHES {
            full = 0;
            yield_now().await;
        } else if received >= FLOOD && !is_full {
            iopub.gather(GATHER_FOR).await;
        }
    }
}

/// Records shell, control or stdin until the process has ended.
pub(crate) async fn record_replies(
    agent: Arc<Agent>,
    channel: Channel,
    mut socket: DealerReceiver,
    (address, identity): (String, String),
    signer: Signer,
) {
    let mut verifier = Verifier::new(channel, signer.clone());
    loop {
        agent.room().await;
        match verifier.admit(socket.recv().await).await {
            Ok(message) => {
                let is_large = message.size() >= LARGE;
                agent.append_messages(channel, std::slice::from_ref(&message));
                if is_large {
                    drop(message);
                    agent.log.flushed().await;
                }
            }
            Err(Refused::Message(message)) => socket.refused(&message),
            Err(Refused::Invalid) => {}
            Err(Refused::Skipped(_)) => agent.append_event(&Event::RepliesLost),
            Err(Refused::Broken) => {
                if agent.has_ended().await {
                    return;
                }
                // Some kernels refuse a second connection with the same identity.
                drop(socket);
                let connected = agent
                    .reconnect(|| zmq::dealer(&address, &identity, RECONNECT_TIMEOUT))
                    .await;
                let Some((sender, receiver)) = connected else { return };
                agent.delivery.connect(channel, sender, signer.clone()).await;
                socket = receiver.with_memory(&agent.memory);
                agent.append_event(&Event::RepliesLost);
            }
        }
    }
}
