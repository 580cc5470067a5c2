//! Kernels with agents: restarts, causes of their ends, and warm pools, on a real cluster.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::pool::{IPYKERNEL, launch_with_reason, request, unclaimed, wait_until_full};
use common::{LONG, TestNamespace, eventually, launch, pod_name};
use jupyter_protocol::client::Client;
use jupyter_protocol::content::{ExecuteRequest, Reply};
use kernel_provider::{Exit, ExitCause, KernelHandle, KernelProvider as _, LaunchError, Phase, Progress, Selector};
use kube::api::{DeleteParams, EvictParams};
use provider_k8s::{K8sProvider, Reach};
use serde_json::{Value, json};

/// Grace period of restarts and shutdowns.
const GRACE: Duration = Duration::from_secs(5);
/// Kills the processes of a pod whose command line contains the path of a connection file.
const KILL: &str = "for file in $(grep -sl '/kernelmux/state/[k]ernels/' /proc/[0-9]*/cmdline); do \
    folder=${file%/cmdline}; kill -9 ${folder##*/}; done";

/// Runs code in the kernel. Returns `false` if the code raises an exception or the kernel ends.
async fn run(ns: &TestNamespace, kernel: &dyn KernelHandle, code: &str) -> bool {
    let connection = ns.connection(kernel).await.unwrap();
    let client = Client::connect(&connection).await.unwrap();
    client.kernel_info().await.unwrap();
    let running = client.execute(ExecuteRequest::new(code)).await.unwrap();
    tokio::select! {
        reply = running.reply() => reply.is_ok_and(|reply| matches!(reply, Reply::Ok(_))),
        _ = kernel.wait() => false,
        () = tokio::time::sleep(LONG) => panic!("the kernel neither replies nor ends"),
    }
}

/// Starts a kernel and returns it with its provider.
async fn running(ns: &TestNamespace, kubernetes: Value) -> (K8sProvider, Arc<dyn KernelHandle>) {
    ns.install("python3", IPYKERNEL, kubernetes);
    let provider = ns.open(Reach::PortForward).await;
    let kernel = launch(&provider, "python3").await.unwrap();
    (provider, kernel)
}

/// Waits for a kernel's exit and checks that the kernel is no longer listed.
async fn end(provider: &K8sProvider, kernel: &dyn KernelHandle) -> Exit {
    let ended = tokio::time::timeout(LONG, kernel.wait()).await;
    assert!(provider.list(&Selector::all()).await.unwrap().is_empty());
    ended.expect("the kernel does not end")
}

async fn restart(kernel: &dyn KernelHandle) {
    kernel.restart(GRACE, Progress::ignored()).await.unwrap();
    assert_eq!(*kernel.phase().borrow(), Phase::Running);
}

fn uid(kernel: &dyn KernelHandle) -> String {
    kernel.record().data["uid"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_the_pod_if_it_can() {
    let Some(ns) = TestNamespace::with_agents().await else {
        return;
    };
    let (_provider, kernel) = running(&ns, json!({})).await;
    let first = uid(&*kernel);
    assert!(run(&ns, &*kernel, "x = open('/tmp/kept', 'w').write('x')").await);
    restart(&*kernel).await;
    let kept = "assert 'x' not in globals() and open('/tmp/kept').read() == 'x'";
    assert!(run(&ns, &*kernel, kept).await && uid(&*kernel) == first);
    // The pod of a crashed kernel is kept too.
    assert!(!run(&ns, &*kernel, "import os; os._exit(7)").await);
    assert_eq!(kernel.wait().await.cause, ExitCause::Code(7));
    restart(&*kernel).await;
    assert!(run(&ns, &*kernel, kept).await && uid(&*kernel) == first);
    // A changed kernelspec needs a new pod. Its `restart_in_place: false` makes the next restart use a new pod, too.
    ns.install("python3", IPYKERNEL, json!({"restart_in_place": false}));
    restart(&*kernel).await;
    let second = uid(&*kernel);
    assert_ne!(first, second);
    restart(&*kernel).await;
    let third = uid(&*kernel);
    assert_ne!(second, third);
    // A pod that is gone is replaced by one with the same credentials.
    ns.pods()
        .delete(&pod_name(&*kernel), &DeleteParams::default())
        .await
        .unwrap();
    assert_eq!(kernel.wait().await.cause, ExitCause::Deleted);
    restart(&*kernel).await;
    assert!(run(&ns, &*kernel, "1").await && uid(&*kernel) != third);
    kernel.shutdown(GRACE).await.unwrap();
    eventually("no leftovers", async || ns.leftovers().await.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_code_is_reported_with_the_output() {
    let Some(ns) = TestNamespace::with_agents().await else {
        return;
    };
    let (provider, kernel) = running(&ns, json!({})).await;
    let code = "import os, sys; os.write(getattr(sys.stderr, '_original_stdstream_copy', 2), b'last words'); \
                os._exit(7)";
    run(&ns, &*kernel, code).await;
    let exit = end(&provider, &*kernel).await;
    assert_eq!(exit.cause, ExitCause::Code(7));
    assert!(exit.output.contains("last words"), "{}", exit.output);
    // The next provider can attach, because the last messages are not delivered yet, and finds the cause.
    let record = kernel.record();
    drop((kernel, provider));
    let later = ns.open(Reach::PodAddress).await;
    let kernel = later.attach(&record).await.unwrap();
    assert_eq!(end(&later, &*kernel).await.cause, ExitCause::Code(7));
    kernel.shutdown(Duration::ZERO).await.unwrap();
    eventually("no leftovers", async || ns.leftovers().await.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_out_of_memory_kill_is_reported() {
    let Some(ns) = TestNamespace::with_agents().await else {
        return;
    };
    let (provider, kernel) = running(&ns, json!({"resources": {"limits": {"memory": "256Mi"}}})).await;
    run(&ns, &*kernel, "x = b'x' * (1 << 30)").await;
    assert_eq!(end(&provider, &*kernel).await.cause, ExitCause::OutOfMemory);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_pod_is_reported() {
    let Some(ns) = TestNamespace::with_agents().await else {
        return;
    };
    let (provider, kernel) = running(&ns, json!({})).await;
    ns.pods()
        .delete(&pod_name(&*kernel), &DeleteParams::default())
        .await
        .unwrap();
    assert_eq!(end(&provider, &*kernel).await.cause, ExitCause::Deleted);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_eviction_is_reported() {
    let Some(ns) = TestNamespace::with_agents().await else {
        return;
    };
    let (provider, kernel) = running(&ns, json!({})).await;
    ns.pods()
        .evict(&pod_name(&*kernel), &EvictParams::default())
        .await
        .unwrap();
    let cause = end(&provider, &*kernel).await.cause;
    assert!(matches!(cause, ExitCause::Evicted(_)), "{cause}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_the_program_is_reported() {
    let Some(mut ns) = TestNamespace::with_agents().await else {
        return;
    };
    ns.install_ipykernel();
    for (image, reason) in [
        (common::image(), "kernelmux-agent"),
        ("127.0.0.1:9/none:1".to_owned(), "ErrImagePull"),
    ] {
        ns.agent_image = Some(image);
        let provider = ns.open(Reach::PortForward).await;
        let error = launch(&provider, "python3").await.err().expect("the kernel started");
        let is_reported = matches!(&error, LaunchError::CannotStart { reason: why, .. } if why.contains(reason));
        assert!(is_reported, "{error}");
        eventually("no leftovers", async || ns.leftovers().await.is_empty()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warm_pod_is_claimed_by_the_next_provider_if_its_kernel_runs() {
    let Some(ns) = TestNamespace::with_agents().await else {
        return;
    };
    ns.install("python3", IPYKERNEL, json!({"warm_pool": {"size": 1}}));
    let first = ns.open(Reach::PortForward).await;
    wait_until_full(&ns, 1).await;
    let dead = unclaimed(&ns).await[0].metadata.name.clone().unwrap();
    drop(first);
    ns.exec(&dead, &["sh", "-c", KILL]).await;
    // A pod whose kernel has ended is not handed out.
    let next = ns.open(Reach::PortForward).await;
    let kernel = loop {
        let (kernel, why) = launch_with_reason(&next, request("python3")).await;
        let kernel = kernel.unwrap();
        if why.is_none() {
            break kernel;
        }
        kernel.shutdown(Duration::ZERO).await.unwrap();
    };
    assert_ne!(pod_name(&*kernel), dead);
    assert!(
        run(
            &ns,
            &*kernel,
            "import os; assert 'KERNELMUX_KERNEL_ID' not in os.environ"
        )
        .await
    );
    restart(&*kernel).await;
    assert!(run(&ns, &*kernel, "1").await);
    // The next provider finds the kernel under the id for which the pod was claimed.
    let record = kernel.record();
    drop((kernel, next));
    let last = ns.open(Reach::PortForward).await;
    let kernel = last.attach(&record).await.unwrap();
    assert!(run(&ns, &*kernel, "1").await);
    kernel.shutdown(GRACE).await.unwrap();
}
