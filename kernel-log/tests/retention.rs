//! What is dropped of a log is gone from the disk too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use common::{append, disk_usage, entry, message, read_to, read_with_gaps, trimmed, until};
use jupyter_protocol::KernelId;
use kernel_log::{FjallStore, Log, LogOptions, LogStore, Logs, MemoryStore, Retention, Seq};

const MIB: u64 = 1 << 20;

/// Appends about so many bytes.
async fn fill(log: &Log, bytes: u64) {
    let message = message(0, 100_000);
    for _ in 0..bytes / 100_000 {
        log.room().await;
        log.append([entry(&message)]);
    }
    log.flushed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_log_gives_its_space_back() {
    let folder = tempfile::tempdir().unwrap();
    let logs = Logs::new(
        Arc::new(FjallStore::open(folder.path()).unwrap()),
        LogOptions::default(),
    )
    .unwrap();
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
    // What is left is fjall's journal, which has entries of all logs.
    until("the disk has its space back", || disk_usage(folder.path()) < 160 * MIB).await;
    println!(
        "{} MiB before, {} MiB after",
        before / MIB,
        disk_usage(folder.path()) / MIB
    );
    let mut reader = other.reader(Seq::START);
    assert_eq!(read_to(&mut reader, 20).await, (1..=20).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_takes_no_more_disk_than_it_may() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = LogOptions::default();
    options.stored_bytes = 32 * MIB;
    let logs = Logs::new(Arc::new(FjallStore::open(folder.path()).unwrap()), options).unwrap();
    let log = logs.open(KernelId::random()).await.unwrap();
    let mut most = 0;
    for _ in 0..10 {
        fill(&log, 20 * MIB).await;
        most = most.max(disk_usage(folder.path()));
    }
    trimmed(&log).await;
    println!("{} MiB at the most", most / MIB);
    assert!(log.bytes() < 40 * MIB, "{} MiB are kept", log.bytes() / MIB);
    assert!(log.earliest() > Seq(1));
    assert!(most < 160 * MIB, "{} MiB were used", most / MIB);
    // The first that is kept can be read, and all after it.
    let mut reader = log.reader(Seq(log.earliest().0 - 1));
    assert_eq!(reader.next().await.unwrap().unwrap().first(), log.earliest());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_old_is_dropped_of_a_quiet_log_too() {
    let folder = tempfile::tempdir().unwrap();
    let stores: [(_, Arc<dyn LogStore>); 2] = [
        ("memory", Arc::new(MemoryStore::new())),
        ("fjall", Arc::new(FjallStore::open(folder.path()).unwrap())),
    ];
    for (name, store) in stores {
        let mut options = LogOptions::default();
        options.memory_bytes = 0;
        options.stored_age = Some(Duration::from_secs(3_600));
        let logs = Logs::new(store.clone(), options).unwrap();
        let (id, gone) = (KernelId::random(), KernelId::random());
        let log = logs.open(id).await.unwrap();
        let closed = logs.open(gone).await.unwrap();
        let mut earliest = log.earliest_changes();
        for n in 1..=20_u64 {
            let ago = chrono::Duration::minutes(if n <= 10 { 120 } else { 30 });
            for log in [&log, &closed] {
                log.append_at(Utc::now() - ago, [entry(&message(n, 100))]);
                // Each a block of its own.
                log.flushed().await;
            }
        }
        assert_eq!((log.earliest(), closed.earliest()), (Seq(1), Seq(1)), "{name}");
        closed.close();
        drop(closed);
        logs.trim().await.unwrap();
        // The block before the first young one may be kept.
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
        for id in [id, gone] {
            let stored = store.get(id).unwrap().unwrap();
            let first = stored.trim(&Retention::bytes(u64::MAX).since(cut)).unwrap();
            assert!([Seq(10), Seq(11)].contains(&first), "{name}: {first}");
            assert_eq!(stored.bounds().unwrap(), Some((first, Seq(20))), "{name}");
            let all = Retention::bytes(u64::MAX).since(Utc::now());
            assert_eq!(stored.trim(&all).unwrap(), Seq(20), "{name}: the newest block stays");
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
