//! Retention: old entries are dropped, and their disk space is freed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use common::{append, disk_usage, entry, flushed_and_trimmed, message, read_to, read_with_gaps};
use jupyter_protocol::KernelId;
use kernel_log::{DiskStore, Log, LogOptions, LogStore, Logs, MemoryStore, Retention, Seq};

const MIB: u64 = 1 << 20;

/// Appends entries of about `bytes` in total.
async fn fill(log: &Log, bytes: u64) {
    let message = message(0, 100_000);
    for _ in 0..bytes / 100_000 {
        log.room().await;
        log.append([entry(&message)]);
    }
    log.flushed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_a_log_frees_its_disk_space() {
    let folder = tempfile::tempdir().unwrap();
    let logs = Logs::new(Arc::new(DiskStore::open(folder.path()).unwrap()), LogOptions::default()).unwrap();
    let other = logs.open(KernelId::random()).await.unwrap();
    append(&other, 1..=10, 100);
    let id = KernelId::random();
    let log = logs.open(id).await.unwrap();
    fill(&log, 300 * MIB).await;
    append(&other, 11..=20, 100);
    other.flushed().await;
    let before = disk_usage(folder.path());
    assert!(before > 300 * MIB);
    log.close();
    drop(log);
    logs.remove(id).await.unwrap();
    assert!(
        disk_usage(folder.path()) < MIB,
        "{} bytes are left",
        disk_usage(folder.path())
    );
    println!(
        "{} MiB before, {} MiB after",
        before / MIB,
        disk_usage(folder.path()) / MIB
    );
    let mut reader = other.reader(Seq::START);
    assert_eq!(read_to(&mut reader, 20).await, (1..=20).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_keeps_to_its_bound_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = LogOptions::default();
    options.stored_bytes = 32 * MIB;
    let logs = Logs::new(Arc::new(DiskStore::open(folder.path()).unwrap()), options).unwrap();
    let log = logs.open(KernelId::random()).await.unwrap();
    let mut most = 0;
    for _ in 0..10 {
        fill(&log, 20 * MIB).await;
        most = most.max(disk_usage(folder.path()));
    }
    flushed_and_trimmed(&log).await;
    println!("{} MiB at most", most / MIB);
    assert!(log.bytes() < 40 * MIB, "{} MiB are kept", log.bytes() / MIB);
    assert!(log.earliest() > Seq(1));
    assert!(most < 80 * MIB, "{} MiB were used", most / MIB);
    // The oldest kept entry can be read.
    let mut reader = log.reader(Seq(log.earliest().0 - 1));
    assert_eq!(reader.next().await.unwrap().unwrap().first(), log.earliest());
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_beyond_the_age_limit_are_dropped_without_new_appends() {
    let folder = tempfile::tempdir().unwrap();
    let stores: [(_, Arc<dyn LogStore>); 2] = [
        ("memory", Arc::new(MemoryStore::new())),
        ("disk", Arc::new(DiskStore::open(folder.path()).unwrap())),
    ];
    for (name, store) in stores {
        let mut options = LogOptions::default();
        options.memory_bytes = 0;
        options.stored_age = Some(Duration::from_secs(3_600));
        let logs = Logs::new(store.clone(), options).unwrap();
        let (id, closed_id) = (KernelId::random(), KernelId::random());
        let log = logs.open(id).await.unwrap();
        let closed = logs.open(closed_id).await.unwrap();
        let mut earliest = log.earliest_changes();
        for n in 1..=20_u64 {
            let ago = chrono::Duration::minutes(if n <= 10 { 120 } else { 30 });
            for log in [&log, &closed] {
                log.append_at(Utc::now() - ago, [entry(&message(n, 100))]);
                // Makes each entry a separate block.
                log.flushed().await;
            }
        }
        assert_eq!((log.earliest(), closed.earliest()), (Seq(1), Seq(1)), "{name}");
        closed.close();
        drop(closed);
        logs.trim().await.unwrap();
        // The newest of the old blocks may be kept.
        assert!(
            [Seq(10), Seq(11)].contains(&log.earliest()),
            "{name}: {}",
            log.earliest()
        );
        assert!(earliest.has_changed().unwrap(), "{name}");
        earliest.mark_unchanged();
        log.close();
        drop(log);
        let cut = Utc::now() - chrono::Duration::hours(1);
        for id in [id, closed_id] {
            let stored = store.get(id).unwrap().unwrap();
            let first = stored.trim(&Retention::bytes(u64::MAX).since(cut)).unwrap();
            assert!([Seq(10), Seq(11)].contains(&first), "{name}: {first}");
            assert_eq!(stored.bounds().unwrap(), Some((first, Seq(20))), "{name}");
            let all = Retention::bytes(u64::MAX).since(Utc::now());
            assert_eq!(
                stored.trim(&all).unwrap(),
                Seq(20),
                "{name}: the newest block was dropped"
            );
            assert_eq!(stored.trim(&Retention::bytes(0)).unwrap(), Seq(20), "{name}");
        }
        let mut reader = logs.find(id).await.unwrap().unwrap().reader(Seq::START);
        assert_eq!(
            read_with_gaps(&mut reader, 20).await,
            (vec![20], vec![(1, 19)]),
            "{name}"
        );
    }
}
