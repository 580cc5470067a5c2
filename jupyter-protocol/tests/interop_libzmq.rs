//! The client's sockets against those of the real libzmq, by pyzmq.
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

const SOON: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;

/// Echoes what a socket of this type receives, and says of the first message what is in front, which is the sender with a
/// ROUTER, and how many frames and bytes it has. With `ping`, libzmq wants a PONG every 50 ms, or it closes the connection.
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

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, what).await.expect("within the deadline")
}

/// A socket of libzmq that echoes.
struct Echo {
    process: Child,
    said: Lines<BufReader<ChildStdout>>,
    address: String,
}

impl Echo {
    /// `None` where there is no Python to run it.
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
        let mut said = BufReader::new(process.stdout.take().unwrap()).lines();
        let address = soon(said.next_line()).await.unwrap().unwrap();
        Some(Self { process, said, address })
    }

    async fn heard(&mut self) -> String {
        soon(self.said.next_line()).await.unwrap().unwrap()
    }
}

fn message(buffers: impl IntoIterator<Item = Bytes>) -> WireMessage {
    WireMessage::from_parts(["{}"; 4].map(Bytes::from), buffers).signed(&Signer::unsigned())
}

async fn echoed((sender, receiver): &mut (DealerSender, DealerReceiver), message: &WireMessage) {
    soon(sender.send(message.clone())).await.unwrap();
    assert!(
        soon(receiver.recv()).await.unwrap() == *message,
        "another message came back"
    );
}

#[tokio::test]
async fn frames_of_every_length_come_back_over_tcp_and_unix_sockets() {
    let folder = TempDir::new().unwrap();
    let ipc = format!("ipc://{}", folder.path().join("router").display());
    for address in ["tcp://127.0.0.1:*", &ipc] {
        let Some(mut echo) = Echo::start(&["ROUTER", address]).await else {
            return;
        };
        let mut socket = dealer(&echo.address, "session", SOON).await.unwrap();
        echoed(&mut socket, &message([])).await;
        assert_eq!(echo.heard().await, "b'session' 7 24");
        let lengths = [0, 1, 254, 255, 256, 8_191, 8_192, 8_193, 65_535, 65_536, 65_537];
        let buffers = lengths.map(|length| Bytes::from(vec![length as u8; length]));
        echoed(&mut socket, &message(buffers)).await;
        let many = (0..20_000_u32).map(|number| Bytes::copy_from_slice(&number.to_be_bytes()));
        echoed(&mut socket, &message(many)).await;
        let large: Vec<u8> = (0..60 * MIB).map(|at| (at % 251) as u8).collect();
        let large = Bytes::from(large);
        echoed(&mut socket, &message([large.clone(), Bytes::from("x"), large])).await;
    }
}

#[tokio::test]
async fn many_messages_keep_their_order() {
    let Some(echo) = Echo::start(&["ROUTER", "tcp://127.0.0.1:*"]).await else {
        return;
    };
    let (mut sender, mut receiver) = dealer(&echo.address, "session", SOON).await.unwrap();
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
    soon(async { tokio::join!(send, receive) }).await;
}

#[tokio::test]
async fn a_router_that_ends_is_told_and_the_next_one_is_connected_to() {
    let Some(mut first) = Echo::start(&["ROUTER", "tcp://127.0.0.1:*"]).await else {
        return;
    };
    let address = first.address.clone();
    let mut socket = dealer(&address, "session", SOON).await.unwrap();
    echoed(&mut socket, &message([])).await;
    first.process.kill().await.unwrap();
    let error = soon(socket.1.recv()).await.unwrap_err();
    assert!(!error.is_one_message(), "{error}");
    while socket.0.send(message([])).await.is_ok() {
        tokio::task::yield_now().await;
    }
    // It waits for somebody to listen.
    let again = ["ROUTER", address.as_str()];
    let (socket, second) = tokio::join!(dealer(&address, "session", SOON), Echo::start(&again));
    let _second = second.unwrap();
    echoed(&mut socket.unwrap(), &message([])).await;
}

#[tokio::test]
async fn pings_are_answered_also_while_nothing_else_is_said() {
    let Some(echo) = Echo::start(&["ROUTER", "tcp://127.0.0.1:*", "ping"]).await else {
        return;
    };
    let mut socket = dealer(&echo.address, "session", SOON).await.unwrap();
    echoed(&mut socket, &message([])).await;
    // Longer than libzmq waits for a PONG.
    let silence = tokio::time::timeout(Duration::from_secs(4), socket.1.recv()).await;
    assert!(silence.is_err(), "{silence:?}");
    echoed(&mut socket, &message([])).await;
}

#[tokio::test]
async fn heartbeats_come_back_from_rep_and_router() {
    for kind in ["REP", "ROUTER"] {
        let Some(echo) = Echo::start(&[kind, "tcp://127.0.0.1:*"]).await else {
            return;
        };
        assert!(heartbeat(&echo.address, SOON).await.unwrap() < SOON);
    }
    let Some(publisher) = Echo::start(&["XPUB", "tcp://127.0.0.1:*"]).await else {
        return;
    };
    let error = heartbeat(&publisher.address, SOON).await.unwrap_err().to_string();
    assert!(error.contains("XPUB"), "{error}");
}
