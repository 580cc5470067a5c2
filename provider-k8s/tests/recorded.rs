//! What is recorded of kernels in pods when connections are cut and when the embedder is killed.
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

use common::{LONG, Place, run, with_token};
use counting::{count, counted, manager, numbers, start};
use futures::future::join_all;
use jupyter_protocol::kernelspec::SearchPath;
use kernel_provider::log::{FjallStore, LogStore, MemoryStore};
use kernel_provider::manager::KernelEventKind;
use kube::Config;
use kube::api::ListParams;
use provider_k8s::{K8sConfig, K8sProvider, Reach};
use proxy::Proxy;

#[tokio::test(flavor = "multi_thread")]
async fn a_port_forward_that_is_cut_is_made_again_and_no_hole_is_silent() {
    let Some(place) = Place::new().await else { return };
    place.install_ipykernel();
    let (proxy, client) = Proxy::before(place.rights.clone()).await;
    let provider = K8sProvider::open_with(client, place.config(Reach::PortForward))
        .await
        .unwrap();
    let manager = manager(provider, Arc::new(MemoryStore::new()));
    let kernel = start(&manager).await;
    count(&kernel, 1_000_000).await;
    counted(&kernel, 50).await;
    proxy.cut();
    let cut_at = numbers(&kernel).await;
    counted(&kernel, cut_at + 100).await;
    // All of the API server, for a moment.
    proxy.set_down(true);
    proxy.set_down(false);
    let cut_at = numbers(&kernel).await;
    let seen = counted(&kernel, cut_at + 100).await;
    assert!((1..=3).contains(&seen.holes), "{seen:?}");
    // What the watch tells is heard again too.
    let mut events = manager.events();
    kernel.interrupt().await.unwrap();
    assert!(run(kernel.handle(), "x = 1").await);
    // A restart, which asks it by message to end first, keeps its pod.
    let before = kernel.handle().record();
    kernel.restart().await.unwrap();
    assert_eq!(kernel.handle().record(), before);
    assert!(run(kernel.handle(), "assert 'x' not in globals()").await);
    let pod = kernel.handle().record().data["pod"].as_str().unwrap().to_owned();
    place.exec(&pod, &["sh", "-c", "kill -9 -1"]).await;
    let told = async {
        while !matches!(
            events.recv().await.unwrap().kind,
            KernelEventKind::RestartingByItself(_)
        ) {}
    };
    tokio::time::timeout(LONG, told).await.unwrap();
    manager.shutdown().await;
    common::eventually("nothing is left", async || place.leftovers().await.is_empty()).await;
}

const KERNELS: usize = 10;

fn embedder(place: &Place, data: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "an_embedder", "--ignored", "--nocapture"])
        .env("KERNELMUX_TEST_NAMESPACE", &place.namespace)
        .env("KERNELMUX_TEST_TOKEN", &place.token)
        .env("KERNELMUX_TEST_SPECS", place.specs.path())
        .env("KERNELMUX_TEST_DATA", data)
        .stdout(Stdio::piped());
    command
}

/// Starts kernels that count, and runs until it is killed.
#[ignore = "is the program that another test kills"]
#[tokio::test(flavor = "multi_thread")]
async fn an_embedder() {
    let given = |name: &str| std::env::var(name).unwrap();
    let rights = with_token(Config::infer().await.unwrap(), &given("KERNELMUX_TEST_TOKEN"));
    let mut config = K8sConfig::new(given("KERNELMUX_TEST_NAMESPACE"));
    config.search = SearchPath::new([PathBuf::from(given("KERNELMUX_TEST_SPECS"))]);
    config.reach = Reach::PortForward;
    let provider = K8sProvider::open_with(rights.try_into().unwrap(), config)
        .await
        .unwrap();
    let store = FjallStore::open(Path::new(&given("KERNELMUX_TEST_DATA"))).unwrap();
    let manager = manager(provider, Arc::new(store));
    let kernels = join_all((0..KERNELS).map(|_| start(&manager))).await;
    for kernel in &kernels {
        count(kernel, 1_000_000).await;
        counted(kernel, 10).await;
    }
    println!("they count");
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_embedder_that_is_killed_leaves_all_to_the_next() {
    let Some(place) = Place::new().await else { return };
    // Nobody waits for the tasks that ask kernels which are too busy to answer.
    let panics = Arc::new(AtomicUsize::new(0));
    let (seen, told) = (Arc::clone(&panics), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |panic| {
        seen.fetch_add(1, Ordering::Relaxed);
        told(panic);
    }));
    place.install_ipykernel();
    let data = tempfile::tempdir().unwrap();
    let mut killed = embedder(&place, data.path()).spawn().unwrap();
    let said = BufReader::new(killed.stdout.take().unwrap()).lines();
    let counts = tokio::task::spawn_blocking(|| {
        let mut said = said;
        said.any(|line| line.unwrap().contains("they count"))
    });
    assert!(
        tokio::time::timeout(LONG, counts).await.unwrap().unwrap(),
        "it has ended"
    );
    killed.kill().unwrap();
    killed.wait().unwrap();

    let store: Arc<dyn LogStore> = Arc::new(FjallStore::open(data.path()).unwrap());
    let manager = manager(place.open(Reach::PortForward).await, store);
    manager.restore().await;
    // Those that were not reached in time are tried again.
    common::eventually("all are attached to", async || manager.list().len() == KERNELS).await;
    let kernels = manager.list();
    let pods: BTreeSet<String> = kernels
        .iter()
        .map(|kernel| kernel.handle().record().data["pod"].as_str().unwrap().to_owned())
        .collect();
    let there = place.pods().list(&ListParams::default()).await.unwrap().items;
    let there: BTreeSet<String> = there.into_iter().map(|pod| pod.metadata.name.unwrap()).collect();
    assert_eq!(there, pods);
    for kernel in &kernels {
        // They have counted on, and that nobody has heard them for a while is told.
        let before = numbers(kernel).await;
        let seen = counted(kernel, before + 20).await;
        assert!(seen.first == 0 && seen.holes >= 1, "{seen:?}");
    }
    manager.shutdown().await;
    assert_eq!(panics.load(Ordering::Relaxed), 0);
    common::eventually("nothing is left", async || place.leftovers().await.is_empty()).await;
}
