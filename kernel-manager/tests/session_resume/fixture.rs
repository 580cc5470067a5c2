//! A kernel that executes scripts, and managers that replace each other.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use jupyter_protocol::content::{
    DisplayData, ExecuteReply, ExecuteRequest, KernelInfoReply, MimeBundle, ReplyError, Transient, UpdateDisplayData,
};
use jupyter_protocol::kernel::{Context, Kernel as KernelSide, async_trait};
use jupyter_protocol::kernelspec::InterruptMode;
use jupyter_protocol::{Channel, KernelId, Message, WireMessage};
use kernel_log::{LogOptions, LogStore, Logs, Seq};
use kernel_manager::fold::{Fold, FoldLimits};
use kernel_manager::{AtClose, Attachment, ExecutionRecord, Kernel, Manager, ManagerOptions, StartRequest};
use kernel_provider::fake::{FakeProvider, FakeSpec};
use tokio::sync::Notify;

/// Fails the test if the future does not complete within the deadline.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future)
        .await
        .expect("not done within the deadline")
}

/// Executes scripts. A line of a script is `print x`; `bar x`, which prints `x` after a carriage return; `clear`;
/// `clear later`; `show x`, which displays `x`; `change x`, which updates the display; `ask x`, which asks for input;
/// `wait`, which waits for `go`; or `fail`.
struct ScriptKernel {
    runs: Arc<AtomicUsize>,
    go: Arc<Notify>,
}

#[async_trait]
impl KernelSide for ScriptKernel {
    fn info(&self) -> KernelInfoReply {
        KernelInfoReply::default()
    }

    async fn execute(&self, request: &ExecuteRequest, context: &Context) -> Result<ExecuteReply, ReplyError> {
        self.runs.fetch_add(1, Ordering::SeqCst);
        for line in request.code.lines() {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            let data = MimeBundle::from_text(rest);
            let transient = Transient::display_id("d");
            match word {
                "print" => context.stdout(format!("{rest}\n")).await,
                "bar" => context.stdout(format!("\r{rest}")).await,
                "clear" => context.clear_output(rest == "later").await,
                "show" => {
                    let mut display = DisplayData::new(data);
                    display.transient = transient;
                    context.display(display).await;
                }
                "change" => {
                    let update = UpdateDisplayData {
                        data,
                        transient,
                        ..UpdateDisplayData::default()
                    };
                    context.update_display(update).await;
                }
                "wait" => self.go.notified().await,
                "ask" => drop(context.input(rest, false).await),
                _ => return Err(ReplyError::new("Failed", rest)),
            }
        }
        Ok(ExecuteReply::default())
    }
}

/// A provider and a store that outlive the managers that use them.
pub(crate) struct Fixture {
    pub(crate) provider: FakeProvider,
    pub(crate) store: Arc<dyn LogStore>,
    pub(crate) runs: Arc<AtomicUsize>,
    pub(crate) go: Arc<Notify>,
}

impl Fixture {
    pub(crate) fn new(store: Arc<dyn LogStore>) -> Self {
        let provider = FakeProvider::new();
        let (runs, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let (seen, waits) = (runs.clone(), go.clone());
        provider.install(
            "scripts",
            FakeSpec::kernel(move || ScriptKernel {
                runs: seen.clone(),
                go: waits.clone(),
            })
            // An interrupt message does not stop the code of this kernel.
            .with_interrupt_mode(InterruptMode::Message),
        );
        Self {
            provider,
            store,
            runs,
            go,
        }
    }

    pub(crate) fn manager(&self) -> Manager {
        self.manager_that_restarts(0)
    }

    pub(crate) fn manager_that_restarts(&self, limit: u32) -> Manager {
        let logs = Logs::new(self.store.clone(), LogOptions::default()).unwrap();
        let mut options = ManagerOptions::default();
        options.restart_limit = limit;
        Manager::new(vec![Arc::new(self.provider.clone())], logs, options)
    }

    /// Replaces the manager with a new one, and returns it and its handle of the kernel.
    pub(crate) async fn replace_manager(&self, before: Manager, id: KernelId) -> (Manager, Arc<Kernel>) {
        soon(before.close(AtClose::LeaveKernels)).await.unwrap();
        drop(before);
        let manager = self.manager();
        assert_eq!(soon(manager.restore()).await, 1);
        let kernel = manager.get(id).unwrap();
        (manager, kernel)
    }
}

pub(crate) async fn start(manager: &Manager) -> Arc<Kernel> {
    soon(manager.start(StartRequest::new("scripts"))).await.unwrap()
}

pub(crate) fn request(code: &str, session: &str) -> Message {
    Message::new(ExecuteRequest::new(code), session)
}

pub(crate) async fn record(kernel: &Kernel, msg_id: &str) -> ExecutionRecord {
    kernel.log().flushed().await;
    kernel.executions().get(msg_id).await.unwrap().unwrap()
}

/// Waits until the execution's record is as wanted.
pub(crate) async fn until(kernel: &Kernel, msg_id: &str, wanted: impl Fn(&ExecutionRecord) -> bool) -> ExecutionRecord {
    let mut reader = kernel.log().reader(Seq::START);
    soon(async {
        loop {
            let execution = kernel.executions().get(msg_id).await.unwrap();
            if let Some(execution) = execution.filter(|execution| wanted(execution)) {
                // The index may be ahead of the entries that readers can receive.
                kernel.log().flushed().await;
                return execution;
            }
            reader.next().await.unwrap();
        }
    })
    .await
}

pub(crate) fn outputs(fold: &Fold) -> String {
    serde_json::to_string_pretty(&fold.outputs()).unwrap()
}

/// The client's messages among the entries after `from` up to `end`.
pub(crate) async fn receive_all(attachment: &mut Attachment, from: Seq, end: Seq) -> Vec<(Seq, Channel, WireMessage)> {
    let client = attachment.client();
    let mut received = Vec::new();
    let mut position = from;
    while position < end {
        let block = soon(attachment.next()).await.unwrap().unwrap();
        position = block.last();
        for entry in block.entries().filter(|entry| client.delivers(entry)) {
            received.push((entry.seq(), entry.channel(), entry.message()));
        }
    }
    received
}

/// The output of an execution as shown by a client that applies messages as they arrive.
pub(crate) struct Screen {
    msg_id: String,
    pub(crate) fold: Fold,
    pub(crate) replies: usize,
}

impl Screen {
    pub(crate) fn of(msg_id: &str) -> Self {
        Self {
            msg_id: msg_id.to_owned(),
            fold: Fold::new(FoldLimits::default()),
            replies: 0,
        }
    }

    pub(crate) fn show(&mut self, channel: Channel, message: &WireMessage) {
        if message.parent_ref().unwrap().msg_id != self.msg_id {
            return;
        }
        self.replies += usize::from(channel == Channel::Shell);
        self.fold.apply(channel, message);
    }
}
