//! The example follows a kernel that another client uses.

use std::process::Stdio;

use jupyter_protocol::client::Client;
use jupyter_protocol::content::{ExecuteReply, ExecuteRequest, KernelInfoReply, ReplyError};
use jupyter_protocol::kernel::{Context, Kernel, Server, async_trait};
use jupyter_protocol::{ConnectionInfo, Key};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::Command;

struct Echo;

#[async_trait]
impl Kernel for Echo {
    fn info(&self) -> KernelInfoReply {
        KernelInfoReply::default()
    }

    async fn execute(&self, request: &ExecuteRequest, context: &Context) -> Result<ExecuteReply, ReplyError> {
        context.stdout(request.code.to_uppercase() + "\n").await;
        Ok(ExecuteReply::default())
    }
}

#[tokio::test]
async fn attach_shows_executions_of_other_clients_until_the_kernel_ends() {
    let dir = tempfile::tempdir().unwrap();
    let info = ConnectionInfo {
        key: Key::random(),
        ..ConnectionInfo::default()
    };
    let server = Server::bind(info, Echo).await.unwrap();
    let info = server.connection_info().clone();
    let server = tokio::spawn(server.run());
    info.write(dir.path().join("kernel-some-id.json")).unwrap();

    let mut attach = Command::new(env!("CARGO_BIN_EXE_attach"))
        .arg("some-id")
        .env("JUPYTER_RUNTIME_DIR", dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(attach.stderr.take().unwrap()).lines();
    assert!(stderr.next_line().await.unwrap().unwrap().starts_with("attached to"));

    let client = Client::connect(&info).await.unwrap();
    client
        .execute(ExecuteRequest::new("hello"))
        .await
        .unwrap()
        .reply()
        .await
        .unwrap();
    client.shutdown(false).await.unwrap();
    server.await.unwrap();
    let mut shown = String::new();
    attach.stdout.take().unwrap().read_to_string(&mut shown).await.unwrap();
    assert_eq!(shown, "In [1]: hello\nHELLO\n");
    assert!(attach.wait().await.unwrap().success());
}
