//! Running code, following its execution again later, and closing a manager while handles of its kernels still exist.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, poll};
use jupyter_protocol::Message;
use jupyter_protocol::content::{
    Content, ExecuteReply, ExecuteRequest, KernelInfoReply, LanguageInfo, ReplyError, Stream,
};
use jupyter_protocol::kernel::{Context, Kernel as ServedKernel, async_trait};
use kernel_log::{Cursor, DiskStore, Epoch, Lifecycle, LogOptions, MemoryStore, ReadError, Seq, StoreError};
use kernel_manager::{
    AtClose, ExecuteOptions, Execution, ExecutionError, ExecutionFilter, ExecutionState, ExecutionStatus, FollowError,
    Kernel, Loss, Manager, ManagerOptions, SendError,
};
use kernel_provider::ExitCause;
use kernel_provider::fake::{FakeProvider, FakeSpec};
use tokio::sync::Notify;

/// Far longer than any step of these tests takes.
const DEADLINE: Duration = Duration::from_secs(60);

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what)
        .await
        .expect("not done within the deadline")
}

/// Prints the code; `raise` fails, and `hang` prints and never ends.
struct Script;

#[async_trait]
impl ServedKernel for Script {
    fn info(&self) -> KernelInfoReply {
        KernelInfoReply {
            implementation: "script".to_owned(),
            language_info: LanguageInfo::default(),
            ..KernelInfoReply::default()
        }
    }

    async fn execute(&self, request: &ExecuteRequest, context: &Context) -> Result<ExecuteReply, ReplyError> {
        context.stdout(&request.code).await;
        match &*request.code {
            "raise" => Err(ReplyError {
                ename: "ValueError".to_owned(),
                evalue: "raised".to_owned(),
                ..ReplyError::default()
            }),
            "hang" => std::future::pending().await,
            _ => Ok(ExecuteReply::default()),
        }
    }
}

fn provider() -> FakeProvider {
    let provider = FakeProvider::new();
    provider.install("script", FakeSpec::kernel(|| Script));
    provider
}

/// A kernel that is not restarted when it ends.
async fn kernel() -> (FakeProvider, Manager, Arc<Kernel>) {
    let provider = provider();
    let options = ManagerOptions::default().with_restart_limit(0);
    let manager = Manager::builder().provider(provider.clone()).options(options);
    let manager = manager.open().await.unwrap();
    let kernel = soon(manager.start("script")).await.unwrap();
    (provider, manager, kernel)
}

/// The types of the messages up to the end.
async fn types(mut execution: Execution) -> Vec<String> {
    let mut types = Vec::new();
    while let Some(message) = soon(execution.next()).await {
        types.push(message.unwrap().header.msg_type);
    }
    types
}

fn text(message: &Message) -> Option<&str> {
    match &message.content {
        Content::Stream(Stream { text, .. }) => Some(text),
        _ => None,
    }
}

#[tokio::test]
async fn run_returns_status_outputs_and_error() {
    let (_provider, manager, kernel) = kernel().await;
    let ok = soon(kernel.run("hello")).await.unwrap();
    assert!(ok.is_ok());
    assert_eq!(ok.text(), "hello");
    assert_eq!(ok.execution_count, Some(1));
    assert_eq!(ok.losses, []);
    let failed = soon(kernel.run("raise")).await.unwrap();
    assert_eq!(failed.status, ExecutionStatus::Error);
    assert_eq!(failed.error.unwrap().evalue, "raised");
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
    let refused = soon(kernel.run("late")).await.unwrap_err();
    assert!(matches!(refused, ExecutionError::Send(_)), "{refused}");
}

#[tokio::test]
async fn run_returns_the_output_from_before_the_kernels_death() {
    let (provider, manager, kernel) = kernel().await;
    let running = tokio::spawn({
        let kernel = kernel.clone();
        async move { kernel.run("hang").await.unwrap() }
    });
    let executions = kernel.executions();
    let printed = async {
        loop {
            let page = executions.list(&ExecutionFilter::default(), None, 1).await.unwrap();
            if let Some(execution) = page.executions.first()
                && !executions.outputs(execution).await.unwrap().fold.outputs().is_empty()
            {
                return;
            }
            kernel.log().stored(kernel.log().head().next()).await;
        }
    };
    soon(printed).await;
    provider.end(kernel.id(), ExitCause::OutOfMemory);
    let result = soon(running).await.unwrap();
    assert_eq!(result.status, ExecutionStatus::Died);
    assert_eq!(result.text(), "hang");
    assert_eq!(result.reason.as_deref(), Some("killed because it ran out of memory"));
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

/// Prints `begun` and, once the notification arrives, a megabyte of lines.
struct Flood(Arc<Notify>);

const LINES: usize = 1_000;

#[async_trait]
impl ServedKernel for Flood {
    fn info(&self) -> KernelInfoReply {
        KernelInfoReply::default()
    }

    async fn execute(&self, _request: &ExecuteRequest, context: &Context) -> Result<ExecuteReply, ReplyError> {
        context.stdout("begun\n").await;
        self.0.notified().await;
        for line in 0..LINES {
            context.stdout(format!("{line:1000}\n")).await;
        }
        Ok(ExecuteReply::default())
    }
}

/// A provider of [`Flood`] kernels, and their notification.
fn flooding() -> (FakeProvider, Arc<Notify>) {
    let release = Arc::new(Notify::new());
    let provider = FakeProvider::new();
    provider.install("flood", {
        let release = release.clone();
        FakeSpec::kernel(move || Flood(release.clone()))
    });
    (provider, release)
}

#[tokio::test]
async fn run_continues_after_entries_that_the_log_has_dropped() {
    // In the first case, the reply is in the log when the gap is read. In the second, the reply is missing, too. In the
    // third, the index record is missing as well.
    for (later_runs, trims, expected) in [
        (0, false, ExecutionStatus::Ok),
        (1, false, ExecutionStatus::Ok),
        (1, true, ExecutionStatus::Lost),
    ] {
        let (provider, release) = flooding();
        let mut log_options = LogOptions::default();
        (log_options.memory_bytes, log_options.stored_bytes) = (1_000, 100_000);
        let mut options = ManagerOptions::default();
        if trims {
            options.culling = options.culling.with_interval(Duration::from_millis(5));
        }
        let manager = Manager::builder()
            .provider(provider)
            .log_options(log_options)
            .options(options);
        let manager = manager.open().await.unwrap();
        let kernel = soon(manager.start("flood")).await.unwrap();
        let (executions, log) = (kernel.executions(), kernel.log());
        let mut run = Box::pin(kernel.run("flood"));
        let id = loop {
            assert!(poll!(&mut run).is_pending());
            let page = executions.list(&ExecutionFilter::default(), None, 1).await.unwrap();
            // The run must be polled repeatedly, because it sends its request only after the request is stored.
            if let Some(execution) = page.executions.first()
                && execution.status == ExecutionStatus::Running
            {
                break execution.msg_id().to_owned();
            }
            tokio::task::yield_now().await;
        };
        // From here on, the run is not polled, so its reader falls behind.
        release.notify_one();
        let last = soon(async {
            loop {
                let record = executions.get(&id).await.unwrap().unwrap();
                if record.idle.is_some() && log.earliest() > record.request {
                    return record.last;
                }
                tokio::task::yield_now().await;
            }
        })
        .await;
        for _ in 0..later_runs {
            release.notify_one();
            soon(kernel.run("flood")).await.unwrap();
            soon(async {
                while log.earliest() <= last || trims && executions.get(&id).await.unwrap().is_some() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            })
            .await;
        }
        let result = soon(run).await.unwrap();
        assert_eq!(result.status, expected);
        assert!(matches!(result.losses[..], [Loss::Gap { .. }]), "{:?}", result.losses);
        let has_last_line = result.text().ends_with(&format!("{:1000}\n", LINES - 1));
        assert_eq!(has_last_line, later_runs == 0);
        soon(manager.close(AtClose::EndKernels)).await.unwrap();
    }
}

#[tokio::test]
async fn output_that_may_be_missing_because_it_was_not_recorded_is_a_loss() {
    let (provider, release) = flooding();
    let store = Arc::new(MemoryStore::new());
    let open = async || {
        let manager = Manager::builder().provider(provider.clone()).store(store.clone());
        manager.open().await.unwrap()
    };
    let first = open().await;
    let kernel = soon(first.start("flood")).await.unwrap();
    let mut execution = kernel.execute("flood").await.unwrap();
    let (kernel_id, id) = (kernel.id(), execution.msg_id().to_owned());
    while text(&soon(execution.next()).await.unwrap().unwrap()) != Some("begun\n") {}
    let cursor = execution.cursor();
    drop((execution, kernel));
    soon(first.close(AtClose::LeaveKernels)).await.unwrap();

    let second = open().await;
    let kernel = second.get(kernel_id).unwrap();
    let mut execution = kernel.follow(&id, Some(cursor)).await.unwrap();
    let loss = soon(execution.next()).await.unwrap().unwrap_err();
    assert!(
        matches!(loss, ExecutionError::Loss(Lifecycle::Attached { .. })),
        "{loss}"
    );
    release.notify_one();
    // The execution continues and ends. Messages are lost until the new subscription is active, perhaps including those
    // of the end.
    let rest: Vec<_> = soon(execution.collect()).await;
    let is_expected = |next: &Result<Message, ExecutionError>| matches!(next, Ok(_) | Err(ExecutionError::Lost));
    assert!(rest.iter().all(is_expected), "{rest:?}");
    soon(second.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test]
async fn requests_to_a_shut_down_kernel_and_to_a_dead_one_fail_with_different_errors() {
    let (provider, manager, kernel) = kernel().await;
    soon(kernel.shutdown()).await.unwrap();
    let refused = soon(kernel.execute("late")).await.unwrap_err();
    assert!(matches!(refused, SendError::ShutDown), "{refused}");
    let kernel = soon(manager.start("script")).await.unwrap();
    let mut state = kernel.state();
    provider.end(kernel.id(), ExitCause::Signal(9));
    soon(state.wait_for(|state| *state == ExecutionState::Dead))
        .await
        .unwrap();
    let refused = soon(kernel.execute("late")).await.unwrap_err();
    assert!(matches!(refused, SendError::Dead), "{refused}");
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test]
async fn an_execution_is_a_stream() {
    let (_provider, manager, kernel) = kernel().await;
    let execution = kernel.execute("hello").await.unwrap();
    let messages: Vec<_> = soon(execution.collect::<Vec<_>>()).await;
    let messages: Vec<_> = messages.into_iter().map(Result::unwrap).collect();
    assert_eq!(messages.iter().filter_map(text).collect::<Vec<_>>(), ["hello"]);
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test]
async fn an_execution_is_followed_again_from_any_of_its_messages() {
    let (_provider, manager, kernel) = kernel().await;
    let mut execution = kernel.execute("hello").await.unwrap();
    let id = execution.msg_id().to_owned();
    let mut seen = Vec::new();
    let mut cursors = vec![execution.cursor()];
    while let Some(message) = soon(execution.next()).await {
        seen.push(message.unwrap().header.msg_type);
        cursors.push(execution.cursor());
    }
    assert_eq!(types(kernel.follow(&id, None).await.unwrap()).await, seen);
    for (read, cursor) in cursors.into_iter().enumerate() {
        let rest = kernel.follow(&id, Some(cursor)).await.unwrap();
        assert_eq!(types(rest).await, seen[read..], "after {read} messages");
    }
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test]
async fn only_executions_of_this_log_are_followed() {
    let (_provider, manager, kernel) = kernel().await;
    let unknown = kernel.follow("unknown", None).await.unwrap_err();
    assert!(matches!(unknown, FollowError::NoSuchExecution(id) if id == "unknown"));
    let id = kernel.execute("hello").await.unwrap().msg_id().to_owned();
    let other = Cursor {
        epoch: Epoch::random(),
        seq: Seq::START,
    };
    let refused = kernel.follow(&id, Some(other)).await.unwrap_err();
    assert!(matches!(refused, FollowError::OtherLog(cursor) if cursor == other));
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test]
async fn a_followed_execution_ends_when_its_kernel_dies() {
    let (provider, manager, kernel) = kernel().await;
    let mut execution = kernel.execute("hang").await.unwrap();
    let id = execution.msg_id().to_owned();
    let mut followed = kernel.follow(&id, None).await.unwrap();
    while text(&soon(followed.next()).await.unwrap().unwrap()) != Some("hang") {}
    provider.end(kernel.id(), ExitCause::Signal(9));
    for execution in [&mut execution, &mut followed] {
        let reason = loop {
            match soon(execution.next()).await.expect("the stream ended without an error") {
                Err(ExecutionError::KernelEnded { reason }) => break reason,
                Err(error) => panic!("{error}"),
                Ok(_) => {}
            }
        };
        assert_eq!(reason.as_deref(), Some("killed by signal 9 (SIGKILL)"));
        assert!(soon(execution.next()).await.is_none());
    }
    // Later followers, from any position, get the same error.
    for after in [None, Some(followed.cursor())] {
        let late = kernel.follow(&id, after).await.unwrap();
        let last = soon(late.collect::<Vec<_>>()).await.pop();
        assert!(
            matches!(last, Some(Err(ExecutionError::KernelEnded { .. }))),
            "{last:?}"
        );
    }
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test]
async fn a_dropped_execution_interrupts_its_kernel_only_with_the_option() {
    let (provider, manager, kernel) = kernel().await;
    for (interrupt, expected) in [(false, 0), (true, 1)] {
        let kernel = soon(manager.start("script")).await.unwrap();
        let options = ExecuteOptions::new("hang").with_interrupt_on_drop(interrupt);
        let mut execution = kernel.execute(options).await.unwrap();
        while text(&soon(execution.next()).await.unwrap().unwrap()).is_none() {}
        drop(execution);
        let interrupted = async {
            while provider.interrupts(kernel.id()) < expected {
                tokio::task::yield_now().await;
            }
        };
        soon(interrupted).await;
        assert_eq!(provider.interrupts(kernel.id()), expected);
    }
    // Dropping an execution that has ended interrupts nothing.
    let mut execution = kernel
        .execute(ExecuteOptions::new("done").with_interrupt_on_drop(true))
        .await
        .unwrap();
    while soon(execution.next()).await.is_some() {}
    drop(execution);
    soon(kernel.run("later")).await.unwrap();
    assert_eq!(provider.interrupts(kernel.id()), 0);
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test]
async fn options_of_an_execution_reach_the_log() {
    let (_provider, manager, kernel) = kernel().await;
    let options = ExecuteOptions::new("hello").with_cell_id("a1b2").with_session("mine");
    let mut execution = kernel.execute(options).await.unwrap();
    while soon(execution.next()).await.is_some() {}
    let record = kernel.executions().get(execution.msg_id()).await.unwrap().unwrap();
    assert_eq!(record.cell_id.as_deref(), Some("a1b2"));
    assert_eq!(record.session, "mine");
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_releases_the_store_while_handles_of_kernels_and_logs_exist() {
    let folder = tempfile::tempdir().unwrap();
    let logs = folder.path().join("logs");
    let manager = Manager::builder().provider(provider()).on_disk(&logs);
    let manager = manager.open().await.unwrap();
    let kernel = soon(manager.start("script")).await.unwrap();
    soon(kernel.run("kept")).await.unwrap();
    let (log, head) = (kernel.log().clone(), kernel.log().head());
    soon(manager.close(AtClose::EndKernels)).await.unwrap();

    let reopened = DiskStore::open(&logs).unwrap();
    let stored = kernel_log::LogStore::get(&reopened, kernel.id()).unwrap().unwrap();
    let (_, last) = stored.bounds().unwrap().unwrap();
    assert!(last > head, "{last}");
    // The log in memory can still be used, but its store is closed.
    assert!(log.is_closed());
    let error = log.index_get("unknown").await.unwrap_err();
    assert!(matches!(error, StoreError::Closed { .. }), "{error}");
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test]
async fn readers_end_when_the_manager_is_closed() {
    let (_provider, manager, kernel) = kernel().await;
    let mut attachment = kernel.attach("client");
    soon(manager.close(AtClose::LeaveKernels)).await.unwrap();
    let end = async {
        loop {
            match attachment.next().await {
                Ok(None) => return,
                Ok(Some(_)) | Err(ReadError::Gap { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    soon(end).await;
}

#[tokio::test]
async fn a_closed_manager_starts_nothing() {
    let store = Arc::new(MemoryStore::new());
    let manager = Manager::builder()
        .provider(provider())
        .store(store)
        .open()
        .await
        .unwrap();
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
    assert!(soon(manager.start("script")).await.is_err());
}
