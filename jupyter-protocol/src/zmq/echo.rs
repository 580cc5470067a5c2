use std::time::Duration;

use super::connection::Role;
use super::listener::Listener;
use super::listening::{Kind, Listening, Peer};
use super::zmtp::Limits;

const REP: Kind = Kind {
    role: Role {
        socket_type: "REP",
        identity: b"",
        peers: &["REQ", "DEALER"],
    },
    limits: Limits::SHORT,
    waiting: 1,
    patience: Duration::from_secs(10),
};

/// A REP socket that replies with what it was asked, as a kernel's heartbeat does.
pub(crate) fn echo(listener: Listener) -> Listening {
    Listening::start(listener, REP, echo_all)
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
