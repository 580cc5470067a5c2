//! Traces that the program sends to a collector.
#![cfg(feature = "otlp")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "common/program.rs"]
mod program;

use std::fs;
use std::path::Path;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use program::{Running, gateway};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(60);
const TOKEN: &str = "a-token-of-the-test";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

const HEALTH: &str = "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

/// Starts a gateway that sends its spans to this collector at once. Returns its address, too.
fn start(dir: &Path, collector: &str) -> (Running, String) {
    let mut command = gateway(dir, &["--port", "0", "--token", TOKEN, "--otlp-endpoint", collector]);
    command.env("OTEL_BSP_SCHEDULE_DELAY", "10");
    let running = Running::of(command);
    let (_, url) = running.lines[0].split_once("http://").unwrap();
    let (address, _) = url.split_once('/').unwrap();
    let address = address.to_owned();
    (running, address)
}

/// Sends a request and returns the answer.
async fn exchange(address: &str, request: &str) -> String {
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn collect(State(spans): State<UnboundedSender<Span>>, body: Bytes) {
    assert!(!String::from_utf8_lossy(&body).contains(TOKEN));
    let export = ExportTraceServiceRequest::decode(body).unwrap();
    for resource in export.resource_spans {
        let names = resource.resource.unwrap().attributes;
        assert!(names.iter().any(|name| name.key == "service.name"));
        for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            spans.send(span).unwrap();
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attribute(span: &Span, name: &str) -> String {
    let found = span.attributes.iter().find(|attribute| attribute.key == name);
    match found.and_then(|attribute| attribute.value.clone()?.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => panic!("{name}: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_and_starts_are_traced_under_the_clients_trace() {
    let dir = tempfile::tempdir().unwrap();
    let spec = dir.path().join("kernels/ends");
    fs::create_dir_all(&spec).unwrap();
    let ends = r#"{"argv": ["/bin/false"], "display_name": "x", "language": "x"}"#;
    fs::write(spec.join("kernel.json"), ends).unwrap();
    let (spans, mut received) = unbounded_channel();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let collector = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().route("/v1/traces", post(collect)).with_state(spans);
    tokio::spawn(async move { axum::serve(listener, router).await });

    let (mut running, address) = start(dir.path(), &collector);
    let request = format!(
        "POST /api/kernels?token={TOKEN} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Request-Id: of-the-test\r\n\
         traceparent: 00-{TRACE}-{PARENT}-01\r\nContent-Length: 16\r\n\r\n{{\"name\": \"ends\"}}"
    );
    let answer = exchange(&address, &request).await;
    assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");

    let mut next = async || {
        timeout(DEADLINE, received.recv())
            .await
            .expect("no span was sent")
            .unwrap()
    };
    let mut found = [next().await, next().await];
    found.sort_by_key(|span| span.name.clone());
    let [request, start] = found;
    assert_eq!((&*request.name, &*start.name), ("POST /api/kernels", "start kernel"));
    for span in [&request, &start] {
        assert_eq!(hex(&span.trace_id), TRACE);
        assert_eq!(span.status.as_ref().unwrap().code, 2, "the start failed");
        assert!(span.end_time_unix_nano > span.start_time_unix_nano);
    }
    assert_eq!(
        (hex(&request.parent_span_id).as_str(), &start.parent_span_id),
        (PARENT, &request.span_id)
    );
    assert_eq!(attribute(&request, "request_id"), "of-the-test");
    assert_eq!(attribute(&request, "http.request.method"), "POST");
    assert_eq!(attribute(&request, "http.route"), "/api/kernels");
    assert_eq!(attribute(&request, "http.response.status_code"), "500");
    assert_eq!(attribute(&start, "kernelspec"), "ends");
    let phases: Vec<&str> = start.events.iter().map(|event| &*event.name).collect();
    assert_eq!(phases, ["scheduled", "starting", "failed"]);

    // The last spans are sent at the end, and the log does not show spans.
    exchange(&address, HEALTH).await;
    let log = tokio::task::spawn_blocking(move || running.interrupt()).await.unwrap();
    assert_eq!(next().await.name, "GET /healthz");
    assert!(log.contains("of-the-test") && !log.contains("otel"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_gone_stops_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (mut running, address) = start(dir.path(), "http://127.0.0.1:1");
    for _ in 0..3 {
        let answer = exchange(&address, HEALTH).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    let log = tokio::task::spawn_blocking(move || running.interrupt()).await.unwrap();
    assert!(
        log.contains("opentelemetry"),
        "the log does not say that the collector is gone: {log}"
    );
}
