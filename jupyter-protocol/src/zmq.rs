//! ZeroMQ sockets that carry [`WireMessage`](crate::wire::WireMessage)s, and the heartbeat.
//!
//! The sockets pass frames through unchanged. The caller signs messages and verifies signatures.
//!
//! # Untrusted peers
//!
//! Buffers grow only as bytes arrive, regardless of the length that a frame claims. Messages larger than
//! [`MAX_MESSAGE_BYTES`] are skipped, and those larger than 16 GiB close the connection. A heartbeat or subscription
//! larger than 4 KiB closes its connection.
//!
//! Each socket of a kernel accepts at most 128 connections at a time; further ones wait until one closes. Each accepted
//! connection has ten seconds for its handshake and a bounded send queue. A client that stops reading is disconnected
//! after the write timeout: ten seconds, or thirty seconds on iopub.
//!
//! A peer that can reach a kernel's sockets needs no key to occupy all connections, to make the kernel buffer partial
//! large messages, or to slow the kernel down by subscribing and reading slowly. To restrict access, use Unix sockets
//! in a directory of mode 0700 (`ipc`), or a network policy for pods. TCP on 127.0.0.1 excludes other machines, but not
//! other users of this one.

mod connection;
mod dealer;
mod detachable;
#[cfg(feature = "kernel")]
mod echo;
mod listener;
mod memory;
#[cfg(feature = "kernel")]
mod publisher;
mod read_buffer;
mod requester;
mod router;
mod server;
mod socket;
mod subscriber;
mod throttle;
mod verifier;
mod zmtp;

pub use dealer::{DealerReceiver, DealerSender, dealer};
#[cfg(feature = "kernel")]
pub(crate) use echo::echo;
pub(crate) use listener::Listener;
pub use memory::{MessageMemory, ReservedMemory};
#[cfg(feature = "kernel")]
pub(crate) use publisher::{Publisher, Subscription};
pub(crate) use requester::Requester;
pub use requester::heartbeat;
pub(crate) use router::{RouterReceiver, RouterSender, router};
pub(crate) use server::SocketServer;
pub use subscriber::IopubSubscriber;
pub use verifier::{Refused, Verifier};

use crate::wire::WireError;

/// Maximum size of a message in bytes.
///
/// A received message is in memory as a whole. [`MessageMemory`] bounds the total across many sockets.
pub const MAX_MESSAGE_BYTES: u64 = 128 << 20;

/// Error of a ZeroMQ socket.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// Connecting failed: the address did not answer before the deadline, or the peer does not speak ZeroMQ.
    #[error("cannot connect to {endpoint}: {reason}; is the kernel running?")]
    Connect {
        /// Address, such as `tcp://127.0.0.1:5555`.
        endpoint: String,
        /// Why connecting failed.
        reason: String,
    },
    /// A socket identity or a signature scheme is invalid.
    #[error("invalid {kind} {what:?}: {reason}")]
    Invalid {
        /// Kind of the value, such as `identity`.
        kind: &'static str,
        /// The invalid value.
        what: String,
        /// Why the value is invalid.
        reason: String,
    },
    /// The peer disconnected or violated ZMTP.
    #[error("the connection failed: {0}")]
    Broken(String),
    /// The received frames are not a usable message. The socket remains usable.
    #[error(transparent)]
    Wire(#[from] WireError),
}

impl SocketError {
    /// Returns whether the error concerns a single message, so that the socket remains usable.
    #[must_use]
    pub fn is_one_message(&self) -> bool {
        matches!(self, Self::Wire(_))
    }

    fn broken(error: impl std::fmt::Display) -> Self {
        Self::Broken(error.to_string())
    }
}
