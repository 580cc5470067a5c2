use std::time::Duration;

use super::MessageMemory;
use super::SocketError;
use super::connection::{self, Role, connect};
use super::throttle::size;
use crate::wire::WireMessage;

/// How many messages may wait for the one that is being written.
const WAITING: usize = 1;

/// Connects a DEALER socket, as a client does for shell, control and stdin, and splits it.
///
/// `identity` is what the kernel's ROUTER addresses replies to: at most 255 bytes; the same one for shell and stdin, or
/// a kernel's input requests do not arrive. `deadline` is the longest that connecting may take; a port that is not yet
/// open is tried again until then.
///
/// The connection is closed when both halves are dropped; what was sent just before has a second to leave.
///
/// # Errors
/// [`SocketError::Connect`] where nobody answered by the deadline, or not as a ROUTER, REP or DEALER socket of ZMTP 3;
/// [`SocketError::Invalid`] for a bad identity.
pub async fn dealer(
    endpoint: &str,
    identity: &str,
    deadline: Duration,
) -> Result<(DealerSender, DealerReceiver), SocketError> {
    if identity.len() > 255 || identity.starts_with('\0') {
        return Err(SocketError::Invalid {
            kind: "identity",
            what: identity.to_owned(),
            reason: "it has more than 255 bytes or begins with a zero".to_owned(),
        });
    }
    let role = Role {
        socket_type: "DEALER",
        identity: identity.as_bytes(),
        peers: &["ROUTER", "REP", "DEALER"],
    };
    let (socket, inbox) = connect(endpoint, &role, b"", 0, deadline).await?;
    let (sender, receiver) = connection::split(socket, inbox, WAITING);
    Ok((DealerSender(sender), DealerReceiver(receiver)))
}

/// The sending half of a DEALER socket.
pub struct DealerSender(connection::Sender);

impl DealerSender {
    /// Hands the message to the socket, which has room for one beside the one that it is writing; waits where it has
    /// none. Sent does not mean received: what is on its way when the connection is lost is lost too. Cancelled, it has
    /// not sent the message.
    ///
    /// # Errors
    /// [`SocketError::Broken`] where the kernel is gone.
    pub async fn send(&mut self, message: WireMessage) -> Result<(), SocketError> {
        self.0.send(&message.into_frames()).await
    }
}

/// The receiving half of a DEALER socket.
pub struct DealerReceiver(connection::Receiver);

impl DealerReceiver {
    /// Takes the memory for large messages from what other sockets take theirs from.
    #[must_use]
    pub fn with_memory(mut self, memory: &MessageMemory) -> Self {
        self.0.share(memory);
        self
    }

    /// The next message. Cancel-safe.
    ///
    /// # Errors
    /// [`SocketError::Wire`] where the frames are no message, or are left out for their size, after which the socket
    /// goes on; [`SocketError::Broken`] where the connection failed, the kernel is gone or sent what is no ZMTP: the socket
    /// does not connect again.
    pub async fn recv(&mut self) -> Result<WireMessage, SocketError> {
        let frames = self.0.recv().await?;
        self.0.throttle.message(frames)
    }

    /// Counts a message that the caller refuses: after many of them, receiving pauses.
    pub fn refused(&mut self, message: &WireMessage) {
        self.0.throttle.refused(size(message.parts_and_buffers()));
    }
}
