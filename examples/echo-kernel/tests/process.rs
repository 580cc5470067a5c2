//! The echo kernel as a process, started as JupyterLab starts it.

#![allow(clippy::unwrap_used)]

use std::process::Stdio;
use std::time::Duration;

use jupyter_protocol::client::{Client, Execution, ExecutionEvent};
use jupyter_protocol::content::{Content, ExecuteRequest};
use jupyter_protocol::handshake::Registration;
use jupyter_protocol::{ConnectionInfo, Key, Transport};
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};

const DEADLINE: Duration = Duration::from_secs(60);

fn start(dir: &TempDir, info: &ConnectionInfo) -> Child {
    let file = dir.path().join("kernel.json");
    info.write(&file).unwrap();
    Command::new(env!("CARGO_BIN_EXE_echo-kernel"))
        .arg(file)
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// Returns the text that an execution published, and the status of its reply.
async fn run(mut execution: Execution) -> (String, String) {
    let (mut text, mut status) = (String::new(), String::new());
    while let Some(event) = execution.next().await {
        match event.unwrap() {
            ExecutionEvent::Output(message) => match message.content {
                Content::Stream(stream) => text.push_str(&stream.text),
                Content::Error(error) => text.push_str(&error.ename),
                _ => {}
            },
            ExecutionEvent::Reply(reply) => status = reply.status().to_owned(),
            _ => {}
        }
    }
    (text, status)
}

/// Connection info with Unix sockets in the folder.
fn unix_sockets(dir: &TempDir) -> ConnectionInfo {
    ConnectionInfo {
        transport: Transport::Ipc,
        ip: dir.path().join("k").display().to_string(),
        shell_port: 1,
        iopub_port: 2,
        stdin_port: 3,
        control_port: 4,
        hb_port: 5,
        key: Key::random(),
        ..ConnectionInfo::default()
    }
}

/// Starts a kernel from a shell, which runs this script with the kernel's program and connection file as arguments.
fn start_from_shell(dir: &TempDir, info: &ConnectionInfo, script: &str) -> Child {
    let file = dir.path().join("kernel.json");
    info.write(&file).unwrap();
    Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_echo-kernel")])
        .arg(file)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// Waits for the end of all processes that inherited the output of this one.
async fn wait_for_descendants(process: &mut Child) {
    let mut output = process.stdout.take().unwrap();
    let mut printed = Vec::new();
    let ended = tokio::time::timeout(DEADLINE, output.read_to_end(&mut printed));
    ended.await.unwrap().unwrap();
}

async fn until_output(execution: &mut Execution) {
    loop {
        if let ExecutionEvent::Output(message) = execution.next().await.unwrap().unwrap()
            && matches!(message.content, Content::Stream(_))
        {
            return;
        }
    }
}

#[tokio::test]
async fn it_ends_with_the_process_that_jpy_parent_pid_names_even_while_code_runs() {
    let direct = r#"export JPY_PARENT_PID=$$; "$0" "$1" & wait"#;
    let through_another = r#"export JPY_PARENT_PID=$$; sh -c '"$0" "$1"; :' "$0" "$1" & wait"#;
    for script in [direct, through_another] {
        let dir = TempDir::new().unwrap();
        let info = unix_sockets(&dir);
        let mut parent = start_from_shell(&dir, &info, script);
        let client = Client::connect(&info).await.unwrap();
        let mut sleeping = client.execute(ExecuteRequest::new("asleep\n%sleep 600")).await.unwrap();
        until_output(&mut sleeping).await;
        parent.kill().await.unwrap();
        wait_for_descendants(&mut parent).await;
    }
}

#[tokio::test]
async fn it_outlives_its_parent_if_jpy_parent_pid_is_1_or_missing() {
    for script in [
        r#"export JPY_PARENT_PID=1; "$0" "$1" & wait"#,
        r#"unset JPY_PARENT_PID; "$0" "$1" & wait"#,
    ] {
        let dir = TempDir::new().unwrap();
        let info = unix_sockets(&dir);
        let mut parent = start_from_shell(&dir, &info, script);
        let client = Client::connect(&info).await.unwrap();
        parent.kill().await.unwrap();
        let hello = client.execute(ExecuteRequest::new("hello")).await.unwrap();
        assert_eq!(run(hello).await, ("hello\n".to_owned(), "ok".to_owned()));
        client.shutdown(false).await.unwrap();
        wait_for_descendants(&mut parent).await;
    }
}

#[tokio::test]
async fn sigint_interrupts_and_shutdown_ends_the_process() {
    let dir = TempDir::new().unwrap();
    let info = unix_sockets(&dir);
    let mut kernel = start(&dir, &info);
    let client = Client::connect(&info).await.unwrap();
    let mut sleeping = client.execute(ExecuteRequest::new("asleep\n%sleep 600")).await.unwrap();
    until_output(&mut sleeping).await;
    let pid = kernel.id().unwrap().to_string();
    let signalled = Command::new("sh")
        .args(["-c", &format!("kill -INT {pid}")])
        .status()
        .await
        .unwrap();
    assert!(signalled.success());
    assert_eq!(
        run(sleeping).await,
        ("KeyboardInterrupt".to_owned(), "error".to_owned())
    );
    let hello = client.execute(ExecuteRequest::new("hello")).await.unwrap();
    assert_eq!(run(hello).await, ("hello\n".to_owned(), "ok".to_owned()));
    client.shutdown(false).await.unwrap();
    let ended = tokio::time::timeout(DEADLINE, kernel.wait()).await.unwrap().unwrap();
    assert!(ended.success());
}

#[tokio::test]
async fn the_kernel_announces_its_ports_if_requested() {
    let dir = TempDir::new().unwrap();
    let wanted = ConnectionInfo {
        key: Key::random(),
        ..ConnectionInfo::default()
    };
    let registration = Registration::bind(wanted).await.unwrap();
    let _kernel = start(&dir, registration.connection_info());
    let info = registration.accept(DEADLINE).await.unwrap();
    let client = Client::connect(&info).await.unwrap();
    assert_eq!(client.kernel_info().await.unwrap().implementation, "echo-kernel");
}
