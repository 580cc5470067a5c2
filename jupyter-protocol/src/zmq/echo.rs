use std::time::Duration;

use super::connection::Role;
use super::listener::Listener;
use super::server::{Peer, SocketOptions, SocketServer};
use super::zmtp::Limits;

const REP: SocketOptions = SocketOptions {
    role: Role {
        socket_type: "REP",
        identity: b"",
        peers: &["REQ", "DEALER"],
    },
    limits: Limits::SHORT,
    queue_capacity: 1,
    write_timeout: Duration::from_secs(10),
};

/// Starts a REP socket that echoes each request, as a kernel's heartbeat does.
pub(crate) fn echo(listener: Listener) -> SocketServer {
    SocketServer::start(listener, REP, echo_all)
}

async fn echo_all(peer: Peer) {
    let Peer {
        sender, mut receiver, ..
    } = peer;
    while let Ok(frames) = receiver.recv().await {
        if sender.send(&frames).await.is_err() {
            return;
        }
    }
}
