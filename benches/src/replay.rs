//! Reading a long log on disk through the gateway: all of it, and its last entries.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use gateway_client::resume::client::{Event, ResumeClient, ResumeOptions};
use gateway_client::resume::{Hello, Notice, Start};
use jupyter_protocol::KernelId;
use kernel_log::{Cursor, Seq};
use tokio::time::timeout;

use crate::log::fill;
use crate::measure::{Times, bytes, count, per_second, time};
use crate::peers::Gateway;
use crate::report::Section;
use crate::setup::{Setup, scaled};
use crate::wire::WebSocket;
use crate::{Result, process};

/// Entries of the backlog and their size: more than 1 GB of WebSocket messages.
const BACKLOG: usize = 2_200_000;
const ENTRY: usize = 500;
/// Entries of the long log, their size, and the number of attaches.
const LONG: usize = 10_000_000;
const SMALL: usize = 200;
const ATTACHES: usize = 200;
/// How many entries before the log's end an attach starts.
const FROM_END: u64 = 10;
/// Flags with which no entries are dropped.
const KEEP_ALL: [&str; 2] = ["--log-max-mib", "1048576"];
/// Timeout of each message.
const DEADLINE: Duration = Duration::from_secs(60);
/// Targets: bytes per second, growth of memory, and time of an attach.
const WANTED_RATE: f64 = 500e6;
const FLAT_BYTES: u64 = 64 << 20;
const WANTED_ATTACH: Duration = Duration::from_millis(5);

/// Runs the benchmark.
///
/// # Errors
/// If the disk fails or the gateway does not return all entries.
pub async fn run(setup: &Setup) -> Result<Section> {
    let mut section = Section::new(
        "Replay: a log on disk, to a client of the gateway",
        format!(
            "A log is written, and then read through `kernelmux-gateway` over a WebSocket of the resume protocol: \
             each entry's number is checked to be the next one. The bytes are those of the WebSocket messages. \"A \
             minimal client\" only parses frames (`wire.rs`); `ResumeClient` is the one that programs use. Client and \
             gateway share the machine's cores; the log is in the page cache. Memory is the gateway's resident set \
             before the replay, and its peak during it. An attach is a TCP connection, the WebSocket's handshake, and \
             the {FROM_END} last entries of the log of an ended kernel."
        ),
    );
    backlog(setup, &mut section).await?;
    long(setup, &mut section).await?;
    Ok(section)
}

async fn backlog(setup: &Setup, section: &mut Section) -> Result<()> {
    section.table(&[
        "replay to one client",
        "entries",
        "bytes",
        "in",
        "rate",
        "entries per second",
        "CPU of the gateway",
        "memory before, at most",
    ]);
    let data = setup.folder().join("replay");
    let kernel = KernelId::random();
    let last = fill(&data.join("logs"), kernel, scaled(BACKLOG), ENTRY).await?;
    let gateway = Gateway::kernelmux_with(setup, "replay", &KEEP_ALL).await?;
    // Opens the log, because the benchmark measures only reading it.
    hello(&mut gateway.address.resume(&kernel.to_string(), Start::Head).await?).await?;

    for ours in [false, true] {
        let before = process::memory(gateway.pid())?;
        process::reset_peak_memory(gateway.pid())?;
        let (cpu, begun) = (gateway.cpu()?, Instant::now());
        let total = match ours {
            false => {
                read_all(
                    &mut gateway.address.resume(&kernel.to_string(), Start::Earliest).await?,
                    last,
                )
                .await?
            }
            true => read_all_by_client(&gateway, kernel, last).await?,
        };
        let (wall, cpu) = (begun.elapsed(), gateway.cpu()? - cpu);
        let peak = process::peak_memory(gateway.pid())?;
        let rate = total as f64 / wall.as_secs_f64();
        section.row([
            if ours { "`ResumeClient`" } else { "a minimal client" }.to_owned(),
            count(last.0),
            bytes(total),
            time(wall),
            format!("{:.0} MB/s", rate / 1e6),
            per_second(last.0, wall.as_secs_f64()),
            time(cpu),
            format!("{} → {}", bytes(before), bytes(peak)),
        ]);
        if !ours {
            section.target(
                format!("replay of {} to a minimal client", bytes(total)),
                "≥ 500 MB/s",
                format!("{:.0} MB/s", rate / 1e6),
                rate >= WANTED_RATE,
            );
        }
        let growth = peak.saturating_sub(before);
        section.target(
            format!(
                "memory during the replay{}",
                if ours { ", to `ResumeClient`" } else { "" }
            ),
            format!("flat (here: at most {} more than before)", bytes(FLAT_BYTES)),
            format!("+{}", bytes(growth)),
            growth <= FLAT_BYTES,
        );
    }
    gateway.end()?;
    Ok(std::fs::remove_dir_all(data)?)
}

async fn long(setup: &Setup, section: &mut Section) -> Result<()> {
    section.table(&[
        "attach at the tail",
        "entries in the log",
        "first",
        "p50",
        "slowest after the first",
    ]);
    let data = setup.folder().join("long");
    let kernel = KernelId::random();
    let last = fill(&data.join("logs"), kernel, scaled(LONG), SMALL).await?;
    let gateway = Gateway::kernelmux_with(setup, "long", &KEEP_ALL).await?;
    let id = kernel.to_string();
    let logs = gateway.address.call("GET", "/api/logs", "").await?;
    let start = Start::After(Cursor {
        epoch: serde_json::from_value(logs[0]["epoch"].clone())?,
        seq: Seq(last.0 - FROM_END),
    });
    let mut times = VecDeque::with_capacity(ATTACHES);
    for _ in 0..ATTACHES {
        let begun = Instant::now();
        let mut client = gateway.address.resume(&id, start).await?;
        let hello = hello(&mut client).await?;
        if hello.earliest != Seq::START.next() || hello.head != last || !hello.recovered {
            return Err(format!(
                "of entries 1 to {last} the gateway has {} to {}",
                hello.earliest, hello.head
            )
            .into());
        }
        let mut read = hello.from;
        while read < last {
            let next = next_entry(&mut client, read).await?;
            read = next.ok_or("the log ended before its last entry")?.0;
        }
        times.push_back(begun.elapsed());
    }
    let opened = times.pop_front().unwrap_or_default();
    let times = Times::new(times.into());
    section.row([
        format!("over the gateway's WebSocket, {ATTACHES} times"),
        count(last.0),
        time(opened),
        time(times.median()),
        time(times.percentile(100)),
    ]);
    for (what, measured) in [
        ("the slowest", times.percentile(100)),
        ("the first after the gateway's start", opened),
    ] {
        section.target(
            format!("attach at the tail of {} entries, {what}", count(last.0)),
            "≤ 5 ms",
            time(measured),
            measured <= WANTED_ATTACH,
        );
    }
    gateway.end()?;
    Ok(std::fs::remove_dir_all(data)?)
}

async fn read_all(client: &mut WebSocket, last: Seq) -> Result<u64> {
    let mut read = hello(client).await?.from;
    let mut total = 0;
    while let Some((seq, bytes)) = next_entry(client, read).await? {
        read = seq;
        total += bytes;
    }
    if read != last {
        return Err(format!("the log ended after entry {read} of {last}").into());
    }
    Ok(total)
}

async fn read_all_by_client(gateway: &Gateway, kernel: KernelId, last: Seq) -> Result<u64> {
    let url = format!("http://127.0.0.1:{}", gateway.address.port);
    let options = ResumeOptions::new(url, kernel)
        .with_token(&gateway.address.token)
        .with_start(Start::Earliest);
    let mut client = ResumeClient::connect(options).await?;
    let (mut read, mut total) = (0, 0);
    while let Some(event) = timeout(DEADLINE, client.next()).await?? {
        match event {
            Event::Connected(_) => {}
            Event::Entry(entry) => {
                read += 1;
                let message = jupyter_protocol::codec::websocket_v1::encoded_len(entry.channel, &entry.message);
                total += (size_of::<u64>() + message) as u64;
            }
            other => return Err(format!("not an entry: {other:?}").into()),
        }
    }
    if read != last.0 {
        return Err(format!("the client returned {read} of {last} entries").into());
    }
    Ok(total)
}

/// Receives the `hello`, a connection's first frame.
async fn hello(client: &mut WebSocket) -> Result<Hello> {
    let frame = received(client).await?.ok_or("closed before its hello")?;
    match serde_json::from_slice(&frame)? {
        Notice::Hello(hello) => Ok(hello),
        other => Err(format!("not a hello: {other:?}").into()),
    }
}

/// Receives the entry after `after`. Returns its number and the bytes of its frame, or `None` at the end of the log.
async fn next_entry(client: &mut WebSocket, after: Seq) -> Result<Option<(Seq, u64)>> {
    let Some(frame) = received(client).await? else {
        return Ok(None);
    };
    // `docs/src/resume-protocol.md`: entries begin with their number in eight bytes, little-endian; notices are JSON.
    let number = frame.first_chunk().map(|bytes| Seq(u64::from_le_bytes(*bytes)));
    if number == Some(after.next()) {
        return Ok(Some((after.next(), frame.len() as u64)));
    }
    match serde_json::from_slice(&frame) {
        Ok(Notice::End {}) => Ok(None),
        _ => Err(format!("neither the entry after {after} nor the end arrived").into()),
    }
}

async fn received(client: &mut WebSocket) -> Result<Option<Bytes>> {
    timeout(DEADLINE, client.receive()).await?
}
