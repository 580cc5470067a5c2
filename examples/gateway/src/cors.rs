//! CORS headers, and answers to `OPTIONS`.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::{AllowOrigin, Gateway, GatewayOptions};

/// Permissions of pages of allowed origins.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CorsOptions {
    /// Whether pages may send credentials, such as a proxy's cookies. Answers then name the page's origin, even if any
    /// origin is allowed, as the Fetch standard requires.
    pub allow_credentials: bool,
    /// Request headers that pages may send, in addition to `Authorization`, `Content-Type` and `X-XSRFToken`.
    pub allow_headers: Vec<HeaderName>,
    /// Methods that pages may use; if empty, all that the address supports.
    pub allow_methods: Vec<Method>,
    /// Response headers that pages may read, in addition to `Location`.
    pub expose_headers: Vec<HeaderName>,
    /// How long browsers may cache these permissions.
    pub max_age: Duration,
}

impl Default for CorsOptions {
    fn default() -> Self {
        Self {
            allow_credentials: false,
            allow_headers: Vec::new(),
            allow_methods: Vec::new(),
            expose_headers: Vec::new(),
            max_age: Duration::from_secs(600),
        }
    }
}

/// A list as a header value; `None` if it is empty.
fn list<T: AsRef<str>>(items: impl IntoIterator<Item = T>) -> Option<HeaderValue> {
    let items: Vec<T> = items.into_iter().collect();
    let texts: Vec<&str> = items.iter().map(AsRef::as_ref).collect();
    (!texts.is_empty()).then(|| HeaderValue::try_from(texts.join(", ")).ok())?
}

/// Adds CORS headers for pages of allowed origins, also to errors.
pub(crate) async fn expose(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Response {
    let options = gateway.options();
    let cors = &options.cors;
    let allowed = allowed(&options, request.headers());
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    let names_origin = matches!(options.allow_origin, AllowOrigin::These(_)) || cors.allow_credentials;
    if let Some(origin) = allowed {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        let exposed = std::iter::once("Location").chain(cors.expose_headers.iter().map(HeaderName::as_str));
        headers.extend(list(exposed).map(|exposed| (header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed)));
        if cors.allow_credentials {
            headers.insert(
                header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
                HeaderValue::from_static("true"),
            );
        }
    }
    if names_origin && options.allow_origin != AllowOrigin::Own {
        headers.append(header::VARY, HeaderValue::from_static("Origin"));
    }
    response
}

fn allowed(options: &GatewayOptions, headers: &HeaderMap) -> Option<HeaderValue> {
    if options.allow_origin == AllowOrigin::Any && !options.cors.allow_credentials {
        return Some(HeaderValue::from_static("*"));
    }
    let origin = headers.get(header::ORIGIN)?;
    options
        .allow_origin
        .allows(origin.to_str().ok()?)
        .then(|| origin.clone())
}

/// Answers `OPTIONS` with the methods of the address. Needs no token, because browsers send preflight requests without
/// one.
pub(crate) async fn options(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Response {
    if request.method() != Method::OPTIONS {
        return next.run(request).await;
    }
    let options = gateway.options();
    let allowed = allowed(&options, request.headers()).is_some();
    // No route handles OPTIONS, so the router answers 405 with the methods of the address in `Allow`, or 404.
    let answer = next.run(request).await;
    if answer.status() != StatusCode::METHOD_NOT_ALLOWED {
        return answer;
    }
    let methods = answer
        .headers()
        .get(header::ALLOW)
        .and_then(|allow| allow.to_str().ok());
    let methods = format!("{},OPTIONS", methods.unwrap_or("GET,HEAD"));
    let Ok(methods) = HeaderValue::try_from(methods) else {
        return answer;
    };
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    headers.insert(header::ALLOW, methods.clone());
    if allowed {
        let cors = &options.cors;
        let taken = ["Authorization", "Content-Type", "X-XSRFToken"].into_iter();
        let taken = taken.chain(cors.allow_headers.iter().map(HeaderName::as_str));
        let methods = list(&cors.allow_methods).unwrap_or(methods);
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
        headers.extend(list(taken).map(|taken| (header::ACCESS_CONTROL_ALLOW_HEADERS, taken)));
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, cors.max_age.as_secs().into());
    }
    response
}
