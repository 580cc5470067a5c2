//! Acknowledged entries are dropped, and no others.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::pin::pin;
use std::sync::Arc;

use common::{append, disk_usage, flushed_and_trimmed, options, put, read_to, read_with_gaps, stores, wait_until};
use futures::FutureExt as _;
use jupyter_protocol::KernelId;
use kernel_log::{DiskOptions, DiskStore, Log, LogOptions, Logs, MemoryStore, Seq};

const SEGMENT: u64 = 256 << 10;

fn small_segments(folder: &std::path::Path) -> Logs {
    let store = DiskStore::open_with(folder, DiskOptions::default().with_segment_bytes(SEGMENT)).unwrap();
    Logs::new(Arc::new(store), options(10_000)).unwrap()
}

/// Appends one entry as a separate block.
async fn append_block(log: &Log, n: u64, size: usize) {
    append(log, [n], size);
    log.flushed().await;
}

#[tokio::test]
async fn acknowledging_records_the_position_and_the_writer_drops_the_blocks() {
    let (logs, mut stepper) = Logs::stepped(Arc::new(MemoryStore::new()), LogOptions::default());
    let log = logs.open(KernelId::random()).await.unwrap();
    for n in 1..=5 {
        append(&log, [n], 1_000);
        assert!(stepper.store());
        stepper.publish();
    }
    let bytes = log.bytes();
    log.acknowledge(Seq(3));
    assert_eq!((log.earliest(), log.bytes()), (Seq(1), bytes));
    assert!(stepper.store(), "the writer was not woken");
    stepper.publish();
    assert_eq!((log.earliest(), log.bytes()), (Seq(4), bytes / 5 * 2));
    // The newest block stays, and entries that no reader could read yet are not acknowledged.
    append(&log, [6], 1_000);
    log.acknowledge(Seq(100));
    while stepper.store() {
        stepper.publish();
    }
    assert_eq!(log.earliest(), Seq(6));
    log.acknowledge(Seq(5));
    log.acknowledge(Seq(2));
    assert!(!stepper.store(), "there is nothing to drop");
    assert_eq!(read_to(&mut log.reader(Seq(5)), 6).await, [6]);
    // New entries and a trim wait for the writer at the same time.
    append(&log, [7], 1_000);
    assert!(stepper.store());
    stepper.publish();
    log.acknowledge(Seq(6));
    append(&log, [8], 1_000);
    assert!(stepper.store());
    stepper.publish();
    assert_eq!((log.earliest(), log.head()), (Seq(7), Seq(8)));
    assert!(!stepper.store());
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_entries_leave_memory_and_store() {
    for (name, store, _folder) in stores() {
        let logs = Logs::new(store, LogOptions::default()).unwrap();
        let log = logs.open(KernelId::random()).await.unwrap();
        for n in 1..=20 {
            append_block(&log, n, 1_000_000).await;
        }
        let last = log.reader(Seq(19)).recent().unwrap().unwrap();
        assert_eq!(last.first(), Seq(20), "{name}");
        drop(last);
        let mut slow = log.reader(Seq(17));
        log.acknowledge(Seq(19));
        wait_until("the entries are dropped", || log.earliest() == Seq(20)).await;
        log.acknowledge(Seq(20));
        assert!(
            log.reader(Seq(19)).recent().unwrap().is_none(),
            "{name}: still in memory"
        );
        let read = read_with_gaps(&mut slow, 20).await;
        assert_eq!(read, (vec![20], vec![(18, 19)]), "{name}");
        append_block(&log, 21, 10).await;
        assert_eq!(read_to(&mut slow, 21).await, [21], "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_on_disk_takes_few_segments_and_keeps_unacknowledged_entries() {
    let folder = tempfile::tempdir().unwrap();
    let id = KernelId::random();
    let mut most = 0;
    let earliest = {
        let logs = small_segments(folder.path());
        let log = logs.open(id).await.unwrap();
        let mut reader = log.reader(Seq::START);
        for n in 1..=2_000 {
            append(&log, [n], 10_000);
            log.update_index([put(&format!("k{}", n % 10), &n.to_string())]);
            let block = reader.next().await.unwrap().unwrap();
            log.acknowledge(block.last());
            most = most.max(disk_usage(folder.path()));
        }
        log.flushed().await;
        assert_eq!(log.unacknowledged_bytes(), 0);
        append(&log, 2_001..=2_100, 10_000);
        log.flushed().await;
        log.acknowledge(Seq(2_050));
        // The first call may return before the acknowledged entries are dropped.
        flushed_and_trimmed(&log).await;
        flushed_and_trimmed(&log).await;
        let earliest = log.earliest();
        assert!(
            earliest > Seq(2_000) && earliest <= Seq(2_051),
            "{earliest} is the first entry"
        );
        drop((log, reader));
        logs.close().await.unwrap();
        earliest
    };
    println!("{most} bytes at most");
    assert!(most < 8 * SEGMENT, "{most} bytes were used");
    let logs = small_segments(folder.path());
    let log = logs.open(id).await.unwrap();
    assert_eq!((log.earliest(), log.head()), (earliest, Seq(2_100)));
    let ids = read_to(&mut log.reader(Seq(earliest.0 - 1)), 2_100).await;
    assert_eq!(ids, (earliest.0..=2_100).collect::<Vec<_>>());
    // Index updates that came with dropped entries are kept.
    assert_eq!(log.index_get("k1").await.unwrap().unwrap(), "1991");
    assert_eq!(log.unacknowledged_bytes(), log.bytes());
    log.acknowledge(log.head());
    assert_eq!(log.unacknowledged_bytes(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_appender_can_wait_until_enough_is_acknowledged() {
    for (name, store, _folder) in stores() {
        let logs = Logs::new(store, options(0)).unwrap();
        let log = logs.open(KernelId::random()).await.unwrap();
        assert_eq!(log.unacknowledged_bytes(), 0, "{name}");
        assert!(log.acknowledged_below(1).now_or_never().is_some(), "{name}");
        append(&log, [1], 50_000);
        assert!(
            log.unacknowledged_bytes() > 50_000,
            "{name}: pending bytes must be counted"
        );
        log.flushed().await;
        for n in 2..=10 {
            append_block(&log, n, 50_000).await;
        }
        // Entry 10 has one more digit.
        let block = log.bytes() / 10;
        let all = log.unacknowledged_bytes();
        assert_eq!(all, log.bytes(), "{name}");
        assert!(log.acknowledged_below(all).now_or_never().is_none(), "{name}");
        assert!(log.acknowledged_below(all + 1).now_or_never().is_some(), "{name}");
        {
            let mut waiting = pin!(log.acknowledged_below(all / 2));
            assert!(waiting.as_mut().now_or_never().is_none(), "{name}");
            log.acknowledge(Seq(2));
            assert!(waiting.as_mut().now_or_never().is_none(), "{name}");
            let acknowledge = async { log.acknowledge(Seq(6)) };
            tokio::join!(waiting, acknowledge);
        }
        assert_eq!(log.unacknowledged_bytes() / 10, block * 4 / 10, "{name}");
        log.acknowledge(Seq(10));
        log.acknowledged_below(0).await;
    }
}
