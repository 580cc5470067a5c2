//! What a machine that went down, or a bad disk, leaves of the newest entries.
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
    assert!(journals.next().is_none(), "little was written");
    journal
}

/// Where the journal's bytes end, and zeros begin.
fn end_of(journal: &Path) -> u64 {
    let mut bytes = Vec::new();
    // Little was written, and the file is long.
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
            // Most of it is not written yet.
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

/// A log with ten entries, each a block of its own, and another of which the first half is older and the other newer.
/// Returns where the journal ended after each of the first's entries.
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
async fn a_journal_torn_at_any_byte_has_what_came_before() {
    let folder = tempfile::tempdir().unwrap();
    let original = folder.path().join("original");
    let (id, other) = (KernelId::random(), KernelId::random());
    let ends = write(&original, id, other).await;
    // Of the last block's head and end each byte, and parts of what lies between and before.
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
        // A file is often longer than what of it was written.
        if n % 2 == 0 {
            file.set_len(cut + 10_000).unwrap();
        }
        let whole = ends.iter().filter(|end| **end <= cut).count() as u64;
        for round in 0..2 {
            let logs = logs(&copied);
            let log = logs.open(id).await.unwrap();
            assert_eq!(log.head(), Seq(whole + round), "cut at {cut}");
            append(&log, [whole + round + 1], 10);
            log.flushed().await;
            let ids = read_to(&mut log.reader(Seq::START), whole + round + 1).await;
            assert_eq!(ids, (1..=whole + round + 1).collect::<Vec<_>>(), "cut at {cut}");
            drop(log);
            logs.close().await.unwrap();
        }
        fs::remove_dir_all(&copied).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_journal_costs_one_block_which_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let original = folder.path().join("original");
    let (id, other) = (KernelId::random(), KernelId::random());
    let ends = write(&original, id, other).await;
    // In the fifth block: flipped bytes, in its head and elsewhere, and a piece of zeros.
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
async fn a_journal_that_is_being_written_is_nobody_elses_to_mend() {
    let folder = tempfile::tempdir().unwrap();
    let logs = logs(folder.path());
    let log = logs.open(KernelId::random()).await.unwrap();
    append(&log, 1..=10, 100);
    log.flushed().await;
    // As in the midst of a write.
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
fn a_foreign_folder_among_the_logs_is_put_aside() {
    let folder = tempfile::tempdir().unwrap();
    drop(FjallStore::open(folder.path()).unwrap());
    fs::create_dir_all(folder.path().join("keyspaces/lost+found")).unwrap();
    fs::write(folder.path().join("keyspaces/lost+found/file"), "kept").unwrap();
    drop(FjallStore::open(folder.path()).unwrap());
    let kept = fs::read_to_string(folder.path().join("damaged/lost+found/file")).unwrap();
    assert_eq!(kept, "kept");
}

#[test]
fn logs_that_another_version_wrote_are_refused_in_one_sentence() {
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
