//! The store on disk with disks that are full, fail or return damaged data.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
mod tmpfs;

use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{append, copy, entry, message, read_to, read_with_gaps, wait_until};
use jupyter_protocol::KernelId;
use kernel_log::{
    DiskOptions, DiskStore, Durability, IndexUpdate, Log, LogOptions, LogStore, Logs, Origin, Seq, StoreError, WhenFull,
};
use tmpfs::Tmpfs;

fn options() -> LogOptions {
    let mut options = LogOptions::default();
    options.memory_bytes = 100_000;
    options
}

fn logs(folder: &Path) -> Logs {
    Logs::new(Arc::new(DiskStore::open(folder).unwrap()), options()).unwrap()
}

/// Appends entries one by one, and checks that a live reader receives each, until `log.is_recorded()` is `recorded`.
/// Returns the number of entries that the store refused.
async fn append_until_recorded(log: &Log, recorded: bool) -> u64 {
    let mut refused = 0;
    for _ in 0..3_000 {
        let next = log.head().next();
        let mut live = log.reader(log.head());
        log.append([entry(&message(next.0, 50_000))]);
        let block = live.next().await.unwrap().unwrap();
        assert_eq!(block.first(), next, "a live reader missed an entry");
        log.flushed().await;
        refused += u64::from(!log.is_recorded());
        if log.is_recorded() == recorded {
            // Waits for the entry that reports the gap, too.
            log.flushed().await;
            return refused;
        }
    }
    panic!("is_recorded() never became {recorded}");
}

/// Appends `count` entries and reads each immediately.
async fn append_live(log: &Log, count: u64) {
    for _ in 0..count {
        let next = log.head().0 + 1;
        let mut live = log.reader(log.head());
        append(log, [next], 1_000);
        assert_eq!(read_to(&mut live, next).await, [next]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_recording_but_not_delivery() {
    let Some(disk) = Tmpfs::mount("size=96m") else { return };
    let folder = disk.path().join("logs");
    let id = KernelId::random();
    let (gap, head) = {
        let logs = logs(&folder);
        let log = logs.open(id).await.unwrap();
        append(&log, 1..=100, 1_000);
        log.flushed().await;
        append_until_recorded(&log, false).await;
        let lost_from = log.head().0;
        append_live(&log, 50).await;
        disk.remount("size=300m");
        append_until_recorded(&log, true).await;
        append_live(&log, 100).await;
        let head = log.head();
        let mut late = log.reader(Seq::START);
        let (_, gaps) = read_with_gaps(&mut late, head.0).await;
        assert_eq!(gaps.len(), 1, "{gaps:?}");
        assert!(gaps[0].0 <= lost_from && gaps[0].1 >= lost_from + 50, "{gaps:?}");
        // A lifecycle entry reports the gap.
        let mut after = log.reader(Seq(gaps[0].1 + 1));
        let report = after.next().await.unwrap().unwrap().entries().next().unwrap();
        assert_eq!(report.origin(), Origin::Lifecycle);
        let content: serde_json::Value = serde_json::from_slice(report.message().content()).unwrap();
        assert_eq!(
            (&content["first"], &content["last"]),
            (&gaps[0].0.into(), &gaps[0].1.into())
        );
        assert!(content["reason"].as_str().unwrap().contains("no room"), "{content}");
        drop((late, after, log));
        logs.close().await.unwrap();
        (gaps[0], head)
    };
    let logs = logs(&folder);
    let log = logs.open(id).await.unwrap();
    assert_eq!(log.head(), head, "stored entries were lost");
    let (_, gaps) = read_with_gaps(&mut log.reader(Seq::START), head.0).await;
    assert_eq!(gaps, [gap]);
}

#[tokio::test(flavor = "multi_thread")]
async fn sequence_numbers_are_not_reused_after_a_full_disk() {
    let Some(disk) = Tmpfs::mount("size=64m") else { return };
    let id = KernelId::random();
    let seen = {
        let logs = logs(disk.path());
        let log = logs.open(id).await.unwrap();
        append(&log, 1..=100, 1_000);
        log.flushed().await;
        append_until_recorded(&log, false).await;
        append_live(&log, 50).await;
        let seen = log.head();
        drop(log);
        logs.close().await.unwrap();
        seen
    };
    disk.remount("size=200m");
    let logs = logs(disk.path());
    let log = logs.open(id).await.unwrap();
    assert!(log.head() >= seen, "{} after {seen}", log.head());
    let next = log.head().0 + 1;
    append(&log, [next], 100);
    log.flushed().await;
    let (ids, gaps) = read_with_gaps(&mut log.reader(seen), next).await;
    assert_eq!(ids, [next]);
    assert!(gaps.is_empty() || gaps == [(seen.0 + 1, next - 1)], "{gaps:?}");
}

/// Logs with `WhenFull::Wait` and small segments.
fn waiting_logs(folder: &Path) -> Logs {
    let store = DiskStore::open_with(folder, DiskOptions::default().with_segment_bytes(1 << 20)).unwrap();
    let options = options().with_when_full(WhenFull::Wait).with_waiting_bytes(1 << 20);
    Logs::new(Arc::new(store), options).unwrap()
}

/// Appends entries as long as there is room for them, until the store refuses one. Returns the last number.
async fn fill(log: &Log) -> u64 {
    let mut last = log.head().0;
    let is_full = wait_until("the disk is full", || !log.is_recorded());
    let append = async {
        loop {
            log.room().await;
            last += 1;
            append(log, [last], 50_000);
        }
    };
    tokio::select! {
        () = is_full => {}
        () = append => {}
    }
    last
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_waits_for_a_full_disk_misses_nothing() {
    let Some(disk) = Tmpfs::mount("size=64m") else { return };
    let folder = disk.path().join("logs");
    let (id, elsewhere) = (KernelId::random(), tempfile::tempdir().unwrap());
    let last = {
        let logs = waiting_logs(&folder);
        let log = logs.open(id).await.unwrap();
        let mut last = fill(&log).await;
        let head = log.head();
        assert!(head.0 < last, "{last} is stored");
        let counters = logs.counters();
        assert_eq!(counters.entries, head.0);
        assert!(
            counters.bytes >= 50_000 * head.0 && counters.refused_writes > 0,
            "{counters:?}"
        );
        assert!(logs.waiting_bytes() >= 50_000);
        // If the process were killed now, its log would have exactly the entries that readers could read.
        copy(&folder, elsewhere.path());
        let left = self::logs(elsewhere.path()).open(id).await.unwrap();
        assert_eq!(left.head(), head);
        drop(left);
        disk.remount("size=200m");
        last += 1;
        append(&log, [last], 50_000);
        log.flushed().await;
        assert!(log.is_recorded());
        assert_eq!(log.head(), Seq(last), "an entry was added");
        assert_eq!((logs.counters().entries, logs.waiting_bytes()), (last, 0));
        drop(log);
        logs.close().await.unwrap();
        last
    };
    let log = waiting_logs(&folder).find(id).await.unwrap().unwrap();
    let ids = read_to(&mut log.reader(Seq::START), last).await;
    assert_eq!(ids, (1..=last).collect::<Vec<_>>());
    assert_eq!(log.head(), Seq(last));
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledgements_make_room_on_a_full_disk() {
    let Some(disk) = Tmpfs::mount("size=64m") else { return };
    let logs = waiting_logs(&disk.path().join("logs"));
    let log = logs.open(KernelId::random()).await.unwrap();
    let mut reader = log.reader(Seq::START);
    for _ in 0..3 {
        let last = fill(&log).await;
        let head = log.head();
        assert!(head.0 < last, "{last} is stored");
        while reader.position() < head {
            let block = reader.next().await.unwrap().unwrap();
            log.acknowledge(block.last());
        }
        wait_until("there is room", || log.is_recorded()).await;
        log.flushed().await;
        assert_eq!(log.head(), Seq(last));
        log.acknowledged_below(2 << 20).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_without_inodes_loses_only_refused_entries() {
    // There is free space, but no inode. Segments that cannot be completed are continued.
    let Some(disk) = Tmpfs::mount("size=400m,nr_inodes=400") else {
        return;
    };
    let folder = disk.path().join("logs");
    let ids = [KernelId::random(), KernelId::random()];
    let logs = logs(&folder);
    let log = logs.open(ids[0]).await.unwrap();
    let other = logs.open(ids[1]).await.unwrap();
    append_live(&other, 10).await;
    let fillers = disk.path().join("fillers");
    fs::create_dir(&fillers).unwrap();
    let filled = (0..)
        .take_while(|n| fs::File::create(fillers.join(n.to_string())).is_ok())
        .count();
    assert!(filled > 0);
    let mut refused = append_large(&log, 400).await;
    let read = read_with_gaps(&mut other.reader(Seq::START), 10).await;
    assert_eq!(
        read,
        ((1..=10).collect(), Vec::new()),
        "stored entries cannot be read while files cannot be created"
    );
    fs::remove_dir_all(&fillers).unwrap();
    refused += append_until_recorded(&log, true).await;
    append_live(&log, 10).await;
    append_live(&other, 10).await;
    let heads = [log.head(), other.head()];
    drop((log, other));
    logs.close().await.unwrap();
    let logs = self::logs(&folder);
    for (id, head) in ids.into_iter().zip(heads) {
        let log = logs.open(id).await.unwrap();
        assert_eq!(log.head(), head);
        let (_, gaps) = read_with_gaps(&mut log.reader(Seq::START), head.0).await;
        let missing: u64 = gaps.iter().map(|(first, last)| last + 1 - first).sum();
        assert_eq!(missing, if id == ids[0] { refused } else { 0 }, "{gaps:?}");
    }
}

/// Appends `count` large entries and returns how many of them the store refused.
async fn append_large(log: &Log, count: u64) -> u64 {
    let mut refused = 0;
    for _ in 0..count {
        log.append([entry(&message(log.head().0 + 1, 100_000))]);
        log.flushed().await;
        // Once the store accepts entries again, the entry that reports the gap follows. It may be refused, too.
        log.flushed().await;
        refused += u64::from(!log.is_recorded());
    }
    refused
}

#[test]
fn an_error_names_the_folder_that_cannot_be_opened() {
    let Some(disk) = Tmpfs::mount("size=64m") else { return };
    let folder = disk.path().join("logs");
    drop(DiskStore::open(&folder).unwrap());
    disk.remount("ro");
    let error = DiskStore::open(&folder).map(drop).unwrap_err().to_string();
    assert!(error.contains(&folder.display().to_string()), "{error}");
    assert!(error.contains("Read-only"), "{error}");
    disk.remount("rw");
    let first = DiskStore::open(&folder).unwrap();
    let error = DiskStore::open(&folder).map(drop).unwrap_err().to_string();
    assert!(error.contains("another process"), "{error}");
    drop(first);
}

/// Stores two logs and returns their ids and the files of the first, larger one.
async fn two_logs(folder: &Path) -> (KernelId, KernelId, Vec<PathBuf>) {
    let (damaged, sound) = (KernelId::random(), KernelId::random());
    let logs = logs(folder);
    for (id, count) in [(damaged, 150), (sound, 30)] {
        let log = logs.open(id).await.unwrap();
        for n in 1..=count {
            log.append_indexed(chrono::Utc::now(), [entry(&message(n, 100_000))], |first| {
                vec![IndexUpdate::put(format!("k{n}"), first.to_string())]
            });
            log.room().await;
        }
        log.flushed().await;
    }
    logs.close().await.unwrap();
    let files = fs::read_dir(folder.join(damaged.to_string())).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    (damaged, sound, files)
}

fn flip(path: &Path, at: u64) {
    let mut file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.seek(SeekFrom::Start(at)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&[!byte[0]]).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_affects_only_its_own_log() {
    let folder = tempfile::tempdir().unwrap();
    let original = folder.path().join("original");
    let (damaged, sound, files) = two_logs(&original).await;
    assert!(files.len() >= 2, "several segments expected: {files:?}");
    for file in &files {
        let name = file.strip_prefix(&original).unwrap();
        let length = fs::metadata(file).unwrap().len();
        for (what, at) in [
            ("flipped", length / 2),
            ("flipped at its end", length.saturating_sub(9)),
            ("cut", 0),
        ] {
            let case = format!("{} {what}", name.display());
            let copied = folder.path().join("copy");
            copy(&original, &copied);
            if what == "cut" {
                OpenOptions::new()
                    .write(true)
                    .open(copied.join(name))
                    .unwrap()
                    .set_len(length / 2)
                    .unwrap();
            } else {
                flip(&copied.join(name), at);
            }
            let logs = logs(&copied);
            let log = logs.open(sound).await.unwrap();
            let ids = read_to(&mut log.reader(Seq::START), 30).await;
            assert_eq!(ids.len(), 30, "{case}");
            append(&log, [31], 100);
            log.flushed().await;
            assert_eq!(log.index_get("k7").await.unwrap().unwrap(), "7", "{case}");
            // The damaged log opens with its newest number, or fails with an error that names it.
            match logs.open(damaged).await {
                Err(error) => {
                    assert!(
                        matches!(error, StoreError::Damaged { id, .. } if id == damaged),
                        "{case}: {error}"
                    );
                    logs.remove(damaged).await.unwrap();
                    assert_eq!(logs.open(damaged).await.unwrap().head(), Seq::START, "{case}");
                }
                Ok(log) => match log.reader(Seq::START).next().await {
                    // A newest segment that was cut cannot be distinguished from one whose last write was interrupted.
                    Ok(_) if what == "cut" && file == &files[files.len() - 1] => {
                        let head = log.head().0;
                        assert!((1..150).contains(&head), "{case}: {head}");
                        read_to(&mut log.reader(Seq::START), head).await;
                    }
                    Ok(_) => assert_eq!(log.head(), Seq(150), "{case}"),
                    Err(error) => assert!(error.to_string().contains(&damaged.to_string()), "{case}: {error}"),
                },
            }
            drop(log);
            logs.close().await.unwrap();
            fs::remove_dir_all(&copied).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_durability_keeps_what_was_flushed() {
    for durability in [Durability::Process, Durability::Batched, Durability::Always] {
        let folder = tempfile::tempdir().unwrap();
        let id = KernelId::random();
        for round in 0..2_u64 {
            let mut options = options();
            options.durability = durability;
            let logs = Logs::new(Arc::new(DiskStore::open(folder.path()).unwrap()), options).unwrap();
            let log = logs.open(id).await.unwrap();
            assert_eq!(log.head(), Seq(round * 100), "{durability:?}");
            append(&log, round * 100 + 1..=round * 100 + 100, 1_000);
            log.sync_soon();
            log.flushed().await;
            log.sync_soon();
            drop(log);
            logs.close().await.unwrap();
        }
    }
}

#[derive(Default)]
struct CountingStore {
    memory: kernel_log::MemoryStore,
    syncs: std::sync::atomic::AtomicUsize,
}

impl LogStore for CountingStore {
    fn open(&self, id: KernelId) -> Result<Box<dyn kernel_log::StoredLog>, StoreError> {
        self.memory.open(id)
    }

    fn get(&self, id: KernelId) -> Result<Option<Box<dyn kernel_log::StoredLog>>, StoreError> {
        self.memory.get(id)
    }

    fn list(&self) -> Result<Vec<kernel_log::LogInfo>, StoreError> {
        self.memory.list()
    }

    fn remove(&self, id: KernelId) -> Result<(), StoreError> {
        self.memory.remove(id)
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.syncs.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_durability_determines_how_often_a_log_is_synced() {
    use std::sync::atomic::Ordering::SeqCst;
    let run = async |durability| {
        let store = Arc::new(CountingStore::default());
        let mut options = options();
        options.durability = durability;
        let logs = Logs::new(store.clone(), options).unwrap();
        let log = logs.open(KernelId::random()).await.unwrap();
        let begun = Instant::now();
        for n in 1..=100 {
            append(&log, [n], 100);
            log.flushed().await;
        }
        let took = begun.elapsed();
        drop(log);
        logs.close().await.unwrap();
        (store.syncs.load(SeqCst), took)
    };
    assert_eq!(run(Durability::Process).await.0, 0);
    assert_eq!(run(Durability::Always).await.0, 100);
    let (syncs, took) = run(Durability::Batched).await;
    let at_most = took.as_millis() as usize / 50 + 2;
    assert!((1..=at_most).contains(&syncs), "{syncs} syncs in {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sync_soon_syncs_a_batched_log() {
    use std::sync::atomic::Ordering::SeqCst;
    let store = Arc::new(CountingStore::default());
    let mut options = options();
    options.durability = Durability::Batched;
    let logs = Logs::new(store.clone(), options).unwrap();
    let log = logs.open(KernelId::random()).await.unwrap();
    for n in 1..=3 {
        let before = store.syncs.load(SeqCst);
        append(&log, [n], 100);
        log.sync_soon();
        let deadline = Instant::now() + Duration::from_secs(20);
        while store.syncs.load(SeqCst) == before {
            assert!(Instant::now() < deadline, "no sync of entry {n}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
