use std::fmt;
#[cfg(feature = "tls")]
use std::sync::Arc;
use std::time::Duration;

use crate::connector::Dial;
use crate::resume::Start;
#[cfg(feature = "tls")]
use crate::rustls::ClientConfig;
use jupyter_protocol::KernelId;

/// Options of a [`ResumeClient`](super::ResumeClient): gateway, kernel and timeouts.
#[derive(Clone)]
#[non_exhaustive]
pub struct ResumeOptions {
    /// The gateway's address with its base path, such as `http://127.0.0.1:8888` or `wss://example.org/jupyter`.
    pub url: String,
    /// The kernel.
    pub kernel: KernelId,
    /// The user's token. It is sent as `Authorization: token …` and never logged, shown or put into an error.
    pub token: Option<String>,
    /// The client's session id. Of two connections with the same session, the gateway closes the older one.
    pub session: String,
    /// Start position in the log.
    pub start: Start,
    /// How long the gateway may be silent before the connection counts as dead. Should be more than 30 s, the interval
    /// of an idle gateway's Pings.
    pub silence: Duration,
    /// Timeout for connecting, up to and including the gateway's `hello`.
    pub connect_timeout: Duration,
    /// Pause before the first reconnect. Each further pause is twice as long, and all are multiplied by a random number
    /// between 0.5 and 1.5.
    pub first_pause: Duration,
    /// The longest pause, before the random factor.
    pub longest_pause: Duration,
    /// Largest accepted message in bytes. The client holds at most one message in memory that it has not returned.
    pub max_message_bytes: usize,
    /// How many sent messages may be unconfirmed by the log. Beyond that, sending fails with
    /// [`SendError::Full`](super::SendError::Full).
    pub max_unconfirmed: usize,
    /// Makes the connections, for example over a Unix socket or a tunnel. With `None`, the client connects to the host
    /// of `url` over TCP. With `dial`, this host is used only for the `Host` header, and the client speaks plain HTTP
    /// regardless of the scheme of `url`, so `dial` must do TLS itself.
    pub dial: Option<Dial>,
    /// TLS configuration, such as trusted roots and a client certificate, for a `url` with `https://` or `wss://` and
    /// without a [`dial`](Self::dial). The type is that of the re-exported [`rustls`](super::rustls). ALPN, if set,
    /// must offer only `http/1.1`.
    ///
    /// With `None`, the client trusts the system's certificates and reads them once, when it is created. On Linux and
    /// the BSDs, the certificates at `SSL_CERT_FILE` and `SSL_CERT_DIR` take precedence over the system's own.
    #[cfg(feature = "tls")]
    pub tls: Option<Arc<ClientConfig>>,
}

impl ResumeOptions {
    /// Creates options with defaults: a random session, no token, and start at the next appended entry. A connection is
    /// dead after 90 s of silence, connecting times out after 30 s, pauses between attempts are 0.1 s to 10 s, messages
    /// may have 256 MiB, and 64 messages may be unconfirmed.
    #[must_use]
    pub fn new(url: impl Into<String>, kernel: KernelId) -> Self {
        Self {
            url: url.into(),
            kernel,
            token: None,
            session: uuid::Uuid::new_v4().to_string(),
            start: Start::Head,
            silence: Duration::from_secs(90),
            connect_timeout: Duration::from_secs(30),
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(10),
            max_message_bytes: 256 << 20,
            max_unconfirmed: 64,
            dial: None,
            #[cfg(feature = "tls")]
            tls: None,
        }
    }

    /// Sets the token.
    #[must_use]
    pub fn with_token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Sets the start position. With an earlier client's [`Cursor`](kernel_log::Cursor), the client resumes after the
    /// last entry that the earlier client read.
    #[must_use]
    pub fn with_start(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// Sets the session id.
    #[must_use]
    pub fn with_session(mut self, session: impl Into<String>) -> Self {
        self.session = session.into();
        self
    }
}

impl fmt::Debug for ResumeOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Omits the token, and the address because it may contain a token or a password.
        f.debug_struct("ResumeOptions")
            .field("kernel", &self.kernel)
            .field("session", &self.session)
            .field("start", &self.start)
            .field("silence", &self.silence)
            .field("connect_timeout", &self.connect_timeout)
            .field("first_pause", &self.first_pause)
            .field("longest_pause", &self.longest_pause)
            .field("max_message_bytes", &self.max_message_bytes)
            .field("max_unconfirmed", &self.max_unconfirmed)
            .finish_non_exhaustive()
    }
}
