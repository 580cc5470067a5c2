//! What browsers are told about pages of other origins, and the answer to `OPTIONS`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::{AllowOrigin, Gateway};

/// Lets pages of the allowed origins read the answer, errors included.
pub(crate) async fn expose(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Response {
    let allowed = allowed(&gateway.options.allow_origin, request.headers());
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    if let Some(origin) = allowed {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        let location = HeaderValue::from_static("Location");
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, location);
    }
    if matches!(gateway.options.allow_origin, AllowOrigin::These(_)) {
        headers.append(header::VARY, HeaderValue::from_static("Origin"));
    }
    response
}

fn allowed(allow: &AllowOrigin, headers: &HeaderMap) -> Option<HeaderValue> {
    if *allow == AllowOrigin::Any {
        return Some(HeaderValue::from_static("*"));
    }
    let origin = headers.get(header::ORIGIN)?;
    allow.allows(origin.to_str().ok()?).then(|| origin.clone())
}

/// Answers `OPTIONS` with the methods that the address takes. Needs no token: a browser asks without one, before it
/// sends the request itself.
pub(crate) async fn options(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Response {
    if request.method() != Method::OPTIONS {
        return next.run(request).await;
    }
    let allowed = allowed(&gateway.options.allow_origin, request.headers()).is_some();
    // No route takes OPTIONS: the router's own answer names the methods of the address, or says that there is none.
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
        let taken = HeaderValue::from_static("Authorization, Content-Type, X-XSRFToken");
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, taken);
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    }
    response
}
