//! Warm pools on a real cluster: claims, refills, and restarted and concurrent gateways.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::pool::{IPYKERNEL, install, launch_with_reason, names, request, unclaimed, wait_until_full};
use common::{LONG, TestNamespace, pod_name, run};
use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kernel_provider::{KernelHandle, KernelProvider as _, Progress, Selector};
use kube::api::ListParams;
use provider_k8s::{K8sProvider, Policy, Reach};
use serde_json::json;

/// Launches kernels until one claims a warm pod. This can take several launches, because a pod can only be claimed
/// after this provider has found it ready.
async fn claim(provider: &K8sProvider, spec: &str) -> Arc<dyn KernelHandle> {
    let deadline = Instant::now() + LONG;
    loop {
        let (kernel, why) = launch_with_reason(provider, request(spec)).await;
        let kernel = kernel.unwrap();
        if why.is_none() {
            return kernel;
        }
        kernel.shutdown(Duration::ZERO).await.unwrap();
        assert!(Instant::now() < deadline, "{why:?}");
    }
}

async fn end(kernels: Vec<Arc<dyn KernelHandle>>) {
    join_all(kernels.iter().map(|kernel| kernel.shutdown(Duration::ZERO)))
        .await
        .into_iter()
        .for_each(|ended| drop(ended.unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claimed_pod_is_replaced() {
    let Some(ns) = TestNamespace::new().await else { return };
    install(&ns, "python3", json!({"size": 2}));
    let provider = ns.open(Reach::PortForward).await;
    wait_until_full(&ns, 2).await;
    assert!(
        provider.list(&Selector::all()).await.unwrap().is_empty(),
        "unclaimed pods are listed as kernels"
    );
    let mut wanted = request("python3");
    wanted.owner = Some("Ann Ö".to_owned());
    wanted.annotations.insert("of the caller".to_owned(), "kept".to_owned());
    let id = wanted.id;
    let (kernel, why) = loop {
        let (kernel, why) = launch_with_reason(&provider, wanted.clone()).await;
        let kernel = kernel.unwrap();
        if why.is_none() {
            break (kernel, why);
        }
        // The pods are running, but the provider has not found their kernels ready yet.
        kernel.shutdown(Duration::ZERO).await.unwrap();
    };
    assert_eq!(why, None);
    let record = kernel.record();
    assert_eq!((record.id, record.owner.as_deref()), (id, Some("Ann Ö")));
    assert_eq!(record.annotations["of the caller"], "kept");
    assert_ne!(pod_name(&*kernel), format!("kernel-{id}"));
    assert!(run(&*kernel, "x = 1").await);
    assert_eq!(
        provider.list(&Selector::all()).await.unwrap(),
        std::slice::from_ref(&record)
    );
    wait_until_full(&ns, 2).await;
    // Launching the same id again attaches to the kernel, also from another provider.
    let other = ns.open(Reach::PortForward).await;
    let again = other.launch(wanted, Progress::ignored()).await.unwrap();
    assert_eq!(again.record().data["uid"], record.data["uid"]);
    assert!(run(&*again, "assert x == 1").await);
    // Each pod has its own key.
    let claimed = kernel.connection().await.unwrap();
    let second = claim(&provider, "python3").await;
    assert_ne!(claimed.key, second.connection().await.unwrap().key);
    // A restart keeps the pod. If the pod is gone, a new one gets the kernel's own name.
    let kept = pod_name(&*kernel);
    kernel
        .restart(Duration::from_secs(1), Progress::ignored())
        .await
        .unwrap();
    assert_eq!(pod_name(&*kernel), kept);
    assert!(run(&*kernel, "assert 'x' not in globals()").await);
    ns.exec(&kept, &["sh", "-c", "kill -9 -1"]).await;
    kernel.wait().await;
    kernel
        .restart(Duration::from_secs(1), Progress::ignored())
        .await
        .unwrap();
    assert_eq!(pod_name(&*kernel), format!("kernel-{id}"));
    assert!(run(&*kernel, "assert 'x' not in globals()").await);
    end(vec![kernel, second]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_gateways_never_hand_out_the_same_pod() {
    let Some(ns) = TestNamespace::new().await else { return };
    install(&ns, "python3", json!({"size": 4}));
    let (one, other) = tokio::join!(ns.open(Reach::PortForward), ns.open(Reach::PortForward));
    wait_until_full(&ns, 4).await;
    let (first, second) = tokio::join!(claim(&one, "python3"), claim(&other, "python3"));
    wait_until_full(&ns, 4).await;
    assert_eq!(unclaimed(&ns).await.len(), 4, "the gateways created surplus pods");
    // Each gateway launches as many kernels as the pool has pods.
    let claims = (0..4).flat_map(|_| {
        [
            launch_with_reason(&one, request("python3")),
            launch_with_reason(&other, request("python3")),
        ]
    });
    let kernels: Vec<_> = join_all(claims)
        .await
        .into_iter()
        .map(|(kernel, _)| kernel.unwrap())
        .collect();
    let uids: BTreeSet<String> = kernels
        .iter()
        .chain([&first, &second])
        .map(|kernel| kernel.record().data["uid"].to_string())
        .collect();
    assert_eq!(uids.len(), 10);
    let answers = kernels.iter().map(|kernel| run(&**kernel, "1"));
    assert!(join_all(answers).await.into_iter().all(|ran| ran));
    end(kernels).await;
    end(vec![first, second]).await;
    wait_until_full(&ns, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_id_launched_by_two_gateways_is_one_kernel() {
    let Some(ns) = TestNamespace::new().await else { return };
    install(&ns, "python3", json!({"size": 2}));
    let (one, other) = tokio::join!(ns.open(Reach::PortForward), ns.open(Reach::PortForward));
    wait_until_full(&ns, 2).await;
    for _ in 0..3 {
        let wanted = request("python3");
        let (first, second) = tokio::join!(
            launch_with_reason(&one, wanted.clone()),
            launch_with_reason(&other, wanted.clone())
        );
        let (first, second) = (first.0.unwrap(), second.0.unwrap());
        assert_eq!(first.record().data["uid"], second.record().data["uid"]);
        assert!(run(&*second, "1").await);
        let selected = format!("kernelmux.dev/kernel-id={}", wanted.id);
        common::eventually("only one pod is left", async || {
            let pods = ns.pods().list(&ListParams::default().labels(&selected)).await.unwrap();
            pods.items.len() == 1
        })
        .await;
        first.shutdown(Duration::ZERO).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launch_with_its_own_settings_starts_cold_and_reports_the_reason() {
    let Some(ns) = TestNamespace::new().await else { return };
    install(&ns, "python3", json!({"size": 1, "without": ["KERNEL_USERNAME"]}));
    let mut options = ns.options(Reach::PortForward);
    options.policy = Policy::permissive();
    let provider = K8sProvider::open_with(ns.limited.clone(), options).await.unwrap();
    let taken = claim(&provider, "python3").await;
    let image = common::image();
    let launches = [
        ("MINE", "1", "MINE"),
        ("KERNEL_MEMORY", "64Mi", "resources"),
        ("KERNEL_IMAGE", &image, "KERNEL_IMAGE"),
        ("KERNEL_UID", "1001", "id"),
        ("KERNEL_WORKING_DIR", "/tmp", "working directory"),
    ]
    .map(|(name, value, reason)| {
        let mut wanted = request("python3");
        wanted.env.insert(name.to_owned(), value.to_owned());
        let provider = &provider;
        async move {
            let (kernel, why) = launch_with_reason(provider, wanted).await;
            let why = why.expect("a pod was claimed from the pool");
            assert!(why.contains(reason), "{name}: {why}");
            kernel.unwrap().shutdown(Duration::ZERO).await.unwrap();
        }
    });
    join_all(launches).await;
    // Variables that describe the launch, or that the kernelspec lists in `without`, do not prevent a claim.
    let mut wanted = request("python3");
    for (name, value) in [("KERNEL_GATEWAY", "1"), ("KERNEL_ID", "x"), ("KERNEL_USERNAME", "ann")] {
        wanted.env.insert(name.to_owned(), value.to_owned());
    }
    wait_until_full(&ns, 1).await;
    common::eventually("a claim", async || {
        let (kernel, why) = launch_with_reason(&provider, wanted.clone()).await;
        kernel.unwrap().shutdown(Duration::ZERO).await.unwrap();
        why.is_none()
    })
    .await;
    end(vec![taken]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_gateway_adopts_its_warm_pods() {
    let Some(ns) = TestNamespace::new().await else { return };
    install(&ns, "python3", json!({"size": 3}));
    let provider = ns.open(Reach::PortForward).await;
    let kernel = claim(&provider, "python3").await;
    let id = kernel.record().id;
    wait_until_full(&ns, 3).await;
    let before = names(&unclaimed(&ns).await);
    drop((kernel, provider));
    let provider = ns.open(Reach::PortForward).await;
    assert_eq!(provider.list(&Selector::all()).await.unwrap()[0].id, id);
    let taken = claim(&provider, "python3").await;
    assert!(before.contains(&pod_name(&*taken)), "the pod was newly created");
    wait_until_full(&ns, 3).await;
    let after = names(&unclaimed(&ns).await);
    assert_eq!(after.intersection(&before).count(), 2, "{before:?} became {after:?}");
    // The pool follows changes of the kernelspec: its pods are replaced, then removed. Claimed pods remain.
    ns.install(
        "python3",
        IPYKERNEL,
        json!({"warm_pool": {"size": 1}, "resources": {"limits": {"memory": "777Mi"}}}),
    );
    common::eventually("the pool matches the new kernelspec", async || {
        let pods = unclaimed(&ns).await;
        let is_new = |pod: &Pod| serde_json::to_string(&pod.spec).unwrap().contains("777Mi");
        pods.len() == 1 && pods.iter().all(is_new)
    })
    .await;
    ns.install("python3", IPYKERNEL, json!({}));
    common::eventually("the pool is gone", async || unclaimed(&ns).await.is_empty()).await;
    assert_eq!(provider.list(&Selector::all()).await.unwrap().len(), 2);
    for record in provider.list(&Selector::all()).await.unwrap() {
        provider
            .attach(&record)
            .await
            .unwrap()
            .shutdown(Duration::ZERO)
            .await
            .unwrap();
    }
    drop(taken);
    common::eventually("no leftovers", async || ns.leftovers().await.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn old_and_failed_pods_are_replaced() {
    let Some(ns) = TestNamespace::new().await else { return };
    install(&ns, "python3", json!({"size": 1, "max_age": 30}));
    let _provider = ns.open(Reach::PortForward).await;
    wait_until_full(&ns, 1).await;
    let first = names(&unclaimed(&ns).await);
    common::eventually("the old pod is replaced", async || {
        let now = unclaimed(&ns).await;
        !now.is_empty() && names(&now).is_disjoint(&first)
    })
    .await;
    // The replacement may just have been created.
    wait_until_full(&ns, 1).await;
    let second = names(&unclaimed(&ns).await);
    let killed = second.first().unwrap();
    ns.exec(killed, &["sh", "-c", "kill -9 -1"]).await;
    let uid = |pods: Vec<Pod>| pods.into_iter().next().and_then(|pod| pod.metadata.uid);
    let before = ns
        .pods()
        .get_opt(killed)
        .await
        .unwrap()
        .and_then(|pod| pod.metadata.uid);
    common::eventually("the failed pod is replaced", async || {
        let now = uid(unclaimed(&ns).await);
        now.is_some() && now != before
    })
    .await;
}
