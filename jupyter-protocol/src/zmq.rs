//! ZeroMQ sockets that carry [`WireMessage`](crate::wire::WireMessage)s, and the heartbeat.
//!
//! Thin: a message's frames are handed over as they are. Signatures are the caller's to make and check.
//!
//! # What a peer can do
//!
//! Room is made only for bytes that have come, and messages of more than [`MAX_MESSAGE_BYTES`] are passed over, heartbeats and subscriptions
//! of more than 4 KiB. A socket of a kernel has at most 128 connections, each with ten seconds for its handshake, and a
//! bounded queue for each; those beyond wait until one ends. Who takes nothing of what there is for it loses its
//! connection: after ten seconds, on iopub after thirty.
//!
//! What is left to who can reach a kernel's sockets, for which it needs no key: to hold all connections, to have parts of
//! large messages be kept, and to subscribe and read slowly, for which a kernel waits. So let nobody but a kernel's user
//! reach them: Unix sockets in a directory of mode 0700 (`ipc`), or TCP on 127.0.0.1, or a network policy for pods.

mod connection;
mod dealer;
#[cfg(feature = "kernel")]
mod echo;
mod inbox;
mod listener;
mod listening;
mod memory;
#[cfg(feature = "kernel")]
mod publisher;
mod requester;
mod router;
mod socket;
mod stream;
mod subscriber;
mod throttle;
mod zmtp;

pub use dealer::{DealerReceiver, DealerSender, dealer};
#[cfg(feature = "kernel")]
pub(crate) use echo::echo;
pub(crate) use listener::Listener;
pub(crate) use listening::Listening;
pub use memory::MessageMemory;
#[cfg(feature = "kernel")]
pub(crate) use publisher::{Publisher, Subscription};
pub(crate) use requester::Requester;
pub use requester::heartbeat;
pub(crate) use router::{RouterReceiver, RouterSender, router};
pub use subscriber::IopubSubscriber;

use crate::wire::WireError;

/// How many bytes a message may have. Several times as many are held while it is received, logged and sent on, which
/// [`MessageMemory`] bounds for many sockets together.
pub const MAX_MESSAGE_BYTES: u64 = 128 << 20;

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
    #[error("the connection failed: {0}")]
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
