//! The client and the kernel side together, including failures and misbehaving peers.
#![cfg(all(feature = "client", feature = "kernel"))]
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "common/command_kernel.rs"]
mod command_kernel;
mod common;

use std::time::Duration;

use bytes::Bytes;
use command_kernel::{CommandKernel, connect, ran, run, start};
use common::{execute, until_output};
use jupyter_protocol::client::{Client, ClientError, ClientOptions, ExecutionEvent};
use jupyter_protocol::content::{
    CommClose, CommInfoRequest, CommOpen, Content, DebugRequest, ExecuteRequest, HistoryRequest, InterruptRequest,
    KernelInfoRequest, Reply,
};
use jupyter_protocol::handshake::{HandshakeError, Registration};
use jupyter_protocol::kernel::Server;
use jupyter_protocol::{Channel, ConnectionInfo, Key, Transport};

const DEADLINE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_client_session_works_over_tcp_and_ipc() {
    for transport in [Transport::Tcp, Transport::Ipc] {
        let kernel = start(transport).await;
        let client = connect(&kernel).await;
        assert_eq!(client.kernel_info().await.unwrap().protocol_version, "5.4");
        assert_eq!(run(execute(&client, "hello").await).await, ran("hello", "ok"));
        assert_eq!(run(execute(&client, "ask").await).await, ran("name? Ada", "ok"));
        assert_eq!(run(execute(&client, "fail").await).await, ran("Failed", "error"));
        assert_eq!(
            run(execute(&client, "panic oh").await).await,
            ran("KernelPanic", "error")
        );
        assert_eq!(
            client.history(HistoryRequest::tail(2)).await.unwrap().history[1].line,
            4
        );
        assert_eq!(
            client.debug(DebugRequest::default()).await.unwrap().success(),
            Some(false)
        );
        assert!(matches!(client.usage().await, Err(ClientError::NoResult(_))));
        client.heartbeat(DEADLINE).await.unwrap();
        assert!(client.shutdown(true).await.unwrap().restart);
        assert!(kernel.server.await.unwrap().restart);
        if let Some(path) = kernel.info.socket_path(Channel::Shell) {
            assert!(!path.exists());
        }
    }
}

#[tokio::test]
async fn messages_arrive_in_the_order_of_the_protocol() {
    let kernel = start(Transport::Ipc).await;
    let client = connect(&kernel).await;
    let mut iopub = client.iopub();
    run(execute(&client, "hello").await).await;
    let mut seen = Vec::new();
    while seen.last().map(String::as_str) != Some("idle") {
        let message = iopub.recv().await.unwrap();
        // If the welcome was late, the client has sent `kernel_info_request`s, whose status messages also arrive.
        if message
            .parent_header
            .is_none_or(|parent| parent.msg_type != "execute_request")
        {
            continue;
        }
        seen.push(match message.content {
            Content::Status(status) => status.execution_state.to_string(),
            other => other.msg_type().to_owned(),
        });
    }
    assert_eq!(seen, ["busy", "execute_input", "stream", "idle"]);
}

#[tokio::test]
async fn a_flood_arrives_completely() {
    const COUNT: usize = 20_000;
    let kernel = start(Transport::Tcp).await;
    let options = ClientOptions {
        queue: COUNT + 1,
        ..ClientOptions::default()
    };
    let client = Client::connect_with(&kernel.info, options).await.unwrap();
    let (text, status) = run(execute(&client, &format!("flood {COUNT}")).await).await;
    assert_eq!(text.lines().count(), COUNT);
    assert_eq!(status, "ok");
}

#[tokio::test]
async fn a_slow_reader_receives_the_number_of_dropped_outputs_and_the_reply() {
    let kernel = start(Transport::Ipc).await;
    let options = ClientOptions {
        queue: 10,
        ..ClientOptions::default()
    };
    let client = Client::connect_with(&kernel.info, options).await.unwrap();
    let mut flooded = execute(&client, "flood 1000").await;
    let mut iopub = client.iopub();
    // The second execution runs after the flood, so the flood is complete when it ends.
    assert_eq!(run(execute(&client, "next").await).await, ran("next", "ok"));
    let (mut outputs, mut total_missed, mut replied) = (0, 0, false);
    while let Some(event) = flooded.next().await {
        match event {
            Ok(ExecutionEvent::Output(_)) => outputs += 1,
            Ok(ExecutionEvent::Reply(_)) => replied = true,
            Err(ClientError::Lagged { missed }) => total_missed += missed,
            other => panic!("{other:?}"),
        }
    }
    // 1,000 streams and the execute_input.
    assert_eq!((outputs, total_missed, replied), (10, 991, true));
    assert!(matches!(iopub.recv().await, Err(ClientError::Lagged { .. })));
    iopub.recv().await.unwrap();
}

#[tokio::test]
async fn iopub_ends_once_the_client_is_dropped() {
    let kernel = start(Transport::Ipc).await;
    let client = connect(&kernel).await;
    let mut iopub = client.iopub();
    drop(client);
    let error = loop {
        if let Err(error) = iopub.recv().await {
            break error;
        }
    };
    assert!(matches!(error, ClientError::Gone { .. }), "{error}");
}

#[tokio::test]
async fn an_interrupt_ends_running_code_while_shell_is_busy() {
    let kernel = start(Transport::Ipc).await;
    let client = connect(&kernel).await;
    for code in ["wait", "ask"] {
        let mut execution = client.execute(ExecuteRequest::new(code)).await.unwrap();
        match code {
            "wait" => until_output(&mut execution).await,
            _ => while !matches!(execution.next().await, Some(Ok(ExecutionEvent::Input(_)))) {},
        }
        let info = client.message(KernelInfoRequest::default());
        let info = client.request_message(Channel::Control, &info).await.unwrap();
        assert!(matches!(info.content, Content::KernelInfoReply(Reply::Ok(_))));
        client.interrupt().await.unwrap();
        assert_eq!(run(execution).await, ran("KeyboardInterrupt", "error"));
    }
    // An interrupt of an idle kernel does not affect the next execution.
    client.request(InterruptRequest::default()).await.unwrap();
    assert_eq!(run(execute(&client, "next").await).await, ran("next", "ok"));
}

#[tokio::test]
async fn an_error_aborts_queued_executions_but_not_later_ones() {
    let kernel = start(Transport::Ipc).await;
    let client = connect(&kernel).await;
    for (stop_on_error, expected) in [(true, ran("", "aborted")), (false, ran("second", "ok"))] {
        let mut first = execute(&client, "wait").await;
        until_output(&mut first).await;
        let failing = ExecuteRequest {
            stop_on_error,
            ..ExecuteRequest::new("fail")
        };
        let failing = client.execute(failing).await.unwrap();
        let second = execute(&client, "second").await;
        let info = client.kernel_info();
        let release = async {
            // The reply from a subshell to a later request shows that both executions have arrived.
            let subshell = client.create_subshell().await.unwrap();
            let request = client.message(KernelInfoRequest::default()).on_subshell(&subshell);
            client.request_message(Channel::Shell, &request).await.unwrap();
            kernel.release.notify_one();
        };
        let (info, ()) = tokio::join!(info, release);
        info.unwrap();
        assert_eq!(run(first).await, ran("", "ok"));
        assert_eq!(run(failing).await, ran("Failed", "error"));
        assert_eq!(run(second).await, expected);
        assert_eq!(run(execute(&client, "later").await).await, ran("later", "ok"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn requests_sent_in_response_to_an_error_are_not_aborted() {
    let kernel = start(Transport::Ipc).await;
    let client = connect(&kernel).await;
    for _ in 0..200 {
        let mut failing = execute(&client, "fail").await;
        while !matches!(failing.next().await, Some(Ok(ExecutionEvent::Reply(_)))) {}
        assert_eq!(run(execute(&client, "next").await).await, ran("next", "ok"));
    }
}

#[tokio::test]
async fn subshells_run_concurrently_with_the_main_shell() {
    let kernel = start(Transport::Ipc).await;
    let client = connect(&kernel).await;
    let mut waiting = execute(&client, "wait").await;
    until_output(&mut waiting).await;
    let subshell = client.create_subshell().await.unwrap();
    assert_eq!(client.list_subshells().await.unwrap().len(), 1);
    let request = client.message(ExecuteRequest::new("there")).on_subshell(&subshell);
    assert_eq!(
        run(client.execute_message(&request).await.unwrap()).await,
        ran("there", "ok")
    );
    client.delete_subshell(&subshell).await.unwrap();
    assert!(client.delete_subshell(&subshell).await.is_err());
    let request = client.message(ExecuteRequest::new("there")).on_subshell(&subshell);
    assert_eq!(run(client.execute_message(&request).await.unwrap()).await.1, "error");
    kernel.release.notify_one();
    assert_eq!(run(waiting).await.1, "ok");
}

#[tokio::test]
async fn input_is_requested_only_if_allowed_and_only_from_the_client_of_the_request() {
    let kernel = start(Transport::Ipc).await;
    let (client, other) = (connect(&kernel).await, connect(&kernel).await);
    let quiet = ExecuteRequest {
        allow_stdin: false,
        ..ExecuteRequest::new("ask")
    };
    let quiet = client.execute(quiet).await.unwrap();
    assert_eq!(run(quiet).await, ran("StdinNotAvailable", "error"));
    let mut asking = execute(&client, "ask").await;
    while !matches!(asking.next().await, Some(Ok(ExecutionEvent::Input(_)))) {}
    // Answers of other clients are ignored.
    let intruder = other.message(jupyter_protocol::content::InputReply::new("intruder"));
    other.send(Channel::Stdin, &intruder).await.unwrap();
    // Without a parent header, as jupyter_client sends it.
    let answer = client.message(jupyter_protocol::content::InputReply::new("Ada"));
    client.send(Channel::Stdin, &answer).await.unwrap();
    assert_eq!(run(asking).await, ran("Ada", "ok"));
}

#[tokio::test]
async fn comms_are_opened_used_with_buffers_and_closed() {
    let kernel = start(Transport::Ipc).await;
    let client = connect(&kernel).await;
    let mut iopub = client.iopub();
    for (target, open_after) in [("known", 1), ("unknown", 0)] {
        let open = CommOpen {
            comm_id: target.to_owned(),
            target_name: target.to_owned(),
            ..CommOpen::default()
        };
        let buffers = [Bytes::from_static(b"\0\xff"), Bytes::new()];
        let open = client.message(open).with_buffers(buffers.clone());
        client.send(Channel::Shell, &open).await.unwrap();
        let answer = loop {
            let message = iopub.recv().await.unwrap();
            if matches!(message.content, Content::CommMsg(_)) {
                break message;
            }
        };
        assert_eq!(answer.buffers, buffers);
        assert_eq!(answer.parent_id(), open.header.msg_id);
        let info = client.comm_info(CommInfoRequest {
            target_name: Some(target.to_owned()),
            ..CommInfoRequest::default()
        });
        assert_eq!(info.await.unwrap().comms.len(), open_after);
    }
    let close = CommClose {
        comm_id: "known".to_owned(),
        ..CommClose::default()
    };
    client.send(Channel::Shell, &client.message(close)).await.unwrap();
    assert!(
        client
            .comm_info(CommInfoRequest::default())
            .await
            .unwrap()
            .comms
            .is_empty()
    );
}

#[tokio::test]
async fn all_pending_requests_fail_when_the_kernel_ends() {
    let kernel = start(Transport::Tcp).await;
    let client = connect(&kernel).await;
    let mut waiting = execute(&client, "wait").await;
    until_output(&mut waiting).await;
    kernel.server.abort();
    assert!(matches!(waiting.next().await, Some(Err(ClientError::Gone { .. }))));
    assert!(waiting.next().await.is_none());
    assert!(matches!(client.kernel_info().await, Err(ClientError::Gone { .. })));
    assert!(matches!(
        client.execute(ExecuteRequest::new("x")).await,
        Err(ClientError::Gone { .. })
    ));
}

#[tokio::test]
async fn a_kernel_announces_its_ports() {
    let info = ConnectionInfo {
        key: Key::random(),
        ..ConnectionInfo::default()
    };
    let registration = Registration::bind(info.clone()).await.unwrap();
    let file = registration.connection_info().clone();
    // An announcement signed with another key is ignored.
    let stranger = ConnectionInfo {
        key: Key::random(),
        ..file.clone()
    };
    let port = file.registration_port.unwrap();
    let refused = jupyter_protocol::handshake::announce(&stranger, port, Duration::from_millis(50));
    let bound = Server::bind(file, CommandKernel::default());
    let (info, refused, server) = tokio::join!(registration.accept(DEADLINE), refused, bound);
    assert!(matches!(
        refused,
        Err(HandshakeError::Deadline { .. } | HandshakeError::Socket { .. })
    ));
    let (info, server) = (info.unwrap(), server.unwrap());
    assert_eq!(&info, server.connection_info());
    let server = tokio::spawn(server.run());
    let client = Client::connect(&info).await.unwrap();
    assert_eq!(run(execute(&client, "hello").await).await, ran("hello", "ok"));
    client.shutdown(false).await.unwrap();
    server.await.unwrap();
}
