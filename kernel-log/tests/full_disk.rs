//! A log whose disk is full.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::Arc;

use bytes::Bytes;
use common::{append, append_with_index, options, put, read_to, scan};
use jupyter_protocol::KernelId;
use kernel_log::{
    Block, Epoch, IndexUpdate, LogInfo, LogOptions, LogStore, Logs, MemoryStore, Origin, ReadError, Retention, Seq,
    StoreError, StoredLog,
};

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
