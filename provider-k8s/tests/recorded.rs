//! Contents of the log after connections are cut or the embedder is killed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "common/counting.rs"]
mod counting;
#[path = "common/proxy.rs"]
mod proxy;

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{LONG, TestNamespace, run, with_token};
use counting::{last_number, manager, start, start_counting, wait_until_counted};
use futures::future::join_all;
use jupyter_protocol::kernelspec::SearchPath;
use kernel_log::{DiskStore, LogStore, MemoryStore};
use kernel_manager::{AtClose, KernelEventKind};
use kube::Config;
use kube::api::ListParams;
use provider_k8s::{K8sOptions, K8sProvider, Reach};
use proxy::Proxy;

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_port_forward_is_reopened_and_the_gap_is_recorded() {
    let Some(ns) = TestNamespace::new().await else { return };
    ns.install_ipykernel();
    let (proxy, client) = Proxy::in_front_of(ns.limited_config.clone()).await;
    let provider = K8sProvider::open_with(client, ns.options(Reach::PortForward))
        .await
        .unwrap();
    let manager = manager(provider, Arc::new(MemoryStore::new()));
    let kernel = start(&manager).await;
    start_counting(&kernel, 1_000_000).await;
    wait_until_counted(&kernel, 50).await;
    proxy.cut();
    let cut_at = last_number(&kernel).await;
    wait_until_counted(&kernel, cut_at + 100).await;
    // The whole API server fails for a moment.
    proxy.set_down(true);
    proxy.set_down(false);
    let cut_at = last_number(&kernel).await;
    let seen = wait_until_counted(&kernel, cut_at + 100).await;
    assert!((1..=3).contains(&seen.gaps), "{seen:?}");
    // The watch also works again.
    let mut events = manager.events();
    kernel.interrupt().await.unwrap();
    assert!(run(kernel.handle(), "x = 1").await);
    // A restart, which first requests the shutdown by message, keeps the pod.
    let before = kernel.handle().record();
    kernel.restart().await.unwrap();
    assert_eq!(kernel.handle().record(), before);
    assert!(run(kernel.handle(), "assert 'x' not in globals()").await);
    let pod = kernel.handle().record().data["pod"].as_str().unwrap().to_owned();
    ns.exec(&pod, &["sh", "-c", "kill -9 -1"]).await;
    let restarting = async {
        while !matches!(
            events.recv().await.unwrap().kind,
            KernelEventKind::RestartingByItself(_)
        ) {}
    };
    tokio::time::timeout(LONG, restarting).await.unwrap();
    manager.close(AtClose::EndKernels).await.unwrap();
    common::eventually("no leftovers", async || ns.leftovers().await.is_empty()).await;
}

const KERNELS: usize = 10;

fn embedder(ns: &TestNamespace, data: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "run_embedder", "--ignored", "--nocapture"])
        .env("KERNELMUX_TEST_NAMESPACE", &ns.name)
        .env("KERNELMUX_TEST_TOKEN", &ns.token)
        .env("KERNELMUX_TEST_SPECS", ns.specs.path())
        .env("KERNELMUX_TEST_DATA", data)
        .stdout(Stdio::piped());
    command
}

/// Starts counting kernels, and runs until it is killed.
#[ignore = "run by another test, which kills it"]
#[tokio::test(flavor = "multi_thread")]
async fn run_embedder() {
    let given = |name: &str| std::env::var(name).unwrap();
    let rights = with_token(Config::infer().await.unwrap(), &given("KERNELMUX_TEST_TOKEN"));
    let mut options = K8sOptions::new(given("KERNELMUX_TEST_NAMESPACE"));
    options.search = SearchPath::new([PathBuf::from(given("KERNELMUX_TEST_SPECS"))]);
    options.reach = Reach::PortForward;
    let provider = K8sProvider::open_with(rights.try_into().unwrap(), options)
        .await
        .unwrap();
    let store = DiskStore::open(Path::new(&given("KERNELMUX_TEST_DATA"))).unwrap();
    let manager = manager(provider, Arc::new(store));
    let kernels = join_all((0..KERNELS).map(|_| start(&manager))).await;
    for kernel in &kernels {
        start_counting(kernel, 1_000_000).await;
        wait_until_counted(kernel, 10).await;
    }
    println!("all kernels are counting");
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kernels_of_a_killed_embedder_are_restored_by_the_next() {
    let Some(ns) = TestNamespace::new().await else { return };
    // Count panics in all tasks, because a panic in a task that is not joined does not fail the test.
    let panics = Arc::new(AtomicUsize::new(0));
    let (seen, default_hook) = (Arc::clone(&panics), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |panic| {
        seen.fetch_add(1, Ordering::Relaxed);
        default_hook(panic);
    }));
    ns.install_ipykernel();
    let data = tempfile::tempdir().unwrap();
    let mut killed = embedder(&ns, data.path()).spawn().unwrap();
    let lines = BufReader::new(killed.stdout.take().unwrap()).lines();
    let counts = tokio::task::spawn_blocking(|| {
        let mut lines = lines;
        lines.any(|line| line.unwrap().contains("all kernels are counting"))
    });
    assert!(
        tokio::time::timeout(LONG, counts).await.unwrap().unwrap(),
        "the embedder ended early"
    );
    killed.kill().unwrap();
    killed.wait().unwrap();

    let store: Arc<dyn LogStore> = Arc::new(DiskStore::open(data.path()).unwrap());
    let manager = manager(ns.open(Reach::PortForward).await, store);
    manager.restore().await;
    // Failed attempts to attach are retried.
    common::eventually("all kernels are attached", async || manager.list().len() == KERNELS).await;
    let kernels = manager.list();
    let pods: BTreeSet<String> = kernels
        .iter()
        .map(|kernel| kernel.handle().record().data["pod"].as_str().unwrap().to_owned())
        .collect();
    let existing = ns.pods().list(&ListParams::default()).await.unwrap().items;
    let existing: BTreeSet<String> = existing.into_iter().map(|pod| pod.metadata.name.unwrap()).collect();
    assert_eq!(existing, pods);
    for kernel in &kernels {
        // The kernels have kept counting, and the log records the gap.
        let before = last_number(kernel).await;
        let seen = wait_until_counted(kernel, before + 20).await;
        assert!(seen.first == 0 && seen.gaps >= 1, "{seen:?}");
    }
    manager.close(AtClose::EndKernels).await.unwrap();
    assert_eq!(panics.load(Ordering::Relaxed), 0);
    common::eventually("no leftovers", async || ns.leftovers().await.is_empty()).await;
}
