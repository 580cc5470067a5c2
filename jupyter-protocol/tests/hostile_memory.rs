//! What peers claim to send, and what they do not read, takes no memory.
#![cfg(all(feature = "client", feature = "kernel"))]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod served;
mod zmtp_peer;

use std::alloc::System;
use std::time::Duration;

use jupyter_protocol::zmq::{IopubSubscriber, SocketError, dealer, heartbeat};
use jupyter_protocol::{Channel, ConnectionInfo};
use served::{SOCKETS, frame, serve};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use zmtp_peer::{MESSAGE, PING, SOON, claim, peer, shaken, soon};

#[global_allocator]
static MEMORY: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// What the tests of this file may hold together.
const LITTLE: isize = 16 << 20;

/// What a DEALER, a SUB and a REQ socket say to a peer that sends this after its handshake.
async fn errors(then: &[u8]) -> [SocketError; 3] {
    let (at, _router) = peer(shaken("ROUTER", then)).await;
    let (_sender, mut receiver) = dealer(&at, "me", SOON).await.unwrap();
    let (at, _publisher) = peer(shaken("XPUB", then)).await;
    let mut subscriber = IopubSubscriber::connect(&at, SOON).await.unwrap();
    let (at, _rep) = peer(shaken("REP", then)).await;
    [
        soon(receiver.recv()).await.unwrap_err(),
        soon(subscriber.recv()).await.unwrap_err(),
        heartbeat(&at, SOON).await.unwrap_err(),
    ]
}

fn held() -> isize {
    let stats = MEMORY.stats();
    stats.bytes_allocated as isize - stats.bytes_deallocated as isize
}

#[tokio::test]
async fn what_a_length_claims_takes_no_memory() {
    let before = held();
    for more in [0, 1] {
        for error in errors(&claim(more, 1 << 60)).await {
            assert!(
                !error.is_one_message() && error.to_string().contains("bytes"),
                "{error}"
            );
        }
    }
    for error in errors(&claim(4, 1 << 20)).await {
        assert!(error.to_string().contains("command"), "{error}");
    }
    // Lengths that a message may have, of which nothing follows.
    let (at, _router) = peer(shaken("ROUTER", &claim(0, 1 << 27))).await;
    let (_sender, mut receiver) = dealer(&at, "me", SOON).await.unwrap();
    let (at, _publisher) = peer(shaken("XPUB", &claim(1, 1 << 27))).await;
    let mut subscriber = IopubSubscriber::connect(&at, SOON).await.unwrap();
    let (at, _rep) = peer(shaken("REP", &claim(0, 1 << 27))).await;
    let a_while = Duration::from_millis(200);
    let (shell, iopub, beat) = tokio::join!(
        tokio::time::timeout(a_while, receiver.recv()),
        tokio::time::timeout(a_while, subscriber.recv()),
        heartbeat(&at, a_while)
    );
    assert!(shell.is_err() && iopub.is_err() && beat.is_err());
    // All sockets are still there.
    assert!(held() - before < LITTLE);
}

#[tokio::test]
async fn a_flood_of_pings_from_who_does_not_read_takes_no_memory() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = format!("tcp://{}", listener.local_addr().unwrap());
    let before = held();
    let flood = async {
        let mut stream = listener.accept().await.unwrap().0;
        stream.write_all(&shaken("ROUTER", b"")).await.unwrap();
        let pings = PING.repeat(4_000);
        // More would take long, since commands are read no faster than so many a second.
        for _ in 0..200 {
            stream.write_all(&pings).await.unwrap();
        }
        stream.write_all(MESSAGE).await.unwrap();
        stream
    };
    let receive = async {
        let (sender, mut receiver) = dealer(&at, "me", SOON).await.unwrap();
        receiver.recv().await.unwrap();
        (sender, receiver)
    };
    let (_stream, _dealer) = soon(async { tokio::join!(flood, receive) }).await;
    assert!(held() - before < LITTLE);
}

#[tokio::test]
async fn what_clients_claim_takes_no_memory_of_a_kernel() {
    let before = held();
    let kernel = serve(ConnectionInfo::default()).await;
    let mut clients = Vec::new();
    for (channel, socket_type) in &SOCKETS[..3] {
        for _ in 0..20 {
            let mut stream = kernel.shaken(*channel, socket_type).await;
            stream.write_all(&claim(1, 1 << 27)).await.unwrap();
            clients.push(stream);
        }
    }
    for (channel, _) in SOCKETS {
        for _ in 0..20 {
            let mut stream = kernel.tcp(channel).await;
            stream
                .write_all(&[&zmtp_peer::GREETING[..], &claim(4, 1 << 16)].concat())
                .await
                .unwrap();
            clients.push(stream);
        }
    }
    kernel.still_answers().await;
    assert!(held() - before < LITTLE);
}

#[tokio::test]
async fn frames_that_come_one_by_one_take_the_memory_that_they_have() {
    let before = held();
    let kernel = serve(ConnectionInfo::default()).await;
    let mut stream = kernel.shaken(Channel::Shell, "DEALER").await;
    let mut pong = [0; 2 + 5 + 8];
    for _ in 0..10_000 {
        // A frame of a message that goes on, and what tells that it was read.
        stream.write_all(&[b"\x01\x01x", PING].concat()).await.unwrap();
        soon(stream.read_exact(&mut pong)).await.unwrap();
    }
    assert!(held() - before < LITTLE);
}

#[tokio::test]
async fn a_subscriber_that_does_not_read_takes_no_more_than_its_queue() {
    let before = held();
    let kernel = serve(ConnectionInfo::default()).await;
    let mut stream = kernel.shaken(Channel::Iopub, "SUB").await;
    let topic = [b'x'; 250];
    for number in 0..=255_u8 {
        // It fails once there are too many.
        let _ = stream
            .write_all(&frame(&[b"\x01", &topic[..], &[number]].concat()))
            .await;
    }
    kernel.still_answers().await;
    assert!(held() - before < LITTLE);
}
