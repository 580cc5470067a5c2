//! Pods that are kept ready, on a real cluster: claims, refills, and gateways that come, go and work side by side.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::pool::{IPYKERNEL, filled, install, launch_as, names, request, unclaimed};
use common::{LONG, Place, pod_name, run};
use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kernel_provider::provider::{KernelHandle, KernelProvider as _, Progress, Selector};
use kube::api::ListParams;
use provider_k8s::{K8sProvider, Policy, Reach};
use serde_json::json;

/// Waits until this provider has claimed one of the pool, which is when it knows one to be ready.
async fn claim(provider: &K8sProvider, spec: &str) -> Arc<dyn KernelHandle> {
    let deadline = Instant::now() + LONG;
    loop {
        let (kernel, why) = launch_as(provider, request(spec)).await;
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
async fn a_claim_takes_a_pod_that_is_ready_and_another_takes_its_place() {
    let Some(place) = Place::new().await else { return };
    install(&place, "python3", json!({"size": 2}));
    let provider = place.open(Reach::PortForward).await;
    filled(&place, 2).await;
    assert!(
        provider.list(&Selector::all()).await.unwrap().is_empty(),
        "pods that nobody claimed are listed as kernels"
    );
    let mut asked = request("python3");
    asked.owner = Some("Ann Ö".to_owned());
    let id = asked.id;
    let (kernel, why) = loop {
        let (kernel, why) = launch_as(&provider, asked.clone()).await;
        let kernel = kernel.unwrap();
        if why.is_none() {
            break (kernel, why);
        }
        // It runs, and its kernel is not known to be ready yet.
        kernel.shutdown(Duration::ZERO).await.unwrap();
    };
    assert_eq!(why, None);
    let record = kernel.record();
    assert_eq!((record.id, record.owner.as_deref()), (id, Some("Ann Ö")));
    assert_ne!(pod_name(&*kernel), format!("kernel-{id}"));
    assert!(run(&*kernel, "x = 1").await);
    assert_eq!(
        provider.list(&Selector::all()).await.unwrap(),
        std::slice::from_ref(&record)
    );
    filled(&place, 2).await;
    // Launching it again attaches, also elsewhere.
    let other = place.open(Reach::PortForward).await;
    let again = other.launch(asked, Progress::ignored()).await.unwrap();
    assert_eq!(again.record().data["uid"], record.data["uid"]);
    assert!(run(&*again, "assert x == 1").await);
    // Its key is its own, in a Secret that goes with it.
    let claimed = kernel.connection().await.unwrap();
    let second = claim(&provider, "python3").await;
    assert_ne!(claimed.key, second.connection().await.unwrap().key);
    // A restart keeps the pod; one that is gone is replaced by a pod of the kernel's own name.
    let kept = pod_name(&*kernel);
    kernel
        .restart(Duration::from_secs(1), Progress::ignored())
        .await
        .unwrap();
    assert_eq!(pod_name(&*kernel), kept);
    assert!(run(&*kernel, "assert 'x' not in globals()").await);
    place.exec(&kept, &["sh", "-c", "kill -9 -1"]).await;
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
    let Some(place) = Place::new().await else { return };
    install(&place, "python3", json!({"size": 4}));
    let (one, other) = tokio::join!(place.open(Reach::PortForward), place.open(Reach::PortForward));
    filled(&place, 4).await;
    let (first, second) = tokio::join!(claim(&one, "python3"), claim(&other, "python3"));
    filled(&place, 4).await;
    assert_eq!(
        unclaimed(&place).await.len(),
        4,
        "the two make more than there are to be"
    );
    // Each claims as many as there are.
    let claims = (0..4).flat_map(|_| {
        [
            launch_as(&one, request("python3")),
            launch_as(&other, request("python3")),
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
    filled(&place, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_id_launched_by_two_gateways_is_one_kernel() {
    let Some(place) = Place::new().await else { return };
    install(&place, "python3", json!({"size": 2}));
    let (one, other) = tokio::join!(place.open(Reach::PortForward), place.open(Reach::PortForward));
    filled(&place, 2).await;
    for _ in 0..3 {
        let asked = request("python3");
        let (first, second) = tokio::join!(launch_as(&one, asked.clone()), launch_as(&other, asked.clone()));
        let (first, second) = (first.0.unwrap(), second.0.unwrap());
        assert_eq!(first.record().data["uid"], second.record().data["uid"]);
        assert!(run(&*second, "1").await);
        let selected = format!("kernelmux.dev/kernel-id={}", asked.id);
        common::eventually("one pod is left of it", async || {
            let pods = place
                .pods()
                .list(&ListParams::default().labels(&selected))
                .await
                .unwrap();
            pods.items.len() == 1
        })
        .await;
        first.shutdown(Duration::ZERO).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_pod_that_runs_cannot_take_is_started_cold_and_said() {
    let Some(place) = Place::new().await else { return };
    install(&place, "python3", json!({"size": 1, "without": ["KERNEL_USERNAME"]}));
    let mut config = place.config(Reach::PortForward);
    config.policy = Policy::permissive();
    let provider = K8sProvider::open_with(place.limited.clone(), config).await.unwrap();
    let taken = claim(&provider, "python3").await;
    let image = common::image();
    let launches = [
        ("MINE", "1", "MINE"),
        ("KERNEL_MEMORY", "64Mi", "resources"),
        ("KERNEL_IMAGE", &image, "KERNEL_IMAGE"),
        ("KERNEL_UID", "1001", "id"),
        ("KERNEL_WORKING_DIR", "/tmp", "working directory"),
    ]
    .map(|(name, value, said)| {
        let mut asked = request("python3");
        asked.env.insert(name.to_owned(), value.to_owned());
        let provider = &provider;
        async move {
            let (kernel, why) = launch_as(provider, asked).await;
            let why = why.expect("it was taken from the pool");
            assert!(why.contains(said), "{name}: {why}");
            kernel.unwrap().shutdown(Duration::ZERO).await.unwrap();
        }
    });
    join_all(launches).await;
    // What the gateway says of each launch, and what the kernelspec does without, is no setting.
    let mut asked = request("python3");
    for (name, value) in [("KERNEL_GATEWAY", "1"), ("KERNEL_ID", "x"), ("KERNEL_USERNAME", "ann")] {
        asked.env.insert(name.to_owned(), value.to_owned());
    }
    filled(&place, 1).await;
    common::eventually("a claim", async || {
        let (kernel, why) = launch_as(&provider, asked.clone()).await;
        kernel.unwrap().shutdown(Duration::ZERO).await.unwrap();
        why.is_none()
    })
    .await;
    end(vec![taken]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_comes_back_takes_its_pods_over() {
    let Some(place) = Place::new().await else { return };
    install(&place, "python3", json!({"size": 3}));
    let provider = place.open(Reach::PortForward).await;
    let kernel = claim(&provider, "python3").await;
    let id = kernel.record().id;
    filled(&place, 3).await;
    let before = names(&unclaimed(&place).await);
    drop((kernel, provider));
    let provider = place.open(Reach::PortForward).await;
    assert_eq!(provider.list(&Selector::all()).await.unwrap()[0].id, id);
    let taken = claim(&provider, "python3").await;
    assert!(before.contains(&pod_name(&*taken)), "it was made anew");
    filled(&place, 3).await;
    let after = names(&unclaimed(&place).await);
    assert_eq!(after.intersection(&before).count(), 2, "{before:?} became {after:?}");
    // A kernelspec that changes while the gateway runs is followed: other pods, then none; the kernels stay.
    place.install(
        "python3",
        IPYKERNEL,
        json!({"warm_pool": {"size": 1}, "resources": {"limits": {"memory": "777Mi"}}}),
    );
    common::eventually("the pool is as it is wanted by now", async || {
        let pods = unclaimed(&place).await;
        let is_new = |pod: &Pod| serde_json::to_string(&pod.spec).unwrap().contains("777Mi");
        pods.len() == 1 && pods.iter().all(is_new)
    })
    .await;
    place.install("python3", IPYKERNEL, json!({}));
    common::eventually("the pool is gone", async || unclaimed(&place).await.is_empty()).await;
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
    common::eventually("nothing is left", async || place.leftovers().await.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_are_too_old_or_do_not_work_are_replaced() {
    let Some(place) = Place::new().await else { return };
    install(&place, "python3", json!({"size": 1, "max_age": 30}));
    let _provider = place.open(Reach::PortForward).await;
    filled(&place, 1).await;
    let first = names(&unclaimed(&place).await);
    common::eventually("the old one is replaced", async || {
        let now = unclaimed(&place).await;
        !now.is_empty() && names(&now).is_disjoint(&first)
    })
    .await;
    // What takes its place may have just been made.
    filled(&place, 1).await;
    let second = names(&unclaimed(&place).await);
    let killed = second.first().unwrap();
    place.exec(killed, &["sh", "-c", "kill -9 -1"]).await;
    let uid = |pods: Vec<Pod>| pods.into_iter().next().and_then(|pod| pod.metadata.uid);
    let before = place
        .pods()
        .get_opt(killed)
        .await
        .unwrap()
        .and_then(|pod| pod.metadata.uid);
    common::eventually("the broken one is replaced", async || {
        let now = uid(unclaimed(&place).await);
        now.is_some() && now != before
    })
    .await;
}
