use std::io::ErrorKind;
use std::time::Duration;

use tokio::time::sleep;

use super::SocketError;
use super::connection::{Role, connect};
use super::inbox::Inbox;
use super::memory::MessageMemory;
use super::stream::Stream;
use super::throttle::{Throttle, left_out, size};
use super::zmtp::{self, SUBSCRIBE_TO_ALL, Traffic};
use crate::wire::WireMessage;

const SUB: Role<'_> = Role {
    socket_type: "SUB",
    identity: b"",
    peers: &["XPUB", "PUB"],
};

/// How much the operating system is to hold, in bytes, where we do not come to read: what does not fit is dropped by a
/// kernel that does not wait.
const UNREAD: u32 = 4 << 20;
/// How often [`IopubSubscriber::try_recv`] reads at most: a large message must not be read in one go.
const READS: usize = 16;

/// The subscriber of a kernel's iopub, to all topics.
///
/// A kernel that publishes faster than its subscriber reads drops what it cannot send, so that what reading costs
/// decides from where on output is lost. So there is no task and no queue between the connection and whoever receives,
/// and messages can be let [`gather`](Self::gather).
pub struct IopubSubscriber {
    stream: Stream,
    inbox: Inbox,
    throttle: Throttle,
}

impl IopubSubscriber {
    /// Connects and subscribes. The kernel learns of it a moment later: until its `iopub_welcome` or any other message
    /// arrives, what it publishes may pass unseen. An address where nobody listens yet is tried again until the
    /// deadline.
    ///
    /// # Errors
    /// [`SocketError::Connect`] where nobody answered by the deadline, or not as a ZeroMQ publisher.
    pub async fn connect(endpoint: &str, deadline: Duration) -> Result<Self, SocketError> {
        let (socket, inbox) = connect(endpoint, &SUB, &SUBSCRIBE_TO_ALL, UNREAD, deadline).await?;
        Ok(Self {
            stream: Stream::Watched(socket),
            inbox,
            throttle: Throttle::default(),
        })
    }

    /// Takes the memory for large messages from what other sockets take theirs from.
    #[must_use]
    pub fn with_memory(mut self, memory: &MessageMemory) -> Self {
        self.inbox.share(memory);
        self
    }

    /// The next message. Cancel-safe.
    ///
    /// # Errors
    /// [`SocketError::Wire`] where the frames are no message, too large, or there is no memory for them, after which the socket goes on;
    /// [`SocketError::Broken`] where the connection is lost. It does not connect again by itself: what was published
    /// meanwhile would be missing, and nobody told.
    pub async fn recv(&mut self) -> Result<WireMessage, SocketError> {
        loop {
            // Where there is always something to read, the other tasks have their turn.
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

    /// The next message where one is here already. `None` too after a bounded amount of other traffic, or of one large
    /// message: [`recv`](Self::recv) goes on then.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub fn try_recv(&mut self) -> Option<Result<WireMessage, SocketError>> {
        for _ in 0..READS {
            if let Some(message) = self.decoded() {
                return Some(message);
            }
            if self.throttle.is_due() || !self.inbox.has_memory() {
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

    /// Counts a message that the caller refuses: after many of them, receiving pauses.
    pub fn refused(&mut self, message: &WireMessage) {
        self.throttle.refused(size(message.parts_and_buffers()));
    }

    /// Reads nothing for so long, and is not woken for what arrives meanwhile: in a flood over TCP, waking costs more than
    /// all that is done with a message. Returns `false` at once for a Unix socket, which has too little room for that.
    /// Cancel-safe. Should the connection not survive it, the next [`recv`](Self::recv) tells.
    pub async fn gather(&mut self, time: Duration) -> bool {
        let gathers = self.stream.unwatch();
        if gathers {
            sleep(time).await;
        }
        gathers
    }

    /// A message that was read already; `None` too once there were too many commands.
    fn decoded(&mut self) -> Option<Result<WireMessage, SocketError>> {
        while !self.throttle.is_due() {
            match self.inbox.next() {
                Ok(Some(Traffic::Message(frames))) => return Some(self.throttle.message(frames)),
                Ok(Some(Traffic::LeftOut(bytes))) => return Some(Err(left_out(bytes))),
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

    /// Answers a publisher that asks whether somebody is there, as one with `ZMQ_HEARTBEAT_IVL` does. One that takes no
    /// answer now asks again.
    fn answer(&mut self, command: &[u8]) -> Result<(), SocketError> {
        let Some(pong) = zmtp::pong(command) else { return Ok(()) };
        let mut pieces = [pong.clone()].into();
        self.stream.try_write(&mut pieces).map_err(SocketError::broken)?;
        match pieces.front() {
            // A part of it would make nonsense of what follows.
            Some(rest) if rest.len() < pong.len() => Err(SocketError::broken(ErrorKind::WriteZero)),
            _ => Ok(()),
        }
    }

    /// Reads, and waits for something to read. Cancel-safe.
    async fn fill(&mut self) -> Result<(), SocketError> {
        self.inbox.memory().await?;
        while !self.try_fill()? {
            self.inbox.rest();
            tokio::select! {
                readable = self.stream.readable() => readable.map_err(SocketError::broken)?,
                () = self.inbox.overdue() => {}
            }
        }
        Ok(())
    }

    /// Reads once what is there. Whether there was something.
    fn try_fill(&mut self) -> Result<bool, SocketError> {
        self.inbox.read(|buffer| self.stream.try_read(buffer))
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const SOON: Duration = Duration::from_secs(60);
    const READY: &[u8] = b"\x04\x1a\x05READY\x0bSocket-Type\0\0\0\x04XPUB";

    /// A publisher's side of the handshake, and a subscriber.
    async fn pair() -> (TcpStream, IopubSubscriber) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("tcp://{}", listener.local_addr().unwrap());
        let publisher = async {
            let mut stream = listener.accept().await.unwrap().0;
            stream.write_all(&zmtp::greeting()).await.unwrap();
            stream.write_all(READY).await.unwrap();
            let mut handshake = vec![0; zmtp::GREETING + zmtp::ready("SUB", b"").len() + SUBSCRIBE_TO_ALL.len()];
            stream.read_exact(&mut handshake).await.unwrap();
            assert!(handshake.ends_with(&SUBSCRIBE_TO_ALL));
            stream
        };
        let (stream, subscriber) = tokio::join!(publisher, IopubSubscriber::connect(&address, SOON));
        (stream, subscriber.unwrap())
    }

    fn message(content: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x01\x09<IDS|MSG>\x01\0\x01\x02{}\x01\x02{}\x01\x02{}\x02".to_vec();
        bytes.extend((content.len() as u64).to_be_bytes());
        bytes.extend(content);
        bytes
    }

    #[tokio::test]
    async fn what_gathers_unwatched_arrives_and_then_the_end() {
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
    async fn a_large_message_waits_until_another_was_received() {
        let memory = MessageMemory::new(4 << 20);
        let ((mut publisher, subscriber), (mut other, others)) = (pair().await, pair().await);
        let (mut subscriber, mut others) = (subscriber.with_memory(&memory), others.with_memory(&memory));
        let large = message(&vec![b' '; 3 << 20]);
        let (sent, received) = tokio::join!(publisher.write_all(&large), subscriber.recv());
        sent.unwrap();
        received.unwrap();
        let mut both = pin!(async { tokio::join!(other.write_all(&large), others.recv()) });
        tokio::select! {
            _ = &mut both => panic!("6 MiB of 4"),
            () = memory.is_waited_for() => {}
        }
        publisher.write_all(&message(b"{2}")).await.unwrap();
        assert_eq!(subscriber.recv().await.unwrap().content(), "{2}");
        let (sent, received) = both.await;
        sent.unwrap();
        assert_eq!(received.unwrap().content().len(), 3 << 20);
    }

    #[tokio::test]
    async fn a_message_that_needs_more_memory_than_there_is_is_left_out() {
        let (mut publisher, subscriber) = pair().await;
        let mut subscriber = subscriber.with_memory(&MessageMemory::new(2 << 20));
        let sent = [message(&vec![b' '; 3 << 20]), message(b"{2}")].concat();
        let (sent, left_out) = tokio::join!(publisher.write_all(&sent), async {
            let left_out = subscriber.recv().await.unwrap_err();
            assert_eq!(subscriber.recv().await.unwrap().content(), "{2}");
            left_out
        });
        sent.unwrap();
        assert!(left_out.is_one_message());
        assert!(left_out.to_string().contains("no memory"), "{left_out}");
    }

    #[tokio::test]
    async fn a_publisher_that_asks_whether_somebody_is_there_is_answered() {
        let (mut publisher, mut subscriber) = pair().await;
        publisher.write_all(b"\x04\x0a\x04PING\0\x0aabc").await.unwrap();
        publisher.write_all(&message(b"{1}")).await.unwrap();
        assert_eq!(subscriber.recv().await.unwrap().content(), "{1}");
        let mut answer = [0; 10];
        publisher.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"\x04\x08\x04PONGabc");
    }

    #[tokio::test]
    async fn who_is_no_publisher_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("tcp://{}", listener.local_addr().unwrap());
        let server = async {
            let mut stream = listener.accept().await.unwrap().0;
            stream.write_all(&[b'x'; zmtp::GREETING]).await.unwrap();
            stream
        };
        let (_stream, refused) = tokio::join!(server, IopubSubscriber::connect(&address, SOON));
        let refused = refused.err().unwrap().to_string();
        assert!(refused.contains(&address) && refused.contains("ZMTP"), "{refused}");
        let nobody = IopubSubscriber::connect("ipc:///nonexistent/socket", Duration::from_millis(1)).await;
        assert!(matches!(nobody.err(), Some(SocketError::Connect { .. })));
        let odd = IopubSubscriber::connect("udp://1.2.3.4:5", SOON).await.err().unwrap();
        assert!(odd.to_string().contains("ipc://"), "{odd}");
    }
}
