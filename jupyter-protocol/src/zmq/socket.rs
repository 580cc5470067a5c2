//! A connection over TCP or a Unix socket, which is read and written at the same time.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::time::timeout;

/// How many pieces are written at a time.
const PIECES: usize = 64;

pub(super) enum Socket {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
}

macro_rules! either {
    ($socket:expr, $stream:ident => $what:expr) => {
        match $socket {
            Socket::Tcp($stream) => $what,
            #[cfg(unix)]
            Socket::Unix($stream) => $what,
        }
    };
}

async fn connect_tcp(address: &str, unread: u32) -> io::Result<TcpStream> {
    let mut failure = io::Error::new(ErrorKind::NotFound, "the host has no address");
    for address in lookup_host(address).await? {
        match tcp_socket(address, unread)?.connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn tcp_socket(address: SocketAddr, unread: u32) -> io::Result<TcpSocket> {
    let new = || match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    };
    let socket = new()?;
    if unread == 0 {
        return Ok(socket);
    }
    // A buffer of a fixed size grows no more. Where it may not be as large as that, it is better left to grow.
    socket.set_recv_buffer_size(unread)?;
    if socket.recv_buffer_size()? >= unread {
        Ok(socket)
    } else {
        new()
    }
}

impl Socket {
    /// Connects once, to an address as connection files have it. The operating system is asked to hold `unread` bytes of
    /// what arrives over TCP; 0 leaves that to it.
    pub(super) async fn connect(address: &str, unread: u32) -> io::Result<Self> {
        if let Some(address) = address.strip_prefix("tcp://") {
            return Self::tcp(connect_tcp(address, unread).await?);
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
        // A small message is not to wait for the acknowledgement of the one before.
        stream.set_nodelay(true)?;
        Ok(Self::Tcp(stream))
    }

    /// Reads once what is there; `None` where there is nothing. 0 bytes are the end.
    pub(super) fn try_read(&self, buffer: &mut BytesMut) -> io::Result<Option<usize>> {
        there(either!(self, stream => stream.try_read_buf(buffer)))
    }

    /// Waits until there may be something to read. Cancel-safe.
    pub(super) async fn readable(&self) -> io::Result<()> {
        either!(self, stream => stream.readable().await)
    }

    /// Hands all pieces to the system, none of which is empty. Fails where the other side takes nothing for as long as
    /// `patience`.
    pub(super) async fn write_all(&self, mut pieces: VecDeque<Bytes>, patience: Duration) -> io::Result<()> {
        loop {
            self.try_write(&mut pieces)?;
            if pieces.is_empty() {
                return Ok(());
            }
            match either!(self, stream => timeout(patience, stream.writable()).await) {
                Ok(writable) => writable?,
                Err(_) => return Err(ErrorKind::TimedOut.into()),
            }
        }
    }

    /// Hands as much to the system as it takes now, and leaves the rest.
    pub(super) fn try_write(&self, pieces: &mut VecDeque<Bytes>) -> io::Result<()> {
        while !pieces.is_empty() {
            let written = {
                let slices: Vec<_> = pieces.iter().take(PIECES).map(|piece| IoSlice::new(piece)).collect();
                there(either!(self, stream => stream.try_write_vectored(&slices)))?
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

fn there(done: io::Result<usize>) -> io::Result<Option<usize>> {
    match done {
        Ok(length) => Ok(Some(length)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Takes off what was written.
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
