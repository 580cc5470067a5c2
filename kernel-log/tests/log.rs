//! The log on the stores in memory and on disk.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use jupyter_protocol::{Channel, KernelId};
use kernel_log::{
    Block, Cursor, Epoch, FjallStore, IndexUpdate, InvalidCursor, Log, LogInfo, LogOptions, LogStore, Logs,
    MemoryStore, NewEntry, Origin, ReadError, RemoveError, Retention, Seq, StoreError, StoredLog,
};

use common::{append, flushed_and_trimmed, message, read_to};

fn stores() -> Vec<(&'static str, Arc<dyn LogStore>, Option<tempfile::TempDir>)> {
    let folder = tempfile::tempdir().unwrap();
    let fjall = FjallStore::open(folder.path()).unwrap();
    vec![
        ("memory", Arc::new(MemoryStore::new()), None),
        ("fjall", Arc::new(fjall), Some(folder)),
    ]
}

fn options(memory_bytes: usize) -> LogOptions {
    let mut options = LogOptions::default();
    options.memory_bytes = memory_bytes;
    options
}

#[tokio::test(flavor = "multi_thread")]
async fn every_reader_reads_every_entry_once_wherever_it_starts() {
    for (name, store, _folder) in stores() {
        let logs = Logs::new(store, options(10_000)).unwrap();
        let log = logs.open(KernelId::random()).await.unwrap();
        let mut early = log.reader(Seq::START);
        append(&log, 1..=2_000, 100);
        let mut middle = log.reader(Seq(1_234));
        log.flushed().await;
        let mut late = log.reader(log.head());
        append(&log, 2_001..=2_010, 100);
        assert_eq!(
            read_to(&mut early, 2_010).await,
            (1..=2_010).collect::<Vec<_>>(),
            "{name}"
        );
        assert_eq!(
            read_to(&mut middle, 2_010).await,
            (1_235..=2_010).collect::<Vec<_>>(),
            "{name}"
        );
        assert_eq!(
            read_to(&mut late, 2_010).await,
            (2_001..=2_010).collect::<Vec<_>>(),
            "{name}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_waits_for_the_next_entry_and_ends_when_the_log_is_closed() {
    for (name, store, _folder) in stores() {
        let logs = Logs::new(store, LogOptions::default()).unwrap();
        let log = logs.open(KernelId::random()).await.unwrap();
        let mut reader = log.reader(Seq::START);
        assert!(reader.recent().unwrap().is_none(), "{name}");
        let waiting = tokio::spawn(async move {
            let first = reader.next().await.unwrap().map(|block| block.last());
            let end = reader.next().await.unwrap().is_none();
            (first, end)
        });
        append(&log, [1], 1);
        log.close();
        assert_eq!(waiting.await.unwrap(), (Some(Seq(1)), true), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_drops_its_oldest_entries_at_its_bound_and_reports_a_gap() {
    for (name, store, _folder) in stores() {
        let mut options = options(1_000);
        options.stored_bytes = 100_000;
        let logs = Logs::new(store, options).unwrap();
        let log = logs.open(KernelId::random()).await.unwrap();
        let mut reader = log.reader(Seq::START);
        append(&log, 1..=5_000, 100);
        flushed_and_trimmed(&log).await;
        let Err(ReadError::Gap { first, last }) = reader.next().await else {
            panic!("{name}: the oldest entries were dropped, and no gap is reported");
        };
        assert_eq!(first, Seq(1), "{name}");
        let rest = read_to(&mut reader, 5_000).await;
        assert_eq!(rest, (last.0 + 1..=5_000).collect::<Vec<_>>(), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reopened_log_on_disk_continues_its_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let id = KernelId::random();
    let mut epochs = Vec::new();
    for round in 0..3_u64 {
        let store = Arc::new(FjallStore::open(folder.path()).unwrap());
        let logs = Logs::new(store, LogOptions::default()).unwrap();
        let log = logs.open(id).await.unwrap();
        assert_eq!(log.head(), Seq(round * 10));
        epochs.push(log.epoch());
        append(&log, round * 10 + 1..=round * 10 + 10, 100);
        log.flushed().await;
        let mut reader = log.reader(Seq(round * 10 / 2));
        read_to(&mut reader, round * 10 + 10).await;
        drop((reader, log));
        logs.close().await.unwrap();
    }
    assert!(epochs.windows(2).all(|pair| pair[0] == pair[1]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_opened_after_its_removal_is_empty_and_has_another_epoch() {
    for (name, store, _folder) in stores() {
        let logs = Logs::new(store, LogOptions::default()).unwrap();
        let id = KernelId::random();
        let log = logs.open(id).await.unwrap();
        append(&log, [1], 1);
        log.flushed().await;
        let epoch = log.epoch();
        assert_eq!(
            logs.list()
                .await
                .unwrap()
                .iter()
                .map(|info: &LogInfo| info.id)
                .collect::<Vec<_>>(),
            [id],
            "{name}"
        );
        let refused = logs.remove(id).await;
        assert!(matches!(refused, Err(RemoveError::Open(open)) if open == id), "{name}");
        log.close();
        logs.remove(id).await.unwrap();
        logs.remove(id).await.unwrap();
        assert!(logs.list().await.unwrap().is_empty(), "{name}");
        let log = logs.open(id).await.unwrap();
        assert_eq!(log.head(), Seq::START, "{name}");
        assert_ne!(log.epoch(), epoch, "{name}");
    }
}

fn put(key: &str, value: &str) -> IndexUpdate {
    IndexUpdate::put(key.to_owned(), value.to_owned())
}

async fn scan(log: &Log, start: &str, end: &str, limit: usize, newest_first: bool) -> Vec<String> {
    log.index_scan(start.to_owned(), end.to_owned(), limit, newest_first)
        .await
        .unwrap()
        .into_iter()
        .map(|(key, value)| String::from_utf8([&key[..], b"=", &value[..]].concat()).unwrap())
        .collect()
}

fn append_with_index(log: &Log, n: u64, index: impl FnOnce(Seq) -> Vec<IndexUpdate>) -> Seq {
    let message = message(n, 10);
    let entry = NewEntry {
        origin: Origin::Client,
        channel: Channel::Shell,
        session: "asker",
        message: &message,
    };
    log.append_indexed(chrono::Utc::now(), [entry], index)
}

#[tokio::test(flavor = "multi_thread")]
async fn index_reads_include_updates_that_are_not_stored_yet() {
    for (name, store, _folder) in stores() {
        let logs = Logs::new(store, LogOptions::default()).unwrap();
        let log = logs.open(KernelId::random()).await.unwrap();
        for n in 1..=9 {
            append_with_index(&log, n, |first| vec![put(&format!("e/{n}"), &first.to_string())]);
            if n == 5 {
                log.flushed().await;
            }
            // However far the writer thread is.
            assert_eq!(
                log.index_get(format!("e/{n}")).await.unwrap().unwrap(),
                n.to_string(),
                "{name}"
            );
        }
        log.update_index([
            IndexUpdate::remove("e/3"),
            put("e/4", "four"),
            put("f/1", "other"),
            IndexUpdate::remove("e/8"),
        ]);
        for _ in 0..2 {
            assert_eq!(log.index_get("e/3").await.unwrap(), None, "{name}");
            assert_eq!(
                scan(&log, "e/2", "e/5", 9, false).await,
                ["e/2=2", "e/4=four"],
                "{name}"
            );
            assert_eq!(
                scan(&log, "e/", "e0", 3, false).await,
                ["e/1=1", "e/2=2", "e/4=four"],
                "{name}"
            );
            assert_eq!(scan(&log, "e/", "e0", 2, true).await, ["e/9=9", "e/7=7"], "{name}");
            assert!(scan(&log, "e0", "e/", 2, true).await.is_empty(), "{name}");
            log.flushed().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn index_updates_survive_a_full_disk() {
    let store = FullDisk::default();
    let full = store.full.clone();
    let logs = Logs::new(Arc::new(store), LogOptions::default()).unwrap();
    let id = KernelId::random();
    let log = logs.open(id).await.unwrap();
    full.store(true, std::sync::atomic::Ordering::SeqCst);
    append_with_index(&log, 1, |_| vec![put("a", "1"), put("b", "1")]);
    log.flushed().await;
    log.update_index([put("a", "2"), IndexUpdate::remove("c")]);
    log.flushed().await;
    assert_eq!(scan(&log, "a", "z", 9, false).await, ["a=2", "b=1"]);
    full.store(false, std::sync::atomic::Ordering::SeqCst);
    append_with_index(&log, 2, |_| vec![put("b", "3")]);
    log.flushed().await;
    log.close();
    drop(log);
    let found = logs.find(id).await.unwrap().unwrap();
    assert_eq!(scan(&found, "a", "z", 9, false).await, ["a=2", "b=3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_index_survives_reopening_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let id = KernelId::random();
    for round in 0..3_u64 {
        let store = Arc::new(FjallStore::open(folder.path()).unwrap());
        let logs = Logs::new(store, LogOptions::default()).unwrap();
        let log = logs.open(id).await.unwrap();
        assert_eq!(
            scan(&log, "a", "z", 9, false).await.len(),
            usize::try_from(round).unwrap()
        );
        append_with_index(&log, round + 1, |first| vec![put(&format!("k{first}"), "v")]);
        drop(log);
        logs.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_of_an_ended_kernel_is_found_closed_and_can_be_reopened() {
    for (name, store, _folder) in stores() {
        let logs = Logs::new(store, LogOptions::default()).unwrap();
        let id = KernelId::random();
        assert!(logs.find(id).await.unwrap().is_none(), "{name}");
        assert!(logs.list().await.unwrap().is_empty(), "{name}: find created a log");
        let log = logs.open(id).await.unwrap();
        append(&log, 1..=10, 100);
        let live = logs.find(id).await.unwrap().unwrap();
        assert!(!live.is_closed(), "{name}: find returned a closed log");
        log.flushed().await;
        assert_eq!(live.head(), Seq(10), "{name}");
        log.close();
        drop((log, live));
        let found = logs.find(id).await.unwrap().unwrap();
        assert!(found.is_closed(), "{name}");
        assert_eq!((found.earliest(), found.head()), (Seq(1), Seq(10)), "{name}");
        let mut reader = found.reader(Seq(4));
        assert_eq!(read_to(&mut reader, 10).await, (5..=10).collect::<Vec<_>>(), "{name}");
        assert!(reader.next().await.unwrap().is_none(), "{name}");
        let info = &logs.list().await.unwrap()[0];
        assert_eq!(
            (info.first, info.last, info.bytes),
            (Seq(1), Seq(10), found.bytes()),
            "{name}"
        );
        // Opening the id again continues the same log.
        let log = logs.open(id).await.unwrap();
        assert!(!found.is_closed(), "{name}");
        append(&log, [11], 100);
        assert_eq!(read_to(&mut reader, 11).await, [11], "{name}");
    }
}

/// A store that refuses writes while `full` is set, as a full disk does.
#[derive(Default)]
struct FullDisk {
    memory: MemoryStore,
    full: Arc<std::sync::atomic::AtomicBool>,
}

struct FullDiskLog {
    log: Box<dyn StoredLog>,
    full: Arc<std::sync::atomic::AtomicBool>,
}

impl LogStore for FullDisk {
    fn open(&self, id: KernelId) -> Result<Box<dyn StoredLog>, StoreError> {
        Ok(Box::new(FullDiskLog {
            log: self.memory.open(id)?,
            full: self.full.clone(),
        }))
    }

    fn get(&self, id: KernelId) -> Result<Option<Box<dyn StoredLog>>, StoreError> {
        let log = self.memory.get(id)?;
        let full = self.full.clone();
        Ok(log.map(|log| Box::new(FullDiskLog { log, full }) as Box<dyn StoredLog>))
    }

    fn list(&self) -> Result<Vec<LogInfo>, StoreError> {
        self.memory.list()
    }

    fn remove(&self, id: KernelId) -> Result<(), StoreError> {
        self.memory.remove(id)
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.memory.sync()
    }
}

impl FullDiskLog {
    fn refuse_when_full(&self) -> Result<(), StoreError> {
        if self.full.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(StoreError::failed("append", "no space left on device"));
        }
        Ok(())
    }
}

impl StoredLog for FullDiskLog {
    fn epoch(&self) -> Epoch {
        self.log.epoch()
    }

    fn bounds(&self) -> Result<Option<(Seq, Seq)>, StoreError> {
        self.log.bounds()
    }

    fn bytes(&self) -> u64 {
        self.log.bytes()
    }

    fn append(&self, block: &Block, index: &[IndexUpdate]) -> Result<(), StoreError> {
        self.refuse_when_full()?;
        self.log.append(block, index)
    }

    fn index_put(&self, index: &[IndexUpdate]) -> Result<(), StoreError> {
        self.refuse_when_full()?;
        self.log.index_put(index)
    }

    fn index_get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.log.index_get(key)
    }

    fn index_scan(
        &self,
        keys: (&[u8], &[u8]),
        limit: usize,
        newest_first: bool,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        self.log.index_scan(keys, limit, newest_first)
    }

    fn read(&self, after: Seq, max_bytes: usize) -> Result<Vec<Block>, StoreError> {
        self.log.read(after, max_bytes)
    }

    fn trim(&self, retention: &Retention) -> Result<Seq, StoreError> {
        self.log.trim(retention)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_receive_output_while_the_disk_is_full_and_later_readers_a_gap() {
    let store = FullDisk::default();
    let full = store.full.clone();
    let logs = Logs::new(Arc::new(store), options(1_000)).unwrap();
    let log = logs.open(KernelId::random()).await.unwrap();
    append(&log, 1..=10, 10);
    log.flushed().await;
    full.store(true, std::sync::atomic::Ordering::SeqCst);
    for n in 11..=100 {
        // A reader that keeps up reads from memory.
        let mut live = log.reader(log.head());
        append(&log, [n], 10);
        assert_eq!(read_to(&mut live, n).await, [n]);
    }
    full.store(false, std::sync::atomic::Ordering::SeqCst);
    append(&log, [101], 10);
    log.flushed().await;
    // The entry that reports the gap has a number too.
    log.flushed().await;
    assert_eq!(log.head(), Seq(102));
    append(&log, 103..=150, 10);
    log.flushed().await;
    let mut late = log.reader(Seq::START);
    assert_eq!(read_to(&mut late, 10).await, (1..=10).collect::<Vec<_>>());
    let Err(ReadError::Gap { first, last }) = late.next().await else {
        panic!("no gap is reported");
    };
    assert_eq!((first, last), (Seq(11), Seq(100)));
    let rest: Vec<_> = (101..=150).filter(|n| *n != 102).collect();
    assert_eq!(read_to(&mut late, 150).await, rest);
    let block = log.reader(Seq(101)).next().await.unwrap().unwrap();
    let report = block.entries().next().unwrap();
    assert_eq!(report.origin(), Origin::Lifecycle);
    let content: serde_json::Value = serde_json::from_slice(report.message().content()).unwrap();
    assert_eq!(
        content,
        serde_json::json!({
            "event": "not_recorded", "first": 11, "last": 100,
            "reason": "cannot append: no space left on device",
        })
    );
}

#[tokio::test]
async fn a_log_with_nothing_unstored_has_room_while_others_wait() {
    let mut options = LogOptions::default();
    options.all_waiting_bytes = 4 << 20;
    let (logs, mut stepper) = Logs::stepped(Arc::new(MemoryStore::new()), options);
    let [large, small, none] = [(); 3].map(|()| KernelId::random());
    let (large, small) = (logs.open(large).await.unwrap(), logs.open(small).await.unwrap());
    let none = logs.open(none).await.unwrap();
    append(&large, [1], 3 << 20);
    assert!(large.room().now_or_never().is_some());
    append(&small, [1], 2 << 20);
    for log in [&large, &small] {
        assert!(log.room().now_or_never().is_none(), "5 MiB are not stored yet");
    }
    assert!(none.room().now_or_never().is_some(), "this log is stored completely");
    {
        let mut waiting = pin!(small.room());
        assert!(waiting.as_mut().now_or_never().is_none());
        while stepper.store() {
            stepper.publish();
        }
        waiting.await;
    }
    drop((large, small));
    append(&none, [1], 3 << 20);
    assert!(
        none.room().now_or_never().is_some(),
        "the other logs are stored completely"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_of_a_large_block_share_its_memory() {
    for (name, store, _folder) in stores() {
        let logs = Logs::new(store, options(10_000)).unwrap();
        let log = logs.open(KernelId::random()).await.unwrap();
        append(&log, [1], 3 << 20);
        append(&log, [2], 100);
        log.flushed().await;
        let mut held = Vec::new();
        for _ in 0..3 {
            let block = log.reader(Seq::START).next().await.unwrap().unwrap();
            assert_eq!((block.first(), block.entries().next().unwrap().seq()), (Seq(1), Seq(1)));
            held.push(block);
        }
        let addresses: Vec<_> = held.iter().map(|block| block.bytes().as_ptr()).collect();
        assert!(
            addresses.iter().all(|address| *address == addresses[0]),
            "{name}: {addresses:?}"
        );
        drop(held);
        assert_eq!(read_to(&mut log.reader(Seq::START), 2).await, [1, 2], "{name}");
    }
}

#[test]
fn a_torn_block_is_recovered_up_to_its_last_complete_entry() {
    let store = MemoryStore::new();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let block = runtime.block_on(async {
        let logs = Logs::new(Arc::new(store), LogOptions::default()).unwrap();
        let log = logs.open(KernelId::random()).await.unwrap();
        let messages = [message(1, 30), message(2, 30), message(3, 30)];
        log.append(messages.iter().map(|message| NewEntry {
            origin: Origin::Kernel,
            channel: Channel::Shell,
            session: "asker",
            message,
        }));
        log.reader(Seq::START).next().await.unwrap().unwrap()
    });
    let ends: Vec<usize> = block
        .entries()
        .scan(0, |end, entry| {
            *end += entry.size();
            Some(*end)
        })
        .collect();
    for length in 0..=block.bytes().len() {
        let complete = ends.iter().filter(|end| **end <= length).count();
        match Block::recover(block.bytes().slice(..length)) {
            None => assert_eq!(complete, 0, "cut at {length}"),
            Some(recovered) => {
                assert_eq!(recovered.last(), Seq(complete as u64), "cut at {length}");
                assert!(recovered.entries().all(|entry| entry.session() == "asker"));
            }
        }
    }
}

#[test]
fn a_cursor_parses_from_its_own_text_and_from_no_other() {
    let cursor = Cursor {
        epoch: Epoch::random(),
        seq: Seq(77),
    };
    assert_eq!(cursor.to_string().parse(), Ok(cursor));
    for text in [
        "",
        ":",
        "1:2",
        "x",
        &format!("{}:", cursor.epoch),
        &format!("{}:-1", cursor.epoch),
        &format!("{}:1 ", cursor.epoch),
    ] {
        assert_eq!(text.parse::<Cursor>(), Err(InvalidCursor), "{text:?}");
    }
}
