use std::io;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::ZmtpError;
use super::endpoint::Endpoint;
use super::frame::{FrameReader, FrameWriter, Incoming};
use super::handshake::{SocketType, shake_hands};

/// Where nobody listens yet, the next attempt follows after this long, then after twice as long, ...
const FIRST_RETRY: Duration = Duration::from_millis(1);
/// ... up to this: a kernel's start is then noticed about as late.
const LAST_RETRY: Duration = Duration::from_millis(20);

/// Connects to a socket and splits the connection.
///
/// A SUB socket subscribes to everything. `identity` is what a ROUTER on the other side addresses replies to, at most
/// 255 bytes. Where nobody listens yet it tries again until `deadline`, a few milliseconds apart, since no event tells
/// that a port was opened.
///
/// # Errors
/// [`ZmtpError::Endpoint`] for a bad address; [`ZmtpError::Io`] where nobody listened up to the deadline or the system
/// refused for another reason; [`ZmtpError::Timeout`], [`ZmtpError::Protocol`] and [`ZmtpError::SocketType`] where who
/// listens is not the socket that is wanted.
pub async fn connect(
    endpoint: &str,
    socket_type: SocketType,
    identity: &[u8],
    deadline: Duration,
) -> Result<(Sender, Receiver), ZmtpError> {
    let address: Endpoint = endpoint.parse()?;
    let end = Instant::now() + deadline;
    let late = || ZmtpError::Timeout {
        action: "complete the connection",
        after: deadline,
    };
    let mut retry = FIRST_RETRY;
    loop {
        let refused = match timeout_at(end, address.connect_once()).await {
            Ok(Ok((reader, writer))) => {
                let shaken =
                    timeout_at(end, shake_hands(reader, writer, socket_type, identity)).await;
                let (reader, writer, _) = shaken.map_err(|_| late())??;
                let mut sender = Sender(FrameWriter::new(writer));
                if socket_type == SocketType::Sub {
                    sender.send(&[Bytes::from_static(b"\x01")]).await?;
                }
                return Ok((sender, Receiver(reader)));
            }
            Ok(Err(error)) => error,
            Err(_) => return Err(late()),
        };
        let not_there_yet = matches!(
            refused.kind(),
            io::ErrorKind::ConnectionRefused
                | io::ErrorKind::NotFound
                | io::ErrorKind::ConnectionReset
        );
        if !not_there_yet || Instant::now() + retry >= end {
            return Err(ZmtpError::Io {
                action: "cannot connect to",
                endpoint: endpoint.to_owned(),
                source: refused,
            });
        }
        sleep_until(Instant::now() + retry).await;
        retry = (retry * 2).min(LAST_RETRY);
    }
}

/// The sending half of a connection.
pub struct Sender(FrameWriter);

impl Sender {
    /// Writes the message; waits while the other side takes nothing. Cancel-safe: a message is sent whole or not at all,
    /// though where it was cancelled its rest goes out with the next one.
    ///
    /// # Errors
    /// [`ZmtpError::Closed`] where the other side is gone.
    pub async fn send(&mut self, frames: &[Bytes]) -> Result<(), ZmtpError> {
        self.0.flush().await?;
        self.0.put(frames);
        self.0.flush().await
    }
}

/// The receiving half of a connection.
pub struct Receiver(FrameReader);

impl Receiver {
    /// The frames of the next message. Cancel-safe.
    ///
    /// # Errors
    /// [`ZmtpError::Closed`] as soon as the other side is gone; [`ZmtpError::TooLarge`] and [`ZmtpError::Protocol`] where
    /// it sends what cannot be read, after which nothing more can be.
    pub async fn recv(&mut self) -> Result<Vec<Bytes>, ZmtpError> {
        loop {
            if let Incoming::Message(frames) = self.0.next().await? {
                return Ok(frames);
            }
        }
    }

    /// The frames of the next message where it has been read from the system already.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub fn try_recv(&mut self) -> Result<Option<Vec<Bytes>>, ZmtpError> {
        loop {
            match self.0.buffered()? {
                Some(Incoming::Message(frames)) => return Ok(Some(frames)),
                Some(Incoming::Command(_)) => {}
                None => return Ok(None),
            }
        }
    }
}
