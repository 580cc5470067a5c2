//! API calls made for fifty concurrent kernels.
//!
//! The test has its own program because starting the kernels uses all of the node's capacity.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "common/calls.rs"]
mod calls;
mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use calls::Calls;
use common::{LONG, TestNamespace, launch, pod_name};
use futures::future::join_all;
use provider_k8s::{K8sProvider, Reach};

const MANY: usize = 50;
/// Maximum number of calls per kernel, from its start to its end.
const CALLS: usize = 6;

/// Number of calls, without the watches that all kernels share.
fn sum(calls: &BTreeMap<String, usize>) -> usize {
    let counted = calls.iter().filter(|(kind, _)| !kind.starts_with("watch"));
    counted.map(|(_, count)| count).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_kernels_need_few_calls_each_and_none_while_they_run() {
    if std::env::var_os("KERNELMUX_TEST_POD_ADDRESSES").is_none() {
        println!("skipped: pod addresses are not reachable from here (KERNELMUX_TEST_POD_ADDRESSES is not set)");
        return;
    }
    let Some(ns) = TestNamespace::new().await else { return };
    ns.install_tiny("python3");
    let calls = Arc::new(Calls::default());
    let client = calls.client(ns.limited_config.clone());
    let provider = K8sProvider::open_with(client, ns.options(Reach::PodAddress))
        .await
        .unwrap();
    let opened = calls.take();
    let begun = Instant::now();
    let kernels = join_all((0..MANY).map(|_| launch(&provider, "python3"))).await;
    let kernels: Vec<_> = kernels.into_iter().map(Result::unwrap).collect();
    let started = calls.take();
    println!(
        "opened with {opened:?}; {MANY} started in {:?} with {started:?}",
        begun.elapsed()
    );

    // One kernel ends. The watch reports its end, and one call reads its output.
    ns.exec(&pod_name(&*kernels[0]), &["sh", "-c", "kill -9 -1"]).await;
    tokio::time::timeout(LONG, kernels[0].wait()).await.unwrap();
    let running = calls.take();
    assert!(sum(&running) <= 1, "calls were made while the kernels ran: {running:?}");

    let ended = join_all(kernels.iter().map(|kernel| kernel.shutdown(Duration::ZERO))).await;
    ended.into_iter().for_each(|ended| drop(ended.unwrap()));
    let ended = calls.take();
    println!("ended with {ended:?}");
    let all = sum(&started) + sum(&ended);
    assert!(
        all <= CALLS * MANY,
        "{all} calls for {MANY} kernels: {started:?}, {ended:?}"
    );
    common::eventually("no leftovers", async || ns.leftovers().await.is_empty()).await;
}
