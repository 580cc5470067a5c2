//! A client's WebSocket as its bytes are. What goes through it is tested end to end, with real clients.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Served, TOKEN};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

/// Connects to a new kernel, and returns the stream after the handshake.
async fn connect(served: &Served) -> TcpStream {
    let kernel = served.start_kernel(json!({"name": "echo"})).await;
    let path = format!("/api/kernels/{}/channels?token={TOKEN}", kernel["id"].as_str().unwrap());
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    stream
}

/// Reads frames to the first Close, and returns its code and reason.
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

/// Frames as a client writes them; masked with zeros, which changes nothing.
fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode, 0x80 | u8::try_from(payload.len()).unwrap(), 0, 0, 0, 0];
    frame.extend_from_slice(payload);
    frame
}

#[tokio::test]
async fn a_gateway_that_shuts_down_says_so_to_its_clients() {
    let mut served = Served::start().await;
    let mut answers = connect(&served).await;
    let mut silent = connect(&served).await;
    served.gateway.close();
    let expected = (1012, "the gateway is shutting down".to_owned());
    assert_eq!(read_close(&mut answers).await, expected);
    assert_eq!(read_close(&mut silent).await, expected);

    // What is still on its way is read, so that the connection ends without a reset.
    answers.write_all(&frame(1, b"{}")).await.unwrap();
    answers.write_all(&frame(8, &1001_u16.to_be_bytes())).await.unwrap();
    let mut rest = Vec::new();
    answers.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty(), "{rest:?}");
    // One that does not answer is not waited for.
    served.ended().await;
    silent.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty(), "{rest:?}");
}

/// Counts the process's warnings.
struct Warnings(Arc<AtomicUsize>);

impl<S: Subscriber> Layer<S> for Warnings {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() == Level::WARN {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[tokio::test]
async fn texts_that_are_no_messages_cause_few_log_lines() {
    let warnings = Arc::new(AtomicUsize::new(0));
    let _logging = tracing::subscriber::set_default(tracing_subscriber::registry().with(Warnings(warnings.clone())));
    let served = Served::start().await;
    let mut stream = connect(&served).await;
    let junk = frame(1, b"junk").repeat(1_000);
    stream.write_all(&junk).await.unwrap();
    stream.write_all(&frame(8, &1000_u16.to_be_bytes())).await.unwrap();
    // All that came before is handled by then.
    assert_eq!(read_close(&mut stream).await.0, 1000);
    let warnings = warnings.load(Ordering::Relaxed);
    assert!((1..10).contains(&warnings), "{warnings} lines");
}
