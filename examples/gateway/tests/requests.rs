//! Unusual, malformed and hostile requests.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::net::SocketAddr;

use common::{Served, TOKEN};
use kernelmux_gateway::{Access, Token};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::task::JoinSet;

#[tokio::test]
async fn the_base_url_matches_in_any_percent_encoding() {
    let served = Served::with(|options| options.base_url = "/user/jim@x/".parse().unwrap(), |_| {}).await;
    for path in ["/user/jim@x/api", "/user/jim%40x/api", "/user/jim@x/api/"] {
        assert_eq!(served.ask("GET", path).await.status, 200, "{path}");
    }
    let answer = served.send("POST", "/user/jim%40x/api/kernels", json!({})).await;
    let location = answer.header("location");
    assert!(location.starts_with("/user/jim@x/api/kernels/"), "{location}");
    assert_eq!(served.ask("GET", location).await.status, 200);
    for path in ["/api", "/user/jim/api", "/user/jim@xy/api"] {
        served.ask("GET", path).await.error(404);
    }
}

#[tokio::test]
async fn a_trailing_slash_is_ignored() {
    let served = Served::start().await;
    let kernel = served.start_kernel(Value::Null).await;
    let id = kernel["id"].as_str().unwrap();
    for path in ["/api/", "/api/kernels/", "/api/sessions/", "/api/kernelspecs/"] {
        assert_eq!(served.ask("GET", path).await.status, 200, "{path}");
    }
    assert_eq!(served.ask("GET", &format!("/api/kernels/{id}/")).await.json()["id"], id);
    assert_eq!(
        served
            .ask("POST", &format!("/api/kernels/{id}/interrupt/"))
            .await
            .status,
        204
    );
}

#[tokio::test]
async fn a_null_body_counts_as_empty_and_other_non_objects_are_refused() {
    let served = Served::start().await;
    assert_eq!(served.start_kernel(Value::Null).await["name"], "echo");
    for body in ["[]", "7", "\"x\"", "nul"] {
        served.send("POST", "/api/kernels", body).await.error(400);
    }
}

#[tokio::test]
async fn a_request_must_have_exactly_one_host_header() {
    let served = Served::start().await;
    let status = async |version: &str, hosts: &str| {
        let request =
            format!("GET /api HTTP/{version}\r\n{hosts}Connection: close\r\nAuthorization: token {TOKEN}\r\n\r\n");
        let answer = served.send_raw(request.as_bytes()).await;
        answer.split(' ').nth(1).unwrap_or_default().to_owned()
    };
    assert_eq!(status("1.1", "Host: x\r\n").await, "200");
    assert_eq!(status("1.1", "").await, "400");
    assert_eq!(status("1.1", "Host: x\r\nHost: x\r\n").await, "400");
    assert_eq!(status("1.1", "Host: x\r\nHost: y\r\n").await, "400");
    // HTTP/1.0 does not require a Host header.
    assert_eq!(status("1.0", "").await, "200");
}

#[tokio::test]
async fn a_missing_default_kernelspec_is_an_error() {
    let served = Served::with(|_| {}, |manager| manager.default_spec = Some("rust".to_owned())).await;
    let message = served.send("POST", "/api/kernels", json!({})).await.error(400);
    assert!(message.contains("\"rust\"") && message.contains("echo"), "{message}");
    assert_eq!(served.ask("GET", "/api/kernelspecs").await.json()["default"], "rust");
    assert_eq!(served.start_kernel(json!({"name": "echo"})).await["name"], "echo");

    let unset = Served::with(|_| {}, |manager| manager.default_spec = None).await;
    assert_eq!(unset.start_kernel(json!({})).await["name"], "echo");
}

#[tokio::test]
async fn with_lists_disabled_a_kernel_is_still_reachable_by_its_id() {
    let served = Served::with(|options| options.list_kernels = false, |_| {}).await;
    let kernel = served.start_kernel(json!({})).await;
    let path = format!("/api/kernels/{}", kernel["id"].as_str().unwrap());
    for list in ["/api/kernels", "/api/sessions", "/api/logs"] {
        served.ask("GET", list).await.error(403);
    }
    assert_eq!(served.ask("GET", &path).await.json()["id"], kernel["id"]);
    assert_eq!(served.ask("DELETE", &path).await.status, 204);
}

/// The status of `GET /api` with this token, sent from this loopback address.
async fn status(gateway: SocketAddr, from: &str, token: String) -> String {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
    let mut stream = socket.connect(gateway).await.unwrap();
    let request = format!("GET /api HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: token {token}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    if answer.contains(" 429 ") {
        assert!(answer.contains("retry-after: "), "{answer}");
    }
    answer.split(' ').nth(1).unwrap_or_default().to_owned()
}

/// The address that guesses tokens.
const GUESSER: &str = "127.0.0.1";
/// The address of another client.
const OTHER: &str = "127.0.0.2";

/// Sends wrong tokens concurrently. Beyond the burst, the gateway delays each answer longer than the previous one.
fn try_tokens(gateway: SocketAddr, count: usize, trying: &mut JoinSet<String>) {
    for _ in 0..count {
        trying.spawn(status(gateway, GUESSER, "wrong".to_owned()));
    }
}

#[tokio::test]
async fn an_address_that_guesses_tokens_is_refused_while_others_are_served() {
    let served = Served::start().await;
    let ask = |from, token: &str| status(served.address, from, token.to_owned());
    assert_eq!(ask(GUESSER, "wrong").await, "401");
    assert_eq!(ask(GUESSER, TOKEN).await, "200");
    let mut trying = JoinSet::new();
    while ask(GUESSER, TOKEN).await != "429" {
        try_tokens(served.address, 10, &mut trying);
    }
    assert_eq!(ask(OTHER, TOKEN).await, "200");
    assert_eq!(ask(OTHER, "wrong").await, "401");
}

#[tokio::test]
async fn a_random_token_is_accepted_despite_many_wrong_ones() {
    let token = Token::random();
    let access = Access::Token(token.clone());
    let served = Served::with(|options| options.access = access, |_| {}).await;
    let ask = || status(served.address, GUESSER, token.reveal().to_owned());
    let mut trying = JoinSet::new();
    for _ in 0..20 {
        try_tokens(served.address, 10, &mut trying);
        assert_eq!(ask().await, "200");
    }
    // Wrong tokens within the burst are answered without delay.
    assert_eq!(trying.join_next().await.unwrap().unwrap(), "401");
}
