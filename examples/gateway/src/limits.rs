//! Limits of requests.

use std::sync::Arc;

use axum::body::BodyDataStream;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::BytesMut;
use futures::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::time::timeout;

use crate::Gateway;
use crate::error::ApiError;

/// Longest path with query in bytes.
const MAX_TARGET: usize = 16 << 10;
/// Total length of header names and values in bytes.
const MAX_HEADERS: usize = 64 << 10;
/// Longest body in bytes. The largest that the API needs is a kernel's environment.
const MAX_BODY: usize = 1 << 20;

/// Refuses oversized requests and violations of HTTP/1.1 before other code reads them.
pub(crate) async fn check(request: Request, next: Next) -> Response {
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    if target > MAX_TARGET {
        let message = format!("the address has more than {MAX_TARGET} bytes");
        return ApiError::new(StatusCode::URI_TOO_LONG, message).into_response();
    }
    if size_of_headers(request.headers()) > MAX_HEADERS {
        let message = format!("the headers have more than {MAX_HEADERS} bytes");
        return ApiError::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, message).into_response();
    }
    // RFC 9112, section 3.2.
    if request.version() == Version::HTTP_11 && request.headers().get_all(header::HOST).iter().count() != 1 {
        return ApiError::bad_request("an HTTP/1.1 request must have exactly one Host header").into_response();
    }
    next.run(request).await
}

fn size_of_headers(headers: &HeaderMap) -> usize {
    headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum()
}

/// A JSON object as request body. An empty body and `null` count as an empty object.
///
/// The `Content-Type` does not matter, as with jupyter_server.
pub(crate) struct JsonObject(Map<String, Value>);

impl FromRequest<Arc<Gateway>> for JsonObject {
    type Rejection = ApiError;

    async fn from_request(request: Request, gateway: &Arc<Gateway>) -> Result<Self, ApiError> {
        let declared = declared_length(request.headers());
        let mut body = request.into_body().into_data_stream();
        if declared.is_some_and(|length| length > MAX_BODY as u64) {
            return Err(too_large());
        }
        let deadline = gateway.options().body_deadline;
        let body = match timeout(deadline, read(&mut body)).await {
            Ok(read) => read?,
            Err(_) => {
                let message = format!("the body did not arrive within {deadline:?}");
                return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, message));
            }
        };
        if body.trim_ascii().is_empty() {
            return Ok(Self(Map::new()));
        }
        match serde_json::from_slice(&body) {
            Ok(Value::Object(object)) => Ok(Self(object)),
            Ok(Value::Null) => Ok(Self(Map::new())),
            Ok(_) => Err(ApiError::bad_request("the body must be a JSON object")),
            Err(error) => Err(ApiError::bad_request(format!("the body is not JSON: {error}"))),
        }
    }
}

impl JsonObject {
    /// The members as `T`; 400 names the member that has the wrong type.
    pub(crate) fn read<T: DeserializeOwned>(self) -> Result<T, ApiError> {
        serde_path_to_error::deserialize(Value::Object(self.0)).map_err(|error| {
            let member = error.path().to_string();
            ApiError::bad_request(format!("{member:?}: {}", error.inner()))
        })
    }
}

fn declared_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

async fn read(body: &mut BodyDataStream) -> Result<BytesMut, ApiError> {
    let mut data = BytesMut::new();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| ApiError::bad_request(format!("the body cannot be read: {error}")))?;
        if data.len() + chunk.len() > MAX_BODY {
            return Err(too_large());
        }
        data.extend_from_slice(&chunk);
    }
    Ok(data)
}

fn too_large() -> ApiError {
    ApiError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("the body has more than {MAX_BODY} bytes"),
    )
}
