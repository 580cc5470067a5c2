use std::fmt;
use std::io;
use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::endpoint::{Endpoint, InvalidEndpoint};
#[cfg(feature = "tls")]
use crate::rustls::{self, ClientConfig};
#[cfg(feature = "tls")]
use crate::tls::{Tls, tls_error};

/// A connection to the gateway, such as a TCP or a Unix socket.
pub trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// Makes a connection to the gateway. Called for each connection attempt.
pub type Dial = Arc<dyn Fn() -> BoxFuture<'static, io::Result<Box<dyn Transport>>> + Send + Sync>;

/// Options of a client's connections.
pub(crate) struct ConnectorOptions {
    pub(crate) dial: Option<Dial>,
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<Arc<ClientConfig>>,
}

/// Makes connections to one gateway, for both clients of this crate.
pub(crate) struct Connector {
    host: String,
    port: u16,
    dial: Option<Dial>,
    /// `None` for plain TCP, and if `dial` is set.
    #[cfg(feature = "tls")]
    tls: Option<Tls>,
}

/// Why a connection could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error(transparent)]
    Io(io::Error),
    #[cfg(feature = "tls")]
    #[error(transparent)]
    Tls(rustls::Error),
}

impl Connector {
    pub(crate) fn new(endpoint: &Endpoint, options: ConnectorOptions) -> Result<Self, InvalidEndpoint> {
        #[cfg(not(feature = "tls"))]
        if endpoint.uses_tls && options.dial.is_none() {
            return Err(InvalidEndpoint::Url(
                "this client was built without TLS: enable the feature `tls`, or set a `dial` that does TLS",
            ));
        }
        Ok(Self {
            host: endpoint.host().to_owned(),
            port: endpoint.port(),
            #[cfg(feature = "tls")]
            tls: (endpoint.uses_tls && options.dial.is_none())
                .then(|| Tls::new(endpoint.host(), options.tls))
                .transpose()?,
            dial: options.dial,
        })
    }

    pub(crate) async fn connect(&self) -> Result<Box<dyn Transport>, ConnectError> {
        if let Some(dial) = &self.dial {
            return dial().await.map_err(ConnectError::Io);
        }
        let stream = TcpStream::connect((self.host.as_str(), self.port))
            .await
            .map_err(ConnectError::Io)?;
        // Small messages must not wait for more data (Nagle's algorithm).
        stream.set_nodelay(true).map_err(ConnectError::Io)?;
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            let connected = tls.handshake(stream).await;
            return match connected {
                Ok(stream) => Ok(Box::new(stream)),
                Err(error) => Err(tls_error(&error).map_or(ConnectError::Io(error), ConnectError::Tls)),
            };
        }
        Ok(Box::new(stream))
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}
