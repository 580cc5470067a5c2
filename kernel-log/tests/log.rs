//! The log on the stores in memory and on disk.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::pin::pin;
use std::sync::Arc;

use futures::FutureExt as _;
use jupyter_protocol::{Channel, KernelId};
use kernel_log::{
    Block, Cursor, DiskStore, Epoch, InvalidCursor, LogInfo, LogOptions, Logs, MemoryStore, NewEntry, Origin,
    ReadError, RemoveError, Seq,
};

use common::{append, entry, flushed_and_trimmed, message, options, read_to, stores};

#[tokio::test(flavor = "multi_thread")]
async fn every_reader_reads_every_entry_once_wherever_it_starts() {
    for (name, store, _folder) in stores() {
        let logs = Logs::new(store, options(10_000)).unwrap();
        let log = logs.open(KernelId::random()).await.unwrap();
        let mut early = log.reader(Seq::START);
        append(&log, 1..=2_000, 100);
        let mut middle = log.reader(Seq(1_234));
        log.flushed().await;
        let mut late = log.reader(log.head());
        append(&log, 2_001..=2_010, 100);
        assert_eq!(
            read_to(&mut early, 2_010).await,
            (1..=2_010).collect::<Vec<_>>(),
            "{name}"
        );
        assert_eq!(
            read_to(&mut middle, 2_010).await,
            (1_235..=2_010).collect::<Vec<_>>(),
            "{name}"
        );
        assert_eq!(
            read_to(&mut late, 2_010).await,
            (2_001..=2_010).collect::<Vec<_>>(),
            "{name}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_waits_for_the_next_entry_and_ends_when_the_log_is_closed() {
    for (name, store, _folder) in stores() {
        let logs = Logs::new(store, LogOptions::default()).unwrap();
        let log = logs.open(KernelId::random()).await.unwrap();
        let mut reader = log.reader(Seq::START);
        assert!(reader.recent().unwrap().is_none(), "{name}");
        let waiting = tokio::spawn(async move {
            let first = reader.next().await.unwrap().map(|block| block.last());
            let end = reader.next().await.unwrap().is_none();
            (first, end)
        });
        append(&log, [1], 1);
        log.close();
        assert_eq!(waiting.await.unwrap(), (Some(Seq(1)), true), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_drops_its_oldest_entries_at_its_bound_and_reports_a_gap() {
    for (name, store, _folder) in stores() {
        let mut options = options(1_000);
        options.stored_bytes = 100_000;
        let logs = Logs::new(store, options).unwrap();
        let log = logs.open(KernelId::random()).await.unwrap();
        let mut reader = log.reader(Seq::START);
        append(&log, 1..=5_000, 100);
        flushed_and_trimmed(&log).await;
        let Err(ReadError::Gap { first, last }) = reader.next().await else {
            panic!("{name}: the oldest entries were dropped, and no gap is reported");
        };
        assert_eq!(first, Seq(1), "{name}");
        let rest = read_to(&mut reader, 5_000).await;
        assert_eq!(rest, (last.0 + 1..=5_000).collect::<Vec<_>>(), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reopened_log_on_disk_continues_its_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let id = KernelId::random();
    let mut epochs = Vec::new();
    for round in 0..3_u64 {
        let store = Arc::new(DiskStore::open(folder.path()).unwrap());
        let logs = Logs::new(store, LogOptions::default()).unwrap();
        let log = logs.open(id).await.unwrap();
        assert_eq!(log.head(), Seq(round * 10));
        epochs.push(log.epoch());
        append(&log, round * 10 + 1..=round * 10 + 10, 100);
        log.flushed().await;
        let mut reader = log.reader(Seq(round * 10 / 2));
        read_to(&mut reader, round * 10 + 10).await;
        drop((reader, log));
        logs.close().await.unwrap();
    }
    assert!(epochs.windows(2).all(|pair| pair[0] == pair[1]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_opened_after_its_removal_is_empty_and_has_another_epoch() {
    for (name, store, _folder) in stores() {
        let logs = Logs::new(store, LogOptions::default()).unwrap();
        let id = KernelId::random();
        let log = logs.open(id).await.unwrap();
        append(&log, [1], 1);
        log.flushed().await;
        let epoch = log.epoch();
        assert_eq!(
            logs.list()
                .await
                .unwrap()
                .iter()
                .map(|info: &LogInfo| info.id)
                .collect::<Vec<_>>(),
            [id],
            "{name}"
        );
        let refused = logs.remove(id).await;
        assert!(matches!(refused, Err(RemoveError::Open(open)) if open == id), "{name}");
        log.close();
        logs.remove(id).await.unwrap();
        logs.remove(id).await.unwrap();
        assert!(logs.list().await.unwrap().is_empty(), "{name}");
        let log = logs.open(id).await.unwrap();
        assert_eq!(log.head(), Seq::START, "{name}");
        assert_ne!(log.epoch(), epoch, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_of_an_ended_kernel_is_found_closed_and_can_be_reopened() {
    for (name, store, _folder) in stores() {
        let logs = Logs::new(store, LogOptions::default()).unwrap();
        let id = KernelId::random();
        assert!(logs.find(id).await.unwrap().is_none(), "{name}");
        assert!(logs.list().await.unwrap().is_empty(), "{name}: find created a log");
        let log = logs.open(id).await.unwrap();
        append(&log, 1..=10, 100);
        let live = logs.find(id).await.unwrap().unwrap();
        assert!(!live.is_closed(), "{name}: find returned a closed log");
        log.flushed().await;
        assert_eq!(live.head(), Seq(10), "{name}");
        log.close();
        drop((log, live));
        let found = logs.find(id).await.unwrap().unwrap();
        assert!(found.is_closed(), "{name}");
        assert_eq!((found.earliest(), found.head()), (Seq(1), Seq(10)), "{name}");
        let mut reader = found.reader(Seq(4));
        assert_eq!(read_to(&mut reader, 10).await, (5..=10).collect::<Vec<_>>(), "{name}");
        assert!(reader.next().await.unwrap().is_none(), "{name}");
        let info = &logs.list().await.unwrap()[0];
        assert_eq!(
            (info.first, info.last, info.bytes),
            (Seq(1), Seq(10), found.bytes()),
            "{name}"
        );
        // Opening the id again continues the same log.
        let log = logs.open(id).await.unwrap();
        assert!(!found.is_closed(), "{name}");
        append(&log, [11], 100);
        assert_eq!(read_to(&mut reader, 11).await, [11], "{name}");
    }
}

#[tokio::test]
async fn a_completely_stored_log_has_room_while_others_wait() {
    let mut options = LogOptions::default();
    options.all_waiting_bytes = 4 << 20;
    let (logs, mut stepper) = Logs::stepped(Arc::new(MemoryStore::new()), options);
    let [large, small, none] = [(); 3].map(|()| KernelId::random());
    let (large, small) = (logs.open(large).await.unwrap(), logs.open(small).await.unwrap());
    let none = logs.open(none).await.unwrap();
    append(&large, [1], 3 << 20);
    assert!(large.room().now_or_never().is_some());
    append(&small, [1], 2 << 20);
    for log in [&large, &small] {
        assert!(log.room().now_or_never().is_none(), "5 MiB are not stored yet");
    }
    assert!(none.room().now_or_never().is_some(), "this log is stored completely");
    {
        let mut waiting = pin!(small.room());
        assert!(waiting.as_mut().now_or_never().is_none());
        while stepper.store() {
            stepper.publish();
        }
        waiting.await;
    }
    drop((large, small));
    append(&none, [1], 3 << 20);
    assert!(
        none.room().now_or_never().is_some(),
        "the other logs are stored completely"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_of_a_large_block_share_its_memory() {
    for (name, store, _folder) in stores() {
        let logs = Logs::new(store, options(10_000)).unwrap();
        let log = logs.open(KernelId::random()).await.unwrap();
        append(&log, [1], 3 << 20);
        append(&log, [2], 100);
        log.flushed().await;
        let mut held = Vec::new();
        for _ in 0..3 {
            let block = log.reader(Seq::START).next().await.unwrap().unwrap();
            assert_eq!((block.first(), block.entries().next().unwrap().seq()), (Seq(1), Seq(1)));
            held.push(block);
        }
        let addresses: Vec<_> = held.iter().map(|block| block.bytes().as_ptr()).collect();
        assert!(
            addresses.iter().all(|address| *address == addresses[0]),
            "{name}: {addresses:?}"
        );
        drop(held);
        assert_eq!(read_to(&mut log.reader(Seq::START), 2).await, [1, 2], "{name}");
    }
}

#[test]
fn a_torn_block_is_recovered_up_to_its_last_complete_entry() {
    let store = MemoryStore::new();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let block = runtime.block_on(async {
        let logs = Logs::new(Arc::new(store), LogOptions::default()).unwrap();
        let log = logs.open(KernelId::random()).await.unwrap();
        let messages = [message(1, 30), message(2, 30), message(3, 30)];
        log.append(messages.iter().map(|message| NewEntry {
            origin: Origin::Kernel,
            channel: Channel::Shell,
            session: "client",
            message,
        }));
        log.reader(Seq::START).next().await.unwrap().unwrap()
    });
    let ends: Vec<usize> = block
        .entries()
        .scan(0, |end, entry| {
            *end += entry.size();
            Some(*end)
        })
        .collect();
    for length in 0..=block.bytes().len() {
        let complete = ends.iter().filter(|end| **end <= length).count();
        match Block::recover(block.bytes().slice(..length)) {
            None => assert_eq!(complete, 0, "cut at {length}"),
            Some(recovered) => {
                assert_eq!(recovered.last(), Seq(complete as u64), "cut at {length}");
                assert!(recovered.entries().all(|entry| entry.session() == "client"));
            }
        }
    }
}

#[test]
fn a_cursor_parses_from_its_own_text_and_from_no_other() {
    let cursor = Cursor {
        epoch: Epoch::random(),
        seq: Seq(77),
    };
    assert_eq!(cursor.to_string().parse(), Ok(cursor));
    for text in [
        "",
        ":",
        "1:2",
        "x",
        &format!("{}:", cursor.epoch),
        &format!("{}:-1", cursor.epoch),
        &format!("{}:1 ", cursor.epoch),
    ] {
        assert_eq!(text.parse::<Cursor>(), Err(InvalidCursor), "{text:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn small_appends_are_stored_by_the_appending_thread() {
    for (name, store, _folder) in stores() {
        let logs = Logs::new(store, LogOptions::default()).unwrap();
        let log = logs.open(KernelId::random()).await.unwrap();
        let append = |n: u64, size: usize| {
            let unstored = log.append_unstored([entry(&message(n, size))]);
            assert_eq!(unstored.last(), Seq(n), "{name}");
            unstored.store_here(10_000);
        };
        append(1, 100);
        assert_eq!(log.head(), Seq(1), "{name}");
        // The writer thread stores large appends, and also small ones while it is writing the log.
        for n in 2..=500 {
            append(n, if n % 3 == 0 { 20_000 } else { 100 });
        }
        log.flushed().await;
        let mut reader = log.reader(Seq::START);
        assert_eq!(read_to(&mut reader, 500).await, (1..=500).collect::<Vec<_>>(), "{name}");
        append(501, 100);
        assert_eq!(log.head(), Seq(501), "{name}");
    }
}
