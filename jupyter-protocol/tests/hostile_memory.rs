//! Memory bounds against peers that claim long frames or do not read.
#![cfg(all(feature = "client", feature = "kernel"))]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod echo_kernel;
mod zmtp_peer;

use std::alloc::System;
use std::time::Duration;

use echo_kernel::{SOCKETS, frame, serve};
use jupyter_protocol::zmq::{IopubSubscriber, SocketError, dealer, heartbeat};
use jupyter_protocol::{Channel, ConnectionInfo};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use zmtp_peer::{DEADLINE, MESSAGE, PING, frame_header, handshake_then, spawn_peer, within_deadline};

#[global_allocator]
static MEMORY: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Memory limit in bytes, for all tests of this file together: they run concurrently.
const MAX_ALLOCATED: isize = 16 << 20;

/// Connects a DEALER, a SUB and a REQ socket to a peer that sends `then` after its handshake, and returns the errors.
async fn receive_errors(then: &[u8]) -> [SocketError; 3] {
    let (address, _router) = spawn_peer(handshake_then("ROUTER", then)).await;
    let (_sender, mut receiver) = dealer(&address, "me", DEADLINE).await.unwrap();
    let (address, _publisher) = spawn_peer(handshake_then("XPUB", then)).await;
    let mut subscriber = IopubSubscriber::connect(&address, DEADLINE).await.unwrap();
    let (address, _rep) = spawn_peer(handshake_then("REP", then)).await;
    [
        within_deadline(receiver.recv()).await.unwrap_err(),
        within_deadline(subscriber.recv()).await.unwrap_err(),
        heartbeat(&address, DEADLINE).await.unwrap_err(),
    ]
}

/// Returns the number of bytes that are allocated now.
fn allocated() -> isize {
    let stats = MEMORY.stats();
    stats.bytes_allocated as isize - stats.bytes_deallocated as isize
}

#[tokio::test]
async fn claimed_frame_lengths_take_no_memory() {
    let before = allocated();
    for more in [0, 1] {
        for error in receive_errors(&frame_header(more, 1 << 60)).await {
            assert!(
                !error.is_one_message() && error.to_string().contains("bytes"),
                "{error}"
            );
        }
    }
    for error in receive_errors(&frame_header(4, 1 << 20)).await {
        assert!(error.to_string().contains("command"), "{error}");
    }
    // Allowed lengths, but no byte of the frames follows.
    let (address, _router) = spawn_peer(handshake_then("ROUTER", &frame_header(0, 1 << 27))).await;
    let (_sender, mut receiver) = dealer(&address, "me", DEADLINE).await.unwrap();
    let (address, _publisher) = spawn_peer(handshake_then("XPUB", &frame_header(1, 1 << 27))).await;
    let mut subscriber = IopubSubscriber::connect(&address, DEADLINE).await.unwrap();
    let (address, _rep) = spawn_peer(handshake_then("REP", &frame_header(0, 1 << 27))).await;
    let deadline = Duration::from_millis(200);
    let (shell, iopub, beat) = tokio::join!(
        tokio::time::timeout(deadline, receiver.recv()),
        tokio::time::timeout(deadline, subscriber.recv()),
        heartbeat(&address, deadline)
    );
    assert!(shell.is_err() && iopub.is_err() && beat.is_err());
    // All sockets are still open.
    assert!(allocated() - before < MAX_ALLOCATED);
}

#[tokio::test]
async fn a_flood_of_pings_from_a_peer_that_does_not_read_takes_no_memory() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("tcp://{}", listener.local_addr().unwrap());
    let before = allocated();
    let flood = async {
        let mut stream = listener.accept().await.unwrap().0;
        stream.write_all(&handshake_then("ROUTER", b"")).await.unwrap();
        let pings = PING.repeat(4_000);
        // More would take long, because commands are throttled.
        for _ in 0..200 {
            stream.write_all(&pings).await.unwrap();
        }
        stream.write_all(MESSAGE).await.unwrap();
        stream
    };
    let receive = async {
        let (sender, mut receiver) = dealer(&address, "me", DEADLINE).await.unwrap();
        receiver.recv().await.unwrap();
        (sender, receiver)
    };
    let (_stream, _dealer) = within_deadline(async { tokio::join!(flood, receive) }).await;
    assert!(allocated() - before < MAX_ALLOCATED);
}

#[tokio::test]
async fn frame_lengths_that_clients_claim_take_no_memory_of_a_kernel() {
    let before = allocated();
    let kernel = serve(ConnectionInfo::default()).await;
    let mut clients = Vec::new();
    for (channel, socket_type) in &SOCKETS[..3] {
        for _ in 0..20 {
            let mut stream = kernel.connect_as(*channel, socket_type).await;
            stream.write_all(&frame_header(1, 1 << 27)).await.unwrap();
            clients.push(stream);
        }
    }
    for (channel, _) in SOCKETS {
        for _ in 0..20 {
            let mut stream = kernel.connect_tcp(channel).await;
            stream
                .write_all(&[&zmtp_peer::GREETING[..], &frame_header(4, 1 << 16)].concat())
                .await
                .unwrap();
            clients.push(stream);
        }
    }
    kernel.assert_responsive().await;
    assert!(allocated() - before < MAX_ALLOCATED);
}

#[tokio::test]
async fn small_frames_that_arrive_one_by_one_do_not_keep_read_buffers_alive() {
    let before = allocated();
    let kernel = serve(ConnectionInfo::default()).await;
    let mut stream = kernel.connect_as(Channel::Shell, "DEALER").await;
    let mut pong = [0; 2 + 5 + 8];
    for _ in 0..10_000 {
        // A frame of an incomplete message, and a PING whose answer shows that the frame was read.
        stream.write_all(&[b"\x01\x01x", PING].concat()).await.unwrap();
        within_deadline(stream.read_exact(&mut pong)).await.unwrap();
    }
    assert!(allocated() - before < MAX_ALLOCATED);
}

#[tokio::test]
async fn a_subscriber_that_does_not_read_takes_bounded_memory() {
    let before = allocated();
    let kernel = serve(ConnectionInfo::default()).await;
    let mut stream = kernel.connect_as(Channel::Iopub, "SUB").await;
    let topic = [b'x'; 250];
    for number in 0..=255_u8 {
        // Fails if the kernel has disconnected the subscriber.
        let _ = stream
            .write_all(&frame(&[b"\x01", &topic[..], &[number]].concat()))
            .await;
    }
    kernel.assert_responsive().await;
    assert!(allocated() - before < MAX_ALLOCATED);
}
