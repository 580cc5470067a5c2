//! The handshake in which a kernel chooses its own ports and announces them to whoever starts it (JEP 66).
//!
//! The starter opens a registration socket, writes a connection file that names only its port and the key, and starts
//! the kernel with it. The kernel binds its sockets, sends their ports in a `handshake_request` and waits for the
//! `handshake_reply`. So no two kernels are ever told the same port.
//!
//! <https://jupyter.org/enhancement-proposals/66-jupyter-handshaking/jupyter-handshaking.html>

use std::time::Duration;

use tokio::time::timeout;

use crate::connection_file::{ConnectionInfo, Transport};
use crate::content::{Content, HandshakeReply, HandshakeRequest, Reply};
use crate::log_limiter::LogLimiter;
use crate::message::Message;
use crate::signing::{Signer, SigningError};
use crate::wire::WireMessage;
use crate::zmq::{Listener, Listening, Requester, RouterReceiver, RouterSender, router};

/// A kernel and its starter did not come together.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// The registration socket could not be bound or connected to.
    #[error("cannot use the registration socket at {address}: {reason}")]
    Socket {
        /// The ZeroMQ address.
        address: String,
        /// What the system says.
        reason: String,
    },
    /// The other side did not answer in time.
    #[error("no handshake within {after:?}")]
    Deadline {
        /// How long it was waited for.
        after: Duration,
    },
    /// The other side answered, but not with what the handshake asks for.
    #[error("the handshake failed: {0}")]
    Refused(String),
    /// The connection's messages cannot be signed.
    #[error(transparent)]
    Signing(#[from] SigningError),
    /// Registration over Unix domain sockets: there, names are free and no handshake is needed.
    #[error("the handshake needs TCP; over ipc, choose the sockets' paths yourself")]
    NotTcp,
}

/// The starter's side: a bound registration socket, for one kernel.
pub struct Registration {
    sender: RouterSender,
    receiver: RouterReceiver,
    listening: Listening,
    signer: Signer,
    info: ConnectionInfo,
}

impl Registration {
    /// Binds the registration socket to a free port. `info` says the address, the key and the scheme; its ports are
    /// ignored.
    ///
    /// # Errors
    /// [`HandshakeError::NotTcp`], [`HandshakeError::Socket`] and [`HandshakeError::Signing`], each where its name says.
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
        let (sender, receiver, listening) = router(listener);
        Ok(Self {
            sender,
            receiver,
            listening,
            signer,
            info,
        })
    }

    /// What the kernel's connection file has to hold.
    #[must_use]
    pub fn connection_info(&self) -> &ConnectionInfo {
        &self.info
    }

    /// Waits for the kernel's ports, acknowledges them and gives the connection. What is malformed or not signed with
    /// the key is passed over.
    ///
    /// # Errors
    /// [`HandshakeError::Deadline`] where no kernel announced itself, [`HandshakeError::Socket`] where the reply could
    /// not be sent.
    pub async fn accept(mut self, deadline: Duration) -> Result<ConnectionInfo, HandshakeError> {
        let Ok(accepted) = timeout(deadline, self.accept_one()).await else {
            return Err(HandshakeError::Deadline { after: deadline });
        };
        // The kernel has its reply first.
        self.listening.close().await;
        accepted
    }

    async fn accept_one(&mut self) -> Result<ConnectionInfo, HandshakeError> {
        let refusals = LogLimiter::new();
        loop {
            let (wire, message) = match verified(self.receiver.recv().await, &self.signer) {
                Ok(verified) => verified,
                Err(error) => {
                    if let Some(left_out) = refusals.due() {
                        tracing::warn!(error, left_out, "registration message refused");
                    }
                    continue;
                }
            };
            let Content::HandshakeRequest(request) = &message.content else {
                if let Some(left_out) = refusals.due() {
                    tracing::warn!(msg_type = message.msg_type(), left_out, "registration message refused");
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

/// The kernel's side: announces the ports in `info` at the registration port and waits for the acknowledgement.
///
/// # Errors
/// [`HandshakeError::Socket`] where nobody listens there, [`HandshakeError::Deadline`] where no answer came,
/// [`HandshakeError::Refused`] where it is no acknowledgement, and [`HandshakeError::Signing`].
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
        // REQ, since the starter's socket may be a REP as well as a ROUTER.
        let reply = async {
            Requester::connect(&address, deadline)
                .await?
                .ask(request.into_frames())
                .await
        };
        let reply = reply.await.map_err(|error| socket_error(&address, error))?;
        match verified(reply, &signer).map_err(HandshakeError::Refused)?.1.content {
            Content::HandshakeReply(Reply::Ok(_)) => Ok(()),
            Content::HandshakeReply(reply) => Err(HandshakeError::Refused(format!("status {}", reply.status()))),
            other => Err(HandshakeError::Refused(format!(
                "{} in place of handshake_reply",
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
