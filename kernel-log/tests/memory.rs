//! A process's memory does not grow with its logs. With `KERNELMUX_LONG` set, the long log has ten million entries.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::{entry, message};
use jupyter_protocol::KernelId;
use kernel_log::{DiskStore, Log, LogOptions, Logs, Seq};

const MIB: u64 = 1 << 20;
/// Bytes of an entry's text.
const SMALL: usize = 100;
/// Number of readers opened near the long log's end.
const ATTACHES: usize = 200;

/// Serializes the tests, because each measures the memory of the whole process.
fn serialize() -> MutexGuard<'static, ()> {
    static RUNNING: Mutex<()> = Mutex::new(());
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn long() -> bool {
    std::env::var_os("KERNELMUX_LONG").is_some()
}

fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// The store keeps all entries. The log itself keeps few in memory, before and after they are stored, so that the tests
/// measure the store's memory.
fn options() -> LogOptions {
    let mut options = LogOptions::default();
    options.stored_bytes = 1 << 40;
    options.waiting_bytes = MIB as usize;
    options.memory_bytes = 64 << 10;
    options
}

fn open(folder: &Path) -> Logs {
    Logs::new(Arc::new(DiskStore::open(folder).unwrap()), options()).unwrap()
}

async fn fill(log: &Log, entries: u64, size: usize) {
    let message = message(0, size);
    for _ in 0..entries.div_ceil(64) {
        log.room().await;
        log.append((0..64).map(|_| entry(&message)));
    }
    log.flushed().await;
}

fn run(test: impl Future<Output = ()>) {
    let _running = serialize();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(test);
}

#[test]
fn memory_does_not_grow_with_the_length_of_a_log() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let id = KernelId::random();
        let tenth = if long() { 1_000_000 } else { 128_000 };
        let logs = open(folder.path());
        let log = logs.open(id).await.unwrap();
        fill(&log, tenth, SMALL).await;
        let (before, mut most) = (resident(), 0);
        for _ in 0..9 {
            fill(&log, tenth, SMALL).await;
            most = most.max(resident());
        }
        let head = log.head();
        drop(log);
        logs.close().await.unwrap();
        println!("{} MiB with a tenth, {} MiB at most", before / MIB, most / MIB);
        assert!(
            most < before + 64 * MIB,
            "{before} bytes of memory with a tenth of the log, {most} at most"
        );

        // Reopening does not read the log, and finding an entry near its end does not depend on its length.
        let before = resident();
        let begun = Instant::now();
        let logs = open(folder.path());
        let log = logs.open(id).await.unwrap();
        let opened = begun.elapsed();
        assert_eq!((log.earliest(), log.head()), (Seq(1), head));
        let after = resident();
        println!("opened in {opened:?}, {} to {} MiB", before / MIB, after / MIB);
        assert!(
            after < before + 64 * MIB,
            "{before} bytes before it was opened, {after} after"
        );
        let mut times = Vec::new();
        for back in 0..ATTACHES as u64 {
            let begun = Instant::now();
            let mut reader = log.reader(Seq(head.0 - 1 - back));
            reader.next().await.unwrap().unwrap();
            times.push(begun.elapsed());
        }
        times.sort_unstable();
        let (middle, slowest) = (times[ATTACHES / 2], times[ATTACHES - 1]);
        println!("an entry near the end is read in {middle:?}, {slowest:?} at most");
        // Times are checked only in release builds with the long log, which run no other tests at the same time.
        if long() && !cfg!(debug_assertions) {
            assert!(opened < Duration::from_secs(1), "opened in {opened:?}");
            assert!(
                slowest < Duration::from_millis(5),
                "an entry near the end is read in {middle:?}, {slowest:?} at most"
            );
        }
    });
}

#[test]
fn many_logs_share_one_bound_on_memory() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let logs = open(folder.path());
        let mut open = Vec::new();
        for _ in 0..64 {
            open.push(logs.open(KernelId::random()).await.unwrap());
        }
        let before = resident();
        let mut most = 0;
        for _ in 0..6 {
            for log in &open {
                fill(log, 1_024, 1_024).await;
            }
            most = most.max(resident());
        }
        println!("{} MiB before, {} MiB at most, of 384 MiB", before / MIB, most / MIB);
        assert!(
            most < before + 128 * MIB,
            "{before} bytes of memory before, {most} at most"
        );
        drop(open);
        logs.close().await.unwrap();
    });
}

#[test]
fn readers_of_large_messages_share_one_bound_on_memory() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    // Above the size for which malloc keeps freed memory.
    const MESSAGE: usize = 40 << 20;
    run(async {
        let folder = tempfile::tempdir().unwrap();
        // Enough memory for one message.
        let options = options().with_reading_bytes(MESSAGE * 3 / 2);
        let logs = Arc::new(Logs::new(Arc::new(DiskStore::open(folder.path()).unwrap()), options).unwrap());
        let ids: Vec<_> = (0..4).map(|_| KernelId::random()).collect();
        for id in &ids {
            let log = logs.open(*id).await.unwrap();
            log.append([entry(&message(1, MESSAGE))]);
            log.append([entry(&message(2, 10))]);
            log.flushed().await;
        }
        let holding = Arc::new(AtomicUsize::new(0));
        let before = resident();
        let mut readers = Vec::new();
        for id in ids {
            // Several readers of a log share its message.
            for _ in 0..3 {
                let log = logs.open(id).await.unwrap();
                let holding = holding.clone();
                readers.push(tokio::spawn(async move {
                    let mut reader = log.reader(Seq::START);
                    let block = reader.next().await.unwrap().unwrap();
                    assert!(block.size() > MESSAGE);
                    let held = holding.fetch_add(1, Ordering::SeqCst);
                    assert!(held < 3, "{held} other readers hold a message");
                    tokio::task::yield_now().await;
                    let resident = resident();
                    drop(block);
                    holding.fetch_sub(1, Ordering::SeqCst);
                    let block = reader.next().await.unwrap().unwrap();
                    assert_eq!(block.first(), Seq(2));
                    resident
                }));
            }
        }
        let mut most = 0;
        for reader in readers {
            most = most.max(reader.await.unwrap());
        }
        let grown = most.saturating_sub(before);
        // Only one of the four messages is in memory at a time.
        assert!(
            grown < 3 * MESSAGE as u64,
            "{grown} bytes of memory for messages of {MESSAGE}"
        );
    });
}
