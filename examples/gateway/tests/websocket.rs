//! A client's WebSocket at the byte level. Messages are tested end to end, with real clients (`tests/e2e`).
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::Served;
use futures::FutureExt;
use kernel_manager::Kernel;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

/// Connects to a new kernel and returns the stream after the handshake.
async fn connect(served: &Served) -> TcpStream {
    let kernel = served.start_kernel(json!({"name": "echo"})).await;
    served.websocket(kernel["id"].as_str().unwrap()).await
}

/// Reads frames up to the first Close and returns its code and reason.
async fn read_close(stream: &mut TcpStream) -> (u16, String) {
    loop {
        let opcode = stream.read_u8().await.unwrap() & 0x0f;
        let length = match stream.read_u8().await.unwrap() {
            126 => u64::from(stream.read_u16().await.unwrap()),
            127 => stream.read_u64().await.unwrap(),
            short => u64::from(short),
        };
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        stream.read_exact(&mut payload).await.unwrap();
        if opcode == 8 {
            let reason = String::from_utf8(payload.split_off(2)).unwrap();
            return (u16::from_be_bytes([payload[0], payload[1]]), reason);
        }
    }
}

/// A client's frame. Its mask is zero, so the payload stays as it is.
fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode, 0x80 | u8::try_from(payload.len()).unwrap(), 0, 0, 0, 0];
    frame.extend_from_slice(payload);
    frame
}

#[tokio::test]
async fn a_closing_gateway_sends_close_frames_to_its_clients() {
    let mut served = Served::start().await;
    let mut answers = connect(&served).await;
    let mut silent = connect(&served).await;
    served.gateway.close();
    let expected = (1012, "the gateway is shutting down".to_owned());
    assert_eq!(read_close(&mut answers).await, expected);
    assert_eq!(read_close(&mut silent).await, expected);

    // The gateway reads what was still in flight, so that the connection ends without a reset.
    answers.write_all(&frame(1, b"{}")).await.unwrap();
    answers.write_all(&frame(8, &1001_u16.to_be_bytes())).await.unwrap();
    let mut rest = Vec::new();
    answers.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty(), "{rest:?}");
    // The gateway does not wait for a client that does not answer.
    served.wait_for_end().await;
    silent.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty(), "{rest:?}");
}

/// The memory for messages that wait for a kernel.
const ROOM: usize = 256 << 20;

/// Waits until all of the kernel's room is available (if `free` is true), or until some of it is in use (if false).
async fn wait_for_room(kernel: &Kernel, free: bool) {
    while kernel.room(ROOM).now_or_never().is_some() != free {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn unfinished_messages_take_room_until_their_client_disconnects() {
    let served = Served::start().await;
    let model = served.start_kernel(json!({"name": "echo"})).await;
    let id = model["id"].as_str().unwrap();
    let kernel = served.manager.get(id.parse().unwrap()).unwrap();
    wait_for_room(&kernel, true).await;

    // The head of a 60 MiB frame without its payload, and the first fragment of a message.
    let unfinished = [&[0x82, 0xff][..], &(60_u64 << 20).to_be_bytes(), &[0; 4]].concat();
    let fragment = [&[0x02, 0xfe][..], &60_000_u16.to_be_bytes(), &[0; 4], &[0; 60_000]].concat();
    for pieces in [unfinished, fragment] {
        let mut client = served.websocket(id).await;
        client.write_all(&pieces).await.unwrap();
        wait_for_room(&kernel, false).await;
        drop(client);
        wait_for_room(&kernel, true).await;
    }

    // The size limit also applies to the sum of a message's fragments.
    let mut client = served.websocket(id).await;
    let head = [&[0xff][..], &(16_u64 << 20).to_be_bytes(), &[0; 4]].concat();
    for opcode in [0x02, 0, 0, 0] {
        client.write_u8(opcode).await.unwrap();
        client.write_all(&head).await.unwrap();
        client.write_all(&vec![0; 16 << 20]).await.unwrap();
    }
    // With the length in the last fragment's head, the message exceeds the limit. It is refused before the payload.
    client.write_u8(0x80).await.unwrap();
    client.write_all(&head).await.unwrap();
    assert_eq!(read_close(&mut client).await, (1009, "message too big".to_owned()));
    drop(client);
    wait_for_room(&kernel, true).await;
}

/// Counts warnings.
struct Warnings(Arc<AtomicUsize>);

impl<S: Subscriber> Layer<S> for Warnings {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() == Level::WARN {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[tokio::test]
async fn invalid_messages_cause_few_log_lines() {
    let warnings = Arc::new(AtomicUsize::new(0));
    let _logging = tracing::subscriber::set_default(tracing_subscriber::registry().with(Warnings(warnings.clone())));
    let served = Served::start().await;
    let mut stream = connect(&served).await;
    let junk = frame(1, b"junk").repeat(1_000);
    stream.write_all(&junk).await.unwrap();
    stream.write_all(&frame(8, &1000_u16.to_be_bytes())).await.unwrap();
    // When the Close arrives, the gateway has handled all frames before it.
    assert_eq!(read_close(&mut stream).await.0, 1000);
    let warnings = warnings.load(Ordering::Relaxed);
    assert!((1..10).contains(&warnings), "{warnings} lines");
}
