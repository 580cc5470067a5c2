//! A gateway in memory, whose connections go wrong as a script says.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::SplitSink;
use futures::{SinkExt, StreamExt};
use gateway_client::resume::client::{Options, Transport};
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

/// What goes wrong with a connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Script {
    /// Instead of all else.
    pub(crate) refuse: Option<Refuse>,
    /// The connection breaks when so many bytes were written by the gateway, from the handshake on.
    pub(crate) cut_after_written: Option<usize>,
    /// The same with bytes that it read.
    pub(crate) cut_after_read: Option<usize>,
    /// What it does in place of the frame of this number, `hello` being 0.
    pub(crate) fault: Option<(usize, Fault)>,
    /// How many bytes are on the way at most; 0 stands for 64 KiB.
    pub(crate) window: usize,
}

#[derive(Clone, Debug)]
pub(crate) enum Refuse {
    /// Nobody is there.
    Unreachable,
    /// Somebody is there, and never answers.
    Mute,
    Status(u16),
    /// 101 without the subprotocol.
    Plain,
}

#[derive(Clone, Debug)]
pub(crate) enum Fault {
    Cut,
    Close(Option<u16>),
    /// The frame, twice.
    Twice,
    /// The one after it first.
    Swapped,
    /// All but this one.
    Missing,
    Binary(&'static [u8]),
    Text(&'static str),
    /// Another `hello`, or a first one that begins elsewhere.
    Hello(Hello),
    /// Nothing more, not even Pings; the connection stays.
    Silence,
}

pub(crate) fn faulty(frame: usize, fault: Fault) -> Script {
    Script {
        fault: Some((frame, fault)),
        ..Script::default()
    }
}

/// What the log has at a place.
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
    /// Counts new logs: connections to an older one break.
    generation: u64,
    /// Every entry there ever was.
    history: BTreeMap<(String, u64), (Channel, WireMessage)>,
    /// Whether an execute_request is answered.
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
                self.append(channel, made(msg_type, &header, &content));
            }
        }
    }
}

/// A message of the kernel's.
pub(crate) fn made(msg_type: &str, parent: &serde_json::Value, content: &serde_json::Value) -> WireMessage {
    let id = uuid::Uuid::new_v4();
    let header = json!({"msg_id": id, "msg_type": msg_type, "session": "kernel"});
    let parts = [&header, parent, &json!({}), content].map(|part| Bytes::from(part.to_string()));
    WireMessage::from_parts(parts, [])
}

/// What a handshake asked for.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) path_and_query: String,
    pub(crate) authorization: Option<String>,
}

#[derive(Clone)]
pub(crate) struct Gateway(Arc<Shared>);

struct Shared {
    log: Mutex<Log>,
    changed: watch::Sender<u64>,
    scripts: Mutex<VecDeque<Script>>,
    asked: Mutex<Vec<Asked>>,
}

impl Gateway {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Shared {
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
            asked: Mutex::default(),
        }))
    }

    /// With so many small entries.
    pub(crate) fn with_entries(count: u64) -> Self {
        let gateway = Self::new();
        for number in 0..count {
            gateway.say(number);
        }
        gateway
    }

    /// The options of a client of this gateway that begins with the earliest entry.
    pub(crate) fn options(&self) -> Options {
        let shared = self.0.clone();
        let mut options = Options::new("http://gateway.invalid/base/", uuid::Uuid::nil().into())
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

    /// What happens to the next connections, each one; later ones are as they should be.
    pub(crate) fn script(&self, scripts: impl IntoIterator<Item = Script>) {
        self.0.scripts.lock().unwrap().extend(scripts);
    }

    pub(crate) fn scripts_left(&self) -> usize {
        self.0.scripts.lock().unwrap().len()
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.0.asked.lock().unwrap().clone()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Log) -> T) -> T {
        let changed = change(&mut self.0.log.lock().unwrap());
        self.0.changed.send_modify(|version| *version += 1);
        changed
    }

    /// Appends a stream message with this number in it.
    pub(crate) fn say(&self, number: u64) -> u64 {
        let content = json!({"name": "stdout", "text": number.to_string()});
        self.append(Channel::Iopub, made("stream", &json!({}), &content))
    }

    pub(crate) fn append(&self, channel: Channel, message: WireMessage) -> u64 {
        self.change(|log| log.append(channel, message))
    }

    /// The next entry cannot be stored.
    pub(crate) fn lose_one(&self) {
        self.change(|log| {
            log.head += 1;
            log.slots.insert(log.head, Slot::NotStored);
        });
    }

    /// Requests that come from now on stay without an answer.
    pub(crate) fn answer_nothing(&self) {
        self.change(|log| log.answers = false);
    }

    /// Drops entries up to this one.
    pub(crate) fn trim(&self, last: u64) {
        self.change(|log| log.slots.retain(|seq, _| *seq > last));
    }

    /// Loses the entries after this one, and all connections.
    pub(crate) fn truncate(&self, last: u64) {
        self.change(|log| {
            log.slots.retain(|seq, _| *seq <= last);
            log.head = last;
            log.generation += 1;
        });
    }

    /// Makes the log anew, empty.
    pub(crate) fn renew(&self) {
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

    /// The first entry that is kept, and the last one.
    pub(crate) fn range(&self) -> RangeInclusive<u64> {
        let log = self.0.log.lock().unwrap();
        log.earliest()..=log.head
    }

    /// The entry that is or was at this place.
    pub(crate) fn entry(&self, epoch: &str, seq: u64) -> Option<(Channel, WireMessage)> {
        let log = self.0.log.lock().unwrap();
        log.history.get(&(epoch.to_owned(), seq)).cloned()
    }

    /// Whether nothing is at this place any more.
    pub(crate) fn is_missing(&self, epoch: &str, seq: u64) -> bool {
        let log = self.0.log.lock().unwrap();
        epoch != log.epoch.to_string() || !matches!(log.slots.get(&seq), Some(Slot::Entry(_)))
    }

    /// How often this `msg_id` is in the log, or was.
    pub(crate) fn count(&self, msg_id: &str) -> usize {
        let log = self.0.log.lock().unwrap();
        let ids = log.history.values().map(|(_, message)| message.header_ref().unwrap());
        ids.filter(|header| header.msg_id == msg_id).count()
    }
}

type Socket = WebSocketStream<Limited>;
type Sink = SplitSink<Socket, Frame>;
type Sent = Result<(), tokio_tungstenite::tungstenite::Error>;

async fn serve(shared: Arc<Shared>, mut stream: DuplexStream, script: Script) {
    match script.refuse {
        Some(Refuse::Unreachable | Refuse::Mute) => {
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            return;
        }
        Some(Refuse::Status(status)) => {
            let head = read_head(&mut stream).await;
            // As careless as a proxy's error page.
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
        shared.asked.lock().unwrap().push(Asked {
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

async fn run(shared: &Shared, socket: Socket, start: Start, mut fault: Option<(usize, Fault)>) -> Sent {
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
                let following = || following(shared, position, generation);
                if !misbehave(&mut sink, fault.take().unwrap().1, frame, following).await? {
                    return Ok(());
                }
            } else {
                sink.feed(frame).await?;
            }
            number += 1;
            match following(shared, position, generation) {
                Following::Frame(frame, last) => (next, position) = (Some(frame), last),
                Following::Nothing => {}
                Following::End => {
                    let end = if fault.as_ref().is_some_and(|(at, _)| *at == number) {
                        misbehave(&mut sink, fault.take().unwrap().1, end(), || Following::End).await?
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
                Following::Gone => return Ok(()),
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
        match following(shared, position, generation) {
            Following::Frame(frame, last) => (next, position) = (Some(frame), last),
            Following::Nothing => {}
            Following::End => {
                sink.feed(end()).await?;
                sink.send(close(Some(1000))).await?;
                while incoming.next().await.is_some_and(|message| message.is_ok()) {}
                return Ok(());
            }
            Following::Gone => return Ok(()),
        }
    }
}

enum Following {
    /// A frame, and the last entry that it stands for.
    Frame(Frame, u64),
    Nothing,
    End,
    /// The log that this connection was to.
    Gone,
}

fn following(shared: &Shared, position: u64, generation: u64) -> Following {
    let log = shared.log.lock().unwrap();
    if log.generation != generation {
        return Following::Gone;
    }
    let entry = log
        .slots
        .range(position + 1..)
        .find(|(_, slot)| matches!(slot, Slot::Entry(_)));
    let missing_to = match entry {
        Some((seq, Slot::Entry(frame))) if *seq == position + 1 => {
            return Following::Frame(Frame::Binary(frame.clone()), *seq);
        }
        Some((seq, _)) => *seq - 1,
        None => log.head,
    };
    if missing_to > position {
        let gap = Notice::Gap {
            first: Seq(position + 1),
            last: Seq(missing_to),
        };
        return Following::Frame(Frame::text(gap.to_json()), missing_to);
    }
    if log.ended { Following::End } else { Following::Nothing }
}

/// Does what goes wrong in place of the frame; whether the connection goes on.
async fn misbehave(
    sink: &mut Sink,
    fault: Fault,
    frame: Frame,
    following: impl Fn() -> Following,
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
            if let Following::Frame(second, _) = following() {
                sink.feed(second).await?;
            }
            sink.feed(frame).await?;
        }
        // Nobody could know of the last one.
        Fault::Missing if matches!(following(), Following::Frame(..)) => {}
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
