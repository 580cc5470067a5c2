use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// The error of a connection on which nothing came for so long.
#[derive(Debug, thiserror::Error)]
#[error("nothing came for {0:?}")]
pub(super) struct Silence(pub(super) Duration);

/// A connection whose reads fail where nothing has come for some time. Bytes count, not messages: a large message over a
/// slow line is no silence.
///
/// Time in which nobody reads counts too, and harms nobody: what came meanwhile is read before the clock is looked at.
pub(super) struct Watched<S> {
    inner: S,
    silence: Duration,
    heard: Instant,
    sleep: Pin<Box<Sleep>>,
}

impl<S> Watched<S> {
    pub(super) fn new(inner: S, silence: Duration) -> Self {
        Self {
            inner,
            silence,
            heard: Instant::now(),
            sleep: Box::pin(sleep(silence)),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Poll::Ready(read) = Pin::new(&mut self.inner).poll_read(cx, buf) {
            self.heard = Instant::now();
            return Poll::Ready(read);
        }
        loop {
            ready!(self.sleep.as_mut().poll(cx));
            let deadline = self.heard + self.silence;
            if deadline <= Instant::now() {
                return Poll::Ready(Err(io::Error::other(Silence(self.silence))));
            }
            self.sleep.as_mut().reset(deadline);
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
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
