//! The sockets of a kernel against clients of the real libzmq, by pyzmq.
#![cfg(all(feature = "client", feature = "kernel"))]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
mod served;
mod zmtp_peer;

use std::process::Stdio;

use common::{CHANNELS, fresh_info};
use jupyter_protocol::{Channel, ConnectionInfo, Transport};
use served::serve;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use zmtp_peer::soon;

/// Its arguments are what it is to do and the addresses of shell, iopub and heartbeat.
const CLIENT: &str = r#"
import json, sys, time, uuid, zmq

what, shell, iopub, beat = sys.argv[1:]
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


def ask(socket, msg_type="kernel_info_request", content=None):
    header = {"msg_id": uuid.uuid4().hex, "msg_type": msg_type, "session": "s", "username": "", "version": "5.3"}
    parts = [json.dumps(part).encode() for part in (header, {}, {}, content or {})]
    socket.send_multipart([b"<IDS|MSG>", b"", *parts])


def hear(socket):
    frames = socket.recv_multipart()
    parts = frames[frames.index(b"<IDS|MSG>") + 2 :]
    return json.loads(parts[0])["msg_type"], json.loads(parts[3]), frames[0]


def execute(code):
    return dict(msg_type="execute_request", content={"code": code, "silent": False})


def until(socket, msg_type):
    while True:
        said, content, _ = hear(socket)
        if said == msg_type:
            return content


if what == "kinds":
    pings = dict(heartbeat_ivl=50, heartbeat_timeout=3000)
    sockets = [
        connect(kind, shell, **pings, **identity)
        for kind in (zmq.DEALER, zmq.REQ)
        for identity in ({}, {"routing_id": b"%d" % kind})
    ]
    subscribers = [connect(zmq.SUB, iopub, b"", **pings), connect(zmq.XSUB, iopub, **pings)]
    subscribers[1].send(b"\x01kernel.")
    for subscriber, topic in zip(subscribers, ("", "kernel.")):
        said, content, first = hear(subscriber)
        assert (said, content["subscription"], first) == ("iopub_welcome", topic, topic.encode())
    for _ in range(2):
        for socket in sockets:
            ask(socket)
            assert hear(socket)[0] == "kernel_info_reply"
            for subscriber in subscribers:
                assert [hear(subscriber)[0] for _ in range(2)] == ["status", "status"]
        # Longer than libzmq waits for a PONG.
        time.sleep(4)
elif what == "topics":
    topics = connect(zmq.SUB, iopub, b"nobody's")
    assert hear(topics)[0] == "iopub_welcome"
    everything = connect(zmq.SUB, iopub, b"")
    assert hear(everything)[0] == "iopub_welcome"
    dealer = connect(zmq.DEALER, shell)
    ask(dealer, **execute("hello"))
    assert until(everything, "stream")["text"] == "hello"
    topics.subscribe(b"kernel.")
    assert hear(topics)[2] == b"kernel."
    ask(dealer, **execute("again"))
    assert until(topics, "stream")["text"] == "again"
    hear(topics)
    topics.unsubscribe(b"kernel.")
    topics.subscribe(b"last")
    assert hear(topics)[2] == b"last"
    ask(dealer, **execute("unheard"))
    assert until(everything, "stream")["text"] == "again"
    assert until(everything, "stream")["text"] == "unheard"
    assert topics.poll(100) == 0
elif what == "beats":
    socket = connect(zmq.REQ, beat)
    for number in range(1000):
        socket.send(b"%d" % number)
        assert socket.recv() == b"%d" % number
    dealer = connect(zmq.DEALER, beat)
    dealer.send_multipart([b"", b"a", b"b"])
    assert dealer.recv_multipart() == [b"", b"a", b"b"]
elif what == "large":
    subscriber = connect(zmq.SUB, iopub, b"")
    hear(subscriber)
    dealer = connect(zmq.DEALER, shell)
    for length in (0, 200, 8192, 65536, 8 << 20):
        ask(dealer, **execute("x" * length))
        assert until(subscriber, "stream")["text"] == "x" * length
        assert until(dealer, "execute_reply")["status"] == "ok"
elif what == "slow":
    subscriber = connect(zmq.SUB, iopub, b"", rcvhwm=1, rcvbuf=4096)
    hear(subscriber)
    dealer = connect(zmq.DEALER, shell)
    for number in range(2000):
        ask(dealer, **execute("%d" % number + " " * 10_000))
    for number in range(2000):
        assert until(subscriber, "stream")["text"].rstrip() == str(number)
elif what == "again":
    socket = connect(zmq.DEALER, shell, routing_id=b"client")
    ask(socket)
    assert hear(socket)[0] == "kernel_info_reply"
    print("asked", flush=True)
    sys.stdin.readline()
    while True:
        ask(socket)
        if socket.poll(100):
            break
    assert hear(socket)[0] == "kernel_info_reply"
print("done", flush=True)
"#;

/// `None` where there is no Python to run it.
fn start(what: &str, info: &ConnectionInfo) -> Option<Child> {
    if !common::has_ipykernel() {
        return None;
    }
    let addresses = [Channel::Shell, Channel::Iopub, Channel::Heartbeat].map(|channel| info.address(channel));
    let client = Command::new(common::python())
        .args(["-c", CLIENT, what])
        .args(addresses)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    Some(client.unwrap())
}

async fn runs(what: &str, transport: Transport) {
    let folder = TempDir::new().unwrap();
    let mut info = fresh_info(transport, &folder);
    if transport == Transport::Tcp {
        // Others could take ports that are free now.
        CHANNELS.into_iter().for_each(|channel| info.set_port(channel, 0));
    }
    info.key = jupyter_protocol::Key::default();
    let kernel = serve(info).await;
    let Some(client) = start(what, &kernel.info) else {
        return;
    };
    let ended = soon(client.wait_with_output()).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&ended.stdout), "done\n");
}

#[tokio::test]
async fn dealers_and_reqs_have_replies_and_every_subscriber_is_welcomed_and_pings_are_answered() {
    runs("kinds", Transport::Tcp).await;
}

#[tokio::test]
async fn a_subscriber_has_the_topics_that_it_asked_for() {
    runs("topics", Transport::Ipc).await;
}

#[tokio::test]
async fn heartbeats_come_back() {
    runs("beats", Transport::Tcp).await;
}

#[tokio::test]
async fn large_messages_come_and_go_over_tcp_and_unix_sockets() {
    for transport in [Transport::Tcp, Transport::Ipc] {
        runs("large", transport).await;
    }
}

#[tokio::test]
async fn a_slow_subscriber_misses_nothing() {
    runs("slow", Transport::Tcp).await;
}

#[tokio::test]
async fn a_client_finds_a_kernel_that_was_started_anew() {
    let folder = TempDir::new().unwrap();
    let info = ConnectionInfo {
        transport: Transport::Ipc,
        ip: folder.path().join("k").display().to_string(),
        ..ConnectionInfo::default()
    };
    let kernel = serve(info).await;
    let info = kernel.info.clone();
    let Some(mut client) = start("again", &info) else {
        return;
    };
    let mut said = BufReader::new(client.stdout.take().unwrap()).lines();
    assert_eq!(soon(said.next_line()).await.unwrap().unwrap(), "asked");
    kernel.end().await;
    let _kernel = serve(info).await;
    let mut stdin = client.stdin.take().unwrap();
    stdin.write_all(b"\n").await.unwrap();
    assert_eq!(soon(said.next_line()).await.unwrap().unwrap(), "done");
}
