//! Byte streams over TCP and Unix sockets, read and written concurrently.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::time::timeout;

/// Maximum number of buffers per vectored write.
const MAX_SLICES: usize = 64;

pub(super) enum Socket {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
}

macro_rules! on_stream {
    ($socket:expr, $stream:ident => $expression:expr) => {
        match $socket {
            Socket::Tcp($stream) => $expression,
            #[cfg(unix)]
            Socket::Unix($stream) => $expression,
        }
    };
}

async fn connect_tcp(address: &str, recv_buffer_size: u32) -> io::Result<TcpStream> {
    let mut failure = io::Error::new(ErrorKind::NotFound, "the host has no address");
    for address in lookup_host(address).await? {
        match tcp_socket(address, recv_buffer_size)?.connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn tcp_socket(address: SocketAddr, recv_buffer_size: u32) -> io::Result<TcpSocket> {
    let new = || match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    };
    let socket = new()?;
    if recv_buffer_size == 0 {
        return Ok(socket);
    }
    // A receive buffer of a fixed size stops growing automatically. If the system caps it below the request, a fresh
    // socket with automatic growth holds more.
    socket.set_recv_buffer_size(recv_buffer_size)?;
    if socket.recv_buffer_size()? >= recv_buffer_size {
        Ok(socket)
    } else {
        new()
    }
}

impl Socket {
    /// Connects to a `tcp://` or `ipc://` address without retrying.
    ///
    /// `recv_buffer_size` is the size of the TCP receive buffer to request, in bytes; 0 keeps the system's default.
    pub(super) async fn connect(address: &str, recv_buffer_size: u32) -> io::Result<Self> {
        if let Some(address) = address.strip_prefix("tcp://") {
            return Self::tcp(connect_tcp(address, recv_buffer_size).await?);
        }
        #[cfg(unix)]
        if let Some(path) = address.strip_prefix("ipc://") {
            return Ok(Self::Unix(UnixStream::connect(path).await?));
        }
        Err(io::Error::new(
            ErrorKind::InvalidInput,
            "neither tcp://host:port nor ipc://path",
        ))
    }

    pub(super) fn tcp(stream: TcpStream) -> io::Result<Self> {
        // Nagle's algorithm would delay a small message until the one before is acknowledged.
        stream.set_nodelay(true)?;
        Ok(Self::Tcp(stream))
    }

    /// Reads available bytes without waiting. Returns `None` if there are none, and `Some(0)` at the end of the stream.
    pub(super) fn try_read(&self, buffer: &mut BytesMut) -> io::Result<Option<usize>> {
        none_if_not_ready(on_stream!(self, stream => stream.try_read_buf(buffer)))
    }

    /// Waits until the socket may be readable. Cancel-safe.
    pub(super) async fn readable(&self) -> io::Result<()> {
        on_stream!(self, stream => stream.readable().await)
    }

    /// Writes all pieces, none of which may be empty.
    ///
    /// Fails with [`ErrorKind::TimedOut`] if the socket is not writable for `write_timeout`.
    pub(super) async fn write_all(&self, mut pieces: VecDeque<Bytes>, write_timeout: Duration) -> io::Result<()> {
        loop {
            self.try_write(&mut pieces)?;
            if pieces.is_empty() {
                return Ok(());
            }
            match on_stream!(self, stream => timeout(write_timeout, stream.writable()).await) {
                Ok(writable) => writable?,
                Err(_) => return Err(ErrorKind::TimedOut.into()),
            }
        }
    }

    /// Writes as much as possible without waiting and removes it from `pieces`.
    pub(super) fn try_write(&self, pieces: &mut VecDeque<Bytes>) -> io::Result<()> {
        while !pieces.is_empty() {
            let written = {
                let slices: Vec<_> = pieces
                    .iter()
                    .take(MAX_SLICES)
                    .map(|piece| IoSlice::new(piece))
                    .collect();
                none_if_not_ready(on_stream!(self, stream => stream.try_write_vectored(&slices)))?
            };
            match written {
                Some(0) => return Err(ErrorKind::WriteZero.into()),
                Some(written) => advance(pieces, written),
                None => return Ok(()),
            }
        }
        Ok(())
    }
}

/// Maps [`ErrorKind::WouldBlock`] and [`ErrorKind::Interrupted`] to `None`.
fn none_if_not_ready(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(length) => Ok(Some(length)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes the first `written` bytes.
fn advance(pieces: &mut VecDeque<Bytes>, mut written: usize) {
    while let Some(first) = pieces.front_mut() {
        if written < first.len() {
            first.advance(written);
            return;
        }
        written -= first.len();
        pieces.pop_front();
    }
}
