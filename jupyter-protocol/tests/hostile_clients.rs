//! Malicious and broken clients of a kernel: the kernel and its other clients are not affected.
#![cfg(all(feature = "client", feature = "kernel"))]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod echo_kernel;
mod zmtp_peer;

use echo_kernel::{EchoKernel, SOCKETS, frame, serve, wait_closed};
use jupyter_protocol::client::Client;
use jupyter_protocol::content::{ExecuteRequest, InspectRequest};
use jupyter_protocol::{Channel, ConnectionInfo, Key, Message, zmq};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use zmtp_peer::{DEADLINE, GREETING, MESSAGE, frame_header, handshake_then, ready, within_deadline};

async fn kernel() -> EchoKernel {
    serve(ConnectionInfo {
        key: Key::random(),
        ..ConnectionInfo::default()
    })
    .await
}

#[tokio::test]
async fn clients_that_claim_too_long_frames_are_disconnected() {
    let kernel = kernel().await;
    for (channel, socket_type) in SOCKETS {
        for claimed in [
            frame_header(0, 1 << 60),
            frame_header(1, u64::MAX),
            frame_header(4, 1 << 20),
        ] {
            let mut stream = kernel.connect_as(channel, socket_type).await;
            stream.write_all(&claimed).await.unwrap();
            wait_closed(&mut stream).await;
            // Sends the same frame instead of the READY command of the handshake.
            let mut stream = kernel.connect_tcp(channel).await;
            stream.write_all(&[GREETING, &claimed[..]].concat()).await.unwrap();
            wait_closed(&mut stream).await;
        }
    }
    // These sizes are allowed for messages, but not for heartbeats and subscriptions.
    for (channel, socket_type) in &SOCKETS[3..] {
        for too_large in [frame_header(0, 5 << 10), b"\x01\0".repeat(17)] {
            let mut stream = kernel.connect_as(*channel, socket_type).await;
            stream.write_all(&too_large).await.unwrap();
            wait_closed(&mut stream).await;
        }
    }
    kernel.assert_responsive().await;
}

#[tokio::test]
async fn unsupported_versions_mechanisms_socket_types_and_identities_are_rejected() {
    let kernel = kernel().await;
    let curve = [&GREETING[..12], b"CURVE", &GREETING[17..]].concat();
    let old = b"\xff\0\0\0\0\0\0\0\x01\x7f\x01";
    for (channel, _) in SOCKETS {
        for odd in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            old,
            &curve,
            &handshake_then("PULL", b""),
            &[&GREETING[..], MESSAGE].concat(),
        ] {
            let mut stream = kernel.connect_tcp(channel).await;
            stream.write_all(odd).await.unwrap();
            wait_closed(&mut stream).await;
        }
    }
    let identity = |identity: &[u8]| {
        let body = [
            &ready("DEALER")[2..],
            b"\x08Identity\0\0",
            &(identity.len() as u16).to_be_bytes(),
            identity,
        ]
        .concat();
        [&GREETING[..], &frame_header(4, body.len() as u64), &body].concat()
    };
    for invalid in [&b"\0\0\0\0\0\0\0\0\x01"[..], &[b'x'; 256]] {
        let mut stream = kernel.connect_tcp(Channel::Shell).await;
        stream.write_all(&identity(invalid)).await.unwrap();
        wait_closed(&mut stream).await;
    }
    kernel.assert_responsive().await;
}

#[tokio::test]
async fn clients_that_stall_during_the_handshake_are_disconnected() {
    let kernel = kernel().await;
    let mut silent = Vec::new();
    for (channel, socket_type) in SOCKETS {
        for sent in [0, 1, 10, 63, 64, 66] {
            let mut stream = kernel.connect_tcp(channel).await;
            stream
                .write_all(&handshake_then(socket_type, b"")[..sent])
                .await
                .unwrap();
            silent.push(stream);
        }
    }
    kernel.assert_responsive().await;
    for stream in &mut silent {
        wait_closed(stream).await;
    }
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_and_do_not_affect_others() {
    let kernel = kernel().await;
    let honest = Client::connect(&kernel.info).await.unwrap();
    let mut silent = Vec::new();
    for (channel, socket_type) in [(Channel::Shell, "DEALER"), (Channel::Iopub, "SUB")] {
        for _ in 0..200 {
            let mut stream = kernel.connect_tcp(channel).await;
            stream.write_all(&handshake_then(socket_type, b"")).await.unwrap();
            silent.push(stream);
        }
    }
    // Accepted connections receive a greeting, in order. The honest client has one of the 128
    // connections.
    let mut byte = [0];
    for socket in silent.chunks(200) {
        for served in &socket[..127] {
            within_deadline(served.peek(&mut byte)).await.unwrap();
        }
    }
    let mut execution = honest.execute(ExecuteRequest::new("hello")).await.unwrap();
    within_deadline(async { while execution.next().await.is_some() {} }).await;
    for socket in silent.chunks(200) {
        for waiting in &socket[127..] {
            let greeting = waiting.try_read(&mut byte).unwrap_err();
            assert_eq!(greeting.kind(), std::io::ErrorKind::WouldBlock);
        }
    }
    // When one connection closes, the next is accepted.
    drop(silent.remove(5));
    within_deadline(silent[126].peek(&mut byte)).await.unwrap();
    silent.clear();
    kernel.assert_responsive().await;
}

/// Connects a client that sends requests and does not read the replies.
async fn send_requests_without_reading(kernel: &EchoKernel) -> (zmq::DealerSender, zmq::DealerReceiver) {
    let address = kernel.info.address(Channel::Shell);
    let (mut sender, receiver) = zmq::dealer(&address, "stalled", DEADLINE).await.unwrap();
    // More replies than the queue and the socket buffers hold.
    for _ in 0..150 {
        let request = Message::new(InspectRequest::default(), "client");
        let request = request.to_wire().signed(&kernel.info.signer().unwrap());
        sender.send(request).await.unwrap();
    }
    (sender, receiver)
}

#[tokio::test]
async fn a_client_that_does_not_read_is_disconnected_and_others_get_replies() {
    let kernel = serve(ConnectionInfo::default()).await;
    let (_sender, mut stalled) = send_requests_without_reading(&kernel).await;
    kernel.assert_responsive().await;
    // Drains the replies in flight until the disconnect.
    within_deadline(async { while stalled.recv().await.is_ok() {} }).await;
}

#[tokio::test]
async fn a_newer_connection_takes_over_an_identity() {
    let kernel = kernel().await;
    let address = kernel.info.address(Channel::Shell);
    let (mut older, mut from_older) = zmq::dealer(&address, "same", DEADLINE).await.unwrap();
    older.send(kernel.request()).await.unwrap();
    within_deadline(from_older.recv()).await.unwrap();
    let (mut newer, mut from_newer) = zmq::dealer(&address, "same", DEADLINE).await.unwrap();
    let error = within_deadline(from_older.recv()).await.unwrap_err();
    assert!(!error.is_one_message(), "{error}");
    // Closing the older connection does not affect the newer one.
    drop((older, from_older));
    for _ in 0..2 {
        newer.send(kernel.request()).await.unwrap();
        within_deadline(from_newer.recv()).await.unwrap();
    }
}

#[tokio::test]
async fn clients_without_an_identity_get_their_own_replies() {
    let kernel = kernel().await;
    let address = kernel.info.address(Channel::Shell);
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(zmq::dealer(&address, "", DEADLINE).await.unwrap());
    }
    let mut msg_ids = Vec::new();
    for (sender, _) in &mut clients {
        let request = kernel.request();
        msg_ids.push(Message::from_wire(&request).unwrap().header.msg_id);
        sender.send(request).await.unwrap();
    }
    for ((_, receiver), msg_id) in clients.iter_mut().zip(msg_ids) {
        let reply = within_deadline(receiver.recv()).await.unwrap();
        assert_eq!(Message::from_wire(&reply).unwrap().parent_id(), msg_id);
        assert!(reply.identities().is_empty());
    }
}

/// Reads the body of the next frame.
async fn next_frame(stream: &mut TcpStream) -> Vec<u8> {
    within_deadline(async {
        let flags = stream.read_u8().await.unwrap();
        let length = match flags & 2 {
            0 => stream.read_u8().await.unwrap().into(),
            _ => stream.read_u64().await.unwrap() as usize,
        };
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.unwrap();
        body
    })
    .await
}

#[tokio::test]
async fn subscriptions_match_prefixes_as_messages_and_commands_and_can_be_cancelled() {
    let kernel = kernel().await;
    let client = Client::connect(&kernel.info).await.unwrap();
    let mut topics = kernel.connect_as(Channel::Iopub, "SUB").await;
    topics.write_all(&frame(b"\x01nothing has this")).await.unwrap();
    assert_eq!(next_frame(&mut topics).await, b"nothing has this");
    // The other frames of the welcome.
    for _ in 0..6 {
        next_frame(&mut topics).await;
    }
    // The first subscription is a duplicate, the second a command of ZMTP 3.1: only one welcome arrives.
    topics.write_all(&frame(b"\x01nothing has this")).await.unwrap();
    topics.write_all(b"\x04\x11\x09SUBSCRIBEkernel.").await.unwrap();
    assert_eq!(next_frame(&mut topics).await, b"kernel.");
    for _ in 0..6 {
        next_frame(&mut topics).await;
    }
    let run = async || {
        let mut execution = client.execute(ExecuteRequest::new("hello")).await.unwrap();
        within_deadline(async { while execution.next().await.is_some() {} }).await;
    };
    run().await;
    for expected in ["status", "execute_input", "stream", "status"] {
        let topic = String::from_utf8(next_frame(&mut topics).await).unwrap();
        assert!(topic.starts_with("kernel.") && topic.ends_with(expected), "{topic}");
        for _ in 0..6 {
            next_frame(&mut topics).await;
        }
    }
    topics.write_all(b"\x04\x0e\x06CANCELkernel.").await.unwrap();
    topics.write_all(&frame(b"\x01another")).await.unwrap();
    assert_eq!(next_frame(&mut topics).await, b"another");
    for _ in 0..6 {
        next_frame(&mut topics).await;
    }
    run().await;
    topics.write_all(&frame(b"\x01last")).await.unwrap();
    assert_eq!(
        next_frame(&mut topics).await,
        b"last",
        "a message of the cancelled topic arrived"
    );
}

#[tokio::test]
async fn subscribers_beyond_the_subscription_limit_are_disconnected() {
    let kernel = kernel().await;
    let mut stream = kernel.connect_as(Channel::Iopub, "SUB").await;
    for _ in 0..257 {
        stream
            .write_all(&[frame(b"\x01topic"), frame(b"\0topic")].concat())
            .await
            .unwrap();
    }
    wait_closed(&mut stream).await;
    kernel.assert_responsive().await;
}

#[tokio::test]
async fn the_last_messages_arrive_before_the_kernel_closes() {
    let kernel = serve(ConnectionInfo::default()).await;
    let client = Client::connect(&kernel.info).await.unwrap();
    let mut stream = kernel.connect_as(Channel::Iopub, "SUB").await;
    stream.write_all(&frame(b"\x01kernel.")).await.unwrap();
    assert_eq!(next_frame(&mut stream).await, b"kernel.");
    // More than the socket buffers hold.
    let code = "x".repeat(8 << 20);
    let mut execution = client.execute(ExecuteRequest::new(code.as_str())).await.unwrap();
    within_deadline(async { while execution.next().await.is_some() {} }).await;
    client.shutdown(false).await.unwrap();
    let mut all = Vec::new();
    within_deadline(stream.read_to_end(&mut all)).await.unwrap();
    let text = String::from_utf8_lossy(&all);
    assert!(text.contains(&code));
    let last = text.rfind("shutdown_request").unwrap();
    assert!(text[last..].contains("idle"), "{}", &text[last..]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn arbitrary_bytes_do_not_end_a_kernel(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        after_handshake in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let kernel = kernel().await;
            for (channel, socket_type) in SOCKETS {
                let begin = if after_handshake { handshake_then(socket_type, b"") } else { GREETING[..11].to_vec() };
                let mut stream = kernel.connect_tcp(channel).await;
                // Fails if the kernel closes the connection before everything is sent.
                let _ = stream.write_all(&[&begin[..], &bytes].concat()).await;
                let _ = stream.shutdown().await;
                wait_closed(&mut stream).await;
            }
            kernel.assert_responsive().await;
        });
    }
}
