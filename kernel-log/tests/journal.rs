//! fjall's journals after a power failure or on a bad disk.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{append, read_to, read_with_gaps};
use jupyter_protocol::KernelId;
use kernel_log::{FjallStore, LogOptions, Logs, Seq};

fn logs(folder: &Path) -> Logs {
    Logs::new(Arc::new(FjallStore::open(folder).unwrap()), LogOptions::default()).unwrap()
}

fn journal(folder: &Path) -> PathBuf {
    let mut journals = fs::read_dir(folder)
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "jnl"));
    let journal = journals.next().unwrap();
    assert!(journals.next().is_none(), "more than one journal");
    journal
}

/// Offset after the journal's last nonzero byte. The file is preallocated with zeros.
fn end_of(journal: &Path) -> u64 {
    let mut bytes = Vec::new();
    // The tests write less than this; the file is far longer.
    File::open(journal)
        .unwrap()
        .take(1 << 20)
        .read_to_end(&mut bytes)
        .unwrap();
    bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else if entry.path().extension().is_some_and(|extension| extension == "jnl") {
            // Omits the preallocated zeros, which are most of the file.
            let mut bytes = Vec::new();
            let end = end_of(&entry.path());
            File::open(entry.path())
                .unwrap()
                .take(end)
                .read_to_end(&mut bytes)
                .unwrap();
            fs::write(&to, bytes).unwrap();
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// Writes ten entries of `id`, a block each, after the first half and before the second half of the entries of `other`.
/// Returns the end of the journal after each entry of `id`.
async fn write(folder: &Path, id: KernelId, other: KernelId) -> Vec<u64> {
    let logs = logs(folder);
    let (log, other) = (logs.open(id).await.unwrap(), logs.open(other).await.unwrap());
    let mut ends = Vec::new();
    append(&other, 1..=10, 100);
    other.flushed().await;
    for n in 1..=10 {
        append(&log, [n], 200);
        log.flushed().await;
        ends.push(end_of(&journal(folder)));
    }
    append(&other, 11..=20, 100);
    other.flushed().await;
    drop((log, other));
    logs.close().await.unwrap();
    ends
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_torn_at_any_byte_keeps_the_complete_blocks_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let original = folder.path().join("original");
    let (id, other) = (KernelId::random(), KernelId::random());
    let ends = write(&original, id, other).await;
    // Every byte of the last block's head and end, and samples of the rest.
    let (start, end) = (ends[8], ends[9]);
    let cuts = (ends[0]..start)
        .step_by(701)
        .chain(start..start + 16)
        .chain((start + 16..end - 14).step_by(23))
        .chain(end - 14..=end);
    for (n, cut) in cuts.enumerate() {
        let copied = folder.path().join("copy");
        copy(&original, &copied);
        let file = OpenOptions::new().write(true).open(journal(&copied)).unwrap();
        file.set_len(cut).unwrap();
        // After a power failure, a file may be longer than the data written to it.
        if n % 2 == 0 {
            file.set_len(cut + 10_000).unwrap();
        }
        let complete = ends.iter().filter(|end| **end <= cut).count() as u64;
        for round in 0..2 {
            let logs = logs(&copied);
            let log = logs.open(id).await.unwrap();
            assert_eq!(log.head(), Seq(complete + round), "cut at {cut}");
            append(&log, [complete + round + 1], 10);
            log.flushed().await;
            let ids = read_to(&mut log.reader(Seq::START), complete + round + 1).await;
            assert_eq!(ids, (1..=complete + round + 1).collect::<Vec<_>>(), "cut at {cut}");
            drop(log);
            logs.close().await.unwrap();
        }
        fs::remove_dir_all(&copied).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_in_a_journal_becomes_a_gap_of_its_block() {
    let folder = tempfile::tempdir().unwrap();
    let original = folder.path().join("original");
    let (id, other) = (KernelId::random(), KernelId::random());
    let ends = write(&original, id, other).await;
    // Damage in the fifth block: flipped bytes in its head and elsewhere, and a run of zeros.
    let (start, end) = (ends[3], ends[4]);
    for (at, length) in [
        (start, 1),
        (start + 13, 1),
        (start + 40, 1),
        (end - 2, 1),
        (end - 100, 90),
    ] {
        let copied = folder.path().join("copy");
        copy(&original, &copied);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(journal(&copied))
            .unwrap();
        let mut bytes = vec![0; length];
        file.seek(SeekFrom::Start(at)).unwrap();
        file.read_exact(&mut bytes).unwrap();
        let damaged: Vec<u8> = bytes.iter().map(|byte| if length == 1 { !byte } else { 0 }).collect();
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(&damaged).unwrap();
        drop(file);
        let logs = logs(&copied);
        let unharmed = logs.open(other).await.unwrap();
        let ids = read_to(&mut unharmed.reader(Seq::START), 20).await;
        assert_eq!(ids, (1..=20).collect::<Vec<_>>(), "the other log, {at} damaged");
        let log = logs.open(id).await.unwrap();
        let (ids, gaps) = read_with_gaps(&mut log.reader(Seq::START), 10).await;
        let (first, last) = gaps[0];
        assert!(gaps.len() == 1 && first == 5 && last <= 6, "{at} damaged: {gaps:?}");
        assert_eq!(ids, (1..=10).filter(|n| *n < first || *n > last).collect::<Vec<_>>());
        drop((log, unharmed));
        logs.close().await.unwrap();
        fs::remove_dir_all(&copied).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_journal_of_an_open_store_is_not_repaired() {
    let folder = tempfile::tempdir().unwrap();
    let logs = logs(folder.path());
    let log = logs.open(KernelId::random()).await.unwrap();
    append(&log, 1..=10, 100);
    log.flushed().await;
    // Looks like an unfinished write.
    let journal = journal(folder.path());
    let end = end_of(&journal);
    let mut file = OpenOptions::new().write(true).open(&journal).unwrap();
    file.seek(SeekFrom::Start(end)).unwrap();
    file.write_all(b"\x01\x01\0\0\0").unwrap();
    let before = fs::metadata(&journal).unwrap().len();
    let refused = FjallStore::open(folder.path()).map(drop).unwrap_err().to_string();
    assert!(refused.contains("another process has it open"), "{refused}");
    assert_eq!(fs::metadata(&journal).unwrap().len(), before);
    drop(log);
    logs.close().await.unwrap();
    let log = self::logs(folder.path());
    assert_eq!(log.list().await.unwrap()[0].last, Seq(10));
}

#[test]
fn a_foreign_folder_among_the_logs_is_moved_away() {
    let folder = tempfile::tempdir().unwrap();
    drop(FjallStore::open(folder.path()).unwrap());
    fs::create_dir_all(folder.path().join("keyspaces/lost+found")).unwrap();
    fs::write(folder.path().join("keyspaces/lost+found/file"), "kept").unwrap();
    drop(FjallStore::open(folder.path()).unwrap());
    let kept = fs::read_to_string(folder.path().join("damaged/lost+found/file")).unwrap();
    assert_eq!(kept, "kept");
}

#[test]
fn logs_of_another_fjall_format_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    drop(FjallStore::open(folder.path()).unwrap());
    fs::write(folder.path().join("version"), b"FJL\x04").unwrap();
    let before = fs::read(journal(folder.path())).unwrap();
    let refused = FjallStore::open(folder.path()).err().unwrap().to_string();
    assert!(
        refused.contains("format 4 of fjall") && !refused.contains('\n'),
        "{refused}"
    );
    assert_eq!(fs::read(journal(folder.path())).unwrap(), before);
}
