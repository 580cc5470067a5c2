//! Lost connections to a running kernel. The fake provider's kernel listens on TCP ports behind proxies.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::future::Future;
use std::io::Read as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use jupyter_protocol::content::{
    Content, ExecuteReply, ExecuteRequest, InputReply, KernelInfoReply, KernelInfoRequest, ReplyError,
};
use jupyter_protocol::kernel::{Context, Kernel as KernelSide};
use jupyter_protocol::message::Message;
use jupyter_protocol::{Channel, ConnectionInfo, KernelId, WireMessage};
use kernel_log::{Entry, LogOptions, Logs, MemoryStore, Origin};
use kernel_manager::simulation::SimulatedKernel;
use kernel_manager::{
    Attachment, ExecutionState, ExecutionStatus, Executions, Kernel, KernelEventKind, Manager, ManagerOptions,
    SendError, StartRequest,
};
use kernel_provider::fake::{FakeProvider, FakeSpec};
use kernel_provider::{
    AttachError, Exit, ExitCause, Interrupt, KernelHandle, KernelProvider, KernelRecord, LaunchError, LaunchRequest,
    Phase, Progress, ProviderError, Selector, Specs,
};
use tokio::io::{AsyncWriteExt as _, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

const DEADLINE: Duration = Duration::from_secs(60);
const SESSION: &str = "client";
const CHANNELS: [Channel; 4] = [Channel::Shell, Channel::Control, Channel::Stdin, Channel::Iopub];

/// Fails the test if the future does not complete within the deadline.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future)
        .await
        .expect("not done within the deadline")
}

/// Executes one-word commands: `wait` waits for `go`, `notify` notifies `reached`, `ask` asks for input. Other code is
/// echoed.
struct CommandKernel {
    go: Arc<Notify>,
    reached: Arc<Notify>,
}

#[async_trait]
impl KernelSide for CommandKernel {
    fn info(&self) -> KernelInfoReply {
        KernelInfoReply::default()
    }

    async fn execute(&self, request: &ExecuteRequest, context: &Context) -> Result<ExecuteReply, ReplyError> {
        match request.code.as_str() {
            "wait" => {
                context.stdout("before").await;
                self.go.notified().await;
                context.stdout("after").await;
            }
            "notify" => self.reached.notify_one(),
            "ask" => context.stdout(context.input("name? ", false).await?).await,
            text => context.stdout(text).await,
        }
        Ok(ExecuteReply::default())
    }
}

/// Forwards a local port, and can cut its connections.
struct Proxy {
    port: u16,
    /// While true, new connections are accepted and not forwarded.
    holds: watch::Sender<bool>,
    cuts: watch::Sender<u32>,
    /// While true, the client's end stays open when the server closes its end.
    hides_close: watch::Sender<bool>,
    /// Number of connections accepted.
    accepted: watch::Sender<u32>,
    /// The accepting task; aborted on drop.
    _accepting: JoinSet<()>,
}

impl Proxy {
    async fn to(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (holds, cuts, accepted) = (watch::Sender::new(false), watch::Sender::new(0), watch::Sender::new(0));
        let hides_close = watch::Sender::new(false);
        let (counter, held, cut, hidden) = (
            accepted.clone(),
            holds.subscribe(),
            cuts.subscribe(),
            hides_close.subscribe(),
        );
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let (mut cut, mut held, mut hidden) = (cut.clone(), held.clone(), hidden.clone());
                cut.mark_unchanged();
                connections.spawn(async move {
                    tokio::select! {
                        released = held.wait_for(|held| !held) => drop(released.unwrap()),
                        _ = cut.changed() => return Ok(()),
                    }
                    let mut server = TcpStream::connect(("127.0.0.1", target)).await?;
                    {
                        let (mut from_client, mut to_client) = client.split();
                        let (mut from_server, mut to_server) = server.split();
                        let down = async {
                            copy(&mut from_server, &mut to_client).await?;
                            hidden.wait_for(|hidden| !hidden).await.unwrap();
                            to_client.shutdown().await
                        };
                        tokio::select! {
                            ended = async { tokio::try_join!(copy(&mut from_client, &mut to_server), down) } => {
                                return ended.map(drop);
                            }
                            _ = cut.changed() => {}
                        }
                    }
                    // Forwards what the client sent before the cut.
                    let mut sent = client.into_std()?;
                    let mut buffer = vec![0; 1 << 16];
                    while let Ok(length @ 1..) = sent.read(&mut buffer) {
                        server.write_all(&buffer[..length]).await?;
                    }
                    Ok::<(), std::io::Error>(())
                });
                counter.send_modify(|count| *count += 1);
            }
        });
        Self {
            port,
            holds,
            cuts,
            hides_close,
            accepted,
            _accepting: accepting,
        }
    }

    /// Cuts all connections and holds new ones until [`release`](Self::release).
    fn cut(&self) {
        self.holds.send_replace(true);
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    fn release(&self) {
        self.holds.send_replace(false);
    }

    /// Waits until more than `before` connections were accepted.
    async fn reconnected(&self, before: u32) {
        soon(self.accepted.subscribe().wait_for(|count| *count > before))
            .await
            .unwrap();
    }

    fn count(&self) -> u32 {
        *self.accepted.borrow()
    }
}

/// The fake provider with its kernels' sockets behind proxies.
struct ProxiedProvider {
    fake: FakeProvider,
    proxies: Arc<Mutex<Vec<Arc<Proxy>>>>,
}

struct ProxiedHandle {
    inner: Arc<dyn KernelHandle>,
    proxies: Arc<Mutex<Vec<Arc<Proxy>>>>,
}

#[async_trait]
impl KernelProvider for ProxiedProvider {
    fn name(&self) -> &str {
        self.fake.name()
    }

    fn specs(&self) -> watch::Receiver<Arc<Specs>> {
        self.fake.specs()
    }

    async fn launch(&self, request: LaunchRequest, progress: Progress) -> Result<Arc<dyn KernelHandle>, LaunchError> {
        Ok(Arc::new(ProxiedHandle {
            inner: self.fake.launch(request, progress).await?,
            proxies: self.proxies.clone(),
        }))
    }

    async fn list(&self, selector: &Selector) -> Result<Vec<KernelRecord>, ProviderError> {
        self.fake.list(selector).await
    }

    async fn attach(&self, record: &KernelRecord) -> Result<Arc<dyn KernelHandle>, AttachError> {
        self.fake.attach(record).await
    }
}

#[async_trait]
impl KernelHandle for ProxiedHandle {
    fn record(&self) -> KernelRecord {
        self.inner.record()
    }

    async fn connection(&self) -> Result<ConnectionInfo, ProviderError> {
        let mut info = self.inner.connection().await?;
        let mut proxies = Vec::new();
        for port in [
            &mut info.shell_port,
            &mut info.control_port,
            &mut info.stdin_port,
            &mut info.iopub_port,
        ] {
            let proxy = Proxy::to(*port).await;
            *port = proxy.port;
            proxies.push(Arc::new(proxy));
        }
        *self.proxies.lock().unwrap() = proxies;
        Ok(info)
    }

    fn phase(&self) -> watch::Receiver<Phase> {
        self.inner.phase()
    }

    async fn output(&self) -> Result<String, ProviderError> {
        self.inner.output().await
    }

    async fn interrupt(&self) -> Result<Interrupt, ProviderError> {
        self.inner.interrupt().await
    }

    async fn restart(&self, grace: Duration, progress: Progress) -> Result<(), LaunchError> {
        self.inner.restart(grace, progress).await
    }

    async fn shutdown(&self, grace: Duration) -> Result<Exit, ProviderError> {
        self.inner.shutdown(grace).await
    }
}

/// A kernel with one client.
struct Fixture {
    fake: FakeProvider,
    manager: Manager,
    kernel: Arc<Kernel>,
    attachment: Attachment,
    proxies: Arc<Mutex<Vec<Arc<Proxy>>>>,
    go: Arc<Notify>,
    reached: Arc<Notify>,
}

impl Fixture {
    async fn new(restart_limit: u32) -> Self {
        let fake = FakeProvider::new();
        let (go, reached) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let kernel = {
            let (go, reached) = (go.clone(), reached.clone());
            move || CommandKernel {
                go: go.clone(),
                reached: reached.clone(),
            }
        };
        fake.install("commands", FakeSpec::kernel(kernel));
        let proxies = Arc::default();
        let provider = ProxiedProvider {
            fake: fake.clone(),
            proxies: Arc::clone(&proxies),
        };
        let logs = Logs::new(Arc::new(MemoryStore::new()), LogOptions::default()).unwrap();
        let mut options = ManagerOptions::default();
        options.restart_limit = restart_limit;
        let manager = Manager::new(vec![Arc::new(provider)], logs, options);
        let kernel = soon(manager.start(StartRequest::new("commands"))).await.unwrap();
        let attachment = kernel.attach(SESSION);
        Self {
            fake,
            manager,
            kernel,
            attachment,
            proxies,
            go,
            reached,
        }
    }

    fn proxy(&self, channel: Channel) -> Arc<Proxy> {
        let index = CHANNELS.iter().position(|other| *other == channel).unwrap();
        self.proxies.lock().unwrap()[index].clone()
    }

    fn send(
        &self,
        channel: Channel,
        content: Content,
    ) -> (String, impl Future<Output = Result<(), SendError>> + use<>) {
        let message = Message::new(content, SESSION);
        let client = self.attachment.client();
        let id = message.header.msg_id.clone();
        (id, async move { client.send(channel, message.to_wire()).await })
    }

    async fn execute(&self, code: &str) -> String {
        let (id, sending) = self.send(Channel::Shell, ExecuteRequest::new(code).into());
        soon(sending).await.unwrap();
        id
    }

    /// Reads entries until one fits, and returns all entries read.
    async fn until(&mut self, mut fits: impl FnMut(&Entry) -> bool) -> Vec<Entry> {
        let mut seen = Vec::new();
        loop {
            let block = soon(self.attachment.next()).await.unwrap().expect("the log ended");
            let entries: Vec<Entry> = block.entries().collect();
            let found = entries.iter().any(&mut fits);
            seen.extend(entries);
            if found {
                return seen;
            }
        }
    }

    /// Reads entries until both the reply to the request and its idle status have arrived.
    async fn until_done(&mut self, id: &str) -> Vec<Entry> {
        let (mut replied, mut idle) = (false, false);
        self.until(|entry| {
            if entry.origin() == Origin::Kernel && parent(entry) == id {
                replied |= entry.channel() == Channel::Shell && msg_type(entry).ends_with("_reply");
                idle |= msg_type(entry) == "status" && text(entry).contains("\"idle\"");
            }
            replied && idle
        })
        .await
    }

    /// Reads entries until the connection was lost and the kernel has welcomed the recorder as a subscriber again.
    async fn until_resubscribed(&mut self) -> Vec<Entry> {
        let mut is_lost = false;
        self.until(|entry| {
            is_lost |= is_disconnected(entry);
            is_lost && msg_type(entry) == "iopub_welcome"
        })
        .await
    }

    /// Executes code and returns its output.
    async fn run(&mut self, code: &str) -> String {
        let id = self.execute(code).await;
        outputs(&self.until_done(&id).await, &id)
    }

    async fn until_state(&self, wanted: ExecutionState) {
        soon(self.kernel.state().wait_for(|state| *state == wanted))
            .await
            .unwrap();
    }
}

fn msg_type(entry: &Entry) -> String {
    entry.message().header_ref().unwrap().msg_type.into_owned()
}

fn parent(entry: &Entry) -> String {
    let message: WireMessage = entry.message();
    message
        .parent_ref()
        .map_or_else(|_| String::new(), |parent| parent.msg_id.into_owned())
}

fn text(entry: &Entry) -> String {
    String::from_utf8(entry.message().content().to_vec()).unwrap()
}

fn outputs(entries: &[Entry], id: &str) -> String {
    entries
        .iter()
        .filter(|entry| msg_type(entry) == "stream" && parent(entry) == id)
        .map(|entry| {
            let content: serde_json::Value = serde_json::from_slice(entry.message().content()).unwrap();
            content["text"].as_str().unwrap().to_owned()
        })
        .collect()
}

fn is_disconnected(entry: &Entry) -> bool {
    entry.origin() == Origin::Lifecycle && text(entry).contains("\"disconnected\"")
}

#[tokio::test]
async fn a_lost_iopub_connection_is_logged_and_later_output_arrives() {
    let mut fixture = Fixture::new(0).await;
    let id = fixture.execute("wait").await;
    let mut seen = fixture.until(|entry| msg_type(entry) == "stream").await;
    assert_eq!(outputs(&seen, &id), "before");

    let iopub = fixture.proxy(Channel::Iopub);
    let before = iopub.count();
    iopub.cut();
    iopub.reconnected(before).await;
    iopub.release();
    // The kernel welcomes the new subscriber even while it is busy.
    let entries = fixture.until_resubscribed().await;
    assert_eq!(entries.iter().filter(|entry| is_disconnected(entry)).count(), 1);
    assert_eq!(*fixture.kernel.state().borrow(), ExecutionState::Busy);

    fixture.go.notify_one();
    seen = fixture.until_done(&id).await;
    assert_eq!(outputs(&seen, &id), "after");
    fixture.until_state(ExecutionState::Idle).await;
    assert_eq!(fixture.run("next").await, "next");
}

#[tokio::test]
async fn repeated_reconnects_are_logged_as_one_gap() {
    let mut fixture = Fixture::new(0).await;
    let iopub = fixture.proxy(Channel::Iopub);
    for _ in 0..3 {
        let before = iopub.count();
        iopub.cut();
        iopub.reconnected(before).await;
    }
    iopub.release();
    let entries = fixture.until_resubscribed().await;
    assert_eq!(entries.iter().filter(|entry| is_disconnected(entry)).count(), 1);
    // The recorder asks the idle kernel for its state, because a status message may have been lost.
    fixture.until_state(ExecutionState::Idle).await;
    assert_eq!(fixture.run("next").await, "next");
}

#[tokio::test]
async fn requests_wait_while_any_socket_reconnects() {
    let mut fixture = Fixture::new(0).await;
    let cuts: [&[Channel]; 5] = [
        &CHANNELS,
        &[Channel::Shell],
        &[Channel::Control],
        &[Channel::Stdin],
        &[Channel::Iopub],
    ];
    for lost in cuts {
        let proxies: Vec<Arc<Proxy>> = lost.iter().map(|channel| fixture.proxy(*channel)).collect();
        let before: Vec<u32> = proxies.iter().map(|proxy| proxy.count()).collect();
        for proxy in &proxies {
            proxy.cut();
        }
        // A new connection shows that the recorder noticed the loss.
        for (proxy, before) in proxies.iter().zip(before) {
            proxy.reconnected(before).await;
        }
        let (asked, asking) = fixture.send(Channel::Shell, ExecuteRequest::new("ask").into());
        let (informed, informing) = fixture.send(Channel::Control, KernelInfoRequest::default().into());
        let mut sending = std::pin::pin!(async { tokio::join!(asking, informing) });
        let sent = futures::poll!(&mut sending);
        assert!(sent.is_pending(), "{lost:?}: {sent:?}");
        for proxy in &proxies {
            proxy.release();
        }
        let sent = soon(sending).await;
        assert!(matches!(sent, (Ok(()), Ok(()))), "{lost:?}: {sent:?}");

        // The recorder sends requests after a while even without a welcome on iopub. So wait for the welcome, or the
        // kernel's output could be missed.
        let (mut asks, mut is_subscribed) = (false, !lost.contains(&Channel::Iopub));
        let mut seen = fixture
            .until(|entry| {
                asks |= msg_type(entry) == "input_request";
                is_subscribed |= msg_type(entry) == "iopub_welcome";
                asks && is_subscribed
            })
            .await;
        let answer = InputReply {
            value: "Ada".to_owned(),
            ..InputReply::default()
        };
        let (_, answering) = fixture.send(Channel::Stdin, answer.into());
        soon(answering).await.unwrap();
        seen.extend(fixture.until_done(&asked).await);
        assert_eq!(outputs(&seen, &asked), "Ada", "{lost:?}");
        let on_control = |entry: &Entry| entry.channel() == Channel::Control && parent(entry) == informed;
        if !seen.iter().any(on_control) {
            fixture.until(on_control).await;
        }
        // Replies over the new connections still go to the session of their request.
        let replies = seen
            .iter()
            .filter(|entry| entry.origin() == Origin::Kernel && entry.channel() != Channel::Iopub);
        for reply in replies.filter(|entry| parent(entry) == asked || parent(entry) == informed) {
            assert_eq!(reply.session(), SESSION, "{lost:?}: {}", msg_type(reply));
        }
    }
}

#[tokio::test]
async fn only_executions_that_ended_while_disconnected_get_synthetic_messages() {
    let mut fixture = Fixture::new(0).await;
    let cuts: [&[Channel]; 3] = [&[Channel::Shell, Channel::Iopub], &[Channel::Shell], &[Channel::Iopub]];
    for lost in cuts {
        let ends_meanwhile = fixture.execute("wait").await;
        fixture.until(|entry| msg_type(entry) == "stream").await;
        let notifies = fixture.execute("notify").await;
        let goes_on = fixture.execute("wait").await;
        let proxies: Vec<Arc<Proxy>> = lost.iter().map(|channel| fixture.proxy(*channel)).collect();
        let before: Vec<u32> = proxies.iter().map(|proxy| proxy.count()).collect();
        for proxy in &proxies {
            proxy.cut();
        }
        for (proxy, before) in proxies.iter().zip(before) {
            proxy.reconnected(before).await;
        }
        fixture.go.notify_one();
        soon(fixture.reached.notified()).await;
        // This request waits for the connection, and its execution is already in the index.
        let (waits, waiting) = fixture.send(Channel::Shell, ExecuteRequest::new("later").into());
        let mut waiting = std::pin::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending(), "{lost:?}");
        for proxy in &proxies {
            proxy.release();
        }
        soon(waiting).await.unwrap();
        // Requests that the kernel still has are not ended.
        let executions = fixture.kernel.executions();
        assert!(
            executions.get(&goes_on).await.unwrap().unwrap().ended.is_none(),
            "{lost:?}"
        );
        let mut seen = Vec::new();
        if lost.contains(&Channel::Iopub) {
            // Otherwise later output could be missed.
            seen.extend(fixture.until_resubscribed().await);
        }
        fixture.go.notify_one();
        seen.extend(fixture.until_done(&waits).await);
        assert_eq!(outputs(&seen, &waits), "later", "{lost:?}");

        let is_synthetic = |entry: &Entry| entry.origin() == Origin::Lifecycle && parent(entry) == ends_meanwhile;
        // Messages that replace those that were missed.
        let expected: &[(Channel, &str)] = match lost {
            [Channel::Shell] => &[(Channel::Iopub, "stream"), (Channel::Shell, "execute_reply")],
            [Channel::Iopub] => &[(Channel::Iopub, "stream"), (Channel::Iopub, "status")],
            _ => &[
                (Channel::Iopub, "stream"),
                (Channel::Shell, "execute_reply"),
                (Channel::Iopub, "status"),
            ],
        };
        let last = expected.last().unwrap().1;
        let is_last = |entry: &Entry| is_synthetic(entry) && msg_type(entry) == last;
        if !seen.iter().any(is_last) {
            seen.extend(fixture.until(is_last).await);
        }
        let synthetic: Vec<(Channel, String)> = seen
            .iter()
            .filter(|entry| is_synthetic(entry))
            .map(|entry| (entry.channel(), msg_type(entry)))
            .collect();
        let mut synthetic: Vec<(Channel, &str)> = synthetic
            .iter()
            .map(|(channel, msg_type)| (*channel, &**msg_type))
            .collect();
        // There are two stderr notices if the recorder reported missing output before it knew that the execution had
        // ended.
        synthetic.dedup();
        assert_eq!(synthetic, expected, "{lost:?}");
        for entry in seen.iter().filter(|entry| is_synthetic(entry)) {
            assert!(fixture.attachment.client().delivers(entry), "{lost:?}");
        }
        let status = async |id: &str| executions.get(id).await.unwrap().unwrap().status;
        // With only iopub lost, the reply arrived and only the idle status is missing.
        let expected_status = if lost == [Channel::Iopub] {
            ExecutionStatus::Ok
        } else {
            ExecutionStatus::Lost
        };
        assert_eq!(status(&ends_meanwhile).await, expected_status, "{lost:?}");
        assert_eq!(status(&waits).await, ExecutionStatus::Ok, "{lost:?}");
        // The kernel may have replied before it accepted the new connection.
        let known = [ExecutionStatus::Ok, ExecutionStatus::Lost];
        assert!(known.contains(&status(&goes_on).await), "{lost:?}");
        for id in [ends_meanwhile, notifies, goes_on, waits] {
            assert!(executions.get(&id).await.unwrap().unwrap().ended.is_some(), "{lost:?}");
        }
    }
}

/// Multi-threaded, so that some requests go to sockets whose other end has closed unnoticed.
#[tokio::test(flavor = "multi_thread")]
async fn sending_does_not_fail_while_a_dead_kernel_is_restarted() {
    const DEATHS: u32 = 20;
    let mut fixture = Fixture::new(DEATHS).await;
    let mut events = fixture.manager.events();
    for _ in 0..DEATHS {
        fixture.fake.end(fixture.kernel.id(), ExitCause::Signal(9));
        loop {
            let (_, sending) = fixture.send(Channel::Shell, KernelInfoRequest::default().into());
            soon(sending)
                .await
                .expect("the request did not wait for the next process");
            if let Ok(event) = events.try_recv()
                && event.kind == KernelEventKind::Restarted
            {
                break;
            }
            tokio::task::yield_now().await;
        }
        assert_eq!(fixture.run("next").await, "next");
    }
}

#[tokio::test]
async fn a_waiting_request_fails_when_its_kernel_dies() {
    let fixture = Fixture::new(0).await;
    let shell = fixture.proxy(Channel::Shell);
    let before = shell.count();
    shell.cut();
    shell.reconnected(before).await;
    let (_, sending) = fixture.send(Channel::Shell, ExecuteRequest::new("never").into());
    let mut sending = std::pin::pin!(sending);
    assert!(futures::poll!(&mut sending).is_pending());
    fixture.fake.end(fixture.kernel.id(), ExitCause::OutOfMemory);
    assert!(matches!(soon(sending).await, Err(SendError::Dead)));
}

#[tokio::test]
async fn output_that_may_be_in_flight_at_a_kernels_death_is_logged_as_a_gap() {
    let mut fixture = Fixture::new(0).await;
    fixture.proxy(Channel::Iopub).hides_close.send_replace(true);
    fixture.fake.end(fixture.kernel.id(), ExitCause::OutOfMemory);
    let entries = fixture.until(|entry| text(entry).contains("\"dead\"")).await;
    assert_eq!(entries.iter().filter(|entry| is_disconnected(entry)).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_execution_that_cannot_be_sent_is_lost() {
    let logs = Logs::new(Arc::new(MemoryStore::new()), LogOptions::default()).unwrap();
    let log = logs.open(KernelId::random()).await.unwrap();
    let (requests, kernel_side) = tokio::sync::mpsc::channel(1);
    let simulated = SimulatedKernel::attach(log.clone(), &requests).await.unwrap();
    // The connection to the kernel is lost.
    drop(kernel_side);
    let message = Message::new(ExecuteRequest::new("1"), "s");
    let msg_id = message.header.msg_id.clone();
    let sent = simulated
        .kernel()
        .send(&"s".into(), Channel::Shell, message.to_wire())
        .await;
    assert!(matches!(sent, Err(SendError::Socket(_))), "{sent:?}");
    log.flushed().await;
    let execution = Executions::of(log.clone()).get(&msg_id).await.unwrap().unwrap();
    assert_eq!(execution.status, ExecutionStatus::Lost);
    assert!(execution.reply.is_some() && execution.idle.is_some());
}
