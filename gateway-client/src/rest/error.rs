use std::error::Error;
use std::fmt;
use std::time::Duration;

use crate::endpoint::InvalidEndpoint;
#[cfg(feature = "tls")]
use crate::rustls;

/// Why a request to the gateway failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestError {
    /// The gateway's address is invalid.
    #[error("the gateway's address cannot be used: {reason}")]
    InvalidUrl {
        /// The problem. The address is not repeated, because it may contain a secret.
        reason: &'static str,
    },
    /// The token has characters that a header cannot contain.
    #[error("the token cannot be sent: it has characters other than visible ASCII")]
    InvalidToken,
    /// TLS failed: the gateway's certificate is not valid for its address, the gateway does not use TLS or requires a
    /// client certificate, or this system has no trusted certificates. The source describes the problem.
    #[cfg(feature = "tls")]
    #[error("TLS failed: {0}")]
    Tls(#[source] rustls::Error),
    /// The gateway cannot be reached, or the connection broke. The gateway may have received the request.
    #[error("no response from the gateway: {}", root_cause(&**.0))]
    Connection(#[source] Box<dyn Error + Send + Sync>),
    /// The response was not complete within the timeout. The gateway may have received the request.
    #[error("no response from the gateway within {limit:?}")]
    TimedOut {
        /// The timeout.
        limit: Duration,
    },
    /// The gateway responded with a status other than success. Redirects are not followed.
    #[error("the gateway responded with status {status}{}", Explanation(*status, message.as_deref()))]
    Status {
        /// The HTTP status.
        status: u16,
        /// The gateway's explanation; `None` if the response has none, is not JSON or is larger than 64 KiB.
        message: Option<String>,
    },
    /// The response is larger than
    /// [`GatewayClientOptions::max_body_bytes`](super::GatewayClientOptions::max_body_bytes).
    #[error("the response is larger than the limit of {limit} bytes: raise max_body_bytes")]
    TooLarge {
        /// The largest accepted response in bytes.
        limit: usize,
    },
    /// The response is not the expected JSON, so the server is perhaps not a Jupyter gateway.
    #[error("the response is not the expected JSON: {0}")]
    InvalidJson(#[source] serde_json::Error),
}

impl RestError {
    /// Returns the HTTP status, if the gateway responded with one other than success.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Status { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Returns whether the status is 404: the gateway has no such kernel, log or execution, or the address is wrong.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.status() == Some(404)
    }

    /// Converts a transport error. Returns `Tls` if any of its causes is a TLS error.
    pub(super) fn from_transport(error: impl Error + Send + Sync + 'static) -> Self {
        #[cfg(feature = "tls")]
        if let Some(error) = causes(&error).find_map(tls_cause) {
            return Self::Tls(error);
        }
        Self::Connection(Box::new(error))
    }
}

impl From<InvalidEndpoint> for RestError {
    fn from(invalid: InvalidEndpoint) -> Self {
        match invalid {
            InvalidEndpoint::Url(reason) => Self::InvalidUrl { reason },
            InvalidEndpoint::Token => Self::InvalidToken,
            #[cfg(feature = "tls")]
            InvalidEndpoint::Tls(error) => Self::Tls(error),
        }
    }
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// Returns the text of the innermost cause. The HTTP library's own texts, such as "client error (Connect)", do not help
/// a user.
fn root_cause(error: &(dyn Error + 'static)) -> String {
    causes(error).last().map(ToString::to_string).unwrap_or_default()
}

#[cfg(feature = "tls")]
fn tls_cause(cause: &(dyn Error + 'static)) -> Option<rustls::Error> {
    if let Some(crate::connector::ConnectError::Tls(error)) = cause.downcast_ref() {
        return Some(error.clone());
    }
    // In TLS 1.3, a gateway refuses a client certificate after the client has completed the handshake, so reading fails
    // (RFC 8446 section 4.4.2.4).
    crate::tls::tls_error(cause.downcast_ref::<std::io::Error>()?)
}

/// Explains a status, with the gateway's message if there is one.
struct Explanation<'a>(u16, Option<&'a str>);

impl fmt::Display for Explanation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.1, self.0) {
            (Some(message), _) => write!(f, ": {message}"),
            (None, 300..=399) => f.write_str(": redirects are not followed; check the gateway's address"),
            (None, 401 | 403) => f.write_str(": check the token and the gateway's permissions"),
            (None, 404) => f.write_str(": check the gateway's address with its base path"),
            (None, _) => Ok(()),
        }
    }
}
