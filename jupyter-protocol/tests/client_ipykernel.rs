//! The client with a real ipykernel.
#![cfg(feature = "client")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::Duration;

use common::{IpyKernel, execute, until_output};
use jupyter_protocol::client::{Client, ClientError, Execution, ExecutionEvent};
use jupyter_protocol::content::{
    CommInfoRequest, CompleteRequest, Completeness, Content, ExecuteReply, ExecuteRequest, HistoryRequest,
    InspectRequest, IsCompleteRequest, Reply,
};

const DEADLINE: Duration = Duration::from_secs(60);

/// Returns the text that an execution published, and its reply.
async fn run(mut execution: Execution) -> (String, Reply<ExecuteReply>) {
    let (mut text, mut reply) = (String::new(), None);
    while let Some(event) = execution.next().await {
        match event.unwrap() {
            ExecutionEvent::Output(message) => match message.content {
                Content::Stream(stream) => text.push_str(&stream.text),
                Content::ExecuteResult(result) => text.push_str(&result.data.plain_text().unwrap()),
                Content::Error(error) => text.push_str(&error.ename),
                _ => {}
            },
            ExecutionEvent::Input(request) => {
                execution.answer(format!("answer to {}", request.prompt)).await.unwrap();
            }
            ExecutionEvent::Reply(found) => reply = Some(found),
            _ => {}
        }
    }
    (text, reply.expect("the stream ended before the reply"))
}

#[tokio::test]
async fn every_request_gets_its_reply() {
    let Some(kernel) = IpyKernel::start() else { return };
    let client = Client::connect(&kernel.info).await.unwrap();
    assert_eq!(client.kernel_info().await.unwrap().language_info.name, "python");
    let (text, reply) = run(execute(&client, "print('hello'); 1 + 1").await).await;
    assert_eq!(text, "hello\n2");
    assert_eq!(reply.ok().unwrap().execution_count, Some(1));
    let (text, reply) = run(execute(&client, "1 / 0").await).await;
    assert_eq!(text, "ZeroDivisionError");
    assert_eq!(reply.status(), "error");

    let completed = client
        .complete(CompleteRequest {
            code: "pri".to_owned(),
            cursor_pos: 3,
            ..CompleteRequest::default()
        })
        .await
        .unwrap();
    assert!(completed.matches.contains(&"print".to_owned()));
    let inspected = client
        .inspect(InspectRequest {
            code: "print".to_owned(),
            cursor_pos: 5,
            ..InspectRequest::default()
        })
        .await
        .unwrap();
    assert!(inspected.found && inspected.data.plain_text().is_some());
    let complete = IsCompleteRequest {
        code: "if 1:".to_owned(),
        ..IsCompleteRequest::default()
    };
    assert_eq!(
        client.is_complete(complete).await.unwrap().status,
        Completeness::Incomplete
    );
    assert_eq!(client.history(HistoryRequest::tail(1)).await.unwrap().history.len(), 1);
    assert!(
        client
            .comm_info(CommInfoRequest::default())
            .await
            .unwrap()
            .comms
            .is_empty()
    );
    assert!(client.usage().await.unwrap().pid.is_some());
    client.heartbeat(DEADLINE).await.unwrap();

    let subshell = client.create_subshell().await.unwrap();
    assert_eq!(client.list_subshells().await.unwrap(), std::slice::from_ref(&subshell));
    let request = client
        .message(ExecuteRequest::new("print('there')"))
        .on_subshell(&subshell);
    let (text, _) = run(client.execute_message(&request).await.unwrap()).await;
    assert_eq!(text, "there\n");
    client.delete_subshell(subshell).await.unwrap();

    assert!(!client.shutdown(false).await.unwrap().restart);
}

#[tokio::test]
async fn input_requests_are_answered() {
    let Some(kernel) = IpyKernel::start() else { return };
    let client = Client::connect(&kernel.info).await.unwrap();
    let (text, reply) = run(execute(&client, "print(input('name? '))").await).await;
    assert_eq!(text, "answer to name? \n");
    assert_eq!(reply.status(), "ok");
    let mut execution = execute(&client, "1").await;
    assert!(matches!(
        execution.answer("x").await,
        Err(ClientError::NoInputRequested)
    ));
}

#[tokio::test]
async fn running_code_is_interrupted_and_later_executions_run() {
    let Some(kernel) = IpyKernel::start() else { return };
    let client = Client::connect(&kernel.info).await.unwrap();
    // Printed without a line ending, so that it is a single message.
    let mut sleeping = execute(
        &client,
        "import time; print('now', end='', flush=True); time.sleep(600)",
    )
    .await;
    until_output(&mut sleeping).await;
    // Handled while the code runs, because it is on control.
    client.interrupt().await.unwrap();
    let (text, reply) = run(sleeping).await;
    assert_eq!(text, "KeyboardInterrupt");
    assert_eq!(reply.status(), "error");
    assert_eq!(run(execute(&client, "print(3)").await).await.0, "3\n");
}

#[tokio::test]
async fn dropped_requests_do_not_affect_others() {
    let Some(kernel) = IpyKernel::start() else { return };
    let client = Client::connect(&kernel.info).await.unwrap();
    let mut dropped = execute(&client, "print('x', flush=True); [print(n) for n in range(20_000)]").await;
    until_output(&mut dropped).await;
    drop(dropped);
    let timed_out = client.request_within(HistoryRequest::tail(1), Duration::ZERO).await;
    assert!(matches!(timed_out, Err(ClientError::Deadline { .. })));
    assert_eq!(run(execute(&client, "print('next')").await).await.0, "next\n");
}

#[tokio::test]
async fn all_pending_requests_fail_when_the_kernel_dies() {
    let Some(mut kernel) = IpyKernel::start() else { return };
    let client = Client::connect(&kernel.info).await.unwrap();
    let mut iopub = client.iopub();
    let mut sleeping = execute(&client, "print('now', flush=True); import time; time.sleep(600)").await;
    until_output(&mut sleeping).await;
    kernel.process.kill().await.unwrap();
    let execution = async { sleeping.next().await.unwrap() };
    let (execution, info) = tokio::join!(execution, client.kernel_info());
    assert!(matches!(execution, Err(ClientError::Gone { .. })), "{execution:?}");
    assert!(matches!(info, Err(ClientError::Gone { .. })), "{info:?}");
    assert!(sleeping.next().await.is_none());
    while iopub.recv().await.is_ok() {}
    assert!(client.lost().is_some());
    assert!(matches!(
        client.execute(ExecuteRequest::new("1")).await,
        Err(ClientError::Gone { .. })
    ));
}
