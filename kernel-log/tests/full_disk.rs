//! Logs whose store refuses writes, as a full disk does.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{append, append_with_index, options, put, read_to, read_with_gaps, scan, wait_until};
use futures::FutureExt as _;
use jupyter_protocol::KernelId;
use kernel_log::{
    Block, Epoch, IndexUpdate, LogInfo, LogOptions, LogStore, Logs, MemoryStore, Origin, ReadError, Retention, Seq,
    StoreError, StoredLog, WhenFull,
};

#[tokio::test(flavor = "multi_thread")]
async fn index_updates_survive_a_full_disk() {
    let store = FullDisk::default();
    let full = store.full.clone();
    let logs = Logs::new(Arc::new(store), LogOptions::default()).unwrap();
    let id = KernelId::random();
    let log = logs.open(id).await.unwrap();
    full.set(&[id]);
    append_with_index(&log, 1, |_| vec![put("a", "1"), put("b", "1")]);
    log.flushed().await;
    log.update_index([put("a", "2"), IndexUpdate::remove("c")]);
    log.flushed().await;
    assert_eq!(scan(&log, "a", "z", 9, false).await, ["a=2", "b=1"]);
    full.set(&[]);
    append_with_index(&log, 2, |_| vec![put("b", "3")]);
    log.flushed().await;
    log.close();
    drop(log);
    let found = logs.find(id).await.unwrap().unwrap();
    assert_eq!(scan(&found, "a", "z", 9, false).await, ["a=2", "b=3"]);
}

/// The logs that a [`FullDisk`] has no room for, and how many writes it has refused.
#[derive(Clone, Default)]
struct Full(Arc<Mutex<(Vec<KernelId>, u64)>>);

impl Full {
    fn set(&self, logs: &[KernelId]) {
        self.0.lock().unwrap().0 = logs.to_vec();
    }

    fn refusals(&self) -> u64 {
        self.0.lock().unwrap().1
    }
}

/// A store that refuses writes to some logs, as a full disk does.
#[derive(Default)]
struct FullDisk {
    memory: MemoryStore,
    full: Full,
}

struct FullDiskLog {
    log: Box<dyn StoredLog>,
    id: KernelId,
    full: Full,
}

impl LogStore for FullDisk {
    fn open(&self, id: KernelId) -> Result<Box<dyn StoredLog>, StoreError> {
        Ok(Box::new(FullDiskLog {
            log: self.memory.open(id)?,
            id,
            full: self.full.clone(),
        }))
    }

    fn get(&self, id: KernelId) -> Result<Option<Box<dyn StoredLog>>, StoreError> {
        let log = self.memory.get(id)?;
        let full = self.full.clone();
        Ok(log.map(|log| Box::new(FullDiskLog { log, id, full }) as Box<dyn StoredLog>))
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
        let mut full = self.full.0.lock().unwrap();
        if full.0.contains(&self.id) {
            full.1 += 1;
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
    full.set(&[log.kernel_id()]);
    for n in 11..=100 {
        // A reader that keeps up reads from memory.
        let mut live = log.reader(log.head());
        append(&log, [n], 10);
        assert_eq!(read_to(&mut live, n).await, [n]);
    }
    full.set(&[]);
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

fn waiting_options() -> LogOptions {
    options(1_000).with_when_full(WhenFull::Wait)
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_entries_are_all_stored_once_there_is_room() {
    let store = FullDisk::default();
    let full = store.full.clone();
    let logs = Logs::new(Arc::new(store), waiting_options().with_waiting_bytes(100_000)).unwrap();
    let log = logs.open(KernelId::random()).await.unwrap();
    let other = logs.open(KernelId::random()).await.unwrap();
    append(&log, 1..=10, 10);
    log.flushed().await;
    full.set(&[log.kernel_id()]);
    for n in 11..=20 {
        append_with_index(&log, n, |_| vec![put("last", &n.to_string())]);
    }
    wait_until("the store refuses an entry", || !log.is_recorded()).await;
    assert!(
        log.flushed().now_or_never().is_none(),
        "flushed() returned while an entry waits"
    );
    assert!(log.stored(Seq(11)).now_or_never().is_none());
    assert_eq!(log.index_get("last").await.unwrap().unwrap(), "20");
    assert!(log.room().now_or_never().is_some());
    append(&log, [21], 200_000);
    assert!(
        log.room().now_or_never().is_none(),
        "there is room for any number of bytes"
    );
    let mut early = log.reader(Seq::START);
    assert_eq!(read_to(&mut early, 10).await, (1..=10).collect::<Vec<_>>());
    assert!(
        early.next().now_or_never().is_none(),
        "a reader received an entry that is not stored"
    );
    // The writer thread continues with other logs.
    for n in 1..=100 {
        append(&other, [n], 100);
        other.flushed().await;
    }
    let refusals = full.refusals();
    wait_until("the store refuses the entry again", || full.refusals() > refusals).await;
    assert_eq!(log.head(), Seq(10));
    full.set(&[]);
    log.flushed().await;
    log.room().await;
    assert!(log.is_recorded());
    append(&log, 22..=30, 10);
    log.flushed().await;
    assert_eq!(log.head(), Seq(30), "an entry was added");
    assert_eq!(read_to(&mut early, 30).await, (11..=30).collect::<Vec<_>>());
    let ids = read_to(&mut log.reader(Seq::START), 30).await;
    assert_eq!(ids, (1..=30).collect::<Vec<_>>());
    // Updates of the index wait as well.
    full.set(&[log.kernel_id()]);
    log.update_index([put("last", "none")]);
    wait_until("the store refuses an update", || !log.is_recorded()).await;
    assert!(log.flushed().now_or_never().is_none());
    full.set(&[]);
    log.flushed().await;
    assert_eq!(scan(&log, "a", "z", 9, false).await, ["last=none"]);
    assert_eq!(log.head(), Seq(30));
}

#[tokio::test]
async fn entries_that_wait_keep_their_order() {
    let store = FullDisk::default();
    let full = store.full.clone();
    let (logs, mut stepper) = Logs::stepped(Arc::new(store), waiting_options());
    let log = logs.open(KernelId::random()).await.unwrap();
    full.set(&[log.kernel_id()]);
    for n in 1..=4 {
        append(&log, [n], 300_000);
        assert!(stepper.store());
        stepper.publish();
        assert_eq!((log.head(), full.refusals()), (Seq::START, n));
    }
    full.set(&[]);
    for n in 1..=4 {
        assert!(stepper.store());
        stepper.publish();
        assert_eq!(log.head(), Seq(n), "a block was stored out of order");
    }
    assert!(!stepper.store());
    assert_eq!(log.unacknowledged_bytes(), log.bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_stops_waiting_for_a_full_store_after_the_timeout() {
    let store = FullDisk::default();
    let full = store.full.clone();
    let options = waiting_options().with_close_timeout(Duration::from_millis(300));
    let logs = Logs::new(Arc::new(store), options).unwrap();
    let log = logs.open(KernelId::random()).await.unwrap();
    append(&log, [1], 10);
    log.flushed().await;
    full.set(&[log.kernel_id()]);
    append(&log, 2..=5, 300_000);
    let mut reader = log.reader(Seq(1));
    let begun = Instant::now();
    {
        let mut closing = pin!(logs.close());
        assert!(closing.as_mut().now_or_never().is_none(), "closing does not wait");
        closing.await.unwrap();
    }
    assert!(begun.elapsed() >= Duration::from_millis(300), "{:?}", begun.elapsed());
    // As with `WhenFull::Skip`, the newest entry is in memory and the others are missing.
    assert_eq!(read_with_gaps(&mut reader, 5).await, (vec![5], vec![(2, 4)]));
    assert!(!log.is_recorded());
    drop(log);
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_waits_for_a_store_that_has_room_again_in_time() {
    let store = FullDisk::default();
    let full = store.full.clone();
    let logs = Logs::new(
        Arc::new(store),
        waiting_options().with_close_timeout(Duration::from_secs(600)),
    )
    .unwrap();
    let log = logs.open(KernelId::random()).await.unwrap();
    full.set(&[log.kernel_id()]);
    append(&log, 1..=5, 300_000);
    let mut closing = pin!(logs.close());
    assert!(closing.as_mut().now_or_never().is_none(), "closing does not wait");
    full.set(&[]);
    closing.await.unwrap();
    assert_eq!(read_to(&mut log.reader(Seq::START), 5).await, [1, 2, 3, 4, 5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_log_no_longer_waits_for_room() {
    let store = FullDisk::default();
    let full = store.full.clone();
    let logs = Logs::new(Arc::new(store), waiting_options()).unwrap();
    let id = KernelId::random();
    let log = logs.open(id).await.unwrap();
    full.set(&[id]);
    append(&log, [1], 10);
    wait_until("the store refuses the entry", || !log.is_recorded()).await;
    log.close();
    logs.remove(id).await.unwrap();
    log.flushed().await;
    full.set(&[]);
    let log = logs.open(id).await.unwrap();
    append(&log, [1], 10);
    log.flushed().await;
    assert_eq!(read_to(&mut log.reader(Seq::START), 1).await, [1]);
}
