//! Outages of the cluster's components.
//!
//! The tests have their own program and run one at a time, because the outages would block other tests.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "common/counting.rs"]
mod counting;

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use common::{LONG, TestNamespace, launch};
use counting::{last_number, manager, start, start_counting, wait_until_counted};
use jupyter_protocol::KernelId;
use jupyter_protocol::client::Client;
use jupyter_protocol::content::ExecuteRequest;
use kernel_log::MemoryStore;
use kernel_manager::{AtClose, Kernel, Manager};
use kernel_provider::{ExitCause, KernelProvider as _, LaunchError, LaunchRequest, Phase, Progress};
use provider_k8s::{K8sProvider, Reach};

static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A stopped process of the cluster that `make dev-cluster` creates. Dropping this continues the process.
struct Stopped(String);

impl Stopped {
    fn now(program: &str) -> Self {
        let pid = pid_of(program).expect("the program does not run on this machine");
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

/// Creates a namespace. Returns `None` unless the cluster's components run on this machine.
async fn local_namespace() -> Option<TestNamespace> {
    if std::env::var_os("KERNELMUX_TEST_POD_ADDRESSES").is_none() {
        println!("skipped: needs the cluster that `make test-k8s` brings up");
        return None;
    }
    let ns = TestNamespace::new().await?;
    ns.install_ipykernel();
    Some(ns)
}

/// Starts two counting kernels, one reached by its pod's address and one by a port-forward, each with its own manager.
async fn counting(ns: &TestNamespace, below: u64) -> ([Manager; 2], [Arc<Kernel>; 2]) {
    let open = async |reach| {
        let mut options = ns.options(reach);
        // A kubelet that has just started may report that the node is not ready.
        options.wait_for_room = common::LONG;
        K8sProvider::open_with(ns.limited.clone(), options).await.unwrap()
    };
    let (by_address, by_forward) = tokio::join!(open(Reach::PodAddress), open(Reach::PortForward));
    let managers = [by_address, by_forward].map(|provider| manager(provider, Arc::new(MemoryStore::new())));
    let (direct, forwarded) = tokio::join!(start(&managers[0]), start(&managers[1]));
    let kernels = [direct, forwarded];
    for kernel in &kernels {
        start_counting(kernel, below).await;
        wait_until_counted(kernel, 20).await;
    }
    (managers, kernels)
}

#[tokio::test(flavor = "multi_thread")]
async fn kernels_survive_an_api_server_outage_and_launches_leave_nothing() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let Some(ns) = local_namespace().await else { return };
    let provider = ns.open(Reach::PodAddress).await;
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
    // The cancelled launch's call may still have been carried out.
    common::eventually("no leftovers", async || ns.leftovers().await.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_output_is_lost_while_the_kubelet_is_stopped() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let Some(ns) = local_namespace().await else { return };
    let (managers, [direct, forwarded]) = counting(&ns, 400).await;
    let stopped = Stopped::now("kubelet");
    // Port-forwards go through the kubelet. While it is stopped, only output of the directly connected kernel arrives.
    let heard = wait_until_counted(&direct, 200).await;
    drop(stopped);
    assert_eq!(heard.gaps, 0);
    for kernel in [&direct, &forwarded] {
        let seen = wait_until_counted(kernel, 399).await;
        assert_eq!((seen.first, seen.gaps), (0, 0), "{seen:?}");
    }
    for manager in managers {
        manager.close(AtClose::EndKernels).await.unwrap();
    }
    common::eventually("no leftovers", async || ns.leftovers().await.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kernels_keep_running_while_the_kubelet_is_restarted() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let Some(ns) = local_namespace().await else { return };
    let (managers, [direct, forwarded]) = counting(&ns, 100_000).await;
    let killed = pid_of("kubelet").expect("the program does not run on this machine");
    signal(&killed, "-KILL");
    common::eventually("a new kubelet is running", async || {
        pid_of("kubelet").is_some_and(|pid| pid != killed)
    })
    .await;
    // Port-forwards end with the kubelet and are opened again. The pods keep running.
    let now = last_number(&direct).await;
    let heard = [
        wait_until_counted(&direct, now + 200).await,
        wait_until_counted(&forwarded, now + 200).await,
    ];
    assert_eq!((heard[0].first, heard[0].gaps), (0, 0), "{heard:?}");
    assert_eq!(heard[1].first, 0, "{heard:?}");
    // The new kubelet starts and ends pods.
    let next = start(&managers[0]).await;
    start_counting(&next, 10).await;
    wait_until_counted(&next, 9).await;
    for manager in managers {
        manager.close(AtClose::EndKernels).await.unwrap();
    }
    common::eventually("no leftovers", async || ns.leftovers().await.is_empty()).await;
}
