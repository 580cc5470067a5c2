//! Handshake in which a kernel chooses its ports and announces them to its starter (JEP 66).
//!
//! The starter opens a registration socket, writes a connection file with only the port of this socket and the key, and
//! starts the kernel with it. The kernel binds its sockets, sends their ports in a `handshake_request` and waits for
//! the `handshake_reply`. So no two kernels are ever assigned the same port.
//!
//! <https://jupyter.org/enhancement-proposals/66-jupyter-handshaking/jupyter-handshaking.html>

use std::fmt;
use std::time::Duration;

use tokio::time::timeout;

use crate::connection_file::{ConnectionInfo, Transport};
use crate::content::{Content, HandshakeReply, HandshakeRequest, Reply};
use crate::log_limiter::LogLimiter;
use crate::message::Message;
use crate::signing::{Signer, SigningError};
use crate::wire::WireMessage;
use crate::zmq::{Listener, Requester, RouterReceiver, RouterSender, SocketServer, router};

/// Error of the handshake between a kernel and its starter.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// Binding, connecting to or using the registration socket failed.
    #[error("cannot use the registration socket at {address}: {reason}")]
    Socket {
        /// ZeroMQ address.
        address: String,
        /// Why it failed.
        reason: String,
    },
    /// The handshake did not complete before the deadline.
    #[error("no handshake within {after:?}")]
    Deadline {
        /// The deadline that has passed.
        after: Duration,
    },
    /// The starter answered with something other than a successful `handshake_reply`.
    #[error("the handshake failed: {0}")]
    Refused(String),
    /// The signature scheme of the connection is not supported.
    #[error(transparent)]
    Signing(#[from] SigningError),
    /// The connection uses Unix sockets. Their paths can be chosen freely, so they need no handshake.
    #[error("the handshake requires TCP; over ipc, choose the socket paths yourself")]
    NotTcp,
}

/// The starter's side of the handshake: a bound registration socket for one kernel.
pub struct Registration {
    sender: RouterSender,
    receiver: RouterReceiver,
    server: SocketServer,
    signer: Signer,
    info: ConnectionInfo,
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration").finish_non_exhaustive()
    }
}

impl Registration {
    /// Binds the registration socket to a free port.
    ///
    /// `info` provides the address, the key and the signature scheme. Its ports are ignored.
    ///
    /// # Errors
    /// - [`HandshakeError::NotTcp`] if the transport of `info` is not TCP.
    /// - [`HandshakeError::Signing`] if the signature scheme is not supported.
    /// - [`HandshakeError::Socket`] if binding fails.
    pub async fn bind(mut info: ConnectionInfo) -> Result<Self, HandshakeError> {
        if info.transport != Transport::Tcp {
            return Err(HandshakeError::NotTcp);
        }
        let signer = info.signer()?;
        for channel in [crate::Channel::Heartbeat]
            .into_iter()
            .chain(crate::Channel::WITH_MESSAGES)
        {
            info.set_port(channel, 0);
        }
        let address = address(&info, 0);
        let listener = Listener::bind(&address)
            .await
            .map_err(|error| socket_error(&address, error))?;
        info.registration_port = listener.port();
        let (sender, receiver, server) = router(listener);
        Ok(Self {
            sender,
            receiver,
            server,
            signer,
            info,
        })
    }

    /// Returns the content for the kernel's connection file.
    #[must_use]
    pub fn connection_info(&self) -> &ConnectionInfo {
        &self.info
    }

    /// Waits for the kernel's ports, acknowledges them and returns the connection.
    ///
    /// Ignores and logs messages that are malformed, not signed with the key or not a `handshake_request`.
    ///
    /// # Errors
    /// - [`HandshakeError::Deadline`] if no kernel announces its ports before the deadline.
    /// - [`HandshakeError::Socket`] if sending the reply fails.
    pub async fn accept(mut self, deadline: Duration) -> Result<ConnectionInfo, HandshakeError> {
        let Ok(accepted) = timeout(deadline, self.accept_one()).await else {
            return Err(HandshakeError::Deadline { after: deadline });
        };
        // Waits until the reply is written.
        self.server.close().await;
        accepted
    }

    async fn accept_one(&mut self) -> Result<ConnectionInfo, HandshakeError> {
        let limiter = LogLimiter::new();
        loop {
            let (wire, message) = match verified(self.receiver.recv().await, &self.signer) {
                Ok(verified) => verified,
                Err(error) => {
                    if let Some(suppressed) = limiter.due() {
                        tracing::warn!(error, suppressed, "rejected a registration message");
                    }
                    continue;
                }
            };
            let Content::HandshakeRequest(request) = &message.content else {
                if let Some(suppressed) = limiter.due() {
                    tracing::warn!(
                        msg_type = message.msg_type(),
                        suppressed,
                        "rejected a registration message"
                    );
                }
                continue;
            };
            let mut info = self.info.clone();
            info.registration_port = None;
            info.shell_port = request.shell_port;
            info.iopub_port = request.iopub_port;
            info.stdin_port = request.stdin_port;
            info.hb_port = request.hb_port;
            info.control_port = request.control_port;
            let reply = Message::new(Reply::Ok(HandshakeReply::default()), "launcher").child_of(&message);
            let reply = reply.to_wire().signed(&self.signer);
            let reply = reply.with_identities(wire.identities().iter().cloned());
            return match self.sender.send(reply).await {
                Ok(()) => Ok(info),
                Err(error) => {
                    let address = address(&self.info, self.info.registration_port.unwrap_or_default());
                    Err(socket_error(&address, error))
                }
            };
        }
    }
}

/// The kernel's side of the handshake: sends the ports in `info` to the registration port and waits for the
/// acknowledgement.
///
/// # Errors
/// - [`HandshakeError::Socket`] if connecting, sending or receiving fails.
/// - [`HandshakeError::Deadline`] if no answer arrives before the deadline.
/// - [`HandshakeError::Refused`] if the answer is malformed, badly signed or not an acknowledgement.
/// - [`HandshakeError::Signing`] if the signature scheme is not supported.
pub async fn announce(info: &ConnectionInfo, registration_port: u16, deadline: Duration) -> Result<(), HandshakeError> {
    let signer = info.signer()?;
    let address = address(info, registration_port);
    let request = HandshakeRequest {
        shell_port: info.shell_port,
        iopub_port: info.iopub_port,
        stdin_port: info.stdin_port,
        hb_port: info.hb_port,
        control_port: info.control_port,
        ..HandshakeRequest::default()
    };
    let request = Message::new(request, &uuid::Uuid::new_v4().to_string())
        .to_wire()
        .signed(&signer);
    let exchange = async {
        // A REQ socket works with both REP and ROUTER, which starters may use.
        let reply = async {
            Requester::connect(&address, deadline)
                .await?
                .request(request.into_frames())
                .await
        };
        let reply = reply.await.map_err(|error| socket_error(&address, error))?;
        match verified(reply, &signer).map_err(HandshakeError::Refused)?.1.content {
            Content::HandshakeReply(Reply::Ok(_)) => Ok(()),
            Content::HandshakeReply(reply) => Err(HandshakeError::Refused(format!("status {}", reply.status()))),
            other => Err(HandshakeError::Refused(format!(
                "expected handshake_reply, received {}",
                other.msg_type()
            ))),
        }
    };
    match timeout(deadline, exchange).await {
        Ok(result) => result,
        Err(_) => Err(HandshakeError::Deadline { after: deadline }),
    }
}

fn address(info: &ConnectionInfo, port: u16) -> String {
    let mut at = info.clone();
    at.shell_port = port;
    at.address(crate::Channel::Shell)
}

fn socket_error(address: &str, error: impl std::fmt::Display) -> HandshakeError {
    HandshakeError::Socket {
        address: address.to_owned(),
        reason: error.to_string(),
    }
}

fn verified(frames: Vec<bytes::Bytes>, signer: &Signer) -> Result<(WireMessage, Message), String> {
    let wire = WireMessage::from_frames(frames).map_err(|error| error.to_string())?;
    wire.verify(signer).map_err(|error| error.to_string())?;
    let message = Message::from_wire(&wire).map_err(|error| error.to_string())?;
    Ok((wire, message))
}
