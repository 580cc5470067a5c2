//! Connections to a kernel that are cut while it lives. The fake provider's kernel is on TCP, behind proxies.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::future::Future;
use std::io::Read as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use jupyter_protocol::content::{
    Content, ExecuteReply, ExecuteRequest, InputReply, KernelInfoReply, KernelInfoRequest, ReplyError,
};
use jupyter_protocol::kernel::{Context, Kernel as Serves};
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

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what).await.expect("within the deadline")
}

/// Runs words: `wait` (until it is let go), `tell` (somebody who waits for it), `ask`; anything else is echoed.
struct Words {
    let_go: Arc<Notify>,
    told: Arc<Notify>,
}

#[async_trait]
impl Serves for Words {
    fn info(&self) -> KernelInfoReply {
        KernelInfoReply::default()
    }

    async fn execute(&self, request: &ExecuteRequest, context: &Context) -> Result<ExecuteReply, ReplyError> {
        match request.code.as_str() {
            "wait" => {
                context.stdout("before").await;
                self.let_go.notified().await;
                context.stdout("after").await;
            }
            "tell" => self.told.notify_one(),
            "ask" => context.stdout(context.input("name? ", false).await?).await,
            text => context.stdout(text).await,
        }
        Ok(ExecuteReply::default())
    }
}

/// A way to a port of this machine, which can be cut.
struct Proxy {
    port: u16,
    /// While this is so, what connects is left without an answer.
    holds: watch::Sender<bool>,
    cuts: watch::Sender<u32>,
    /// While this is so, who connected is not told that the other side has ended.
    keeps: watch::Sender<bool>,
    /// How many connections there have been.
    accepted: watch::Sender<u32>,
    /// Ended when this is dropped.
    _accepting: JoinSet<()>,
}

impl Proxy {
    async fn to(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (holds, cuts, accepted) = (watch::Sender::new(false), watch::Sender::new(0), watch::Sender::new(0));
        let keeps = watch::Sender::new(false);
        let (told, held, cut, kept) = (accepted.clone(), holds.subscribe(), cuts.subscribe(), keeps.subscribe());
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let (mut cut, mut held, mut kept) = (cut.clone(), held.clone(), kept.clone());
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
                            kept.wait_for(|kept| !kept).await.unwrap();
                            to_client.shutdown().await
                        };
                        tokio::select! {
                            ended = async { tokio::try_join!(copy(&mut from_client, &mut to_server), down) } => {
                                return ended.map(drop);
                            }
                            _ = cut.changed() => {}
                        }
                    }
                    // What was sent before the cut arrives.
                    let mut sent = client.into_std()?;
                    let mut buffer = vec![0; 1 << 16];
                    while let Ok(length @ 1..) = sent.read(&mut buffer) {
                        server.write_all(&buffer[..length]).await?;
                    }
                    Ok::<(), std::io::Error>(())
                });
                told.send_modify(|count| *count += 1);
            }
        });
        Self {
            port,
            holds,
            cuts,
            keeps,
            accepted,
            _accepting: accepting,
        }
    }

    /// Cuts what is connected. What connects anew is held until [`release`](Self::release).
    fn cut(&self) {
        self.holds.send_replace(true);
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    fn release(&self) {
        self.holds.send_replace(false);
    }

    /// Waits for another connection than those that `before` counted.
    async fn reconnected(&self, before: u32) {
        soon(self.accepted.subscribe().wait_for(|count| *count > before))
            .await
            .unwrap();
    }

    fn count(&self) -> u32 {
        *self.accepted.borrow()
    }
}

/// The fake provider, its kernels' sockets behind proxies.
struct Proxied {
    fake: FakeProvider,
    proxies: Arc<Mutex<Vec<Arc<Proxy>>>>,
}

struct ProxiedHandle {
    inner: Arc<dyn KernelHandle>,
    proxies: Arc<Mutex<Vec<Arc<Proxy>>>>,
}

#[async_trait]
impl KernelProvider for Proxied {
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
struct Place {
    fake: FakeProvider,
    manager: Manager,
    kernel: Arc<Kernel>,
    attachment: Attachment,
    proxies: Arc<Mutex<Vec<Arc<Proxy>>>>,
    let_go: Arc<Notify>,
    told: Arc<Notify>,
}

impl Place {
    async fn new(restart_limit: u32) -> Self {
        let fake = FakeProvider::new();
        let (let_go, told) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let kernel = {
            let (let_go, told) = (let_go.clone(), told.clone());
            move || Words {
                let_go: let_go.clone(),
                told: told.clone(),
            }
        };
        fake.install("words", FakeSpec::kernel(kernel));
        let proxies = Arc::default();
        let provider = Proxied {
            fake: fake.clone(),
            proxies: Arc::clone(&proxies),
        };
        let logs = Logs::new(Arc::new(MemoryStore::new()), LogOptions::default()).unwrap();
        let mut options = ManagerOptions::default();
        options.restart_limit = restart_limit;
        let manager = Manager::new(vec![Arc::new(provider)], logs, options);
        let kernel = soon(manager.start(StartRequest::new("words"))).await.unwrap();
        let attachment = kernel.attach(SESSION);
        Self {
            fake,
            manager,
            kernel,
            attachment,
            proxies,
            let_go,
            told,
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

    /// Reads the log on until an entry fits, and returns what was read.
    async fn until(&mut self, mut fits: impl FnMut(&Entry) -> bool) -> Vec<Entry> {
        let mut seen = Vec::new();
        loop {
            let block = soon(self.attachment.next()).await.unwrap().expect("the log goes on");
            let entries: Vec<Entry> = block.entries().collect();
            let found = entries.iter().any(&mut fits);
            seen.extend(entries);
            if found {
                return seen;
            }
        }
    }

    /// Reads on until both the reply to a request and the idle after it are there.
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

    /// Reads on until the connection was lost and the kernel has welcomed a subscriber.
    async fn until_welcomed_anew(&mut self) -> Vec<Entry> {
        let mut is_lost = false;
        self.until(|entry| {
            is_lost |= is_disconnected(entry);
            is_lost && msg_type(entry) == "iopub_welcome"
        })
        .await
    }

    /// Runs a word and returns what it wrote.
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
async fn a_lost_iopub_is_told_and_later_output_arrives() {
    let mut place = Place::new(0).await;
    let id = place.execute("wait").await;
    let mut seen = place.until(|entry| msg_type(entry) == "stream").await;
    assert_eq!(outputs(&seen, &id), "before");

    let iopub = place.proxy(Channel::Iopub);
    let before = iopub.count();
    iopub.cut();
    iopub.reconnected(before).await;
    iopub.release();
    // The kernel welcomes the new subscriber, though it is busy.
    let told = place.until_welcomed_anew().await;
    assert_eq!(told.iter().filter(|entry| is_disconnected(entry)).count(), 1);
    assert_eq!(*place.kernel.state().borrow(), ExecutionState::Busy);

    place.let_go.notify_one();
    seen = place.until_done(&id).await;
    assert_eq!(outputs(&seen, &id), "after");
    place.until_state(ExecutionState::Idle).await;
    assert_eq!(place.run("next").await, "next");
}

#[tokio::test]
async fn a_hole_is_one_entry_however_often_it_is_tried_to_close_it() {
    let mut place = Place::new(0).await;
    let iopub = place.proxy(Channel::Iopub);
    for _ in 0..3 {
        let before = iopub.count();
        iopub.cut();
        iopub.reconnected(before).await;
    }
    iopub.release();
    let told = place.until_welcomed_anew().await;
    assert_eq!(told.iter().filter(|entry| is_disconnected(entry)).count(), 1);
    // An idle kernel is asked what it does, since nobody would have heard it.
    place.until_state(ExecutionState::Idle).await;
    assert_eq!(place.run("next").await, "next");
}

#[tokio::test]
async fn every_socket_comes_back_and_what_is_sent_meanwhile_waits() {
    let mut place = Place::new(0).await;
    let cuts: [&[Channel]; 5] = [
        &CHANNELS,
        &[Channel::Shell],
        &[Channel::Control],
        &[Channel::Stdin],
        &[Channel::Iopub],
    ];
    for lost in cuts {
        let proxies: Vec<Arc<Proxy>> = lost.iter().map(|channel| place.proxy(*channel)).collect();
        let before: Vec<u32> = proxies.iter().map(|proxy| proxy.count()).collect();
        for proxy in &proxies {
            proxy.cut();
        }
        // That it is tried shows that it was noticed.
        for (proxy, before) in proxies.iter().zip(before) {
            proxy.reconnected(before).await;
        }
        let (asked, asking) = place.send(Channel::Shell, ExecuteRequest::new("ask").into());
        let (informed, informing) = place.send(Channel::Control, KernelInfoRequest::default().into());
        let mut sending = std::pin::pin!(async { tokio::join!(asking, informing) });
        let sent = futures::poll!(&mut sending);
        assert!(sent.is_pending(), "{lost:?}: {sent:?}");
        for proxy in &proxies {
            proxy.release();
        }
        let sent = soon(sending).await;
        assert!(matches!(sent, (Ok(()), Ok(()))), "{lost:?}: {sent:?}");

        // A kernel that is asked before the new subscription is heard of is asked all the same after a while; what it then
        // says is to be heard.
        let (mut asks, mut heard) = (false, !lost.contains(&Channel::Iopub));
        let mut seen = place
            .until(|entry| {
                asks |= msg_type(entry) == "input_request";
                heard |= msg_type(entry) == "iopub_welcome";
                asks && heard
            })
            .await;
        let answer = InputReply {
            value: "Ada".to_owned(),
            ..InputReply::default()
        };
        let (_, answering) = place.send(Channel::Stdin, answer.into());
        soon(answering).await.unwrap();
        seen.extend(place.until_done(&asked).await);
        assert_eq!(outputs(&seen, &asked), "Ada", "{lost:?}");
        let on_control = |entry: &Entry| entry.channel() == Channel::Control && parent(entry) == informed;
        if !seen.iter().any(on_control) {
            place.until(on_control).await;
        }
        // Each is for who asked, over the new connections too.
        let replies = seen
            .iter()
            .filter(|entry| entry.origin() == Origin::Kernel && entry.channel() != Channel::Iopub);
        for reply in replies.filter(|entry| parent(entry) == asked || parent(entry) == informed) {
            assert_eq!(reply.session(), SESSION, "{lost:?}: {}", msg_type(reply));
        }
    }
}

#[tokio::test]
async fn what_ends_while_the_connection_is_lost_is_told_and_what_goes_on_is_not() {
    let mut place = Place::new(0).await;
    let cuts: [&[Channel]; 3] = [&[Channel::Shell, Channel::Iopub], &[Channel::Shell], &[Channel::Iopub]];
    for lost in cuts {
        let ends_unheard = place.execute("wait").await;
        place.until(|entry| msg_type(entry) == "stream").await;
        let tells = place.execute("tell").await;
        let goes_on = place.execute("wait").await;
        let proxies: Vec<Arc<Proxy>> = lost.iter().map(|channel| place.proxy(*channel)).collect();
        let before: Vec<u32> = proxies.iter().map(|proxy| proxy.count()).collect();
        for proxy in &proxies {
            proxy.cut();
        }
        for (proxy, before) in proxies.iter().zip(before) {
            proxy.reconnected(before).await;
        }
        place.let_go.notify_one();
        soon(place.told.notified()).await;
        // This one waits for the connection, and is known all the same.
        let (waits, waiting) = place.send(Channel::Shell, ExecuteRequest::new("later").into());
        let mut waiting = std::pin::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending(), "{lost:?}");
        for proxy in &proxies {
            proxy.release();
        }
        soon(waiting).await.unwrap();
        // As the kernel goes on, nothing is said of those that it still has.
        let executions = place.kernel.executions();
        assert!(
            executions.get(&goes_on).await.unwrap().unwrap().ended.is_none(),
            "{lost:?}"
        );
        let mut seen = Vec::new();
        if lost.contains(&Channel::Iopub) {
            // What is said from now on is to be heard.
            seen.extend(place.until_welcomed_anew().await);
        }
        place.let_go.notify_one();
        seen.extend(place.until_done(&waits).await);
        assert_eq!(outputs(&seen, &waits), "later", "{lost:?}");

        let is_told = |entry: &Entry| entry.origin() == Origin::Lifecycle && parent(entry) == ends_unheard;
        // In place of what was not heard.
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
        let is_last = |entry: &Entry| is_told(entry) && msg_type(entry) == last;
        if !seen.iter().any(is_last) {
            seen.extend(place.until(is_last).await);
        }
        let told: Vec<(Channel, String)> = seen
            .iter()
            .filter(|entry| is_told(entry))
            .map(|entry| (entry.channel(), msg_type(entry)))
            .collect();
        let mut told: Vec<(Channel, &str)> = told.iter().map(|(channel, told)| (*channel, &**told)).collect();
        // That output is missing, and then that it ended, where the first was told before the second was known.
        told.dedup();
        assert_eq!(told, expected, "{lost:?}");
        for entry in seen.iter().filter(|entry| is_told(entry)) {
            assert!(place.attachment.client().delivers(entry), "{lost:?}");
        }
        let status = async |id: &str| executions.get(id).await.unwrap().unwrap().status;
        // Where its reply came, only its idle was not heard.
        let unheard = if lost == [Channel::Iopub] {
            ExecutionStatus::Ok
        } else {
            ExecutionStatus::Lost
        };
        assert_eq!(status(&ends_unheard).await, unheard, "{lost:?}");
        assert_eq!(status(&waits).await, ExecutionStatus::Ok, "{lost:?}");
        // The kernel may have replied before it knew of the new connection.
        let known = [ExecutionStatus::Ok, ExecutionStatus::Lost];
        assert!(known.contains(&status(&goes_on).await), "{lost:?}");
        for id in [ends_unheard, tells, goes_on, waits] {
            assert!(executions.get(&id).await.unwrap().unwrap().ended.is_some(), "{lost:?}");
        }
    }
}

/// On several threads, so that some of what is sent finds sockets whose other end is gone before anyone knows it.
#[tokio::test(flavor = "multi_thread")]
async fn sending_does_not_fail_while_a_kernel_dies_and_is_started_anew() {
    const DEATHS: u32 = 20;
    let mut place = Place::new(DEATHS).await;
    let mut events = place.manager.events();
    for _ in 0..DEATHS {
        place.fake.end(place.kernel.id(), ExitCause::Signal(9));
        loop {
            let (_, sending) = place.send(Channel::Shell, KernelInfoRequest::default().into());
            soon(sending).await.expect("what is sent waits for the next kernel");
            if let Ok(event) = events.try_recv()
                && event.kind == KernelEventKind::Restarted
            {
                break;
            }
            tokio::task::yield_now().await;
        }
        assert_eq!(place.run("next").await, "next");
    }
}

#[tokio::test]
async fn what_waits_for_a_kernel_that_is_then_dead_is_told_so() {
    let place = Place::new(0).await;
    let shell = place.proxy(Channel::Shell);
    let before = shell.count();
    shell.cut();
    shell.reconnected(before).await;
    let (_, sending) = place.send(Channel::Shell, ExecuteRequest::new("never").into());
    let mut sending = std::pin::pin!(sending);
    assert!(futures::poll!(&mut sending).is_pending());
    place.fake.end(place.kernel.id(), ExitCause::OutOfMemory);
    assert!(matches!(soon(sending).await, Err(SendError::Dead)));
}

#[tokio::test]
async fn last_words_that_may_be_on_their_way_are_told_as_missing() {
    let mut place = Place::new(0).await;
    place.proxy(Channel::Iopub).keeps.send_replace(true);
    place.fake.end(place.kernel.id(), ExitCause::OutOfMemory);
    let entries = place.until(|entry| text(entry).contains("\"dead\"")).await;
    assert_eq!(entries.iter().filter(|entry| is_disconnected(entry)).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_cell_that_cannot_be_sent_for_long_is_told_as_lost() {
    let logs = Logs::new(Arc::new(MemoryStore::new()), LogOptions::default()).unwrap();
    let log = logs.open(KernelId::random()).await.unwrap();
    let (requests, kernel_side) = tokio::sync::mpsc::channel(1);
    let simulated = SimulatedKernel::attach(log.clone(), &requests).await.unwrap();
    // The network to it is gone.
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
