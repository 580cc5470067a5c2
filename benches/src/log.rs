//! The log on disk, against raw files.

use std::fs::File;
use std::hint::black_box;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use jupyter_protocol::{Channel, WireMessage};
use kernel_provider::KernelId;
use kernel_provider::log::{Block, FjallStore, LogOptions, LogStore, Logs, MemoryStore, NewEntry, Origin, Seq};

use crate::Result;
use crate::measure::{bytes, count, per_second, ratio};
use crate::report::Section;

/// Bytes of an entry.
const ENTRY: usize = 500;
/// Entries in a run where they come in batches, and where each comes alone.
const BATCHED: usize = 1_000_000;
const SINGLE: usize = 100_000;
/// Entries in a batch.
const BATCH: usize = 64;
/// Bytes read at a time in a scan.
const READ: usize = 1 << 20;

/// Runs the benchmark.
///
/// # Errors
/// Where the disk says no.
pub fn run() -> Result<Section> {
    let mut section = Section::new(
        "Log: fjall against raw files",
        format!(
            "Entries of about {ENTRY} B. A raw file takes the same blocks by `write` and gives them by `read` of {}; \
             neither is synced to the disk, and scans come from the page cache. \"Store\" is `FjallStore` alone, \"log\" \
             is what the recorder uses: `Log::append`, the writer thread, until all is stored; its scan is a `Reader`. \
             No mark was set.",
            bytes(READ as u64)
        ),
    );
    section.table(&[
        "",
        "entries",
        "append",
        "against the raw file",
        "scan",
        "against the raw file",
    ]);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    for (name, entries, batch) in [("batches of 64", BATCHED, BATCH), ("one by one", SINGLE, 1)] {
        let folder = tempfile::tempdir()?;
        let blocks = runtime.block_on(blocks(entries, batch))?;
        let total: usize = blocks.iter().map(|block| block.bytes().len()).sum();
        let raw = raw_file(&folder.path().join("raw"), &blocks)?;
        let store = store(&folder.path().join("store"), &blocks)?;
        let log = runtime.block_on(log(&folder.path().join("log"), entries, batch))?;
        for (what, run) in [("raw file", &raw), ("store", &store), ("log", &log)] {
            let against = |of: fn(&Run) -> Duration| ratio(of(run).as_secs_f64() / of(&raw).as_secs_f64());
            section.row([
                format!("{name}: {what}"),
                count(entries as u64),
                per_second(entries as u64, run.append.as_secs_f64()),
                against(|run| run.append),
                format!("{:.2} GB/s", total as f64 / run.scan.as_secs_f64() / 1e9),
                against(|run| run.scan),
            ]);
        }
    }
    Ok(section)
}

struct Run {
    append: Duration,
    scan: Duration,
}

/// A message that makes an entry of [`ENTRY`] bytes.
fn message() -> WireMessage {
    let header = r#"{"msg_id":"d3f9c3c2-6d1f1b2a5a9b4f1e8c7d_4711_7","msg_type":"stream","version":"5.4"}"#;
    let parts = [header, "{}", "{}", r#"{"name":"stdout","text":""}"#].map(|part| Bytes::from_static(part.as_bytes()));
    let fixed = 24 + 72 + 5 + parts.iter().map(Bytes::len).sum::<usize>();
    let [header, parent, metadata, _] = parts;
    let text = "x".repeat(ENTRY.saturating_sub(fixed));
    let content = Bytes::from(format!(r#"{{"name":"stdout","text":"{text}"}}"#));
    WireMessage::from_parts([header, parent, metadata, content], [])
}

fn new_entry(message: &WireMessage) -> NewEntry<'_> {
    NewEntry {
        origin: Origin::Kernel,
        channel: Channel::Iopub,
        session: "",
        message,
    }
}

/// The blocks that the writer thread would make of these batches.
async fn blocks(entries: usize, batch: usize) -> Result<Vec<Block>> {
    let mut options = LogOptions::default();
    options.memory_bytes = usize::MAX;
    let logs = Logs::new(Arc::new(MemoryStore::new()), options)?;
    let log = logs.open(KernelId::random()).await?;
    let mut reader = log.reader(Seq::START);
    let message = message();
    let mut blocks = Vec::with_capacity(entries / batch);
    for _ in 0..entries / batch {
        log.append((0..batch).map(|_| new_entry(&message)));
        blocks.push(reader.next().await?.ok_or("the log ended")?);
    }
    Ok(blocks)
}

fn raw_file(path: &Path, blocks: &[Block]) -> Result<Run> {
    let mut file = File::create(path)?;
    let begun = Instant::now();
    for block in blocks {
        file.write_all(block.bytes())?;
    }
    let append = begun.elapsed();
    let mut file = File::open(path)?;
    let mut buffer = vec![0; READ];
    let begun = Instant::now();
    while file.read(&mut buffer)? > 0 {
        black_box(&buffer);
    }
    Ok(Run {
        append,
        scan: begun.elapsed(),
    })
}

fn store(path: &Path, blocks: &[Block]) -> Result<Run> {
    let store = FjallStore::open(path)?;
    let log = store.open(KernelId::random())?;
    let begun = Instant::now();
    for block in blocks {
        log.append(block)?;
    }
    let append = begun.elapsed();
    let last = blocks.last().map_or(Seq::START, Block::last);
    let begun = Instant::now();
    let mut position = Seq::START;
    while position < last {
        let read = log.read(position, READ)?;
        position = read.last().ok_or("the store lost entries")?.last();
        black_box(read);
    }
    Ok(Run {
        append,
        scan: begun.elapsed(),
    })
}

async fn log(path: &Path, entries: usize, batch: usize) -> Result<Run> {
    let logs = Logs::new(Arc::new(FjallStore::open(path)?), LogOptions::default())?;
    let log = logs.open(KernelId::random()).await?;
    let message = message();
    let begun = Instant::now();
    let mut last = Seq::START;
    for _ in 0..entries / batch {
        log.room().await;
        last = log.append((0..batch).map(|_| new_entry(&message)));
    }
    log.flushed().await;
    let append = begun.elapsed();
    let begun = Instant::now();
    let mut reader = log.reader(Seq::START);
    while reader.position() < last {
        black_box(reader.next().await?);
    }
    Ok(Run {
        append,
        scan: begun.elapsed(),
    })
}
