use std::time::Duration;

use crate::channel::Channel;
use crate::content::NoResult;
use crate::signing::SigningError;
use crate::zmq::SocketError;

/// Error of a [`Client`](super::Client).
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Connecting to one of the kernel's sockets failed.
    #[error("cannot connect to the kernel's {channel} socket: {reason}")]
    Connect {
        /// Channel of the socket.
        channel: Channel,
        /// Why connecting failed, with the address.
        reason: String,
    },
    /// The connection file has no port for a required channel.
    #[error("the connection file has no {0} port; does it belong to a running kernel?")]
    NoPort(Channel),
    /// The kernel's sockets are encrypted with CurveZMQ.
    #[error("the kernel's sockets are encrypted with CurveZMQ, which is not supported; start it without encryption")]
    Encrypted,
    /// The signature scheme of the connection file is not supported.
    #[error(transparent)]
    Signing(#[from] SigningError),
    /// The kernel did not answer before the deadline. The request is not withdrawn: the kernel may still handle it.
    #[error("no {what} from the kernel within {after:?}; it may be busy: interrupt it or wait longer")]
    Deadline {
        /// What was awaited, such as `complete_reply`.
        what: String,
        /// The deadline that has passed.
        after: Duration,
    },
    /// The connection is lost: the kernel died, was shut down or closed its sockets. The client does not reconnect.
    #[error("the connection to the kernel is lost: {reason}; connect again if the kernel still runs")]
    Gone {
        /// Why the connection is lost.
        reason: String,
    },
    /// The kernel replied with an error or aborted the request.
    #[error(transparent)]
    NoResult(#[from] NoResult),
    /// The reply is malformed or not of the type that belongs to the request.
    #[error("the kernel answered {expected} with {msg_type}: {problem}")]
    BadReply {
        /// `msg_type` of the request.
        expected: String,
        /// `msg_type` of the reply, empty if the header of the reply is invalid.
        msg_type: String,
        /// What is wrong with the reply.
        problem: String,
    },
    /// Messages were dropped because they arrived faster than they were read.
    #[error("{missed} messages were dropped because they were not read in time")]
    Lagged {
        /// Number of dropped messages.
        missed: u64,
    },
    /// Input was sent without a pending input request.
    #[error("the kernel has not requested input")]
    NoInputRequested,
}

impl ClientError {
    pub(super) fn gone(error: &SocketError) -> Self {
        Self::Gone {
            reason: error.to_string(),
        }
    }
}
