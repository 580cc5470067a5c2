//! Peers that speak ZMTP byte by byte.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::future::Future;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

pub(crate) const SOON: Duration = Duration::from_secs(60);

pub(crate) const GREETING: &[u8; 64] =
    b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\0NULL\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
pub(crate) const MESSAGE: &[u8] = b"\x01\x09<IDS|MSG>\x01\0\x01\x02{}\x01\x02{}\x01\x02{}\0\x02{}";
pub(crate) const PING: &[u8] = b"\x04\x0f\x04PING\0\x0acontext!";

pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, what).await.expect("within the deadline")
}

pub(crate) fn ready(socket_type: &str) -> Vec<u8> {
    let length = socket_type.len() as u8;
    let head = [4, 22 + length];
    [
        &head,
        &b"\x05READY\x0bSocket-Type\0\0\0"[..],
        &[length],
        socket_type.as_bytes(),
    ]
    .concat()
}

/// The head of a frame that claims so many bytes.
pub(crate) fn claim(flags: u8, length: u64) -> Vec<u8> {
    [&[flags | 2][..], &length.to_be_bytes()].concat()
}

/// A peer that sends these bytes to whoever connects, and then takes what it is sent.
pub(crate) async fn peer(bytes: Vec<u8>) -> (String, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("tcp://{}", listener.local_addr().unwrap());
    let task = tokio::spawn(async move {
        let mut stream = listener.accept().await.unwrap().0;
        // It fails where the other side has gone already.
        let _ = stream.write_all(&bytes).await;
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    });
    (address, task)
}

pub(crate) fn shaken(socket_type: &str, then: &[u8]) -> Vec<u8> {
    [GREETING, &ready(socket_type)[..], then].concat()
}
