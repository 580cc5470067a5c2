use http::HeaderValue;
use http::uri::{Authority, Scheme, Uri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC};

#[cfg(feature = "tls")]
use crate::rustls;

/// Characters to escape in a path segment or a query: all but the unreserved ones of RFC 3986.
pub(crate) const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The gateway's address and credentials.
pub(crate) struct Endpoint {
    pub(crate) authority: Authority,
    /// The base path without a slash at its end.
    pub(crate) base_path: String,
    pub(crate) uses_tls: bool,
    pub(crate) authorization: Option<HeaderValue>,
}

/// Why a gateway's address or credentials cannot be used.
pub(crate) enum InvalidEndpoint {
    /// The address is not repeated, because it may contain a secret.
    Url(&'static str),
    Token,
    /// The system has no trusted certificates.
    #[cfg(feature = "tls")]
    Tls(rustls::Error),
}

impl Endpoint {
    pub(crate) fn new(url: &str, token: Option<&str>) -> Result<Self, InvalidEndpoint> {
        let uri: Uri = url.parse().map_err(|_| InvalidEndpoint::Url("it is not a URL"))?;
        let uses_tls = match uri.scheme().map(Scheme::as_str) {
            Some("http" | "ws") => false,
            Some("https" | "wss") => true,
            _ => {
                let reason = "it must begin with http://, https://, ws:// or wss://";
                return Err(InvalidEndpoint::Url(reason));
            }
        };
        let authority = uri.authority().ok_or(InvalidEndpoint::Url("it has no host"))?;
        if authority.as_str().contains('@') {
            return Err(InvalidEndpoint::Url("it has a user name: use `with_token` instead"));
        }
        if uri.query().is_some() {
            return Err(InvalidEndpoint::Url("it has a query: use `with_token` for the token"));
        }
        Ok(Self {
            authority: authority.clone(),
            base_path: uri.path().trim_end_matches('/').to_owned(),
            uses_tls,
            authorization: token.map(authorization).transpose()?,
        })
    }

    /// Returns the host, which is a name or an IP address without brackets.
    pub(crate) fn host(&self) -> &str {
        self.authority.host().trim_start_matches('[').trim_end_matches(']')
    }

    pub(crate) fn port(&self) -> u16 {
        let default = if self.uses_tls { 443 } else { 80 };
        self.authority.port_u16().unwrap_or(default)
    }
}

fn authorization(token: &str) -> Result<HeaderValue, InvalidEndpoint> {
    let mut value = HeaderValue::try_from(format!("token {token}")).map_err(|_| InvalidEndpoint::Token)?;
    value.set_sensitive(true);
    Ok(value)
}
