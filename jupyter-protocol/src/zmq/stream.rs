//! A connection that need not be watched while it is read from.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};

use bytes::{Bytes, BytesMut};
use tokio::net::TcpStream;

use super::socket::Socket;

/// A connection. While it is not watched, what arrives wakes nobody: on a flood's way that is most of the cost, for us
/// and for the kernel, whose thread does the waking.
pub(super) enum Stream {
    Watched(Socket),
    Unwatched(std::net::TcpStream),
    /// The operating system did not let it be watched any more.
    Gone,
}

impl Stream {
    /// As [`Socket::try_read`].
    pub(super) fn try_read(&mut self, buffer: &mut BytesMut) -> io::Result<Option<usize>> {
        self.watched()?.try_read(buffer)
    }

    /// As [`Socket::try_write`].
    pub(super) fn try_write(&mut self, pieces: &mut VecDeque<Bytes>) -> io::Result<()> {
        self.watched()?.try_write(pieces)
    }

    /// As [`Socket::readable`].
    pub(super) async fn readable(&mut self) -> io::Result<()> {
        self.watched()?.readable().await
    }

    /// Watches a TCP connection no more, until it is used the next time. Returns whether it is not watched.
    ///
    /// A Unix socket is watched always: it holds what its sender's buffer does, some 200 KiB, which a flood fills in less
    /// time than it takes to come back.
    pub(super) fn unwatch(&mut self) -> bool {
        if let Self::Watched(Socket::Tcp(_)) = self
            && let Self::Watched(Socket::Tcp(stream)) = std::mem::replace(self, Self::Gone)
            && let Ok(stream) = stream.into_std()
        {
            *self = Self::Unwatched(stream);
        }
        matches!(self, Self::Unwatched(_))
    }

    fn watched(&mut self) -> io::Result<&Socket> {
        if !matches!(self, Self::Watched(_)) {
            *self = match std::mem::replace(self, Self::Gone) {
                Self::Unwatched(stream) => Self::Watched(Socket::Tcp(TcpStream::from_std(stream)?)),
                watched => watched,
            };
        }
        match self {
            Self::Watched(socket) => Ok(socket),
            _ => Err(io::Error::new(
                ErrorKind::NotConnected,
                "the connection could not be watched any more",
            )),
        }
    }
}
