use crate::channel::Channel;
use crate::connection_file::ConnectionFileError;
use crate::handshake::HandshakeError;
use crate::signing::SigningError;

/// Error of starting to serve a kernel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The connection file cannot be read or is invalid.
    #[error(transparent)]
    ConnectionFile(#[from] ConnectionFileError),
    /// The signature scheme of the connection file is not supported.
    #[error(transparent)]
    Signing(#[from] SigningError),
    /// The connection file requires CurveZMQ.
    #[error("the connection file requires sockets encrypted with CurveZMQ, which are not supported")]
    Encrypted,
    /// Binding a socket failed.
    #[error("cannot bind the {channel} socket to {address}: {source}")]
    Bind {
        /// Channel of the socket.
        channel: Channel,
        /// ZeroMQ address.
        address: String,
        /// Error of the system: [`AddrInUse`](std::io::ErrorKind::AddrInUse) if the port or path is taken.
        source: std::io::Error,
    },
    /// Announcing the ports to the starter of the kernel failed (JEP 66).
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// Installing the handler for SIGINT failed.
    #[error("cannot handle SIGINT: {0}")]
    Signal(std::io::Error),
}

/// Error of requesting input from the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InputError {
    /// The request does not allow input requests (`allow_stdin`).
    #[error("the request does not allow input requests")]
    NotAllowed,
    /// The client is not connected to the stdin socket.
    #[error("the client is not connected to the stdin socket")]
    NoClient,
    /// The request was interrupted while the kernel waited for input.
    #[error("interrupted")]
    Interrupted,
}

impl From<InputError> for crate::content::ReplyError {
    fn from(error: InputError) -> Self {
        let ename = match error {
            InputError::NotAllowed | InputError::NoClient => "StdinNotAvailable",
            InputError::Interrupted => "KeyboardInterrupt",
        };
        Self::new(ename, error.to_string())
    }
}
