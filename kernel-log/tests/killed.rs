//! Logs of a process that is killed while it appends.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use common::{entry, message, read_to};
use jupyter_protocol::KernelId;
use kernel_log::{DiskOptions, DiskStore, IndexUpdate, LogOptions, Logs, Seq};

const FOLDER: &str = "KERNELMUX_TEST_LOG_FOLDER";
const ID: &str = "KERNELMUX_TEST_LOG_ID";
/// Set if the process is to acknowledge entries.
const ACKNOWLEDGE: &str = "KERNELMUX_TEST_LOG_ACKNOWLEDGE";

/// Ends the process if the test fails.
struct KilledOnDrop(Child);

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}

async fn open(folder: PathBuf) -> Logs {
    let mut options = LogOptions::default();
    options.memory_bytes = 10_000;
    let small = DiskOptions::default().with_segment_bytes(100_000);
    Logs::new(Arc::new(DiskStore::open_with(&folder, small).unwrap()), options).unwrap()
}

/// Appends until the process is killed, and prints the last number once readers could have received its entry. The
/// other tests run this one in a child process.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by another test, which kills it"]
async fn append_forever() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let id: KernelId = std::env::var(ID).unwrap().parse().unwrap();
    let logs = open(folder.into()).await;
    let log = logs.open(id).await.unwrap();
    let mut out = std::io::stderr();
    let acknowledges = std::env::var_os(ACKNOWLEDGE).is_some();
    loop {
        for _ in 0..1 + log.head().0 % 7 {
            // Nothing else appends, so the next number is known.
            let n = log.append([]).0 + 1;
            log.append_indexed(chrono::Utc::now(), [entry(&message(n, 2_000))], |first| {
                vec![IndexUpdate::put("last", first.to_string())]
            });
        }
        log.flushed().await;
        writeln!(out, "stored {}", log.head()).unwrap();
        if acknowledges {
            log.acknowledge(Seq(log.head().0.saturating_sub(20)));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_that_readers_could_receive_survive_a_killed_process() {
    kill_again_and_again(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_that_were_not_acknowledged_survive_a_killed_process() {
    kill_again_and_again(true).await;
}

async fn kill_again_and_again(acknowledges: bool) {
    let folder = tempfile::tempdir().unwrap();
    let id = KernelId::random();
    let mut stored = 0;
    for round in 0..20_u64 {
        let mut process = KilledOnDrop(
            Command::new(std::env::current_exe().unwrap())
                .args(["--ignored", "--exact", "append_forever", "--nocapture"])
                .env(FOLDER, folder.path())
                .env(ID, id.to_string())
                .envs(acknowledges.then_some((ACKNOWLEDGE, "1")))
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap(),
        );
        let mut lines = BufReader::new(process.0.stderr.take().unwrap()).lines();
        // Kills the process after a different number of appends each time.
        for _ in 0..=round * 7 % 40 {
            let line = lines.next().expect("the process ended early").unwrap();
            if let Some(last) = line.strip_prefix("stored ") {
                stored = last.parse().unwrap();
            }
        }
        process.0.kill().unwrap();
        process.0.wait().unwrap();
        for line in lines.map_while(Result::ok) {
            if let Some(last) = line.strip_prefix("stored ") {
                stored = last.parse().unwrap_or(stored);
            }
        }
        let logs = open(folder.path().to_owned()).await;
        let log = logs.open(id).await.unwrap();
        let head = log.head().0;
        assert!(
            head >= stored,
            "round {round}: {stored} entries were stored, {head} are there"
        );
        let earliest = log.earliest().0;
        assert!(
            earliest == 1 || acknowledges && earliest <= head.saturating_sub(19),
            "round {round}"
        );
        let ids = read_to(&mut log.reader(Seq(earliest - 1)), head).await;
        assert_eq!(ids, (earliest..=head).collect::<Vec<_>>(), "round {round}");
        // Index updates are stored together with their entry.
        let last = log.index_get("last").await.unwrap().unwrap();
        assert_eq!(last, head.to_string(), "round {round}");
        drop(log);
        logs.close().await.unwrap();
    }
    assert!(stored > 100, "only {stored} entries were stored");
    let first = open(folder.path().to_owned())
        .await
        .find(id)
        .await
        .unwrap()
        .unwrap()
        .earliest();
    assert_eq!(first > Seq(1), acknowledges, "{first} is the first entry of {stored}");
}
