//! What clients find after a reconnect: repeated requests ran once, executions are listed with their status, and a
//! client that only knows its session shows what it would have shown without the interruption.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use jupyter_protocol::content::{
    DisplayData, ExecuteReply, ExecuteRequest, InputReply, KernelInfoReply, MimeBundle, ReplyError, Transient,
    UpdateDisplayData,
};
use jupyter_protocol::kernel::{Context, Kernel as KernelSide, async_trait};
use jupyter_protocol::kernelspec::InterruptMode;
use jupyter_protocol::{Channel, KernelId, Message, WireMessage};
use kernel_log::{Entry, FjallStore, LIFECYCLE, LogOptions, LogStore, Logs, MemoryStore, Origin, Seq};
use kernel_manager::fold::{Fold, FoldLimits};
use kernel_manager::{
    AtClose, Attachment, ExecutionFilter, ExecutionRecord, ExecutionStatus, Executions, Kernel, KernelEventKind,
    Manager, ManagerOptions, StartRequest,
};
use kernel_provider::fake::{FakeProvider, FakeSpec};
use kernel_provider::{
    AttachError, ExitCause, KernelHandle, KernelProvider, KernelRecord, LaunchError, LaunchRequest, Progress,
    ProviderError, Selector, Specs,
};
use tokio::sync::{Notify, watch};

/// Fails the test if the future does not complete within the deadline.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future)
        .await
        .expect("not done within the deadline")
}

/// Executes scripts: lines of `print x`, `bar x` (after a carriage return), `clear`, `clear later`, `show x`,
/// `change x`, `ask x`, `fail` and `wait` (for `go`).
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
struct Fixture {
    provider: FakeProvider,
    store: Arc<dyn LogStore>,
    runs: Arc<AtomicUsize>,
    go: Arc<Notify>,
}

impl Fixture {
    fn new(store: Arc<dyn LogStore>) -> Self {
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

    fn manager(&self) -> Manager {
        self.manager_that_restarts(0)
    }

    fn manager_that_restarts(&self, limit: u32) -> Manager {
        let logs = Logs::new(self.store.clone(), LogOptions::default()).unwrap();
        let mut options = ManagerOptions::default();
        options.restart_limit = limit;
        Manager::new(vec![Arc::new(self.provider.clone())], logs, options)
    }

    /// Replaces the manager with a new one, and returns it and its handle of the kernel.
    async fn replace_manager(&self, before: Manager, id: KernelId) -> (Manager, Arc<Kernel>) {
        soon(before.close(AtClose::LeaveKernels)).await.unwrap();
        drop(before);
        let manager = self.manager();
        assert_eq!(soon(manager.restore()).await, 1);
        let kernel = manager.get(id).unwrap();
        (manager, kernel)
    }
}

async fn start(manager: &Manager) -> Arc<Kernel> {
    soon(manager.start(StartRequest::new("scripts"))).await.unwrap()
}

fn request(code: &str, session: &str) -> Message {
    Message::new(ExecuteRequest::new(code), session)
}

async fn record(kernel: &Kernel, msg_id: &str) -> ExecutionRecord {
    kernel.log().flushed().await;
    kernel.executions().get(msg_id).await.unwrap().unwrap()
}

/// Waits until the execution's record is as wanted.
async fn until(kernel: &Kernel, msg_id: &str, wanted: impl Fn(&ExecutionRecord) -> bool) -> ExecutionRecord {
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

fn outputs(fold: &Fold) -> String {
    serde_json::to_string_pretty(&fold.outputs()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_runs_once() {
    let fixture = Fixture::new(Arc::new(MemoryStore::new()));
    let manager = fixture.manager();
    let kernel = start(&manager).await;
    let message = request("print once", "s");
    let send = async |kernel: &Arc<Kernel>, session: &str| {
        let client = kernel.attach(session).client();
        soon(client.send(Channel::Shell, message.to_wire())).await.unwrap();
    };
    for session in ["s", "s", "other"] {
        send(&kernel, session).await;
    }
    let msg_id = message.header.msg_id.clone();
    until(&kernel, &msg_id, |execution| execution.ended.is_some()).await;
    send(&kernel, "s").await;

    let (manager, kernel) = fixture.replace_manager(manager, kernel.id()).await;
    send(&kernel, "s").await;
    let after = soon(kernel.execute(ExecuteRequest::new("print after"))).await.unwrap();
    until(&kernel, after.msg_id(), |execution| execution.ended.is_some()).await;
    assert_eq!(
        fixture.runs.load(Ordering::SeqCst),
        2,
        "the two requests did not run once each"
    );
    assert_eq!(record(&kernel, &msg_id).await.session, "s");
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn code_with_an_oversized_header_runs_without_a_record() {
    let fixture = Fixture::new(Arc::new(MemoryStore::new()));
    let manager = fixture.manager();
    let kernel = start(&manager).await;
    let mut attachment = kernel.attach("s");
    let mut message = request("print once", "s");
    message.header.extra.insert("x".into(), "x".repeat(1 << 20).into());
    let msg_id = message.header.msg_id.clone();
    let sent = attachment.client();
    soon(sent.send(Channel::Shell, message.to_wire())).await.unwrap();
    let answered = async {
        while let Some(block) = attachment.next().await.unwrap() {
            let is_reply = |entry: Entry| {
                entry.channel() == Channel::Shell && entry.message().parent_ref().unwrap().msg_id == msg_id
            };
            if block.entries().any(is_reply) {
                return;
            }
        }
    };
    soon(answered).await;
    assert_eq!(fixture.runs.load(Ordering::SeqCst), 1);
    assert!(kernel.executions().get(&msg_id).await.unwrap().is_none());
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn executions_are_listed_with_their_status_after_the_kernel_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    let fixture = Fixture::new(Arc::new(FjallStore::open(folder.path()).unwrap()));
    let manager = fixture.manager();
    let kernel = start(&manager).await;
    let mut attachment = kernel.attach("s");
    let client = attachment.client();
    let mut messages = Vec::new();
    for (cell, code) in [
        ("a", "print 1\nshow x"),
        ("b", "fail"),
        ("a", "print 2\nchange y"),
        ("c", "wait"),
        ("d", "print 3"),
    ] {
        let metadata = serde_json::from_value(serde_json::json!({"cellId": cell})).unwrap();
        let message = request(code, "s").with_metadata(metadata);
        soon(client.send(Channel::Shell, message.to_wire())).await.unwrap();
        let msg_id = message.header.msg_id.clone();
        if code == "wait" {
            until(&kernel, &msg_id, |execution| {
                execution.status == ExecutionStatus::Running
            })
            .await;
        } else if cell != "d" {
            until(&kernel, &msg_id, |execution| execution.ended.is_some()).await;
        }
        messages.push(msg_id);
    }
    let statuses = async |executions: &Executions| {
        let page = executions.list(&ExecutionFilter::default(), None, 10).await.unwrap();
        assert_eq!(page.next, None);
        let found = page.executions.iter().rev();
        found
            .map(|execution| (execution.msg_id().to_owned(), execution.status.as_str()))
            .collect::<Vec<_>>()
    };
    let with = |statuses: [&'static str; 5]| messages.iter().cloned().zip(statuses).collect::<Vec<_>>();
    kernel.log().flushed().await;
    assert_eq!(
        statuses(&kernel.executions()).await,
        with(["ok", "error", "ok", "running", "queued"])
    );
    // The third execution updated the first one's display.
    let first = record(&kernel, &messages[0]).await;
    let folded = kernel.executions().outputs(&first).await.unwrap();
    assert!(folded.complete);
    assert!(outputs(&folded.fold).contains("\"y\""), "{}", outputs(&folded.fold));

    fixture.provider.end(kernel.id(), ExitCause::Signal(9));
    until(&kernel, &messages[3], |execution| execution.ended.is_some()).await;
    soon(kernel.shutdown()).await.unwrap();
    while soon(attachment.next()).await.is_ok_and(|block| block.is_some()) {}
    drop((attachment, client));
    let id = kernel.id();
    drop(kernel);
    let log = soon(manager.logs().find(id)).await.unwrap().unwrap();
    let executions = Executions::of(log);
    assert_eq!(statuses(&executions).await, with(["ok", "error", "ok", "died", "died"]));
    for (msg_id, reason) in messages.iter().zip([None, None, None, Some(9), Some(9)]) {
        let execution = executions.get(msg_id).await.unwrap().unwrap();
        assert_eq!(
            execution.reason,
            reason.map(|signal| ExitCause::Signal(signal).to_string())
        );
    }

    // Pages, then filters by cell, status, time and session.
    let mut paged = Vec::new();
    let mut before = None;
    loop {
        let page = executions.list(&ExecutionFilter::default(), before, 2).await.unwrap();
        assert!(page.executions.len() <= 2);
        paged.extend(page.executions.iter().map(|execution| execution.msg_id().to_owned()));
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    paged.reverse();
    assert_eq!(paged, messages);
    let found = async |filter: ExecutionFilter| {
        let page = executions.list(&filter, None, 10).await.unwrap();
        page.executions
            .iter()
            .rev()
            .map(|execution| messages.iter().position(|id| id == execution.msg_id()).unwrap())
            .collect::<Vec<_>>()
    };
    let filter = ExecutionFilter::default;
    let third = executions.get(&messages[2]).await.unwrap().unwrap().requested;
    assert_eq!(
        found(ExecutionFilter {
            cell_id: Some("a".into()),
            ..filter()
        })
        .await,
        [0, 2]
    );
    assert_eq!(
        found(ExecutionFilter {
            statuses: vec![ExecutionStatus::Died, ExecutionStatus::Error],
            ..filter()
        })
        .await,
        [1, 3, 4]
    );
    assert_eq!(
        found(ExecutionFilter {
            since: Some(third),
            ..filter()
        })
        .await,
        [2, 3, 4]
    );
    assert_eq!(
        found(ExecutionFilter {
            until: Some(third),
            ..filter()
        })
        .await,
        [0, 1]
    );
    assert!(
        found(ExecutionFilter {
            session: Some("t".into()),
            ..filter()
        })
        .await
        .is_empty()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_sent_during_a_restart_run_in_the_next_process() {
    const DEATHS: u32 = 10;
    let fixture = Fixture::new(Arc::new(MemoryStore::new()));
    let manager = fixture.manager_that_restarts(DEATHS);
    let kernel = start(&manager).await;
    let client = kernel.attach("s").client();
    let ask = async || {
        let message = request("wait", "s");
        soon(client.send(Channel::Shell, message.to_wire())).await.unwrap();
        message.header.msg_id
    };
    let has_begun = |execution: &ExecutionRecord| execution.status != ExecutionStatus::Queued;
    for _ in 0..DEATHS {
        let ended = ask().await;
        until(&kernel, &ended, has_begun).await;
        fixture.provider.end(kernel.id(), ExitCause::Signal(9));
        // Ended by the lifecycle entry of the restart.
        let execution = until(&kernel, &ended, |execution| execution.ended.is_some()).await;
        assert_eq!(execution.status, ExecutionStatus::Died);
        let asked = ask().await;
        let execution = until(&kernel, &asked, has_begun).await;
        assert_eq!(execution.status, ExecutionStatus::Running, "{execution:?}");
        fixture.go.notify_one();
        let execution = until(&kernel, &asked, |execution| execution.ended.is_some()).await;
        assert_eq!(execution.status, ExecutionStatus::Ok, "{execution:?}");
    }
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

/// Collects the messages of these executions and the kernel's states that a plain Jupyter client receives, as short
/// lines, up to the line `end`.
async fn sent_until(attachment: &mut Attachment, msg_ids: &[String], end: &str) -> Vec<String> {
    let client = attachment.client();
    let mut sent = Vec::new();
    while !sent.iter().any(|line| line == end) {
        let block = soon(attachment.next()).await.unwrap().unwrap();
        for entry in block.entries().filter(|entry| client.delivers(entry)) {
            let message = entry.message();
            let msg_type = message.header_ref().unwrap().msg_type.into_owned();
            let parent = message.parent_ref().unwrap().msg_id.into_owned();
            let content: serde_json::Value = serde_json::from_slice(message.content()).unwrap();
            let what = ["execution_state", "ename"]
                .iter()
                .find_map(|key| content[key].as_str());
            let what = what.unwrap_or_default();
            if let Some(index) = msg_ids.iter().position(|id| *id == parent) {
                sent.push(format!("{index} {msg_type} {what}"));
            } else if parent.is_empty() && matches!(what, "restarting" | "dead") {
                sent.push(what.to_owned());
            }
        }
    }
    sent
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_that_dies_or_is_restarted_leaves_no_execution_without_a_reply() {
    for (restart_limit, is_restarted, ename, last) in [
        (0, false, "DeadKernelError", "dead"),
        (1, false, "DeadKernelError", "restarting"),
        (0, true, "KernelRestarted", "0 status idle"),
    ] {
        let fixture = Fixture::new(Arc::new(MemoryStore::new()));
        let manager = fixture.manager_that_restarts(restart_limit);
        let kernel = start(&manager).await;
        let mut attachment = kernel.attach("s");
        let client = attachment.client();
        let mut msg_ids = Vec::new();
        // During a shutdown, the kernel may still answer queued requests, so there are none.
        let codes = if is_restarted {
            &["wait"][..]
        } else {
            &["wait", "print queued"]
        };
        for code in codes {
            let message = request(code, "s");
            soon(client.send(Channel::Shell, message.to_wire())).await.unwrap();
            msg_ids.push(message.header.msg_id);
        }
        until(&kernel, &msg_ids[0], |execution| execution.execution_count.is_some()).await;
        if is_restarted {
            soon(kernel.restart()).await.unwrap();
        } else {
            fixture.provider.end(kernel.id(), ExitCause::Signal(9));
        }
        let sent = sent_until(&mut attachment, &msg_ids, last).await;
        let expected = [
            "0 status busy".to_owned(),
            "0 execute_input ".to_owned(),
            format!("0 error {ename}"),
            format!("0 execute_reply {ename}"),
            "0 status idle".to_owned(),
            format!("1 execute_reply {ename}"),
            "1 status idle".to_owned(),
        ];
        let mut expected = expected.to_vec();
        if is_restarted {
            expected.truncate(5);
        } else {
            expected.push(last.to_owned());
        }
        assert_eq!(sent, expected);
        for msg_id in &msg_ids {
            let execution = record(&kernel, msg_id).await;
            assert_eq!(execution.status, ExecutionStatus::Died);
            assert!(execution.reply.is_some() && execution.idle.is_some() && execution.reason.is_some());
        }
        // A client that attaches to a dead kernel receives the death notice again and nothing else.
        if last == "dead" {
            client.acknowledge(kernel.log().head());
            drop((attachment, client));
            let mut attachment = kernel.attach("s");
            assert_eq!(sent_until(&mut attachment, &msg_ids, last).await, ["dead"]);
        }
        soon(manager.close(AtClose::EndKernels)).await.unwrap();
    }
}

/// Texts on stderr with this execution as parent.
fn notices(messages: impl IntoIterator<Item = WireMessage>, msg_id: &str) -> Vec<String> {
    let of_execution = messages
        .into_iter()
        .filter(|message| message.parent_ref().unwrap().msg_id == msg_id);
    let contents = of_execution.map(|message| serde_json::from_slice::<serde_json::Value>(message.content()).unwrap());
    contents
        .filter(|content| content["name"] == "stderr")
        .map(|content| content["text"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_execution_that_ran_without_a_recorder_warns_of_missing_output() {
    let fixture = Fixture::new(Arc::new(MemoryStore::new()));
    let manager = fixture.manager();
    let kernel = start(&manager).await;
    let mut msg_ids = Vec::new();
    let client = kernel.attach("s").client();
    for code in ["wait", "print queued"] {
        let message = request(code, "s");
        soon(client.send(Channel::Shell, message.to_wire())).await.unwrap();
        msg_ids.push(message.header.msg_id);
    }
    until(&kernel, &msg_ids[0], |execution| execution.execution_count.is_some()).await;
    // A client learns of a gap in the log through a notice in the running cell.
    let gap = notices(client.gap_notices(Seq(1)), &msg_ids[0]);
    assert!(gap.len() == 1 && gap[0].contains("missing"), "{gap:?}");
    assert!(notices(client.gap_notices(Seq(1)), &msg_ids[1]).is_empty());
    drop(client);

    let recorded = kernel.log().head();
    let (manager, kernel) = fixture.replace_manager(manager, kernel.id()).await;
    // Output from before the new subscription would really be missing.
    let mut reader = kernel.log().reader(recorded);
    let is_welcome = |entry: Entry| entry.message().header_ref().unwrap().msg_type == "iopub_welcome";
    while !soon(reader.next()).await.unwrap().unwrap().entries().any(is_welcome) {}
    let mut attachment = kernel.attach("s");
    let mut replayed = Vec::new();
    while let Some(messages) = soon(attachment.replay()).await {
        replayed.extend(messages.unwrap().into_iter().map(|(_, message)| message));
    }
    fixture.go.notify_one();
    let execution = until(&kernel, &msg_ids[1], |execution| execution.ended.is_some()).await;
    let received = receive_all(&mut attachment, Seq::START, execution.last).await;
    let shown = replayed
        .into_iter()
        .chain(received.into_iter().map(|(_, _, message)| message));
    let shown: Vec<_> = shown.collect();
    let warnings = notices(shown.clone(), &msg_ids[0]);
    assert!(
        warnings.len() == 1 && warnings[0].contains("may be missing"),
        "{warnings:?}"
    );
    assert!(notices(shown, &msg_ids[1]).is_empty());
    for msg_id in &msg_ids {
        assert_eq!(record(&kernel, msg_id).await.status, ExecutionStatus::Ok);
    }
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_of_a_started_kernel_has_a_lifecycle_parent() {
    let fixture = Fixture::new(Arc::new(MemoryStore::new()));
    let manager = fixture.manager();
    let kernel = start(&manager).await;
    let mut reader = kernel.log().reader(Seq::START);
    let mut statuses = 0;
    while statuses == 0 {
        let block = soon(reader.next()).await.unwrap().unwrap();
        for entry in block.entries().filter(|entry| entry.origin() == Origin::Lifecycle) {
            let message = entry.message();
            if message.header_ref().unwrap().msg_type == "status" {
                let parent = message.parent_ref().unwrap();
                assert!(!parent.msg_id.is_empty());
                // JupyterLab ignores a status whose parent is a kernel_info_request.
                assert_eq!(parent.msg_type, LIFECYCLE);
                statuses += 1;
            }
        }
    }
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_execution_that_ended_without_a_recorder_is_incomplete() {
    let fixture = Fixture::new(Arc::new(MemoryStore::new()));
    let manager = fixture.manager();
    let kernel = start(&manager).await;
    let message = request("wait\nprint missed", "s");
    let msg_id = message.header.msg_id.clone();
    let client = kernel.attach("s").client();
    soon(client.send(Channel::Shell, message.to_wire())).await.unwrap();
    until(&kernel, &msg_id, |execution| {
        execution.status == ExecutionStatus::Running
    })
    .await;
    drop(client);
    let id = kernel.id();
    soon(manager.close(AtClose::LeaveKernels)).await.unwrap();
    drop((manager, kernel));
    fixture.go.notify_one();
    let manager = fixture.manager();
    soon(manager.restore()).await;
    let kernel = manager.get(id).unwrap();
    let execution = until(&kernel, &msg_id, |execution| execution.ended.is_some()).await;
    // Its reply may have waited in the kernel's socket.
    assert!(
        matches!(execution.status, ExecutionStatus::Lost | ExecutionStatus::Ok),
        "{execution:?}"
    );
    // Its output may have arrived after the reconnect, but the recorder cannot know that it is complete.
    let folded = kernel.executions().outputs(&execution).await.unwrap();
    assert!(!folded.complete, "{}", outputs(&folded.fold));
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

/// Output of an execution as shown by a client that applies messages as they arrive.
struct Screen {
    msg_id: String,
    fold: Fold,
    replies: usize,
}

impl Screen {
    fn of(msg_id: &str) -> Self {
        Self {
            msg_id: msg_id.to_owned(),
            fold: Fold::new(FoldLimits::default()),
            replies: 0,
        }
    }

    fn show(&mut self, channel: Channel, message: &WireMessage) {
        if message.parent_ref().unwrap().msg_id != self.msg_id {
            return;
        }
        self.replies += usize::from(channel == Channel::Shell);
        self.fold.apply(channel, message);
    }
}

/// The client's messages among the entries after `from` up to `end`.
async fn receive_all(attachment: &mut Attachment, from: Seq, end: Seq) -> Vec<(Seq, Channel, WireMessage)> {
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

#[tokio::test(flavor = "multi_thread")]
async fn a_reconnected_client_shows_the_same_outputs_as_an_undisturbed_one() {
    let code = "print a\nbar 10%\nbar 20%\nclear later\nprint b\nshow x\nprint c\nclear\nprint d\nbar 1\nbar 2\nchange z\nprint e";
    let fixture = Fixture::new(Arc::new(MemoryStore::new()));
    let mut manager = fixture.manager();
    let mut kernel = start(&manager).await;
    let mut cuts = 0;
    for acknowledged in 0..20 {
        for received in acknowledged..20 {
            let session = format!("s{acknowledged}-{received}");
            let mut attachment = kernel.attach(&session);
            let message = request(code, &session);
            let msg_id = message.header.msg_id.clone();
            soon(attachment.client().send(Channel::Shell, message.to_wire()))
                .await
                .unwrap();
            let execution = until(&kernel, &msg_id, |execution| execution.ended.is_some()).await;
            let all = receive_all(&mut attachment, Seq::START, execution.last).await;
            let mut undisturbed = Screen::of(&msg_id);
            for (_, channel, message) in &all {
                undisturbed.show(*channel, message);
            }
            let mut screen = Screen::of(&msg_id);
            for (_, channel, message) in all.iter().take(received) {
                screen.show(*channel, message);
            }
            let mut from = Seq::START;
            if let Some((seq, ..)) = acknowledged.checked_sub(1).and_then(|index| all.get(index)) {
                attachment.client().acknowledge(*seq);
                from = *seq;
            }
            drop(attachment);
            if received % 7 == 3 {
                (manager, kernel) = fixture.replace_manager(manager, kernel.id()).await;
            }

            let mut attachment = kernel.attach(&session);
            while let Some(messages) = soon(attachment.replay()).await {
                for (channel, message) in messages.unwrap() {
                    screen.show(channel, &message);
                }
            }
            for (_, channel, message) in receive_all(&mut attachment, from, execution.last).await {
                screen.show(channel, &message);
            }
            assert_eq!(outputs(&screen.fold), outputs(&undisturbed.fold), "{session}");
            let kept = kernel.executions().outputs(&execution).await.unwrap();
            assert_eq!(outputs(&kept.fold), outputs(&undisturbed.fold), "{session}");
            assert!(screen.replies >= 1, "{session}: no reply");
            cuts += 1;
        }
    }
    assert_eq!(cuts, 210);
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_input_request_is_replayed_and_an_answered_one_is_not() {
    let fixture = Fixture::new(Arc::new(MemoryStore::new()));
    let manager = fixture.manager();
    let kernel = start(&manager).await;
    let mut attachment = kernel.attach("s");
    let message = request("print before\nask name", "s");
    let msg_id = message.header.msg_id.clone();
    soon(attachment.client().send(Channel::Shell, message.to_wire()))
        .await
        .unwrap();
    let asked = until(&kernel, &msg_id, |execution| execution.open_input.is_some()).await;
    // Its earlier output came over another socket and may follow the input request.
    let received = receive_all(&mut attachment, Seq::START, asked.open_input.unwrap()).await;
    let (_, _, question) = received
        .into_iter()
        .find(|(_, channel, _)| *channel == Channel::Stdin)
        .unwrap();
    attachment.client().acknowledge(asked.open_input.unwrap());
    drop(attachment);

    let mut attachment = kernel.attach("s");
    let again = soon(attachment.replay()).await.unwrap().unwrap();
    let asked_again: Vec<_> = again.iter().filter(|(channel, _)| *channel == Channel::Stdin).collect();
    assert_eq!(asked_again.len(), 1);
    assert_eq!(asked_again[0].1.header(), question.header());
    let answer = Message::new(InputReply::new("me"), "s");
    soon(attachment.client().send(Channel::Stdin, answer.to_wire()))
        .await
        .unwrap();
    until(&kernel, &msg_id, |execution| execution.ended.is_some()).await;
    drop(attachment);
    let mut attachment = kernel.attach("s");
    let last = soon(attachment.replay()).await.unwrap().unwrap();
    assert!(last.iter().all(|(channel, _)| *channel != Channel::Stdin));
    assert!(soon(attachment.replay()).await.is_none());
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answered_input_request_is_not_replayed_without_an_acknowledgement() {
    let fixture = Fixture::new(Arc::new(MemoryStore::new()));
    let manager = fixture.manager();
    let kernel = start(&manager).await;
    let attachment = kernel.attach("s");
    let message = request("ask name?\nwait", "s");
    let msg_id = message.header.msg_id.clone();
    soon(attachment.client().send(Channel::Shell, message.to_wire()))
        .await
        .unwrap();
    until(&kernel, &msg_id, |execution| execution.open_input.is_some()).await;
    let answer = Message::new(InputReply::new("me"), "s");
    soon(attachment.client().send(Channel::Stdin, answer.to_wire()))
        .await
        .unwrap();
    until(&kernel, &msg_id, |execution| execution.open_input.is_none()).await;

    let reconnect = async |kernel: &Arc<Kernel>| {
        let mut back = kernel.attach("s");
        let mut screen = Screen::of(&msg_id);
        let mut shown = soon(back.replay()).await.unwrap().unwrap();
        assert!(soon(back.replay()).await.is_none());
        while let Some(block) = back.recent().unwrap() {
            let client = back.client();
            let delivered = block.entries().filter(|entry| client.delivers(entry));
            shown.extend(delivered.map(|entry| (entry.channel(), entry.message())));
        }
        for (channel, message) in &shown {
            assert_ne!(*channel, Channel::Stdin, "asked again");
            screen.show(*channel, message);
        }
        serde_json::to_string(&screen.fold.outputs()).unwrap()
    };
    let asked_and_answered = r#"[{"output_type":"stream","name":"stdin","text":"name? me\n"}]"#;
    assert_eq!(reconnect(&kernel).await, asked_and_answered);
    // The first attachment still exists, so its session's position is not stored, as after a crash.
    let (manager, kernel) = fixture.replace_manager(manager, kernel.id()).await;
    assert_eq!(reconnect(&kernel).await, asked_and_answered);
    drop(attachment);
    fixture.go.notify_one();
    until(&kernel, &msg_id, |execution| execution.ended.is_some()).await;
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

/// A provider that completes each attach only after `go` is notified.
struct SlowProvider {
    provider: FakeProvider,
    go: Arc<Notify>,
    /// Whether the first attach fails.
    fails: AtomicBool,
}

impl Fixture {
    fn slow_manager(&self, go: &Arc<Notify>, fails: bool, patience: Duration) -> Manager {
        let slow = SlowProvider {
            provider: self.provider.clone(),
            go: go.clone(),
            fails: AtomicBool::new(fails),
        };
        let mut options = ManagerOptions::default();
        options.restore_patience = patience;
        let logs = Logs::new(self.store.clone(), LogOptions::default()).unwrap();
        Manager::new(vec![Arc::new(slow)], logs, options)
    }
}

#[async_trait]
impl KernelProvider for SlowProvider {
    fn name(&self) -> &str {
        self.provider.name()
    }

    fn specs(&self) -> watch::Receiver<Arc<Specs>> {
        self.provider.specs()
    }

    async fn launch(&self, request: LaunchRequest, progress: Progress) -> Result<Arc<dyn KernelHandle>, LaunchError> {
        self.provider.launch(request, progress).await
    }

    async fn list(&self, selector: &Selector) -> Result<Vec<KernelRecord>, ProviderError> {
        self.provider.list(selector).await
    }

    async fn attach(&self, record: &KernelRecord) -> Result<Arc<dyn KernelHandle>, AttachError> {
        if self.fails.swap(false, Ordering::SeqCst) {
            return Err(ProviderError::failed("attach", "not now").into());
        }
        self.go.notified().await;
        self.provider.attach(record).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn restore_attaches_to_a_starting_kernel_once_it_runs() {
    let fixture = Fixture::new(Arc::new(MemoryStore::new()));
    let before = fixture.manager();
    let kernel = start(&before).await;
    let (id, epoch) = (kernel.id(), kernel.log().epoch());
    drop(kernel);
    soon(before.close(AtClose::LeaveKernels)).await.unwrap();
    drop(before);

    let go = Arc::new(Notify::new());
    let manager = fixture.slow_manager(&go, false, Duration::ZERO);
    let mut events = manager.events();
    assert_eq!(soon(manager.restore()).await, 0);
    assert!(manager.get(id).is_none());
    go.notify_one();
    let event = soon(events.recv()).await.unwrap();
    assert!(matches!(event.kind, KernelEventKind::Attached), "{event:?}");
    assert_eq!(manager.get(id).unwrap().log().epoch(), epoch);
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

/// Leaves a cell running in a kernel without a manager.
async fn leave_running_cell(fixture: &Fixture) -> (KernelId, String) {
    let manager = fixture.manager();
    let kernel = start(&manager).await;
    let message = request("wait", "s");
    let msg_id = message.header.msg_id.clone();
    soon(kernel.send(&"s".into(), Channel::Shell, message.to_wire()))
        .await
        .unwrap();
    until(&kernel, &msg_id, |execution| {
        execution.status == ExecutionStatus::Running
    })
    .await;
    let id = kernel.id();
    drop(kernel);
    soon(manager.close(AtClose::LeaveKernels)).await.unwrap();
    (id, msg_id)
}

#[tokio::test(flavor = "multi_thread")]
async fn restore_retries_an_unreachable_kernel() {
    let fixture = Fixture::new(Arc::new(MemoryStore::new()));
    let (id, msg_id) = leave_running_cell(&fixture).await;
    let go = Arc::new(Notify::new());
    let manager = fixture.slow_manager(&go, true, Duration::from_secs(60));
    let mut events = manager.events();
    assert_eq!(soon(manager.restore()).await, 0);
    assert!(manager.get(id).is_none());
    let past = manager.past_executions(id).await.unwrap().unwrap();
    let execution = past.get(&msg_id).await.unwrap().unwrap();
    assert_eq!(execution.status, ExecutionStatus::Running);
    go.notify_one();
    let event = soon(events.recv()).await.unwrap();
    assert!(matches!(event.kind, KernelEventKind::Attached), "{event:?}");
    fixture.go.notify_one();
    let kernel = manager.get(id).unwrap();
    let execution = until(&kernel, &msg_id, |execution| execution.ended.is_some()).await;
    // The kernel may have replied before it accepted the new connection.
    let status = execution.status;
    assert!(
        matches!(status, ExecutionStatus::Ok | ExecutionStatus::Lost),
        "{status:?}"
    );
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn executions_of_a_kernel_that_ended_without_a_manager_have_died() {
    let fixture = Fixture::new(Arc::new(MemoryStore::new()));
    let (id, msg_id) = leave_running_cell(&fixture).await;
    let left = fixture.provider.list(&Selector::all()).await.unwrap().remove(0);
    let handle = fixture.provider.attach(&left).await.unwrap();
    handle.shutdown(Duration::ZERO).await.unwrap();
    let manager = fixture.manager();
    assert_eq!(soon(manager.restore()).await, 0);
    let past = manager.past_executions(id).await.unwrap().unwrap();
    let execution = past.get(&msg_id).await.unwrap().unwrap();
    assert_eq!(execution.status, ExecutionStatus::Died);
    assert!(execution.reason.is_some());
    drop(past);
    // A new kernel with the same id continues the log, and the execution stays ended.
    let mut again = StartRequest::new("scripts");
    again.id = Some(id);
    let kernel = soon(manager.start(again)).await.unwrap();
    let execution = record(&kernel, &msg_id).await;
    assert_eq!(execution.status, ExecutionStatus::Died);
    assert!(execution.ended.is_some() && execution.reply.is_some() && execution.idle.is_some());
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_manager_drops_entries_beyond_the_age_limit() {
    let fixture = Fixture::new(Arc::new(MemoryStore::new()));
    let mut log_options = LogOptions::default();
    log_options.stored_age = Some(Duration::from_millis(50));
    let logs = Logs::new(fixture.store.clone(), log_options).unwrap();
    let mut options = ManagerOptions::default();
    options.culling.interval = Duration::from_millis(10);
    let manager = Manager::new(vec![Arc::new(fixture.provider.clone())], logs, options);
    let kernel = start(&manager).await;
    let log = kernel.log().clone();
    // The newest block is always kept, so there must be a second one. A request is stored before it is sent, in a
    // separate block.
    let message = request("print x", "s").to_wire();
    soon(kernel.send(&"s".into(), Channel::Shell, message)).await.unwrap();
    soon(async {
        while log.earliest() <= Seq(1) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}
