//! Interoperability of the client's sockets with libzmq, through pyzmq.
#![cfg(feature = "client")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::future::Future;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use jupyter_protocol::zmq::{DealerReceiver, DealerSender, dealer, heartbeat};
use jupyter_protocol::{Signer, WireMessage};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

const DEADLINE: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;

/// Python program that binds a socket of the given type and echoes messages.
///
/// It prints its address. For the first message, it also prints the first frame (the sender's identity for a ROUTER),
/// the number of frames and the total size. With `ping`, libzmq sends a PING every 50 ms and closes connections that do
/// not answer.
const ECHO: &str = r"
import sys, zmq
kind, address, *ping = sys.argv[1:]
socket = zmq.Context().socket(getattr(zmq, kind))
if ping:
    socket.heartbeat_ivl = 50
    socket.heartbeat_timeout = 3000
socket.bind(address)
print(socket.last_endpoint.decode(), flush=True)
first = True
while True:
    frames = socket.recv_multipart(copy=False)
    if first:
        print(frames[0].bytes, len(frames), sum(len(frame) for frame in frames), flush=True)
    first = False
    socket.send_multipart(frames, copy=False)
";

async fn within_deadline<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future)
        .await
        .expect("not done within the deadline")
}

/// A libzmq socket that echoes messages.
struct Echo {
    process: Child,
    output: Lines<BufReader<ChildStdout>>,
    address: String,
}

impl Echo {
    /// Starts the program, or returns `None` if there is no suitable Python.
    async fn start(arguments: &[&str]) -> Option<Self> {
        if !common::has_ipykernel() {
            return None;
        }
        let mut process = Command::new(common::python())
            .args(["-c", ECHO])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap()).lines();
        let address = within_deadline(output.next_line()).await.unwrap().unwrap();
        Some(Self {
            process,
            output,
            address,
        })
    }

    async fn next_line(&mut self) -> String {
        within_deadline(self.output.next_line()).await.unwrap().unwrap()
    }
}

fn message(buffers: impl IntoIterator<Item = Bytes>) -> WireMessage {
    WireMessage::from_parts(["{}"; 4].map(Bytes::from), buffers).signed(&Signer::unsigned())
}

async fn assert_echoed((sender, receiver): &mut (DealerSender, DealerReceiver), message: &WireMessage) {
    within_deadline(sender.send(message.clone())).await.unwrap();
    assert!(
        within_deadline(receiver.recv()).await.unwrap() == *message,
        "the echo differs from the message"
    );
}

#[tokio::test]
async fn frames_of_any_length_are_echoed_over_tcp_and_unix_sockets() {
    let folder = TempDir::new().unwrap();
    let ipc = format!("ipc://{}", folder.path().join("router").display());
    for address in ["tcp://127.0.0.1:*", &ipc] {
        let Some(mut echo) = Echo::start(&["ROUTER", address]).await else {
            return;
        };
        let mut socket = dealer(&echo.address, "session", DEADLINE).await.unwrap();
        assert_echoed(&mut socket, &message([])).await;
        assert_eq!(echo.next_line().await, "b'session' 7 24");
        let lengths = [0, 1, 254, 255, 256, 8_191, 8_192, 8_193, 65_535, 65_536, 65_537];
        let buffers = lengths.map(|length| Bytes::from(vec![length as u8; length]));
        assert_echoed(&mut socket, &message(buffers)).await;
        let many = (0..20_000_u32).map(|number| Bytes::copy_from_slice(&number.to_be_bytes()));
        assert_echoed(&mut socket, &message(many)).await;
        let large: Vec<u8> = (0..60 * MIB).map(|at| (at % 251) as u8).collect();
        let large = Bytes::from(large);
        assert_echoed(&mut socket, &message([large.clone(), Bytes::from("x"), large])).await;
    }
}

#[tokio::test]
async fn many_messages_keep_their_order() {
    let Some(echo) = Echo::start(&["ROUTER", "tcp://127.0.0.1:*"]).await else {
        return;
    };
    let (mut sender, mut receiver) = dealer(&echo.address, "session", DEADLINE).await.unwrap();
    let numbered = |number: u32| message([Bytes::copy_from_slice(&number.to_be_bytes())]);
    let send = async {
        for number in 0..20_000 {
            sender.send(numbered(number)).await.unwrap();
        }
    };
    let receive = async {
        for number in 0..20_000 {
            assert_eq!(receiver.recv().await.unwrap(), numbered(number));
        }
    };
    within_deadline(async { tokio::join!(send, receive) }).await;
}

#[tokio::test]
async fn the_end_of_a_router_is_an_error_and_connecting_waits_for_the_next_one() {
    let Some(mut first) = Echo::start(&["ROUTER", "tcp://127.0.0.1:*"]).await else {
        return;
    };
    let address = first.address.clone();
    let mut socket = dealer(&address, "session", DEADLINE).await.unwrap();
    assert_echoed(&mut socket, &message([])).await;
    first.process.kill().await.unwrap();
    let error = within_deadline(socket.1.recv()).await.unwrap_err();
    assert!(!error.is_one_message(), "{error}");
    while socket.0.send(message([])).await.is_ok() {
        tokio::task::yield_now().await;
    }
    // Connecting waits until the address listens.
    let again = ["ROUTER", address.as_str()];
    let (socket, second) = tokio::join!(dealer(&address, "session", DEADLINE), Echo::start(&again));
    let _second = second.unwrap();
    assert_echoed(&mut socket.unwrap(), &message([])).await;
}

#[tokio::test]
async fn pings_are_answered_while_the_connection_is_idle() {
    let Some(echo) = Echo::start(&["ROUTER", "tcp://127.0.0.1:*", "ping"]).await else {
        return;
    };
    let mut socket = dealer(&echo.address, "session", DEADLINE).await.unwrap();
    assert_echoed(&mut socket, &message([])).await;
    // Longer than the heartbeat timeout of libzmq.
    let silence = tokio::time::timeout(Duration::from_secs(4), socket.1.recv()).await;
    assert!(silence.is_err(), "{silence:?}");
    assert_echoed(&mut socket, &message([])).await;
}

#[tokio::test]
async fn rep_and_router_answer_heartbeats() {
    for kind in ["REP", "ROUTER"] {
        let Some(echo) = Echo::start(&[kind, "tcp://127.0.0.1:*"]).await else {
            return;
        };
        assert!(heartbeat(&echo.address, DEADLINE).await.unwrap() < DEADLINE);
    }
    let Some(publisher) = Echo::start(&["XPUB", "tcp://127.0.0.1:*"]).await else {
        return;
    };
    let error = heartbeat(&publisher.address, DEADLINE).await.unwrap_err().to_string();
    assert!(error.contains("XPUB"), "{error}");
}
