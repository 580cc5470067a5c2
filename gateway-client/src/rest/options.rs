use std::fmt;
#[cfg(feature = "tls")]
use std::sync::Arc;
use std::time::Duration;

use crate::connector::Dial;
#[cfg(feature = "tls")]
use crate::rustls::ClientConfig;

/// Options of a [`GatewayClient`](super::GatewayClient): address, token, timeouts and limits.
#[derive(Clone)]
#[non_exhaustive]
pub struct GatewayClientOptions {
    /// The gateway's address with its base path, such as `http://127.0.0.1:8888` or `https://example.org/jupyter`.
    pub url: String,
    /// The user's token. It is sent as `Authorization: token …` and never logged, shown or put into an error.
    pub token: Option<String>,
    /// Timeout of a request, up to the last byte of the response.
    pub timeout: Duration,
    /// Timeout of requests that start, restart or end a kernel.
    pub launch_timeout: Duration,
    /// Largest accepted response in bytes.
    pub max_body_bytes: usize,
    /// Makes the connections, for example over a Unix socket or a tunnel. With `None`, the client connects to the host
    /// of `url` over TCP. The client speaks plain HTTP over a connection of `dial` regardless of the scheme of `url`,
    /// so `dial` must do TLS itself.
    pub dial: Option<Dial>,
    /// TLS configuration, such as trusted roots and a client certificate, for a `url` with `https://` and without a
    /// [`dial`](Self::dial). The type is that of the re-exported [`rustls`](crate::rustls). ALPN, if set, must offer
    /// only `http/1.1`. With `None`, the client trusts the system's certificates.
    #[cfg(feature = "tls")]
    pub tls: Option<Arc<ClientConfig>>,
}

impl GatewayClientOptions {
    /// Creates options with defaults: no token, a timeout of 30 s (5 min for requests that start, restart or end a
    /// kernel), and responses of at most 256 MiB.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            token: None,
            timeout: Duration::from_secs(30),
            launch_timeout: Duration::from_secs(300),
            max_body_bytes: 256 << 20,
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

    /// Sets the timeout of a request.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets the timeout of requests that start, restart or end a kernel.
    #[must_use]
    pub fn with_launch_timeout(mut self, timeout: Duration) -> Self {
        self.launch_timeout = timeout;
        self
    }

    /// Sets the largest accepted response in bytes.
    #[must_use]
    pub fn with_max_body_bytes(mut self, max_body_bytes: usize) -> Self {
        self.max_body_bytes = max_body_bytes;
        self
    }

    /// Sets the function that makes connections.
    #[must_use]
    pub fn with_dial(mut self, dial: Dial) -> Self {
        self.dial = Some(dial);
        self
    }

    /// Sets the TLS configuration.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn with_tls(mut self, tls: Arc<ClientConfig>) -> Self {
        self.tls = Some(tls);
        self
    }
}

impl fmt::Debug for GatewayClientOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Omits the token, and the address because it may contain a token or a password.
        f.debug_struct("GatewayClientOptions")
            .field("timeout", &self.timeout)
            .field("launch_timeout", &self.launch_timeout)
            .field("max_body_bytes", &self.max_body_bytes)
            .finish_non_exhaustive()
    }
}
