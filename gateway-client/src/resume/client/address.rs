use http::header::AUTHORIZATION;
use http::uri::Uri;
use percent_encoding::utf8_percent_encode;
use tokio_tungstenite::tungstenite::client::{ClientRequestBuilder, IntoClientRequest};
use tokio_tungstenite::tungstenite::handshake::client::Request;

use super::error::ResumeError;
use super::options::ResumeOptions;
use crate::connector::{ConnectError, Connector, ConnectorOptions, Transport};
use crate::endpoint::{ESCAPED, Endpoint};
use crate::resume::{SUBPROTOCOL, Start};

/// The address of a kernel's WebSocket, and the connector to it.
pub(super) struct Address {
    endpoint: Endpoint,
    connector: Connector,
    /// The WebSocket's address without the position in the log. The scheme is `ws` even over TLS, which is the
    /// connector's concern.
    url: String,
}

impl Address {
    pub(super) fn new(options: &ResumeOptions) -> Result<Self, ResumeError> {
        let endpoint = Endpoint::new(&options.url, options.token.as_deref())?;
        let connector_options = ConnectorOptions {
            dial: options.dial.clone(),
            #[cfg(feature = "tls")]
            tls: options.tls.clone(),
        };
        Ok(Self {
            connector: Connector::new(&endpoint, connector_options)?,
            url: format!(
                "ws://{}{}/api/kernels/{}/channels?session_id={}",
                endpoint.authority,
                endpoint.base_path,
                options.kernel,
                utf8_percent_encode(&options.session, ESCAPED),
            ),
            endpoint,
        })
    }

    pub(super) async fn connect(&self) -> Result<Box<dyn Transport>, ConnectError> {
        self.connector.connect().await
    }

    /// Creates the request of a WebSocket handshake.
    pub(super) fn request(&self, start: Start) -> Result<Request, ResumeError> {
        let invalid = |reason| ResumeError::InvalidUrl { reason };
        let uri: Uri = format!("{}&resume={start}", self.url)
            .parse()
            .map_err(|_| invalid("with the kernel's path added, it is not a URL"))?;
        let mut request = ClientRequestBuilder::new(uri)
            .with_sub_protocol(SUBPROTOCOL)
            .into_client_request()
            .map_err(|_| invalid("no request can be created from it"))?;
        if let Some(authorization) = &self.endpoint.authorization {
            request.headers_mut().insert(AUTHORIZATION, authorization.clone());
        }
        Ok(request)
    }
}
