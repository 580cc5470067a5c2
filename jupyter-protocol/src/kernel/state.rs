use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{Notify, Semaphore};

use super::comms::Comms;
use super::history::History;
use super::interrupt::RunningRequests;
use super::iopub::IopubPublisher;
use super::stdin::Stdin;
use crate::channel::Channel;
use crate::connection_file::ConnectionInfo;
use crate::content::Content;
use crate::header::Header;
use crate::log_limiter::LogLimiter;
use crate::message::Message;
use crate::signing::{DigestHistory, Signer};
use crate::wire::{WireError, WireMessage};
use crate::zmq::{RouterReceiver, RouterSender};

/// State that the tasks of one kernel share.
pub(super) struct KernelState {
    pub(super) info: ConnectionInfo,
    pub(super) session: String,
    pub(super) signer: Signer,
    pub(super) iopub: IopubPublisher,
    pub(super) stdin: Stdin,
    pub(super) running: RunningRequests,
    pub(super) comms: Comms,
    /// A permit for each thread that may run blocking code.
    pub(super) blocking_threads: Arc<Semaphore>,
    /// Execution count of the next execution.
    pub(super) next_count: AtomicU64,
    pub(super) history: Mutex<History>,
    /// `None` until the kernel has shut down, then whether it will be restarted.
    pub(super) shutdown: Mutex<Option<bool>>,
    /// Notified by [`end`](Self::end).
    pub(super) ended: Notify,
}

impl KernelState {
    pub(super) fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes a message whose parent is the request with this header.
    pub(super) async fn publish(&self, message: Message, parent: &Header) {
        self.iopub.publish(&message.with_parent(parent.clone())).await;
    }

    pub(super) async fn publish_content(&self, content: impl Into<Content> + Send, parent: &Header) {
        self.publish(Message::new(content, &self.session), parent).await;
    }

    /// Sends a reply to the client of the request.
    pub(super) async fn reply(&self, socket: &RouterSender, origin: &Origin, content: Content) {
        let message = Message::new(content, &self.session).with_parent(origin.header.clone());
        let wire = message.to_wire().signed(&self.signer);
        if let Err(error) = socket
            .send(wire.with_identities(origin.identities.iter().cloned()))
            .await
        {
            tracing::debug!(%error, msg_type = message.msg_type(), "failed to send a reply");
        }
    }

    pub(super) fn receiver(&self, channel: Channel) -> Receiver {
        Receiver {
            channel,
            signer: self.signer.clone(),
            seen: DigestHistory::default(),
            limiter: LogLimiter::new(),
        }
    }

    /// Ends the kernel. `restart` is whether the kernel will be restarted.
    pub(super) fn end(&self, restart: bool) {
        *self.shutdown.lock().unwrap_or_else(PoisonError::into_inner) = Some(restart);
        self.ended.notify_one();
    }
}

/// A message from a client, verified and parsed.
pub(super) struct Incoming {
    pub(super) identities: Vec<Bytes>,
    pub(super) message: Message,
}

/// Client, header and execution options of a request.
pub(super) struct Origin {
    pub(super) identities: Vec<Bytes>,
    pub(super) header: Header,
    pub(super) allow_stdin: bool,
    pub(super) silent: bool,
    pub(super) execution_count: Option<u64>,
    result: Mutex<Option<String>>,
}

impl Origin {
    /// Creates an origin without execution options.
    pub(super) fn new(identities: Vec<Bytes>, header: Header) -> Self {
        Self {
            identities,
            header,
            allow_stdin: false,
            silent: false,
            execution_count: None,
            result: Mutex::default(),
        }
    }

    pub(super) fn remember_result(&self, text: Option<String>) {
        *self.result.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }

    pub(super) fn take_result(&self) -> Option<String> {
        self.result.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Receives the messages of one channel. Rejects and logs malformed, badly signed and replayed messages.
pub(super) struct Receiver {
    channel: Channel,
    signer: Signer,
    seen: DigestHistory,
    limiter: LogLimiter,
}

impl Receiver {
    /// Receives the next valid message.
    pub(super) async fn next(&mut self, socket: &mut RouterReceiver) -> Incoming {
        loop {
            let error = match WireMessage::from_frames(socket.recv().await) {
                Err(error) => error.to_string(),
                Ok(wire) => match self.check(&wire) {
                    Err(error) => error.to_string(),
                    Ok(()) => match Message::from_wire(&wire) {
                        Err(error) => error.to_string(),
                        Ok(message) => {
                            return Incoming {
                                identities: wire.identities().to_vec(),
                                message,
                            };
                        }
                    },
                },
            };
            if let Some(suppressed) = self.limiter.due() {
                tracing::warn!(channel = %self.channel, error, suppressed, "rejected a message from a client");
            }
        }
    }

    fn check(&mut self, wire: &WireMessage) -> Result<(), WireError> {
        wire.verify(&self.signer)?;
        if self.seen.insert(wire.signature()) {
            Ok(())
        } else {
            Err(WireError::Replayed)
        }
    }
}
