//! A kernel behind proxies, with one client.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use jupyter_protocol::content::{Content, ExecuteReply, ExecuteRequest, KernelInfoReply, ReplyError};
use jupyter_protocol::kernel::{Context, Kernel as KernelSide};
use jupyter_protocol::message::Message;
use jupyter_protocol::{Channel, ConnectionInfo, WireMessage};
use kernel_log::{Entry, LogOptions, Logs, MemoryStore, Origin};
use kernel_manager::{Attachment, ExecutionState, Kernel, Manager, ManagerOptions, SendError, StartRequest};
use kernel_provider::fake::{FakeProvider, FakeSpec};
use tokio::sync::Notify;

use crate::proxy::Proxy;
use crate::rewired::RewiredProvider;

const DEADLINE: Duration = Duration::from_secs(60);
pub(crate) const SESSION: &str = "client";
pub(crate) const CHANNELS: [Channel; 4] = [Channel::Shell, Channel::Control, Channel::Stdin, Channel::Iopub];

/// Fails the test if the future does not complete within the deadline.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future)
        .await
        .expect("not done within the deadline")
}

/// Executes one-word commands: `wait` waits for `go`, `notify` notifies `reached`, `ask` asks for input and prints the
/// answer. Other code is echoed.
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

/// A kernel with one client.
pub(crate) struct Fixture {
    pub(crate) fake: FakeProvider,
    pub(crate) manager: Manager,
    pub(crate) kernel: Arc<Kernel>,
    pub(crate) attachment: Attachment,
    proxies: Arc<Mutex<Vec<Arc<Proxy>>>>,
    pub(crate) go: Arc<Notify>,
    pub(crate) reached: Arc<Notify>,
}

impl Fixture {
    pub(crate) async fn new(restart_limit: u32) -> Self {
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
        let proxies: Arc<Mutex<Vec<Arc<Proxy>>>> = Arc::default();
        let provider = RewiredProvider::new(fake.clone(), {
            let proxies = Arc::clone(&proxies);
            move |info: &mut ConnectionInfo| *proxies.lock().unwrap() = put_behind_proxies(info)
        });
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

    pub(crate) fn proxy(&self, channel: Channel) -> Arc<Proxy> {
        let index = CHANNELS.iter().position(|other| *other == channel).unwrap();
        self.proxies.lock().unwrap()[index].clone()
    }

    pub(crate) fn send(
        &self,
        channel: Channel,
        content: Content,
    ) -> (String, impl Future<Output = Result<(), SendError>> + use<>) {
        let message = Message::new(content, SESSION);
        let client = self.attachment.client();
        let id = message.header.msg_id.clone();
        (id, async move { client.send(channel, message.to_wire()).await })
    }

    pub(crate) async fn execute(&self, code: &str) -> String {
        let (id, sending) = self.send(Channel::Shell, ExecuteRequest::new(code).into());
        soon(sending).await.unwrap();
        id
    }

    /// Reads entries until one fits, and returns all that were read.
    pub(crate) async fn until(&mut self, mut fits: impl FnMut(&Entry) -> bool) -> Vec<Entry> {
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
    pub(crate) async fn until_done(&mut self, id: &str) -> Vec<Entry> {
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
    pub(crate) async fn until_resubscribed(&mut self) -> Vec<Entry> {
        let mut is_lost = false;
        self.until(|entry| {
            is_lost |= is_disconnected(entry);
            is_lost && msg_type(entry) == "iopub_welcome"
        })
        .await
    }

    /// Executes code and returns its output.
    pub(crate) async fn run(&mut self, code: &str) -> String {
        let id = self.execute(code).await;
        outputs(&self.until_done(&id).await, &id)
    }

    pub(crate) async fn until_state(&self, wanted: ExecutionState) {
        soon(self.kernel.state().wait_for(|state| *state == wanted))
            .await
            .unwrap();
    }
}

pub(crate) fn msg_type(entry: &Entry) -> String {
    entry.message().header_ref().unwrap().msg_type.into_owned()
}

pub(crate) fn parent(entry: &Entry) -> String {
    let message: WireMessage = entry.message();
    message
        .parent_ref()
        .map_or_else(|_| String::new(), |parent| parent.msg_id.into_owned())
}

pub(crate) fn text(entry: &Entry) -> String {
    String::from_utf8(entry.message().content().to_vec()).unwrap()
}

pub(crate) fn outputs(entries: &[Entry], id: &str) -> String {
    entries
        .iter()
        .filter(|entry| msg_type(entry) == "stream" && parent(entry) == id)
        .map(|entry| {
            let content: serde_json::Value = serde_json::from_slice(entry.message().content()).unwrap();
            content["text"].as_str().unwrap().to_owned()
        })
        .collect()
}

pub(crate) fn is_disconnected(entry: &Entry) -> bool {
    entry.origin() == Origin::Lifecycle && text(entry).contains("\"disconnected\"")
}

/// Starts a proxy for each socket of a kernel, in the order of [`CHANNELS`], and replaces the ports.
fn put_behind_proxies(info: &mut ConnectionInfo) -> Vec<Arc<Proxy>> {
    CHANNELS
        .into_iter()
        .map(|channel| {
            let proxy = Proxy::to(info.port(channel));
            info.set_port(channel, proxy.port);
            Arc::new(proxy)
        })
        .collect()
}
