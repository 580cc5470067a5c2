//! A kernel that executes commands, for tests of the client and the kernel side together.
#![allow(dead_code, reason = "each test program uses only a part")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use jupyter_protocol::client::{Client, Execution, ExecutionEvent};
use jupyter_protocol::content::{
    CommMsg, CommOpen, Content, ExecuteReply, ExecuteRequest, KernelInfoReply, MimeBundle, ReplyError,
};
use jupyter_protocol::kernel::{Context, Kernel, Server, Shutdown, async_trait};
use jupyter_protocol::{ConnectionInfo, Message, Transport};
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::common::{CHANNELS, fresh_info};

/// Executes commands: `fail`, `flood N`, `ask`, `wait` (until interrupted or released), `panic`. Echoes anything else.
#[derive(Default)]
pub(crate) struct CommandKernel {
    pub(crate) release: Arc<Notify>,
    pub(crate) running: Arc<AtomicUsize>,
}

#[async_trait]
impl Kernel for CommandKernel {
    fn info(&self) -> KernelInfoReply {
        KernelInfoReply {
            implementation: "commands".to_owned(),
            ..KernelInfoReply::default()
        }
    }

    fn has_subshells(&self) -> bool {
        true
    }

    async fn execute(&self, request: &ExecuteRequest, context: &Context) -> Result<ExecuteReply, ReplyError> {
        let (command, rest) = request.code.split_once(' ').unwrap_or((&request.code, ""));
        match command {
            "fail" => return Err(ReplyError::new("Failed", rest)),
            "flood" => {
                for n in 0..rest.parse().unwrap() {
                    context.stdout(format!("{n}\n")).await;
                }
            }
            "ask" => {
                let answer = context.input("name? ", false).await?;
                context.result(MimeBundle::from_text(answer)).await;
            }
            "wait" => {
                self.running.fetch_add(1, Ordering::SeqCst);
                context.stdout("waiting").await;
                self.release.notified().await;
            }
            "panic" => panic!("{rest}"),
            _ => context.stdout(&request.code).await,
        }
        Ok(ExecuteReply::default())
    }

    async fn comm_open(&self, open: CommOpen, buffers: Vec<Bytes>, context: &Context) -> bool {
        let answer = CommMsg {
            comm_id: open.comm_id,
            ..CommMsg::default()
        };
        let answer = Message::new(answer, "kernel").with_buffers(buffers);
        context.publish_message(answer).await;
        open.target_name == "known"
    }
}

pub(crate) struct RunningKernel {
    pub(crate) info: ConnectionInfo,
    pub(crate) release: Arc<Notify>,
    pub(crate) server: JoinHandle<Shutdown>,
    _dir: TempDir,
}

pub(crate) async fn start(transport: Transport) -> RunningKernel {
    let dir = TempDir::new().unwrap();
    let mut info = fresh_info(transport, &dir);
    for channel in CHANNELS {
        info.set_port(channel, 0);
    }
    let kernel = CommandKernel::default();
    let release = kernel.release.clone();
    let server = Server::bind(info, kernel).await.unwrap();
    RunningKernel {
        info: server.connection_info().clone(),
        release,
        server: tokio::spawn(server.run()),
        _dir: dir,
    }
}

pub(crate) async fn connect(kernel: &RunningKernel) -> Client {
    Client::connect(&kernel.info).await.unwrap()
}

/// Returns the text that an execution published, and the status of its reply.
pub(crate) async fn run(mut execution: Execution) -> (String, String) {
    let (mut text, mut status) = (String::new(), String::new());
    while let Some(event) = execution.next().await {
        match event.unwrap() {
            ExecutionEvent::Output(message) => match message.content {
                Content::Stream(stream) => text.push_str(&stream.text),
                Content::ExecuteResult(result) => text.push_str(&result.data.plain_text().unwrap()),
                Content::Error(error) => text.push_str(&error.ename),
                _ => {}
            },
            ExecutionEvent::Input(request) => execution.answer(request.prompt + "Ada").await.unwrap(),
            ExecutionEvent::Reply(reply) => status = reply.status().to_owned(),
            _ => {}
        }
    }
    (text, status)
}

pub(crate) fn ran(text: &str, status: &str) -> (String, String) {
    (text.to_owned(), status.to_owned())
}
