//! Executions that ran while no manager recorded them.

use std::sync::Arc;

use jupyter_protocol::{Channel, WireMessage};
use kernel_log::{Entry, MemoryStore, Seq};
use kernel_manager::{AtClose, ExecutionStatus};

use crate::fixture::{Fixture, outputs, receive_all, record, request, soon, start, until};

/// Texts on stderr with this execution as parent.
fn notices(messages: impl IntoIterator<Item = WireMessage>, msg_id: &str) -> Vec<String> {
    let of_execution = messages
        .into_iter()
        .filter(|message| message.parent_ref().unwrap().msg_id == msg_id);
    let contents = of_execution.map(|message| serde_json::from_slice::<serde_json::Value>(message.content()).unwrap());
    contents
        .filter(|content| content["name"] == "stderr")
        .map(|content| content["text"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_execution_that_ran_without_a_recorder_warns_of_missing_output() {
    let fixture = Fixture::new(Arc::new(MemoryStore::new()));
    let manager = fixture.manager();
    let kernel = start(&manager).await;
    let mut msg_ids = Vec::new();
    let client = kernel.attach("s").client();
    for code in ["wait", "print queued"] {
        let message = request(code, "s");
        soon(client.send(Channel::Shell, message.to_wire())).await.unwrap();
        msg_ids.push(message.header.msg_id);
    }
    until(&kernel, &msg_ids[0], |execution| execution.execution_count.is_some()).await;
    // A gap in the log causes a notice in the running cell.
    let in_gap = |first, last| {
        let messages = client.gap_messages(&(Seq(first)..=Seq(last)));
        messages.into_iter().map(|(_, message)| message).collect::<Vec<_>>()
    };
    let gap = notices(in_gap(1, 100), &msg_ids[0]);
    assert!(gap.len() == 1 && gap[0].contains("missing"), "{gap:?}");
    // Adjacent gaps cause one notice.
    assert!(notices(in_gap(101, 110), &msg_ids[0]).is_empty());
    assert!(!notices(in_gap(112, 120), &msg_ids[0]).is_empty());
    assert!(notices(in_gap(1, 100), &msg_ids[1]).is_empty());
    drop(client);

    let recorded = kernel.log().head();
    let (manager, kernel) = fixture.replace_manager(manager, kernel.id()).await;
    // Wait for the new subscription, because output before it would be missing.
    let mut reader = kernel.log().reader(recorded);
    let is_welcome = |entry: Entry| entry.message().header_ref().unwrap().msg_type == "iopub_welcome";
    while !soon(reader.next()).await.unwrap().unwrap().entries().any(is_welcome) {}
    let mut attachment = kernel.attach("s");
    let mut replayed = Vec::new();
    while let Some(messages) = soon(attachment.replay()).await {
        replayed.extend(messages.unwrap().into_iter().map(|(_, message)| message));
    }
    fixture.go.notify_one();
    let execution = until(&kernel, &msg_ids[1], |execution| execution.ended.is_some()).await;
    let received = receive_all(&mut attachment, Seq::START, execution.last).await;
    let shown = replayed
        .into_iter()
        .chain(received.into_iter().map(|(_, _, message)| message));
    let shown: Vec<_> = shown.collect();
    let warnings = notices(shown.clone(), &msg_ids[0]);
    assert!(
        warnings.len() == 1 && warnings[0].contains("may be missing"),
        "{warnings:?}"
    );
    assert!(notices(shown, &msg_ids[1]).is_empty());
    for msg_id in &msg_ids {
        assert_eq!(record(&kernel, msg_id).await.status, ExecutionStatus::Ok);
    }
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_execution_that_ended_without_a_recorder_is_incomplete() {
    let fixture = Fixture::new(Arc::new(MemoryStore::new()));
    let manager = fixture.manager();
    let kernel = start(&manager).await;
    let message = request("wait\nprint missed", "s");
    let msg_id = message.header.msg_id.clone();
    let client = kernel.attach("s").client();
    soon(client.send(Channel::Shell, message.to_wire())).await.unwrap();
    until(&kernel, &msg_id, |execution| {
        execution.status == ExecutionStatus::Running
    })
    .await;
    drop(client);
    let id = kernel.id();
    soon(manager.close(AtClose::LeaveKernels)).await.unwrap();
    drop((manager, kernel));
    fixture.go.notify_one();
    let manager = fixture.manager();
    soon(manager.restore()).await;
    let kernel = manager.get(id).unwrap();
    let execution = until(&kernel, &msg_id, |execution| execution.ended.is_some()).await;
    // The reply may have waited in the kernel's socket.
    assert!(
        matches!(execution.status, ExecutionStatus::Lost | ExecutionStatus::Ok),
        "{execution:?}"
    );
    // The output may have arrived after the reconnect, but the recorder cannot know whether it is complete.
    let folded = kernel.executions().outputs(&execution).await.unwrap();
    assert!(!folded.complete, "{}", outputs(&folded.fold));
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}
