//! Parts of the cluster do not answer for a while. Alone in its program, one at a time: other tests would not get far
//! meanwhile.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "common/counting.rs"]
mod counting;

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use common::{LONG, Place, launch};
use counting::{count, counted, manager, numbers, start};
use jupyter_protocol::client::Client;
use jupyter_protocol::content::ExecuteRequest;
use kernel_provider::KernelId;
use kernel_provider::log::MemoryStore;
use kernel_provider::manager::{Kernel, Manager};
use kernel_provider::provider::{ExitCause, KernelProvider as _, LaunchError, LaunchRequest, Phase, Progress};
use provider_k8s::{K8sProvider, Reach};

static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A program of the cluster that `make dev-cluster` made, stopped until this is dropped.
struct Stopped(String);

impl Stopped {
    fn now(program: &str) -> Self {
        let pid = pid_of(program).expect("it does not run here");
        signal(&pid, "-STOP");
        Self(pid)
    }
}

fn pid_of(program: &str) -> Option<String> {
    let is_it = |pid: &String| {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
            let name = line.split(|byte| *byte == 0).next().unwrap_or_default();
            name.rsplit(|byte| *byte == b'/').next() == Some(program.as_bytes())
        })
    };
    let pids = std::fs::read_dir("/proc").unwrap();
    let mut names = pids.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.find(is_it)
}

impl Drop for Stopped {
    fn drop(&mut self) {
        signal(&self.0, "-CONT");
    }
}

fn signal(pid: &str, signal: &str) {
    assert!(Command::new("kill").args([signal, pid]).status().unwrap().success());
}

/// A place in the cluster whose programs run here; `None` where they do not.
async fn place() -> Option<Place> {
    if std::env::var_os("KERNELMUX_TEST_POD_ADDRESSES").is_none() {
        println!("skipped: needs the cluster that `make test-k8s` brings up");
        return None;
    }
    let place = Place::new().await?;
    place.install_ipykernel();
    Some(place)
}

/// Two kernels that count, one reached by its pod's address and one by a port-forward, each with a manager of its own.
async fn counting(place: &Place, below: u64) -> ([Manager; 2], [Arc<Kernel>; 2]) {
    let open = async |reach| {
        let mut config = place.config(reach);
        // A kubelet that has just begun may say that it is not ready yet.
        config.wait_for_room = common::LONG;
        K8sProvider::open_with(place.limited.clone(), config).await.unwrap()
    };
    let (by_address, by_forward) = tokio::join!(open(Reach::PodAddress), open(Reach::PortForward));
    let managers = [by_address, by_forward].map(|provider| manager(provider, Arc::new(MemoryStore::new())));
    let (direct, forwarded) = tokio::join!(start(&managers[0]), start(&managers[1]));
    let kernels = [direct, forwarded];
    for kernel in &kernels {
        count(kernel, below).await;
        counted(kernel, 20).await;
    }
    (managers, kernels)
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_api_server_kernels_go_on_and_launches_leave_nothing() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let Some(place) = place().await else { return };
    let provider = place.open(Reach::PodAddress).await;
    let kernel = launch(&provider, "python3").await.unwrap();
    let client = Client::connect(&kernel.connection().await.unwrap()).await.unwrap();
    client.kernel_info().await.unwrap();

    let stopped = Stopped::now("kube-apiserver");
    for _ in 0..100 {
        client.kernel_info().await.unwrap();
    }
    assert_eq!(*kernel.phase().borrow(), Phase::Running);
    let mut request = LaunchRequest::new(KernelId::random(), "python3");
    request.timeout = Duration::from_secs(2);
    let refused = provider.launch(request, Progress::ignored()).await.err().unwrap();
    assert!(matches!(refused, LaunchError::TimedOut { .. }), "{refused}");
    let _ = client.execute(ExecuteRequest::new("import os; os._exit(7)")).await;
    drop(stopped);

    let exit = tokio::time::timeout(LONG, kernel.wait()).await.unwrap();
    assert_eq!(exit.cause, ExitCause::Code(7));
    // The launch that was given up may have been carried out all the same.
    common::eventually("nothing is left", async || place.leftovers().await.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_kubelet_nothing_of_what_kernels_say_is_lost() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let Some(place) = place().await else { return };
    let (managers, [direct, forwarded]) = counting(&place, 400).await;
    let stopped = Stopped::now("kubelet");
    // Which carries a port-forward, so that only the other is heard meanwhile.
    let heard = counted(&direct, 200).await;
    drop(stopped);
    assert_eq!(heard.holes, 0);
    for kernel in [&direct, &forwarded] {
        let seen = counted(kernel, 399).await;
        assert_eq!((seen.first, seen.holes), (0, 0), "{seen:?}");
    }
    for manager in managers {
        manager.shutdown().await;
    }
    common::eventually("nothing is left", async || place.leftovers().await.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubelet_that_is_killed_and_comes_back_finds_kernels_that_never_stopped() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let Some(place) = place().await else { return };
    let (managers, [direct, forwarded]) = counting(&place, 100_000).await;
    let killed = pid_of("kubelet").expect("it does not run here");
    signal(&killed, "-KILL");
    common::eventually("another kubelet runs", async || {
        pid_of("kubelet").is_some_and(|pid| pid != killed)
    })
    .await;
    // Port-forwards end with it and are made anew; the pods themselves are of no concern to it.
    let now = numbers(&direct).await;
    let heard = [counted(&direct, now + 200).await, counted(&forwarded, now + 200).await];
    assert_eq!((heard[0].first, heard[0].holes), (0, 0), "{heard:?}");
    assert_eq!(heard[1].first, 0, "{heard:?}");
    // It starts pods, and ends them.
    let next = start(&managers[0]).await;
    count(&next, 10).await;
    counted(&next, 9).await;
    for manager in managers {
        manager.shutdown().await;
    }
    common::eventually("nothing is left", async || place.leftovers().await.is_empty()).await;
}
