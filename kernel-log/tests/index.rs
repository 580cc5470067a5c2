//! The index of a log, on the stores in memory and on disk.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::Arc;

use chrono::Utc;
use common::{append_with_index, entry, message, put, scan, stores};
use jupyter_protocol::KernelId;
use kernel_log::{DiskStore, IndexUpdate, LogOptions, LogStore as _, Logs, MemoryStore, Seq};

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
            // The result does not depend on what the writer thread has stored.
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
async fn the_index_survives_reopening_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let id = KernelId::random();
    for round in 0..3_u64 {
        let store = Arc::new(DiskStore::open(folder.path()).unwrap());
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

#[tokio::test]
async fn entries_and_their_index_updates_are_stored_together() {
    let store = Arc::new(MemoryStore::new());
    let (logs, mut stepper) = Logs::stepped(store.clone(), LogOptions::default());
    let id = KernelId::random();
    let log = logs.open(id).await.unwrap();
    let messages: Vec<_> = (0..10).map(|n| message(n, 10_000)).collect();
    for _ in 0..20 {
        log.append_indexed(Utc::now(), messages.iter().map(entry), |first| {
            vec![put("last", &(first.0 + 9).to_string())]
        });
    }
    let mut blocks = 0;
    // Even if the process is killed after this block, the index matches the stored entries.
    while stepper.store() {
        blocks += 1;
        let stored = store.open(id).unwrap();
        let (_, last) = stored.bounds().unwrap().unwrap();
        assert_eq!(stored.index_get(b"last").unwrap().unwrap(), last.to_string());
        stepper.publish();
    }
    assert!(blocks > 5, "{blocks}");
    assert_eq!(log.head(), Seq(200));
}
