//! A connection over TCP or a Unix socket, which is read and written at the same time.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;
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

impl Socket {
    /// Connects once, to an address as connection files have it.
    pub(super) async fn connect(address: &str) -> io::Result<Self> {
        if let Some(address) = address.strip_prefix("tcp://") {
            return Self::tcp(TcpStream::connect(address).await?);
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
