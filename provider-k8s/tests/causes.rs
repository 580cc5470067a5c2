//! Reported causes of failed starts and of kernel exits, on a real cluster.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{LONG, TestNamespace, launch, pod_name, run};
use futures::{StreamExt as _, TryStreamExt as _};
use jupyter_protocol::KernelId;
use k8s_openapi::api::core::v1::{Pod, ResourceQuota};
use k8s_openapi::jiff::Timestamp;
use kernel_provider::{
    Exit, ExitCause, KernelHandle, KernelProvider as _, LaunchError, LaunchRequest, LaunchStage, Phase, Progress,
    Selector,
};
use kube::Api;
use kube::api::{DeleteParams, EvictParams, PostParams};
use kube::runtime::watcher::{self, watcher};
use provider_k8s::{K8sProvider, Policy, Reach};
use serde_json::{Value, json};

const IPYKERNEL: &[&str] = &["python3", "-m", "ipykernel_launcher", "-f", "{connection_file}"];
/// How long a launch may take to fail after the API server can report the reason, in whole seconds like the API
/// server's timestamps. This is far below the launch's own timeout, and enough for a busy machine.
const PROMPT_SECONDS: i64 = 30;

/// Installs and launches a kernel that cannot start. Checks that the launch fails promptly and leaves no pods or
/// Secrets. Returns the error.
async fn install_and_fail(ns: &TestNamespace, provider: &K8sProvider, kubernetes: Value) -> LaunchError {
    ns.install("broken", IPYKERNEL, kubernetes);
    launch_fails_promptly(ns, provider).await
}

async fn launch_fails_promptly(ns: &TestNamespace, provider: &K8sProvider) -> LaunchError {
    // The pod is gone once the launch has failed, so a watch records each of its states.
    let seen = Arc::new(Mutex::new(Vec::new()));
    let mut states = watcher(ns.pods(), watcher::Config::default()).boxed();
    while !matches!(states.try_next().await.unwrap(), Some(watcher::Event::InitDone)) {}
    let watching = tokio::spawn({
        let seen = Arc::clone(&seen);
        async move {
            while let Ok(Some(watcher::Event::Apply(pod))) = states.try_next().await {
                seen.lock().unwrap().push(pod);
            }
        }
    });
    let started = Timestamp::now();
    let error = launch(provider, "broken").await.err().expect("the kernel started");
    let failed = Timestamp::now();
    common::eventually("no leftovers", async || ns.leftovers().await.is_empty()).await;
    watching.abort();
    let seen = seen.lock().unwrap();
    // If no pod appeared, the API server refused to create it.
    let known = seen.iter().find(|pod| shows_failure(pod)).map_or(started, |pod| {
        let writes = pod.metadata.managed_fields.iter().flatten();
        writes
            .filter_map(|write| write.time.as_ref())
            .map(|time| time.0)
            .max()
            .unwrap()
    });
    // The API server's timestamps are rounded down to whole seconds.
    let took = failed.as_second() - known.as_second();
    println!(
        "failed within {took} s of {known}, {} ms after the start",
        failed.as_millisecond() - started.as_millisecond()
    );
    assert!(
        took <= PROMPT_SECONDS,
        "failed at {failed}, but the reason was known at {known}: {error}"
    );
    error
}

/// Whether the pod's status shows that it will not run.
fn shows_failure(pod: &Pod) -> bool {
    let status = pod.status.clone().unwrap_or_default();
    let is_refused = status
        .conditions
        .iter()
        .flatten()
        .any(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    let is_stuck = status
        .container_statuses
        .into_iter()
        .flatten()
        .filter_map(|container| container.state)
        .any(|state| {
            let waits = state.waiting.and_then(|waiting| waiting.reason);
            state.terminated.is_some()
                || waits.is_some_and(|why| !matches!(&*why, "ContainerCreating" | "PodInitializing"))
        });
    is_refused || is_stuck
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_during_the_start_is_reported() {
    let Some(ns) = TestNamespace::new().await else { return };
    let provider = ns.open(Reach::PortForward).await;
    let crash = "import os, sys; print('last words', file=sys.stderr, flush=True); os._exit(3)";
    ns.install("broken", &["python3", "-c", crash, "{connection_file}"], json!({}));
    let error = launch_fails_promptly(&ns, &provider).await;
    let is_reported = matches!(&error, LaunchError::Died { exit }
        if exit.cause == ExitCause::Code(3) && exit.output.contains("last words"));
    assert!(is_reported, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lack_of_memory_is_reported() {
    let Some(ns) = TestNamespace::new().await else { return };
    let provider = ns.open(Reach::PortForward).await;
    let error = install_and_fail(&ns, &provider, json!({"resources": {"requests": {"memory": "900Ti"}}})).await;
    assert!(
        matches!(&error, LaunchError::NoRoom { reason } if reason.contains("Insufficient memory")),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_or_invalid_image_is_reported() {
    let Some(ns) = TestNamespace::new().await else { return };
    let provider = ns.open(Reach::PortForward).await;
    for (image, policy) in [
        ("localhost/kernelmux/none:dev", "Never"),
        ("Not A Name", "IfNotPresent"),
    ] {
        let error = install_and_fail(&ns, &provider, json!({"image": image, "image_pull_policy": policy})).await;
        let is_reported = matches!(&error, LaunchError::CannotStart { what, reason }
            if what.contains(image) && (reason.contains("ErrImageNeverPull") || reason.contains("InvalidImageName")));
        assert!(is_reported, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_image_pull_is_reported() {
    let Some(ns) = TestNamespace::new().await else { return };
    let provider = ns.open(Reach::PortForward).await;
    // No registry listens at this address.
    let error = install_and_fail(&ns, &provider, json!({"image": "127.0.0.1:9/none:1"})).await;
    assert!(
        matches!(&error, LaunchError::CannotStart { reason, .. } if reason.contains("ErrImagePull")),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_config_map_is_reported() {
    let Some(ns) = TestNamespace::new().await else { return };
    let provider = ns.open(Reach::PortForward).await;
    let variable = json!({"name": "A", "valueFrom": {"configMapKeyRef": {"name": "no-such-map", "key": "a"}}});
    let template = json!({"spec": {"containers": [{"name": "kernel", "env": [variable]}]}});
    let error = install_and_fail(&ns, &provider, json!({"pod_template": template})).await;
    let is_reported = matches!(&error, LaunchError::CannotStart { reason, .. }
        if reason.contains("CreateContainerConfigError") && reason.contains("no-such-map"));
    assert!(is_reported, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_security_violation_is_reported() {
    let Some(ns) = TestNamespace::new().await else { return };
    let provider = ns.open(Reach::PortForward).await;
    let template = json!({"spec": {"containers": [{"name": "kernel", "securityContext": {"privileged": true,
        "allowPrivilegeEscalation": true}}]}});
    let error = install_and_fail(&ns, &provider, json!({"pod_template": template})).await;
    let is_reported = matches!(&error, LaunchError::CannotStart { reason, .. }
        if reason.contains("violates PodSecurity") && reason.contains("privileged"));
    assert!(is_reported, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exceeded_quota_is_reported() {
    let Some(ns) = TestNamespace::new().await else { return };
    let quotas: Api<ResourceQuota> = Api::namespaced(ns.admin.clone(), &ns.name);
    let quota = serde_json::from_value(json!({"metadata": {"name": "few"}, "spec": {"hard": {"pods": "1"}}}));
    quotas.create(&PostParams::default(), &quota.unwrap()).await.unwrap();
    let is_counted = async || {
        let quota = quotas.get("few").await.unwrap();
        quota.status.and_then(|status| status.hard).is_some()
    };
    common::eventually("the quota is in force", is_counted).await;
    ns.install_tiny("tiny");
    let provider = ns.open(Reach::PortForward).await;
    let first = launch(&provider, "tiny").await.unwrap();
    let requested = Timestamp::now();
    let error = launch(&provider, "tiny").await.err().expect("the kernel started");
    assert!(
        Timestamp::now().as_second() - requested.as_second() <= PROMPT_SECONDS,
        "{error}"
    );
    assert!(
        matches!(&error, LaunchError::NoRoom { reason } if reason.contains("exceeded quota")),
        "{error}"
    );
    // The running kernel is not affected, and its end makes room.
    assert_eq!(*first.phase().borrow(), Phase::Running);
    first.shutdown(Duration::ZERO).await.unwrap();
    common::eventually("there is room", async || match launch(&provider, "tiny").await {
        Ok(second) => second.shutdown(Duration::ZERO).await.is_ok(),
        Err(error) => {
            assert!(matches!(error, LaunchError::NoRoom { .. }), "{error}");
            false
        }
    })
    .await;
    common::eventually("no leftovers", async || ns.leftovers().await.is_empty()).await;
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
    let exit = tokio::time::timeout(LONG, kernel.wait())
        .await
        .expect("the kernel does not end");
    assert!(provider.list(&Selector::all()).await.unwrap().is_empty());
    exit
}

#[tokio::test(flavor = "multi_thread")]
async fn an_out_of_memory_kill_is_reported() {
    let Some(ns) = TestNamespace::new().await else { return };
    let (provider, kernel) = running(&ns, json!({"resources": {"limits": {"memory": "256Mi"}}})).await;
    run(&*kernel, "x = b'x' * (1 << 30)").await;
    assert_eq!(end(&provider, &*kernel).await.cause, ExitCause::OutOfMemory);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_code_is_reported_with_the_output() {
    let Some(ns) = TestNamespace::new().await else { return };
    let (provider, kernel) = running(&ns, json!({})).await;
    // ipykernel captures file descriptor 2 as cell output, and keeps a duplicate of the original.
    let code = "import os, sys; os.write(getattr(sys.stderr, '_original_stdstream_copy', 2), b'last words'); \
                os._exit(7)";
    run(&*kernel, code).await;
    let exit = end(&provider, &*kernel).await;
    assert_eq!(exit.cause, ExitCause::Code(7));
    assert!(exit.output.contains("last words"), "{}", exit.output);
    // A later provider reads the cause from the kept pod, until the pod is removed.
    let later = ns.open(Reach::PortForward).await;
    let error = later.attach(&kernel.record()).await.err().unwrap();
    assert!(error.to_string().contains("code 7"), "{error}");
    kernel.shutdown(Duration::ZERO).await.unwrap();
    common::eventually("the pod is removed", async || {
        ns.pods().get_opt(&pod_name(&*kernel)).await.unwrap().is_none()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_pod_is_reported() {
    let Some(ns) = TestNamespace::new().await else { return };
    let (provider, kernel) = running(&ns, json!({})).await;
    ns.pods()
        .delete(&pod_name(&*kernel), &DeleteParams::default())
        .await
        .unwrap();
    assert_eq!(end(&provider, &*kernel).await.cause, ExitCause::Deleted);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_eviction_is_reported() {
    let Some(ns) = TestNamespace::new().await else { return };
    let (provider, kernel) = running(&ns, json!({})).await;
    ns.pods()
        .evict(&pod_name(&*kernel), &EvictParams::default())
        .await
        .unwrap();
    let cause = end(&provider, &*kernel).await.cause;
    assert!(matches!(cause, ExitCause::Evicted(_)), "{cause}");
}

#[tokio::test(flavor = "multi_thread")]
async fn allowed_settings_are_applied_and_others_refused() {
    let Some(ns) = TestNamespace::new().await else { return };
    ns.install_ipykernel();
    let mut options = ns.options(Reach::PortForward);
    options.policy = Policy::default();
    let provider = K8sProvider::open_with(ns.limited.clone(), options).await.unwrap();
    let mut request = LaunchRequest::new(KernelId::random(), "python3");
    request.timeout = LONG;
    for (name, value) in [
        ("KERNEL_CPUS", "10m"),
        ("KERNEL_MEMORY", "64Mi"),
        ("KERNEL_WORKING_DIR", "/tmp"),
        ("MINE", "a b"),
    ] {
        request.env.insert(name.to_owned(), value.to_owned());
    }
    let stages = Arc::new(Mutex::new(Vec::new()));
    let progress = Progress::new({
        let stages = Arc::clone(&stages);
        move |stage| stages.lock().unwrap().push(stage)
    });
    let kernel = provider.launch(request.clone(), progress).await.unwrap();
    assert_eq!(
        *stages.lock().unwrap(),
        [LaunchStage::Scheduled, LaunchStage::Starting, LaunchStage::Ready]
    );
    let pod = ns.pods().get(&pod_name(&*kernel)).await.unwrap();
    let container = &pod.spec.unwrap().containers[0];
    // JupyterLab's server sends its own working directory, which does not exist in the pod.
    assert_eq!(container.working_dir, None);
    let requests = container.resources.clone().unwrap().requests.unwrap();
    assert_eq!(
        (requests["cpu"].0.as_str(), requests["memory"].0.as_str()),
        ("10m", "64Mi")
    );
    assert!(
        run(
            &*kernel,
            "import os; assert os.environ['MINE'] == 'a b' and os.getcwd() != '/tmp'"
        )
        .await
    );
    kernel.shutdown(Duration::from_secs(5)).await.unwrap();

    request
        .env
        .insert("KERNEL_IMAGE".to_owned(), "example/other:1".to_owned());
    let refused = provider.launch(request, Progress::ignored()).await.err().unwrap();
    assert!(
        matches!(&refused, LaunchError::BadRequest(why) if why.contains("KERNEL_IMAGE")),
        "{refused}"
    );
}
