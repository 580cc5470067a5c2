//! Clients that speak ZMTP badly to a kernel, or on purpose to harm: the kernel and its other clients go on.
#![cfg(all(feature = "client", feature = "kernel"))]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod served;
mod zmtp_peer;

use jupyter_protocol::client::Client;
use jupyter_protocol::content::{ExecuteRequest, InspectRequest};
use jupyter_protocol::{Channel, ConnectionInfo, Key, Message, zmq};
use proptest::prelude::*;
use served::{SOCKETS, Served, closed, frame, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use zmtp_peer::{GREETING, MESSAGE, SOON, claim, ready, shaken, soon};

async fn kernel() -> Served {
    serve(ConnectionInfo {
        key: Key::random(),
        ..ConnectionInfo::default()
    })
    .await
}

#[tokio::test]
async fn who_claims_too_much_loses_its_connection() {
    let kernel = kernel().await;
    for (channel, socket_type) in SOCKETS {
        for claimed in [claim(0, 1 << 60), claim(1, u64::MAX), claim(4, 1 << 20)] {
            let mut stream = kernel.shaken(channel, socket_type).await;
            stream.write_all(&claimed).await.unwrap();
            closed(&mut stream).await;
            // The same in place of the handshake's command.
            let mut stream = kernel.tcp(channel).await;
            stream.write_all(&[GREETING, &claimed[..]].concat()).await.unwrap();
            closed(&mut stream).await;
        }
    }
    // What a message may have, and a heartbeat and a subscription may not.
    for (channel, socket_type) in &SOCKETS[3..] {
        for too_large in [claim(0, 5 << 10), b"\x01\0".repeat(17)] {
            let mut stream = kernel.shaken(*channel, socket_type).await;
            stream.write_all(&too_large).await.unwrap();
            closed(&mut stream).await;
        }
    }
    kernel.still_answers().await;
}

#[tokio::test]
async fn other_versions_mechanisms_and_sockets_are_refused() {
    let kernel = kernel().await;
    let curve = [&GREETING[..12], b"CURVE", &GREETING[17..]].concat();
    let old = b"\xff\0\0\0\0\0\0\0\x01\x7f\x01";
    for (channel, _) in SOCKETS {
        for odd in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            old,
            &curve,
            &shaken("PULL", b""),
            &[&GREETING[..], MESSAGE].concat(),
        ] {
            let mut stream = kernel.tcp(channel).await;
            stream.write_all(odd).await.unwrap();
            closed(&mut stream).await;
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
        [&GREETING[..], &claim(4, body.len() as u64), &body].concat()
    };
    for taken in [&b"\0\0\0\0\0\0\0\0\x01"[..], &[b'x'; 256]] {
        let mut stream = kernel.tcp(Channel::Shell).await;
        stream.write_all(&identity(taken)).await.unwrap();
        closed(&mut stream).await;
    }
    kernel.still_answers().await;
}

#[tokio::test]
async fn who_is_silent_in_the_middle_of_the_handshake_is_given_up() {
    let kernel = kernel().await;
    let mut silent = Vec::new();
    for (channel, socket_type) in SOCKETS {
        for sent in [0, 1, 10, 63, 64, 66] {
            let mut stream = kernel.tcp(channel).await;
            stream.write_all(&shaken(socket_type, b"")[..sent]).await.unwrap();
            silent.push(stream);
        }
    }
    kernel.still_answers().await;
    for stream in &mut silent {
        closed(stream).await;
    }
}

#[tokio::test]
async fn more_connections_than_there_may_be_wait_and_disturb_nobody() {
    let kernel = kernel().await;
    let honest = Client::connect(&kernel.info).await.unwrap();
    let mut silent = Vec::new();
    for (channel, socket_type) in [(Channel::Shell, "DEALER"), (Channel::Iopub, "SUB")] {
        for _ in 0..200 {
            let mut stream = kernel.tcp(channel).await;
            stream.write_all(&shaken(socket_type, b"")).await.unwrap();
            silent.push(stream);
        }
    }
    // Those that are served are greeted, in their order: one fewer than there may be, for there is the client's.
    let mut byte = [0];
    for socket in silent.chunks(200) {
        for served in &socket[..127] {
            soon(served.peek(&mut byte)).await.unwrap();
        }
    }
    let mut execution = honest.execute(ExecuteRequest::new("hello")).await.unwrap();
    soon(async { while execution.next().await.is_some() {} }).await;
    for socket in silent.chunks(200) {
        for waiting in &socket[127..] {
            let greeting = waiting.try_read(&mut byte).unwrap_err();
            assert_eq!(greeting.kind(), std::io::ErrorKind::WouldBlock);
        }
    }
    // Where one ends the next one is served.
    drop(silent.remove(5));
    soon(silent[126].peek(&mut byte)).await.unwrap();
    silent.clear();
    kernel.still_answers().await;
}

/// A client's sending half, and its receiving half, which nobody reads from.
async fn ask_and_do_not_read(kernel: &Served) -> (zmq::DealerSender, zmq::DealerReceiver) {
    let address = kernel.info.address(Channel::Shell);
    let (mut sender, receiver) = zmq::dealer(&address, "deaf", SOON).await.unwrap();
    // More than its queue and the system hold.
    for _ in 0..150 {
        let request = Message::new(InspectRequest::default(), "client");
        let request = request.to_wire().signed(&kernel.info.signer().unwrap());
        sender.send(request).await.unwrap();
    }
    (sender, receiver)
}

#[tokio::test]
async fn a_client_that_never_reads_is_disconnected_and_the_others_have_their_replies() {
    let kernel = serve(ConnectionInfo::default()).await;
    let (_sender, mut deaf) = ask_and_do_not_read(&kernel).await;
    kernel.still_answers().await;
    // What was on its way, and then the end.
    soon(async { while deaf.recv().await.is_ok() {} }).await;
}

#[tokio::test]
async fn of_two_connections_of_one_identity_the_newer_has_it() {
    let kernel = kernel().await;
    let address = kernel.info.address(Channel::Shell);
    let (mut older, mut from_older) = zmq::dealer(&address, "same", SOON).await.unwrap();
    older.send(kernel.request()).await.unwrap();
    soon(from_older.recv()).await.unwrap();
    let (mut newer, mut from_newer) = zmq::dealer(&address, "same", SOON).await.unwrap();
    let error = soon(from_older.recv()).await.unwrap_err();
    assert!(!error.is_one_message(), "{error}");
    // The end of the older one takes nothing away from the newer.
    drop((older, from_older));
    for _ in 0..2 {
        newer.send(kernel.request()).await.unwrap();
        soon(from_newer.recv()).await.unwrap();
    }
}

#[tokio::test]
async fn clients_without_an_identity_have_their_own_replies() {
    let kernel = kernel().await;
    let address = kernel.info.address(Channel::Shell);
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(zmq::dealer(&address, "", SOON).await.unwrap());
    }
    let mut asked = Vec::new();
    for (sender, _) in &mut clients {
        let request = kernel.request();
        asked.push(Message::from_wire(&request).unwrap().header.msg_id);
        sender.send(request).await.unwrap();
    }
    for ((_, receiver), asked) in clients.iter_mut().zip(asked) {
        let reply = soon(receiver.recv()).await.unwrap();
        assert_eq!(Message::from_wire(&reply).unwrap().parent_id(), asked);
        assert!(reply.identities().is_empty());
    }
}

/// The body of the next frame.
async fn next_frame(stream: &mut TcpStream) -> Vec<u8> {
    soon(async {
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
async fn subscriptions_are_by_prefix_in_both_of_their_forms_and_can_be_cancelled() {
    let kernel = kernel().await;
    let client = Client::connect(&kernel.info).await.unwrap();
    let mut topics = kernel.shaken(Channel::Iopub, "SUB").await;
    topics.write_all(&frame(b"\x01nothing has this")).await.unwrap();
    assert_eq!(next_frame(&mut topics).await, b"nothing has this");
    for _ in 0..6 {
        next_frame(&mut topics).await;
    }
    // Twice the same is once; then another, as ZMTP 3.1 has it, so that one welcome comes.
    topics.write_all(&frame(b"\x01nothing has this")).await.unwrap();
    topics.write_all(b"\x04\x11\x09SUBSCRIBEkernel.").await.unwrap();
    assert_eq!(next_frame(&mut topics).await, b"kernel.");
    for _ in 0..6 {
        next_frame(&mut topics).await;
    }
    let run = async || {
        let mut execution = client.execute(ExecuteRequest::new("hello")).await.unwrap();
        soon(async { while execution.next().await.is_some() {} }).await;
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
        "what was cancelled came all the same"
    );
}

#[tokio::test]
async fn who_subscribes_without_end_is_disconnected() {
    let kernel = kernel().await;
    let mut stream = kernel.shaken(Channel::Iopub, "SUB").await;
    for _ in 0..257 {
        stream
            .write_all(&[frame(b"\x01topic"), frame(b"\0topic")].concat())
            .await
            .unwrap();
    }
    closed(&mut stream).await;
    kernel.still_answers().await;
}

#[tokio::test]
async fn what_was_said_last_arrives_before_the_end() {
    let kernel = serve(ConnectionInfo::default()).await;
    let client = Client::connect(&kernel.info).await.unwrap();
    let mut stream = kernel.shaken(Channel::Iopub, "SUB").await;
    stream.write_all(&frame(b"\x01kernel.")).await.unwrap();
    assert_eq!(next_frame(&mut stream).await, b"kernel.");
    // More than the system holds for who has not read it yet.
    let code = "x".repeat(8 << 20);
    let mut execution = client.execute(ExecuteRequest::new(code.as_str())).await.unwrap();
    soon(async { while execution.next().await.is_some() {} }).await;
    client.shutdown(false).await.unwrap();
    let mut all = Vec::new();
    soon(stream.read_to_end(&mut all)).await.unwrap();
    let text = String::from_utf8_lossy(&all);
    assert!(text.contains(&code));
    let last = text.rfind("shutdown_request").unwrap();
    assert!(text[last..].contains("idle"), "{}", &text[last..]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_bytes_end_no_kernel(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        is_shaken in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let kernel = kernel().await;
            for (channel, socket_type) in SOCKETS {
                let begin = if is_shaken { shaken(socket_type, b"") } else { GREETING[..11].to_vec() };
                let mut stream = kernel.tcp(channel).await;
                // It fails where it was refused before all of it was sent.
                let _ = stream.write_all(&[&begin[..], &bytes].concat()).await;
                let _ = stream.shutdown().await;
                closed(&mut stream).await;
            }
            kernel.still_answers().await;
        });
    }
}
