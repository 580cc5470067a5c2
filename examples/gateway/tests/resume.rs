//! Clients of the resume protocol, connected through a proxy that breaks and stalls connections.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use common::{Served, TOKEN};
use gateway_client::resume::client::{Event, ResumeClient, ResumeError, ResumeOptions};
use gateway_client::resume::{NotRecovered, Start};
use jupyter_protocol::content::{Content, ExecuteReply, ExecuteRequest, KernelInfoReply, ReplyError};
use jupyter_protocol::kernel::{Context, Kernel, async_trait};
use jupyter_protocol::{Channel, Message};
use kernel_log::{Cursor, Epoch, Log, Seq};
use kernel_manager::StartRequest;
use kernel_provider::fake::FakeSpec;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(120);

/// Awaits a future, and fails the test at the deadline.
async fn within_deadline<T>(what: impl Future<Output = T>) -> T {
    timeout(DEADLINE, what).await.expect("the deadline passed")
}

/// Prints the number of lines that is the first word of the code, and counts how often each code is executed.
#[derive(Clone, Default)]
struct Flood(Arc<Mutex<HashMap<String, usize>>>);

#[async_trait]
impl Kernel for Flood {
    fn info(&self) -> KernelInfoReply {
        KernelInfoReply::default()
    }

    async fn execute(&self, request: &ExecuteRequest, context: &Context) -> Result<ExecuteReply, ReplyError> {
        *self.0.lock().unwrap().entry(request.code.clone()).or_default() += 1;
        let lines = request.code.split_whitespace().next().unwrap().parse().unwrap();
        for line in 0..lines {
            context.stdout(format!("{line}\n")).await;
        }
        Ok(ExecuteReply::default())
    }
}

/// SplitMix64, a pseudorandom generator that is repeatable with `KERNELMUX_SEED`.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn new() -> Self {
        let seed = std::env::var("KERNELMUX_SEED").ok().map(|seed| seed.parse().unwrap());
        let seed = seed.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().1);
        println!("KERNELMUX_SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

/// A proxy to the gateway that breaks each connection after a random number of bytes: at most `down` from the gateway
/// or at most `up` from the client. One connection in four stalls instead of breaking.
async fn flaky_proxy(gateway: SocketAddr, mut random: Random, down: u64, up: u64) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (down, up, silent) = (random.below(down), random.below(up), random.below(4) == 0);
            tokio::spawn(async move {
                let gateway = TcpStream::connect(gateway).await?;
                let (from_client, mut to_client) = client.into_split();
                let (from_gateway, mut to_gateway) = gateway.into_split();
                let (mut from_client, mut from_gateway) = (from_client.take(up), from_gateway.take(down));
                tokio::select! {
                    copied = tokio::io::copy(&mut from_client, &mut to_gateway) => copied?,
                    copied = tokio::io::copy(&mut from_gateway, &mut to_client) => copied?,
                };
                if silent {
                    // Until the client closes the connection.
                    tokio::io::copy(from_client.get_mut(), &mut tokio::io::sink()).await?;
                }
                std::io::Result::Ok(())
            });
        }
    });
    address
}

/// All entries of the log, which must not grow any more.
async fn all_entries(log: &Log) -> Vec<(Seq, Channel, Vec<Bytes>)> {
    log.flushed().await;
    let mut reader = log.reader(Seq::START);
    let mut entries = Vec::new();
    while entries.len() < log.head().0 as usize {
        let block = within_deadline(reader.next()).await.unwrap().unwrap();
        entries.extend(block.entries().map(|entry| {
            (
                entry.seq(),
                entry.channel(),
                entry.message().parts_and_buffers().to_vec(),
            )
        }));
    }
    entries
}

fn options(address: SocketAddr, kernel: jupyter_protocol::KernelId) -> ResumeOptions {
    ResumeOptions::new(format!("http://{address}"), kernel)
        .with_token(TOKEN)
        .with_start(Start::Earliest)
}

/// A gateway with a kernelspec `flood`.
async fn served() -> (Served, Flood) {
    let served = Served::start().await;
    let flood = Flood::default();
    let kernel = flood.clone();
    let spec = FakeSpec::kernel(move || kernel.clone());
    served.provider.install("flood", spec, serde_json::json!({}));
    (served, flood)
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_behind_a_flaky_proxy_receive_every_entry_once_during_a_flood() {
    const LINES: usize = 20_000;
    let (served, flood) = served().await;
    let kernel = within_deadline(served.manager.start(StartRequest::new("flood")))
        .await
        .unwrap();
    let mut random = Random::new();
    let mut clients = Vec::new();
    for number in 0..4 {
        let random = Random(random.below(u64::MAX));
        let line = flaky_proxy(served.address, random, 1 << 20, 20_000).await;
        let mut options = options(line, kernel.id());
        options.first_pause = Duration::from_millis(5);
        options.silence = Duration::from_millis(500);
        clients.push(tokio::spawn(async move {
            let mut client = ResumeClient::new(options).unwrap();
            if number == 0 {
                let request = Message::new(ExecuteRequest::new(LINES.to_string()), client.session());
                client.send(Channel::Shell, request.to_wire()).unwrap();
            }
            let (mut entries, mut disconnects) = (Vec::new(), 0);
            while let Some(event) = client.next().await.unwrap() {
                match event {
                    Event::Entry(entry) => {
                        entries.push((entry.seq, entry.channel, entry.message.parts_and_buffers().to_vec()))
                    }
                    Event::Disconnected { .. } => disconnects += 1,
                    Event::Connected(_) => {}
                    other => panic!("{other:?}"),
                }
            }
            (entries, disconnects)
        }));
    }
    let mut following = within_deadline(ResumeClient::connect(options(served.address, kernel.id())))
        .await
        .unwrap();
    let is_last = |event: &Event| {
        let Event::Entry(entry) = event else { return false };
        entry.channel == Channel::Iopub
            && entry.message.header_ref().unwrap().msg_type == "stream"
            && String::from_utf8_lossy(entry.message.content()).contains(&format!("\"{}\\n\"", LINES - 1))
    };
    while !is_last(&within_deadline(following.next()).await.unwrap().unwrap()) {}
    let log = kernel.log().clone();
    within_deadline(kernel.shutdown()).await.unwrap();
    let expected = all_entries(&log).await;
    assert!(expected.len() > LINES);
    let mut all_disconnects = 0;
    for client in clients {
        let (entries, disconnects) = within_deadline(client).await.unwrap();
        assert_eq!(entries.len(), expected.len());
        assert!(entries == expected);
        all_disconnects += disconnects;
    }
    assert!(all_disconnects > 8, "{all_disconnects}");
    assert_eq!(flood.0.lock().unwrap()[&LINES.to_string()], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_request_runs_once_over_a_flaky_connection() {
    let (served, flood) = served().await;
    let kernel = within_deadline(served.manager.start(StartRequest::new("flood")))
        .await
        .unwrap();
    let line = flaky_proxy(served.address, Random::new(), 20_000, 4_000).await;
    let mut options = options(line, kernel.id());
    options.first_pause = Duration::from_millis(5);
    options.silence = Duration::from_millis(500);
    let mut client = ResumeClient::new(options).unwrap();
    for number in 0..30 {
        let code = format!("5 lines, {number}");
        let mut execution = client.execute(ExecuteRequest::new(code)).unwrap();
        let mut text = String::new();
        while let Some(message) = within_deadline(execution.next()).await.transpose().unwrap() {
            if let Content::Stream(stream) = message.content {
                text += &stream.text;
            }
        }
        assert_eq!(text, "0\n1\n2\n3\n4\n");
    }
    let counts = flood.0.lock().unwrap();
    assert_eq!(counts.len(), 30);
    assert!(counts.values().all(|count| *count == 1), "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_reports_refusals_replacements_and_cursors_that_cannot_be_resumed() {
    let (served, _) = served().await;
    let kernel = within_deadline(served.manager.start(StartRequest::new("flood")))
        .await
        .unwrap();
    let to = || options(served.address, kernel.id());
    let refused = async |options| within_deadline(ResumeClient::connect(options)).await.err();
    let status = |status| Some(ResumeError::Refused { status });
    assert_eq!(refused(to().with_token("wrong")).await, status(401));
    let unknown = options(served.address, jupyter_protocol::KernelId::random());
    assert_eq!(refused(unknown).await, status(404));

    let mut first = within_deadline(ResumeClient::connect(to().with_session("one")))
        .await
        .unwrap();
    let _second = within_deadline(ResumeClient::connect(to().with_session("one")))
        .await
        .unwrap();
    let error = loop {
        match within_deadline(first.next()).await {
            Ok(event) => assert!(event.is_some()),
            Err(error) => break error,
        }
    };
    assert_eq!(error, ResumeError::Replaced);

    let cursor = |epoch, seq| Start::After(Cursor { epoch, seq: Seq(seq) });
    for (start, reason) in [
        (cursor(Epoch::random(), 1), NotRecovered::Epoch),
        (cursor(kernel.log().epoch(), 1 << 40), NotRecovered::Ahead),
    ] {
        let mut client = within_deadline(ResumeClient::connect(to().with_start(start)))
            .await
            .unwrap();
        let Ok(Some(Event::NotRecovered(hello))) = within_deadline(client.next()).await else {
            panic!("no NotRecovered event")
        };
        assert_eq!((hello.from, hello.reason), (Seq::START, Some(reason)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_of_an_ended_kernel_is_read_to_its_end() {
    let (served, _) = served().await;
    let kernel = within_deadline(served.manager.start(StartRequest::new("flood")))
        .await
        .unwrap();
    let mut during = within_deadline(ResumeClient::connect(options(served.address, kernel.id())))
        .await
        .unwrap();
    let mut execution = during.execute(ExecuteRequest::new("100")).unwrap();
    while within_deadline(execution.next()).await.transpose().unwrap().is_some() {}
    within_deadline(kernel.shutdown()).await.unwrap();
    while within_deadline(during.next()).await.unwrap().is_some() {}
    assert_eq!(during.cursor().unwrap().seq, kernel.log().head());
    let mut after = within_deadline(ResumeClient::connect(options(served.address, kernel.id())))
        .await
        .unwrap();
    let mut count = 0;
    while let Some(event) = within_deadline(after.next()).await.unwrap() {
        count += u64::from(matches!(event, Event::Entry(_)));
    }
    assert_eq!(count, kernel.log().head().0);
}
