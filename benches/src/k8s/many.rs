//! Many pods: 50 at once, and 1,000 on a fake node.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::future::{join_all, try_join_all};
use jupyter_protocol::KernelId;
use kernel_provider::{KernelProvider as _, LaunchRequest, Progress};
use provider_k8s::Reach;
use serde_json::json;

use super::fake_node::{FAKE, FakeNode};
use super::namespace::{BenchNamespace, counting_client, delete, ready, wait_until_empty};
use crate::measure::{bytes, ratio, time};
use crate::report::Section;
use crate::setup::scaled;
use crate::{Result, process};

const AT_ONCE: usize = 50;

const MANY: usize = 1_000;

/// A kernel that only opens its sockets, because the benchmark measures pods.
const TINY: &str = "import json, socket, sys, time\n\
    ports = [value for name, value in json.load(open(sys.argv[1])).items() if name.endswith('_port')]\n\
    sockets = [socket.create_server(('', port)) for port in ports]\n\
    time.sleep(100000)\n";

pub(super) async fn at_once(ns: &BenchNamespace, section: &mut Section) -> Result<()> {
    ns.install(&["python3", "-I", "-S", "-c", TINY, "{connection_file}"], json!({}))?;
    let calls = Arc::new(AtomicUsize::new(0));
    let provider = ns.open(counting_client(&ns.config, &calls)?, Reach::PodAddress).await?;
    let launch = || provider.launch(LaunchRequest::new(KernelId::random(), "bench"), Progress::ignored());
    let sample = launch().await?;
    let raw = ns.manifest(&*sample).await?;
    sample.shutdown(Duration::ZERO).await?;
    let wanted = scaled(AT_ONCE);
    let names = || (0..wanted).map(|index| format!("once-{index}"));
    let begun = Instant::now();
    try_join_all(names().map(|name| {
        let raw = &raw;
        async move { raw.create(ns, &name).await }
    }))
    .await?;
    ready(ns, "once-", wanted).await?;
    let by_hand = begun.elapsed();
    delete(ns, names()).await?;
    wait_until_empty(ns).await?;
    calls.store(0, Ordering::Relaxed);
    let begun = Instant::now();
    let kernels = try_join_all((0..wanted).map(|_| launch())).await?;
    let ours = begun.elapsed();
    let ended = join_all(kernels.iter().map(|kernel| kernel.shutdown(Duration::ZERO))).await;
    ended.into_iter().collect::<std::result::Result<Vec<_>, _>>()?;
    let a_kernel = calls.load(Ordering::Relaxed) as f64 / wanted as f64;
    section.table(&[
        "pods at once",
        "pods",
        "until all are ready",
        "against by hand",
        "API calls per kernel, start and end",
    ]);
    section.row([
        "the same pods and Secrets made by hand".to_owned(),
        wanted.to_string(),
        time(by_hand),
        ratio(1.0),
        "–".to_owned(),
    ]);
    section.row([
        "kernelmux".to_owned(),
        wanted.to_string(),
        time(ours),
        ratio(ours.as_secs_f64() / by_hand.as_secs_f64()),
        format!("{a_kernel:.2}"),
    ]);
    section.note(
        "The kernels are Python programs that only open five sockets. A pod made by hand counts as ready when the API \
         server reports that, a pod of kernelmux when its sockets are open.",
    );
    section.target("API calls per kernel", "≤ 6", format!("{a_kernel:.2}"), a_kernel <= 6.0);
    Ok(())
}

pub(super) async fn many(ns: &BenchNamespace, section: &mut Section) -> Result<()> {
    let wanted = scaled(MANY);
    ns.install(
        &["kernel", "{connection_file}"],
        json!({"node_selector": {FAKE: ns.namespace}, "writable_connection_file": false}),
    )?;
    let node = FakeNode::start(ns).await?;
    let measured = async {
        let calls = Arc::new(AtomicUsize::new(0));
        let provider = ns.open(counting_client(&ns.config, &calls)?, Reach::PodAddress).await?;
        let launch = || provider.launch(LaunchRequest::new(KernelId::random(), "bench"), Progress::ignored());
        let warm = launch().await?;
        warm.shutdown(Duration::ZERO).await?;
        calls.store(0, Ordering::Relaxed);
        let before = process::memory(std::process::id())?;
        let begun = Instant::now();
        let mut kernels = Vec::new();
        while kernels.len() < wanted {
            let some = (wanted - kernels.len()).min(100);
            kernels.extend(try_join_all((0..some).map(|_| launch())).await?);
        }
        let started = begun.elapsed();
        let after = process::memory(std::process::id())?;
        let calls_each = calls.load(Ordering::Relaxed) as f64 / wanted as f64;
        // Running kernels must cause no API calls.
        calls.store(0, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(10)).await;
        let idle = calls.load(Ordering::Relaxed);
        let a_kernel = after.saturating_sub(before) / wanted as u64;
        section.table(&[
            "kernels",
            "started in",
            "API calls per kernel",
            "API calls in 10 s while they run",
            "memory per kernel",
        ]);
        section.row([
            wanted.to_string(),
            time(started),
            format!("{calls_each:.2}"),
            idle.to_string(),
            bytes(a_kernel),
        ]);
        section.target("API calls in 10 s while 1,000 run", "0", idle.to_string(), idle == 0);
        section.note(
            "The thousand pods are real objects of the API server and the scheduler, on a fake node: the benchmark \
             reports them as running. Memory is the growth of this process's resident set since the end of a first \
             kernel. It includes the provider, the watch and the handles. No client is connected.",
        );
        for kernels in kernels.chunks(100) {
            let ended = join_all(kernels.iter().map(|kernel| kernel.shutdown(Duration::ZERO))).await;
            ended.into_iter().collect::<std::result::Result<Vec<_>, _>>()?;
        }
        Ok(())
    };
    let measured = measured.await;
    node.remove(ns).await?;
    measured
}
