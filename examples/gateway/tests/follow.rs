//! Following another session's execution over a WebSocket, in each message format.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use common::{Served, TOKEN};
use futures::{SinkExt, StreamExt};
use jupyter_protocol::codec::{legacy_text, websocket_v1};
use jupyter_protocol::content::{ExecuteReply, ExecuteRequest, KernelInfoReply, KernelInfoRequest, ReplyError};
use jupyter_protocol::kernel::{Context, Kernel};
use jupyter_protocol::{Channel, Message, WireMessage};
use kernel_manager::fold::{Fold, FoldLimits, Output};
use kernel_provider::fake::FakeSpec;
use serde_json::{Map, json};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::WebSocketStream;
use tungstenite::client::IntoClientRequest;
use tungstenite::protocol::Message as Frame;

const DEADLINE: Duration = Duration::from_secs(60);

/// Prints numbered lines, about one per millisecond, until `stop` is true.
struct Prints {
    stop: watch::Receiver<bool>,
    lines: Arc<AtomicUsize>,
    runs: Arc<AtomicUsize>,
}

#[async_trait]
impl Kernel for Prints {
    fn info(&self) -> KernelInfoReply {
        KernelInfoReply::default()
    }

    async fn execute(&self, _: &ExecuteRequest, context: &Context) -> Result<ExecuteReply, ReplyError> {
        self.runs.fetch_add(1, Ordering::SeqCst);
        while !*self.stop.borrow() {
            let line = self.lines.fetch_add(1, Ordering::SeqCst);
            context.stdout(format!("{line}\n")).await;
            sleep(Duration::from_millis(1)).await;
        }
        Ok(ExecuteReply::default())
    }
}

/// A client's message format.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Format {
    V1,
    Legacy,
    /// Like jupyter_server's gateway client.
    LegacyText,
}

struct Client {
    format: Format,
    session: String,
    socket: WebSocketStream<TcpStream>,
}

impl Client {
    async fn connect(served: &Served, kernel: &str, session: &str, format: Format) -> Self {
        let stream = TcpStream::connect(served.address).await.unwrap();
        let address = served.address;
        let url = format!("ws://{address}/api/kernels/{kernel}/channels?token={TOKEN}&session_id={session}");
        let mut request = url.into_client_request().unwrap();
        let headers = request.headers_mut();
        match format {
            Format::V1 => drop(headers.insert("sec-websocket-protocol", websocket_v1::SUBPROTOCOL.parse().unwrap())),
            Format::Legacy => {}
            Format::LegacyText => drop(headers.insert("user-agent", "Tornado/6.5".parse().unwrap())),
        }
        let (socket, _) = tokio_tungstenite::client_async(request, stream).await.unwrap();
        Self {
            format,
            session: session.to_owned(),
            socket,
        }
    }

    async fn send(&mut self, message: &Message) {
        let message = message.to_wire();
        let frame = match self.format {
            Format::V1 => Frame::Binary(websocket_v1::encode(Channel::Shell, &message)),
            _ => {
                let text = legacy_text::encode(Channel::Shell, &message).unwrap();
                Frame::text(String::from_utf8(text.to_vec()).unwrap())
            }
        };
        self.socket.send(frame).await.unwrap();
    }

    async fn follow(&mut self, msg_id: &str) {
        let metadata = Map::from_iter([("kernelmux".to_owned(), json!({"follow": true}))]);
        let mut request = Message::new(ExecuteRequest::new(""), &self.session).with_metadata(metadata);
        request.header.msg_id = msg_id.to_owned();
        self.send(&request).await;
    }

    async fn next(&mut self) -> (Channel, WireMessage) {
        loop {
            let frame = timeout(DEADLINE, self.socket.next()).await.expect("nothing came");
            match frame.expect("the connection was closed").unwrap() {
                Frame::Binary(data) if self.format == Format::V1 => return websocket_v1::decode(&data).unwrap(),
                Frame::Text(text) if self.format != Format::V1 => {
                    return legacy_text::decode(&Bytes::from(text)).unwrap();
                }
                Frame::Ping(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

/// An execution as a page shows it.
struct Cell {
    msg_id: String,
    fold: Fold,
    replies: usize,
    /// How many replays have begun.
    replays: usize,
    is_idle: bool,
}

impl Cell {
    fn new(msg_id: &str) -> Self {
        Self {
            msg_id: msg_id.to_owned(),
            fold: Fold::new(FoldLimits::default()),
            replies: 0,
            replays: 0,
            is_idle: false,
        }
    }

    fn has_ended(&self) -> bool {
        self.replies > 0 && self.is_idle
    }

    fn show(&mut self, channel: Channel, message: &WireMessage) {
        if message.parent_ref().unwrap().msg_id != self.msg_id {
            return;
        }
        let is_replayed = |metadata: serde_json::Value| metadata["kernelmux"]["replay"] == true;
        let replayed = is_replayed(serde_json::from_slice(message.metadata()).unwrap());
        // Before the replay, a page has no place to show the messages.
        if replayed || self.replays > 0 {
            self.replays += usize::from(replayed && msg_type(message) == "execute_input");
            self.replies += usize::from(channel == Channel::Shell);
            self.is_idle |= message.content().windows(6).any(|text| text == b"\"idle\"");
            self.fold.apply(channel, message);
        }
    }

    fn text(&self) -> String {
        let texts = self.fold.outputs().into_iter().map(|output| match output {
            Output::Stream { text, .. } => text,
            other => panic!("{other:?}"),
        });
        texts.collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_format_follows_a_kernel_that_prints_without_pause() {
    const FOLLOWERS: usize = 4;
    let served = Served::start().await;
    let (stop, stopped) = watch::channel(false);
    let (lines, runs) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let kernel = {
        let (lines, runs) = (lines.clone(), runs.clone());
        FakeSpec::kernel(move || Prints {
            stop: stopped.clone(),
            lines: lines.clone(),
            runs: runs.clone(),
        })
    };
    served.provider.install("prints", kernel, json!({}));
    let model = served.start_kernel(json!({"name": "prints"})).await;
    let id = model["id"].as_str().unwrap();
    let mut asker = Client::connect(&served, id, "asker", Format::V1).await;
    let request = Message::new(ExecuteRequest::new("print"), "asker");
    asker.send(&request).await;
    let msg_id = request.header.msg_id;
    while lines.load(Ordering::SeqCst) < 200 {
        asker.next().await;
    }

    let mut following = Vec::new();
    for number in 0..FOLLOWERS {
        for format in [Format::V1, Format::Legacy, Format::LegacyText] {
            let session = format!("{format:?}-{number}");
            let mut client = Client::connect(&served, id, &session, format).await;
            let msg_id = msg_id.clone();
            following.push(tokio::spawn(async move {
                let mut cell = Cell::new(&msg_id);
                // Several times, as a page that is reloaded does.
                for _ in 0..=number {
                    client.follow(&msg_id).await;
                    let before = cell.replays;
                    while cell.replays == before {
                        let (channel, message) = client.next().await;
                        cell.show(channel, &message);
                    }
                }
                (client, cell)
            }));
        }
    }
    let mut followers = Vec::new();
    for following in following {
        followers.push(following.await.unwrap());
    }
    stop.send_replace(true);
    for (client, cell) in &mut followers {
        while !cell.has_ended() {
            let (channel, message) = client.next().await;
            cell.show(channel, &message);
        }
        let expected: String = (0..lines.load(Ordering::SeqCst))
            .map(|line| format!("{line}\n"))
            .collect();
        assert!(cell.text() == expected, "{:?}: {}", client.format, cell.text());
        assert_eq!(cell.replies, 1, "{:?}", client.format);
    }
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_execution_is_answered_in_each_format() {
    let served = Served::start().await;
    let model = served.start_kernel(json!({"name": "echo"})).await;
    let id = model["id"].as_str().unwrap();
    for format in [Format::V1, Format::Legacy, Format::LegacyText] {
        let mut client = Client::connect(&served, id, "s", format).await;
        client.follow("unknown").await;
        let (channel, reply) = client.next().await;
        assert_eq!(channel, Channel::Shell);
        assert_eq!(reply.parent_ref().unwrap().msg_id, "unknown");
        let content: serde_json::Value = serde_json::from_slice(reply.content()).unwrap();
        assert_eq!(content["ename"], "UnknownExecution");
        let (channel, status) = client.next().await;
        assert_eq!(channel, Channel::Iopub);
        let content: serde_json::Value = serde_json::from_slice(status.content()).unwrap();
        assert_eq!(content, json!({"execution_state": "idle"}));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_session_gets_the_kernel_info_of_a_busy_kernel() {
    let served = Served::start().await;
    let (stop, stopped) = watch::channel(false);
    let kernel = FakeSpec::kernel(move || Prints {
        stop: stopped.clone(),
        lines: Arc::default(),
        runs: Arc::default(),
    });
    served.provider.install("prints", kernel, json!({}));
    let model = served.start_kernel(json!({"name": "prints"})).await;
    let id = model["id"].as_str().unwrap();
    let mut asker = Client::connect(&served, id, "asker", Format::V1).await;
    let execution = Message::new(ExecuteRequest::new("print"), "asker");
    asker.send(&execution).await;
    // Its first output shows that it has started.
    while msg_type(&asker.next().await.1) != "stream" {}
    for format in [Format::V1, Format::Legacy, Format::LegacyText] {
        let mut client = Client::connect(&served, id, &format!("{format:?}"), format).await;
        let request = Message::new(KernelInfoRequest::default(), "page");
        client.send(&request).await;
        let (mut answer, mut states, mut last_parent) = (None, Vec::new(), String::new());
        while answer.is_none() || states.last().map(String::as_str) != Some("busy") || last_parent.is_empty() {
            let (channel, message) = client.next().await;
            let parent = message.parent_ref().unwrap().msg_id.into_owned();
            let content: serde_json::Value = serde_json::from_slice(message.content()).unwrap();
            match &*msg_type(&message) {
                "kernel_info_reply" => {
                    assert_eq!((channel, &*parent), (Channel::Shell, &*request.header.msg_id));
                    answer = Some(content);
                }
                "status" => {
                    states.push(content["execution_state"].as_str().unwrap().to_owned());
                    last_parent = if answer.is_some() && parent == execution.header.msg_id {
                        parent
                    } else {
                        String::new()
                    };
                }
                _ => {}
            }
        }
        assert_eq!(states, ["busy", "idle", "busy"], "{format:?}");
        assert_eq!(answer.unwrap()["status"], "ok");
    }
    // An idle kernel answers the request itself, so the log has the request.
    stop.send_replace(true);
    while !asker
        .next()
        .await
        .1
        .content()
        .windows(6)
        .any(|text| text == b"\"idle\"")
    {}
    let head = served.manager.get(id.parse().unwrap()).unwrap().log().head();
    let request = Message::new(KernelInfoRequest::default(), "asker");
    asker.send(&request).await;
    while msg_type(&asker.next().await.1) != "kernel_info_reply" {}
    let log = served.manager.get(id.parse().unwrap()).unwrap().log().clone();
    assert!(log.head() > head);
}

fn msg_type(message: &WireMessage) -> String {
    message.header_ref().unwrap().msg_type.into_owned()
}
