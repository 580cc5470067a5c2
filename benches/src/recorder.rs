//! Cost and losses of a flood: kernel → ZeroMQ → recorder → log on disk → WebSocket.

use std::collections::HashSet;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use bytes::Bytes;
use jupyter_protocol::codec::websocket_v1::V1Message;
use jupyter_protocol::content::ExecuteRequest;
use jupyter_protocol::header::HeaderRef;
use jupyter_protocol::{Channel, KernelId, Message, WireMessage};
use kernel_log::{DiskStore, LogStore, Origin, Seq};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::timeout;

use crate::by_hand::{Direct, Kernel};
use crate::measure::{bytes, count, per_second, time};
use crate::peers::Gateway;
use crate::report::Section;
use crate::round_trip::Shell;
use crate::setup::{FLOOD, FLOOD_IPC, Setup};
use crate::wire::WebSocket;
use crate::{Result, process};

const SMALL: u64 = 20_000;
const LARGE: u64 = 1_000_000;
/// Steps of the search for the fastest rate without loss: messages per second, and the duration of each step.
const RATES: [u64; 7] = [50_000, 100_000, 150_000, 200_000, 250_000, 300_000, 400_000];
const STEP: Duration = Duration::from_secs(3);
/// How long the second client stalls.
const STALL: Duration = Duration::from_secs(20);
/// How long a client waits for the next message once it has the reply.
const QUIET: Duration = Duration::from_secs(2);
const REPLY_DEADLINE: Duration = Duration::from_secs(300);
/// Targets: messages per second and core, and growth of memory.
const WANTED_RATE: f64 = 200_000.0;
const FLAT_BYTES: u64 = 128 << 20;

/// The results of a burst.
struct Burst {
    sent: u64,
    /// How long the kernel took to send, in seconds.
    send_seconds: f64,
    received: u64,
    /// Number of gaps in the received messages.
    gaps: u64,
    /// Messages that the second client received after its stall.
    second: Option<u64>,
    logged: u64,
    cpu: Duration,
    wall: Duration,
    memory_before: u64,
    memory_peak: u64,
    memory_after: u64,
}

impl Burst {
    fn lost(&self) -> u64 {
        self.sent
            .saturating_sub(self.received.min(self.logged).min(self.second.unwrap_or(u64::MAX)))
    }

    fn per_core(&self) -> f64 {
        self.received as f64 / self.cpu.as_secs_f64().max(0.01)
    }

    fn growth(&self) -> u64 {
        self.memory_peak.saturating_sub(self.memory_before)
    }

    fn row(&self, section: &mut Section, name: &str) {
        section.row([
            name.to_owned(),
            count(self.sent),
            per_second(self.sent, self.send_seconds),
            count(self.received),
            self.second.map_or_else(|| "–".to_owned(), count),
            count(self.logged),
            match self.gaps {
                0 => count(self.lost()),
                gaps => format!("{} in {gaps} places", count(self.lost())),
            },
            per_second(self.received, self.wall.as_secs_f64()),
            time(self.cpu),
            per_second(self.received, self.cpu.as_secs_f64().max(0.01)),
            format!(
                "{} → {} → {}",
                bytes(self.memory_before),
                bytes(self.memory_peak),
                bytes(self.memory_after)
            ),
        ]);
    }
}

const HEAD: [&str; 11] = [
    "burst",
    "sent",
    "send rate",
    "received",
    "received by the second client",
    "logged",
    "lost",
    "receive rate",
    "CPU of the gateway",
    "messages per second and core",
    "memory before, peak, after",
];

/// Runs the benchmark.
///
/// # Errors
/// If the gateway or the kernel fails.
pub async fn run(setup: &Setup) -> Result<Section> {
    let mut section = Section::new(
        "Recorder: a kernel that floods, logged to disk, to one WebSocket client",
        "A real Python kernel publishes signed stream messages of 200 B of text (about 680 B in seven frames) over \
         libzmq's XPUB, high-water mark 1,000, on TCP unless a row says Unix sockets. `kernelmux-gateway` verifies, \
         logs to disk and forwards them. Each burst has its own gateway, kernel and log; received messages are \
         counted by message number at the client and in the log on disk. CPU is user and system time of the whole \
         gateway process. Kernel, gateway and client share the machine's cores. \"jupyter_client\" signs and sends \
         messages one by one as ipykernel does; \"pyzmq\" signs them beforehand and sends them as fast as the Python \
         binding can; \"libzmq\" sends them from C.",
    );
    section.table(&HEAD);
    let session = |count| json!({"how": "session", "count": count});
    let pyzmq = |count| json!({"how": "pyzmq", "count": count});
    let libzmq = |count, rate| json!({"how": "libzmq", "count": count, "rate": rate});

    let unix = burst_of(setup, FLOOD_IPC, &pyzmq(LARGE), false).await?;
    unix.row(&mut section, "pyzmq over Unix sockets");
    section.target(
        "lost from pyzmq's burst of 1,000,000 over Unix sockets",
        "0",
        count(unix.lost()),
        unix.lost() == 0,
    );
    let as_ipykernel = burst(setup, &session(SMALL * 5), false).await?;
    as_ipykernel.row(&mut section, "jupyter_client");
    let small = burst(setup, &pyzmq(SMALL), false).await?;
    small.row(&mut section, "pyzmq");
    let large = burst(setup, &pyzmq(LARGE), false).await?;
    large.row(&mut section, "pyzmq");
    let stalled = burst(setup, &pyzmq(LARGE), true).await?;
    stalled.row(&mut section, "pyzmq, while a second client stalls for 20 s");
    section.target(
        "messages per second and core",
        "≥ 200,000/s",
        per_second(large.received, large.cpu.as_secs_f64()),
        large.per_core() >= WANTED_RATE,
    );
    for (what, burst) in [
        ("jupyter_client's burst", &as_ipykernel),
        ("pyzmq's burst of 20,000", &small),
        ("pyzmq's burst of 1,000,000", &large),
        ("pyzmq's burst while a second client stalls for 20 s", &stalled),
    ] {
        section.target(format!("lost from {what}"), "0", count(burst.lost()), burst.lost() == 0);
    }
    section.target(
        "memory while the second client stalls",
        format!("flat (here: at most {} more than before)", bytes(FLAT_BYTES)),
        format!(
            "+{} at most; +{} without a stalled client",
            bytes(stalled.growth()),
            bytes(large.growth())
        ),
        stalled.growth() <= FLAT_BYTES,
    );

    section.table(&HEAD);
    let (mut kept, mut losing) = (None, None);
    for rate in RATES {
        let flood = libzmq(rate * STEP.as_secs(), Some(rate));
        let paced = burst(setup, &flood, false).await?;
        let wanted = per_second(rate, 1.0);
        paced.row(&mut section, &format!("libzmq, {wanted} wanted"));
        let ipc = burst_of(setup, FLOOD_IPC, &flood, false).await?;
        ipc.row(&mut section, &format!("libzmq over Unix sockets, {wanted} wanted"));
        let reported = per_second(paced.sent, paced.send_seconds);
        if paced.lost() > 0 {
            losing.get_or_insert(reported);
        } else if losing.is_none() {
            kept = Some(reported);
        }
    }
    for count in [SMALL, LARGE] {
        let unpaced = burst(setup, &libzmq(count, None), false).await?;
        unpaced.row(&mut section, "libzmq, without pause");
        let mut waiting = libzmq(count, None);
        waiting["nodrop"] = true.into();
        let nodrop = burst(setup, &waiting, false).await?;
        nodrop.row(&mut section, "libzmq, without pause, XPUB_NODROP");
        for (what, burst) in [("", &unpaced), (", XPUB_NODROP set by the kernel", &nodrop)] {
            section.target(
                format!(
                    "lost from libzmq's burst of {} without pause{what}",
                    crate::measure::count(count)
                ),
                "0",
                crate::measure::count(burst.lost()),
                burst.lost() == 0,
            );
        }
    }
    section.table(&[
        "a bare libzmq subscriber instead of kernelmux",
        "sent",
        "send rate",
        "received",
        "missed",
        "messages per second and core",
    ]);
    for (name, flood) in [
        ("pyzmq", pyzmq(SMALL)),
        ("pyzmq", pyzmq(LARGE)),
        ("libzmq, without pause", libzmq(SMALL, None)),
        ("libzmq, without pause", libzmq(LARGE, None)),
    ] {
        bare(setup, &mut section, name, &flood).await?;
    }
    section.note(
        "In the last table, the same kernel sends to libzmq's own subscriber in C, which has an unbounded queue and \
         verifies, keeps and forwards nothing. The kernel's socket dropped the missed messages before they were sent, \
         for lack of CPU or queue space, so no recorder could have received them. The subscriber's rate per core \
         shows how fast this machine is.",
    );
    section.note(format!(
        "On this machine, the fastest steady rate without loss was {}, and loss was first seen at {}. A \
         kernel with `XPUB_NODROP` is slowed down instead.",
        kept.unwrap_or_else(|| "none of these".to_owned()),
        losing.unwrap_or_else(|| "none of these".to_owned()),
    ));
    Ok(section)
}

/// Measures a burst over TCP, with a new gateway and kernel.
async fn burst(setup: &Setup, flood: &Value, stalled: bool) -> Result<Burst> {
    burst_of(setup, FLOOD, flood, stalled).await
}

/// Like [`burst`], with a kernel of this kernelspec.
async fn burst_of(setup: &Setup, spec: &str, flood: &Value, stalled: bool) -> Result<Burst> {
    let data = format!("recorder-{}", uuid::Uuid::new_v4());
    let gateway = Gateway::kernelmux(setup, &data).await?;
    let kernel = gateway.address.start_kernel(spec).await?;
    let mut client = gateway.address.channels(&kernel, "first").await?;
    let mut second = match stalled {
        true => Some(gateway.address.channels(&kernel, "second").await?),
        false => None,
    };
    // Lets the gateway finish starting the kernel, so that this is not measured.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let memory_before = process::memory(gateway.pid())?;
    process::reset_peak_memory(gateway.pid())?;
    let cpu_before = gateway.cpu()?;
    let begun = Instant::now();
    let request = Message::new(ExecuteRequest::new(flood.to_string()), "first");
    client.send(Channel::Shell, &request.to_wire()).await?;
    let mut counted = Counted::default();
    counted.count(&mut client, true).await?;
    let reply = counted.reply.take().ok_or("the kernel did not reply")?;
    let cpu = gateway.cpu()? - cpu_before;
    let second = match &mut second {
        Some(second) => {
            tokio::time::sleep(STALL.saturating_sub(begun.elapsed())).await;
            let mut counted = Counted::default();
            counted.count(second, false).await?;
            Some(counted.distinct())
        }
        None => None,
    };
    let memory_peak = process::peak_memory(gateway.pid())?;
    let memory_after = process::memory(gateway.pid())?;
    let wall = counted.wall();
    drop(client);
    gateway.end()?;
    let data = setup.folder().join(data);
    let logged = logged(&data.join("logs"), kernel.parse()?)?;
    std::fs::remove_dir_all(&data)?;
    let reported = &reply["user_expressions"];
    Ok(Burst {
        sent: reported["sent"]
            .as_u64()
            .ok_or("the kernel does not report how many messages it sent")?,
        send_seconds: reported["seconds"].as_f64().unwrap_or_default(),
        received: counted.distinct(),
        gaps: counted.gaps(),
        second,
        logged,
        cpu,
        wall,
        memory_before,
        memory_peak,
        memory_after,
    })
}

/// Measures how many messages of a burst a minimal subscriber misses.
async fn bare(setup: &Setup, section: &mut Section, name: &str, flood: &Value) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let kernel = Kernel::flood(setup, folder.path())?;
    kernel.wait()?;
    let mut drain = tokio::process::Command::from(setup.drain())
        .arg(kernel.connection_file())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(drain.stdout.take().ok_or("no output")?).lines();
    // The subscriber reports its first message. Requests make the kernel publish until then.
    let mut shell = Shell::Direct(Box::new(Direct::to_shell(&kernel.info).await?));
    loop {
        shell.ask().await?;
        if let Ok(line) = timeout(Duration::from_millis(100), lines.next_line()).await {
            line?.ok_or("the bare subscriber ended")?;
            break;
        }
    }
    let request = Message::new(ExecuteRequest::new(flood.to_string()), "bench");
    let reply = shell.request(&request).await?;
    let reply: Value = serde_json::from_slice(reply.content())?;
    let line = lines.next_line().await?.ok_or("the bare subscriber ended")?;
    let (got, seconds) = line.split_once(' ').ok_or("the bare subscriber reports no result")?;
    let (got, seconds): (u64, f64) = (got.parse()?, seconds.parse()?);
    let reported = &reply["user_expressions"];
    let sent = reported["sent"]
        .as_u64()
        .ok_or("the kernel does not report how many messages it sent")?;
    section.row([
        name.to_owned(),
        count(sent),
        per_second(sent, reported["seconds"].as_f64().unwrap_or_default()),
        count(got),
        count(sent.saturating_sub(got)),
        per_second(got, seconds),
    ]);
    Ok(())
}

/// Messages that a client received.
#[derive(Default)]
struct Counted {
    numbers: Vec<u64>,
    first: Option<Instant>,
    last: Option<Instant>,
    reply: Option<Value>,
}

impl Counted {
    /// Reads until the reply, if one is expected, and then until no message arrives for a while.
    async fn count(&mut self, client: &mut WebSocket, reply: bool) -> Result<()> {
        loop {
            let deadline = if reply && self.reply.is_none() {
                REPLY_DEADLINE
            } else {
                QUIET
            };
            match timeout(deadline, client.receive()).await {
                Ok(data) => self.take(&data?.ok_or("the WebSocket was closed")?)?,
                Err(_) => return Ok(()),
            }
        }
    }

    fn take(&mut self, data: &Bytes) -> Result<()> {
        let message = V1Message::parse(data)?;
        let header = HeaderRef::parse(message.header())?;
        if header.msg_type == "stream" {
            self.numbers.push(number(&header.msg_id)?);
            let now = Instant::now();
            self.first.get_or_insert(now);
            self.last = Some(now);
        } else if header.msg_type == "execute_reply" {
            self.reply = Some(serde_json::from_slice(message.content())?);
        }
        Ok(())
    }

    fn distinct(&mut self) -> u64 {
        self.numbers.sort_unstable();
        self.numbers.dedup();
        self.numbers.len() as u64
    }

    /// Number of gaps before the last received number.
    fn gaps(&mut self) -> u64 {
        self.distinct();
        self.numbers.windows(2).filter(|pair| pair[1] != pair[0] + 1).count() as u64
    }

    fn wall(&self) -> Duration {
        self.last
            .zip(self.first)
            .map(|(last, first)| last - first)
            .unwrap_or_default()
    }
}

/// The number at the end of a message id.
pub(crate) fn number(msg_id: &str) -> Result<u64> {
    Ok(msg_id.rsplit('_').next().unwrap_or_default().parse()?)
}

/// Counts the stream messages of a log on disk.
fn logged(store: &Path, kernel: KernelId) -> Result<u64> {
    let store = DiskStore::open(store)?;
    let log = store.open(kernel)?;
    let mut numbers = HashSet::new();
    let mut position = Seq::START;
    loop {
        let blocks = log.read(position, 1 << 20)?;
        let Some(last) = blocks.last() else {
            return Ok(numbers.len() as u64);
        };
        position = last.last();
        for entry in blocks.iter().flat_map(kernel_log::Block::entries) {
            let message: WireMessage = entry.message();
            let header = message.header_ref()?;
            if entry.origin() == Origin::Kernel && header.msg_type == "stream" {
                numbers.insert(number(&header.msg_id)?);
            }
        }
    }
}
