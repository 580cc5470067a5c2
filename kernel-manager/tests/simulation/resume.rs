//! Clients of the resume protocol and the gateway's end of their connections, which break after a random number of
//! bytes.

use std::io;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use gateway_client::resume::client::{Event, ResumeClient, ResumeOptions, Transport};
use gateway_client::resume::{CLOSE_REPLACED, Hello, NotRecovered, Notice, SUBPROTOCOL, Start};
use jupyter_protocol::Channel;
use jupyter_protocol::codec::websocket_v1;
use kernel_log::ReadError;
use tokio::io::{DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::accept_hdr_async;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message as Frame};

use super::limited::Limited;
use super::random::Random;
use super::scheduler::Lifetime;
use super::world::{Process, World};

/// Follows the log, with interruptions until fault injection ends.
pub(crate) async fn run(world: Rc<World>, number: u64) {
    let session = format!("resume{number}");
    let (dialled, mut incoming) = mpsc::channel::<DuplexStream>(16);
    let mut options = ResumeOptions::new("http://gateway.invalid", world.id)
        .with_session(session.clone())
        .with_start(Start::Earliest);
    let random = Arc::new(Mutex::new(Random::new(world.below(u64::MAX))));
    options.dial = Some(Arc::new(move || {
        let (dialled, random) = (dialled.clone(), random.clone());
        Box::pin(async move {
            let (delay, window) = {
                let mut random = random.lock().unwrap();
                let window = random.choose(&[16, 300, 10_000]);
                (random.below(50), window)
            };
            sleep(Duration::from_millis(delay)).await;
            let (client, server) = duplex(window);
            let sent = dialled.send(server).await;
            sent.map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
            Ok(Box::new(client) as Box<dyn Transport>)
        })
    }));
    world.scheduler.spawn(Lifetime::World, {
        let (world, session) = (world.clone(), session.clone());
        async move {
            while let Some(stream) = incoming.recv().await {
                let process = world.process.borrow().clone();
                let Some(process) = process else { continue };
                let (readable, writable) = if *world.calm.borrow() {
                    (usize::MAX, usize::MAX)
                } else {
                    let bytes = world.choose(&[300, 2_000, 20_000, 1 << 40]);
                    let readable = world.choose(&[700, 3_000, 1 << 40]);
                    (world.below(readable) as usize, world.below(bytes) as usize)
                };
                let stream = Limited {
                    stream,
                    readable,
                    writable,
                };
                world.scheduler.spawn(
                    Lifetime::Process,
                    serve(world.clone(), process, stream, session.clone()),
                );
            }
        }
    });
    let mut client = ResumeClient::new(options).unwrap();
    follow(&world, &mut client, &session).await;
}

async fn follow(world: &Rc<World>, client: &mut ResumeClient, session: &str) {
    let mut last: Option<u64> = None;
    let mut asked = 0;
    let calm = world.calm.subscribe();
    loop {
        let is_calm = *calm.borrow();
        if !is_calm && asked < 4 && world.one_in(8) {
            let request = world.request(&format!("{session}-{asked}"), session);
            client.send(Channel::Shell, request).unwrap();
            asked += 1;
        }
        if !is_calm && world.one_in(60) {
            client.disconnect();
        }
        if !is_calm {
            let stall = world.choose(&[1, 1, 1, 1, 1, 1, 1, 1, 100, 1_000, 200_000]);
            world.pause(stall).await;
        }
        let Ok(event) = timeout(Duration::from_secs(30), client.next()).await else {
            continue;
        };
        match event.unwrap().unwrap() {
            Event::Connected(hello) => {
                world.trace(format_args!("{session} resumes after {}", hello.from));
                assert_eq!(hello.from.0, *last.get_or_insert(hello.from.0));
            }
            Event::NotRecovered(hello) => {
                world.trace(format_args!("{session} starts over after {}", hello.from));
                assert_eq!(hello.reason, Some(NotRecovered::Earliest));
                assert!(last.is_some_and(|last| last < hello.from.0));
                last = Some(hello.from.0);
                forget_unconfirmed(client);
            }
            Event::Entry(entry) => {
                assert_eq!(Some(entry.seq.0 - 1), last, "{session}");
                world.saw(entry.seq.0, entry.channel, &entry.message);
                last = Some(entry.seq.0);
            }
            Event::Gap { first, last: end } => {
                world.trace(format_args!("{session} misses {first} to {end}"));
                assert_eq!(Some(first.0 - 1), last, "{session}");
                last = Some(end.0);
                forget_unconfirmed(client);
            }
            Event::Disconnected { reason, .. } => {
                // The reason is not traced, because its text may come from the operating system.
                drop(reason);
                world.trace(format_args!("{session} is cut after {last:?}"));
            }
            other => panic!("{other:?}"),
        }
        world
            .positions
            .borrow_mut()
            .insert(session.to_owned(), last.unwrap_or(0));
    }
}

/// Forgets unconfirmed messages, because their entries may be among the missing ones.
fn forget_unconfirmed(client: &mut ResumeClient) {
    let ids: Vec<_> = client.unconfirmed().map(str::to_owned).collect();
    for id in ids {
        client.forget(&id);
    }
}

async fn serve(world: Rc<World>, process: Rc<Process>, stream: Limited, session: String) {
    let mut start = None;
    #[allow(clippy::result_large_err)] // The library's type.
    let take = |request: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
        let query = request.uri().query().unwrap_or_default();
        let resume = query.split('&').find_map(|pair| pair.strip_prefix("resume="));
        start = Some(resume.unwrap().parse::<Start>().unwrap());
        let protocol = HeaderValue::from_static(SUBPROTOCOL);
        response.headers_mut().insert("sec-websocket-protocol", protocol);
        Ok(response)
    };
    let Ok(socket) = accept_hdr_async(stream, take).await else {
        return;
    };
    let kernel = process.simulated.kernel().clone();
    drop(process);
    let log = kernel.log();
    let (earliest, head) = (log.earliest(), log.head());
    let point = start.unwrap().find(log.epoch(), earliest, head);
    let hello = Hello {
        epoch: log.epoch(),
        earliest,
        head,
        from: point.from,
        recovered: point.not_recovered.is_none(),
        reason: point.not_recovered,
    };
    let mut attachment = kernel.attach_at(&session, point.from);
    let (mut sink, mut incoming) = socket.split();
    let (up, mut messages) = mpsc::channel(4);
    let client = attachment.client();
    world.scheduler.spawn(Lifetime::Process, async move {
        while let Some(message) = messages.recv().await {
            let _ = client.send(Channel::Shell, message).await;
        }
    });
    let (over, mut is_over) = mpsc::channel::<()>(1);
    world.scheduler.spawn(Lifetime::Process, async move {
        let _over = over;
        while let Some(Ok(frame)) = incoming.next().await {
            if let Frame::Binary(frame) = frame {
                let (_, message) = websocket_v1::decode(&frame).unwrap();
                let _ = up.send(message).await;
            }
        }
    });
    let writing = async {
        let mut superseded = std::pin::pin!(attachment.superseded());
        sink.send(Frame::text(Notice::Hello(hello).to_json())).await?;
        loop {
            let block = tokio::select! {
                biased;
                () = &mut superseded => {
                    let close = CloseFrame { code: CLOSE_REPLACED.into(), reason: "".into() };
                    return sink.send(Frame::Close(Some(close))).await;
                }
                block = attachment.next() => block,
                () = sleep(Duration::from_secs(30)) => {
                    sink.send(Frame::Ping(bytes::Bytes::new())).await?;
                    continue;
                }
            };
            match block {
                Ok(Some(block)) => {
                    for entry in block.entries() {
                        sink.feed(Frame::Binary(entry.seq_and_v1())).await?;
                    }
                    sink.flush().await?;
                }
                Ok(None) => return Ok(()),
                Err(ReadError::Gap { first, last }) => {
                    sink.send(Frame::text(Notice::Gap { first, last }.to_json())).await?;
                }
                Err(error) => panic!("{error}"),
            }
        }
    };
    // The connection ends with either half.
    tokio::select! {
        biased;
        _ = is_over.recv() => {}
        _ = writing => {}
    }
}
