//! The store on disk, with files as a failure of the machine or a bad disk leaves them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{append, copy, disk_usage, entry, message, read_to, read_with_gaps};
use jupyter_protocol::KernelId;
use kernel_log::{DiskStore, Durability, IndexUpdate, LogOptions, LogStore, Logs, Retention, Seq, StoreError};

fn logs(folder: &Path) -> Logs {
    Logs::new(Arc::new(DiskStore::open(folder).unwrap()), LogOptions::default()).unwrap()
}

/// The files of a log with this extension, in order.
fn files(folder: &Path, id: KernelId, extension: &str) -> Vec<PathBuf> {
    let files = fs::read_dir(folder.join(id.to_string())).unwrap();
    let mut files: Vec<_> = files
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    files.sort();
    files
}

fn segment(folder: &Path, id: KernelId) -> PathBuf {
    let [segment] = &files(folder, id, "log")[..] else {
        panic!("not one segment: {:?}", files(folder, id, "log"));
    };
    segment.clone()
}

/// Writes ten entries to the log of `id`, each as a block, and ten to that of `other`. Returns the segment's length
/// after each entry of `id`.
async fn write(folder: &Path, id: KernelId, other: KernelId) -> Vec<u64> {
    let logs = logs(folder);
    let (log, other) = (logs.open(id).await.unwrap(), logs.open(other).await.unwrap());
    let mut ends = Vec::new();
    append(&other, 1..=10, 100);
    other.flushed().await;
    for n in 1..=10 {
        append(&log, [n], 200);
        log.flushed().await;
        ends.push(fs::metadata(segment(folder, id)).unwrap().len());
    }
    drop((log, other));
    logs.close().await.unwrap();
    ends
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_torn_at_any_byte_keeps_the_complete_blocks_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let original = folder.path().join("original");
    let (id, other) = (KernelId::random(), KernelId::random());
    let ends = write(&original, id, other).await;
    // Cuts at every byte of the last block's head and end, and at some of the other bytes.
    let (start, end) = (ends[8], ends[9]);
    let cuts = (ends[0]..start)
        .step_by(701)
        .chain(start..start + 80)
        .chain((start + 80..end - 14).step_by(23))
        .chain(end - 14..=end);
    for cut in cuts {
        let copied = folder.path().join("copy");
        copy(&original, &copied);
        let file = OpenOptions::new().write(true).open(segment(&copied, id)).unwrap();
        file.set_len(cut).unwrap();
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
async fn numbers_are_not_reused_after_an_end_that_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let (id, other) = (KernelId::random(), KernelId::random());
    let ends = write(folder.path(), id, other).await;
    // After a power failure, a file may be longer than the data written to it.
    let file = OpenOptions::new().write(true).open(segment(folder.path(), id)).unwrap();
    file.set_len(ends[6] + 10).unwrap();
    file.set_len(ends[6] + 10_000).unwrap();
    let logs = logs(folder.path());
    let log = logs.open(id).await.unwrap();
    let head = log.head().0;
    assert!(head >= 10, "{head} is the last number, but entry 10 was appended");
    append(&log, [head + 1], 10);
    log.flushed().await;
    let (ids, gaps) = read_with_gaps(&mut log.reader(Seq::START), head + 1).await;
    assert_eq!(ids, [1, 2, 3, 4, 5, 6, 7, head + 1]);
    assert_eq!(gaps, [(8, head)]);
}

/// Damages bytes of a file. A single byte is inverted, several are replaced by zeros.
fn damage(path: &Path, at: u64, length: usize) {
    let mut file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut bytes = vec![0; length];
    file.seek(SeekFrom::Start(at)).unwrap();
    file.read_exact(&mut bytes).unwrap();
    let damaged: Vec<u8> = bytes.iter().map(|byte| if length == 1 { !byte } else { 0 }).collect();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&damaged).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_in_a_segment_becomes_a_gap_of_its_block() {
    let folder = tempfile::tempdir().unwrap();
    let original = folder.path().join("original");
    let (id, other) = (KernelId::random(), KernelId::random());
    let ends = write(&original, id, other).await;
    // Positions in the head and in the entries of the fifth block.
    let (start, end) = (ends[3], ends[4]);
    for (at, length) in [
        (start, 1),
        (start + 13, 1),
        (start + 40, 1),
        (start + 90, 1),
        (end - 2, 1),
        (end - 100, 90),
        (start, 25),
    ] {
        let copied = folder.path().join("copy");
        copy(&original, &copied);
        damage(&segment(&copied, id), at, length);
        let logs = logs(&copied);
        let unharmed = logs.open(other).await.unwrap();
        let ids = read_to(&mut unharmed.reader(Seq::START), 10).await;
        assert_eq!(ids, (1..=10).collect::<Vec<_>>(), "the other log, {at} damaged");
        let log = logs.open(id).await.unwrap();
        let (ids, gaps) = read_with_gaps(&mut log.reader(Seq::START), 10).await;
        assert_eq!(gaps, [(5, 5)], "{at} damaged");
        assert_eq!(ids, [1, 2, 3, 4, 6, 7, 8, 9, 10], "{at} damaged");
        drop((log, unharmed));
        logs.close().await.unwrap();
        fs::remove_dir_all(&copied).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_that_look_like_frames_are_not_taken_for_frames() {
    let folder = tempfile::tempdir().unwrap();
    let (id, other) = (KernelId::random(), KernelId::random());
    let ends = write(folder.path(), id, other).await;
    let path = segment(folder.path(), id);
    let whole = fs::read(&path).unwrap();
    // A kernel prints frames that it read from another segment.
    let frames: String = whole[ends[0] as usize..ends[3] as usize]
        .iter()
        .map(|byte| char::from(*byte))
        .collect();
    let hostile = jupyter_protocol::WireMessage::from_parts(
        [
            br#"{"msg_id":"11","msg_type":"stream"}"#.to_vec(),
            b"{}".to_vec(),
            b"{}".to_vec(),
            frames.bytes().collect(),
        ]
        .map(bytes::Bytes::from),
        [bytes::Bytes::from_static(b"\0buffer"), whole.clone().into()],
    );
    let victim = KernelId::random();
    let begun = {
        let logs = logs(folder.path());
        let log = logs.open(victim).await.unwrap();
        let begun = fs::metadata(segment(folder.path(), victim)).unwrap().len();
        log.append([entry(&hostile)]);
        log.flushed().await;
        append(&log, [2], 10);
        log.flushed().await;
        drop(log);
        logs.close().await.unwrap();
        begun
    };
    damage(&segment(folder.path(), victim), begun + 5, 1);
    let logs = logs(folder.path());
    let log = logs.open(victim).await.unwrap();
    let read = read_with_gaps(&mut log.reader(Seq::START), 2).await;
    assert_eq!(read, (vec![2], vec![(1, 1)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_whose_only_header_is_damaged_is_reported_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (id, other) = (KernelId::random(), KernelId::random());
    write(folder.path(), id, other).await;
    let path = segment(folder.path(), id);
    damage(&path, 30, 1);
    let before = fs::read(&path).unwrap();
    let logs = logs(folder.path());
    let error = logs.open(id).await.map(drop).unwrap_err();
    assert!(
        matches!(error, StoreError::Damaged { id: damaged, .. } if damaged == id),
        "{error}"
    );
    assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    let listed: Vec<_> = logs.list().await.unwrap().into_iter().map(|info| info.id).collect();
    assert_eq!(listed, [other]);
    assert_eq!(fs::read(&path).unwrap(), before);
    logs.remove(id).await.unwrap();
    assert_eq!(logs.open(id).await.unwrap().head(), Seq::START);
}

/// Adds more records to a log's index than are kept in memory. Returns the number of records.
async fn fill_index(folder: &Path, id: KernelId) -> u64 {
    let logs = logs(folder);
    let log = logs.open(id).await.unwrap();
    let count = 2_000;
    for n in 1..=count {
        log.append_indexed(chrono::Utc::now(), [entry(&message(n, 10))], |first| {
            vec![
                IndexUpdate::put(format!("k{n:05}"), vec![b'v'; 100]),
                IndexUpdate::put("last", first.to_string()),
            ]
        });
        if n % 50 == 0 {
            log.flushed().await;
        }
    }
    log.flushed().await;
    drop(log);
    logs.close().await.unwrap();
    count
}

/// The index files that are not replaced by another one.
fn index_files(folder: &Path, id: KernelId) -> Vec<PathBuf> {
    let range = |path: &Path| -> (u64, u64) {
        let name = path.file_stem().unwrap().to_str().unwrap();
        let (from, to) = name.split_once('-').unwrap();
        (from.parse().unwrap(), to.parse().unwrap())
    };
    let all = files(folder, id, "idx");
    let is_replaced = |path: &PathBuf| {
        let (from, to) = range(path);
        all.iter().any(|other| {
            let other_range = range(other);
            other != path && other_range.0 <= from && to <= other_range.1
        })
    };
    all.iter().filter(|path| !is_replaced(path)).cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_index_file_is_rebuilt_from_the_segments() {
    let folder = tempfile::tempdir().unwrap();
    let original = folder.path().join("original");
    let id = KernelId::random();
    let count = fill_index(&original, id).await;
    let index_files = index_files(&original, id);
    assert!(!index_files.is_empty(), "the index was never written to a file");
    assert!(index_files.len() <= 6, "index files are not merged: {index_files:?}");
    for file in &index_files {
        let name = file.strip_prefix(&original).unwrap();
        let length = fs::metadata(file).unwrap().len();
        for damaged_at in [Some(length - 5), Some(length - 40), None] {
            let copied = folder.path().join("copy");
            copy(&original, &copied);
            match damaged_at {
                Some(at) => damage(&copied.join(name), at, 1),
                None => fs::remove_file(copied.join(name)).unwrap(),
            }
            let logs = logs(&copied);
            let log = logs.open(id).await.unwrap();
            let case = format!("{} damaged at {damaged_at:?}", name.display());
            let records = log.index_scan("k", "l", 10_000, false).await.unwrap();
            assert_eq!(records.len() as u64, count, "{case}");
            assert_eq!(
                log.index_get("last").await.unwrap().unwrap(),
                count.to_string(),
                "{case}"
            );
            drop(log);
            logs.close().await.unwrap();
            let damaged = copied.join(name).with_extension("damaged");
            assert_eq!(damaged.exists(), damaged_at.is_some(), "{case}");
            fs::remove_dir_all(&copied).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_index_record_is_an_error_that_names_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let id = KernelId::random();
    fill_index(folder.path(), id).await;
    let file = index_files(folder.path(), id).remove(0);
    damage(&file, 1_000, 1);
    let logs = logs(folder.path());
    let log = logs.open(id).await.unwrap();
    let error = log.index_scan("k", "l", 10_000, false).await.unwrap_err();
    assert!(
        matches!(error, StoreError::Damaged { id: damaged, .. } if damaged == id),
        "{error}"
    );
    assert!(error.to_string().contains(&file.display().to_string()), "{error}");
    // The log continues, and retention frees space.
    for n in 2_001..=6_000 {
        log.append_indexed(chrono::Utc::now(), [entry(&message(n, 5_000))], |_| {
            vec![IndexUpdate::put(format!("k{n:05}"), vec![b'v'; 100])]
        });
        log.room().await;
    }
    log.flushed().await;
    let before = disk_usage(folder.path());
    assert_eq!(log.index_get("k06000").await.unwrap().unwrap().len(), 100);
    drop(log);
    let store = DiskStore::open(folder.path());
    assert!(store.is_err(), "an open store was opened again");
    logs.close().await.unwrap();
    let store = DiskStore::open(folder.path()).unwrap();
    let stored = store.open(id).unwrap();
    let first = stored.trim(&Retention::bytes(1 << 20)).unwrap();
    assert!(first > Seq(5_000), "{first} is the first entry");
    assert!(disk_usage(folder.path()) < before / 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_store_is_not_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    let logs = logs(folder.path());
    let log = logs.open(KernelId::random()).await.unwrap();
    append(&log, 1..=10, 100);
    log.flushed().await;
    let refused = DiskStore::open(folder.path()).map(drop).unwrap_err().to_string();
    assert!(refused.contains("another process has it open"), "{refused}");
    drop(log);
    logs.close().await.unwrap();
    let logs = self::logs(folder.path());
    assert_eq!(logs.list().await.unwrap()[0].last, Seq(10));
}

#[tokio::test(flavor = "multi_thread")]
async fn other_files_and_folders_among_the_logs_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let id = KernelId::random();
    fs::create_dir_all(folder.path().join("lost+found")).unwrap();
    fs::write(folder.path().join("lost+found/file"), "kept").unwrap();
    let logs = logs(folder.path());
    let log = logs.open(id).await.unwrap();
    append(&log, [1], 10);
    log.flushed().await;
    fs::write(folder.path().join(id.to_string()).join("notes.txt"), "kept").unwrap();
    drop(log);
    logs.close().await.unwrap();
    let logs = self::logs(folder.path());
    assert_eq!(logs.list().await.unwrap().len(), 1);
    assert_eq!(logs.open(id).await.unwrap().head(), Seq(1));
    let kept = fs::read_to_string(folder.path().join("lost+found/file")).unwrap();
    assert_eq!(kept, "kept");
}

#[test]
fn a_folder_of_an_older_version_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("keyspaces/0")).unwrap();
    fs::write(folder.path().join("version"), b"FJL\x03").unwrap();
    let refused = DiskStore::open(folder.path()).map(drop).unwrap_err().to_string();
    assert!(
        refused.contains("older version") && refused.contains("move the folder away"),
        "{refused}"
    );
    assert!(!refused.contains('\n'), "{refused}");
    assert_eq!(fs::read(folder.path().join("version")).unwrap(), b"FJL\x03");
}

/// Copies an open store, and changes the copy as if the machine had failed while the store was open.
#[cfg(target_os = "linux")]
fn after_failure(running: &Path, name: &str) -> PathBuf {
    let found = running.with_extension(name);
    copy(running, &found);
    let machine = found.join("machine.json");
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let written = fs::read_to_string(&machine).unwrap();
    assert!(written.contains(boot_id.trim()), "{written}");
    fs::write(machine, written.replace(boot_id.trim(), "another")).unwrap();
    found
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn numbers_are_not_reused_after_failures_of_the_machine() {
    let parent = tempfile::tempdir().unwrap();
    let running = parent.path().join("logs");
    let id = KernelId::random();
    {
        let logs = logs(&running);
        append(&logs.open(id).await.unwrap(), [1], 10);
        logs.close().await.unwrap();
    }
    // At the failure, the store is open, but nothing was written to the log since it was closed.
    let store = logs(&running);
    let found = after_failure(&running, "closed");
    assert_eq!(logs(&found).open(id).await.unwrap().head(), Seq(1));

    // At the failure, the log has an entry that was written after it was opened again.
    let log = store.open(id).await.unwrap();
    append(&log, [2], 10);
    log.flushed().await;
    let found = after_failure(&running, "written");
    let again = logs(&found);
    let continued = again.open(id).await.unwrap();
    let after = continued.head().0;
    assert!(after > 1_000, "{after} is the last number");
    append(&continued, [after + 1], 10);
    continued.flushed().await;
    let read = read_with_gaps(&mut continued.reader(Seq::START), after + 1).await;
    assert_eq!(read, (vec![1, 2, after + 1], vec![(3, after)]));

    // The same, but the entry had not reached the disk.
    let lost = after_failure(&running, "lost");
    let path = segment(&lost, id);
    let length = fs::metadata(&path).unwrap().len();
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(length - 200).unwrap();
    let head = logs(&lost).open(id).await.unwrap().head();
    assert!(head.0 > 2, "{head} is the last number");

    // A second failure, after which the entries written since the first one are lost.
    let twice = after_failure(&found, "twice");
    fs::remove_file(files(&twice, id, "log").pop().unwrap()).unwrap();
    let head = logs(&twice).open(id).await.unwrap().head();
    assert!(head.0 > after + 1, "{head} is the last number");
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn replaced_index_files_are_kept_until_the_merged_file_is_on_disk() {
    let parent = tempfile::tempdir().unwrap();
    let running = parent.path().join("logs");
    let id = KernelId::random();
    let options = LogOptions::default().with_durability(Durability::Process);
    let store = Logs::new(Arc::new(DiskStore::open(&running).unwrap()), options).unwrap();
    let log = store.open(id).await.unwrap();
    let mut count = 0;
    // Appends until there is a merged file next to those that it replaced.
    while files(&running, id, "idx").len() == index_files(&running, id).len() {
        count += 1;
        assert!(count < 5_000, "no index files were merged");
        log.append_indexed(chrono::Utc::now(), [entry(&message(count, 10))], |_| {
            vec![IndexUpdate::put(format!("k{count:05}"), vec![b'v'; 1_000])]
        });
        log.flushed().await;
    }
    let found = after_failure(&running, "torn");
    // The merged file was not completely on disk, and retention had removed the first segment.
    let merged = index_files(&found, id).remove(0);
    let length = fs::metadata(&merged).unwrap().len();
    OpenOptions::new()
        .write(true)
        .open(&merged)
        .unwrap()
        .set_len(length / 2)
        .unwrap();
    fs::remove_file(&files(&found, id, "log")[0]).unwrap();
    let found = logs(&found).open(id).await.unwrap();
    let records = found.index_scan("k", "l", 10_000, false).await.unwrap();
    assert_eq!(records.len() as u64, count);
}
