//! Many logs in one store on disk.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{append, disk_usage, entry, message, read_to, wait_until};
use jupyter_protocol::KernelId;
use kernel_log::{DiskStore, IndexUpdate, LogOptions, Logs, Seq};

const LOGS: usize = 300;

fn logs(folder: &Path) -> Logs {
    Logs::new(Arc::new(DiskStore::open(folder).unwrap()), LogOptions::default()).unwrap()
}

/// The number of this process's open files below a folder.
fn open_files(folder: &Path) -> usize {
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .flatten()
        .filter(|file| std::fs::read_link(file.path()).is_ok_and(|target| target.starts_with(folder)))
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_takes_one_open_file_while_it_is_open_and_little_space() {
    let folder = tempfile::tempdir().unwrap();
    let logs = logs(folder.path());
    let before = open_files(folder.path());
    let mut open = Vec::new();
    for n in 1..=LOGS as u64 {
        let log = logs.open(KernelId::random()).await.unwrap();
        log.append_indexed(chrono::Utc::now(), [entry(&message(1, 300))], |first| {
            vec![IndexUpdate::put("r/1", first.to_string())]
        });
        append(&log, [2], 300);
        log.flushed().await;
        // The thread that syncs may have one more file open.
        assert!(open_files(folder.path()) <= before + n as usize + 1);
        open.push(log);
    }
    for log in &open {
        assert_eq!(read_to(&mut log.reader(Seq::START), 2).await, [1, 2]);
    }
    drop(open);
    wait_until("the files are closed", || open_files(folder.path()) == before).await;
    let each = disk_usage(folder.path()) / LOGS as u64;
    assert!(each <= 32 << 10, "a log takes {each} bytes");

    let list = logs.list().await.unwrap();
    assert_eq!(list.len(), LOGS);
    assert!(list.iter().all(|info| info.last == Seq(2)));
    let (removed, kept) = list.split_at(LOGS / 2);
    for info in removed {
        logs.remove(info.id).await.unwrap();
    }
    assert!(disk_usage(folder.path()) <= (each + 8_000) * kept.len() as u64);
    logs.close().await.unwrap();

    let logs = self::logs(folder.path());
    let mut listed: Vec<_> = logs.list().await.unwrap().into_iter().map(|info| info.id).collect();
    let mut expected: Vec<_> = kept.iter().map(|info| info.id).collect();
    listed.sort();
    expected.sort();
    assert_eq!(listed, expected);
    let log = logs.open(expected[0]).await.unwrap();
    assert_eq!(log.index_get("r/1").await.unwrap().unwrap(), "1");
    append(&log, [3], 300);
    assert_eq!(read_to(&mut log.reader(Seq::START), 3).await, [1, 2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_closed_and_opened_again_at_once_continues() {
    let folder = tempfile::tempdir().unwrap();
    let logs = Arc::new(logs(folder.path()));
    let id = KernelId::random();
    for n in 1..=200 {
        let log = logs.open(id).await.unwrap();
        assert_eq!(log.head(), Seq(n - 1));
        append(&log, [n], 100);
        log.flushed().await;
        // The last handle closes the log while the next one is opened.
        let closing = tokio::task::spawn_blocking(move || drop(log));
        let found = logs.find(id).await.unwrap().unwrap();
        assert_eq!(found.head(), Seq(n));
        closing.await.unwrap();
    }
    let log = logs.open(id).await.unwrap();
    assert_eq!(
        read_to(&mut log.reader(Seq::START), 200).await,
        (1..=200).collect::<Vec<_>>()
    );
}
