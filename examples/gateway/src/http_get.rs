//! Requests to other services, such as an issuer of tokens.

use std::io;
use std::time::Duration;

use axum::http::{HeaderValue, Request, StatusCode, Uri, header};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use tokio_rustls::rustls::crypto::ring;

/// How long a request may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Largest response, in bytes.
const MAX_BYTES: usize = 1 << 20;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GetError {
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    TimedOut,
    #[error("{0}")]
    Transport(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the answer has the status {0}")]
    Status(StatusCode),
    #[error("the answer is not the expected JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// A client for JSON over HTTP and HTTPS. Follows no redirects. Clones share their connections.
#[derive(Clone, Debug)]
pub(crate) struct HttpGet(Client<HttpsConnector<HttpConnector>, Empty<Bytes>>);

impl HttpGet {
    /// A client that trusts the system's certificates.
    pub(crate) fn new() -> io::Result<Self> {
        let connector = HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(ring::default_provider())?
            .https_or_http()
            .enable_http1()
            .build();
        Ok(Self(Client::builder(TokioExecutor::new()).build(connector)))
    }

    /// Gets JSON of at most 1 MiB. The value of `authorization` is not logged.
    pub(crate) async fn json<T: DeserializeOwned>(
        &self,
        uri: &Uri,
        authorization: Option<HeaderValue>,
    ) -> Result<T, GetError> {
        Ok(self.json_and_date(uri, authorization).await?.0)
    }

    /// As [`json`](Self::json), with the server's time if the answer has it.
    pub(crate) async fn json_and_date<T: DeserializeOwned>(
        &self,
        uri: &Uri,
        authorization: Option<HeaderValue>,
    ) -> Result<(T, Option<DateTime<Utc>>), GetError> {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = uri.clone();
        let accept = HeaderValue::from_static("application/json");
        request.headers_mut().insert(header::ACCEPT, accept);
        if let Some(mut authorization) = authorization {
            authorization.set_sensitive(true);
            request.headers_mut().insert(header::AUTHORIZATION, authorization);
        }
        let exchange = async {
            let response = self
                .0
                .request(request)
                .await
                .map_err(|error| GetError::Transport(error.into()))?;
            if response.status() != StatusCode::OK {
                return Err(GetError::Status(response.status()));
            }
            let date = response.headers().get(header::DATE).and_then(|date| date.to_str().ok());
            // The format of HTTP (RFC 9110 section 5.6.7) is one of those of mail.
            let date = date.and_then(|date| DateTime::parse_from_rfc2822(date).ok());
            let body = Limited::new(response.into_body(), MAX_BYTES).collect().await;
            Ok((body.map_err(GetError::Transport)?.to_bytes(), date))
        };
        let (body, date) = timeout(TIMEOUT, exchange).await.unwrap_or(Err(GetError::TimedOut))?;
        Ok((serde_json::from_slice(&body)?, date.map(Into::into)))
    }
}
