//! Who may: a token, in a header or in the query, compared in constant time; and for browsers' WebSockets their origin.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;

use crate::Gateway;
use crate::error::ApiError;

pub(crate) async fn require(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Response {
    if request.method() == Method::OPTIONS {
        return StatusCode::NO_CONTENT.into_response();
    }
    if let Some(token) = &gateway.token {
        match given(request.headers(), request.uri()) {
            None => return ApiError::new(StatusCode::UNAUTHORIZED, "a token is required").into_response(),
            Some(given) if !bool::from(given.as_bytes().ct_eq(token.as_bytes())) => {
                return ApiError::new(StatusCode::UNAUTHORIZED, "the token is not the right one").into_response();
            }
            Some(_) => {}
        }
    }
    if request.headers().contains_key(header::UPGRADE) && !same_origin(request.headers()) {
        return ApiError::new(StatusCode::FORBIDDEN, "connections from this origin are not allowed").into_response();
    }
    next.run(request).await
}

/// The token that the request has. A bare `Authorization: token` is none.
fn given(headers: &HeaderMap, uri: &Uri) -> Option<String> {
    let from_header = headers.get(header::AUTHORIZATION).and_then(|value| {
        let (scheme, token) = value.to_str().ok()?.trim().split_once(' ')?;
        let known = scheme.eq_ignore_ascii_case("token") || scheme.eq_ignore_ascii_case("bearer");
        (known && !token.trim().is_empty()).then(|| token.trim().to_owned())
    });
    from_header.or_else(|| {
        let query = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri).ok()?.0;
        query
            .into_iter()
            .find(|(key, value)| key == "token" && !value.is_empty())
            .map(|(_, value)| value)
    })
}

/// No origin passes, as no browser sent it; else it must be this host.
fn same_origin(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else {
        return true;
    };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    matches!((host, origin), (Some(host), Some((_, origin))) if host.eq_ignore_ascii_case(origin))
}
