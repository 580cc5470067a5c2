//! Users with their own tokens: whose kernels they start and see, and what ends when their access ends.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::Duration;

use common::users::Team;
use common::{Answer, Served};
use futures::{SinkExt, StreamExt};
use hyper::body::Bytes;
use kernel_provider::fake::FakeSpec;
use kernel_provider::{ExitCause, LaunchError};
use kernelmux_gateway::{Access, GatewayOptions, Role, Token, Users, UsersFile};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

/// How long a test waits for anything before it fails.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long the streams of a removed user may go on.
const REVOKED_WITHIN: Duration = Duration::from_secs(2);

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn connect(team: &Team, name: &str, kernel: &str, subprotocol: &str) -> Result<Socket, Error> {
    let url = format!("ws://{}/api/kernels/{kernel}/channels", team.served.address);
    let mut request = url.into_client_request().unwrap();
    let headers = request.headers_mut();
    headers.insert("authorization", format!("token {}", team.token(name)).parse().unwrap());
    headers.insert("sec-websocket-protocol", subprotocol.parse().unwrap());
    tokio_tungstenite::connect_async(request)
        .await
        .map(|(socket, _)| socket)
}

/// Reads until the gateway closes the connection, and returns its Close frame.
async fn until_closed(mut socket: Socket) -> Option<CloseFrame> {
    let reading = async {
        let mut frame = None;
        while let Some(Ok(message)) = socket.next().await {
            if let Message::Close(close) = message {
                frame = close;
            }
        }
        frame
    };
    timeout(DEADLINE, reading).await.expect("the connection was not closed")
}

/// An open event stream.
async fn follow(team: &Team, name: &str, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(team.served.address).await.unwrap();
    let token = team.token(name);
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    let mut bytes = [0; 4096];
    let reading = async {
        while !text.contains("event: message") {
            let read = stream.read(&mut bytes).await.unwrap();
            assert_ne!(read, 0, "the events ended: {text}");
            text.push_str(&String::from_utf8_lossy(&bytes[..read]));
        }
    };
    timeout(DEADLINE, reading).await.expect("no event in time");
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    stream
}

async fn until_end(mut stream: TcpStream) {
    let mut rest = Vec::new();
    let ended = timeout(DEADLINE, stream.read_to_end(&mut rest)).await;
    ended.expect("the events did not end").unwrap();
}

/// The ids in a list.
fn ids(answer: &Answer, member: &str) -> Vec<String> {
    let list = answer.json();
    let ids = list
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item[member].as_str().unwrap().to_owned());
    let mut ids: Vec<String> = ids.collect();
    ids.sort();
    ids
}

#[tokio::test]
async fn a_users_kernels_belong_to_the_user() {
    let team = Team::start().await;
    for (caller, claimed, owner) in [
        ("user", None, Ok("user")),
        ("user", Some(""), Ok("user")),
        ("user", Some("user"), Ok("user")),
        ("user", Some("peer"), Err(403)),
        ("viewer", None, Err(403)),
        ("operator", None, Err(403)),
        ("admin", None, Ok("admin")),
        ("admin", Some("peer"), Ok("peer")),
        ("server", None, Ok("server")),
        ("server", Some("peer"), Ok("peer")),
        ("shared", None, Ok("host")),
        ("shared", Some("peer"), Ok("peer")),
    ] {
        let env = claimed.map_or(json!({}), |claimed| json!({"KERNEL_USERNAME": claimed}));
        for path in ["/api/kernels", "/api/sessions"] {
            let body = match path {
                "/api/kernels" => json!({"env": env}),
                _ => {
                    json!({"path": format!("{caller} {claimed:?}"), "type": "notebook", "kernel": {"name": "echo", "env": env}})
                }
            };
            let answer = team.send(caller, "POST", path, body).await;
            match owner {
                Ok(owner) => {
                    assert_eq!(answer.status, 201, "{caller} {claimed:?}: {answer:?}");
                    let launch = team.served.provider.last_launch();
                    assert_eq!(launch.owner.as_deref(), Some(owner));
                    assert_eq!(launch.env["KERNEL_USERNAME"], owner);
                }
                Err(status) => {
                    let message = answer.error(status);
                    assert!(!message.contains("kmx_"), "{message}");
                }
            }
        }
    }
    for (query, status) in [
        ("", 200),
        ("?user=", 200),
        ("?user=user", 200),
        ("?user=peer", 403),
        ("?user=peer/echo", 403),
    ] {
        let answer = team.get("user", &format!("/api/kernelspecs{query}")).await;
        assert_eq!(answer.status, status, "{query}");
    }
    let me = team.get("user", "/api/me").await.json();
    assert_eq!(me["identity"]["username"], "user");
    let asked = "?permissions=%7B%22kernels%22:%5B%22read%22,%22write%22,%22execute%22%5D%7D";
    for (name, granted) in [
        ("user", json!(["read", "write", "execute"])),
        ("operator", json!(["read", "write"])),
        ("viewer", json!(["read"])),
    ] {
        let me = team.get(name, &format!("/api/me{asked}")).await.json();
        assert_eq!(me["permissions"]["kernels"], granted, "{name}");
    }
}

#[tokio::test]
async fn lists_have_only_what_their_reader_may_see() {
    let team = Team::start().await;
    let own = team.start_kernel("user").await;
    let shared = team.start_kernel("peer").await;
    let hidden = team.start_kernel("peer").await;
    let past = team.start_kernel("user").await;
    for kernel in [&own, &shared, &hidden] {
        let body = json!({"path": kernel, "type": "notebook", "kernel": {"id": kernel}});
        assert_eq!(team.send("shared", "POST", "/api/sessions", body).await.status, 201);
    }
    team.send("user", "DELETE", &format!("/api/kernels/{past}"), Value::Null)
        .await;
    team.share(&shared, json!({"groups": ["staff"]})).await;
    let sorted = |ids: &[&String]| {
        let mut ids: Vec<String> = ids.iter().map(|id| (*id).clone()).collect();
        ids.sort();
        ids
    };
    let all = sorted(&[&own, &shared, &hidden]);
    for (name, kernels, logs) in [
        ("user", sorted(&[&own, &shared]), sorted(&[&own, &shared, &past])),
        ("peer", sorted(&[&shared, &hidden]), sorted(&[&shared, &hidden])),
        ("viewer", sorted(&[&shared]), sorted(&[&shared])),
        ("operator", all.clone(), sorted(&[&own, &shared, &hidden, &past])),
        ("admin", all.clone(), sorted(&[&own, &shared, &hidden, &past])),
        ("shared", all.clone(), sorted(&[&own, &shared, &hidden, &past])),
    ] {
        assert_eq!(ids(&team.get(name, "/api/kernels").await, "id"), kernels, "{name}");
        assert_eq!(ids(&team.get(name, "/api/logs").await, "kernel_id"), logs, "{name}");
        assert_eq!(ids(&team.get(name, "/api/sessions").await, "path"), kernels, "{name}");
        let status = team.get(name, "/api/status").await.json();
        assert_eq!(status["kernels"], kernels.len(), "{name}");
    }
}

#[tokio::test]
async fn users_may_have_notebooks_with_the_same_path() {
    let team = Team::start().await;
    let open = async |name: &str| {
        let body = json!({"path": "a.ipynb", "type": "notebook"});
        team.send(name, "POST", "/api/sessions", body).await.json()["kernel"]["id"].clone()
    };
    let (user, peer) = (open("user").await, open("peer").await);
    assert_ne!(user, peer);
    assert_eq!((open("user").await, open("peer").await), (user.clone(), peer.clone()));
    // A kernel of somebody else is not there, so a new one starts, for which the id is taken.
    let body = json!({"path": "b.ipynb", "type": "notebook", "kernel": {"id": user}});
    team.send("peer", "POST", "/api/sessions", body).await.error(409);
}

#[tokio::test]
async fn a_server_opens_each_users_own_notebook() {
    let team = Team::start().await;
    for server in ["server", "shared"] {
        let path = format!("{server}.ipynb");
        let open = async |env: Value| {
            let body = json!({"path": path, "type": "notebook", "kernel": {"name": "echo", "env": env}});
            let answer = team.send(server, "POST", "/api/sessions", body).await;
            answer.json()["kernel"]["id"].as_str().unwrap().to_owned()
        };
        let of = |owner: &str| open(json!({"KERNEL_USERNAME": owner}));
        let (user, peer) = (of("user").await, of("peer").await);
        assert_ne!(user, peer);
        assert_eq!((of("user").await, of("peer").await), (user.clone(), peer.clone()));
        // Without a name, all notebooks are those of one set of files.
        assert!([user, peer].contains(&open(json!({})).await));
    }
}

#[tokio::test]
async fn a_past_kernels_id_cannot_be_taken_over() {
    let team = Team::start().await;
    let past = team.start_kernel("user").await;
    team.send("user", "DELETE", &format!("/api/kernels/{past}"), Value::Null)
        .await;
    let mut texts = Vec::new();
    for (name, status) in [("peer", 409), ("admin", 409), ("user", 201), ("peer", 409)] {
        let answer = team
            .send(name, "POST", "/api/kernels", json!({"kernel_id": past}))
            .await;
        assert_eq!(answer.status, status, "{name}");
        if status == 409 {
            texts.push(answer.error(409));
        }
    }
    // The answer does not tell whether the kernel runs.
    texts.dedup();
    assert_eq!(texts.len(), 1, "{texts:?}");
    let log = format!("/api/kernels/{past}/log?follow=false");
    assert_eq!(team.get("user", &log).await.status, 200);
    team.get("peer", &log).await.error(404);
}

#[tokio::test]
async fn a_server_cannot_mix_the_histories_of_two_users() {
    let team = Team::start().await;
    let past = team.start_kernel("user").await;
    let kernel = format!("/api/kernels/{past}");
    team.send("shared", "DELETE", &kernel, Value::Null).await;
    for name in ["server", "shared"] {
        let body = json!({"kernel_id": past, "env": {"KERNEL_USERNAME": "peer"}});
        team.send(name, "POST", "/api/kernels", body).await.error(409);
    }
    // Without a name, the kernel belongs to the owner of the log.
    let body = json!({"kernel_id": past});
    assert_eq!(team.send("shared", "POST", "/api/kernels", body).await.status, 201);
    assert_eq!(team.get("user", &kernel).await.status, 200);
    let launch = team.served.provider.last_launch();
    assert_eq!(
        (launch.owner.as_deref(), launch.env["KERNEL_USERNAME"].as_str()),
        (Some("user"), "user")
    );
}

#[tokio::test]
async fn a_failed_start_does_not_hide_whose_log_it_is() {
    let team = Team::start().await;
    let past = team.start_kernel("user").await;
    let kernel = format!("/api/kernels/{past}");
    team.send("shared", "DELETE", &kernel, Value::Null).await;
    let failing = FakeSpec::failing(LaunchError::NoRoom {
        reason: "the node is full".to_owned(),
    });
    team.served.provider.install("failing", failing, json!({}));
    let log = format!("{kernel}/log?follow=false");
    for owner in ["peer", "user"] {
        let body = json!({"name": "failing", "kernel_id": past, "env": {"KERNEL_USERNAME": owner}});
        let answer = team.send("shared", "POST", "/api/kernels", body).await;
        assert_eq!(answer.status, if owner == "peer" { 409 } else { 503 });
        assert_eq!(team.get("user", &log).await.status, 200);
        team.get("peer", &log).await.error(404);
    }
}

#[tokio::test]
async fn a_start_is_visible_to_its_owner_only() {
    let team = Team::start().await;
    let failing = FakeSpec::failing(LaunchError::NoRoom {
        reason: "the node is full".to_owned(),
    });
    team.served.provider.install("failing", failing, json!({}));
    let id = "0b0f8a70-1d2a-4a3c-9e0e-0c7f7b1f2f10";
    let body = json!({"name": "failing", "kernel_id": id});
    assert!(team.send("user", "POST", "/api/kernels", body).await.status >= 500);
    let progress = format!("/api/kernels/{id}/progress");
    assert_eq!(team.get("user", &progress).await.json()["phase"], "failed");
    team.get("peer", &progress).await.error(404);
}

#[tokio::test]
async fn an_operator_does_not_see_the_output_of_a_failed_start() {
    let team = Team::start().await;
    let failing = FakeSpec::failing(LaunchError::died(ExitCause::Code(1), "the secret"));
    team.served.provider.install("failing", failing, json!({}));
    let id = "0b0f8a70-1d2a-4a3c-9e0e-0c7f7b1f2f11";
    let body = json!({"name": "failing", "kernel_id": id});
    assert_eq!(team.send("user", "POST", "/api/kernels", body).await.status, 500);
    let progress = format!("/api/kernels/{id}/progress");
    for (name, sees) in [("user", true), ("admin", true), ("shared", true), ("operator", false)] {
        let now = team.get(name, &progress).await.json();
        assert_eq!(now["phase"], "failed", "{name}");
        assert_eq!(
            now["reason"].as_str().unwrap().contains("the secret"),
            sees,
            "{name}: {now}"
        );
    }
}

#[tokio::test]
async fn the_streams_of_a_removed_user_end() {
    let team = Team::start().await;
    let kernel = team.start_kernel("user").await;
    let log = format!("/api/kernels/{kernel}/log");
    let body = json!({"code": "x"});
    team.send("user", "POST", &format!("/api/kernels/{kernel}/executions"), body)
        .await;
    let resume = connect(&team, "user", &kernel, "v1.resume.kernelmux").await.unwrap();
    let plain = connect(&team, "user", &kernel, "v1.kernel.websocket.jupyter.org")
        .await
        .unwrap();
    let mut others = connect(&team, "shared", &kernel, "v1.kernel.websocket.jupyter.org")
        .await
        .unwrap();
    let events = follow(&team, "user", &log).await;
    let others_events = follow(&team, "admin", &log).await;

    let removed = Instant::now();
    team.file.remove("user").unwrap();
    for socket in [resume, plain] {
        let close = until_closed(socket).await.unwrap();
        assert_eq!(u16::from(close.code), 1008);
        assert_eq!(close.reason.as_str(), "the permission to use the kernel has ended");
    }
    until_end(events).await;
    let took = removed.elapsed();
    assert!(took < REVOKED_WITHIN, "{took:?}");
    team.get("user", "/api").await.error(401);
    assert!(connect(&team, "user", &kernel, "v1.resume.kernelmux").await.is_err());

    // Those of others go on, and so does the kernel.
    others
        .send(Message::Ping(Bytes::from_static(b"still there")))
        .await
        .unwrap();
    let answered = async {
        loop {
            if let Message::Pong(payload) = others.next().await.unwrap().unwrap() {
                return payload;
            }
        }
    };
    assert_eq!(timeout(DEADLINE, answered).await.unwrap(), &b"still there"[..]);
    drop(others_events);
    assert_eq!(team.get("admin", &format!("/api/kernels/{kernel}")).await.status, 200);
}

#[tokio::test]
async fn a_request_is_refused_if_its_user_is_removed_before_its_body_is_complete() {
    let team = Team::start().await;
    let mut stream = TcpStream::connect(team.served.address).await.unwrap();
    let token = team.token("user");
    let request = format!(
        "POST /api/kernels HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\nAuthorization: Bearer {token}\r\n\r\n{{"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    // The permission has been checked by then.
    tokio::time::sleep(Duration::from_millis(500)).await;
    team.file.remove("user").unwrap();
    let mut answer = vec![0; 12];
    timeout(DEADLINE, stream.read_exact(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 401");
    assert!(team.served.manager.list().is_empty());
}

#[tokio::test]
async fn a_reader_loses_access_with_the_share() {
    let team = Team::start().await;
    let kernel = team.start_kernel("user").await;
    let log = format!("/api/kernels/{kernel}/log");
    team.get("viewer", &log).await.error(404);
    let body = json!({"users": ["viewer"], "path": "a.ipynb"});
    let made = team
        .send("user", "POST", &format!("/api/kernels/{kernel}/shares"), body)
        .await;
    assert_eq!(made.status, 201, "{made:?}");
    let made = made.json();
    assert_eq!(
        (&made["users"], &made["token"], &made["url"]),
        (&json!(["viewer"]), &Value::Null, &Value::Null)
    );
    let body = json!({"code": "x"});
    team.send("user", "POST", &format!("/api/kernels/{kernel}/executions"), body)
        .await;
    let events = follow(&team, "viewer", &log).await;
    assert!(connect(&team, "viewer", &kernel, "v1.resume.kernelmux").await.is_err());
    let share = format!("/api/kernels/{kernel}/shares/{}", made["id"].as_str().unwrap());
    let revoked = Instant::now();
    assert_eq!(team.send("user", "DELETE", &share, Value::Null).await.status, 204);
    until_end(events).await;
    assert!(revoked.elapsed() < REVOKED_WITHIN);
    team.get("viewer", &log).await.error(404);
    for wrong in [
        json!({"users": ["a/b"]}),
        json!({"users": [""]}),
        json!({"groups": vec!["x"; 65]}),
        json!({"users": "ada"}),
    ] {
        let path = format!("/api/kernels/{kernel}/shares");
        team.send("user", "POST", &path, wrong).await.error(400);
    }
}

#[tokio::test]
async fn a_gateway_without_shares_ignores_those_from_before() {
    let folder = tempfile::tempdir().unwrap();
    let shares = folder.path().join("shares.json");
    let team = Team::with(|options| options.shares_file = Some(shares.clone())).await;
    let kernel = team.start_kernel("user").await;
    team.share(&kernel, json!({"users": ["viewer"]})).await;
    let path = format!("/api/kernels/{kernel}");
    assert_eq!(team.get("viewer", &path).await.status, 200);
    let authorization = format!("Bearer {}", team.token("viewer"));
    let mut served = team.served;
    for (allow_shares, status) in [(true, 200), (false, 404)] {
        let users = Users::open(team.file.clone()).unwrap();
        let adjust = |options: &mut GatewayOptions| {
            options.users = Some(users);
            options.shares_file = Some(shares.clone());
            options.allow_shares = allow_shares;
        };
        served = served.again(adjust, |_| {}).await;
        let headers = [("authorization", authorization.as_str())];
        let answer = served.send_with_headers("GET", &path, &headers, "").await;
        assert_eq!(answer.status, status, "{answer:?}");
    }
}

#[tokio::test]
async fn a_gateway_can_have_only_users() {
    let folder = tempfile::tempdir().unwrap();
    let file = UsersFile::new(folder.path().join("users.json"));
    let token = file.add("ada", Role::User, Vec::new()).unwrap();
    let users = Users::open(file).unwrap();
    let served = Served::with(
        |options| {
            options.access = Access::Users;
            options.users = Some(users);
        },
        |_| {},
    )
    .await;
    let status = async |token: &str| {
        let authorization = format!("token {token}");
        let answer = served
            .send_with_headers("GET", "/api", &[("authorization", &authorization)], "")
            .await;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        assert!(token.is_empty() || !text.contains(token), "{text}");
        answer.status
    };
    assert_eq!(status(token.reveal()).await, 200);
    for wrong in [
        "",
        "s3cret",
        "kmx_",
        "kmx_x_y",
        &token.reveal()[..30],
        &format!("{}x", token.reveal()),
    ] {
        assert_eq!(status(wrong).await, 401, "{wrong}");
    }
    let query = format!("/api?token={}", token.reveal());
    assert_eq!(served.send_with_headers("GET", &query, &[], "").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_token_ends_its_streams_and_no_others() {
    let team = Team::start().await;
    let kernel = team.start_kernel("user").await;
    let socket = connect(&team, "shared", &kernel, "v1.kernel.websocket.jupyter.org").await;
    let socket = socket.unwrap();
    let mut own = connect(&team, "user", &kernel, "v1.kernel.websocket.jupyter.org")
        .await
        .unwrap();
    let path = format!("/api/kernels/{kernel}/log");
    let events = follow(&team, "shared", &path).await;
    let began = Instant::now();
    let gateway = &team.served.gateway;
    let mut options = (*gateway.options()).clone();
    // Other options, and the same token, end nothing.
    options.list_kernels = false;
    gateway.set_options(options.clone());
    assert_eq!(team.get("shared", "/api/kernels").await.status, 403);
    assert_eq!(team.get("shared", &format!("/api/kernels/{kernel}")).await.status, 200);
    options.access = Access::Token(Token::new("another-token").unwrap());
    gateway.set_options(options);
    until_closed(socket).await;
    until_end(events).await;
    assert!(began.elapsed() < REVOKED_WITHIN, "{:?}", began.elapsed());
    assert_eq!(team.get("shared", &path).await.status, 401);
    let headers = [("authorization", "token another-token")];
    let with_new = team
        .served
        .send_with_headers("GET", "/api", &headers, Bytes::new())
        .await;
    assert_eq!(with_new.status, 200);
    // The user's connection goes on.
    own.send(Message::Ping("x".into())).await.unwrap();
    let pong = async {
        while let Some(message) = own.next().await {
            if matches!(message.unwrap(), Message::Pong(_)) {
                return true;
            }
        }
        false
    };
    assert!(timeout(DEADLINE, pong).await.unwrap());
}
