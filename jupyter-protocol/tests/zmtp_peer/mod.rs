//! Raw ZMTP for tests of misbehaving peers.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::future::Future;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) const GREETING: &[u8; 64] =
    b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\0NULL\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
pub(crate) const MESSAGE: &[u8] = b"\x01\x09<IDS|MSG>\x01\0\x01\x02{}\x01\x02{}\x01\x02{}\0\x02{}";
pub(crate) const PING: &[u8] = b"\x04\x0f\x04PING\0\x0acontext!";

/// Awaits a future, up to [`DEADLINE`].
pub(crate) async fn within_deadline<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future)
        .await
        .expect("not done within the deadline")
}

/// Encodes a READY command.
pub(crate) fn ready(socket_type: &str) -> Vec<u8> {
    let length = socket_type.len() as u8;
    let header = [4, 22 + length];
    [
        &header,
        &b"\x05READY\x0bSocket-Type\0\0\0"[..],
        &[length],
        socket_type.as_bytes(),
    ]
    .concat()
}

/// Encodes the header of a frame that claims this length.
pub(crate) fn frame_header(flags: u8, length: u64) -> Vec<u8> {
    [&[flags | 2][..], &length.to_be_bytes()].concat()
}

/// Spawns a peer that sends these bytes to the first connection and then reads and discards everything.
pub(crate) async fn spawn_peer(bytes: Vec<u8>) -> (String, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("tcp://{}", listener.local_addr().unwrap());
    let task = tokio::spawn(async move {
        let mut stream = listener.accept().await.unwrap().0;
        // Fails if the other side has already disconnected.
        let _ = stream.write_all(&bytes).await;
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    });
    (address, task)
}

/// Returns the bytes of a handshake followed by `then`.
pub(crate) fn handshake_then(socket_type: &str, then: &[u8]) -> Vec<u8> {
    [GREETING, &ready(socket_type)[..], then].concat()
}
