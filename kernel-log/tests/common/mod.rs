//! What the tests of the log share.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use jupyter_protocol::{Channel, WireMessage};
use kernel_log::{IndexUpdate, Log, NewEntry, Origin, ReadError, Reader, Seq};

/// Far more than anything here takes.
const SOON: Duration = Duration::from_secs(60);

/// The message that entry `n` has.
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

/// The numbers of the entries up to `last`, which are checked; a gap fails the test.
pub(crate) async fn read_to(reader: &mut Reader, last: u64) -> Vec<u64> {
    let (ids, gaps) = read_with_gaps(reader, last).await;
    assert!(gaps.is_empty(), "entries are missing: {gaps:?}");
    ids
}

/// The same, with the gaps that were told.
pub(crate) async fn read_with_gaps(reader: &mut Reader, last: u64) -> (Vec<u64>, Vec<(u64, u64)>) {
    let (mut ids, mut gaps) = (Vec::new(), Vec::new());
    while reader.position() < Seq(last) {
        let read = tokio::time::timeout(SOON, reader.next()).await.expect("entries come");
        let block = match read {
            Ok(block) => block.expect("the log is open"),
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
            assert_eq!(entry.seq(), Seq(id), "entries are numbered in the order of appending");
            assert_eq!(message.buffers(), [Bytes::from_static(b"\0buffer")]);
            ids.push(id);
        }
    }
    (ids, gaps)
}

/// Waits until what was appended is stored, and the log trimmed. Trimming comes after publishing, and is done once another
/// round of the writer, which adds nothing that could be trimmed for, is.
pub(crate) async fn trimmed(log: &Log) {
    log.flushed().await;
    log.update_index([IndexUpdate::put("round", "")]);
    log.flushed().await;
}

/// How many bytes a folder takes on the disk: what its files hold, not how long they are.
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

/// Waits for something that has no event.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < end, "this did not come: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
