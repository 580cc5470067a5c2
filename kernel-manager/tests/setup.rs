//! The request that makes ipykernel drop no output: which kernels get it, when, and that clients see nothing of it.
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

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), what)
        .await
        .expect("within the deadline")
}

/// Keeps the requests that it executes. One that `hangs` never answers a silent request.
struct Noting {
    implementation: &'static str,
    requests: Arc<Mutex<Vec<ExecuteRequest>>>,
    hangs: bool,
}

#[async_trait]
impl KernelSide for Noting {
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

struct Place {
    provider: FakeProvider,
    manager: Manager,
    requests: Arc<Mutex<Vec<ExecuteRequest>>>,
}

impl Place {
    fn new(implementation: &'static str, kernelmux: &serde_json::Value, hangs: bool) -> Self {
        let requests = Arc::default();
        let seen = Arc::clone(&requests);
        let mut spec = Kernelspec::default();
        spec.metadata.insert("kernelmux".to_owned(), kernelmux.clone());
        let kernel = FakeSpec::kernel(move || Noting {
            implementation,
            requests: Arc::clone(&seen),
            hangs,
        });
        let provider = FakeProvider::new();
        provider.install("noting", kernel.with_kernelspec(spec));
        let logs = Logs::new(Arc::new(MemoryStore::default()), LogOptions::default()).unwrap();
        Self {
            manager: Manager::new(vec![Arc::new(provider.clone())], logs, ManagerOptions::default()),
            provider,
            requests,
        }
    }

    async fn start(&self) -> Arc<Kernel> {
        soon(self.manager.start(StartRequest::new("noting"))).await.unwrap()
    }

    /// The code and whether it was silent, of each request so far.
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
async fn ipykernel_is_asked_before_any_client_after_each_start_and_nothing_shows() {
    let place = Place::new("ipython", &serde_json::json!({}), false);
    let kernel = place.start().await;
    run(&kernel, "1").await;
    assert_eq!(place.requests(), [setup(), run_of("1")]);
    {
        let requests = place.requests.lock().unwrap();
        assert!(!requests[0].store_history && !requests[0].allow_stdin);
        let expressions = serde_json::to_string(&requests[0].user_expressions).unwrap();
        assert!(expressions.contains("XPUB_NODROP"), "{expressions}");
    }
    soon(kernel.restart()).await.unwrap();
    run(&kernel, "2").await;
    assert_eq!(place.requests()[2..], [setup(), run_of("2")]);
    // A client that sends while the kernel is restarted after it has ended by itself.
    let (mut state, mut events) = (kernel.state(), place.manager.events());
    place.provider.end(kernel.id(), ExitCause::Code(1));
    soon(state.wait_for(|state| *state == ExecutionState::Restarting))
        .await
        .unwrap();
    let message = Message::new(ExecuteRequest::new("3"), "client").to_wire();
    soon(kernel.send(&"client".into(), Channel::Shell, message))
        .await
        .unwrap();
    while soon(events.recv()).await.unwrap().kind != KernelEventKind::Restarted {}
    run(&kernel, "4").await;
    assert_eq!(place.requests()[4..], [setup(), run_of("3"), run_of("4")]);

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
    soon(place.manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test]
async fn other_kernels_and_kernelspecs_that_refuse_are_left_alone() {
    let refuses = serde_json::json!({"wait_for_subscriber": false});
    for (implementation, kernelmux) in [("bash_kernel", serde_json::json!({})), ("ipython", refuses)] {
        let place = Place::new(implementation, &kernelmux, false);
        let kernel = place.start().await;
        run(&kernel, "1").await;
        assert_eq!(place.requests(), [run_of("1")], "{implementation}");
        soon(place.manager.close(AtClose::EndKernels)).await.unwrap();
    }
}

#[tokio::test]
async fn a_kernel_that_never_answers_the_request_is_started_all_the_same() {
    let place = Place::new("ipython", &serde_json::json!({}), true);
    let kernel = place.start().await;
    assert!(place.manager.get(kernel.id()).is_some());
    soon(place.manager.close(AtClose::EndKernels)).await.unwrap();
}
