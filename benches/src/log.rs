//! The log on disk, compared with raw files.

use std::fs::File;
use std::hint::black_box;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use jupyter_protocol::{Channel, KernelId, WireMessage};
use kernel_log::{Block, DiskStore, Durability, Log, LogOptions, LogStore, Logs, MemoryStore, NewEntry, Origin, Seq};

use crate::measure::{bytes, count, per_second, ratio, time};
use crate::report::Section;
use crate::setup::scaled;
use crate::{Result, process};

/// Bytes of an entry.
const ENTRY: usize = 500;
/// Entries in a run with batches, and in a run with single appends.
const BATCHED: usize = 1_000_000;
const SINGLE: usize = 100_000;
/// Entries in a batch.
const BATCH: usize = 64;
/// Entries of the backlog that is read again, of 1 GB in total.
const BACKLOG: usize = 2_000_000;
/// Entries of the long log, and their size in bytes.
const LONG: usize = 10_000_000;
const SMALL: usize = 200;
/// Logs in the store of many logs, and how many of them are removed.
const MANY: usize = 10_000;
const REMOVED: usize = 400;
/// Readers opened near the end of the long log.
const ATTACHES: usize = 200;
/// Bytes read at a time in a scan.
const READ: usize = 1 << 20;
/// Bytes between syncs of the synced raw file: the size of a segment of the store.
const SYNC_BYTES: usize = 8 << 20;

/// Runs the benchmark.
///
/// # Errors
/// If the disk fails.
pub fn run() -> Result<Section> {
    let mut section = Section::new(
        "Log: segment files against raw files",
        format!(
            "Entries of about {ENTRY} B. A raw file is written with the same blocks, each with one `write`, and read \
             with `read`s of {}. All scans read from the page cache. A second raw file is synced after every {}, and \
             the log in the background; the others are not synced. \"Store\" is `DiskStore` alone. \"Log\" is `Log`, \
             which the recorder uses: its append time ends when the writer thread has stored everything, and a \
             `Reader` scans it. A log on disk is opened again after its writer has ended. Memory is the growth of the \
             benchmark's resident set.",
            bytes(READ as u64),
            bytes(SYNC_BYTES as u64),
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
        let raw = raw_file(&folder.path().join("raw"), &blocks, usize::MAX)?;
        let synced = raw_file(&folder.path().join("synced"), &blocks, SYNC_BYTES)?;
        let store = store(&folder.path().join("store"), &blocks)?;
        let log = runtime.block_on(log(&folder.path().join("log"), entries, batch))?;
        for (what, run) in [
            ("raw file", &raw),
            ("raw file, synced", &synced),
            ("store", &store),
            ("log", &log),
        ] {
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
    section.table(&["a log on disk", "measured", "memory"]);
    runtime.block_on(backlog(&mut section))?;
    runtime.block_on(long(&mut section))?;
    runtime.block_on(many(&mut section))?;
    Ok(section)
}

/// Reopens a log of 1 GB, without entries in the process's memory, and reads it from its first entry.
async fn backlog(section: &mut Section) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let id = KernelId::random();
    let last = fill(folder.path(), id, scaled(BACKLOG), ENTRY).await?;
    let before = process::memory(std::process::id())?;
    let begun = Instant::now();
    let logs = Logs::new(Arc::new(DiskStore::open(folder.path())?), keep_all())?;
    let log = logs.open(id).await?;
    check_complete(&log, last)?;
    let opened = begun.elapsed();
    let memory = process::memory(std::process::id())?;
    let begun = Instant::now();
    let (mut total, mut most) = (0, 0);
    let mut reader = log.reader(Seq::START);
    while reader.position() < last {
        let block = reader.next().await?.ok_or("the log ended")?;
        total += block.bytes().len();
        most = most.max(process::memory(std::process::id())?);
        black_box(block);
    }
    let read = begun.elapsed();
    let rate = total as f64 / read.as_secs_f64() / 1e6;
    section.row([
        format!("opened again, {}", bytes(total as u64)),
        time(opened),
        format!("+ {}", bytes(memory.saturating_sub(before))),
    ]);
    section.row([
        format!("read again, {}", bytes(total as u64)),
        format!("{rate:.0} MB/s"),
        format!("+ {}", bytes(most.saturating_sub(memory))),
    ]);
    section.target(
        format!("{} opened again", bytes(total as u64)),
        "< 1 s",
        time(opened),
        opened.as_secs_f64() < 1.0,
    );
    section.target(
        format!("{} read again", bytes(total as u64)),
        "≥ 500 MB/s",
        format!("{rate:.0} MB/s"),
        rate >= 500.0,
    );
    Ok(())
}

/// Measures memory, and the time to reach the end, with ten million small entries in one log.
async fn long(section: &mut Section) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let id = KernelId::random();
    let before = process::memory(std::process::id())?;
    let begun = Instant::now();
    let last = fill(folder.path(), id, scaled(LONG), SMALL).await?;
    let filled = begun.elapsed();
    let after = process::memory(std::process::id())?;
    let logs = Logs::new(Arc::new(DiskStore::open(folder.path())?), keep_all())?;
    let log = logs.open(id).await?;
    check_complete(&log, last)?;
    // The log was just opened, so the first reader finds the entries on disk.
    let mut times = Vec::with_capacity(ATTACHES);
    for back in 0..ATTACHES {
        let begun = Instant::now();
        let mut reader = log.reader(Seq(last.0 - 1 - back as u64));
        black_box(reader.next().await?);
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    let slowest = times[ATTACHES - 1];
    section.row([
        format!("appended, {} entries", count(last.0)),
        per_second(last.0, filled.as_secs_f64()),
        format!("+ {}", bytes(after.saturating_sub(before))),
    ]);
    section.row([
        format!("a reader at its tail, the slowest of {ATTACHES}"),
        time(slowest),
        String::new(),
    ]);
    section.target(
        format!("a reader at the tail of {} entries, the slowest", count(last.0)),
        "≤ 5 ms",
        time(slowest),
        slowest.as_secs_f64() <= 0.005,
    );
    Ok(())
}

/// Opens a store with many logs of kernels that did little, and removes some.
async fn many(section: &mut Section) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let logs_count = scaled(MANY);
    let message = message(ENTRY);
    {
        let store = Arc::new(DiskStore::open(folder.path())?);
        let logs = Logs::new(store, LogOptions::default().with_durability(Durability::Process))?;
        for _ in 0..logs_count {
            let log = logs.open(KernelId::random()).await?;
            log.append((0..3).map(|_| new_entry(&message)));
            log.flushed().await;
        }
        logs.close().await?;
    }
    let before = process::memory(std::process::id())?;
    let begun = Instant::now();
    let store = DiskStore::open(folder.path())?;
    let list = store.list()?;
    let opened = begun.elapsed();
    if list.len() != logs_count {
        return Err(format!("{} of {logs_count} logs are listed", list.len()).into());
    }
    let memory = process::memory(std::process::id())?;
    let begun = Instant::now();
    for info in list.iter().take(REMOVED) {
        store.remove(info.id)?;
    }
    let removed = begun.elapsed();
    section.row([
        format!("opened and listed, {} logs", count(logs_count as u64)),
        time(opened),
        format!("+ {}", bytes(memory.saturating_sub(before))),
    ]);
    section.row([format!("removed, {REMOVED} logs"), time(removed), String::new()]);
    section.target(
        format!("{} logs opened and listed", count(logs_count as u64)),
        "≤ 1 s",
        time(opened),
        opened.as_secs_f64() <= 1.0,
    );
    Ok(())
}

/// Options that keep all entries.
fn keep_all() -> LogOptions {
    let mut options = LogOptions::default();
    options.stored_bytes = 1 << 40;
    options
}

fn check_complete(log: &Log, last: Seq) -> Result<()> {
    if log.earliest() != Seq::START.next() || log.head() != last {
        let (earliest, head) = (log.earliest(), log.head());
        return Err(format!("of entries 1 to {last} the log has {earliest} to {head}").into());
    }
    Ok(())
}

/// Writes a log with this number of entries of about this size, and returns the number of the last one.
pub(crate) async fn fill(path: &Path, id: KernelId, entries: usize, size: usize) -> Result<Seq> {
    let logs = Logs::new(Arc::new(DiskStore::open(path)?), keep_all())?;
    let log = logs.open(id).await?;
    let message = message(size);
    let mut last = Seq::START;
    for _ in 0..entries.div_ceil(BATCH) {
        log.room().await;
        last = log.append((0..BATCH).map(|_| new_entry(&message)));
    }
    log.flushed().await;
    drop(log);
    logs.close().await?;
    Ok(last)
}

struct Run {
    append: Duration,
    scan: Duration,
}

/// Makes a message for an entry of about this size.
fn message(size: usize) -> WireMessage {
    let header = r#"{"msg_id":"d3f9c3c2-6d1f1b2a5a9b4f1e8c7d_4711_7","msg_type":"stream","version":"5.4"}"#;
    let parts = [header, "{}", "{}", r#"{"name":"stdout","text":""}"#].map(|part| Bytes::from_static(part.as_bytes()));
    let fixed = 24 + 72 + 5 + parts.iter().map(Bytes::len).sum::<usize>();
    let [header, parent, metadata, _] = parts;
    let text = "x".repeat(size.saturating_sub(fixed));
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

/// Makes the same blocks as the writer thread makes from batches of this size.
async fn blocks(entries: usize, batch: usize) -> Result<Vec<Block>> {
    let mut options = LogOptions::default();
    options.memory_bytes = usize::MAX;
    let logs = Logs::new(Arc::new(MemoryStore::new()), options)?;
    let log = logs.open(KernelId::random()).await?;
    let mut reader = log.reader(Seq::START);
    let message = message(ENTRY);
    let mut blocks = Vec::with_capacity(entries / batch);
    for _ in 0..entries / batch {
        log.append((0..batch).map(|_| new_entry(&message)));
        blocks.push(reader.next().await?.ok_or("the log ended")?);
    }
    Ok(blocks)
}

/// Measures writing the blocks to a file that is synced after every `synced` bytes, and reading the file.
fn raw_file(path: &Path, blocks: &[Block], synced: usize) -> Result<Run> {
    let mut file = File::create(path)?;
    let mut unsynced = 0;
    let begun = Instant::now();
    for block in blocks {
        file.write_all(block.bytes())?;
        unsynced += block.bytes().len();
        if unsynced >= synced {
            file.sync_data()?;
            unsynced = 0;
        }
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
    let store = DiskStore::open(path)?;
    let log = store.open(KernelId::random())?;
    let begun = Instant::now();
    for block in blocks {
        log.append(block, &[])?;
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
    let logs = Logs::new(Arc::new(DiskStore::open(path)?), LogOptions::default())?;
    let log = logs.open(KernelId::random()).await?;
    let message = message(ENTRY);
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
