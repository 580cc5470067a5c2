use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout};

use super::SocketError;
use super::connection::{self, Role, connect};

const REQ: Role<'_> = Role {
    socket_type: "REQ",
    identity: b"",
    peers: &["REP", "ROUTER"],
};

/// REQ socket: sends a request and waits for its reply.
pub(crate) struct Requester {
    sender: connection::Sender,
    receiver: connection::Receiver,
}

impl Requester {
    pub(crate) async fn connect(endpoint: &str, deadline: Duration) -> Result<Self, SocketError> {
        let (socket, read_buffer) = connect(endpoint, &REQ, b"", 0, deadline).await?;
        let (sender, receiver) = connection::split(socket, read_buffer, 1);
        Ok(Self { sender, receiver })
    }

    /// Sends a request and returns the frames of the reply.
    pub(crate) async fn request(&mut self, mut request: Vec<Bytes>) -> Result<Vec<Bytes>, SocketError> {
        // An empty frame separates the request from the identities that ROUTER sockets prepend.
        request.insert(0, Bytes::new());
        self.sender.send(&request).await?;
        loop {
            let mut reply = self.receiver.recv().await?;
            // A reply begins with an empty frame. REQ sockets discard other messages.
            if reply.first().is_some_and(Bytes::is_empty) {
                reply.remove(0);
                return Ok(reply);
            }
        }
    }
}

/// Pings a kernel's heartbeat socket over a new connection and returns the round-trip time.
///
/// `deadline` bounds connecting and the round trip together.
///
/// # Errors
/// - [`SocketError::Connect`] if the connection fails, or the reply is not the ping.
/// - [`SocketError::Broken`] if no echo arrives before the deadline, or the peer disconnects.
pub async fn heartbeat(endpoint: &str, deadline: Duration) -> Result<Duration, SocketError> {
    let beat = async {
        let mut socket = Requester::connect(endpoint, deadline).await?;
        let sent = Instant::now();
        let ping = vec![Bytes::from_static(b"ping")];
        if socket.request(ping.clone()).await? == ping {
            return Ok(sent.elapsed());
        }
        Err(SocketError::Connect {
            endpoint: endpoint.to_owned(),
            reason: "the peer does not echo the ping, so it is not a heartbeat socket".to_owned(),
        })
    };
    match timeout(deadline, beat).await {
        Ok(result) => result,
        Err(_) => Err(SocketError::Broken(format!("no heartbeat within {deadline:?}"))),
    }
}
