//! A kernel that floods its sockets with invalid input stops no other kernel and does not flood the process's log.
//! Oversized messages are skipped.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod rewired;

use std::future::Future;
use std::io::{Write as _, copy};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use jupyter_protocol::content::{ExecuteReply, ExecuteRequest, KernelInfoReply, ReplyError};
use jupyter_protocol::kernel::{Context as KernelContext, Kernel as KernelSide};
use jupyter_protocol::message::Message;
use jupyter_protocol::zmq::MAX_MESSAGE_BYTES;
use jupyter_protocol::{Channel, ConnectionInfo};
use kernel_log::{Entry, LogOptions, Logs, MemoryStore, Origin};
use kernel_manager::{AtClose, Attachment, Kernel, Manager, ManagerOptions, StartRequest};
use kernel_provider::fake::{FakeProvider, FakeSpec};
use tokio::sync::Notify;
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

use rewired::RewiredProvider;

/// Timeout of every wait. An attack also ends after this time, in case a failed test left it running.
const DEADLINE: Duration = Duration::from_secs(60);
/// Round trips with another kernel during the attack.
const ROUND_TRIPS: usize = 50;

/// Fails the test if the future does not complete within the deadline.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future)
        .await
        .expect("not done within the deadline")
}

/// Forwards a kernel's port, and can write other bytes to the gateway in place of the kernel.
#[derive(Default)]
struct Interposer {
    /// The gateway's newest connection.
    client: Mutex<Option<TcpStream>>,
}

impl Interposer {
    /// Returns the port in front of `target`.
    fn listen(self: &Arc<Self>, target: u16) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let this = self.clone();
        thread::spawn(move || {
            loop {
                let (client, _) = listener.accept().unwrap();
                let server = TcpStream::connect(("127.0.0.1", target)).unwrap();
                let (mut from_client, mut to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || copy(&mut from_client, &mut to_server));
                *this.client.lock().unwrap() = Some(client.try_clone().unwrap());
                let _ = copy(&mut &server, &mut &client);
                let _ = client.shutdown(Shutdown::Both);
            }
        });
        port
    }

    /// Writes these bytes once.
    async fn write(&self, bytes: Vec<u8>) {
        let mut stream = self.client.lock().unwrap().as_ref().unwrap().try_clone().unwrap();
        let writing = tokio::task::spawn_blocking(move || stream.write_all(&bytes));
        soon(writing).await.unwrap().unwrap();
    }

    /// Writes these bytes repeatedly until the attack is dropped.
    fn attack(&self, bytes: Vec<u8>) -> Attack {
        let mut stream = self.client.lock().unwrap().as_ref().unwrap().try_clone().unwrap();
        stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let attack = Attack {
            stop: stop.clone(),
            sent: sent.clone(),
        };
        thread::spawn(move || {
            let end = Instant::now() + DEADLINE;
            let mut at = 0;
            while !(stop.load(Ordering::Relaxed) || Instant::now() > end) {
                // Times out while the gateway pauses reading.
                if let Ok(written) = stream.write(&bytes[at..]) {
                    at = (at + written) % bytes.len();
                    sent.fetch_add(written, Ordering::Relaxed);
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        attack
    }
}

struct Attack {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
}

impl Attack {
    fn is_running(&self) -> bool {
        !self.stop.load(Ordering::Relaxed) && self.sent.load(Ordering::Relaxed) > 0
    }
}

impl Drop for Attack {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Counts warnings and errors in the process's log.
struct LogLines(Arc<AtomicUsize>);

impl<S: Subscriber> Layer<S> for LogLines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() <= tracing::Level::WARN {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Runs code in the kernel and waits for the reply.
async fn round_trip(kernel: &Arc<Kernel>, attachment: &mut Attachment) {
    let request = Message::new(ExecuteRequest::new("hello"), attachment.client().session());
    let id = request.header.msg_id.clone();
    soon(kernel.attach("sender").client().send(Channel::Shell, request.to_wire()))
        .await
        .unwrap();
    let answers = |entry: &Entry| {
        entry.origin() == Origin::Kernel
            && entry.channel() == Channel::Shell
            && entry.message().parent_ref().unwrap().msg_id == *id
    };
    loop {
        let block = soon(attachment.next()).await.unwrap().expect("the log ended");
        if block.entries().any(|entry| answers(&entry)) {
            return;
        }
    }
}

fn message(signature: &[u8], content: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x01\x09<IDS|MSG>".to_vec();
    for (more, part) in [
        (1, signature),
        (1, br#"{"msg_id":"1","msg_type":"status"}"#),
        (1, b"{}"),
        (1, b"{}"),
    ] {
        bytes.extend([more, u8::try_from(part.len()).unwrap()]);
        bytes.extend(part);
    }
    bytes.push(2);
    bytes.extend((content.len() as u64).to_be_bytes());
    bytes.extend(content);
    bytes
}

/// Checks that round trips with another kernel succeed during the attack, and that the attack causes few log lines.
async fn check_flood(channel: Channel, bytes: Vec<u8>) -> u64 {
    let lines = Arc::new(AtomicUsize::new(0));
    let _logging = tracing::subscriber::set_default(tracing_subscriber::registry().with(LogLines(lines.clone())));
    let interposer = Arc::new(Interposer::default());
    let rewire = {
        let interposer = interposer.clone();
        move |info: &mut ConnectionInfo| {
            let port = match channel {
                Channel::Shell => &mut info.shell_port,
                _ => &mut info.iopub_port,
            };
            *port = interposer.listen(*port);
        }
    };
    let hostile = RewiredProvider::new(FakeProvider::new().with_name("hostile"), rewire);
    let logs = || Logs::new(Arc::new(MemoryStore::new()), LogOptions::default()).unwrap();
    let manager = Manager::new(vec![Arc::new(hostile)], logs(), ManagerOptions::default());
    let hostile = soon(manager.start(StartRequest::new("echo"))).await.unwrap();
    let others = Manager::new(vec![Arc::new(FakeProvider::new())], logs(), ManagerOptions::default());
    let other = soon(others.start(StartRequest::new("echo"))).await.unwrap();
    let mut attachment = other.attach("reader");

    let attack = interposer.attack(bytes);
    for _ in 0..ROUND_TRIPS {
        round_trip(&other, &mut attachment).await;
    }
    assert!(attack.is_running(), "the attack ended before the round trips");
    drop(attack);
    assert!(lines.load(Ordering::Relaxed) < 10, "{lines:?} lines");
    let refused = manager.refused_messages().invalid;
    drop(hostile);
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
    refused
}

#[tokio::test]
async fn a_flood_of_badly_signed_messages_stops_no_other_kernel() {
    let refused = check_flood(Channel::Iopub, message(&[b'0'; 64], b"{}").repeat(100)).await;
    assert!(refused > 0);
}

#[tokio::test]
async fn a_flood_of_badly_signed_replies_stops_no_other_kernel() {
    let refused = check_flood(Channel::Shell, message(&[b'0'; 64], b"{}").repeat(100)).await;
    assert!(refused > 0);
}

#[tokio::test]
async fn a_flood_of_large_badly_signed_messages_stops_no_other_kernel() {
    check_flood(Channel::Iopub, message(&[b'0'; 64], &vec![b' '; 8 << 20])).await;
}

#[tokio::test]
async fn a_flood_of_malformed_messages_stops_no_other_kernel() {
    check_flood(Channel::Iopub, b"\0\x03bad".repeat(1_000)).await;
}

#[tokio::test]
async fn a_flood_of_pings_stops_no_other_kernel() {
    check_flood(Channel::Iopub, b"\x04\x0f\x04PING\0\x0acontext!".repeat(1_000)).await;
}

#[tokio::test]
async fn a_flood_of_pings_on_shell_stops_no_other_kernel() {
    check_flood(Channel::Shell, b"\x04\x0f\x04PING\0\x0acontext!".repeat(1_000)).await;
}

#[tokio::test]
async fn an_endless_message_stops_no_other_kernel() {
    check_flood(Channel::Iopub, b"\x01\x01x".repeat(1_000)).await;
}

/// A kernel whose code prints `before`, waits for the notification, and prints `after`.
struct WaitingKernel(Arc<Notify>);

#[async_trait]
impl KernelSide for WaitingKernel {
    fn info(&self) -> KernelInfoReply {
        KernelInfoReply::default()
    }

    async fn execute(&self, _: &ExecuteRequest, context: &KernelContext) -> Result<ExecuteReply, ReplyError> {
        context.stdout("before").await;
        self.0.notified().await;
        context.stdout("after").await;
        Ok(ExecuteReply::default())
    }
}

#[tokio::test]
async fn an_oversized_message_is_skipped_with_a_notice() {
    check_skipped(ManagerOptions::default(), MAX_MESSAGE_BYTES as usize, "128 MiB").await;
}

#[tokio::test]
async fn a_message_beyond_the_memory_bound_is_skipped_with_a_notice() {
    let mut options = ManagerOptions::default();
    options.message_memory = 2 << 20;
    check_skipped(options, 3 << 20, "no memory").await;
}

/// Checks that a notice with this reason replaces a message of `bytes`, and that the next message arrives.
async fn check_skipped(options: ManagerOptions, bytes: usize, reason: &str) {
    let interposer = Arc::new(Interposer::default());
    let go = Arc::new(Notify::new());
    let fake = FakeProvider::new();
    let waits = go.clone();
    fake.install("waits", FakeSpec::kernel(move || WaitingKernel(waits.clone())));
    let rewire = {
        let interposer = interposer.clone();
        move |info: &mut ConnectionInfo| info.iopub_port = interposer.listen(info.iopub_port)
    };
    let logs = Logs::new(Arc::new(MemoryStore::new()), LogOptions::default()).unwrap();
    let manager = Manager::new(vec![Arc::new(RewiredProvider::new(fake, rewire))], logs, options);
    let kernel = soon(manager.start(StartRequest::new("waits"))).await.unwrap();
    let mut attachment = kernel.attach("s");
    let request = Message::new(ExecuteRequest::new(""), "s").to_wire();
    soon(attachment.client().send(Channel::Shell, request)).await.unwrap();
    let mut shown = Vec::new();
    while shown.last().is_none_or(|text| text != "after") {
        let block = soon(attachment.next()).await.unwrap().unwrap();
        for entry in block.entries() {
            let message = entry.message();
            if message.header_ref().unwrap().msg_type != "stream" {
                continue;
            }
            let content: serde_json::Value = serde_json::from_slice(message.content()).unwrap();
            let text = content["text"].as_str().unwrap().to_owned();
            if text == "before" {
                interposer.write(message_of(bytes)).await;
            } else if text.contains("left out") {
                go.notify_one();
            }
            shown.push(text);
        }
    }
    let [before, notice, after] = &shown[..] else {
        panic!("{shown:?}")
    };
    assert_eq!((&**before, &**after), ("before", "after"));
    assert!(notice.contains(reason), "{notice}");
    assert_eq!(manager.refused_messages().skipped, 1);
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
}

#[tokio::test]
async fn iopub_is_read_on_the_recorder_runtime() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let mut options = ManagerOptions::default();
    options.recorder_runtime = Some(runtime.handle().clone());
    let logs = Logs::new(Arc::new(MemoryStore::new()), LogOptions::default()).unwrap();
    let manager = Manager::new(vec![Arc::new(FakeProvider::new())], logs, options);
    let kernel = soon(manager.start(StartRequest::new("echo"))).await.unwrap();
    assert_eq!(runtime.metrics().num_alive_tasks(), 1);
    let mut execution = kernel.execute(ExecuteRequest::new("hello")).await.unwrap();
    let mut has_output = false;
    while let Some(message) = soon(execution.next()).await {
        has_output |= message.unwrap().msg_type() == "stream";
    }
    assert!(has_output);
    soon(manager.close(AtClose::EndKernels)).await.unwrap();
    runtime.shutdown_background();
}

fn message_of(bytes: usize) -> Vec<u8> {
    message(b"", &vec![b' '; bytes])
}
