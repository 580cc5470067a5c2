//! A gateway in memory whose connections fail according to scripts.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::SplitSink;
use futures::{SinkExt, StreamExt};
use gateway_client::resume::client::{ResumeOptions, Transport};
use gateway_client::resume::{Hello, Notice, SUBPROTOCOL, Start};
use jupyter_protocol::codec::websocket_v1;
use jupyter_protocol::{Channel, Message, WireMessage};
use kernel_log::{Epoch, Seq};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::watch;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message as Frame, WebSocketConfig};
use tokio_tungstenite::{WebSocketStream, accept_hdr_async_with_config};

use super::limited::Limited;

pub(crate) const TOKEN: &str = "t0ps3cret";

/// Faults of one connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Script {
    /// Refuses the connection in place of all other faults.
    pub(crate) refuse: Option<Refuse>,
    /// Breaks the connection after the gateway has written this many bytes, including the handshake.
    pub(crate) cut_after_written: Option<usize>,
    /// Breaks the connection after the gateway has read this many bytes.
    pub(crate) cut_after_read: Option<usize>,
    /// A fault in place of the frame with this number; `hello` is number 0.
    pub(crate) fault: Option<(usize, Fault)>,
    /// Size of the connection's buffer in bytes; 0 stands for 64 KiB.
    pub(crate) window: usize,
}

#[derive(Clone, Debug)]
pub(crate) enum Refuse {
    /// The connection is refused.
    Unreachable,
    /// The gateway accepts the connection and never answers.
    Mute,
    Status(u16),
    /// 101 without the subprotocol.
    Plain,
}

#[derive(Clone, Debug)]
pub(crate) enum Fault {
    Cut,
    Close(Option<u16>),
    /// Sends the frame twice.
    Twice,
    /// Sends the next frame first.
    Swapped,
    /// Omits the frame.
    Missing,
    Binary(&'static [u8]),
    Text(&'static str),
    /// Sends this `hello` before the frame.
    Hello(Hello),
    /// Sends nothing more, not even Pings, and keeps the connection open.
    Silence,
}

pub(crate) fn faulty(frame: usize, fault: Fault) -> Script {
    Script {
        fault: Some((frame, fault)),
        ..Script::default()
    }
}

/// The log's content at one `seq`.
#[derive(Clone, Debug)]
enum Slot {
    Entry(Bytes),
    NotStored,
}

struct Log {
    epoch: Epoch,
    head: u64,
    slots: BTreeMap<u64, Slot>,
    requests: HashSet<String>,
    ended: bool,
    /// Incremented when the log loses entries; connections to an older generation break.
    generation: u64,
    /// Every entry ever appended, by epoch and `seq`.
    history: BTreeMap<(String, u64), (Channel, WireMessage)>,
    /// Whether the kernel answers execute requests.
    answers: bool,
}

impl Log {
    fn earliest(&self) -> u64 {
        self.slots.first_key_value().map_or(self.head + 1, |(seq, _)| *seq)
    }

    fn append(&mut self, channel: Channel, message: WireMessage) -> u64 {
        self.head += 1;
        let mut frame = BytesMut::new();
        frame.put_u64_le(self.head);
        websocket_v1::encode_into(&mut frame, channel, &message);
        self.slots.insert(self.head, Slot::Entry(frame.freeze()));
        self.history
            .insert((self.epoch.to_string(), self.head), (channel, message));
        self.head
    }

    fn request(&mut self, channel: Channel, message: WireMessage) {
        let header = message.header_ref().unwrap();
        if !self.requests.insert(header.msg_id.to_string()) {
            return;
        }
        let parent = Message::from_wire(&message).unwrap();
        self.append(channel, message);
        if self.answers && parent.msg_type() == "execute_request" {
            for (channel, msg_type, content) in [
                (Channel::Iopub, "status", json!({"execution_state": "busy"})),
                (
                    Channel::Iopub,
                    "stream",
                    json!({"name": "stdout", "text": format!("{} ran", parent.header.msg_id)}),
                ),
                (
                    Channel::Shell,
                    "execute_reply",
                    json!({"status": "ok", "execution_count": 1}),
                ),
                (Channel::Iopub, "status", json!({"execution_state": "idle"})),
            ] {
                let header = serde_json::to_value(&parent.header).unwrap();
                self.append(channel, kernel_message(msg_type, &header, &content));
            }
        }
    }
}

/// Makes a message of the kernel.
pub(crate) fn kernel_message(msg_type: &str, parent: &serde_json::Value, content: &serde_json::Value) -> WireMessage {
    let id = uuid::Uuid::new_v4();
    let header = json!({"msg_id": id, "msg_type": msg_type, "session": "kernel"});
    let parts = [&header, parent, &json!({}), content].map(|part| Bytes::from(part.to_string()));
    WireMessage::from_parts(parts, [])
}

/// A received handshake.
#[derive(Clone, Debug)]
pub(crate) struct Handshake {
    pub(crate) path_and_query: String,
    pub(crate) authorization: Option<String>,
}

#[derive(Clone)]
pub(crate) struct Gateway(Arc<GatewayState>);

struct GatewayState {
    log: Mutex<Log>,
    changed: watch::Sender<u64>,
    scripts: Mutex<VecDeque<Script>>,
    handshakes: Mutex<Vec<Handshake>>,
}

impl Gateway {
    pub(crate) fn new() -> Self {
        Self(Arc::new(GatewayState {
            log: Mutex::new(Log {
                epoch: Epoch::random(),
                head: 0,
                slots: BTreeMap::new(),
                requests: HashSet::new(),
                ended: false,
                generation: 0,
                history: BTreeMap::new(),
                answers: true,
            }),
            changed: watch::Sender::new(0),
            scripts: Mutex::default(),
            handshakes: Mutex::default(),
        }))
    }

    /// A gateway whose log has `count` small entries.
    pub(crate) fn with_entries(count: u64) -> Self {
        let gateway = Self::new();
        for number in 0..count {
            gateway.append_output(number);
        }
        gateway
    }

    /// Options of a client of this gateway that starts at the earliest entry.
    pub(crate) fn options(&self) -> ResumeOptions {
        let shared = self.0.clone();
        let mut options = ResumeOptions::new("http://gateway.invalid/base/", uuid::Uuid::nil().into())
            .with_token(TOKEN)
            .with_session("a session/1")
            .with_start(Start::Earliest);
        options.dial = Some(Arc::new(move || {
            let shared = shared.clone();
            Box::pin(async move {
                let script = shared.scripts.lock().unwrap().pop_front().unwrap_or_default();
                if matches!(script.refuse, Some(Refuse::Unreachable)) {
                    return Err(io::ErrorKind::ConnectionRefused.into());
                }
                let (client, server) = duplex(if script.window == 0 { 64 << 10 } else { script.window });
                tokio::spawn(async move { serve(shared, server, script).await });
                Ok(Box::new(client) as Box<dyn Transport>)
            })
        }));
        options
    }

    /// Queues a script for each of the next connections. Later connections work.
    pub(crate) fn script(&self, scripts: impl IntoIterator<Item = Script>) {
        self.0.scripts.lock().unwrap().extend(scripts);
    }

    pub(crate) fn scripts_left(&self) -> usize {
        self.0.scripts.lock().unwrap().len()
    }

    pub(crate) fn handshakes(&self) -> Vec<Handshake> {
        self.0.handshakes.lock().unwrap().clone()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Log) -> T) -> T {
        let changed = change(&mut self.0.log.lock().unwrap());
        self.0.changed.send_modify(|version| *version += 1);
        changed
    }

    /// Appends a stream message with this number as text.
    pub(crate) fn append_output(&self, number: u64) -> u64 {
        let content = json!({"name": "stdout", "text": number.to_string()});
        self.append(Channel::Iopub, kernel_message("stream", &json!({}), &content))
    }

    pub(crate) fn append(&self, channel: Channel, message: WireMessage) -> u64 {
        self.change(|log| log.append(channel, message))
    }

    /// Appends an entry that is missing because it could not be stored.
    pub(crate) fn lose_one(&self) {
        self.change(|log| {
            log.head += 1;
            log.slots.insert(log.head, Slot::NotStored);
        });
    }

    /// Leaves all further requests without an answer.
    pub(crate) fn answer_nothing(&self) {
        self.change(|log| log.answers = false);
    }

    /// Drops entries up to this one.
    pub(crate) fn trim(&self, last: u64) {
        self.change(|log| log.slots.retain(|seq, _| *seq > last));
    }

    /// Loses the entries after this one, and breaks all connections.
    pub(crate) fn truncate(&self, last: u64) {
        self.change(|log| {
            log.slots.retain(|seq, _| *seq <= last);
            log.head = last;
            log.generation += 1;
        });
    }

    /// Replaces the log with an empty one of another epoch, and breaks all connections.
    pub(crate) fn replace_log(&self) {
        self.change(|log| {
            log.slots.clear();
            (log.epoch, log.head) = (Epoch::random(), 0);
            log.generation += 1;
        });
    }

    pub(crate) fn end(&self) {
        self.change(|log| log.ended = true);
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.0.log.lock().unwrap().epoch
    }

    /// The earliest kept entry and the last one.
    pub(crate) fn range(&self) -> RangeInclusive<u64> {
        let log = self.0.log.lock().unwrap();
        log.earliest()..=log.head
    }

    /// The entry that has or had this number.
    pub(crate) fn entry(&self, epoch: &str, seq: u64) -> Option<(Channel, WireMessage)> {
        let log = self.0.log.lock().unwrap();
        log.history.get(&(epoch.to_owned(), seq)).cloned()
    }

    /// Whether the log does not have the entry.
    pub(crate) fn is_missing(&self, epoch: &str, seq: u64) -> bool {
        let log = self.0.log.lock().unwrap();
        epoch != log.epoch.to_string() || !matches!(log.slots.get(&seq), Some(Slot::Entry(_)))
    }

    /// How often a message with this `msg_id` was appended.
    pub(crate) fn count(&self, msg_id: &str) -> usize {
        let log = self.0.log.lock().unwrap();
        let ids = log.history.values().map(|(_, message)| message.header_ref().unwrap());
        ids.filter(|header| header.msg_id == msg_id).count()
    }
}

type Socket = WebSocketStream<Limited>;
type Sink = SplitSink<Socket, Frame>;
type Sent = Result<(), tokio_tungstenite::tungstenite::Error>;

async fn serve(shared: Arc<GatewayState>, mut stream: DuplexStream, script: Script) {
    match script.refuse {
        Some(Refuse::Unreachable | Refuse::Mute) => {
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            return;
        }
        Some(Refuse::Status(status)) => {
            let head = read_head(&mut stream).await;
            // A sparse response, like a proxy's error page.
            let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{head}", head.len());
            let _ = stream.write_all(answer.as_bytes()).await;
            return;
        }
        Some(Refuse::Plain) | None => {}
    }
    let plain = script.refuse.is_some();
    let stream = Limited {
        stream,
        readable: script.cut_after_read.unwrap_or(usize::MAX),
        writable: script.cut_after_written.unwrap_or(usize::MAX),
    };
    let mut start = None;
    #[allow(clippy::result_large_err)] // The library's type.
    let take = |request: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
        let query = request.uri().query().unwrap_or_default();
        let resume = query.split('&').find_map(|pair| pair.strip_prefix("resume="));
        start = Some(resume.unwrap_or("head").parse::<Start>().unwrap());
        shared.handshakes.lock().unwrap().push(Handshake {
            path_and_query: request.uri().path_and_query().unwrap().to_string(),
            authorization: request
                .headers()
                .get("authorization")
                .map(|value| value.to_str().unwrap().to_owned()),
        });
        assert_eq!(request.headers()["sec-websocket-protocol"], SUBPROTOCOL);
        if !plain {
            response
                .headers_mut()
                .insert("sec-websocket-protocol", HeaderValue::from_static(SUBPROTOCOL));
        }
        Ok(response)
    };
    let config = WebSocketConfig::default().max_frame_size(None).max_message_size(None);
    let Ok(socket) = accept_hdr_async_with_config(stream, take, Some(config)).await else {
        return;
    };
    let _ = run(&shared, socket, start.unwrap(), script.fault).await;
}

async fn read_head(stream: &mut DuplexStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

async fn run(shared: &GatewayState, socket: Socket, start: Start, mut fault: Option<(usize, Fault)>) -> Sent {
    let (mut sink, mut incoming) = socket.split();
    let mut changed = shared.changed.subscribe();
    let (mut position, generation, hello) = {
        let log = shared.log.lock().unwrap();
        let (earliest, head) = (Seq(log.earliest()), Seq(log.head));
        let point = start.find(log.epoch, earliest, head);
        let hello = Hello {
            epoch: log.epoch,
            earliest,
            head,
            from: point.from,
            recovered: point.not_recovered.is_none(),
            reason: point.not_recovered,
        };
        (point.from.0, log.generation, hello)
    };
    let mut number = 0;
    let mut next = Some(Frame::text(Notice::Hello(hello).to_json()));
    let mut pings = tokio::time::interval(Duration::from_secs(30));
    loop {
        while let Some(frame) = next.take() {
            if fault.as_ref().is_some_and(|(at, _)| *at == number) {
                let next_step = || next_step(shared, position, generation);
                if !inject_fault(&mut sink, fault.take().unwrap().1, frame, next_step).await? {
                    return Ok(());
                }
            } else {
                sink.feed(frame).await?;
            }
            number += 1;
            match next_step(shared, position, generation) {
                Next::Frame(frame, last) => (next, position) = (Some(frame), last),
                Next::Nothing => {}
                Next::End => {
                    let end = if fault.as_ref().is_some_and(|(at, _)| *at == number) {
                        inject_fault(&mut sink, fault.take().unwrap().1, end(), || Next::End).await?
                    } else {
                        sink.feed(end()).await?;
                        true
                    };
                    if end {
                        sink.send(close(Some(1000))).await?;
                        while incoming.next().await.is_some_and(|message| message.is_ok()) {}
                    }
                    return Ok(());
                }
                Next::Gone => return Ok(()),
            }
        }
        sink.flush().await?;
        tokio::select! {
            biased;
            message = incoming.next() => match message {
                Some(Ok(Frame::Binary(frame))) => {
                    let (channel, message) = websocket_v1::decode(&frame).unwrap();
                    shared.log.lock().unwrap().request(channel, message);
                    shared.changed.send_modify(|version| *version += 1);
                }
                Some(Ok(_)) => {}
                _ => return Ok(()),
            },
            _ = changed.changed() => {}
            _ = pings.tick() => sink.send(Frame::Ping(Bytes::new())).await?,
        }
        match next_step(shared, position, generation) {
            Next::Frame(frame, last) => (next, position) = (Some(frame), last),
            Next::Nothing => {}
            Next::End => {
                sink.feed(end()).await?;
                sink.send(close(Some(1000))).await?;
                while incoming.next().await.is_some_and(|message| message.is_ok()) {}
                return Ok(());
            }
            Next::Gone => return Ok(()),
        }
    }
}

enum Next {
    /// A frame, and the last entry that it covers.
    Frame(Frame, u64),
    Nothing,
    End,
    /// The connection's log was replaced.
    Gone,
}

fn next_step(shared: &GatewayState, position: u64, generation: u64) -> Next {
    let log = shared.log.lock().unwrap();
    if log.generation != generation {
        return Next::Gone;
    }
    let entry = log
        .slots
        .range(position + 1..)
        .find(|(_, slot)| matches!(slot, Slot::Entry(_)));
    let missing_to = match entry {
        Some((seq, Slot::Entry(frame))) if *seq == position + 1 => {
            return Next::Frame(Frame::Binary(frame.clone()), *seq);
        }
        Some((seq, _)) => *seq - 1,
        None => log.head,
    };
    if missing_to > position {
        let gap = Notice::Gap {
            first: Seq(position + 1),
            last: Seq(missing_to),
        };
        return Next::Frame(Frame::text(gap.to_json()), missing_to);
    }
    if log.ended { Next::End } else { Next::Nothing }
}

/// Carries out the fault in place of the frame. Returns whether the connection continues.
async fn inject_fault(
    sink: &mut Sink,
    fault: Fault,
    frame: Frame,
    next_step: impl Fn() -> Next,
) -> Result<bool, tokio_tungstenite::tungstenite::Error> {
    match fault {
        Fault::Cut => {
            sink.flush().await?;
            return Ok(false);
        }
        Fault::Close(code) => {
            sink.send(close(code)).await?;
            return Ok(false);
        }
        Fault::Twice => {
            sink.feed(frame.clone()).await?;
            sink.feed(frame).await?;
        }
        Fault::Swapped => {
            if let Next::Frame(second, _) = next_step() {
                sink.feed(second).await?;
            }
            sink.feed(frame).await?;
        }
        // The last frame is not omitted, because the client could not notice that.
        Fault::Missing if matches!(next_step(), Next::Frame(..)) => {}
        Fault::Missing => sink.feed(frame).await?,
        Fault::Binary(bytes) => {
            sink.feed(Frame::Binary(Bytes::from_static(bytes))).await?;
            sink.feed(frame).await?;
        }
        Fault::Text(text) => {
            sink.feed(Frame::text(text)).await?;
            sink.feed(frame).await?;
        }
        Fault::Hello(hello) => {
            sink.feed(Frame::text(Notice::Hello(hello).to_json())).await?;
            sink.feed(frame).await?;
        }
        Fault::Silence => {
            sink.flush().await?;
            std::future::pending::<()>().await;
        }
    }
    Ok(true)
}

fn end() -> Frame {
    Frame::text(Notice::End {}.to_json())
}

fn close(code: Option<u16>) -> Frame {
    Frame::Close(code.map(|code| CloseFrame {
        code: code.into(),
        reason: "a reason".into(),
    }))
}
