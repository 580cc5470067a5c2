//! Each request runs once: in the kernel's current process, or in the next one if it arrives during a restart.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use jupyter_protocol::Channel;
use jupyter_protocol::content::ExecuteRequest;
use kernel_log::{Entry, MemoryStore};
use kernel_manager::{AtClose, ExecutionRecord, ExecutionStatus, Kernel};
use kernel_provider::ExitCause;

use crate::fixture::{Fixture, record, request, soon, start, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_runs_once() {
    let fixture = Fixture::new(Arc::new(MemoryStore::new()));
    let manager = fixture.manager();
    let kernel = start(&manager).await;
    let message = request("print once", "s");
    let send = async |kernel: &Arc<Kernel>, session: &str| {
        let client = kernel.attach(session).client();
        soon(client.send(Channel::Shell, message.to_wire())).await.unwrap();
    };
    for session in ["s", "s", "other"] {
        send(&kernel, session).await;
    }
    let msg_id = message.header.msg_id.clone();
    until(&kernel, &msg_id, |execution| execution.ended.is_some()).await;
    send(&kernel, "s").await;

    let (manager, kernel) = fixture.replace_manager(manager, kernel.id()).await;
    send(&kernel, "s").await;
    let after = soon(kernel.execute(ExecuteRequest::new("print after"))).await.unwrap();
    until(&kernel, after.msg_id(), |execution| execution.ended.is_some()).await;
    assert_eq!(
        fixture.runs.load(Ordering::SeqCst),
        2,
        "the two requests did not run once each"
    );
    assert_eq!(record(&kernel, &msg_id).await.session, "s");
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_with_an_oversized_header_runs_without_a_record() {
    let fixture = Fixture::new(Arc::new(MemoryStore::new()));
    let manager = fixture.manager();
    let kernel = start(&manager).await;
    let mut attachment = kernel.attach("s");
    let mut message = request("print once", "s");
    message.header.extra.insert("x".into(), "x".repeat(1 << 20).into());
    let msg_id = message.header.msg_id.clone();
    let sent = attachment.client();
    soon(sent.send(Channel::Shell, message.to_wire())).await.unwrap();
    let answered = async {
        while let Some(block) = attachment.next().await.unwrap() {
            let is_reply = |entry: Entry| {
                entry.channel() == Channel::Shell && entry.message().parent_ref().unwrap().msg_id == msg_id
            };
            if block.entries().any(is_reply) {
                return;
            }
        }
    };
    soon(answered).await;
    assert_eq!(fixture.runs.load(Ordering::SeqCst), 1);
    assert!(kernel.executions().get(&msg_id).await.unwrap().is_none());
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_sent_during_a_restart_run_in_the_next_process() {
    const DEATHS: u32 = 10;
    let fixture = Fixture::new(Arc::new(MemoryStore::new()));
    let manager = fixture.manager_that_restarts(DEATHS);
    let kernel = start(&manager).await;
    let client = kernel.attach("s").client();
    let ask = async || {
        let message = request("wait", "s");
        soon(client.send(Channel::Shell, message.to_wire())).await.unwrap();
        message.header.msg_id
    };
    let has_begun = |execution: &ExecutionRecord| execution.status != ExecutionStatus::Queued;
    for _ in 0..DEATHS {
        let ended = ask().await;
        until(&kernel, &ended, has_begun).await;
        fixture.provider.end(kernel.id(), ExitCause::Signal(9));
        // The life-cycle entry of the restart ends the execution.
        let execution = until(&kernel, &ended, |execution| execution.ended.is_some()).await;
        assert_eq!(execution.status, ExecutionStatus::Died);
        let asked = ask().await;
        let execution = until(&kernel, &asked, has_begun).await;
        assert_eq!(execution.status, ExecutionStatus::Running, "{execution:?}");
        fixture.go.notify_one();
        let execution = until(&kernel, &asked, |execution| execution.ended.is_some()).await;
        assert_eq!(execution.status, ExecutionStatus::Ok, "{execution:?}");
    }
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}
