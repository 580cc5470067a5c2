//! Requests that are too long, too slow or not HTTP, and clients that do not read.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::Duration;

use common::{Served, TOKEN, UNKNOWN};
use jupyter_protocol::content::Stream;
use jupyter_protocol::{Channel, Message};
use kernel_log::{NewEntry, Origin};
use kernel_manager::StartRequest;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A POST request with the token, after which the client asks to close the connection.
fn request(target: &str, headers: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: token {TOKEN}\r\n{headers}\r\n{body}"
    )
    .into_bytes()
}

/// The status of an answer, and its body if that is JSON.
fn parse(answer: &str) -> (u16, Option<Value>) {
    let status = answer.split(' ').nth(1).map_or(0, |status| status.parse().unwrap());
    let body = answer
        .split_once("\r\n\r\n")
        .and_then(|(_, body)| serde_json::from_str(body).ok());
    (status, body)
}

#[tokio::test]
async fn requests_that_are_too_long_get_the_matching_status() {
    let served = Served::start().await;
    let long = "x".repeat(20 << 10);
    let header = format!("X-Long: {}\r\n", "x".repeat(70 << 10));
    let body = "x".repeat((1 << 20) + 1);
    let length = format!("Content-Length: {}\r\n", body.len());
    let chunked = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    for (bytes, status, reason) in [
        (request(&format!("/api/{long}"), "", ""), 414, "URI Too Long"),
        (request(&format!("/api?user={long}"), "", ""), 414, "URI Too Long"),
        (request("/api", &header, ""), 431, "Request Header Fields Too Large"),
        (request("/api/kernels", &length, &body), 413, "Payload Too Large"),
        (
            request("/api/kernels", "Transfer-Encoding: chunked\r\n", &chunked),
            413,
            "Payload Too Large",
        ),
    ] {
        let answer = served.send_raw(&bytes).await;
        let (got, body) = parse(&answer);
        assert_eq!(got, status, "{answer}");
        assert_eq!(body.unwrap()["reason"], reason);
    }
    // Heads beyond what the HTTP library reads may be refused without an answer.
    let huge = format!("X-Huge: {}\r\n", "x".repeat(1 << 20));
    let (status, _) = parse(&served.send_raw(&request("/api", &huge, "")).await);
    assert!(matches!(status, 0 | 431), "{status}");
    let many: String = (0..1_000).map(|number| format!("X-{number}: y\r\n")).collect();
    let (status, _) = parse(&served.send_raw(&request("/api", &many, "")).await);
    assert!(matches!(status, 0 | 431), "{status}");
    assert_eq!(served.ask("GET", "/api").await.status, 200);
}

#[tokio::test]
async fn malformed_http_is_refused() {
    let served = Served::start().await;
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"[..],
        b"GET /api HTTP/9.9\r\n\r\n",
        b"GET /api HTTP/1.1\r\nHost: x\r\nBad Name: y\r\n\r\n",
        b"POST /api/kernels HTTP/1.1\r\nHost: x\r\nContent-Length: two\r\n\r\n",
        b"POST /api/kernels HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    ] {
        let (status, _) = parse(&served.send_raw(bytes).await);
        assert!(matches!(status, 0 | 400), "{status}");
    }
    assert_eq!(served.ask("GET", "/api").await.status, 200);
}

#[tokio::test]
async fn requests_that_are_too_slow_time_out() {
    let short = Duration::from_millis(50);
    let served = Served::with(
        |options| {
            // Longer, because the valid request at the end has to meet it too.
            options.head_deadline = Duration::from_secs(1);
            options.body_deadline = short;
        },
        |_| {},
    )
    .await;
    // Incomplete heads, then incomplete bodies. After the given bytes, the client only waits for the gateway.
    for unfinished in [&b""[..], b"GET /api HT", b"GET /api HTTP/1.1\r\nHost: x\r\nX-Slow: "] {
        let answer = served.send_raw(unfinished).await;
        assert!(matches!(parse(&answer).0, 0 | 408), "{answer}");
    }
    for (header, body) in [
        ("Content-Length: 20\r\n", "{\"name\""),
        ("Content-Length: 20\r\n", ""),
        ("Transfer-Encoding: chunked\r\n", "7\r\n{\"name\"\r\n"),
    ] {
        let answer = served.send_raw(&request("/api/kernels", header, body)).await;
        let (status, body) = parse(&answer);
        assert_eq!(status, 408, "{answer}");
        assert_eq!(body.unwrap()["reason"], "Request Timeout");
    }
    assert_eq!(served.ask("GET", "/api").await.status, 200);
    assert!(served.manager.list().is_empty());
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_until_one_is_closed() {
    let served = Served::with(|options| options.max_connections = 2, |_| {}).await;
    let kernel = served.manager.start(StartRequest::new("echo")).await.unwrap();
    let kernel = kernel.id().to_string();
    let first = served.websocket(&kernel).await;
    let second = served.websocket(&kernel).await;
    let mut third = TcpStream::connect(served.address).await.unwrap();
    third
        .write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut byte = [0];
    let answered = tokio::time::timeout(Duration::from_millis(200), third.read(&mut byte)).await;
    assert!(answered.is_err(), "WebSockets do not count");
    drop(first);
    let mut answer = String::new();
    third.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    drop(second);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_client_that_does_not_read_a_streamed_answer_is_disconnected() {
    let served = Served::with(|options| options.write_deadline = Duration::from_millis(500), |_| {}).await;
    let started = served
        .send("POST", "/api/kernels", json!({"name": "echo"}))
        .await
        .json();
    let id = started["id"].as_str().unwrap();
    // More than the socket buffers of both sides hold.
    let message = Message::new(Stream::stdout("x".repeat(1 << 20)), "s").to_wire();
    let entry = NewEntry {
        origin: Origin::Kernel,
        channel: Channel::Iopub,
        session: "",
        message: &message,
    };
    let kernel = served.manager.get(id.parse().unwrap()).unwrap();
    kernel.log().append(std::iter::repeat_n(entry, 32));
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    let (theirs, own) = (served.address.port(), stream.local_addr().unwrap().port());
    // Looks for the gateway's side of the connection, in state 01 (established).
    let is_open = || {
        let sides = format!("0100007F:{theirs:04X} 0100007F:{own:04X} 01");
        std::fs::read_to_string("/proc/net/tcp").unwrap().contains(&sides)
    };
    let head = format!("GET /api/kernels/{id}/log HTTP/1.1\r\nHost: x\r\nAuthorization: token {TOKEN}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.read_exact(&mut [0; 1024]).await.unwrap();
    tokio::time::timeout(Duration::from_secs(60), async {
        while is_open() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the gateway did not close the connection");
    // The gateway still serves other clients.
    assert_eq!(served.ask("GET", "/api").await.status, 200);
}

#[tokio::test]
async fn a_body_that_arrives_byte_by_byte_is_accepted() {
    let served = Served::start().await;
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    let body = "{\"name\": \"echo\"}";
    let length = format!("Content-Length: {}\r\n", body.len());
    for byte in request("/api/kernels", &length, body) {
        stream.write_all(&[byte]).await.unwrap();
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(parse(&answer).0, 201, "{answer}");
}

#[tokio::test]
async fn a_connection_stays_usable_after_an_unread_request_body() {
    let served = Served::start().await;
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    for (method, target, token) in [
        ("DELETE", format!("/api/sessions/{UNKNOWN}"), TOKEN),
        ("POST", format!("/api/kernels/{UNKNOWN}/interrupt"), TOKEN),
        ("POST", "/api/kernels".to_owned(), "wrong"),
    ] {
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: x\r\nAuthorization: token {token}\r\nContent-Length: 2\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        // This round trip gives the gateway time to answer the head before the body arrives.
        assert_eq!(served.ask("GET", "/api").await.status, 200);
        stream.write_all(b"{}").await.unwrap();
    }
    stream.write_all(&request("/api/kernels", "", "")).await.unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).await.unwrap();
    let statuses: Vec<u16> = answers
        .split("HTTP/1.1")
        .skip(1)
        .map(|answer| parse(answer).0)
        .collect();
    assert_eq!(statuses, [404, 404, 401, 201], "{answers}");
}

#[tokio::test]
async fn closing_the_gateway_closes_idle_connections() {
    let served = Served::start().await;
    // An open connection without a request.
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    assert_eq!(served.ask("GET", "/api").await.status, 200);
    served.gateway.close();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty());
}
