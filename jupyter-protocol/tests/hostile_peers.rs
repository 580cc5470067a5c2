//! Malicious and broken peers of the client's sockets: each results in a typed error.
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
use zmtp_peer::{DEADLINE, GREETING, MESSAGE, PING, frame_header, handshake_then, spawn_peer, within_deadline};

const MIB: usize = 1 << 20;

/// Connects a DEALER, a SUB and a REQ socket to a peer that sends these bytes, and returns the errors.
async fn connect_errors(bytes: impl Fn(&'static str) -> Vec<u8>, deadline: Duration) -> [String; 3] {
    let (address, _router) = spawn_peer(bytes("ROUTER")).await;
    let shell = within_deadline(dealer(&address, "me", deadline)).await.err().unwrap();
    let (address, _publisher) = spawn_peer(bytes("XPUB")).await;
    let iopub = within_deadline(IopubSubscriber::connect(&address, deadline))
        .await
        .err()
        .unwrap();
    let (address, _rep) = spawn_peer(bytes("REP")).await;
    let beat = within_deadline(heartbeat(&address, deadline)).await.err().unwrap();
    [shell, iopub, beat].map(|error| error.to_string())
}

#[tokio::test]
async fn only_short_commands_are_accepted_during_the_handshake() {
    for claimed in [
        frame_header(4, 1 << 60),
        frame_header(4, 1 << 20),
        frame_header(0, 1 << 29),
        MESSAGE.to_vec(),
    ] {
        for error in connect_errors(|_| [GREETING, &claimed[..]].concat(), DEADLINE).await {
            assert!(error.contains("tcp://") && error.contains("cannot connect"), "{error}");
        }
    }
}

#[tokio::test]
async fn a_peer_that_stalls_during_the_handshake_times_out() {
    for sent in [0, 1, 10, 32, 63, 64, 66] {
        let partial = |socket_type| handshake_then(socket_type, b"")[..sent].to_vec();
        for error in connect_errors(partial, Duration::from_millis(20)).await {
            assert!(
                error.contains("no answer within 20ms") || error.contains("no heartbeat within 20ms"),
                "{sent}: {error}"
            );
        }
    }
}

#[tokio::test]
async fn errors_name_unsupported_versions_mechanisms_and_socket_types() {
    let old = |_: &str| b"\xff\0\0\0\0\0\0\0\x01\x7f\x01".to_vec();
    let http = |_: &str| b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec();
    let curve = |_: &str| [&GREETING[..12], b"CURVE", &GREETING[17..]].concat();
    let pull = |_: &str| handshake_then("PULL", b"");
    let refused = |_: &str| [&GREETING[..], b"\x04\x0b\x05ERROR\x04full"].concat();
    for (errors, named) in [
        (connect_errors(old, DEADLINE).await, "ZMTP 3"),
        (connect_errors(http, DEADLINE).await, "ZMTP 3"),
        (connect_errors(curve, DEADLINE).await, "CURVE"),
        (connect_errors(pull, DEADLINE).await, "PULL"),
        (connect_errors(refused, DEADLINE).await, "full"),
    ] {
        for error in errors {
            assert!(error.contains(named), "{error}");
        }
    }
}

#[tokio::test]
async fn commands_are_skipped_and_a_malformed_message_is_one_error() {
    let odd = [&b"\x04\x03\x02hi\x04\0\x00\x03bad"[..], PING, MESSAGE].concat();
    let (address, _router) = spawn_peer(handshake_then("ROUTER", &odd)).await;
    let (_sender, mut receiver) = dealer(&address, "me", DEADLINE).await.unwrap();
    let bad = within_deadline(receiver.recv()).await.unwrap_err();
    assert!(bad.is_one_message(), "{bad}");
    assert_eq!(within_deadline(receiver.recv()).await.unwrap().content(), "{}");
}

#[tokio::test]
async fn a_wrong_echo_is_a_heartbeat_error() {
    let (address, _rep) = spawn_peer(handshake_then("REP", b"\x01\0\0\x04pong")).await;
    let error = heartbeat(&address, DEADLINE).await.unwrap_err().to_string();
    assert!(error.contains("does not echo"), "{error}");
    let (address, _rep) = spawn_peer(handshake_then("REP", b"\0\x03odd\x01\0\0\x04ping")).await;
    assert!(heartbeat(&address, DEADLINE).await.is_ok());
}

/// Connects a DEALER to a raw connection.
async fn pair() -> (TcpStream, DealerSender, DealerReceiver) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("tcp://{}", listener.local_addr().unwrap());
    let router = async {
        let mut stream = listener.accept().await.unwrap().0;
        stream.write_all(&handshake_then("ROUTER", b"")).await.unwrap();
        let mut handshake = [0; 64 + 2 + 28 + 15];
        stream.read_exact(&mut handshake).await.unwrap();
        assert_eq!(handshake[64 + 2..][..28], *b"\x05READY\x0bSocket-Type\0\0\0\x06DEALER");
        assert_eq!(handshake[64 + 2 + 28..], *b"\x08Identity\0\0\0\x02me");
        stream
    };
    let (stream, connected) = tokio::join!(router, dealer(&address, "me", DEADLINE));
    let (sender, receiver) = connected.unwrap();
    (stream, sender, receiver)
}

fn message(content: usize) -> WireMessage {
    let content = vec![b' '; content].into();
    WireMessage::from_parts([Bytes::from("{}"), Bytes::from("{}"), Bytes::from("{}"), content], [])
        .signed(&Signer::unsigned())
}

/// Returns the encoded size of a message with content of this size, which must need a long frame.
fn encoded_len(content: usize) -> usize {
    MESSAGE.len() + 7 + content - 2
}

#[tokio::test]
async fn a_cancelled_send_has_not_sent_the_message() {
    let (mut stream, mut sender, _receiver) = pair().await;
    let mut queued = 0;
    // The peer does not read, so its buffers fill.
    while let Ok(sent) = tokio::time::timeout(Duration::from_secs(2), sender.send(message(4 * MIB))).await {
        sent.unwrap();
        queued += 1;
    }
    assert!((2..100).contains(&queued), "{queued}");
    let mut got = vec![0; queued * encoded_len(4 * MIB)];
    within_deadline(stream.read_exact(&mut got)).await.unwrap();
    within_deadline(sender.send(message(2))).await.unwrap();
    got.resize(MESSAGE.len(), 0);
    within_deadline(stream.read_exact(&mut got)).await.unwrap();
    let end = MESSAGE.len() - 2;
    assert_eq!(
        (&got[..end], &got[end..]),
        (&MESSAGE[..end], &b"  "[..]),
        "another message arrived in between"
    );
}

#[tokio::test]
async fn messages_sent_before_the_halves_are_dropped_are_written() {
    let (mut stream, mut sender, receiver) = pair().await;
    sender.send(message(8 * MIB)).await.unwrap();
    sender.send(message(2)).await.unwrap();
    drop((sender, receiver));
    let mut got = Vec::new();
    within_deadline(stream.read_to_end(&mut got)).await.unwrap();
    assert_eq!(got.len(), encoded_len(8 * MIB) + MESSAGE.len());
}

#[tokio::test]
async fn the_writing_task_ends_after_the_halves_are_dropped() {
    let (_stream, mut sender, receiver) = pair().await;
    let tasks = tokio::runtime::Handle::current().metrics();
    assert_eq!(tasks.num_alive_tasks(), 1);
    // The peer does not read the message.
    sender.send(message(64 * MIB)).await.unwrap();
    drop((sender, receiver));
    within_deadline(async {
        while tasks.num_alive_tasks() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn the_end_of_a_peer_is_reported_after_its_last_message() {
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
async fn a_peer_that_shuts_down_reading_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let router = async {
        let mut stream = listener.accept().await.unwrap().0;
        stream.write_all(&handshake_then("ROUTER", b"")).await.unwrap();
        stream
    };
    let address = format!("ipc://{}", path.display());
    let (stream, connected) = tokio::join!(router, dealer(&address, "me", DEADLINE));
    let (mut sender, mut receiver) = connected.unwrap();
    let stream = stream.into_std().unwrap();
    stream.shutdown(std::net::Shutdown::Read).unwrap();
    sender.send(message(2)).await.unwrap();
    let error = within_deadline(receiver.recv()).await.unwrap_err();
    assert!(!error.is_one_message(), "{error}");
    assert!(sender.send(message(2)).await.is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_end_in_an_error(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        from in prop_oneof![Just(0), Just(GREETING.len()), Just(handshake_then("ROUTER", b"").len())],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = format!("tcp://{}", listener.local_addr().unwrap());
            let router = async {
                let mut stream = listener.accept().await.unwrap().0;
                let _ = stream.write_all(&[&handshake_then("ROUTER", b"")[..from], &bytes].concat()).await;
                let _ = stream.shutdown().await;
                let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            };
            let receive = async {
                let (_sender, mut receiver) = dealer(&address, "me", DEADLINE).await?;
                loop {
                    match receiver.recv().await {
                        Err(error) if !error.is_one_message() => return Err::<(), _>(error),
                        _ => {}
                    }
                }
            };
            tokio::select! {
                // The connection may be lost before the peer has sent everything.
                (_, ended) = async { tokio::join!(router, receive) } => assert!(ended.is_err()),
                () = tokio::time::sleep(DEADLINE) => panic!("receiving neither ends nor fails"),
            }
        });
    }
}
