use bytes::Bytes;
use jupyter_protocol::signing::DigestHistory;
use jupyter_protocol::wire::WireError;
use jupyter_protocol::zmq::SocketError;
use jupyter_protocol::{Channel, LogLimiter, Signer, WireMessage};
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use super::LARGE;

/// Why a received message was not admitted.
pub(super) enum Refused {
    /// The message has a wrong signature, or was replayed.
    Message(WireMessage),
    /// The frames are no message; the socket stays usable.
    Invalid,
    /// The socket skipped a message of this many bytes: it was too large, or no memory was free for it.
    Skipped(u64),
    /// The connection is broken.
    Broken,
}

/// Verifies what arrives on one socket.
pub(super) struct Gate {
    channel: Channel,
    signer: Signer,
    seen: DigestHistory,
    refusals: LogLimiter,
}

impl Gate {
    pub(super) fn new(channel: Channel, signer: Signer) -> Self {
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
            // The blocking thread fails only when the process ends.
            verified.unwrap_or(Err(WireError::BadSignature))?;
        } else {
            message.verify(&self.signer)?;
        }
        if self.signer.signs() && !self.seen.insert(message.signature()) {
            return Err(WireError::Replayed);
        }
        Ok(())
    }

    /// Passes on a message that the kernel signed and logs why another is refused.
    pub(super) async fn admit(&mut self, received: Result<WireMessage, SocketError>) -> Result<WireMessage, Refused> {
        let (error, refused) = match received {
            Ok(message) => match self.check(&message).await {
                Ok(()) => return Ok(message),
                Err(error) => (error, Refused::Message(message)),
            },
            Err(SocketError::Wire(error)) => match error {
                WireError::TooLarge { bytes, .. } | WireError::NoMemory { bytes } => (error, Refused::Skipped(bytes)),
                _ => (error, Refused::Invalid),
            },
            Err(error) => {
                // Happens whenever a kernel ends.
                info!(channel = %self.channel, %error, "the kernel closed its connection");
                return Err(Refused::Broken);
            }
        };
        if let Some(suppressed) = self.refusals.due() {
            warn!(channel = %self.channel, %error, suppressed, "a message from the kernel was refused");
        }
        Err(refused)
    }
}

pub(super) fn size(message: &WireMessage) -> usize {
    message.parts_and_buffers().iter().map(Bytes::len).sum()
}
