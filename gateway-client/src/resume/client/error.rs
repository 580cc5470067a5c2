use std::time::Duration;

use jupyter_protocol::Channel;
use kernel_log::{Lifecycle, Seq};

use crate::connector::ConnectError;
use crate::endpoint::InvalidEndpoint;
use crate::resume::NotRecovered;

/// Why a client has ended instead of reconnecting.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResumeError {
    /// The gateway's address is invalid.
    #[error("the gateway's address cannot be used: {reason}")]
    InvalidUrl {
        /// The problem. The address is not repeated, because it may contain a secret.
        reason: &'static str,
    },
    /// The token has characters that a header cannot contain.
    #[error("the token cannot be sent: it has characters other than visible ASCII")]
    InvalidToken,
    /// The address begins with `https://` or `wss://`, and this system has no trusted certificates. Install them (on
    /// Debian the package `ca-certificates`), or set [`ResumeOptions::tls`](super::ResumeOptions::tls).
    #[cfg(feature = "tls")]
    #[error("TLS cannot be set up with the system's certificates: {reason}; install certificates, or set `tls`")]
    Tls {
        /// The problem with the certificates.
        reason: String,
    },
    /// The only attempt of [`ResumeClient::connect`](super::ResumeClient::connect) failed. Another call may succeed.
    #[error("cannot connect to the gateway: {0}")]
    Unreachable(ConnectionLost),
    /// The gateway refuses the connection with status 400, 401, 403 or 404.
    #[error("the gateway refuses the connection: {status}, {}", meaning(*status))]
    Refused {
        /// The HTTP status.
        status: u16,
    },
    /// The gateway does not support the resume protocol: it is not kernelmux, or an older version.
    #[error(
        "the gateway does not speak {}: it is not kernelmux, or too old",
        crate::resume::SUBPROTOCOL
    )]
    Unsupported,
    /// The gateway closed the connection because of this client's messages: code 1002 for an invalid frame, 1009 for
    /// one that is too large. Reconnecting would end the same way.
    #[error("the gateway rejected this client's messages: code {code}{}", because(reason))]
    Closed {
        /// Code of the Close frame (RFC 6455 section 7.4).
        code: u16,
        /// The gateway's reason; may be empty.
        reason: String,
    },
    /// Another connection of the same session replaced this one (code 4001).
    #[error("a newer connection uses the session: give each client its own session")]
    Replaced,
    /// A message in the log is larger than
    /// [`ResumeOptions::max_message_bytes`](super::ResumeOptions::max_message_bytes).
    #[error("a message is larger than the limit of {limit} bytes: raise max_message_bytes")]
    TooLarge {
        /// The largest accepted message in bytes.
        limit: usize,
    },
    /// The gateway violated the protocol several times at the same position.
    #[error("the gateway repeatedly violates the protocol: {what}")]
    Broken {
        /// The violation.
        what: String,
    },
}

impl From<InvalidEndpoint> for ResumeError {
    fn from(invalid: InvalidEndpoint) -> Self {
        match invalid {
            InvalidEndpoint::Url(reason) => Self::InvalidUrl { reason },
            InvalidEndpoint::Token => Self::InvalidToken,
            #[cfg(feature = "tls")]
            InvalidEndpoint::Tls(error) => Self::Tls {
                reason: error.to_string(),
            },
        }
    }
}

fn meaning(status: u16) -> &'static str {
    match status {
        400 => "it does not understand the request",
        401 | 403 => "check the token and the gateway's permissions",
        404 => "there is neither such a kernel nor its log",
        _ => "for a reason unknown to this client",
    }
}

fn because(reason: &str) -> String {
    if reason.is_empty() {
        String::new()
    } else {
        format!(", {reason}")
    }
}

/// Why a connection failed; the client reconnects.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionLost {
    /// The gateway cannot be reached, or did not answer within the [timeout](super::ResumeOptions::connect_timeout).
    #[error("no connection: {0}")]
    Unreachable(String),
    /// TLS failed: the gateway's certificate has an unknown issuer or another name, or is not valid now; the gateway
    /// refuses or requires a client certificate; or it does not use TLS. The text describes the problem.
    ///
    /// The client retries, because all of these problems can be fixed elsewhere: certificates are renewed, and clocks
    /// are set. Programs that prefer to stop can match this variant. The token is not sent to a gateway with an invalid
    /// certificate.
    #[cfg(feature = "tls")]
    #[error("TLS failed: {0}")]
    Tls(String),
    /// The gateway answered with a status that may be temporary, for example because it is starting, stopping or
    /// overloaded.
    #[error("the gateway answered with status {0}")]
    Status(u16),
    /// The gateway closed the connection, for example with code 1001 because it is stopping, or with 1011 because the
    /// log cannot be read at the moment.
    #[error("the gateway closed the connection: code {code}{}", because(reason))]
    Closed {
        /// Code of the Close frame; 1005 if it had none.
        code: u16,
        /// The gateway's reason; may be empty.
        reason: String,
    },
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broke(String),
    /// Nothing arrived for this long, not even a Ping.
    #[error("nothing arrived for {} s, not even a Ping", .0.as_secs())]
    Silent(Duration),
    /// The gateway violated the protocol, for example with an entry that is not the next one.
    #[error("the gateway violated the protocol: {0}")]
    Violation(String),
}

/// Why a connection ended, and whether the client reconnects.
pub(super) enum Failure {
    Final(ResumeError),
    Retry(ConnectionLost),
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        Self::Retry(match error {
            ConnectError::Io(error) => ConnectionLost::Unreachable(error.to_string()),
            #[cfg(feature = "tls")]
            ConnectError::Tls(error) => ConnectionLost::Tls(error.to_string()),
        })
    }
}

impl From<ConnectionLost> for Failure {
    fn from(lost: ConnectionLost) -> Self {
        Self::Retry(lost)
    }
}

/// Why a message was not accepted for sending.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The limit [`ResumeOptions::max_unconfirmed`](super::ResumeOptions::max_unconfirmed) of messages that are sent
    /// and not in the log yet is reached: continue reading, then send again.
    #[error("{limit} messages are not confirmed yet: continue reading, then send again")]
    Full {
        /// The limit.
        limit: usize,
    },
    /// Clients send only on shell, control and stdin.
    #[error("clients send on shell, control and stdin, not on {0}")]
    Channel(Channel),
    /// The message's header is not a JSON object with a `msg_id`, by which the gateway identifies it.
    #[error("the message has no msg_id in its header, by which the gateway identifies it")]
    NoId,
    /// A message with this `msg_id` was sent and is not in the log yet.
    #[error("a message with the msg_id {0:?} was sent before: give each message its own id")]
    Duplicate(String),
    /// The kernel is gone or the client has ended, as the last [`next`](super::ResumeClient::next) reported.
    #[error("the message cannot be sent: the kernel has ended, or the client has failed")]
    Ended,
}

/// Why an execution cannot be followed to its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExecutionError {
    /// The kernel died or was restarted. Earlier output has been returned.
    #[error("the kernel ended before the execution was done{}", because(reason.as_deref().unwrap_or_default()))]
    KernelEnded {
        /// The cause, if it is known.
        reason: Option<String>,
    },
    /// Log entries are missing, possibly of this execution. Reading can continue.
    #[error("entries {first} to {last} of the log are missing: the execution's messages may have been among them")]
    Gap {
        /// The first missing entry.
        first: Seq,
        /// The last missing entry.
        last: Seq,
    },
    /// Messages of the execution may be missing here. Reading can continue.
    #[error("messages of the execution may be missing: {0}")]
    Loss(Lifecycle),
    /// The execution ended while the gateway did not record the kernel's messages.
    #[error("the execution ended while its kernel was not recorded")]
    Lost,
    /// After a reconnect, the client could not resume at its position.
    #[error("the log does not continue at the last position: messages of the execution may be missing or repeated")]
    NotRecovered(Option<NotRecovered>),
    /// The client has ended.
    #[error(transparent)]
    Client(#[from] ResumeError),
}
