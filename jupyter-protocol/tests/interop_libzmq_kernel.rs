//! Interoperability of a kernel's sockets with libzmq clients, through pyzmq.
#![cfg(all(feature = "client", feature = "kernel"))]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
mod echo_kernel;
mod zmtp_peer;

use std::process::Stdio;

use common::{CHANNELS, fresh_info};
use echo_kernel::serve;
use jupyter_protocol::{Channel, ConnectionInfo, Transport};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use zmtp_peer::within_deadline;

/// Python client. Its arguments are the name of a scenario and the addresses of shell, iopub and heartbeat.
const CLIENT: &str = r#"
import json, sys, time, uuid, zmq

scenario, shell, iopub, beat = sys.argv[1:]
context = zmq.Context()

def connect(kind, address, topic=None, **options):
    socket = context.socket(kind)
    socket.linger = 0
    for name, value in options.items():
        setattr(socket, name, value)
    if topic is not None:
        socket.subscribe(topic)
    socket.connect(address)
    return socket

def request(socket, msg_type="kernel_info_request", content=None):
    header = {"msg_id": uuid.uuid4().hex, "msg_type": msg_type, "session": "s", "username": "", "version": "5.3"}
    parts = [json.dumps(part).encode() for part in (header, {}, {}, content or {})]
    socket.send_multipart([b"<IDS|MSG>", b"", *parts])

def receive(socket):
    frames = socket.recv_multipart()
    parts = frames[frames.index(b"<IDS|MSG>") + 2 :]
    return json.loads(parts[0])["msg_type"], json.loads(parts[3]), frames[0]

def execute(code):
    return dict(msg_type="execute_request", content={"code": code, "silent": False})

def receive_until(socket, wanted):
    while True:
        msg_type, content, _ = receive(socket)
        if msg_type == wanted:
            return content

if scenario == "socket_types":
    pings = dict(heartbeat_ivl=50, heartbeat_timeout=3000)
    sockets = [
        connect(kind, shell, **pings, **identity)
        for kind in (zmq.DEALER, zmq.REQ)
        for identity in ({}, {"routing_id": b"%d" % kind})
    ]
    subscribers = [connect(zmq.SUB, iopub, b"", **pings), connect(zmq.XSUB, iopub, **pings)]
    subscribers[1].send(b"\x01kernel.")
    for subscriber, topic in zip(subscribers, ("", "kernel.")):
        msg_type, content, first = receive(subscriber)
        assert (msg_type, content["subscription"], first) == ("iopub_welcome", topic, topic.encode())
    for _ in range(2):
        for socket in sockets:
            request(socket)
            assert receive(socket)[0] == "kernel_info_reply"
            for subscriber in subscribers:
                assert [receive(subscriber)[0] for _ in range(2)] == ["status", "status"]
        # Longer than the heartbeat timeout of libzmq.
        time.sleep(4)
elif scenario == "topics":
    topics = connect(zmq.SUB, iopub, b"unused")
    assert receive(topics)[0] == "iopub_welcome"
    everything = connect(zmq.SUB, iopub, b"")
    assert receive(everything)[0] == "iopub_welcome"
    dealer = connect(zmq.DEALER, shell)
    request(dealer, **execute("hello"))
    assert receive_until(everything, "stream")["text"] == "hello"
    topics.subscribe(b"kernel.")
    assert receive(topics)[2] == b"kernel."
    request(dealer, **execute("again"))
    assert receive_until(topics, "stream")["text"] == "again"
    receive(topics)
    topics.unsubscribe(b"kernel.")
    topics.subscribe(b"last")
    assert receive(topics)[2] == b"last"
    request(dealer, **execute("unsubscribed"))
    assert receive_until(everything, "stream")["text"] == "again"
    assert receive_until(everything, "stream")["text"] == "unsubscribed"
    assert topics.poll(100) == 0
elif scenario == "heartbeats":
    socket = connect(zmq.REQ, beat)
    for number in range(1000):
        socket.send(b"%d" % number)
        assert socket.recv() == b"%d" % number
    dealer = connect(zmq.DEALER, beat)
    dealer.send_multipart([b"", b"a", b"b"])
    assert dealer.recv_multipart() == [b"", b"a", b"b"]
elif scenario == "large":
    subscriber = connect(zmq.SUB, iopub, b"")
    receive(subscriber)
    dealer = connect(zmq.DEALER, shell)
    for length in (0, 200, 8192, 65536, 8 << 20):
        request(dealer, **execute("x" * length))
        assert receive_until(subscriber, "stream")["text"] == "x" * length
        assert receive_until(dealer, "execute_reply")["status"] == "ok"
elif scenario == "slow":
    subscriber = connect(zmq.SUB, iopub, b"", rcvhwm=1, rcvbuf=4096)
    receive(subscriber)
    dealer = connect(zmq.DEALER, shell)
    for number in range(2000):
        request(dealer, **execute("%d" % number + " " * 10_000))
    for number in range(2000):
        assert receive_until(subscriber, "stream")["text"].rstrip() == str(number)
elif scenario == "reconnect":
    socket = connect(zmq.DEALER, shell, routing_id=b"client")
    request(socket)
    assert receive(socket)[0] == "kernel_info_reply"
    print("connected", flush=True)
    sys.stdin.readline()
    while True:
        request(socket)
        if socket.poll(100):
            break
    assert receive(socket)[0] == "kernel_info_reply"
print("done", flush=True)
"#;

/// Starts the client, or returns `None` if there is no suitable Python.
fn start(scenario: &str, info: &ConnectionInfo) -> Option<Child> {
    if !common::has_ipykernel() {
        return None;
    }
    let addresses = [Channel::Shell, Channel::Iopub, Channel::Heartbeat].map(|channel| info.address(channel));
    let client = Command::new(common::python())
        .args(["-c", CLIENT, scenario])
        .args(addresses)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    Some(client.unwrap())
}

async fn run_scenario(scenario: &str, transport: Transport) {
    let folder = TempDir::new().unwrap();
    let mut info = fresh_info(transport, &folder);
    if transport == Transport::Tcp {
        // Lets the kernel choose ports, because others could take ports that are free now.
        CHANNELS.into_iter().for_each(|channel| info.set_port(channel, 0));
    }
    info.key = jupyter_protocol::Key::default();
    let kernel = serve(info).await;
    let Some(client) = start(scenario, &kernel.info) else {
        return;
    };
    let output = within_deadline(client.wait_with_output()).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "done\n");
}

#[tokio::test]
async fn all_socket_types_get_replies_welcomes_and_pongs() {
    run_scenario("socket_types", Transport::Tcp).await;
}

#[tokio::test]
async fn a_subscriber_receives_only_its_topics() {
    run_scenario("topics", Transport::Ipc).await;
}

#[tokio::test]
async fn heartbeats_are_echoed() {
    run_scenario("heartbeats", Transport::Tcp).await;
}

#[tokio::test]
async fn large_messages_are_transferred_over_tcp_and_unix_sockets() {
    for transport in [Transport::Tcp, Transport::Ipc] {
        run_scenario("large", transport).await;
    }
}

#[tokio::test]
async fn a_slow_subscriber_misses_nothing() {
    run_scenario("slow", Transport::Tcp).await;
}

#[tokio::test]
async fn a_client_reconnects_to_a_restarted_kernel() {
    let folder = TempDir::new().unwrap();
    let info = ConnectionInfo {
        transport: Transport::Ipc,
        ip: folder.path().join("k").display().to_string(),
        ..ConnectionInfo::default()
    };
    let kernel = serve(info).await;
    let info = kernel.info.clone();
    let Some(mut client) = start("reconnect", &info) else {
        return;
    };
    let mut output = BufReader::new(client.stdout.take().unwrap()).lines();
    assert_eq!(within_deadline(output.next_line()).await.unwrap().unwrap(), "connected");
    kernel.abort().await;
    let _kernel = serve(info).await;
    let mut stdin = client.stdin.take().unwrap();
    stdin.write_all(b"\n").await.unwrap();
    assert_eq!(within_deadline(output.next_line()).await.unwrap().unwrap(), "done");
}
