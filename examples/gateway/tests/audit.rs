//! The audit log: the recorded acts, without secrets.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::path::Path;
use std::time::Duration;

use common::TOKEN;
use common::users::Team;
use futures::SinkExt;
use kernelmux_gateway::{AuditLog, AuditOptions};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

const DEADLINE: Duration = Duration::from_secs(60);

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn acts_and_refusals_are_recorded_without_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    let log = AuditLog::open(AuditOptions::new(&path)).unwrap();
    let audit = log.clone();
    let team = Team::with(|options| options.audit = Some(audit)).await;
    let started = team.send("user", "POST", "/api/kernels", json!({"name": "echo"})).await;
    let id = started.json()["id"].as_str().unwrap().to_owned();
    let code = "print('classified')";
    let kernel = format!("/api/kernels/{id}");
    let run = json!({"code": code});
    team.send("user", "POST", &format!("{kernel}/executions"), run).await;
    team.get("user", &format!("{kernel}/executions")).await;
    team.send("peer", "POST", &format!("{kernel}/interrupt"), Value::Null)
        .await;
    team.send("operator", "POST", &format!("{kernel}/interrupt"), Value::Null)
        .await;
    team.send("shared", "POST", &format!("{kernel}/shares"), json!({}))
        .await;
    team.send("viewer", "POST", "/api/kernels", json!({"name": "echo"}))
        .await;
    let share = json!({"path": "a.ipynb"});
    let share = team.send("user", "POST", &format!("{kernel}/shares"), share).await;
    let link = share.json()["token"].as_str().unwrap().to_owned();
    let mut viewer = tokio::net::TcpStream::connect(team.served.address).await.unwrap();
    let request = format!("GET /live/{link}/events HTTP/1.1\r\nHost: x\r\n\r\n");
    viewer.write_all(request.as_bytes()).await.unwrap();
    assert_eq!(viewer.read_u8().await.unwrap(), b'H');
    // Not acts: lists, and the kernel's state.
    for path in ["/api/kernels", &kernel, "/api/kernelspecs"] {
        assert_eq!(team.get("user", path).await.status, 200);
    }
    team.served
        .send_with_headers("GET", "/api/kernels", &[("authorization", "token guess")], "")
        .await;
    let named = [
        ("authorization", &*format!("token {TOKEN}")),
        ("x-request-id", "from-the-proxy"),
    ];
    let ended = team.served.send_with_headers("DELETE", &kernel, &named, "").await;
    assert_eq!((ended.status, ended.header("x-request-id")), (204, "from-the-proxy"));
    let unnamed = team.get("user", "/api").await;
    assert_eq!(unnamed.header("x-request-id").len(), 36);
    let odd = [("authorization", &*format!("token {TOKEN}")), ("x-request-id", "a b")];
    let odd = team.served.send_with_headers("GET", "/api", &odd, "").await;
    assert_ne!(odd.header("x-request-id"), "a b");
    team.file.remove("peer").unwrap();
    let removed = async {
        while !std::fs::read_to_string(&path)
            .unwrap()
            .contains("token of peer was revoked")
        {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(DEADLINE, removed)
        .await
        .expect("the removal of a user is not recorded");
    log.flush().await;

    let recorded: Vec<_> = lines(&path)
        .into_iter()
        .map(|line| {
            let is_request = line["request"].is_string() || line["act"] == "view";
            assert_eq!(line["address"].is_string(), is_request, "{line}");
            chrono::DateTime::parse_from_rfc3339(line["time"].as_str().unwrap()).unwrap();
            let text = |name: &str| line[name].as_str().unwrap_or("-").to_owned();
            let is_own = line["id"] == id.as_str();
            (
                text("act"),
                text("user"),
                text("role"),
                line["status"].as_u64(),
                is_own,
                text("owner"),
            )
        })
        .collect();
    let expected = [
        ("start", "user", "user", Some(201), true, "user"),
        ("run", "user", "user", Some(202), true, "user"),
        ("read", "user", "user", Some(200), true, "user"),
        ("interrupt", "peer", "user", Some(404), true, "user"),
        ("interrupt", "operator", "operator", Some(204), true, "user"),
        ("share", "-", "server", Some(201), true, "user"),
        ("start", "viewer", "viewer", Some(403), false, "-"),
        ("share", "user", "user", Some(201), true, "user"),
        ("view", "-", "-", None, true, "-"),
        ("other", "-", "-", Some(401), false, "-"),
        ("stop", "-", "server", Some(204), true, "-"),
        ("users", "-", "-", None, false, "-"),
    ];
    let recorded: Vec<_> = recorded
        .iter()
        .map(|(act, user, role, status, own, owner)| {
            (
                act.as_str(),
                user.as_str(),
                role.as_str(),
                *status,
                *own,
                owner.as_str(),
            )
        })
        .collect();
    assert_eq!(recorded, expected);
    assert!(lines(&path).iter().any(|line| line["request_id"] == "from-the-proxy"));
    let text = std::fs::read_to_string(&path).unwrap();
    for secret in ["classified", TOKEN, &link, "guess", team.token("user")] {
        assert!(!text.contains(secret), "{secret}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn code_is_recorded_if_that_is_switched_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    let log = AuditLog::open(AuditOptions::new(&path).with_code(true)).unwrap();
    let audit = log.clone();
    let team = Team::with(|options| options.audit = Some(audit)).await;
    let started = team.send("user", "POST", "/api/kernels", json!({"name": "echo"})).await;
    let id = started.json()["id"].as_str().unwrap().to_owned();
    let executions = format!("/api/kernels/{id}/executions");
    let long = "é".repeat(40 << 10);
    for (msg_id, code) in [("short", "1 + 1"), ("long", &long)] {
        let run = json!({"code": code, "msg_id": msg_id});
        let answer = team.send("user", "POST", &executions, run).await;
        assert_eq!(answer.status, 202, "{answer:?}");
    }
    let address = team.served.address;
    let token = team.token("peer");
    let url = format!("ws://{address}/api/kernels/{id}/channels?token={token}");
    assert!(tokio_tungstenite::connect_async(url).await.is_err());
    let url = format!("ws://{address}/api/kernels/{id}/channels?token={}", team.token("user"));
    let (mut socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
    for (msg_id, msg_type) in [("asks", "kernel_info_request"), ("socket", "execute_request")] {
        let message = json!({
            "channel": "shell", "parent_header": {}, "metadata": {}, "content": {"code": "2 + 2"},
            "header": {"msg_id": msg_id, "msg_type": msg_type, "session": "s", "username": "u", "version": "5.3"},
        });
        socket.send(message.to_string().into()).await.unwrap();
    }
    let recorded = async {
        while !std::fs::read_to_string(&path).unwrap().contains("2 + 2") {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(DEADLINE, recorded).await.expect("the code is not recorded");
    log.flush().await;
    let executed: Vec<_> = lines(&path)
        .into_iter()
        .filter(|line| line["act"] == "execute")
        .collect();
    let texts = |name: &str| executed.iter().map(|line| line[name].clone()).collect::<Vec<_>>();
    assert_eq!(texts("msg_id"), ["short", "long", "socket"]);
    assert_eq!(texts("user"), ["user"; 3]);
    assert_eq!(texts("id"), [&*id; 3]);
    assert_eq!(texts("code"), ["1 + 1", &long[..64 << 10], "2 + 2"]);
    assert_eq!(texts("code_bytes"), [Value::Null, long.len().into(), Value::Null]);
}
