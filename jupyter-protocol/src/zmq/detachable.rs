//! A socket that can be detached from tokio's reactor while it is not being read.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};

use bytes::{Bytes, BytesMut};
use tokio::net::TcpStream;

use super::socket::Socket;

/// A socket that avoids wake-ups while it is detached.
///
/// At high message rates, wake-ups are most of the cost of receiving. The kernel's sending thread performs them, so
/// they also slow down the kernel.
pub(super) enum DetachableSocket {
    Attached(Socket),
    Detached(std::net::TcpStream),
    /// Detaching or attaching failed, which closed the socket.
    Lost,
}

impl DetachableSocket {
    /// Attaches the socket and reads as [`Socket::try_read`] does.
    pub(super) fn try_read(&mut self, buffer: &mut BytesMut) -> io::Result<Option<usize>> {
        self.attached()?.try_read(buffer)
    }

    /// Attaches the socket and writes as [`Socket::try_write`] does.
    pub(super) fn try_write(&mut self, pieces: &mut VecDeque<Bytes>) -> io::Result<()> {
        self.attached()?.try_write(pieces)
    }

    /// Attaches the socket and waits as [`Socket::readable`] does.
    pub(super) async fn readable(&mut self) -> io::Result<()> {
        self.attached()?.readable().await
    }

    /// Detaches a TCP socket until its next use. Returns whether the socket is detached.
    ///
    /// A Unix socket stays attached. It buffers only about 200 KiB, the size of the sender's buffer, which a kernel
    /// with much output fills before the next read.
    pub(super) fn detach(&mut self) -> bool {
        if let Self::Attached(Socket::Tcp(_)) = self
            && let Self::Attached(Socket::Tcp(stream)) = std::mem::replace(self, Self::Lost)
            && let Ok(stream) = stream.into_std()
        {
            *self = Self::Detached(stream);
        }
        matches!(self, Self::Detached(_))
    }

    fn attached(&mut self) -> io::Result<&Socket> {
        if !matches!(self, Self::Attached(_)) {
            *self = match std::mem::replace(self, Self::Lost) {
                Self::Detached(stream) => Self::Attached(Socket::Tcp(TcpStream::from_std(stream)?)),
                attached => attached,
            };
        }
        match self {
            Self::Attached(socket) => Ok(socket),
            _ => Err(io::Error::new(
                ErrorKind::NotConnected,
                "the socket could not be registered with the event loop",
            )),
        }
    }
}
