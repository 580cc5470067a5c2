//! One connection to the scripted gateway.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::SplitSink;
use futures::{SinkExt as _, StreamExt as _};
use gateway_client::resume::{Hello, Notice, SUBPROTOCOL, Start};
use jupyter_protocol::codec::websocket_v1;
use kernel_log::Seq;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message as Frame, WebSocketConfig};
use tokio_tungstenite::{WebSocketStream, accept_hdr_async_with_config};

use super::log::Slot;
use super::script::{Fault, Refuse, Script};
use super::{GatewayState, Handshake};
use crate::limited::Limited;

type Socket = WebSocketStream<Limited>;

type Sink = SplitSink<Socket, Frame>;

type Sent = Result<(), tokio_tungstenite::tungstenite::Error>;

pub(super) async fn serve(shared: Arc<GatewayState>, mut stream: DuplexStream, script: Script) {
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
    #[allow(clippy::result_large_err)] // The library defines the error type.
    let on_handshake = |request: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
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
    let Ok(socket) = accept_hdr_async_with_config(stream, on_handshake, Some(config)).await else {
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
    /// The connection's log lost its end or was replaced.
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

/// Carries out the fault at this frame. Sends the frame too, unless the fault prevents that. Returns whether the
/// connection continues.
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
