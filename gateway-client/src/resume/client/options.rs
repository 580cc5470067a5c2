use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use jupyter_protocol::KernelId;
use tokio::io::{AsyncRead, AsyncWrite};
#[cfg(feature = "tls")]
use tokio_rustls::rustls::ClientConfig;

use crate::resume::Start;

/// A connection to the gateway that is not TCP.
pub trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// Makes a connection to the gateway; called for each.
pub type Dial = Arc<dyn Fn() -> BoxFuture<'static, io::Result<Box<dyn Transport>>> + Send + Sync>;

/// Which kernel to follow, through which gateway, and how.
#[derive(Clone)]
#[non_exhaustive]
pub struct Options {
    /// The gateway's address with its base path, such as `http://127.0.0.1:8888` or `wss://example.org/jupyter`.
    pub url: String,
    /// The kernel.
    pub kernel: KernelId,
    /// What the gateway knows the user by: sent as `Authorization: token …`, never logged, shown or put into an error.
    pub token: Option<String>,
    /// The client's name among the kernel's clients. Of two connections with one session the gateway closes the older.
    pub session: String,
    /// Where to begin.
    pub start: Start,
    /// After how long without a byte of the gateway the connection counts as dead. Not below 30 s, which is how often
    /// an idle gateway sends a Ping.
    pub silence: Duration,
    /// How long a connection may take until the gateway's `hello` has come.
    pub connect_timeout: Duration,
    /// The pause before the first attempt to connect again. Each next one is twice as long, and all are multiplied by a
    /// random number between 0.5 and 1.5.
    pub first_pause: Duration,
    /// The longest pause, before it is multiplied.
    pub longest_pause: Duration,
    /// The most bytes that a message of the kernel may have. There is one at a time in memory beside those that were
    /// handed on.
    pub max_message_bytes: usize,
    /// How many messages may be sent and not be in the log yet. Where there are more, sending is refused with
    /// [`SendError::Full`](super::SendError::Full).
    pub max_unconfirmed: usize,
    /// How to reach the gateway where it is not over TCP to the host of `url`: a Unix socket, a tunnel. The host is then
    /// only the `Host` header. It gets plain HTTP whatever `url` says, so TLS is its own matter.
    pub dial: Option<Dial>,
    /// How to speak TLS where `url` begins with `https://` or `wss://` and there is no [`dial`](Self::dial): which roots to
    /// trust, which certificate to show. The type is of the [`rustls`](super::rustls) that is exported here. What is
    /// spoken in it is HTTP/1.1: ALPN, if any, must offer `http/1.1` alone. `None`: what the system trusts, read once,
    /// when the client is made; on Linux and the BSDs the files that `SSL_CERT_FILE` and `SSL_CERT_DIR` name come before
    /// the system's own.
    #[cfg(feature = "tls")]
    pub tls: Option<Arc<ClientConfig>>,
}

impl Options {
    /// Begins with the next entry that will be appended, under a fresh random session, without a token; declares a
    /// connection dead after 90 s of silence, takes 30 s to connect, pauses 0.1 s to 10 s between attempts, takes
    /// messages of 256 MiB, and keeps 64 messages that are not confirmed.
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

    /// With this token.
    #[must_use]
    pub fn with_token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Beginning here: with a [`Cursor`](kernel_log::Cursor) that an earlier client left, right after what that one read.
    #[must_use]
    pub fn with_start(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// Under this session.
    #[must_use]
    pub fn with_session(mut self, session: impl Into<String>) -> Self {
        self.session = session.into();
        self
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither the token nor the address, which somebody may have put a token or a password into.
        f.debug_struct("Options")
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
