//! The setup request that keeps ipykernel from dropping output: which kernels receive it and when, and that clients do
//! not see it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jupyter_protocol::content::{ExecuteReply, ExecuteRequest, KernelInfoReply, ReplyError};
use jupyter_protocol::kernel::{Context, Kernel as KernelSide, async_trait};
use jupyter_protocol::{Channel, Kernelspec, Message};
use kernel_log::{Entry, LogOptions, Logs, MemoryStore, Seq};
use kernel_manager::{
    AtClose, ExecutionFilter, ExecutionState, Kernel, KernelEventKind, Manager, ManagerOptions, StartRequest,
};
use kernel_provider::ExitCause;
use kernel_provider::fake::{FakeProvider, FakeSpec};
use tokio::sync::Notify;

/// Fails the test if the future does not complete within the deadline.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future)
        .await
        .expect("not done within the deadline")
}

/// Records the requests that it executes. If it `hangs`, it never answers a silent request.
struct RecordingKernel {
    implementation: &'static str,
    requests: Arc<Mutex<Vec<ExecuteRequest>>>,
    hangs: bool,
}

#[async_trait]
impl KernelSide for RecordingKernel {
    fn info(&self) -> KernelInfoReply {
        KernelInfoReply {
            implementation: self.implementation.to_owned(),
            ..KernelInfoReply::default()
        }
    }

    async fn execute(&self, request: &ExecuteRequest, context: &Context) -> Result<ExecuteReply, ReplyError> {
        self.requests.lock().unwrap().push(request.clone());
        if self.hangs && request.silent {
            Notify::new().notified().await;
        }
        if !request.silent {
            context.stdout(&request.code).await;
        }
        Ok(ExecuteReply::default())
    }
}

struct Fixture {
    provider: FakeProvider,
    manager: Manager,
    requests: Arc<Mutex<Vec<ExecuteRequest>>>,
}

impl Fixture {
    fn new(implementation: &'static str, kernelmux: &serde_json::Value, hangs: bool) -> Self {
        let requests = Arc::default();
        let seen = Arc::clone(&requests);
        let mut spec = Kernelspec::default();
        spec.metadata.insert("kernelmux".to_owned(), kernelmux.clone());
        let kernel = FakeSpec::kernel(move || RecordingKernel {
            implementation,
            requests: Arc::clone(&seen),
            hangs,
        });
        let provider = FakeProvider::new();
        provider.install("recording", kernel.with_kernelspec(spec));
        let logs = Logs::new(Arc::new(MemoryStore::default()), LogOptions::default()).unwrap();
        Self {
            manager: Manager::new(vec![Arc::new(provider.clone())], logs, ManagerOptions::default()),
            provider,
            requests,
        }
    }

    async fn start(&self) -> Arc<Kernel> {
        soon(self.manager.start(StartRequest::new("recording"))).await.unwrap()
    }

    /// The code of each request so far, and whether the request was silent.
    fn requests(&self) -> Vec<(String, bool)> {
        let requests = self.requests.lock().unwrap();
        requests
            .iter()
            .map(|request| (request.code.clone(), request.silent))
            .collect()
    }
}

async fn run(kernel: &Arc<Kernel>, code: &str) {
    let mut execution = kernel.execute(ExecuteRequest::new(code)).await.unwrap();
    while let Some(message) = soon(execution.next()).await {
        message.expect(code);
    }
}

async fn entries(kernel: &Kernel) -> Vec<Entry> {
    kernel.log().flushed().await;
    let mut reader = kernel.log().reader(Seq(0));
    let mut entries: Vec<Entry> = Vec::new();
    while entries.last().map(Entry::seq) != Some(kernel.log().head()) {
        entries.extend(soon(reader.next()).await.unwrap().unwrap().entries());
    }
    entries
}

fn run_of(code: &str) -> (String, bool) {
    (code.to_owned(), false)
}

fn setup() -> (String, bool) {
    (String::new(), true)
}

#[tokio::test]
async fn ipykernel_gets_the_setup_request_before_any_client_request_and_clients_do_not_see_it() {
    let fixture = Fixture::new("ipython", &serde_json::json!({}), false);
    let kernel = fixture.start().await;
    run(&kernel, "1").await;
    assert_eq!(fixture.requests(), [setup(), run_of("1")]);
    {
        let requests = fixture.requests.lock().unwrap();
        assert!(!requests[0].store_history && !requests[0].allow_stdin);
        let expressions = serde_json::to_string(&requests[0].user_expressions).unwrap();
        assert!(expressions.contains("XPUB_NODROP"), "{expressions}");
    }
    soon(kernel.restart()).await.unwrap();
    run(&kernel, "2").await;
    assert_eq!(fixture.requests()[2..], [setup(), run_of("2")]);
    // A client sends a request during an automatic restart.
    let (mut state, mut events) = (kernel.state(), fixture.manager.events());
    fixture.provider.end(kernel.id(), ExitCause::Code(1));
    soon(state.wait_for(|state| *state == ExecutionState::Restarting))
        .await
        .unwrap();
    let message = Message::new(ExecuteRequest::new("3"), "client").to_wire();
    soon(kernel.send(&"client".into(), Channel::Shell, message))
        .await
        .unwrap();
    while soon(events.recv()).await.unwrap().kind != KernelEventKind::Restarted {}
    run(&kernel, "4").await;
    assert_eq!(fixture.requests()[4..], [setup(), run_of("3"), run_of("4")]);

    for entry in entries(&kernel).await {
        let message = entry.message();
        let header = message.header_ref().unwrap();
        let session = message.parent_ref().map(|parent| parent.session.into_owned());
        assert!(!header.session.contains("setup"), "{message:?}");
        assert!(!session.is_ok_and(|session| session.contains("setup")), "{message:?}");
    }
    let page = kernel
        .executions()
        .list(&ExecutionFilter::default(), None, 10)
        .await
        .unwrap();
    assert_eq!(page.executions.len(), 4);
    soon(fixture.manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test]
async fn other_kernels_and_kernelspecs_that_opt_out_get_no_setup_request() {
    let refuses = serde_json::json!({"wait_for_subscriber": false});
    for (implementation, kernelmux) in [("bash_kernel", serde_json::json!({})), ("ipython", refuses)] {
        let fixture = Fixture::new(implementation, &kernelmux, false);
        let kernel = fixture.start().await;
        run(&kernel, "1").await;
        assert_eq!(fixture.requests(), [run_of("1")], "{implementation}");
        soon(fixture.manager.close(AtClose::EndKernels)).await.unwrap();
    }
}

#[tokio::test]
async fn a_kernel_that_never_answers_the_setup_request_starts() {
    let fixture = Fixture::new("ipython", &serde_json::json!({}), true);
    let kernel = fixture.start().await;
    assert!(fixture.manager.get(kernel.id()).is_some());
    soon(fixture.manager.close(AtClose::EndKernels)).await.unwrap();
}
