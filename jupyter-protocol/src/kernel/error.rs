use crate::channel::Channel;
use crate::connection_file::ConnectionFileError;
use crate::handshake::HandshakeError;
use crate::signing::SigningError;

/// A kernel could not be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The connection file does not serve.
    #[error(transparent)]
    ConnectionFile(#[from] ConnectionFileError),
    /// The connection's messages cannot be signed.
    #[error(transparent)]
    Signing(#[from] SigningError),
    /// The connection file asks for CurveZMQ.
    #[error("the connection file asks for sockets encrypted with CurveZMQ, which are not supported")]
    Encrypted,
    /// A socket could not be bound: its port is taken, say.
    #[error("cannot bind the {channel} socket to {address}: {source}")]
    Bind {
        /// Which socket.
        channel: Channel,
        /// The ZeroMQ address.
        address: String,
        /// What the system says: [`AddrInUse`](std::io::ErrorKind::AddrInUse) where somebody has it.
        source: std::io::Error,
    },
    /// The starter could not be told the ports (JEP 66).
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The system does not let SIGINT be handled.
    #[error("cannot handle SIGINT: {0}")]
    Signal(std::io::Error),
}

/// The user's input could not be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InputError {
    /// The request says that its client cannot be asked (`allow_stdin`).
    #[error("the client does not support input requests")]
    NotAllowed,
    /// The client is not connected to the stdin socket.
    #[error("the client is not there to be asked")]
    NoClient,
    /// The execution was interrupted while the kernel waited.
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
