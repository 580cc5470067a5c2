use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// Error of a connection on which no byte arrived for this long.
#[derive(Debug, thiserror::Error)]
#[error("nothing arrived for {0:?}")]
pub(super) struct Silence(pub(super) Duration);

/// A connection whose reads fail when no byte has arrived for some time. Bytes count, not messages, so a large message
/// over a slow line does not time out.
///
/// Time between reads counts too. If bytes have arrived in that time, the next read succeeds, because a read checks for
/// bytes before the clock.
pub(super) struct WatchedStream<S> {
    inner: S,
    silence: Duration,
    last_read: Instant,
    sleep: Pin<Box<Sleep>>,
}

impl<S> WatchedStream<S> {
    pub(super) fn new(inner: S, silence: Duration) -> Self {
        Self {
            inner,
            silence,
            last_read: Instant::now(),
            sleep: Box::pin(sleep(silence)),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WatchedStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Poll::Ready(read) = Pin::new(&mut self.inner).poll_read(cx, buf) {
            self.last_read = Instant::now();
            return Poll::Ready(read);
        }
        loop {
            ready!(self.sleep.as_mut().poll(cx));
            let deadline = self.last_read + self.silence;
            if deadline <= Instant::now() {
                return Poll::Ready(Err(io::Error::other(Silence(self.silence))));
            }
            self.sleep.as_mut().reset(deadline);
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WatchedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
