//! Cold starts, restarts in place, and claims of warm pods.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use jupyter_protocol::KernelId;
use kernel_manager::{AtClose, StartRequest};
use kernel_provider::{KernelProvider as _, LaunchRequest, LaunchStage, Progress};
use provider_k8s::Reach;
use serde_json::json;

use super::DEADLINE;
use super::namespace::{BenchNamespace, delete, ready, wait_until_empty};
use crate::Result;
use crate::by_hand::Direct;
use crate::measure::{Times, ratio, time};
use crate::report::Section;
use crate::round_trip::Shell;
use crate::setup::scaled;

/// Starts of each variant.
const STARTS: usize = 10;
const POOL: usize = 6;

const CLAIMS: usize = 30;

pub(super) async fn starts(ns: &BenchNamespace, section: &mut Section) -> Result<()> {
    ns.install_python(json!({}))?;
    let manager = ns.manager(Reach::PodAddress).await?;
    let sample = manager.start(StartRequest::new("bench")).await?;
    let raw = ns.manifest(sample.handle()).await?;
    sample.shutdown().await?;
    let (mut ours, mut theirs, mut again) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=scaled(STARTS) {
        let begun = Instant::now();
        let kernel = manager.start(StartRequest::new("bench")).await?;
        let through_us = begun.elapsed();
        let begun = Instant::now();
        kernel.restart().await?;
        let restarted = begun.elapsed();
        kernel.shutdown().await?;
        let name = format!("raw-{round}");
        let begun = Instant::now();
        raw.create(ns, &name).await?;
        let pods = ready(ns, &name, 1).await?;
        let info = raw.connection(pods.into_values().next().unwrap_or_default())?;
        loop {
            // The kernel starts to listen some time after its pod is ready. No event announces this.
            if tokio::net::TcpStream::connect((info.ip.as_str(), info.shell_port))
                .await
                .is_ok()
            {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Shell::Direct(Box::new(Direct::to_shell(&info).await?)).ask().await?;
        let by_hand = begun.elapsed();
        delete(ns, [name].into_iter()).await?;
        // The first round loads the image's files into the page cache.
        if round > 0 {
            ours.push(through_us);
            theirs.push(by_hand);
            again.push(restarted);
        }
    }
    manager.close(AtClose::EndKernels).await?;
    let (ours, theirs, again) = (Times::new(ours), Times::new(theirs), Times::new(again));
    section.table(&["start to first answer (ipykernel)", "runs", "p50", "p90"]);
    for (name, times) in [
        (
            "the same pod and Secret created by hand, until ready and one reply",
            &theirs,
        ),
        ("kernelmux", &ours),
        ("kernelmux, a restart in place", &again),
    ] {
        section.row([
            name.to_owned(),
            times.runs().to_string(),
            time(times.median()),
            time(times.percentile(90)),
        ]);
    }
    let against = ours.median().as_secs_f64() / theirs.median().as_secs_f64();
    section.target(
        "start relative to the pod created by hand, p50",
        "≤ 1.1×",
        ratio(against),
        against <= 1.1,
    );
    Ok(())
}

pub(super) async fn claims(ns: &BenchNamespace, section: &mut Section) -> Result<()> {
    ns.install_python(json!({"warm_pool": {"size": POOL}}))?;
    section.table(&["warm pool", "claims", "p50", "p90"]);
    for (reach, name) in [
        (Reach::PodAddress, "by address"),
        (Reach::PortForward, "by port-forward"),
    ] {
        let provider = ns.open(ns.client.clone(), reach).await?;
        let (mut claimed, mut answered) = (Vec::new(), Vec::new());
        let wanted = scaled(CLAIMS);
        let begun = Instant::now();
        while claimed.len() < wanted {
            if begun.elapsed() > DEADLINE {
                return Err("the pool does not fill".into());
            }
            ready(ns, "kernel-", POOL).await?;
            for _ in 0..POOL / 2 {
                let was_cold = Arc::new(AtomicUsize::new(0));
                let cold = Arc::clone(&was_cold);
                let progress = Progress::new(move |stage| {
                    if matches!(stage, LaunchStage::Cold(_)) {
                        cold.store(1, Ordering::Relaxed);
                    }
                });
                let begun = Instant::now();
                let kernel = provider
                    .launch(LaunchRequest::new(KernelId::random(), "bench"), progress)
                    .await?;
                let elapsed = begun.elapsed();
                Shell::Direct(Box::new(Direct::to_shell(&kernel.connection().await?).await?))
                    .ask()
                    .await?;
                if was_cold.load(Ordering::Relaxed) == 0 {
                    claimed.push(elapsed);
                    answered.push(begun.elapsed());
                }
                kernel.shutdown(Duration::ZERO).await?;
            }
        }
        let (claimed, answered) = (Times::new(claimed), Times::new(answered));
        for (what, times) in [("a claim", &claimed), ("a claim, until its first answer", &answered)] {
            section.row([
                format!("{what}, {name}"),
                times.runs().to_string(),
                time(times.median()),
                time(times.percentile(90)),
            ]);
        }
        section.target(
            format!("warm claim {name}, p50"),
            "≤ 150 ms",
            time(claimed.median()),
            claimed.median() <= Duration::from_millis(150),
        );
    }
    // The provider removes the pool's pods, because the kernelspec has no pool now.
    ns.install_python(json!({}))?;
    let _provider = ns.open(ns.client.clone(), Reach::PodAddress).await?;
    wait_until_empty(ns).await
}
