use std::fmt;
use std::time::Duration;

use super::MessageMemory;
use super::SocketError;
use super::connection::{self, Role, connect};
use crate::wire::WireMessage;

/// Capacity of the send queue in messages, besides the message that is being written.
const QUEUE_CAPACITY: usize = 1;

/// Connects a DEALER socket, as a client uses for shell, control and stdin, and splits it into halves.
///
/// The kernel's ROUTER socket addresses replies to `identity`, which has at most 255 bytes. Use the same identity for
/// shell and stdin, or the kernel's input requests do not arrive. `deadline` bounds connecting and the handshake; an
/// address that does not listen yet is retried until then.
///
/// The connection closes when both halves are dropped. Messages sent just before have one second to be written.
///
/// # Errors
/// - [`SocketError::Connect`] if the address does not answer before the deadline, or the peer is not a ROUTER, REP or
///   DEALER socket of ZMTP 3.
/// - [`SocketError::Invalid`] if the identity has more than 255 bytes or begins with a zero byte.
pub async fn dealer(
    endpoint: &str,
    identity: &str,
    deadline: Duration,
) -> Result<(DealerSender, DealerReceiver), SocketError> {
    if identity.len() > 255 || identity.starts_with('\0') {
        return Err(SocketError::Invalid {
            kind: "identity",
            what: identity.to_owned(),
            reason: "it has more than 255 bytes or begins with a zero byte".to_owned(),
        });
    }
    let role = Role {
        socket_type: "DEALER",
        identity: identity.as_bytes(),
        peers: &["ROUTER", "REP", "DEALER"],
    };
    let (socket, read_buffer) = connect(endpoint, &role, b"", 0, deadline).await?;
    let (sender, receiver) = connection::split(socket, read_buffer, QUEUE_CAPACITY);
    Ok((DealerSender(sender), DealerReceiver(receiver)))
}

/// Sending half of a DEALER socket.
pub struct DealerSender(connection::Sender);

impl fmt::Debug for DealerSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DealerSender").finish_non_exhaustive()
    }
}

impl DealerSender {
    /// Queues a message for sending.
    ///
    /// The queue holds one message besides those that are being written; a full queue makes the call wait. Messages
    /// in flight are lost if the connection breaks. A cancelled call has not sent the message.
    ///
    /// # Errors
    /// [`SocketError::Broken`] if the connection to the kernel is closed.
    pub async fn send(&mut self, message: WireMessage) -> Result<(), SocketError> {
        self.0.send(&message.into_frames()).await
    }
}

/// Receiving half of a DEALER socket.
pub struct DealerReceiver(connection::Receiver);

impl fmt::Debug for DealerReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DealerReceiver").finish_non_exhaustive()
    }
}

impl DealerReceiver {
    /// Reserves memory for large messages from a budget that is shared with other sockets.
    #[must_use]
    pub fn with_memory(mut self, memory: &MessageMemory) -> Self {
        self.0.set_memory(memory);
        self
    }

    /// Receives the next message. Cancel-safe.
    ///
    /// # Errors
    /// - [`SocketError::Wire`] if the frames are not a message, or the message was skipped because it is too large or
    ///   there was no memory for it. The socket remains usable.
    /// - [`SocketError::Broken`] if the connection failed, the kernel closed it or violated ZMTP. The socket does not
    ///   reconnect.
    pub async fn recv(&mut self) -> Result<WireMessage, SocketError> {
        let frames = self.0.recv().await?;
        self.0.throttle.message(frames)
    }

    /// Counts a message that the caller rejected. After many of them, receiving pauses.
    pub fn refused(&mut self, message: &WireMessage) {
        self.0.throttle.refused(message.size());
    }
}
