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

/// A REQ socket: asks, and hears the answer.
pub(crate) struct Requester {
    sender: connection::Sender,
    receiver: connection::Receiver,
}

impl Requester {
    pub(crate) async fn connect(endpoint: &str, deadline: Duration) -> Result<Self, SocketError> {
        let (socket, inbox) = connect(endpoint, &REQ, b"", 0, deadline).await?;
        let (sender, receiver) = connection::split(socket, inbox, 1);
        Ok(Self { sender, receiver })
    }

    pub(crate) async fn ask(&mut self, mut request: Vec<Bytes>) -> Result<Vec<Bytes>, SocketError> {
        // What separates the request from the addresses that routers put in front of it.
        request.insert(0, Bytes::new());
        self.sender.send(&request).await?;
        loop {
            let mut reply = self.receiver.recv().await?;
            // As REQ sockets do, what is no reply is passed over.
            if reply.first().is_some_and(Bytes::is_empty) {
                reply.remove(0);
                return Ok(reply);
            }
        }
    }
}

/// Asks the kernel's heartbeat socket for an echo, with a connection of its own. Returns how long it took.
///
/// # Errors
/// [`SocketError::Connect`] where nobody is there, or who sends back something else;
/// [`SocketError::Broken`] where no echo came by the deadline.
pub async fn heartbeat(endpoint: &str, deadline: Duration) -> Result<Duration, SocketError> {
    let beat = async {
        let mut socket = Requester::connect(endpoint, deadline).await?;
        let sent = Instant::now();
        let ping = vec![Bytes::from_static(b"ping")];
        if socket.ask(ping.clone()).await? == ping {
            return Ok(sent.elapsed());
        }
        Err(SocketError::Connect {
            endpoint: endpoint.to_owned(),
            reason: "it does not send back what it was sent, as a heartbeat does".to_owned(),
        })
    };
    match timeout(deadline, beat).await {
        Ok(result) => result,
        Err(_) => Err(SocketError::Broken(format!("no heartbeat within {deadline:?}"))),
    }
}
