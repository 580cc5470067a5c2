//! A real ipykernel, and helpers for clients.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::net::TcpListener;
use std::process::Stdio;

use jupyter_protocol::client::{Client, Execution, ExecutionEvent};
use jupyter_protocol::content::{Content, ExecuteRequest};
use jupyter_protocol::{Channel, ConnectionInfo, Key, Transport};
use tempfile::TempDir;
use tokio::process::{Child, Command};

pub(crate) const CHANNELS: [Channel; 5] = [
    Channel::Shell,
    Channel::Control,
    Channel::Stdin,
    Channel::Iopub,
    Channel::Heartbeat,
];

pub(crate) struct IpyKernel {
    pub(crate) info: ConnectionInfo,
    pub(crate) process: Child,
    _dir: TempDir,
}

pub(crate) fn python() -> String {
    std::env::var("KERNELMUX_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned())
}

/// Returns whether there is a Python with ipykernel. Panics without one if `CI` is set.
pub(crate) fn has_ipykernel() -> bool {
    let probe = std::process::Command::new(python())
        .args(["-c", "import ipykernel"])
        .stderr(Stdio::null())
        .status();
    let found = probe.is_ok_and(|status| status.success());
    assert!(
        found || std::env::var_os("CI").is_none(),
        "{} has no ipykernel: set KERNELMUX_TEST_PYTHON",
        python()
    );
    if !found {
        eprintln!(
            "skipped: {} has no ipykernel; set KERNELMUX_TEST_PYTHON to one that has it",
            python()
        );
    }
    found
}

/// Creates connection info with a random key and Unix sockets in `dir` or TCP ports that were just free.
pub(crate) fn fresh_info(transport: Transport, dir: &TempDir) -> ConnectionInfo {
    let mut info = ConnectionInfo {
        transport,
        key: Key::random(),
        ..ConnectionInfo::default()
    };
    if transport == Transport::Ipc {
        info.ip = dir.path().join("k").display().to_string();
        for (port, channel) in (1..).zip(CHANNELS) {
            info.set_port(channel, port);
        }
        return info;
    }
    let held: Vec<_> = CHANNELS.map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).into();
    for (listener, channel) in held.iter().zip(CHANNELS) {
        info.set_port(channel, listener.local_addr().unwrap().port());
    }
    info
}

impl IpyKernel {
    /// Starts an ipykernel, or returns `None` if it is not installed.
    ///
    /// Uses Unix sockets, because another test could take a port.
    pub(crate) fn start() -> Option<Self> {
        if !has_ipykernel() {
            return None;
        }
        let dir = TempDir::new().unwrap();
        let info = fresh_info(Transport::Ipc, &dir);
        let file = dir.path().join("kernel.json");
        info.write(&file).unwrap();
        let process = Command::new(python())
            .args(["-m", "ipykernel_launcher", "-f"])
            .arg(&file)
            .env("IPYTHONDIR", dir.path())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Some(Self {
            info,
            process,
            _dir: dir,
        })
    }
}

pub(crate) async fn execute(client: &Client, code: &str) -> Execution {
    client.execute(ExecuteRequest::new(code)).await.unwrap()
}

/// Waits until the execution has published stream output.
pub(crate) async fn until_output(execution: &mut Execution) {
    loop {
        if let ExecutionEvent::Output(message) = execution.next().await.unwrap().unwrap()
            && matches!(message.content, Content::Stream(_))
        {
            return;
        }
    }
}
