//! Retention of a running kernel's log.

use std::sync::Arc;
use std::time::Duration;

use jupyter_protocol::Channel;
use kernel_log::{LogOptions, Logs, MemoryStore, ReadError, Seq};
use kernel_manager::{AtClose, Manager, ManagerOptions};
use serde_json::json;

use crate::fixture::{Fixture, record, request, soon, start};
use crate::follow::follow_request;

#[tokio::test(flavor = "multi_thread")]
async fn the_manager_drops_entries_beyond_the_age_limit() {
    let fixture = Fixture::new(Arc::new(MemoryStore::new()));
    let mut log_options = LogOptions::default();
    log_options.stored_age = Some(Duration::from_millis(50));
    let logs = Logs::new(fixture.store.clone(), log_options).unwrap();
    let mut options = ManagerOptions::default();
    options.culling.interval = Duration::from_millis(10);
    let manager = Manager::new(vec![Arc::new(fixture.provider.clone())], logs, options);
    let kernel = start(&manager).await;
    let log = kernel.log().clone();
    // The newest block is always kept, so there must be a second one. A request is stored before it is sent, in a
    // separate block.
    let message = request("print x", "s").to_wire();
    soon(kernel.send(&"s".into(), Channel::Shell, message)).await.unwrap();
    soon(async {
        while log.earliest() <= Seq(1) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_execution_whose_end_was_dropped_from_the_log_ends_for_its_clients() {
    let fixture = Fixture::new(Arc::new(MemoryStore::new()));
    let mut log_options = LogOptions::default();
    (log_options.memory_bytes, log_options.stored_bytes) = (1_000, 100_000);
    let logs = Logs::new(fixture.store.clone(), log_options).unwrap();
    let manager = Manager::new(
        vec![Arc::new(fixture.provider.clone())],
        logs,
        ManagerOptions::default(),
    );
    let kernel = start(&manager).await;
    let run = async |code: &str, session: &str| {
        let message = request(code, session);
        soon(kernel.send(&session.into(), Channel::Shell, message.to_wire()))
            .await
            .unwrap();
        // Poll, because a reader of the log would get gaps.
        soon(async {
            loop {
                let execution = record(&kernel, &message.header.msg_id).await;
                if execution.ended.is_some() {
                    return execution;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
    };
    let mut slow = kernel.attach("s");
    let mut ended = Vec::new();
    for code in ["print x", "fail"] {
        ended.push(run(code, "s").await);
    }
    while kernel.log().earliest() <= ended[1].last {
        run(&format!("print {}", "y".repeat(20_000)), "other").await;
    }

    let Err(ReadError::Gap { first, last }) = soon(slow.next()).await else {
        panic!("no gap is reported");
    };
    let live = slow.client().gap_messages(&(first..=last));
    for execution in ended {
        let (reply, idle) = (execution.reply.unwrap(), execution.idle.unwrap());
        assert!(first <= reply && idle <= last);
        let new = kernel.attach("new");
        let replay = soon(new.follow(&follow_request(execution.msg_id(), "new"))).await;
        for messages in [&live, &replay] {
            let mut replies = 0;
            let mut last_status = String::new();
            for (channel, message) in messages {
                if message.parent_ref().unwrap().msg_id != execution.msg_id() {
                    continue;
                }
                let content: serde_json::Value = serde_json::from_slice(message.content()).unwrap();
                match &*message.header_ref().unwrap().msg_type {
                    "execute_reply" => {
                        assert_eq!(*channel, Channel::Shell);
                        assert_eq!(content["status"], execution.status.as_str());
                        assert_eq!(content["execution_count"], json!(execution.execution_count));
                        replies += 1;
                    }
                    "status" => last_status = content["execution_state"].as_str().unwrap().to_owned(),
                    _ => {}
                }
            }
            assert_eq!((replies, &*last_status), (1, "idle"), "{}", execution.status);
        }
    }
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}
