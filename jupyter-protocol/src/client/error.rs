use std::time::Duration;

use crate::channel::Channel;
use crate::content::NoResult;
use crate::signing::SigningError;
use crate::zmq::SocketError;

/// A request to a kernel had no good end.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The kernel's sockets could not be connected to.
    #[error("cannot connect to the kernel's {channel} socket: {reason}")]
    Connect {
        /// Which socket.
        channel: Channel,
        /// What the socket says, with the address.
        reason: String,
    },
    /// The connection file names no port for a channel that is needed.
    #[error("the connection names no {0} port; is it the connection file of a running kernel?")]
    NoPort(Channel),
    /// The kernel's sockets are encrypted with CurveZMQ.
    #[error("the kernel's sockets are encrypted with CurveZMQ, which is not supported; start it without encryption")]
    Encrypted,
    /// The connection's messages cannot be signed.
    #[error(transparent)]
    Signing(#[from] SigningError),
    /// The kernel did not do its part in time. It may still do so: what was asked for is not withdrawn.
    #[error("no {what} from the kernel within {after:?}; it may be busy: interrupt it or wait longer")]
    Deadline {
        /// What was waited for, such as `complete_reply`.
        what: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// The connection ended: the kernel died, was shut down, or closed its sockets. The client is of no more use.
    #[error("the connection to the kernel is lost: {reason}; connect again if the kernel still runs")]
    Gone {
        /// What ended it.
        reason: String,
    },
    /// The kernel answered, but not with a result.
    #[error(transparent)]
    NoResult(#[from] NoResult),
    /// The kernel answered with something else than the protocol's reply to the request.
    #[error("the kernel answered {expected} with {msg_type}: {problem}")]
    BadReply {
        /// The type that the reply should have.
        expected: String,
        /// The type that it has.
        msg_type: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Messages came faster than they were read, and the queue's bound was reached: so many are missing here.
    #[error("{missed} messages were dropped, since they were not read in time")]
    Lagged {
        /// How many.
        missed: u64,
    },
    /// Input was sent where the kernel asks for none.
    #[error("the kernel does not ask for input")]
    NoInputRequested,
}

impl ClientError {
    pub(super) fn gone(error: &SocketError) -> Self {
        Self::Gone {
            reason: error.to_string(),
        }
    }
}
