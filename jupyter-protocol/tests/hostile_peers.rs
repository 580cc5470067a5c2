//! Peers that speak ZMTP badly, or on purpose to harm: each ends in a typed error and in no memory.
#![cfg(feature = "client")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod zmtp_peer;

use std::time::Duration;

use bytes::Bytes;
use jupyter_protocol::zmq::{DealerReceiver, DealerSender, IopubSubscriber, dealer, heartbeat};
use jupyter_protocol::{Signer, WireMessage};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use zmtp_peer::{GREETING, MESSAGE, PING, SOON, claim, peer, shaken, soon};

const MIB: usize = 1 << 20;

/// What a DEALER, a SUB and a REQ socket say to a peer that sends this in place of a handshake.
async fn refusals(bytes: impl Fn(&'static str) -> Vec<u8>, deadline: Duration) -> [String; 3] {
    let (at, _router) = peer(bytes("ROUTER")).await;
    let shell = soon(dealer(&at, "me", deadline)).await.err().unwrap();
    let (at, _publisher) = peer(bytes("XPUB")).await;
    let iopub = soon(IopubSubscriber::connect(&at, deadline)).await.err().unwrap();
    let (at, _rep) = peer(bytes("REP")).await;
    let beat = soon(heartbeat(&at, deadline)).await.err().unwrap();
    [shell, iopub, beat].map(|error| error.to_string())
}

#[tokio::test]
async fn during_the_handshake_nothing_but_short_commands_is_taken() {
    for claimed in [
        claim(4, 1 << 60),
        claim(4, 1 << 20),
        claim(0, 1 << 29),
        MESSAGE.to_vec(),
    ] {
        for refused in refusals(|_| [GREETING, &claimed[..]].concat(), SOON).await {
            assert!(
                refused.contains("tcp://") && refused.contains("cannot connect"),
                "{refused}"
            );
        }
    }
}

#[tokio::test]
async fn who_is_silent_in_the_middle_of_the_handshake_is_given_up() {
    for sent in [0, 1, 10, 32, 63, 64, 66] {
        for refused in refusals(|kind| shaken(kind, b"")[..sent].to_vec(), Duration::from_millis(20)).await {
            assert!(
                refused.contains("no answer within 20ms") || refused.contains("no heartbeat within 20ms"),
                "{sent}: {refused}"
            );
        }
    }
}

#[tokio::test]
async fn other_versions_mechanisms_and_sockets_are_named_at_once() {
    let old = |_: &str| b"\xff\0\0\0\0\0\0\0\x01\x7f\x01".to_vec();
    let http = |_: &str| b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec();
    let curve = |_: &str| [&GREETING[..12], b"CURVE", &GREETING[17..]].concat();
    let pull = |_: &str| shaken("PULL", b"");
    let refused = |_: &str| [&GREETING[..], b"\x04\x0b\x05ERROR\x04full"].concat();
    for (errors, named) in [
        (refusals(old, SOON).await, "ZMTP 3"),
        (refusals(http, SOON).await, "ZMTP 3"),
        (refusals(curve, SOON).await, "CURVE"),
        (refusals(pull, SOON).await, "PULL"),
        (refusals(refused, SOON).await, "full"),
    ] {
        for error in errors {
            assert!(error.contains(named), "{error}");
        }
    }
}

#[tokio::test]
async fn commands_are_passed_over_and_what_is_no_message_is_one_error() {
    let odd = [&b"\x04\x03\x02hi\x04\0\x00\x03bad"[..], PING, MESSAGE].concat();
    let (at, _router) = peer(shaken("ROUTER", &odd)).await;
    let (_sender, mut receiver) = dealer(&at, "me", SOON).await.unwrap();
    let bad = soon(receiver.recv()).await.unwrap_err();
    assert!(bad.is_one_message(), "{bad}");
    assert_eq!(soon(receiver.recv()).await.unwrap().content(), "{}");
}

#[tokio::test]
async fn an_echo_of_something_else_is_no_heartbeat() {
    let (at, _rep) = peer(shaken("REP", b"\x01\0\0\x04pong")).await;
    let error = heartbeat(&at, SOON).await.unwrap_err().to_string();
    assert!(error.contains("send back"), "{error}");
    let (at, _rep) = peer(shaken("REP", b"\0\x03odd\x01\0\0\x04ping")).await;
    assert!(heartbeat(&at, SOON).await.is_ok());
}

/// A DEALER and the peer that it is connected to.
async fn pair() -> (TcpStream, DealerSender, DealerReceiver) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = format!("tcp://{}", listener.local_addr().unwrap());
    let router = async {
        let mut stream = listener.accept().await.unwrap().0;
        stream.write_all(&shaken("ROUTER", b"")).await.unwrap();
        let mut handshake = [0; 64 + 2 + 28 + 15];
        stream.read_exact(&mut handshake).await.unwrap();
        assert_eq!(handshake[64 + 2..][..28], *b"\x05READY\x0bSocket-Type\0\0\0\x06DEALER");
        assert_eq!(handshake[64 + 2 + 28..], *b"\x08Identity\0\0\0\x02me");
        stream
    };
    let (stream, connected) = tokio::join!(router, dealer(&at, "me", SOON));
    let (sender, receiver) = connected.unwrap();
    (stream, sender, receiver)
}

fn message(content: usize) -> WireMessage {
    let content = vec![b' '; content].into();
    WireMessage::from_parts([Bytes::from("{}"), Bytes::from("{}"), Bytes::from("{}"), content], [])
        .signed(&Signer::unsigned())
}

/// How many bytes a message of 64 KiB and more has on the wire.
fn on_the_wire(content: usize) -> usize {
    MESSAGE.len() + 7 + content - 2
}

#[tokio::test]
async fn a_send_that_is_given_up_was_not_sent() {
    let (mut stream, mut sender, _receiver) = pair().await;
    let mut taken = 0;
    // Until the peer, which does not read, has its buffers full.
    while let Ok(sent) = tokio::time::timeout(Duration::from_secs(2), sender.send(message(4 * MIB))).await {
        sent.unwrap();
        taken += 1;
    }
    assert!((2..100).contains(&taken), "{taken}");
    let mut got = vec![0; taken * on_the_wire(4 * MIB)];
    soon(stream.read_exact(&mut got)).await.unwrap();
    soon(sender.send(message(2))).await.unwrap();
    got.resize(MESSAGE.len(), 0);
    soon(stream.read_exact(&mut got)).await.unwrap();
    let end = MESSAGE.len() - 2;
    assert_eq!(
        (&got[..end], &got[end..]),
        (&MESSAGE[..end], &b"  "[..]),
        "nothing came in between"
    );
}

#[tokio::test]
async fn what_was_sent_before_the_halves_are_dropped_is_written() {
    let (mut stream, mut sender, receiver) = pair().await;
    sender.send(message(8 * MIB)).await.unwrap();
    sender.send(message(2)).await.unwrap();
    drop((sender, receiver));
    let mut got = Vec::new();
    soon(stream.read_to_end(&mut got)).await.unwrap();
    assert_eq!(got.len(), on_the_wire(8 * MIB) + MESSAGE.len());
}

#[tokio::test]
async fn nothing_outlives_the_halves_for_long() {
    let (_stream, mut sender, receiver) = pair().await;
    let tasks = tokio::runtime::Handle::current().metrics();
    assert_eq!(tasks.num_alive_tasks(), 1);
    // The peer does not read it.
    sender.send(message(64 * MIB)).await.unwrap();
    drop((sender, receiver));
    soon(async {
        while tasks.num_alive_tasks() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_peer_that_ends_is_told_after_what_it_said_last() {
    let (mut stream, mut sender, mut receiver) = pair().await;
    stream.write_all(MESSAGE).await.unwrap();
    drop(stream);
    while sender.send(message(2)).await.is_ok() {
        tokio::task::yield_now().await;
    }
    assert!(receiver.recv().await.is_ok());
    for _ in 0..2 {
        let error = receiver.recv().await.unwrap_err();
        assert!(!error.is_one_message(), "{error}");
    }
}

#[cfg(unix)]
#[tokio::test]
async fn a_peer_that_takes_nothing_any_more_is_lost_though_it_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let router = async {
        let mut stream = listener.accept().await.unwrap().0;
        stream.write_all(&shaken("ROUTER", b"")).await.unwrap();
        stream
    };
    let at = format!("ipc://{}", path.display());
    let (stream, connected) = tokio::join!(router, dealer(&at, "me", SOON));
    let (mut sender, mut receiver) = connected.unwrap();
    let stream = stream.into_std().unwrap();
    stream.shutdown(std::net::Shutdown::Read).unwrap();
    sender.send(message(2)).await.unwrap();
    let error = soon(receiver.recv()).await.unwrap_err();
    assert!(!error.is_one_message(), "{error}");
    assert!(sender.send(message(2)).await.is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_end_in_an_error(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        from in prop_oneof![Just(0), Just(GREETING.len()), Just(shaken("ROUTER", b"").len())],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let at = format!("tcp://{}", listener.local_addr().unwrap());
            let router = async {
                let mut stream = listener.accept().await.unwrap().0;
                let _ = stream.write_all(&[&shaken("ROUTER", b"")[..from], &bytes].concat()).await;
                let _ = stream.shutdown().await;
                let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            };
            let receive = async {
                let (_sender, mut receiver) = dealer(&at, "me", SOON).await?;
                loop {
                    match receiver.recv().await {
                        Err(error) if !error.is_one_message() => return Err::<(), _>(error),
                        _ => {}
                    }
                }
            };
            tokio::select! {
                // The other side may be gone before it has read all.
                (_, ended) = async { tokio::join!(router, receive) } => assert!(ended.is_err()),
                () = tokio::time::sleep(SOON) => panic!("it neither ends nor fails"),
            }
        });
    }
}
