//! Code of a kernel that blocks its thread.
#![cfg(all(feature = "client", feature = "kernel"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::result_large_err)]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::time::Duration;

use common::{CHANNELS, execute, fresh_info};
use futures::future::join_all;
use jupyter_protocol::client::{Client, Execution, ExecutionEvent};
use jupyter_protocol::content::{Content, ExecuteReply, ExecuteRequest, KernelInfoReply, MimeBundle, ReplyError};
use jupyter_protocol::kernel::{BlockingContext, Context, Kernel, Server, Shutdown, async_trait};
use jupyter_protocol::{ConnectionInfo, Transport};
use tempfile::TempDir;
use tokio::task::JoinHandle;

const DEADLINE: Duration = Duration::from_secs(60);

/// Maximum number of threads that run blocking code of one kernel.
const MAX_THREADS: usize = 128;

/// Executes commands, all of them on blocking threads.
struct BlockingKernel {
    /// Receives a message when the command `wait` is to end.
    release: Arc<Mutex<mpsc::Receiver<()>>>,
    /// Reports that the command `interrupted` was interrupted.
    interrupted: mpsc::Sender<()>,
}

#[async_trait]
impl Kernel for BlockingKernel {
    fn info(&self) -> KernelInfoReply {
        KernelInfoReply::default()
    }

    fn cancels_on_interrupt(&self) -> bool {
        false
    }

    async fn execute(&self, request: &ExecuteRequest, context: &Context) -> Result<ExecuteReply, ReplyError> {
        if request.code == "threads" {
            let most = most_threads(context).await;
            context.stdout(most.to_string()).await;
            return Ok(ExecuteReply::default());
        }
        let (release, interrupted) = (self.release.clone(), self.interrupted.clone());
        let code = request.code.clone();
        context.stdout("before\n").await;
        let reply = context
            .blocking(move |context| run_command(&code, &context, &release, &interrupted))
            .await?;
        context.stdout("after\n").await;
        Ok(reply)
    }
}

fn run_command(
    command: &str,
    context: &BlockingContext,
    release: &Mutex<mpsc::Receiver<()>>,
    interrupted: &mpsc::Sender<()>,
) -> Result<ExecuteReply, ReplyError> {
    match command {
        "lines" => (0..5_000).for_each(|number| context.stdout(format!("{number}\n"))),
        "ask" => {
            let answer = context.input("name? ", false)?;
            context.result(MimeBundle::from_text(answer));
        }
        "wait" => release.lock().unwrap().recv().unwrap(),
        "interrupted" => {
            context.stdout("waiting\n");
            context.wait_interrupted();
            assert!(context.is_interrupted());
            interrupted.send(()).unwrap();
            return Err(ReplyError::new("KeyboardInterrupt", "interrupted"));
        }
        _ => panic!("no such command: {command}"),
    }
    Ok(ExecuteReply::default())
}

/// Runs many blocking functions, and returns the maximum number that ran at the same time.
async fn most_threads(context: &Context) -> usize {
    let barrier = Arc::new(Barrier::new(MAX_THREADS));
    let running = Arc::new(AtomicUsize::new(0));
    let counts = join_all((0..2 * MAX_THREADS).map(|_| {
        let (barrier, running) = (barrier.clone(), running.clone());
        context.blocking(move |_| {
            let count = running.fetch_add(1, Ordering::SeqCst) + 1;
            barrier.wait();
            running.fetch_sub(1, Ordering::SeqCst);
            count
        })
    }));
    counts.await.into_iter().max().unwrap()
}

struct RunningKernel {
    info: ConnectionInfo,
    release: mpsc::Sender<()>,
    interrupted: mpsc::Receiver<()>,
    server: JoinHandle<Shutdown>,
    _dir: TempDir,
}

async fn start() -> RunningKernel {
    let dir = TempDir::new().unwrap();
    let mut info = fresh_info(Transport::Ipc, &dir);
    for channel in CHANNELS {
        info.set_port(channel, 0);
    }
    let (release, released) = mpsc::channel();
    let (report, interrupted) = mpsc::channel();
    let kernel = BlockingKernel {
        release: Arc::new(Mutex::new(released)),
        interrupted: report,
    };
    let server = Server::bind(info, kernel).await.unwrap();
    RunningKernel {
        info: server.connection_info().clone(),
        release,
        interrupted,
        server: tokio::spawn(server.run()),
        _dir: dir,
    }
}

/// Returns the text that an execution published, and the name of its error. Answers input requests with `Ada`.
async fn finish(mut execution: Execution) -> (String, Option<String>) {
    let (mut text, mut error) = (String::new(), None);
    while let Some(event) = tokio::time::timeout(DEADLINE, execution.next()).await.unwrap() {
        match event.unwrap() {
            ExecutionEvent::Output(message) => match message.content {
                Content::Stream(stream) => text.push_str(&stream.text),
                Content::ExecuteResult(result) => text.push_str(&result.data.plain_text().unwrap()),
                Content::Error(output) => error = Some(output.ename),
                _ => {}
            },
            ExecutionEvent::Input(_) => execution.answer("Ada").await.unwrap(),
            _ => {}
        }
    }
    (text, error)
}

#[tokio::test]
async fn outputs_of_blocking_code_arrive_between_earlier_and_later_outputs() {
    let kernel = start().await;
    let client = Client::connect(&kernel.info).await.unwrap();
    let (text, error) = finish(execute(&client, "lines").await).await;
    let lines: Vec<_> = text.lines().map(str::to_owned).collect();
    let expected: Vec<_> = std::iter::once("before".to_owned())
        .chain((0..5_000).map(|number| number.to_string()))
        .chain(["after".to_owned()])
        .collect();
    assert_eq!((lines, error), (expected, None));
}

#[tokio::test]
async fn the_kernel_answers_while_blocking_code_runs() {
    let kernel = start().await;
    let client = Client::connect(&kernel.info).await.unwrap();
    let mut waiting = execute(&client, "wait").await;
    common::until_output(&mut waiting).await;
    client.heartbeat(DEADLINE).await.unwrap();
    client.interrupt().await.unwrap();
    kernel.release.send(()).unwrap();
    assert_eq!(finish(waiting).await, ("after\n".to_owned(), None));
}

#[tokio::test]
async fn blocking_code_requests_input() {
    let kernel = start().await;
    let client = Client::connect(&kernel.info).await.unwrap();
    let request = ExecuteRequest {
        allow_stdin: true,
        ..ExecuteRequest::new("ask")
    };
    let (text, error) = finish(client.execute(request).await.unwrap()).await;
    assert_eq!((text.as_str(), error), ("before\nAdaafter\n", None));
}

#[tokio::test]
async fn an_interrupt_wakes_blocking_code() {
    let kernel = start().await;
    let client = Client::connect(&kernel.info).await.unwrap();
    let mut waiting = execute(&client, "interrupted").await;
    common::until_output(&mut waiting).await;
    client.interrupt().await.unwrap();
    assert_eq!(finish(waiting).await.1.unwrap(), "KeyboardInterrupt");
}

#[tokio::test]
async fn a_shutdown_interrupts_blocking_code() {
    let kernel = start().await;
    let client = Client::connect(&kernel.info).await.unwrap();
    let mut waiting = execute(&client, "interrupted").await;
    common::until_output(&mut waiting).await;
    client.shutdown(false).await.unwrap();
    kernel.server.await.unwrap();
    kernel.interrupted.recv_timeout(DEADLINE).unwrap();
}

#[tokio::test]
async fn a_panic_of_blocking_code_is_an_error_reply() {
    let kernel = start().await;
    let client = Client::connect(&kernel.info).await.unwrap();
    let (text, error) = finish(execute(&client, "unknown").await).await;
    assert_eq!((text.as_str(), error.as_deref()), ("before\n", Some("KernelPanic")));
}

#[tokio::test]
async fn the_number_of_blocking_threads_is_limited() {
    let kernel = start().await;
    let client = Client::connect(&kernel.info).await.unwrap();
    assert_eq!(
        finish(execute(&client, "threads").await).await,
        (MAX_THREADS.to_string(), None)
    );
}
