//! Discards the unread body of a request.
//!
//! A connection can be reused only if the previous body was read. Otherwise hyper closes it after the response: the
//! next request of the client fails if it was already sent, and a client that is still sending loses the response. So
//! the gateway reads and discards the rest of the body.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Error;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use futures::StreamExt;
use hyper::body::{Frame, SizeHint};
use tokio::sync::oneshot;
use tokio::time::timeout;

/// How long to keep reading an unwanted body. After that, the connection is closed after the response.
const DEADLINE: Duration = Duration::from_secs(5);

/// Reads the rest of the request's body before the response is sent.
pub(crate) async fn discard(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let (left, mut unread) = oneshot::channel();
    let returning = |body| ReturningBody { body, left: Some(left) };
    let mut response = next.run(request.map(|body| Body::new(returning(body)))).await;
    let Ok(rest) = unread.try_recv() else { return response };
    // If the client was already too slow once, do not wait for it again.
    let slow = response.status() == StatusCode::REQUEST_TIMEOUT;
    if slow || !ends(rest).await {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    response
}

/// Whether the body ended in time.
async fn ends(rest: Body) -> bool {
    let mut rest = rest.into_data_stream();
    let read = async {
        while let Some(chunk) = rest.next().await {
            if chunk.is_err() {
                return false;
            }
        }
        true
    };
    timeout(DEADLINE, read).await.unwrap_or(false)
}

/// A body that is sent back if it is dropped before its end.
struct ReturningBody {
    body: Body,
    left: Option<oneshot::Sender<Body>>,
}

impl HttpBody for ReturningBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for ReturningBody {
    fn drop(&mut self) {
        if let Some(left) = self.left.take()
            && !self.body.is_end_stream()
        {
            // Without a receiver, the request itself was dropped.
            let _ = left.send(std::mem::take(&mut self.body));
        }
    }
}
