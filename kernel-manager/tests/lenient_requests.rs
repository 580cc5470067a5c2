//! Requests with incomplete headers run, and their executions are found. A reused id runs again only with other code.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jupyter_protocol::{Channel, Header, WireMessage};
use kernel_log::{LogOptions, Logs, MemoryStore, Origin};
use kernel_manager::{AtClose, Attachment, ExecutionFilter, Kernel, Manager, ManagerOptions, StartRequest};
use kernel_provider::fake::FakeProvider;

const SESSION: &str = "lenient";

/// Fails the test if the future does not complete within the deadline.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future)
        .await
        .expect("not done within the deadline")
}

struct Fixture {
    manager: Manager,
    kernel: Arc<Kernel>,
    attachment: Attachment,
}

impl Fixture {
    async fn new() -> Self {
        let logs = Logs::new(Arc::new(MemoryStore::new()), LogOptions::default()).unwrap();
        let provider = Arc::new(FakeProvider::new());
        let manager = Manager::new(vec![provider], logs, ManagerOptions::default());
        let kernel = soon(manager.start(StartRequest::new("echo"))).await.unwrap();
        let attachment = kernel.attach(SESSION);
        Self {
            manager,
            kernel,
            attachment,
        }
    }

    async fn send(&self, header: &str, code: &str) {
        let object = || Bytes::from_static(b"{}");
        let content = serde_json::json!({"code": code}).to_string();
        let parts = [header.to_owned().into(), object(), object(), content.into()];
        let message = WireMessage::from_parts(parts, []);
        let client = self.attachment.client();
        soon(client.send(Channel::Shell, message)).await.unwrap();
    }

    /// Reads entries until `last` was printed and each execution has a reply, and returns all printed texts.
    async fn printed_until(&mut self, last: &str) -> Vec<String> {
        let mut printed = Vec::new();
        let mut replies = 0;
        loop {
            let block = soon(self.attachment.next()).await.unwrap().unwrap();
            for entry in block.entries().filter(|entry| entry.origin() == Origin::Kernel) {
                let message = entry.message();
                match &*message.header_ref().unwrap().msg_type {
                    "execute_reply" => replies += 1,
                    "stream" => {
                        let content: serde_json::Value = serde_json::from_slice(message.content()).unwrap();
                        printed.push(content["text"].as_str().unwrap().to_owned());
                    }
                    _ => {}
                }
            }
            if printed.iter().any(|text| text == last) && replies == printed.len() {
                return printed;
            }
        }
    }
}

#[tokio::test]
async fn a_request_with_missing_fields_or_a_numeric_date_runs_and_is_found() {
    let mut fixture = Fixture::new().await;
    for (msg_id, more) in [
        ("bare", ""),
        (
            "numeric",
            r#","date":1764480000.25,"session":"lenient","username":"x","version":"5.3""#,
        ),
    ] {
        let header = format!(r#"{{"msg_id":"{msg_id}","msg_type":"execute_request"{more}}}"#);
        fixture.send(&header, msg_id).await;
        assert_eq!(fixture.printed_until(msg_id).await, [msg_id]);
        fixture.kernel.log().flushed().await;
        let execution = fixture.kernel.executions().get(msg_id).await.unwrap();
        let Header { session, version, .. } = execution.expect("the execution is not found").header;
        assert_eq!(session, SESSION);
        assert!(version.starts_with("5."), "{version}");
    }
    soon(fixture.manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test]
async fn each_request_without_an_id_runs() {
    let mut fixture = Fixture::new().await;
    for _ in 0..3 {
        fixture
            .send(r#"{"msg_id":"","msg_type":"execute_request"}"#, "again")
            .await;
    }
    fixture
        .send(r#"{"msg_id":"last","msg_type":"execute_request"}"#, "last")
        .await;
    assert_eq!(fixture.printed_until("last").await, ["again", "again", "again", "last"]);
    soon(fixture.manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test]
async fn a_reused_id_runs_again_only_with_other_code() {
    let mut fixture = Fixture::new().await;
    let header = r#"{"msg_id":"used","msg_type":"execute_request"}"#;
    for code in ["one", "one", "two", "two"] {
        fixture.send(header, code).await;
    }
    fixture
        .send(r#"{"msg_id":"last","msg_type":"execute_request"}"#, "last")
        .await;
    assert_eq!(fixture.printed_until("last").await, ["one", "two", "last"]);
    fixture.kernel.log().flushed().await;
    let executions = fixture.kernel.executions();
    let all = executions.list(&ExecutionFilter::default(), None, 10).await.unwrap();
    assert_eq!(all.executions.len(), 3);
    assert!(all.executions.iter().all(|execution| execution.ended.is_some()));
    soon(fixture.manager.close(AtClose::EndKernels)).await.unwrap();
}
