//! Messages that clients receive when a kernel starts, dies or is restarted.

use std::sync::Arc;

use jupyter_protocol::Channel;
use kernel_log::{LIFECYCLE, MemoryStore, Origin, Seq};
use kernel_manager::{AtClose, Attachment, ExecutionStatus};
use kernel_provider::ExitCause;

use crate::fixture::{Fixture, record, request, soon, start, until};

/// Collects the messages of these executions and the kernel's states that a plain Jupyter client receives, as short
/// lines, up to the line `end`.
async fn sent_until(attachment: &mut Attachment, msg_ids: &[String], end: &str) -> Vec<String> {
    let client = attachment.client();
    let mut sent = Vec::new();
    while !sent.iter().any(|line| line == end) {
        let block = soon(attachment.next()).await.unwrap().unwrap();
        for entry in block.entries().filter(|entry| client.delivers(entry)) {
            let message = entry.message();
            let msg_type = message.header_ref().unwrap().msg_type.into_owned();
            let parent = message.parent_ref().unwrap().msg_id.into_owned();
            let content: serde_json::Value = serde_json::from_slice(message.content()).unwrap();
            let what = ["execution_state", "ename"]
                .iter()
                .find_map(|key| content[key].as_str());
            let what = what.unwrap_or_default();
            if let Some(index) = msg_ids.iter().position(|id| *id == parent) {
                sent.push(format!("{index} {msg_type} {what}"));
            } else if parent.is_empty() && matches!(what, "restarting" | "dead") {
                sent.push(what.to_owned());
            }
        }
    }
    sent
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_that_dies_or_is_restarted_leaves_no_execution_without_a_reply() {
    for (restart_limit, is_restarted, ename, last) in [
        (0, false, "DeadKernelError", "dead"),
        (1, false, "DeadKernelError", "restarting"),
        (0, true, "KernelRestarted", "0 status idle"),
    ] {
        let fixture = Fixture::new(Arc::new(MemoryStore::new()));
        let manager = fixture.manager_that_restarts(restart_limit);
        let kernel = start(&manager).await;
        let mut attachment = kernel.attach("s");
        let client = attachment.client();
        let mut msg_ids = Vec::new();
        // Before a restart, the kernel may still answer queued requests, so that case has none.
        let codes = if is_restarted {
            &["wait"][..]
        } else {
            &["wait", "print queued"]
        };
        for code in codes {
            let message = request(code, "s");
            soon(client.send(Channel::Shell, message.to_wire())).await.unwrap();
            msg_ids.push(message.header.msg_id);
        }
        until(&kernel, &msg_ids[0], |execution| execution.execution_count.is_some()).await;
        if is_restarted {
            soon(kernel.restart()).await.unwrap();
        } else {
            fixture.provider.end(kernel.id(), ExitCause::Signal(9));
        }
        let sent = sent_until(&mut attachment, &msg_ids, last).await;
        let expected = [
            "0 status busy".to_owned(),
            "0 execute_input ".to_owned(),
            format!("0 error {ename}"),
            format!("0 execute_reply {ename}"),
            "0 status idle".to_owned(),
            format!("1 execute_reply {ename}"),
            "1 status idle".to_owned(),
        ];
        let mut expected = expected.to_vec();
        if is_restarted {
            expected.truncate(5);
        } else {
            expected.push(last.to_owned());
        }
        assert_eq!(sent, expected);
        for msg_id in &msg_ids {
            let execution = record(&kernel, msg_id).await;
            assert_eq!(execution.status, ExecutionStatus::Died);
            assert!(execution.reply.is_some() && execution.idle.is_some() && execution.reason.is_some());
        }
        // A client that attaches to a dead kernel receives the death notice again and nothing else.
        if last == "dead" {
            client.acknowledge(kernel.log().head());
            drop((attachment, client));
            let mut attachment = kernel.attach("s");
            assert_eq!(sent_until(&mut attachment, &msg_ids, last).await, ["dead"]);
        }
        soon(manager.close(AtClose::EndKernels)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_of_a_started_kernel_has_a_lifecycle_parent() {
    let fixture = Fixture::new(Arc::new(MemoryStore::new()));
    let manager = fixture.manager();
    let kernel = start(&manager).await;
    let mut reader = kernel.log().reader(Seq::START);
    let mut statuses = 0;
    while statuses == 0 {
        let block = soon(reader.next()).await.unwrap().unwrap();
        for entry in block.entries().filter(|entry| entry.origin() == Origin::Lifecycle) {
            let message = entry.message();
            if message.header_ref().unwrap().msg_type == "status" {
                let parent = message.parent_ref().unwrap();
                assert!(!parent.msg_id.is_empty());
                // JupyterLab ignores a status whose parent is a kernel_info_request.
                assert_eq!(parent.msg_type, LIFECYCLE);
                statuses += 1;
            }
        }
    }
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}
