use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio_tungstenite::tungstenite::client::{ClientRequestBuilder, IntoClientRequest};
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::http::uri::{Scheme, Uri};
use tokio_tungstenite::tungstenite::http::{HeaderValue, header::AUTHORIZATION};

use super::error::Error;
use super::options::Options;
#[cfg(feature = "tls")]
use super::tls::Tls;
use crate::resume::{SUBPROTOCOL, Start};

/// Characters to escape in a query: all but the unreserved ones of RFC 3986.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The gateway's address and credentials.
pub(super) struct Address {
    host: String,
    port: u16,
    /// The WebSocket's address without the position in the log.
    url: String,
    authorization: Option<HeaderValue>,
    /// TLS for the connections that this client makes; `None` for plain TCP, or if [`Options::dial`] connects.
    #[cfg(feature = "tls")]
    tls: Option<Tls>,
}

impl Address {
    pub(super) fn new(options: &Options) -> Result<Self, Error> {
        let uri: Uri = options.url.parse().map_err(|_| invalid("it is not a URL"))?;
        let tls = match uri.scheme().map(Scheme::as_str) {
            Some("http" | "ws") => false,
            Some("https" | "wss") => true,
            _ => return Err(invalid("it must begin with http://, https://, ws:// or wss://")),
        };
        #[cfg(not(feature = "tls"))]
        if tls && options.dial.is_none() {
            return Err(invalid(
                "this client was built without TLS: enable the feature `tls`, or set a `dial` that does TLS",
            ));
        }
        let authority = uri.authority().ok_or(invalid("it has no host"))?;
        if authority.as_str().contains('@') {
            return Err(invalid("it has a user name: use `with_token` instead"));
        }
        if uri.query().is_some() {
            return Err(invalid("it has a query: use `with_token` for the token"));
        }
        let authorization = options.token.as_ref().map(|token| {
            let mut value = HeaderValue::try_from(format!("token {token}")).map_err(|_| Error::InvalidToken)?;
            value.set_sensitive(true);
            Ok(value)
        });
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        Ok(Self {
            host: host.to_owned(),
            port: authority.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            url: format!(
                "ws://{authority}{}/api/kernels/{}/channels?session_id={}",
                uri.path().trim_end_matches('/'),
                options.kernel,
                utf8_percent_encode(&options.session, ESCAPED),
            ),
            authorization: authorization.transpose()?,
            #[cfg(feature = "tls")]
            tls: (tls && options.dial.is_none())
                .then(|| Tls::new(host, options.tls.clone()))
                .transpose()?,
        })
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    #[cfg(feature = "tls")]
    pub(super) fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// Makes the request of a WebSocket handshake.
    pub(super) fn request(&self, start: Start) -> Result<Request, Error> {
        let uri: Uri = format!("{}&resume={start}", self.url)
            .parse()
            .map_err(|_| invalid("with the kernel's path added, it is not a URL"))?;
        let mut request = ClientRequestBuilder::new(uri)
            .with_sub_protocol(SUBPROTOCOL)
            .into_client_request()
            .map_err(|_| invalid("no request can be made to it"))?;
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert(AUTHORIZATION, authorization.clone());
        }
        Ok(request)
    }
}

fn invalid(reason: &'static str) -> Error {
    Error::InvalidUrl { reason }
}
