//! Log quotas drop the logs of ended kernels, and never the log of a kernel that may run.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::time::Duration;

use jupyter_protocol::KernelId;
use jupyter_protocol::content::ExecuteRequest;
use kernel_log::{DiskStore, LogInfo, LogOptions, LogStore, Logs, MemoryStore, Seq};
use kernel_manager::{AtClose, Kernel, Manager, ManagerOptions, StartRequest};
use kernel_provider::fake::FakeProvider;

const MIB: u64 = 1 << 20;

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), what)
        .await
        .expect("not done within the deadline")
}

fn manager(provider: &FakeProvider, store: Arc<dyn LogStore>, options: LogOptions) -> Manager {
    let logs = Logs::new(store, options).unwrap();
    Manager::new(vec![Arc::new(provider.clone())], logs, ManagerOptions::default())
}

async fn start(manager: &Manager, owner: &str) -> Arc<Kernel> {
    let request = StartRequest::new("echo").with_owner(owner);
    soon(manager.start(request)).await.unwrap()
}

/// Makes the kernel print until its log has grown by this many MiB.
async fn print(kernel: &Arc<Kernel>, mib: u64) {
    let begun = kernel.log().head();
    let mut bytes = 0;
    let mut reader = kernel.log().reader(begun);
    while bytes < mib * MIB {
        let mut execution = kernel.execute(ExecuteRequest::new("x".repeat(50_000))).await.unwrap();
        while let Some(message) = soon(execution.next()).await {
            message.expect("the execution failed");
        }
        while let Some(block) = reader.recent().unwrap() {
            bytes += block.size() as u64;
        }
    }
    kernel.log().flushed().await;
}

async fn logs(manager: &Manager) -> Vec<LogInfo> {
    manager.logs().list().await.unwrap()
}

/// Waits until exactly these logs are left.
async fn left(manager: &Manager, ids: &[KernelId]) {
    let mut wanted = ids.to_vec();
    wanted.sort_unstable();
    let is_left = async {
        loop {
            let mut ids: Vec<_> = logs(manager).await.into_iter().map(|info| info.id).collect();
            ids.sort_unstable();
            if ids == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon(is_left).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_of_ended_kernels_are_dropped_and_those_of_running_ones_trimmed() {
    let provider = FakeProvider::new();
    let options = LogOptions::default()
        .with_total_bytes(16 * MIB)
        .with_owner_bytes(8 * MIB);
    let manager = manager(&provider, Arc::new(MemoryStore::new()), options);
    manager.restore().await;
    let mut ended = Vec::new();
    for owner in ["ann", "ann", "bob"] {
        let kernel = start(&manager, owner).await;
        print(&kernel, 2).await;
        soon(kernel.shutdown()).await.unwrap();
        ended.push(kernel.id());
    }
    let of_ann = start(&manager, "ann").await;
    print(&of_ann, 4).await;
    left(&manager, &[ended[1], ended[2], of_ann.id()]).await;
    assert_eq!(of_ann.log().earliest(), Seq(1));
    let mut earliest = of_ann.log().earliest_changes();
    print(&of_ann, 6).await;
    soon(earliest.wait_for(|earliest| *earliest > Seq(1))).await.unwrap();
    left(&manager, &[ended[2], of_ann.id()]).await;
    let owners: Vec<_> = logs(&manager)
        .await
        .into_iter()
        .map(|info| info.owner.unwrap())
        .collect();
    assert!(
        owners.contains(&"ann".to_owned()) && owners.contains(&"bob".to_owned()),
        "{owners:?}"
    );
    manager.close(AtClose::EndKernels).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_kernel_keeps_its_log_across_a_manager_restart_despite_the_quota() {
    let folder = tempfile::tempdir().unwrap();
    let provider = FakeProvider::new();
    let open = || Arc::new(DiskStore::open(folder.path()).unwrap());
    let before = manager(&provider, open(), LogOptions::default());
    let running = start(&before, "ann").await;
    print(&running, 3).await;
    let ended = start(&before, "ann").await;
    print(&ended, 3).await;
    soon(ended.shutdown()).await.unwrap();
    let (running, ended, epoch) = (running.id(), ended.id(), running.log().epoch());
    soon(before.close(AtClose::LeaveKernels)).await.unwrap();
    drop(before);

    // The quota is less than the running kernel's log alone.
    let after = manager(&provider, open(), LogOptions::default().with_owner_bytes(2 * MIB));
    assert_eq!(
        logs(&after).await.len(),
        2,
        "a log was dropped before the running kernels were known"
    );
    assert_eq!(soon(after.restore()).await, 1);
    let kernel = after.get(running).unwrap();
    left(&after, &[running]).await;
    let mut earliest = kernel.log().earliest_changes();
    soon(earliest.wait_for(|earliest| *earliest > Seq(1))).await.unwrap();
    assert_eq!(kernel.log().epoch(), epoch);
    assert!(kernel.log().bytes() <= 2 * MIB);
    assert!(soon(after.past_executions(ended)).await.unwrap().is_none());
    print(&kernel, 3).await;
    soon(after.close(AtClose::EndKernels)).await.unwrap();
}
