//! Requests as careless clients write them: run all the same, and found afterwards.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jupyter_protocol::{Channel, Header, WireMessage};
use kernel_log::{LogOptions, Logs, MemoryStore, Origin};
use kernel_manager::{AtClose, Attachment, ExecutionFilter, Kernel, Manager, ManagerOptions, StartRequest};
use kernel_provider::fake::FakeProvider;

const SESSION: &str = "careless";

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), what)
        .await
        .expect("within the deadline")
}

struct Place {
    manager: Manager,
    kernel: Arc<Kernel>,
    attachment: Attachment,
}

impl Place {
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

    /// Reads on until this text was printed and a reply came after that; returns what was printed.
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
async fn a_header_that_lacks_most_or_has_another_date_is_run_and_its_execution_found() {
    let mut place = Place::new().await;
    for (msg_id, more) in [
        ("bare", ""),
        (
            "numeric",
            r#","date":1764480000.25,"session":"careless","username":"x","version":"5.3""#,
        ),
    ] {
        let header = format!(r#"{{"msg_id":"{msg_id}","msg_type":"execute_request"{more}}}"#);
        place.send(&header, msg_id).await;
        assert_eq!(place.printed_until(msg_id).await, [msg_id]);
        place.kernel.log().flushed().await;
        let execution = place.kernel.executions().get(msg_id).await.unwrap();
        let Header { session, version, .. } = execution.expect("it is found").header;
        assert_eq!(session, SESSION);
        assert!(version.starts_with("5."), "{version}");
    }
    soon(place.manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test]
async fn requests_without_an_id_are_run_each_time() {
    let mut place = Place::new().await;
    for _ in 0..3 {
        place
            .send(r#"{"msg_id":"","msg_type":"execute_request"}"#, "again")
            .await;
    }
    place
        .send(r#"{"msg_id":"last","msg_type":"execute_request"}"#, "last")
        .await;
    assert_eq!(place.printed_until("last").await, ["again", "again", "again", "last"]);
    soon(place.manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test]
async fn other_code_under_a_used_id_is_run_and_the_same_code_is_not() {
    let mut place = Place::new().await;
    let header = r#"{"msg_id":"used","msg_type":"execute_request"}"#;
    for code in ["one", "one", "two", "two"] {
        place.send(header, code).await;
    }
    place
        .send(r#"{"msg_id":"last","msg_type":"execute_request"}"#, "last")
        .await;
    assert_eq!(place.printed_until("last").await, ["one", "two", "last"]);
    place.kernel.log().flushed().await;
    let executions = place.kernel.executions();
    let all = executions.list(&ExecutionFilter::default(), None, 10).await.unwrap();
    assert_eq!(all.executions.len(), 3);
    assert!(all.executions.iter().all(|execution| execution.ended.is_some()));
    soon(place.manager.close(AtClose::EndKernels)).await.unwrap();
}
