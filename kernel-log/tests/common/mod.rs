//! Helpers shared by the tests of the log.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use jupyter_protocol::{Channel, WireMessage};
use kernel_log::{
    DiskStore, IndexUpdate, Log, LogOptions, LogStore, MemoryStore, NewEntry, Origin, ReadError, Reader, Seq,
};

/// Deadline of every wait, far longer than any of them takes.
const DEADLINE: Duration = Duration::from_secs(60);

/// The message that the tests append as entry `n`.
pub(crate) fn message(n: u64, size: usize) -> WireMessage {
    let header = Bytes::from(format!(r#"{{"msg_id":"{n}","msg_type":"stream"}}"#));
    let content = Bytes::from(format!(r#"{{"text":"{}"}}"#, "x".repeat(size)));
    let empty = || Bytes::from_static(b"{}");
    WireMessage::from_parts([header, empty(), empty(), content], [Bytes::from_static(b"\0buffer")])
}

pub(crate) fn entry(message: &WireMessage) -> NewEntry<'_> {
    NewEntry {
        origin: Origin::Kernel,
        channel: Channel::Iopub,
        session: "",
        message,
    }
}

pub(crate) fn append(log: &Log, numbers: impl IntoIterator<Item = u64>, size: usize) {
    for n in numbers {
        log.append([entry(&message(n, size))]);
    }
}

/// Reads and checks the entries up to `last` and returns their numbers. A gap fails the test.
pub(crate) async fn read_to(reader: &mut Reader, last: u64) -> Vec<u64> {
    let (ids, gaps) = read_with_gaps(reader, last).await;
    assert!(gaps.is_empty(), "entries are missing: {gaps:?}");
    ids
}

/// Like [`read_to`], but returns the reported gaps instead of failing.
pub(crate) async fn read_with_gaps(reader: &mut Reader, last: u64) -> (Vec<u64>, Vec<(u64, u64)>) {
    let (mut ids, mut gaps) = (Vec::new(), Vec::new());
    while reader.position() < Seq(last) {
        let read = tokio::time::timeout(DEADLINE, reader.next())
            .await
            .expect("no entry arrived in time");
        let block = match read {
            Ok(block) => block.expect("the log was closed"),
            Err(ReadError::Gap { first, last }) => {
                gaps.push((first.0, last.0));
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        for entry in block.entries() {
            if entry.origin() == Origin::Lifecycle {
                continue;
            }
            let message = entry.message();
            let id: u64 = message.header_ref().unwrap().msg_id.parse().unwrap();
            assert_eq!(
                entry.seq(),
                Seq(id),
                "entries are not numbered in the order of appending"
            );
            assert_eq!(message.buffers(), [Bytes::from_static(b"\0buffer")]);
            ids.push(id);
        }
    }
    (ids, gaps)
}

/// Waits until all appended entries are stored and the log is trimmed. The writer trims after it publishes, so this
/// waits for a second round of the writer, which adds no entry and so trims nothing.
pub(crate) async fn flushed_and_trimmed(log: &Log) {
    log.flushed().await;
    log.update_index([IndexUpdate::put("round", "")]);
    log.flushed().await;
}

/// Bytes that a folder occupies on the disk: allocated blocks, not file lengths.
pub(crate) fn disk_usage(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => disk_usage(&entry.path()),
            Ok(metadata) => metadata.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

/// Polls until a condition holds.
pub(crate) async fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "timed out waiting until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Copies a folder. Files that are removed during the copy are left out.
pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to)
        } else if let Err(error) = std::fs::copy(entry.path(), to) {
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
        }
    }
}

pub(crate) fn stores() -> Vec<(&'static str, Arc<dyn LogStore>, Option<tempfile::TempDir>)> {
    let folder = tempfile::tempdir().unwrap();
    let disk = DiskStore::open(folder.path()).unwrap();
    vec![
        ("memory", Arc::new(MemoryStore::new()), None),
        ("disk", Arc::new(disk), Some(folder)),
    ]
}

pub(crate) fn options(memory_bytes: usize) -> LogOptions {
    let mut options = LogOptions::default();
    options.memory_bytes = memory_bytes;
    options
}

pub(crate) fn put(key: &str, value: &str) -> IndexUpdate {
    IndexUpdate::put(key.to_owned(), value.to_owned())
}

pub(crate) async fn scan(log: &Log, start: &str, end: &str, limit: usize, newest_first: bool) -> Vec<String> {
    log.index_scan(start.to_owned(), end.to_owned(), limit, newest_first)
        .await
        .unwrap()
        .into_iter()
        .map(|(key, value)| String::from_utf8([&key[..], b"=", &value[..]].concat()).unwrap())
        .collect()
}

pub(crate) fn append_with_index(log: &Log, n: u64, index: impl FnOnce(Seq) -> Vec<IndexUpdate>) -> Seq {
    let message = message(n, 10);
    let entry = NewEntry {
        origin: Origin::Client,
        channel: Channel::Shell,
        session: "client",
        message: &message,
    };
    log.append_indexed(chrono::Utc::now(), [entry], index)
}
