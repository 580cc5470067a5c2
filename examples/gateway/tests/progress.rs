//! The steps of a start, the facts in a kernel's model, and resource profiles.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use common::{Served, TOKEN, UNKNOWN, is_timestamp};
use jupyter_protocol::content::{ExecuteReply, ExecuteRequest, KernelInfoReply, ReplyError};
use jupyter_protocol::kernel::{Context, Kernel, async_trait};
use kernel_provider::LaunchError;
use kernel_provider::fake::FakeSpec;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;

/// How long a test waits for anything before it fails.
const DEADLINE: Duration = Duration::from_secs(60);

/// Answers requests and runs no code.
struct Echo;

#[async_trait]
impl Kernel for Echo {
    fn info(&self) -> KernelInfoReply {
        KernelInfoReply::default()
    }

    async fn execute(&self, _: &ExecuteRequest, _: &Context) -> Result<ExecuteReply, ReplyError> {
        Ok(ExecuteReply::default())
    }
}

/// The progress of a kernel, as JSON.
async fn progress(served: &Served, id: &str) -> Value {
    let answer = served.ask("GET", &format!("/api/kernels/{id}/progress")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

#[tokio::test]
async fn a_kernels_model_has_the_facts_of_this_gateway() {
    let served = Served::start().await;
    let metadata = json!({"kernelmux": {"profiles": [
        {"name": "1 GPU", "resources": {"gpu": 1}, "env": {"KERNEL_EXTRA": "x"}},
        {"name": "other user", "env": {"KERNEL_USERNAME": "x"}},
    ]}});
    served.provider.install("profiled", FakeSpec::echo(), metadata);
    let body = json!({"name": "profiled", "env": {"KERNEL_PROFILE": "1 GPU", "KERNEL_CPUS": "2"}});
    let model = served.start_kernel(body).await;
    let facts = &model["kernelmux"];
    assert_eq!(facts["version"], 1);
    let features: Vec<_> = facts["features"].as_array().unwrap().iter().collect();
    assert!(features.contains(&&json!("follow")), "{features:?}");
    assert_eq!(facts["phase"], "ready");
    assert_eq!(facts["kernelspec"], "Fake");
    assert_eq!(facts["resources"], json!({"cpu": "2", "gpu": "1"}));
    assert!(is_timestamp(&facts["started"]));
    for absent in ["reason", "culled_at"] {
        assert_eq!(facts[absent], Value::Null);
    }
    let kernel = served
        .manager
        .get(model["id"].as_str().unwrap().parse().unwrap())
        .unwrap();
    assert_eq!(facts["epoch"], kernel.log().epoch().to_string());
    assert_eq!(facts["place"], kernel.handle().record().provider);
    let launched = served.provider.last_launch().env;
    assert_eq!(launched["KERNEL_GPUS"], "1");
    assert_eq!(launched["KERNEL_EXTRA"], "x");
    // `GET /api` has the same features, also before there is a kernel.
    assert_eq!(
        served.ask("GET", "/api").await.json()["kernelmux"]["features"],
        facts["features"]
    );

    let body = json!({"name": "profiled", "env": {"KERNEL_PROFILE": "2 GPUs"}}).to_string();
    let message = served.send("POST", "/api/kernels", body).await.error(400);
    assert!(message.contains("\"2 GPUs\"") && message.contains("1 GPU"), "{message}");
    let body = json!({"name": "profiled", "env": {"KERNEL_PROFILE": "other user"}}).to_string();
    let message = served.send("POST", "/api/kernels", body).await.error(400);
    assert!(message.contains("KERNEL_USERNAME"), "{message}");
}

#[tokio::test]
async fn a_kernels_resources_are_known_after_a_restart_of_the_gateway() {
    let served = Served::start().await;
    let body = json!({"env": {"KERNEL_MEMORY": "64Gi", "KERNEL_GPUS": "1"}});
    let started = served.start_kernel(body).await;
    let none = served.start_kernel(json!({})).await;
    let served = served.again(|_| {}, |_| {}).await;
    for (before, expected) in [(started, json!({"memory": "64Gi", "gpu": "1"})), (none, Value::Null)] {
        assert_eq!(before["kernelmux"]["resources"], expected);
        let path = format!("/api/kernels/{}", before["id"].as_str().unwrap());
        let model = served.ask("GET", &path).await.json();
        assert_eq!(model["kernelmux"]["resources"], expected);
    }
}

#[tokio::test]
async fn progress_is_available_from_the_start_until_after_the_end() {
    let served = Served::start().await;
    served
        .ask("GET", &format!("/api/kernels/{UNKNOWN}/progress"))
        .await
        .error(404);

    let model = served.start_kernel(json!({})).await;
    let id = model["id"].as_str().unwrap();
    let ready = progress(&served, id).await;
    assert_eq!(ready["phase"], "ready");
    assert!(is_timestamp(&ready["since"]));
    let path = format!("/api/kernels/{id}/progress");
    let token = format!("token {TOKEN}");
    let headers = [("authorization", &*token), ("accept", "text/event-stream")];
    let events = served.send_with_headers("GET", &path, &headers, "").await;
    assert_eq!(events.header("content-type"), "text/event-stream");
    let text = String::from_utf8(events.body.to_vec()).unwrap();
    assert_eq!(text, format!("event: progress\ndata: {ready}\n\n"));

    assert_eq!(served.ask("DELETE", &format!("/api/kernels/{id}")).await.status, 204);
    let dead = progress(&served, id).await;
    assert_eq!(dead["phase"], "dead");
    assert!(dead["reason"].is_string(), "{dead}");
    assert_eq!(dead["culled_at"], Value::Null);
}

#[tokio::test]
async fn a_failed_start_reports_its_cause_until_the_next_start() {
    let served = Served::start().await;
    served.provider.install(
        "fails",
        FakeSpec::failing(LaunchError::BadRequest("no nodes are available".to_owned())),
        json!({}),
    );
    let id = "11111111-2222-4333-8444-555555555555";
    let body = json!({"name": "fails", "kernel_id": id}).to_string();
    let refused = served.send("POST", "/api/kernels", body).await;
    assert!(refused.status >= 400, "{refused:?}");
    let failed = progress(&served, id).await;
    assert_eq!(failed["phase"], "failed");
    let reason = failed["reason"].as_str().unwrap();
    assert!(reason.contains("no nodes are available"), "{reason}");
    served.start_kernel(json!({"kernel_id": id})).await;
    assert_eq!(progress(&served, id).await["phase"], "ready");
}

#[tokio::test]
async fn a_refused_start_keeps_the_previous_progress() {
    let served = Served::with(|_| {}, |options| options.max_kernels = Some(1)).await;
    let id = "11111111-2222-4333-8444-555555555555";
    served.start_kernel(json!({"kernel_id": id})).await;
    assert_eq!(served.ask("DELETE", &format!("/api/kernels/{id}")).await.status, 204);
    let dead = progress(&served, id).await;
    served.start_kernel(json!({})).await;
    let body = json!({"kernel_id": id}).to_string();
    served.send("POST", "/api/kernels", body).await.error(403);
    assert_eq!(progress(&served, id).await, dead);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_events_of_a_restart_end_when_the_kernel_is_ready() {
    let served = Served::start().await;
    let (release, held) = mpsc::channel::<()>();
    let (held, starts) = (Mutex::new(held), AtomicUsize::new(0));
    let starting = Arc::new(Notify::new());
    let is_starting = starting.clone();
    let spec = FakeSpec::kernel(move || {
        if starts.fetch_add(1, Ordering::SeqCst) > 0 {
            is_starting.notify_one();
            // Waits until the test has received the first event.
            let _ = held.lock().unwrap().recv();
        }
        Echo
    });
    served.provider.install("held", spec, json!({}));
    let model = served.start_kernel(json!({"name": "held"})).await;
    let id = model["id"].as_str().unwrap();
    let kernel = served.manager.get(id.parse().unwrap()).unwrap();
    let restarting = kernel.clone();
    let restarting = tokio::spawn(async move { restarting.restart().await });
    timeout(DEADLINE, starting.notified()).await.unwrap();

    let mut stream = TcpStream::connect(served.address).await.unwrap();
    let request = format!(
        "GET /api/kernels/{id}/progress HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAccept: text/event-stream\r\n\
         Authorization: token {TOKEN}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    while !text.contains("\"phase\":\"starting\"") {
        let mut bytes = [0; 4096];
        let read = timeout(DEADLINE, stream.read(&mut bytes)).await.unwrap().unwrap();
        assert_ne!(read, 0, "{text}");
        text.push_str(&String::from_utf8_lossy(&bytes[..read]));
    }
    release.send(()).unwrap();
    timeout(DEADLINE, stream.read_to_string(&mut text))
        .await
        .unwrap()
        .unwrap();
    assert!(text.contains("\"phase\":\"ready\""), "{text}");
    timeout(DEADLINE, restarting).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn the_progress_of_a_culled_kernel_has_the_cause() {
    let served = Served::with(
        |_| {},
        |options| {
            options.culling.interval = std::time::Duration::from_millis(10);
            options.culling.idle_timeout = std::time::Duration::from_millis(50);
        },
    )
    .await;
    let model = served.start_kernel(json!({})).await;
    let id = model["id"].as_str().unwrap();
    loop {
        let now = progress(&served, id).await;
        if now["phase"] == "dead" && now["reason"].is_string() {
            assert!(now["reason"].as_str().unwrap().starts_with("culled"), "{now}");
            assert!(is_timestamp(&now["culled_at"]));
            break;
        }
        tokio::task::yield_now().await;
    }
}
