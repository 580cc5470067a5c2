//! The base URL, and its removal from request paths.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::Uri;
use axum::http::uri::PathAndQuery;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::Gateway;
use crate::error::ApiError;

/// Characters to escape in a path segment: all but those that RFC 3986 section 3.3 allows.
pub(crate) const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'!')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')')
    .remove(b'*')
    .remove(b'+')
    .remove(b',')
    .remove(b';')
    .remove(b'=')
    .remove(b':')
    .remove(b'@');

/// The path prefix of all addresses, such as `/jupyter/`.
///
/// ```
/// use kernelmux_gateway::BaseUrl;
///
/// assert_eq!("jupyter".parse::<BaseUrl>()?.to_string(), "/jupyter/");
/// assert_eq!("/user/jim%40x".parse::<BaseUrl>()?.to_string(), "/user/jim@x/");
/// assert_eq!(BaseUrl::default().to_string(), "/");
/// # Ok::<(), kernelmux_gateway::InvalidBaseUrl>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BaseUrl {
    /// The decoded segments.
    segments: Vec<String>,
    /// The encoded path without a trailing slash; empty for `/`.
    prefix: String,
}

impl BaseUrl {
    /// The encoded path without a trailing slash; empty for `/`.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The rest of a request's path below this prefix, as sent; `None` for other paths.
    fn below<'a>(&self, path: &'a str) -> Option<&'a str> {
        let mut rest = path;
        for segment in &self.segments {
            let after = rest.strip_prefix('/')?;
            let (given, left) = after.split_at(after.find('/').unwrap_or(after.len()));
            if !percent_decode_str(given).eq(segment.bytes()) {
                return None;
            }
            rest = left;
        }
        Some(if rest.is_empty() { "/" } else { rest })
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/", self.prefix)
    }
}

/// The text is not a valid base URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a base URL: write a path such as /jupyter/, without scheme, host, query, \"..\" or control characters"
)]
pub struct InvalidBaseUrl(String);

impl FromStr for BaseUrl {
    type Err = InvalidBaseUrl;

    /// Parses a path, encoded or not, with or without slashes at its ends.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidBaseUrl(text.to_owned());
        if text.contains("://") || text.contains(['?', '#']) {
            return Err(invalid());
        }
        let mut base_url = Self::default();
        for segment in text.split('/').filter(|segment| !segment.is_empty()) {
            let segment = percent_decode_str(segment).decode_utf8().map_err(|_| invalid())?;
            if matches!(&*segment, "." | "..") || segment.contains(|c: char| c == '/' || c.is_control()) {
                return Err(invalid());
            }
            base_url.prefix.push('/');
            base_url.prefix.extend(utf8_percent_encode(&segment, ESCAPED));
            base_url.segments.push(segment.into_owned());
        }
        Ok(base_url)
    }
}

/// Strips the base URL and a trailing slash from a request's path before routing. Other paths get 404.
pub(crate) async fn strip(State(gateway): State<Arc<Gateway>>, mut request: Request, next: Next) -> Response {
    let stripped = gateway
        .options()
        .base_url
        .below(request.uri().path())
        .and_then(|path| with_path(request.uri(), path.strip_suffix('/').unwrap_or(path)));
    match stripped {
        Some(uri) => {
            *request.uri_mut() = uri;
            next.run(request).await
        }
        None => ApiError::not_found("").into_response(),
    }
}

fn with_path(uri: &Uri, path: &str) -> Option<Uri> {
    let path = if path.is_empty() { "/" } else { path };
    let path_and_query = match uri.query() {
        Some(query) => PathAndQuery::try_from(format!("{path}?{query}")),
        None => PathAndQuery::try_from(path),
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(path_and_query.ok()?);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_urls_are_paths() {
        for (text, expected) in [
            ("", "/"),
            ("/", "/"),
            ("a", "/a/"),
            ("/a//b/", "/a/b/"),
            ("~me", "/~me/"),
            ("/user/jim@x/", "/user/jim@x/"),
            ("/user/jim%40x", "/user/jim@x/"),
            ("a b/{x}/ü", "/a%20b/%7Bx%7D/%C3%BC/"),
        ] {
            assert_eq!(text.parse::<BaseUrl>().unwrap().to_string(), expected, "{text:?}");
        }
        for text in [
            "http://x/",
            "/a?b",
            "../a",
            "/a/%2e",
            "/a#b",
            "/a%2Fb",
            "/a%00",
            "/a\n",
            "/%ff",
        ] {
            assert!(text.parse::<BaseUrl>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn paths_match_in_any_encoding() {
        let base_url: BaseUrl = "/user/jim@x".parse().unwrap();
        for (path, expected) in [
            ("/user/jim@x/api", Some("/api")),
            ("/user/jim%40x/api/a%2Fb", Some("/api/a%2Fb")),
            ("/%75ser/jim%40x/", Some("/")),
            ("/user/jim@x", Some("/")),
            ("/user/jim@xy/api", None),
            ("/user%2Fjim@x/api", None),
            ("/user", None),
            ("/api", None),
            ("*", None),
        ] {
            assert_eq!(base_url.below(path), expected, "{path}");
        }
        assert_eq!(BaseUrl::default().below("/api"), Some("/api"));
    }
}
