//! The client and the kernel side with malformed messages, wrong keys and missing peers.
#![cfg(all(feature = "client", feature = "kernel"))]
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "common/command_kernel.rs"]
mod command_kernel;
mod common;

use std::time::Duration;

use bytes::Bytes;
use command_kernel::{CommandKernel, connect, ran, run, start};
use common::{CHANNELS, execute, fresh_info};
use jupyter_protocol::client::{Client, ClientError, ClientOptions};
use jupyter_protocol::content::{Content, ExecuteRequest, ExecutionState, UnknownContent};
use jupyter_protocol::kernel::{ServeError, Server};
use jupyter_protocol::{Channel, ConnectionInfo, Key, Message, Signer, Transport, WireMessage, zmq};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

const DEADLINE: Duration = Duration::from_secs(60);

/// Sends messages on a channel from another client, without signing them.
async fn send_raw(info: &ConnectionInfo, channel: Channel, messages: Vec<WireMessage>) {
    let (mut sender, _receiver) = zmq::dealer(&info.address(channel), "stranger", DEADLINE).await.unwrap();
    for message in messages {
        sender.send(message).await.unwrap();
    }
}

#[tokio::test]
async fn malformed_and_unauthenticated_messages_do_not_affect_the_kernel() {
    let kernel = start(Transport::Tcp).await;
    let client = connect(&kernel).await;
    let mut iopub = client.iopub();
    let signer = kernel.info.signer().unwrap();
    let request = || Message::new(ExecuteRequest::new("intruder"), "stranger").to_wire();
    let signed = request().signed(&signer);
    let parts = |parts: [&'static str; 4]| WireMessage::from_parts(parts.map(Bytes::from), []);
    let bad = vec![
        request(),
        request().signed(&Signer::new("hmac-sha256", b"another key").unwrap()),
        parts(["", "", "", ""]).signed(&signer),
        parts(["{}", "{}", "{}", "{}"]).signed(&signer),
        parts(["[]", "{}", "{}", "{}"]).signed(&signer),
        parts([r#"{"msg_type":"execute_request"}"#, "x", "y", "[]"]).signed(&signer),
        Message::new(UnknownContent::new("no_such_request", &1.into()), "s")
            .to_wire()
            .signed(&signer),
        // The second is a replay of the first.
        signed.clone(),
        signed,
    ];
    for channel in CHANNELS {
        let mut stream = TcpStream::connect((kernel.info.ip.as_str(), kernel.info.port(channel)))
            .await
            .unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        if matches!(channel, Channel::Shell | Channel::Control | Channel::Stdin) {
            send_raw(&kernel.info, channel, bad.clone()).await;
        }
    }
    assert_eq!(run(execute(&client, "still here").await).await, ran("still here", "ok"));
    client.heartbeat(DEADLINE).await.unwrap();
    client.interrupt().await.unwrap();
    let mut intruders = 0;
    loop {
        let message = iopub.recv().await.unwrap();
        match message.content {
            Content::ExecuteInput(input) if input.code == "intruder" => intruders += 1,
            Content::Status(status)
                if status.execution_state == ExecutionState::Idle
                    && message
                        .parent_header
                        .is_some_and(|parent| parent.msg_type == "interrupt_request") =>
            {
                break;
            }
            _ => {}
        }
    }
    // At most once on shell and once on control, because each channel rejects the replay.
    assert!(intruders <= 2, "{intruders}");
}

#[tokio::test]
async fn the_client_rejects_messages_signed_with_another_key() {
    let kernel = start(Transport::Tcp).await;
    let mut info = kernel.info.clone();
    info.key = Key::random();
    let options = ClientOptions {
        request_deadline: Duration::from_millis(50),
        ..ClientOptions::default()
    };
    let client = Client::connect_with(&info, options).await.unwrap();
    assert!(matches!(client.kernel_info().await, Err(ClientError::Deadline { .. })));
}

#[tokio::test]
async fn a_missing_kernel_and_a_port_in_use_are_typed_errors() {
    let dir = TempDir::new().unwrap();
    let options = ClientOptions {
        connect_deadline: Duration::from_millis(50),
        ..ClientOptions::default()
    };
    let missing = Client::connect_with(&fresh_info(Transport::Ipc, &dir), options).await;
    assert!(matches!(missing, Err(ClientError::Connect { .. })), "{missing:?}");
    for transport in [Transport::Tcp, Transport::Ipc] {
        let kernel = start(transport).await;
        let taken = Server::bind(kernel.info.clone(), CommandKernel::default()).await.err();
        let Some(ServeError::Bind { source, .. }) = taken else {
            panic!("{taken:?}");
        };
        assert_eq!(source.kind(), std::io::ErrorKind::AddrInUse);
        // The running kernel is not affected.
        connect(&kernel).await.kernel_info().await.unwrap();
    }
    let no_port = Client::connect(&ConnectionInfo::default()).await;
    assert!(
        matches!(no_port, Err(ClientError::NoPort(Channel::Iopub))),
        "{no_port:?}"
    );
}
