//! Limits on the total bytes of many logs.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;

use chrono::Utc;
use common::{append, disk_usage, entry, flushed_and_trimmed, message, options, read_with_gaps, stores, wait_until};
use futures::FutureExt as _;
use jupyter_protocol::KernelId;
use kernel_log::{DiskOptions, DiskStore, Log, LogOptions, LogStore, Logs, Seq};

/// Approximate size of the entries that these tests append.
const ENTRY: u64 = 50_000;

/// Appends entries, each as a separate block.
async fn fill(log: &Log, count: u64) {
    for _ in 0..count {
        append(log, [log.head().0 + 1], ENTRY as usize);
        log.flushed().await;
    }
}

/// Creates a closed log with this many entries, which were appended this many hours ago.
async fn past_log(logs: &Logs, owner: Option<&str>, count: u64, hours: i64) -> KernelId {
    let id = KernelId::random();
    let log = logs.open_for(id, owner).await.unwrap();
    for n in 1..=count {
        let time = Utc::now() - chrono::Duration::hours(hours);
        log.append_at(time, [entry(&message(n, ENTRY as usize))]);
        log.flushed().await;
    }
    log.close();
    id
}

async fn listed(logs: &Logs) -> Vec<KernelId> {
    let mut ids: Vec<_> = logs.list().await.unwrap().into_iter().map(|info| info.id).collect();
    ids.sort_unstable();
    ids
}

fn sorted(ids: &[KernelId]) -> Vec<KernelId> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids
}

fn limited(total: Option<u64>, owner: Option<u64>) -> LogOptions {
    let mut options = options(0);
    options.total_bytes = total.map(|entries| entries * ENTRY);
    options.owner_bytes = owner.map(|entries| entries * ENTRY);
    options
}

/// Creates closed logs with 10 entries each, from the oldest to the newest.
async fn past_logs(store: &Arc<dyn LogStore>, owners: &[Option<&str>]) -> Vec<KernelId> {
    let logs = Logs::new(store.clone(), options(0)).unwrap();
    let mut ids = Vec::new();
    for (n, owner) in owners.iter().enumerate() {
        ids.push(past_log(&logs, *owner, 10, 100 - n as i64).await);
    }
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_of_past_kernels_are_dropped_first_and_then_the_largest_is_trimmed() {
    for (name, store, _folder) in stores() {
        let old = past_logs(&store, &[None; 4]).await;
        let logs = Logs::new(store, limited(Some(45), None)).unwrap();
        let large = logs.open(KernelId::random()).await.unwrap();
        let small = logs.open(KernelId::random()).await.unwrap();
        assert!(logs.apply_quotas(|_| false).await.unwrap(), "{name}");
        fill(&large, 5).await;
        // 45 entries and their headers exceed the quota.
        logs.over_quota().await;
        assert!(logs.apply_quotas(|_| false).await.unwrap(), "{name}");
        let rest = sorted(&[&old[1..], &[large.kernel_id(), small.kernel_id()]].concat());
        assert_eq!(
            listed(&logs).await,
            rest,
            "{name}: the oldest log was not dropped, or others were"
        );
        assert!(logs.over_quota().now_or_never().is_none(), "{name}");
        // The kernel of `old[1]` may still run.
        fill(&small, 5).await;
        fill(&large, 20).await;
        assert!(logs.apply_quotas(|id| id == old[1]).await.unwrap(), "{name}");
        let rest = sorted(&[old[1], large.kernel_id(), small.kernel_id()]);
        assert_eq!(listed(&logs).await, rest, "{name}");
        assert_eq!((large.earliest(), small.earliest()), (Seq(1), Seq(1)), "{name}");
        fill(&large, 10).await;
        assert!(logs.apply_quotas(|id| id == old[1]).await.unwrap(), "{name}");
        assert_eq!(listed(&logs).await, rest, "{name}");
        assert_eq!(small.earliest(), Seq(1), "{name}: a smaller log was trimmed");
        assert!(large.earliest() > Seq(1), "{name}");
        let total: u64 = logs.list().await.unwrap().iter().map(|info| info.bytes).sum();
        assert!(
            (40 * ENTRY..=45 * ENTRY).contains(&total),
            "{name}: {total} bytes are kept"
        );
        let first = large.earliest().0;
        let read = read_with_gaps(&mut large.reader(Seq::START), 35).await;
        assert_eq!(read, ((first..=35).collect(), vec![(1, first - 1)]), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_have_quotas_that_survive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let open = || -> Arc<dyn LogStore> { Arc::new(DiskStore::open(folder.path()).unwrap()) };
    let store = open();
    let old = past_logs(&store, &[Some("ann"), Some("bob"), Some("ann"), None, Some("bob")]).await;
    store.close().unwrap();
    drop(store);
    let logs = Logs::new(open(), limited(Some(55), Some(25))).unwrap();
    let of_ann = logs.open_for(KernelId::random(), Some("ann")).await.unwrap();
    let again = logs.open_for(old[4], Some("bob")).await.unwrap();
    assert!(logs.apply_quotas(|_| false).await.unwrap());
    assert_eq!(listed(&logs).await.len(), 6);
    fill(&of_ann, 6).await;
    logs.over_quota().await;
    assert!(logs.apply_quotas(|_| false).await.unwrap());
    let rest = sorted(&[old[1], old[2], old[3], old[4], of_ann.kernel_id()]);
    assert_eq!(listed(&logs).await, rest, "a log other than ann's oldest was dropped");
    // Bob's closed log is dropped. Once only his open log is left, that is trimmed.
    fill(&again, 8).await;
    assert!(logs.apply_quotas(|_| false).await.unwrap());
    let rest = sorted(&[old[2], old[3], old[4], of_ann.kernel_id()]);
    assert_eq!(listed(&logs).await, rest);
    assert_eq!(again.earliest(), Seq(1));
    fill(&again, 10).await;
    assert!(logs.apply_quotas(|_| false).await.unwrap());
    assert_eq!(listed(&logs).await, rest);
    assert!(again.earliest() > Seq(1));
    assert!(again.bytes() <= 25 * ENTRY, "{} bytes", again.bytes());
    assert_eq!(of_ann.earliest(), Seq(1));
    // The quota of all logs drops the oldest closed log, regardless of its owner.
    fill(&of_ann, 8).await;
    logs.over_quota().await;
    assert!(logs.apply_quotas(|_| false).await.unwrap());
    assert_eq!(listed(&logs).await, sorted(&[old[3], old[4], of_ann.kernel_id()]));
    logs.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_blocks_stay_even_beyond_a_quota() {
    for (name, store, _folder) in stores() {
        let logs = Logs::new(store, limited(Some(2), None)).unwrap();
        let mut open = Vec::new();
        for _ in 0..5 {
            let log = logs.open(KernelId::random()).await.unwrap();
            fill(&log, 3).await;
            open.push(log);
        }
        assert!(
            !logs.apply_quotas(|_| false).await.unwrap(),
            "{name}: five blocks are more than two"
        );
        for log in &open {
            assert_eq!((log.earliest(), log.head()), (Seq(3), Seq(3)), "{name}");
        }
        for log in &open[1..] {
            log.close();
        }
        assert!(logs.apply_quotas(|_| false).await.unwrap(), "{name}");
        assert_eq!(listed(&logs).await, [open[0].kernel_id()], "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_that_is_exceeded_is_noticed_while_logs_grow() {
    for (name, store, _folder) in stores() {
        let logs = Logs::new(store, limited(Some(10), None)).unwrap();
        let log = logs.open(KernelId::random()).await.unwrap();
        assert!(logs.apply_quotas(|_| false).await.unwrap(), "{name}");
        let mut exceeded = pin!(logs.over_quota());
        fill(&log, 9).await;
        assert!(exceeded.as_mut().now_or_never().is_none(), "{name}");
        tokio::join!(exceeded, fill(&log, 2));
        // Entries that are dropped for another reason reduce the usage as well. On disk, all entries are in one file,
        // so none are dropped.
        if name == "memory" {
            log.acknowledge(Seq(8));
            wait_until("entries are dropped", || log.earliest() > Seq(1)).await;
            flushed_and_trimmed(&log).await;
            assert!(logs.over_quota().now_or_never().is_none(), "{name}");
        }
        log.close();
        logs.remove(log.kernel_id()).await.unwrap();
        assert!(logs.over_quota().now_or_never().is_none(), "{name}");
    }
}

fn in_small_files(folder: &Path, options: LogOptions) -> Logs {
    let store = DiskStore::open_with(folder, DiskOptions::default().with_segment_bytes(1 << 17)).unwrap();
    Logs::new(Arc::new(store), options).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_that_flood_the_disk_together_keep_to_the_quota() {
    let folder = tempfile::tempdir().unwrap();
    let logs = in_small_files(folder.path(), limited(Some(200), None));
    assert!(logs.apply_quotas(|_| false).await.unwrap());
    let flood = async {
        let open = futures::future::join_all((0..4).map(|_| logs.open(KernelId::random()))).await;
        for _ in 0..300 {
            for log in &open {
                fill(log.as_ref().unwrap(), 1).await;
            }
        }
    };
    let keep = async {
        loop {
            logs.over_quota().await;
            logs.apply_quotas(|_| false).await.unwrap();
        }
    };
    tokio::select! {
        () = flood => {}
        () = keep => {}
    }
    logs.apply_quotas(|_| false).await.unwrap();
    let used = disk_usage(folder.path());
    println!("{used} bytes are used, {} allowed", 200 * ENTRY);
    assert!(used < 200 * ENTRY + 4 * (1 << 18), "{used} bytes are used");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_cannot_be_read_affects_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let id = {
        let logs = in_small_files(folder.path(), limited(Some(100), Some(100)));
        let id = past_log(&logs, Some("ann"), 3, 1).await;
        logs.close().await.unwrap();
        id
    };
    let path = folder.path().join(id.to_string()).join("owner");
    for damaged in [&b"\xff\xfe"[..], b""] {
        std::fs::write(&path, damaged).unwrap();
        let logs = in_small_files(folder.path(), limited(Some(100), Some(100)));
        assert!(logs.apply_quotas(|_| false).await.unwrap());
        let info = logs.list().await.unwrap().remove(0);
        assert_eq!((info.owner, info.last), (None, Seq(3)));
        let log = logs.find(id).await.unwrap().unwrap();
        let read = read_with_gaps(&mut log.reader(Seq::START), 3).await;
        assert_eq!(read, (vec![1, 2, 3], Vec::new()));
        logs.close().await.unwrap();
    }
    let logs = in_small_files(folder.path(), limited(None, Some(100)));
    drop(logs.open_for(id, Some("bob")).await.unwrap());
    assert_eq!(logs.list().await.unwrap()[0].owner.as_deref(), Some("bob"));
}
