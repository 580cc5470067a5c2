use std::fmt;
use std::io::ErrorKind;
use std::time::Duration;

use tokio::time::sleep;

use super::SocketError;
use super::connection::{Role, connect};
use super::detachable::DetachableSocket;
use super::memory::MessageMemory;
use super::read_buffer::ReadBuffer;
use super::throttle::{Throttle, skipped_error};
use super::zmtp::{self, SUBSCRIBE_TO_ALL, Traffic};
use crate::wire::WireMessage;

const SUB: Role<'_> = Role {
    socket_type: "SUB",
    identity: b"",
    peers: &["XPUB", "PUB"],
};

/// Size of the TCP receive buffer to request, in bytes. It bridges pauses in reading: most kernels drop output that
/// does not fit into the buffers.
const RECV_BUFFER_SIZE: u32 = 4 << 20;
/// Maximum number of reads per [`IopubSubscriber::try_recv`]. A large message must not occupy the task until it is
/// complete.
const MAX_READS: usize = 16;

/// Subscriber to all topics of a kernel's iopub socket.
///
/// Most kernels drop output that they publish faster than the subscriber reads it, so the cost of reading determines
/// the rate at which output is lost. To keep that cost low, there is no task and no queue between the connection and
/// the receiver, and [`gather`](Self::gather) lets messages accumulate without wake-ups.
pub struct IopubSubscriber {
    socket: DetachableSocket,
    read_buffer: ReadBuffer,
    throttle: Throttle,
}

impl fmt::Debug for IopubSubscriber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IopubSubscriber").finish_non_exhaustive()
    }
}

impl IopubSubscriber {
    /// Connects and subscribes to all topics.
    ///
    /// The subscription takes effect at the kernel a moment later. Messages that the kernel publishes before then are
    /// missed; the first message to arrive, such as `iopub_welcome`, proves that the subscription is in effect. An
    /// address that does not listen yet is retried until `deadline`.
    ///
    /// # Errors
    /// [`SocketError::Connect`] if the address does not answer before the deadline, or the peer is not a ZeroMQ
    /// publisher.
    pub async fn connect(endpoint: &str, deadline: Duration) -> Result<Self, SocketError> {
        let (socket, read_buffer) = connect(endpoint, &SUB, &SUBSCRIBE_TO_ALL, RECV_BUFFER_SIZE, deadline).await?;
        Ok(Self {
            socket: DetachableSocket::Attached(socket),
            read_buffer,
            throttle: Throttle::default(),
        })
    }

    /// Reserves memory for large messages from a budget that is shared with other sockets.
    #[must_use]
    pub fn with_memory(mut self, memory: &MessageMemory) -> Self {
        self.read_buffer.set_memory(memory);
        self
    }

    /// Receives the next message. Cancel-safe.
    ///
    /// # Errors
    /// - [`SocketError::Wire`] if the frames are not a message, or the message was skipped because it is too large or
    ///   there was no memory for it. The socket remains usable.
    /// - [`SocketError::Broken`] if the connection is lost. The socket does not reconnect: that would hide the loss of
    ///   messages that were published in between.
    pub async fn recv(&mut self) -> Result<WireMessage, SocketError> {
        loop {
            // Yields to other tasks while the socket always has more to read.
            tokio::task::consume_budget().await;
            self.throttle.wait().await;
            if let Some(message) = self.decoded() {
                return message;
            }
            if !self.throttle.is_due() {
                self.fill().await?;
            }
        }
    }

    /// Receives the next message if it has already arrived.
    ///
    /// Also returns `None` after a bounded amount of work, for example on many commands or on a part of a large
    /// message. [`recv`](Self::recv) then continues.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub fn try_recv(&mut self) -> Option<Result<WireMessage, SocketError>> {
        for _ in 0..MAX_READS {
            if let Some(message) = self.decoded() {
                return Some(message);
            }
            if self.throttle.is_due() || !self.read_buffer.has_memory() {
                return None;
            }
            match self.try_fill() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
        None
    }

    /// Counts a message that the caller rejected. After many of them, receiving pauses.
    pub fn refused(&mut self, message: &WireMessage) {
        self.throttle.refused(message.size());
    }

    /// Pauses reading for `time`, without wake-ups for bytes that arrive during the pause. Cancel-safe.
    ///
    /// At high message rates over TCP, wake-ups cost more than processing the messages. Returns `false` at once for a
    /// Unix socket, whose buffer is too small for a pause. If pausing breaks the connection, the next
    /// [`recv`](Self::recv) returns the error.
    pub async fn gather(&mut self, time: Duration) -> bool {
        let detached = self.socket.detach();
        if detached {
            sleep(time).await;
        }
        detached
    }

    /// Returns the next message in the read buffer, or `None` if there is none or the throttle is due.
    fn decoded(&mut self) -> Option<Result<WireMessage, SocketError>> {
        while !self.throttle.is_due() {
            match self.read_buffer.next() {
                Ok(Some(Traffic::Message(frames))) => return Some(self.throttle.message(frames)),
                Ok(Some(Traffic::Skipped(bytes))) => return Some(Err(skipped_error(bytes))),
                Ok(Some(Traffic::Command(command))) => {
                    self.throttle.command(&command);
                    if let Err(error) = self.answer(&command) {
                        return Some(Err(error));
                    }
                }
                Ok(None) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
        None
    }

    /// Answers a PING command, which publishers with `ZMQ_HEARTBEAT_IVL` send.
    ///
    /// If the socket is not writable, the PONG is dropped: the publisher will send another PING.
    fn answer(&mut self, command: &[u8]) -> Result<(), SocketError> {
        let Some(pong) = zmtp::pong(command) else { return Ok(()) };
        let mut pieces = [pong.clone()].into();
        self.socket.try_write(&mut pieces).map_err(SocketError::broken)?;
        match pieces.front() {
            // A partially written frame corrupts the rest of the stream.
            Some(rest) if rest.len() < pong.len() => Err(SocketError::broken(ErrorKind::WriteZero)),
            _ => Ok(()),
        }
    }

    /// Waits until bytes arrive and reads them. Cancel-safe.
    async fn fill(&mut self) -> Result<(), SocketError> {
        self.read_buffer.reserve_memory().await?;
        while !self.try_fill()? {
            self.read_buffer.release_if_empty();
            tokio::select! {
                readable = self.socket.readable() => readable.map_err(SocketError::broken)?,
                () = self.read_buffer.until_overdue() => {}
            }
        }
        Ok(())
    }

    /// Reads once. Returns `false` if there was nothing to read.
    fn try_fill(&mut self) -> Result<bool, SocketError> {
        self.read_buffer.read(|buffer| self.socket.try_read(buffer))
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(60);
    const READY: &[u8] = b"\x04\x1a\x05READY\x0bSocket-Type\0\0\0\x04XPUB";

    /// Returns a raw connection that has performed the publisher's handshake, and its subscriber.
    async fn pair() -> (TcpStream, IopubSubscriber) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("tcp://{}", listener.local_addr().unwrap());
        let publisher = async {
            let mut socket = listener.accept().await.unwrap().0;
            socket.write_all(&zmtp::greeting()).await.unwrap();
            socket.write_all(READY).await.unwrap();
            let mut handshake = vec![0; zmtp::GREETING + zmtp::ready("SUB", b"").len() + SUBSCRIBE_TO_ALL.len()];
            socket.read_exact(&mut handshake).await.unwrap();
            assert!(handshake.ends_with(&SUBSCRIBE_TO_ALL));
            socket
        };
        let (socket, subscriber) = tokio::join!(publisher, IopubSubscriber::connect(&address, DEADLINE));
        (socket, subscriber.unwrap())
    }

    fn message(content: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x01\x09<IDS|MSG>\x01\0\x01\x02{}\x01\x02{}\x01\x02{}\x02".to_vec();
        bytes.extend((content.len() as u64).to_be_bytes());
        bytes.extend(content);
        bytes
    }

    #[tokio::test]
    async fn messages_that_accumulate_while_detached_arrive_before_the_end() {
        let (mut publisher, mut subscriber) = pair().await;
        subscriber.gather(Duration::ZERO).await;
        publisher.write_all(&message(b"{1}")).await.unwrap();
        assert_eq!(subscriber.recv().await.unwrap().content(), "{1}");
        assert!(subscriber.try_recv().is_none());
        subscriber.gather(Duration::ZERO).await;
        let large = vec![b' '; 3 << 20];
        let sent = message(&large);
        let (sent, received) = tokio::join!(publisher.write_all(&sent), subscriber.recv());
        sent.unwrap();
        assert_eq!(received.unwrap().content(), &large[..]);
        publisher.write_all(b"\x04\x02hi\x00\x03bad").await.unwrap();
        let bad = subscriber.recv().await.unwrap_err();
        assert!(bad.is_one_message(), "{bad}");
        publisher.write_all(&message(b"{2}")).await.unwrap();
        drop(publisher);
        assert_eq!(subscriber.recv().await.unwrap().content(), "{2}");
        let end = subscriber.recv().await.unwrap_err();
        assert!(!end.is_one_message(), "{end}");
    }

    #[tokio::test]
    async fn a_large_message_waits_for_the_memory_of_another() {
        let memory = MessageMemory::new(4 << 20);
        let ((mut publisher, subscriber), (mut other, others)) = (pair().await, pair().await);
        let (mut subscriber, mut others) = (subscriber.with_memory(&memory), others.with_memory(&memory));
        let large = message(&vec![b' '; 3 << 20]);
        let (sent, received) = tokio::join!(publisher.write_all(&large), subscriber.recv());
        sent.unwrap();
        received.unwrap();
        let mut both = pin!(async { tokio::join!(other.write_all(&large), others.recv()) });
        tokio::select! {
            _ = &mut both => panic!("received 6 MiB with a budget of 4 MiB"),
            () = memory.until_waited_for() => {}
        }
        publisher.write_all(&message(b"{2}")).await.unwrap();
        assert_eq!(subscriber.recv().await.unwrap().content(), "{2}");
        let (sent, received) = both.await;
        sent.unwrap();
        assert_eq!(received.unwrap().content().len(), 3 << 20);
    }

    #[tokio::test]
    async fn a_message_larger_than_the_budget_is_skipped() {
        let (mut publisher, subscriber) = pair().await;
        let mut subscriber = subscriber.with_memory(&MessageMemory::new(2 << 20));
        let sent = [message(&vec![b' '; 3 << 20]), message(b"{2}")].concat();
        let (sent, error) = tokio::join!(publisher.write_all(&sent), async {
            let error = subscriber.recv().await.unwrap_err();
            assert_eq!(subscriber.recv().await.unwrap().content(), "{2}");
            error
        });
        sent.unwrap();
        assert!(error.is_one_message());
        assert!(error.to_string().contains("no memory"), "{error}");
    }

    #[tokio::test]
    async fn a_ping_from_the_publisher_is_answered() {
        let (mut publisher, mut subscriber) = pair().await;
        publisher.write_all(b"\x04\x0a\x04PING\0\x0aabc").await.unwrap();
        publisher.write_all(&message(b"{1}")).await.unwrap();
        assert_eq!(subscriber.recv().await.unwrap().content(), "{1}");
        let mut answer = [0; 10];
        publisher.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"\x04\x08\x04PONGabc");
    }

    #[tokio::test]
    async fn connect_errors_name_the_address_and_the_protocol() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("tcp://{}", listener.local_addr().unwrap());
        let server = async {
            let mut socket = listener.accept().await.unwrap().0;
            socket.write_all(&[b'x'; zmtp::GREETING]).await.unwrap();
            socket
        };
        let (_stream, refused) = tokio::join!(server, IopubSubscriber::connect(&address, DEADLINE));
        let refused = refused.err().unwrap().to_string();
        assert!(refused.contains(&address) && refused.contains("ZMTP"), "{refused}");
        let missing = IopubSubscriber::connect("ipc:///nonexistent/socket", Duration::from_millis(1)).await;
        assert!(matches!(missing.err(), Some(SocketError::Connect { .. })));
        let unsupported = IopubSubscriber::connect("udp://1.2.3.4:5", DEADLINE)
            .await
            .err()
            .unwrap();
        assert!(unsupported.to_string().contains("ipc://"), "{unsupported}");
    }
}
