//! ZMTP 3.0, the protocol on ZeroMQ's wire: as much of it as Jupyter's sockets need, over TCP and Unix sockets.
//!
//! | Here | Stands for | Who uses it |
//! |---|---|---|
//! | [`connect`] | DEALER, SUB and REQ, one peer each | clients |
//! | [`Router`] | ROUTER | a kernel's shell, control, stdin and heartbeat |
//! | [`Publisher`] | XPUB | a kernel's iopub |
//!
//! It says at once when the other side is gone, which clients need; it never allocates what a length field claims but
//! only what has arrived; and it knows its subscribers one by one, so that a stalled one costs nobody else a message.
//! Security is the NULL mechanism: messages are signed, not encrypted.
//!
//! <https://rfc.zeromq.org/spec/23/>

mod connect;
mod endpoint;
mod frame;
mod handshake;
mod listener;
mod publisher;
mod router;

use std::io;
use std::time::Duration;

pub use connect::{Receiver, Sender, connect};
pub use endpoint::Endpoint;
pub use handshake::SocketType;
pub use publisher::Publisher;
pub use router::{Router, RouterReceiver, RouterSender};

/// The largest message that is taken, all frames together, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 1 << 30;

/// A ZeroMQ connection could not be made, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ZmtpError {
    /// The address is not one that can be used.
    #[error("{endpoint:?} is no ZeroMQ address: {problem}; use tcp://HOST:PORT or ipc://PATH")]
    Endpoint {
        /// The address.
        endpoint: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The system refused.
    #[error("{action} {endpoint}: {source}")]
    Io {
        /// What was being done, such as `cannot bind`.
        action: &'static str,
        /// The address.
        endpoint: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The other side is gone.
    #[error("the other side closed the connection")]
    Closed,
    /// The other side did not do its part in time.
    #[error("the other side did not {action} within {after:?}")]
    Timeout {
        /// What it should have done.
        action: &'static str,
        /// How long it was waited for.
        after: Duration,
    },
    /// What the other side sends is not ZMTP 3 with the NULL mechanism.
    #[error("the other side does not speak ZeroMQ's protocol as expected: {0}")]
    Protocol(&'static str),
    /// The other side's socket has a type that does not fit.
    #[error("the other side's socket is a {theirs}, which does not fit our {ours}; check the port")]
    SocketType {
        /// Our socket's type.
        ours: &'static str,
        /// What the other side says.
        theirs: String,
    },
    /// A message larger than [`MAX_MESSAGE_BYTES`] or with more frames than [`MAX_FRAMES`](crate::wire::MAX_FRAMES).
    #[error(
        "a message of more than {MAX_MESSAGE_BYTES} bytes or {} frames",
        crate::wire::MAX_FRAMES
    )]
    TooLarge,
    /// No peer of this identity is connected to the ROUTER.
    #[error("the client that is to get the message is not connected")]
    NoPeer,
}

#[cfg(test)]
mod tests;
