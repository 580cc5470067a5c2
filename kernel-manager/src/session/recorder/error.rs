use std::time::Duration;

use jupyter_protocol::Channel;
use jupyter_protocol::zmq::SocketError;

/// Why a message could not be sent to a kernel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The kernel is dead and will not be restarted automatically.
    #[error("the kernel is dead; restart it or start another")]
    Dead,
    /// The kernel was shut down.
    #[error("the kernel was shut down; start another")]
    ShutDown,
    /// Clients send only on shell, control and stdin.
    #[error("clients cannot send on {0}; they send on shell, control and stdin")]
    NotToBeSentOn(Channel),
    /// The kernel was restarted before it received this `execute_request`. The log has the request, and its execution
    /// ended with the previous process.
    #[error("the kernel was restarted before it received the code; send the code again in a new message")]
    Restarted,
    /// The header is not a JSON object.
    #[error(transparent)]
    Header(#[from] jupyter_protocol::header::HeaderError),
    /// The kernel's socket was unreachable for 60 seconds.
    #[error(transparent)]
    Socket(#[from] SocketError),
}

/// Why one of the recorder's own requests got no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The request could not be sent.
    #[error(transparent)]
    Send(#[from] SendError),
    /// No answer arrived within the deadline, or the kernel was restarted.
    #[error("the kernel did not answer {msg_type} within {deadline:?}")]
    NoAnswer {
        /// Type of the request.
        msg_type: String,
        /// The deadline.
        deadline: Duration,
    },
}
