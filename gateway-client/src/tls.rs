use std::io;
use std::sync::Arc;

use rustls_platform_verifier::BuilderVerifierExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, ClientConfig, crypto::ring};

use crate::endpoint::InvalidEndpoint;

/// TLS connections to one host.
pub(crate) struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Tls {
    /// Prepares connections to this host, a name or an IP address without brackets. Without a `config`, they trust the
    /// system's certificates.
    pub(crate) fn new(host: &str, config: Option<Arc<ClientConfig>>) -> Result<Self, InvalidEndpoint> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| InvalidEndpoint::Url("TLS requires a DNS name or an IP address as its host"))?;
        let config = match config {
            Some(config) => config,
            None => Arc::new(trusting_the_system().map_err(InvalidEndpoint::Tls)?),
        };
        Ok(Self {
            connector: config.into(),
            name,
        })
    }

    pub(crate) async fn handshake(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        self.connector.connect(self.name.clone(), stream).await
    }
}

/// Returns the TLS error in `error`; `None` if the connection below TLS failed.
pub(crate) fn tls_error(error: &io::Error) -> Option<rustls::Error> {
    error.get_ref()?.downcast_ref::<rustls::Error>().cloned()
}

/// Returns a configuration that trusts the system's certificates. It names the crypto provider, because rustls has no
/// default one if other crates enable a second.
fn trusting_the_system() -> Result<ClientConfig, rustls::Error> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_platform_verifier()?
        .with_no_client_auth();
    Ok(config)
}
