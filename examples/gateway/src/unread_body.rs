//! The body of a request that is answered without it.
//!
//! A connection can serve the next request only where the last one's body was read: otherwise hyper closes it after the
//! answer, and a client that has begun its next request by then sees it fail; one that is still sending loses the answer
//! too. So what a handler left is read here and thrown away.

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

/// How long is read what nobody wants. A client that takes longer to send it is told that its connection closes.
const DEADLINE: Duration = Duration::from_secs(5);

/// Reads what is left of the request's body before it is answered.
pub(crate) async fn discard(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let (left, mut unread) = oneshot::channel();
    let lent = |body| Lent { body, left: Some(left) };
    let mut response = next.run(request.map(|body| Body::new(lent(body)))).await;
    let Ok(rest) = unread.try_recv() else { return response };
    // Who has sent too slowly is not waited for once more.
    let slow = response.status() == StatusCode::REQUEST_TIMEOUT;
    if slow || !ends(rest).await {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    response
}

/// Whether the body comes to its end in time.
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

/// A body that comes back when it is dropped before its end.
struct Lent {
    body: Body,
    left: Option<oneshot::Sender<Body>>,
}

impl HttpBody for Lent {
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

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(left) = self.left.take()
            && !self.body.is_end_stream()
        {
            // Where nobody waits for it, the request itself was given up.
            let _ = left.send(std::mem::take(&mut self.body));
        }
    }
}
