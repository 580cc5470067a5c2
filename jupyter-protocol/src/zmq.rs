//! ZeroMQ sockets that carry [`WireMessage`]s, and the heartbeat.
//!
//! Thin: a message's frames are handed over as they are. Signatures are the caller's to make and check.

use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt, StreamExt as _};
use zeromq::util::PeerIdentity;
use zeromq::{
    DealerRecvHalf, DealerSendHalf, DealerSocket, ReqSocket, Socket, SocketEvent, SocketOptions, SocketRecv,
    SocketSend, SubSocket, ZmqMessage,
};

use crate::wire::{WireError, WireMessage};

/// A socket could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// Nobody answered at the address in time, or not as ZeroMQ.
    #[error("cannot connect to {endpoint}: {reason}; is the kernel running?")]
    Connect {
        /// The address, such as `tcp://127.0.0.1:5555`.
        endpoint: String,
        /// What the socket says.
        reason: String,
    },
    /// An address or identity that ZeroMQ does not take.
    #[error("{what} is no valid ZeroMQ {kind}: {reason}")]
    Invalid {
        /// `endpoint` or `identity`.
        kind: &'static str,
        /// The value.
        what: String,
        /// What the library says.
        reason: String,
    },
    /// The other side is gone, or sent what is no ZMTP.
    #[error("the connection to the kernel failed: {0}")]
    Broken(String),
    /// The frames that came are no message. The socket is still good.
    #[error(transparent)]
    Wire(#[from] WireError),
}

impl SocketError {
    /// Whether the socket can go on being used: only this one message was bad.
    #[must_use]
    pub fn is_one_message(&self) -> bool {
        matches!(self, Self::Wire(_))
    }

    fn broken(error: impl std::fmt::Display) -> Self {
        Self::Broken(error.to_string())
    }
}

fn to_zmq(message: WireMessage) -> Result<ZmqMessage, SocketError> {
    ZmqMessage::try_from(message.into_frames()).map_err(SocketError::broken)
}

fn from_zmq(message: ZmqMessage) -> Result<WireMessage, SocketError> {
    Ok(WireMessage::from_frames(message.into_vec())?)
}

async fn connect<S: Socket>(mut socket: S, endpoint: &str) -> Result<S, SocketError> {
    socket.connect(endpoint).await.map_err(|error| SocketError::Connect {
        endpoint: endpoint.to_owned(),
        reason: error.to_string(),
    })?;
    Ok(socket)
}

/// Connects a DEALER socket, as a client does for shell, control and stdin, and splits it.
///
/// `identity` is what the kernel's ROUTER addresses replies to: at most 255 bytes; the same one for shell and stdin, or
/// a kernel's input requests do not arrive. `deadline` is the longest that connecting may take; a port that is not yet
/// open is tried again until then.
///
/// # Errors
/// [`SocketError::Connect`] where nobody answered by the deadline, [`SocketError::Invalid`] for a bad identity.
pub async fn dealer(
    endpoint: &str,
    identity: &str,
    deadline: Duration,
) -> Result<(DealerSender, DealerReceiver), SocketError> {
    let peer: PeerIdentity = identity
        .parse()
        .map_err(|error: zeromq::ZmqError| SocketError::Invalid {
            kind: "identity",
            what: identity.to_owned(),
            reason: error.to_string(),
        })?;
    let mut options = SocketOptions::default();
    options.peer_identity(peer).connect_timeout(deadline);
    let mut socket = DealerSocket::with_options(options);
    let events = socket.monitor();
    let (send, receive) = connect(socket, endpoint).await?.split();
    let receiver = DealerReceiver {
        socket: receive,
        events,
    };
    Ok((DealerSender(send), receiver))
}

/// The sending half of a DEALER socket.
pub struct DealerSender(DealerSendHalf);

impl DealerSender {
    /// Hands the message to the socket's queue; waits where it is full. Sent does not mean received.
    ///
    /// # Errors
    /// [`SocketError::Broken`] where the kernel is gone.
    pub async fn send(&mut self, message: WireMessage) -> Result<(), SocketError> {
        self.0.send(to_zmq(message)?).await.map_err(SocketError::broken)
    }
}

/// The receiving half of a DEALER socket.
pub struct DealerReceiver {
    socket: DealerRecvHalf,
    events: futures::channel::mpsc::Receiver<SocketEvent>,
}

impl DealerReceiver {
    /// The next message. Cancel-safe.
    ///
    /// # Errors
    /// [`SocketError::Wire`] where the frames are no message, after which the socket goes on;
    /// [`SocketError::Broken`] where the connection failed or the kernel is gone: the socket does not connect again.
    pub async fn recv(&mut self) -> Result<WireMessage, SocketError> {
        tokio::select! {
            // What arrived before the connection ended is received first.
            biased;
            received = self.socket.recv() => from_zmq(received.map_err(SocketError::broken)?),
            () = disconnected(&mut self.events) => Err(SocketError::Broken("the kernel closed it".to_owned())),
        }
    }
}

/// Waits until the socket's only peer is gone.
async fn disconnected(events: &mut futures::channel::mpsc::Receiver<SocketEvent>) {
    while let Some(event) = events.next().await {
        if matches!(event, SocketEvent::Disconnected(_)) {
            return;
        }
    }
    // The socket holds the sender, so the events do not end before it.
    std::future::pending().await
}

/// The subscriber of a kernel's iopub, to all topics.
pub struct IopubSubscriber {
    socket: SubSocket,
    events: futures::channel::mpsc::Receiver<SocketEvent>,
}

impl IopubSubscriber {
    /// Connects and subscribes. The kernel learns of it a moment later: until its `iopub_welcome` or any other message
    /// arrives, what it publishes may pass unseen.
    ///
    /// # Errors
    /// [`SocketError::Connect`] where nobody answered by the deadline.
    pub async fn connect(endpoint: &str, deadline: Duration) -> Result<Self, SocketError> {
        let mut options = SocketOptions::default();
        options.connect_timeout(deadline);
        let mut socket = SubSocket::with_options(options);
        socket.subscribe("").await.map_err(SocketError::broken)?;
        let events = socket.monitor();
        let socket = connect(socket, endpoint).await?;
        Ok(Self { socket, events })
    }

    /// The next message. Cancel-safe. The socket reconnects by itself where the connection is lost.
    ///
    /// # Errors
    /// As [`DealerReceiver::recv`].
    pub async fn recv(&mut self) -> Result<WireMessage, SocketError> {
        from_zmq(self.socket.recv().await.map_err(SocketError::broken)?)
    }

    /// The next message, for who must know that none was missed: a lost connection is an error, even though the socket
    /// would connect again. Cancel-safe.
    ///
    /// # Errors
    /// As [`DealerReceiver::recv`].
    pub async fn recv_gapless(&mut self) -> Result<WireMessage, SocketError> {
        tokio::select! {
            // What arrived before the connection ended is received first.
            biased;
            received = self.socket.recv() => from_zmq(received.map_err(SocketError::broken)?),
            () = disconnected(&mut self.events) => Err(SocketError::Broken("the kernel closed it".to_owned())),
        }
    }

    /// The next message where one is here already.
    ///
    /// # Errors
    /// As [`DealerReceiver::recv`].
    pub fn try_recv(&mut self) -> Option<Result<WireMessage, SocketError>> {
        let received = self.socket.recv().now_or_never()?;
        Some(received.map_err(SocketError::broken).and_then(from_zmq))
    }
}

/// Asks the kernel's heartbeat socket for an echo, with a connection of its own. Returns how long it took.
///
/// # Errors
/// [`SocketError::Connect`] where nobody is there, [`SocketError::Broken`] where no echo came by the deadline.
pub async fn heartbeat(endpoint: &str, deadline: Duration) -> Result<Duration, SocketError> {
    let beat = async {
        let mut options = SocketOptions::default();
        options.connect_timeout(deadline);
        let mut socket = connect(ReqSocket::with_options(options), endpoint).await?;
        let sent = tokio::time::Instant::now();
        let ping = Bytes::from_static(b"ping");
        socket.send(ZmqMessage::from(ping)).await.map_err(SocketError::broken)?;
        socket.recv().await.map_err(SocketError::broken)?;
        Ok(sent.elapsed())
    };
    match tokio::time::timeout(deadline, beat).await {
        Ok(result) => result,
        Err(_) => Err(SocketError::Broken(format!("no heartbeat within {deadline:?}"))),
    }
}
