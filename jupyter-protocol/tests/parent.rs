//! The end of a kernel whose event loop is blocked when its parent ends.
#![cfg(all(feature = "client", feature = "kernel", unix))]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::process::Stdio;
use std::time::Duration;

use common::fresh_info;
use jupyter_protocol::Transport;
use jupyter_protocol::client::Client;
use jupyter_protocol::content::{ExecuteReply, ExecuteRequest, KernelInfoReply, ReplyError};
use jupyter_protocol::kernel::{Context, Kernel, async_trait, serve};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

/// Printed by the kernel before it blocks.
const BLOCKED: &str = "blocked";

const CONNECTION_FILE: &str = "KERNELMUX_TEST_CONNECTION_FILE";

/// Blocks its event loop, which a kernel must not do.
struct Blocking;

#[async_trait]
impl Kernel for Blocking {
    fn info(&self) -> KernelInfoReply {
        KernelInfoReply::default()
    }

    async fn execute(&self, _: &ExecuteRequest, _: &Context) -> Result<ExecuteReply, ReplyError> {
        println!("{BLOCKED}");
        std::thread::sleep(Duration::from_secs(3_600));
        Ok(ExecuteReply::default())
    }
}

async fn within_deadline(line: impl Future<Output = std::io::Result<Option<String>>>) -> Option<String> {
    tokio::time::timeout(Duration::from_secs(120), line)
        .await
        .expect("no line within the deadline")
        .unwrap()
}

#[tokio::test]
#[ignore = "the process of the kernel, which the other test starts"]
async fn blocking_kernel() {
    serve(std::env::var(CONNECTION_FILE).unwrap(), Blocking).await.unwrap();
}

#[tokio::test]
async fn a_kernel_that_blocks_its_event_loop_ends_with_its_parent() {
    let dir = TempDir::new().unwrap();
    let info = fresh_info(Transport::Ipc, &dir);
    let file = dir.path().join("kernel.json");
    info.write(&file).unwrap();
    let mut parent = Command::new("sh")
        .args([
            "-c",
            "export JPY_PARENT_PID=$$; \"$0\" --ignored --nocapture --exact blocking_kernel & wait",
        ])
        .arg(std::env::current_exe().unwrap())
        .env(CONNECTION_FILE, &file)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let client = Client::connect(&info).await.unwrap();
    let _execution = client.execute(ExecuteRequest::new("")).await.unwrap();
    let mut output = BufReader::new(parent.stdout.take().unwrap()).lines();
    while within_deadline(output.next_line())
        .await
        .expect("the output ended before the kernel blocked")
        != BLOCKED
    {}
    parent.kill().await.unwrap();
    // The output ends when the kernel, which inherited it, has ended.
    while within_deadline(output.next_line()).await.is_some() {}
}
