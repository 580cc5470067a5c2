use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use futures::future::BoxFuture;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde::Deserialize;
use tokio::time::timeout;
use tower_service::Service;

use super::error::RestError;
use super::options::GatewayClientOptions;
use crate::connector::{ConnectError, Connector, ConnectorOptions, Transport};
use crate::endpoint::Endpoint;

/// How long an unused connection stays open.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// Largest body of an error response that is read, in bytes.
const MAX_ERROR_BYTES: usize = 64 << 10;

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Exchanges requests and responses with one gateway.
#[derive(Clone)]
pub(super) struct Http {
    client: Client<PooledConnector, Full<Bytes>>,
    /// The address with the base path.
    base: String,
    authorization: Option<HeaderValue>,
    max_body_bytes: usize,
}

impl Http {
    pub(super) fn new(options: &GatewayClientOptions) -> Result<Self, RestError> {
        let endpoint = Endpoint::new(&options.url, options.token.as_deref())?;
        let connector_options = ConnectorOptions {
            dial: options.dial.clone(),
            #[cfg(feature = "tls")]
            tls: options.tls.clone(),
        };
        let connector = PooledConnector(Arc::new(Connector::new(&endpoint, connector_options)?));
        let scheme = if endpoint.uses_tls { "https" } else { "http" };
        Ok(Self {
            client: Client::builder(TokioExecutor::new())
                .pool_idle_timeout(IDLE_TIMEOUT)
                .pool_timer(TokioTimer::new())
                .build(connector),
            base: format!("{scheme}://{}{}", endpoint.authority, endpoint.base_path),
            authorization: endpoint.authorization,
            max_body_bytes: options.max_body_bytes,
        })
    }

    /// Sends a request and returns the body of a successful response. `path` is appended to the base path.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        limit: Duration,
    ) -> Result<Bytes, RestError> {
        timeout(limit, self.exchange(method, path, body))
            .await
            .unwrap_or(Err(RestError::TimedOut { limit }))
    }

    async fn exchange(&self, method: Method, path: &str, body: Option<Vec<u8>>) -> Result<Bytes, RestError> {
        let reason = "with the request's path added, it is not a URL";
        let uri: Uri = format!("{}{path}", self.base)
            .parse()
            .map_err(|_| RestError::InvalidUrl { reason })?;
        let has_body = body.is_some();
        let mut request = Request::new(Full::from(body.unwrap_or_default()));
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        headers.insert(ACCEPT, JSON);
        if has_body {
            headers.insert(CONTENT_TYPE, JSON);
        }
        if let Some(authorization) = &self.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        let response = self.client.request(request).await.map_err(RestError::from_transport)?;
        let status = response.status();
        if status.is_success() {
            return read(response.into_body(), self.max_body_bytes).await;
        }
        let body = read(response.into_body(), MAX_ERROR_BYTES).await;
        Err(RestError::Status {
            status: status.as_u16(),
            message: body.ok().as_deref().and_then(explanation),
        })
    }
}

async fn read(mut body: Incoming, limit: usize) -> Result<Bytes, RestError> {
    let mut read = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(RestError::from_transport)?.into_data() {
            if data.len() > limit - read.len() {
                return Err(RestError::TooLarge { limit });
            }
            read.extend_from_slice(&data);
        }
    }
    Ok(read.freeze())
}

/// Returns the text in an error's body: the `message`, or otherwise the `reason`.
fn explanation(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Explanation {
        message: Option<String>,
        reason: Option<String>,
    }
    let Explanation { message, reason } = serde_json::from_slice(body).ok()?;
    [message, reason].into_iter().flatten().find(|text| !text.is_empty())
}

/// Makes the connections of the HTTP client's pool.
#[derive(Clone)]
struct PooledConnector(Arc<Connector>);

impl Service<Uri> for PooledConnector {
    type Response = PooledStream;
    type Error = ConnectError;
    type Future = BoxFuture<'static, Result<PooledStream, ConnectError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    /// Ignores the address, because all requests go to the same gateway.
    fn call(&mut self, _: Uri) -> Self::Future {
        let connector = self.0.clone();
        async move {
            connector
                .connect()
                .await
                .map(|stream| PooledStream(TokioIo::new(stream)))
        }
        .boxed()
    }
}

struct PooledStream(TokioIo<Box<dyn Transport>>);

impl Connection for PooledStream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for PooledStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl Write for PooledStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
