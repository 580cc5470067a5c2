use tokio::task::spawn_blocking;
use tracing::{info, warn};

use super::SocketError;
use crate::channel::Channel;
use crate::log_limiter::LogLimiter;
use crate::signing::{DigestHistory, Signer};
use crate::wire::{WireError, WireMessage};

/// A message of at least this many bytes is verified on a blocking thread, so that other kernels do not wait.
const LARGE: usize = 1 << 20;

/// Why a received message was not admitted.
#[derive(Debug)]
pub enum Refused {
    /// The message has a wrong signature, or was replayed.
    Message(WireMessage),
    /// The frames are not a message. The socket remains usable.
    Invalid,
    /// The socket skipped a message of this many bytes: it was too large, or no memory was free for it.
    Skipped(u64),
    /// The connection is broken.
    Broken,
}

/// Verifies the messages that arrive on one socket of a kernel.
#[derive(Debug)]
pub struct Verifier {
    channel: Channel,
    signer: Signer,
    seen: DigestHistory,
    refusals: LogLimiter,
}

impl Verifier {
    /// Creates a verifier for the socket of this channel.
    #[must_use]
    pub fn new(channel: Channel, signer: Signer) -> Self {
        Self {
            channel,
            signer,
            seen: DigestHistory::default(),
            refusals: LogLimiter::new(),
        }
    }

    async fn check(&mut self, message: &WireMessage) -> Result<(), WireError> {
        if self.signer.signs() && message.size() >= LARGE {
            let (signer, message) = (self.signer.clone(), message.clone());
            let verified = spawn_blocking(move || message.verify(&signer)).await;
            // Verifying does not panic, so this fails only when the runtime shuts down.
            verified.unwrap_or(Err(WireError::BadSignature))?;
        } else {
            message.verify(&self.signer)?;
        }
        if self.signer.signs() && !self.seen.insert(message.signature()) {
            return Err(WireError::Replayed);
        }
        Ok(())
    }

    /// Returns a message that has a valid signature and is not a replay. Logs why any other message is refused.
    ///
    /// # Errors
    /// [`Refused`], with the reason.
    pub async fn admit(&mut self, received: Result<WireMessage, SocketError>) -> Result<WireMessage, Refused> {
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
