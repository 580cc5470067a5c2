use std::time::Duration;

use jupyter_protocol::Channel;

use crate::resume::NotRecovered;

/// Why a client does not go on: connecting again would not help, or is not for the client to decide.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The gateway's address cannot be used.
    #[error("the gateway's address cannot be used: {reason}")]
    InvalidUrl {
        /// What is wrong with it. The address itself is not repeated: it might have a secret in it.
        reason: &'static str,
    },
    /// The token has characters that a header cannot carry.
    #[error("the token cannot be sent: it has characters other than visible ASCII")]
    InvalidToken,
    /// `https://` or `wss://`, and the system has no certificates that it trusts: install them (on Debian the package
    /// `ca-certificates`), or give the client [`Options::tls`](super::Options::tls).
    #[cfg(feature = "resume-client-tls")]
    #[error("TLS cannot be set up with what the system trusts: {reason}; install its certificates, or give `tls`")]
    Tls {
        /// What is wrong.
        reason: String,
    },
    /// The first connection, which [`ResumeClient::connect`](super::ResumeClient::connect) makes, could not be made.
    /// Trying again may help.
    #[error("cannot connect to the gateway: {0}")]
    Unreachable(Lost),
    /// The gateway refuses the connection, with the status 400, 401, 403 or 404.
    #[error("the gateway refuses the connection: {status}, {}", meaning(*status))]
    Refused {
        /// The HTTP status.
        status: u16,
    },
    /// The gateway does not speak the resume protocol: it is no kernelmux, or an older one.
    #[error(
        "the gateway does not speak {}: it is no kernelmux, or too old a one",
        crate::resume::SUBPROTOCOL
    )]
    Unsupported,
    /// The gateway closed the connection over what this client sent: code 1002 for a frame that is no message, 1009 for
    /// one that is too large. Each connection would end the same way.
    #[error(
        "the gateway accepts no more messages from this client: code {code}{}",
        because(reason)
    )]
    Closed {
        /// The code of the Close frame (RFC 6455 section 7.4).
        code: u16,
        /// What the gateway says of it; may be empty.
        reason: String,
    },
    /// The same session has connected anew (code 4001): the other connection is the one in use.
    #[error("the session is in use by a newer connection: give each client a session of its own")]
    Replaced,
    /// A message of the kernel is larger than [`Options::max_message_bytes`](super::Options::max_message_bytes).
    #[error("a message is larger than the {limit} bytes that this client takes: raise max_message_bytes")]
    TooLarge {
        /// The most bytes that a message may have.
        limit: usize,
    },
    /// The gateway broke the protocol in the same place several times.
    #[error("the gateway breaks the protocol each time: {what}")]
    Broken {
        /// What it did.
        what: String,
    },
}

fn meaning(status: u16) -> &'static str {
    match status {
        400 => "it does not understand the request",
        401 | 403 => "check the token, and what the gateway permits",
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

/// Why a connection ended, or could not be made, where the client connects again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Lost {
    /// Nobody answered, or not in [time](super::Options::connect_timeout).
    #[error("no connection: {0}")]
    Unreachable(String),
    /// TLS failed: the gateway's certificate is of an unknown issuer, for another name or not valid at this time; the
    /// gateway does not take the client's certificate, or wants one; or it does not speak TLS there. The text says which.
    ///
    /// It is tried again because all of it is put right elsewhere while a client waits: certificates are renewed, clocks
    /// set. A program that would rather stop has this variant to tell it by. No token is sent to a gateway whose
    /// certificate does not hold.
    #[cfg(feature = "resume-client-tls")]
    #[error("TLS failed: {0}")]
    Tls(String),
    /// The gateway answered with a status that may be another one soon: it starts, stops or is overloaded.
    #[error("the gateway answered {0}")]
    Status(u16),
    /// The gateway closed the connection: 1001 where it stops, 1011 where the log cannot be read at the moment.
    #[error("the gateway closed the connection: code {code}{}", because(reason))]
    Closed {
        /// The code of the Close frame; 1005 where it had none.
        code: u16,
        /// What the gateway says of it; may be empty.
        reason: String,
    },
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broke(String),
    /// Nothing came for so long, not even a Ping.
    #[error("nothing came for {} s, not even a Ping", .0.as_secs())]
    Silent(Duration),
    /// The gateway sent what must not be there, such as an entry that is not the next one.
    #[error("the gateway broke the protocol: {0}")]
    Violation(String),
}

/// What ended a connection: for good, or until the next one.
pub(super) enum Failure {
    Final(Error),
    Retry(Lost),
}

impl From<Lost> for Failure {
    fn from(lost: Lost) -> Self {
        Self::Retry(lost)
    }
}

/// Why a message is not sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// As many messages as [`Options::max_unconfirmed`](super::Options::max_unconfirmed) were sent and are not in the
    /// log yet: read on, then send again.
    #[error("{limit} messages are not confirmed yet: read on, then send again")]
    Full {
        /// How many may be unconfirmed.
        limit: usize,
    },
    /// Clients send on shell, control and stdin only.
    #[error("clients send on shell, control and stdin, not on {0}")]
    Channel(Channel),
    /// The message's header is no JSON object with a `msg_id`, by which the gateway knows it.
    #[error("the message has no msg_id in its header, by which the gateway would know it")]
    NoId,
    /// A message with this `msg_id` was sent and is not in the log yet.
    #[error("a message with the msg_id {0:?} was sent before: give each message its own")]
    Duplicate(String),
    /// The kernel is gone, or the client gave up: the last [`next`](super::ResumeClient::next) said so.
    #[error("nothing can be sent any more: the kernel is gone, or the connection ended for good")]
    Ended,
}

/// Why an execution cannot be followed to its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExecutionError {
    /// The kernel ended, or was restarted. What it had put out before was handed on.
    #[error("the kernel ended before the execution was done{}", because(reason.as_deref().unwrap_or_default()))]
    KernelEnded {
        /// What is known of it.
        reason: Option<String>,
    },
    /// Entries of the log are missing, and some of them may be the execution's. Reading can go on.
    #[error("entries {first} to {last} of the log are missing: the execution's messages may have been among them")]
    Gap {
        /// The first one missing.
        first: u64,
        /// The last one missing.
        last: u64,
    },
    /// After a disconnect the client could not go on where it was.
    #[error("the log does not continue at the last position: messages of the execution may be missing or repeated")]
    NotRecovered(Option<NotRecovered>),
    /// The connection ended for good.
    #[error(transparent)]
    Client(#[from] Error),
}
