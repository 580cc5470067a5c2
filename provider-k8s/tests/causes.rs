//! Why kernels do not start, and what ended them, each as a real cluster tells it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{LONG, Place, launch, pod_name, run};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{Pod, ResourceQuota};
use k8s_openapi::jiff::Timestamp;
use kernel_provider::KernelId;
use kernel_provider::provider::{
    Exit, ExitCause, KernelHandle, KernelProvider as _, LaunchError, LaunchRequest, LaunchStage, Phase, Progress,
    Selector,
};
use kube::Api;
use kube::api::{DeleteParams, EvictParams, PostParams};
use kube::runtime::watcher::{self, watcher};
use provider_k8s::{K8sProvider, Policy, Reach};
use serde_json::{Value, json};

const IPYKERNEL: &[&str] = &["python3", "-m", "ipykernel_launcher", "-f", "{connection_file}"];
/// How long after Kubernetes knows why, by its own clock, a launch may take to tell it: far less than it has, and more than
/// a machine takes that is busy with a cluster.
const SOON: i64 = 30;

/// Launches a kernel that cannot start, and makes sure that it is told at once why, and that nothing is left of it.
async fn fails(place: &Place, provider: &K8sProvider, kubernetes: Value) -> LaunchError {
    place.install("broken", IPYKERNEL, kubernetes);
    told_soon(place, provider).await
}

async fn told_soon(place: &Place, provider: &K8sProvider) -> LaunchError {
    // The pod is gone when the launch has failed, so each of its states is taken down as the API server tells it.
    let seen = Arc::new(Mutex::new(Vec::new()));
    let mut states = watcher(place.pods(), watcher::Config::default()).boxed();
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
    let error = launch(provider, "broken").await.err().expect("it started");
    let told = Timestamp::now();
    common::eventually("nothing is left", async || place.leftovers().await.is_empty()).await;
    watching.abort();
    let seen = seen.lock().unwrap();
    // Where there never was a pod, the API server has refused it.
    let known = seen.iter().find(|pod| says_why(pod)).map_or(started, |pod| {
        let writes = pod.metadata.managed_fields.iter().flatten();
        writes
            .filter_map(|write| write.time.as_ref())
            .map(|time| time.0)
            .max()
            .unwrap()
    });
    // Of the API server's times there are only the whole seconds, the one before.
    let took = told.as_second() - known.as_second();
    println!(
        "told within {took} s of {known}, {} ms after the start",
        told.as_millisecond() - started.as_millisecond()
    );
    assert!(took <= SOON, "told at {told}, and known since {known}: {error}");
    error
}

/// Whether the pod says that it will not run.
fn says_why(pod: &Pod) -> bool {
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
async fn it_crashes_at_the_start() {
    let Some(place) = Place::new().await else { return };
    let provider = place.open(Reach::PortForward).await;
    let crash = "import os, sys; print('its last words', file=sys.stderr, flush=True); os._exit(3)";
    place.install("broken", &["python3", "-c", crash, "{connection_file}"], json!({}));
    let error = told_soon(&place, &provider).await;
    let is_told = matches!(&error, LaunchError::Died { exit }
        if exit.cause == ExitCause::Code(3) && exit.output.contains("its last words"));
    assert!(is_told, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_node_has_the_memory() {
    let Some(place) = Place::new().await else { return };
    let provider = place.open(Reach::PortForward).await;
    let error = fails(
        &place,
        &provider,
        json!({"resources": {"requests": {"memory": "900Ti"}}}),
    )
    .await;
    assert!(
        matches!(&error, LaunchError::NoRoom { reason } if reason.contains("Insufficient memory")),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_no_such_image() {
    let Some(place) = Place::new().await else { return };
    let provider = place.open(Reach::PortForward).await;
    for (image, policy) in [
        ("localhost/kernelmux/none:dev", "Never"),
        ("Not A Name", "IfNotPresent"),
    ] {
        let error = fails(&place, &provider, json!({"image": image, "image_pull_policy": policy})).await;
        let is_told = matches!(&error, LaunchError::CannotStart { what, reason }
            if what.contains(image) && (reason.contains("ErrImageNeverPull") || reason.contains("InvalidImageName")));
        assert!(is_told, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_cannot_be_fetched() {
    let Some(place) = Place::new().await else { return };
    let provider = place.open(Reach::PortForward).await;
    // Nothing listens there.
    let error = fails(&place, &provider, json!({"image": "127.0.0.1:9/none:1"})).await;
    assert!(
        matches!(&error, LaunchError::CannotStart { reason, .. } if reason.contains("ErrImagePull")),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_refers_to_is_missing() {
    let Some(place) = Place::new().await else { return };
    let provider = place.open(Reach::PortForward).await;
    let variable = json!({"name": "A", "valueFrom": {"configMapKeyRef": {"name": "no-such-map", "key": "a"}}});
    let template = json!({"spec": {"containers": [{"name": "kernel", "env": [variable]}]}});
    let error = fails(&place, &provider, json!({"pod_template": template})).await;
    let is_told = matches!(&error, LaunchError::CannotStart { reason, .. }
        if reason.contains("CreateContainerConfigError") && reason.contains("no-such-map"));
    assert!(is_told, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_namespace_does_not_admit_it() {
    let Some(place) = Place::new().await else { return };
    let provider = place.open(Reach::PortForward).await;
    let template = json!({"spec": {"containers": [{"name": "kernel", "securityContext": {"privileged": true,
        "allowPrivilegeEscalation": true}}]}});
    let error = fails(&place, &provider, json!({"pod_template": template})).await;
    let is_told = matches!(&error, LaunchError::CannotStart { reason, .. }
        if reason.contains("violates PodSecurity") && reason.contains("privileged"));
    assert!(is_told, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_quota_is_used_up() {
    let Some(place) = Place::new().await else { return };
    let quotas: Api<ResourceQuota> = Api::namespaced(place.admin.clone(), &place.namespace);
    let quota = serde_json::from_value(json!({"metadata": {"name": "few"}, "spec": {"hard": {"pods": "1"}}}));
    quotas.create(&PostParams::default(), &quota.unwrap()).await.unwrap();
    let is_counted = async || {
        let quota = quotas.get("few").await.unwrap();
        quota.status.and_then(|status| status.hard).is_some()
    };
    common::eventually("the quota is in force", is_counted).await;
    place.install_tiny("tiny");
    let provider = place.open(Reach::PortForward).await;
    let first = launch(&provider, "tiny").await.unwrap();
    let asked = Timestamp::now();
    let error = launch(&provider, "tiny").await.err().expect("it started");
    assert!(Timestamp::now().as_second() - asked.as_second() <= SOON, "{error}");
    assert!(
        matches!(&error, LaunchError::NoRoom { reason } if reason.contains("exceeded quota")),
        "{error}"
    );
    // That changes nothing for the kernel that runs, and its end makes room.
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
    common::eventually("nothing is left", async || place.leftovers().await.is_empty()).await;
}

/// A running kernel, and its provider.
async fn running(place: &Place, kubernetes: Value) -> (K8sProvider, Arc<dyn KernelHandle>) {
    place.install("python3", IPYKERNEL, kubernetes);
    let provider = place.open(Reach::PortForward).await;
    let kernel = launch(&provider, "python3").await.unwrap();
    (provider, kernel)
}

/// The end of a kernel, and that it is no longer listed.
async fn end(provider: &K8sProvider, kernel: &dyn KernelHandle) -> Exit {
    let exit = tokio::time::timeout(LONG, kernel.wait())
        .await
        .expect("it does not end");
    assert!(provider.list(&Selector::all()).await.unwrap().is_empty());
    exit
}

#[tokio::test(flavor = "multi_thread")]
async fn it_took_too_much_memory() {
    let Some(place) = Place::new().await else { return };
    let (provider, kernel) = running(&place, json!({"resources": {"limits": {"memory": "256Mi"}}})).await;
    run(&*kernel, "x = b'x' * (1 << 30)").await;
    assert_eq!(end(&provider, &*kernel).await.cause, ExitCause::OutOfMemory);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ended_by_itself() {
    let Some(place) = Place::new().await else { return };
    let (provider, kernel) = running(&place, json!({})).await;
    // ipykernel takes what goes to file descriptor 2 for output of the cell, and keeps the one that there was.
    let code = "import os, sys; os.write(getattr(sys.stderr, '_original_stdstream_copy', 2), b'its last words'); \
                os._exit(7)";
    run(&*kernel, code).await;
    let exit = end(&provider, &*kernel).await;
    assert_eq!(exit.cause, ExitCause::Code(7));
    assert!(exit.output.contains("its last words"), "{}", exit.output);
    // Its pod tells it to whoever comes later, until nobody wants it any more.
    let later = place.open(Reach::PortForward).await;
    let told = later.attach(&kernel.record()).await.err().unwrap();
    assert!(told.to_string().contains("code 7"), "{told}");
    kernel.shutdown(Duration::ZERO).await.unwrap();
    common::eventually("its pod is gone", async || {
        place.pods().get_opt(&pod_name(&*kernel)).await.unwrap().is_none()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_removed_it() {
    let Some(place) = Place::new().await else { return };
    let (provider, kernel) = running(&place, json!({})).await;
    place
        .pods()
        .delete(&pod_name(&*kernel), &DeleteParams::default())
        .await
        .unwrap();
    assert_eq!(end(&provider, &*kernel).await.cause, ExitCause::Deleted);
}

#[tokio::test(flavor = "multi_thread")]
async fn its_place_was_taken() {
    let Some(place) = Place::new().await else { return };
    let (provider, kernel) = running(&place, json!({})).await;
    place
        .pods()
        .evict(&pod_name(&*kernel), &EvictParams::default())
        .await
        .unwrap();
    let cause = end(&provider, &*kernel).await.cause;
    assert!(matches!(cause, ExitCause::Evicted(_)), "{cause}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_users_ask_for_is_in_the_pod_and_the_rest_is_refused() {
    let Some(place) = Place::new().await else { return };
    place.install_ipykernel();
    let mut config = place.config(Reach::PortForward);
    config.policy = Policy::default();
    let provider = K8sProvider::open_with(place.limited.clone(), config).await.unwrap();
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
    let pod = place.pods().get(&pod_name(&*kernel)).await.unwrap();
    let container = &pod.spec.unwrap().containers[0];
    // JupyterLab's server sends its own, which is no place of the pod's.
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
