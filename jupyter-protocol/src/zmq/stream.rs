//! A connection that need not be watched while it is read from.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};

use bytes::{Bytes, BytesMut};
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;

use super::socket::Socket;

/// A connection. While it is not watched, what arrives wakes nobody: on a flood's way that is most of the cost, for us
/// and for the kernel, whose thread does the waking.
pub(super) enum Stream {
    Watched(Socket),
    TcpUnwatched(std::net::TcpStream),
    #[cfg(unix)]
    UnixUnwatched(std::os::unix::net::UnixStream),
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

    /// Watches it no more, until it is used the next time.
    pub(super) fn unwatch(&mut self) -> io::Result<()> {
        *self = match std::mem::replace(self, Self::Gone) {
            Self::Watched(Socket::Tcp(stream)) => Self::TcpUnwatched(stream.into_std()?),
            #[cfg(unix)]
            Self::Watched(Socket::Unix(stream)) => Self::UnixUnwatched(stream.into_std()?),
            unwatched => unwatched,
        };
        Ok(())
    }

    fn watched(&mut self) -> io::Result<&Socket> {
        if !matches!(self, Self::Watched(_)) {
            *self = match std::mem::replace(self, Self::Gone) {
                Self::TcpUnwatched(stream) => Self::Watched(Socket::Tcp(TcpStream::from_std(stream)?)),
                #[cfg(unix)]
                Self::UnixUnwatched(stream) => Self::Watched(Socket::Unix(UnixStream::from_std(stream)?)),
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
