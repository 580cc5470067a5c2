//! Fifty kernels at once, and what is asked of the API server for them. Alone in its program: their start takes the
//! node whole.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "common/calls.rs"]
mod calls;
mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use calls::Calls;
use common::{LONG, Place, launch, pod_name};
use futures::future::join_all;
use provider_k8s::{K8sProvider, Reach};

const MANY: usize = 50;
/// How many calls a kernel may take, from its start to its end.
const CALLS: usize = 6;

/// How many calls there were but for watches, which are there for all kernels.
fn sum(calls: &BTreeMap<String, usize>) -> usize {
    let asked = calls.iter().filter(|(kind, _)| !kind.starts_with("watch"));
    asked.map(|(_, count)| count).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_kernels_take_few_calls_each_and_none_while_they_run() {
    if std::env::var_os("KERNELMUX_TEST_POD_ADDRESSES").is_none() {
        println!("skipped: the pods' addresses are not reached from here (KERNELMUX_TEST_POD_ADDRESSES is not set)");
        return;
    }
    let Some(place) = Place::new().await else { return };
    place.install_tiny("python3");
    let calls = Arc::new(Calls::default());
    let client = calls.client(place.rights.clone());
    let provider = K8sProvider::open_with(client, place.config(Reach::PodAddress))
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

    // One ends; that is told by the watch, and its last words are asked for.
    place.exec(&pod_name(&*kernels[0]), &["sh", "-c", "kill -9 -1"]).await;
    tokio::time::timeout(LONG, kernels[0].wait()).await.unwrap();
    let running = calls.take();
    assert!(sum(&running) <= 1, "they were asked for while they ran: {running:?}");

    let ended = join_all(kernels.iter().map(|kernel| kernel.shutdown(Duration::ZERO))).await;
    ended.into_iter().for_each(|ended| drop(ended.unwrap()));
    let ended = calls.take();
    println!("ended with {ended:?}");
    let all = sum(&started) + sum(&ended);
    assert!(
        all <= CALLS * MANY,
        "{all} calls for {MANY} kernels: {started:?}, {ended:?}"
    );
    common::eventually("nothing is left", async || place.leftovers().await.is_empty()).await;
}
