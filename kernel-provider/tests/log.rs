//! The log over each of its stores.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jupyter_protocol::{Channel, WireMessage};
use kernel_provider::KernelId;
use kernel_provider::log::{
    Block, Cursor, Epoch, FjallStore, Log, LogInfo, LogOptions, LogStore, Logs, MemoryStore, NewEntry, NoCursor,
    Origin, ReadError, Reader, Seq, StoreError, StoredLog,
};

fn message(n: u64, size: usize) -> WireMessage {
    let header = Bytes::from(format!(r#"{{"msg_id":"{n}","msg_type":"stream"}}"#));
    let content = Bytes::from(format!(r#"{{"text":"{}"}}"#, "x".repeat(size)));
    let empty = || Bytes::from_static(b"{}");
    WireMessage::from_parts([header, empty(), empty(), content], [Bytes::from_static(b"\0buffer")])
}

fn append(log: &Log, numbers: impl IntoIterator<Item = u64>, size: usize) {
    for n in numbers {
        log.append([NewEntry {
            origin: Origin::Kernel,
            channel: Channel::Iopub,
            session: "",
            message: &message(n, size),
        }]);
    }
}

async fn read_to(reader: &mut Reader, last: u64) -> Vec<u64> {
    let mut ids = Vec::new();
    while reader.position() < Seq(last) {
        let block = tokio::time::timeout(Duration::from_secs(30), reader.next())
            .await
            .expect("entries come")
            .expect("entries can be read")
            .expect("the log is open");
        for entry in block.entries() {
            let message = entry.message();
            let id: u64 = message.header_ref().unwrap().msg_id.parse().unwrap();
            assert_eq!(entry.seq(), Seq(id), "entries are numbered in the order of appending");
            assert_eq!(message.buffers(), [Bytes::from_static(b"\0buffer")]);
            ids.push(id);
        }
    }
    ids
}

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
async fn a_reader_waits_for_what_is_not_there_yet_and_ends_when_the_log_is_closed() {
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
async fn a_log_keeps_to_its_bounds_and_says_what_it_dropped() {
    for (name, store, _folder) in stores() {
        let mut options = options(1_000);
        options.stored_bytes = 100_000;
        let logs = Logs::new(store, options).unwrap();
        let log = logs.open(KernelId::random()).await.unwrap();
        let mut reader = log.reader(Seq::START);
        append(&log, 1..=5_000, 100);
        log.flushed().await;
        // Trimming comes after publishing: one more round through the writer is after it.
        append(&log, [5_001], 100);
        log.flushed().await;
        let Err(ReadError::Gap { first, last }) = reader.next().await else {
            panic!("{name}: the oldest entries were dropped, and no gap is reported");
        };
        assert_eq!(first, Seq(1), "{name}");
        let rest = read_to(&mut reader, 5_001).await;
        assert_eq!(rest, (last.0 + 1..=5_001).collect::<Vec<_>>(), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_on_disk_goes_on_in_the_same_epoch() {
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
        logs.shutdown().await;
    }
    assert!(epochs.windows(2).all(|pair| pair[0] == pair[1]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_log_is_gone_and_comes_back_empty_in_another_epoch() {
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
        drop(log);
        logs.remove(id).await.unwrap();
        logs.remove(id).await.unwrap();
        assert!(logs.list().await.unwrap().is_empty(), "{name}");
        let log = logs.open(id).await.unwrap();
        assert_eq!(log.head(), Seq::START, "{name}");
        assert_ne!(log.epoch(), epoch, "{name}");
    }
}

/// A store that can be told to refuse appends, as a full disk does.
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

    fn list(&self) -> Result<Vec<LogInfo>, StoreError> {
        self.memory.list()
    }

    fn remove(&self, id: KernelId) -> Result<(), StoreError> {
        self.memory.remove(id)
    }
}

impl StoredLog for FullDiskLog {
    fn epoch(&self) -> Epoch {
        self.log.epoch()
    }

    fn bounds(&self) -> Result<Option<(Seq, Seq)>, StoreError> {
        self.log.bounds()
    }

    fn append(&self, block: &Block) -> Result<(), StoreError> {
        if self.full.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(StoreError::failed("append", "no space left on device"));
        }
        self.log.append(block)
    }

    fn read(&self, after: Seq, max_bytes: usize) -> Result<Vec<Block>, StoreError> {
        self.log.read(after, max_bytes)
    }

    fn trim(&self, max_bytes: u64) -> Result<(), StoreError> {
        self.log.trim(max_bytes)
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.log.sync()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn output_goes_on_where_the_disk_is_full_and_the_hole_is_told() {
    let store = FullDisk::default();
    let full = store.full.clone();
    let logs = Logs::new(Arc::new(store), options(1_000)).unwrap();
    let log = logs.open(KernelId::random()).await.unwrap();
    append(&log, 1..=10, 10);
    log.flushed().await;
    full.store(true, std::sync::atomic::Ordering::SeqCst);
    for n in 11..=100 {
        // Who keeps up reads from memory, full disk or not.
        let mut live = log.reader(log.head());
        append(&log, [n], 10);
        assert_eq!(read_to(&mut live, n).await, [n]);
    }
    full.store(false, std::sync::atomic::Ordering::SeqCst);
    append(&log, 101..=150, 10);
    log.flushed().await;
    let mut late = log.reader(Seq::START);
    assert_eq!(read_to(&mut late, 10).await, (1..=10).collect::<Vec<_>>());
    let Err(ReadError::Gap { first, last }) = late.next().await else {
        panic!("a hole is never silent");
    };
    assert_eq!(first, Seq(11));
    assert!(last <= Seq(100));
    assert_eq!(read_to(&mut late, 150).await, (last.0 + 1..=150).collect::<Vec<_>>());
}

#[test]
fn a_torn_block_is_cut_at_its_last_whole_entry() {
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
        let whole = ends.iter().filter(|end| **end <= length).count();
        match Block::recover(block.bytes().slice(..length)) {
            None => assert_eq!(whole, 0, "cut at {length}"),
            Some(recovered) => {
                assert_eq!(recovered.last(), Seq(whole as u64), "cut at {length}");
                assert!(recovered.entries().all(|entry| entry.session() == "asker"));
            }
        }
    }
}

#[test]
fn a_cursor_is_read_as_it_is_written() {
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
        assert_eq!(text.parse::<Cursor>(), Err(NoCursor), "{text:?}");
    }
}
