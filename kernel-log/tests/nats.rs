//! The store in NATS: outages, lost data and a second writer.
#![cfg(feature = "nats")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
mod nats_server;

use std::time::Duration;

use common::{append, read_with_gaps, wait_until};
use jupyter_protocol::KernelId;
use kernel_log::{
    IndexUpdate, Log, LogOptions, LogStore as _, Logs, NatsOptions, NatsStore, Seq, StoreError, WhenFull,
};
use nats_server::Server;

fn logs(server: &Server) -> Logs {
    let mut options = LogOptions::default();
    options.memory_bytes = 10_000;
    Logs::new(server.connect(), options).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_is_stored_once_if_its_acknowledgement_was_lost() {
    let Some(server) = Server::start() else { return };
    let id = KernelId::random();
    {
        let options = LogOptions::default()
            .with_when_full(WhenFull::Wait)
            .with_memory_bytes(0);
        let logs = Logs::new(server.connect(), options).unwrap();
        let log = logs.open(id).await.unwrap();
        append(&log, 1..=5, 1_000);
        log.flushed().await;
        server.pause();
        // More than the server accepts in one message.
        append(&log, [6], 2_000_000);
        log.update_index([IndexUpdate::put("k", "6")]);
        wait_until("the store refuses the entry", || !log.is_recorded()).await;
        server.resume();
        log.flushed().await;
        assert!(log.is_recorded());
        append(&log, 7..=9, 1_000);
        log.flushed().await;
        let ids = common::read_to(&mut log.reader(Seq::START), 9).await;
        assert_eq!(ids, (1..=9).collect::<Vec<_>>());
        drop(log);
        logs.close().await.unwrap();
    }
    let log = logs(&server).find(id).await.unwrap().unwrap();
    let ids = common::read_to(&mut log.reader(Seq::START), 9).await;
    assert_eq!(ids, (1..=9).collect::<Vec<_>>());
    assert_eq!(log.index_get("k").await.unwrap().unwrap(), "6");
}

/// Appends entries, at least one, until the log is recorded.
async fn append_until_recorded(log: &Log) {
    let again = async {
        loop {
            // The number comes from the log, because the writer may append a report of a gap in between.
            append(log, [log.head().0 + 1], 1_000);
            log.flushed().await;
            if log.is_recorded() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), again)
        .await
        .expect("the log was not recorded again in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn delivery_continues_during_a_server_outage_and_recording_resumes_after_it() {
    let Some(server) = Server::start() else { return };
    let logs = logs(&server);
    let id = KernelId::random();
    let log = logs.open(id).await.unwrap();
    append(&log, 1..=50, 1_000);
    log.update_index([IndexUpdate::put("k", "before")]);
    log.flushed().await;
    server.kill();
    // The store may notice the outage only when an append fails.
    let mut next = 51;
    while log.is_recorded() {
        append(&log, [next], 1_000);
        log.flushed().await;
        next += 1;
        assert!(next < 10_000);
    }
    for _ in 0..100 {
        let mut live = log.reader(log.head());
        append(&log, [next], 1_000);
        assert_eq!(common::read_to(&mut live, next).await, [next]);
        next += 1;
    }
    log.update_index([IndexUpdate::put("k", "away")]);
    assert_eq!(log.index_get("k").await.unwrap().unwrap(), "away");
    // More than the server accepts in one message.
    log.update_index((0..3_000).map(|n| IndexUpdate::put(format!("many{n}"), vec![0; 1_000])));
    server.restart();
    append_until_recorded(&log).await;
    log.flushed().await;
    log.flushed().await;
    let head = log.head();
    drop(log);
    logs.close().await.unwrap();
    let logs = self::logs(&server);
    let log = logs.open(id).await.unwrap();
    assert_eq!(log.head(), head);
    assert_eq!(log.index_get("k").await.unwrap().unwrap(), "away");
    assert!(log.index_get("many2999").await.unwrap().is_some());
    let (ids, gaps) = read_with_gaps(&mut log.reader(Seq::START), head.0).await;
    assert_eq!(&ids[..50], (1..=50).collect::<Vec<_>>());
    assert_eq!(gaps.len(), 1, "{gaps:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn flushed_entries_survive_a_killed_server() {
    let Some(server) = Server::start() else { return };
    let id = KernelId::random();
    let mut last = 0;
    for round in 0..5_u64 {
        let logs = logs(&server);
        let log = logs.open(id).await.unwrap();
        assert_eq!(log.head(), Seq(last), "round {round}");
        append(&log, last + 1..=last + 100, 5_000);
        log.update_index([IndexUpdate::put(format!("k{round}"), "v")]);
        log.flushed().await;
        assert!(log.is_recorded());
        last += 100;
        server.kill();
        drop(log);
        logs.close().await.unwrap();
        server.restart();
    }
    let logs = logs(&server);
    let log = logs.find(id).await.unwrap().unwrap();
    let (ids, gaps) = read_with_gaps(&mut log.reader(Seq::START), last).await;
    assert_eq!((ids, gaps), ((1..=last).collect(), Vec::new()));
    assert_eq!(log.index_scan("k", "l", 9, true).await.unwrap().len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn recording_resumes_on_a_server_that_lost_the_newest_entries() {
    let Some(server) = Server::start() else { return };
    let logs = logs(&server);
    let id = KernelId::random();
    let log = logs.open(id).await.unwrap();
    append(&log, 1..=20, 1_000);
    log.flushed().await;
    server.kill();
    let earlier = server.backup();
    server.restart();
    append_until_recorded(&log).await;
    append(&log, [log.head().0 + 1], 1_000);
    log.flushed().await;
    let lost = log.head();
    server.kill();
    server.restore(&earlier);
    server.restart();
    append_until_recorded(&log).await;
    log.flushed().await;
    let head = log.head();
    assert!(head > lost);
    drop(log);
    logs.close().await.unwrap();
    let log = self::logs(&server).find(id).await.unwrap().unwrap();
    let (ids, gaps) = read_with_gaps(&mut log.reader(Seq::START), head.0).await;
    assert_eq!(&ids[..20], (1..=20).collect::<Vec<_>>());
    assert!(ids.last().is_some_and(|last| *last > lost.0), "{ids:?}");
    assert!(
        gaps.iter().any(|(first, last)| (*first..=*last).contains(&lost.0)),
        "{gaps:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_is_refused_once_another_has_written_to_the_log() {
    let Some(server) = Server::start() else { return };
    let (first, second) = (logs(&server), logs(&server));
    let id = KernelId::random();
    let one = first.open(id).await.unwrap();
    append(&one, 1..=10, 100);
    one.flushed().await;
    // Another gateway takes over, as during a network partition.
    let other = second.open(id).await.unwrap();
    assert_eq!((other.epoch(), other.head()), (one.epoch(), Seq(10)));
    append(&other, 11..=20, 100);
    other.flushed().await;
    assert!(other.is_recorded());
    append(&one, 11..=15, 100);
    one.flushed().await;
    assert!(!one.is_recorded(), "the first writer overwrote entries of the second");
    append(&one, 16..=17, 100);
    one.flushed().await;
    assert!(!one.is_recorded());
    let third = logs(&server).find(id).await.unwrap().unwrap();
    let (ids, gaps) = read_with_gaps(&mut third.reader(Seq::START), 20).await;
    assert_eq!((ids, gaps), ((1..=20).collect(), Vec::new()));
    append(&other, 21..=30, 100);
    other.flushed().await;
    assert!(other.is_recorded());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_store_keeps_what_was_appended_and_refuses_everything_else() {
    let Some(server) = Server::start() else { return };
    let (store, id) = (server.connect(), KernelId::random());
    let logs = Logs::new(store.clone(), LogOptions::default()).unwrap();
    let log = logs.open(id).await.unwrap();
    append(&log, 1..=50, 1_000);
    log.update_index([IndexUpdate::put("k", "v")]);
    logs.close().await.unwrap();
    let read = log.index_get("k").await.unwrap_err();
    assert!(matches!(read, StoreError::Closed { .. }), "{read}");
    let again = tokio::task::spawn_blocking(move || {
        let found = store.get(id).map(drop).unwrap_err();
        assert!(matches!(found, StoreError::Closed { .. }), "{found}");
        store.close()
    });
    again.await.unwrap().unwrap();
    let kept = self::logs(&server).find(id).await.unwrap().unwrap();
    assert_eq!(kept.index_get("k").await.unwrap().unwrap(), "v");
    let (ids, gaps) = read_with_gaps(&mut kept.reader(Seq::START), 50).await;
    assert_eq!((ids, gaps), ((1..=50).collect(), Vec::new()));
}

#[test]
fn logs_that_other_processes_write_have_no_quota() {
    let Some(server) = Server::start() else { return };
    let options = LogOptions::default().with_total_bytes(1 << 30);
    let error = Logs::new(server.connect(), options).unwrap_err().to_string();
    assert!(error.contains("other processes"), "{error}");
}

#[test]
fn a_failed_connection_is_an_error_without_the_password() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let options = NatsOptions::new(format!("nats://user:secret@127.0.0.1:{port}"));
    let error = NatsStore::connect(options).map(drop).unwrap_err().to_string();
    assert!(error.contains("connect to the logs in NATS"), "{error}");
    assert!(!error.contains("secret"), "{error}");
}
