//! Executions are listed with their status, in pages and through filters.

use std::sync::Arc;

use jupyter_protocol::Channel;
use kernel_log::{DiskStore, MemoryStore};
use kernel_manager::{AtClose, ExecutionFilter, ExecutionStatus, Executions};
use kernel_provider::ExitCause;
use serde_json::Map;
use sha2::{Digest, Sha256};

use crate::fixture::{Fixture, outputs, record, request, soon, start, until};

#[tokio::test(flavor = "multi_thread")]
async fn executions_are_listed_with_their_status_after_the_kernel_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(Arc::new(DiskStore::open(folder.path()).unwrap()));
    let manager = fixture.manager();
    let kernel = start(&manager).await;
    let mut attachment = kernel.attach("s");
    let client = attachment.client();
    let mut messages = Vec::new();
    for (cell, code) in [
        ("a", "print 1\nshow x"),
        ("b", "fail"),
        ("a", "print 2\nchange y"),
        ("c", "wait"),
        ("d", "print 3"),
    ] {
        let metadata = serde_json::from_value(serde_json::json!({"cellId": cell})).unwrap();
        let message = request(code, "s").with_metadata(metadata);
        soon(client.send(Channel::Shell, message.to_wire())).await.unwrap();
        let msg_id = message.header.msg_id.clone();
        if code == "wait" {
            until(&kernel, &msg_id, |execution| {
                execution.status == ExecutionStatus::Running
            })
            .await;
        } else if cell != "d" {
            until(&kernel, &msg_id, |execution| execution.ended.is_some()).await;
        }
        messages.push(msg_id);
    }
    let statuses = async |executions: &Executions| {
        let page = executions.list(&ExecutionFilter::default(), None, 10).await.unwrap();
        assert_eq!(page.next, None);
        let found = page.executions.iter().rev();
        found
            .map(|execution| (execution.msg_id().to_owned(), execution.status.as_str()))
            .collect::<Vec<_>>()
    };
    let with = |statuses: [&'static str; 5]| messages.iter().cloned().zip(statuses).collect::<Vec<_>>();
    kernel.log().flushed().await;
    assert_eq!(
        statuses(&kernel.executions()).await,
        with(["ok", "error", "ok", "running", "queued"])
    );
    // The third execution updated the first one's display.
    let first = record(&kernel, &messages[0]).await;
    let folded = kernel.executions().outputs(&first).await.unwrap();
    assert!(folded.complete);
    assert!(outputs(&folded.fold).contains("\"y\""), "{}", outputs(&folded.fold));

    fixture.provider.end(kernel.id(), ExitCause::Signal(9));
    until(&kernel, &messages[3], |execution| execution.ended.is_some()).await;
    soon(kernel.shutdown()).await.unwrap();
    while soon(attachment.next()).await.is_ok_and(|block| block.is_some()) {}
    drop((attachment, client));
    let id = kernel.id();
    drop(kernel);
    let log = soon(manager.logs().find(id)).await.unwrap().unwrap();
    let executions = Executions::of(log);
    assert_eq!(statuses(&executions).await, with(["ok", "error", "ok", "died", "died"]));
    for (msg_id, reason) in messages.iter().zip([None, None, None, Some(9), Some(9)]) {
        let execution = executions.get(msg_id).await.unwrap().unwrap();
        assert_eq!(
            execution.reason,
            reason.map(|signal| ExitCause::Signal(signal).to_string())
        );
    }

    // Check pages, and then filters by cell, status, time and session.
    let mut paged = Vec::new();
    let mut before = None;
    loop {
        let page = executions.list(&ExecutionFilter::default(), before, 2).await.unwrap();
        assert!(page.executions.len() <= 2);
        paged.extend(page.executions.iter().map(|execution| execution.msg_id().to_owned()));
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    paged.reverse();
    assert_eq!(paged, messages);
    let found = async |filter: ExecutionFilter| {
        let page = executions.list(&filter, None, 10).await.unwrap();
        page.executions
            .iter()
            .rev()
            .map(|execution| messages.iter().position(|id| id == execution.msg_id()).unwrap())
            .collect::<Vec<_>>()
    };
    let filter = ExecutionFilter::default;
    let third = executions.get(&messages[2]).await.unwrap().unwrap().requested;
    assert_eq!(
        found(ExecutionFilter {
            cell_id: Some("a".into()),
            ..filter()
        })
        .await,
        [0, 2]
    );
    assert_eq!(
        found(ExecutionFilter {
            statuses: vec![ExecutionStatus::Died, ExecutionStatus::Error],
            ..filter()
        })
        .await,
        [1, 3, 4]
    );
    assert_eq!(
        found(ExecutionFilter {
            since: Some(third),
            ..filter()
        })
        .await,
        [2, 3, 4]
    );
    assert_eq!(
        found(ExecutionFilter {
            until: Some(third),
            ..filter()
        })
        .await,
        [0, 1]
    );
    assert!(
        found(ExecutionFilter {
            session: Some("t".into()),
            ..filter()
        })
        .await
        .is_empty()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_execution_of_each_cell_is_listed_with_a_hash_of_its_code() {
    let fixture = Fixture::new(Arc::new(MemoryStore::new()));
    let manager = fixture.manager();
    let kernel = start(&manager).await;
    let client = kernel.attach("s").client();
    let mut codes = Vec::new();
    for (number, cell) in ["a", "b", "", "a", "c", "", "b"].into_iter().enumerate() {
        let code = format!("print {number} \u{e9}\"");
        let mut message = request(&code, "s");
        if !cell.is_empty() {
            message = message.with_metadata(Map::from_iter([("cellId".to_owned(), cell.into())]));
        }
        soon(client.send(Channel::Shell, message.to_wire())).await.unwrap();
        until(&kernel, &message.header.msg_id, |execution| execution.ended.is_some()).await;
        codes.push(code);
    }
    let filter = ExecutionFilter {
        latest_of_cells: true,
        ..ExecutionFilter::default()
    };
    let executions = kernel.executions();
    let page = executions.list(&filter, None, 10).await.unwrap();
    assert_eq!(page.next, None);
    let mut listed = Vec::new();
    for execution in &page.executions {
        let code = executions.code(execution).await.unwrap().unwrap();
        let hash: String = Sha256::digest(code.as_bytes())
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(execution.code_hash.as_ref(), Some(&hash));
        listed.push(code);
    }
    let expected: Vec<_> = [6, 5, 4, 3, 2].map(|number: usize| codes[number].clone()).into();
    assert_eq!(listed, expected);

    // Each page is filtered separately: a cell is listed again if its newest execution was on an earlier page.
    let (mut before, mut pages, mut again) = (None, 0, Vec::new());
    loop {
        let page = executions.list(&filter, before, 2).await.unwrap();
        pages += 1;
        for execution in &page.executions {
            again.push(executions.code(execution).await.unwrap().unwrap());
        }
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    assert_eq!(pages, 4);
    assert_eq!(again, codes.iter().rev().cloned().collect::<Vec<_>>());

    // The digest of an execution is stable, and differs from that of another execution.
    let digest = executions.outputs_digest(&page.executions[0]);
    assert_eq!(digest, executions.outputs_digest(&page.executions[0]));
    assert_ne!(digest, executions.outputs_digest(&page.executions[1]));
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}
