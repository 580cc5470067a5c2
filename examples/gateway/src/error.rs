//! Errors as Jupyter clients expect them: `{reason, message}` for every failure.

use axum::Json;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use kernel_log::StoreError;
use serde::Serialize;
use utoipa::ToSchema;

/// Longest message in bytes. It may contain a kernel's last output.
const MAX_MESSAGE: usize = 32 << 10;

/// The body of an error response.
#[derive(Serialize, ToSchema)]
#[schema(as = Error)]
pub(crate) struct ErrorBody {
    /// The name of the status.
    reason: &'static str,
    /// The text for the client: the problem, its subject and the remedy.
    message: String,
}

/// An error response: `{reason, message}`.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    message: String,
    /// After how many seconds the request may succeed.
    retry_after: Option<u64>,
}

impl ApiError {
    /// An error whose `reason` is the name of the status. Truncates long messages.
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > MAX_MESSAGE {
            message.truncate(message.floor_char_boundary(MAX_MESSAGE));
            message.push('…');
        }
        Self {
            status,
            message,
            retry_after: None,
        }
    }

    /// The same error with the header `Retry-After`, in seconds.
    pub(crate) fn with_retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds.max(1));
        self
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, message)
    }

    /// The same status with another message.
    pub(crate) fn with_message(self, message: impl Into<String>) -> Self {
        Self::new(self.status, message)
    }

    #[cfg(test)]
    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "a log cannot be read");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let reason = self.status.canonical_reason().unwrap_or("Error");
        let message = self.message;
        let mut response = (self.status, Json(ErrorBody { reason, message })).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// Marks a response whose error body stays as it is, such as a page for people.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OwnBody;

/// Gives errors of the framework, such as 405, the body `{reason, message}`, and turns panics in handlers into errors.
pub(crate) async fn as_json(request: Request, next: Next) -> Response {
    let response = match std::panic::AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => response,
        // The panic's text goes to the process's log, not to the client.
        Err(_) => {
            return ApiError::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the gateway failed; its log has the cause",
            )
            .into_response();
        }
    };
    if response.extensions().get::<OwnBody>().is_some() {
        return response;
    }
    let status = response.status();
    let is_json = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/json"));
    if !(status.is_client_error() || status.is_server_error()) || is_json {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let message = match axum::body::to_bytes(body, MAX_MESSAGE).await {
        Ok(text) if text.is_empty() && status == StatusCode::METHOD_NOT_ALLOWED => {
            "this address does not support this method; the Allow header lists the supported ones".to_owned()
        }
        Ok(text) => String::from_utf8_lossy(&text).into_owned(),
        Err(_) => String::new(),
    };
    let (own, body) = ApiError::new(status, message).into_response().into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.extend(own.headers);
    Response::from_parts(parts, Body::new(body))
}

/// Forbids content sniffing, and caching unless the handler has set `Cache-Control`.
pub(crate) async fn plain_answers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    response
}
