//! Kernels on a real cluster: connections, restarts, and killed or concurrent gateways.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "common/calls.rs"]
mod calls;
mod common;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use calls::Calls;
use common::{LONG, TestNamespace, create, image, launch, pod_name, run};
use futures::future::join_all;
use http::Method;
use jupyter_protocol::KernelId;
use jupyter_protocol::client::Client;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kernel_provider::{ExitCause, KernelHandle, KernelProvider as _, LaunchError, LaunchRequest, Progress, Selector};
use kube::api::DeleteParams;
use kube::{Api, Client as Kube};
use provider_k8s::{K8sProvider, Policy, Reach, missing_rights};
use serde_json::json;

async fn answers(kernel: &dyn KernelHandle) {
    let client = Client::connect(&kernel.connection().await.unwrap()).await.unwrap();
    client.kernel_info().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_gateways_launch_the_same_id() {
    let Some(ns) = TestNamespace::new().await else { return };
    ns.install_ipykernel();
    let (one, other) = (ns.open(Reach::PortForward).await, ns.open(Reach::PortForward).await);
    let id = KernelId::random();
    let launch = async |provider: &K8sProvider| {
        let mut request = LaunchRequest::new(id, "python3");
        request.timeout = LONG;
        provider.launch(request, Progress::ignored()).await.unwrap()
    };
    let (first, second) = tokio::join!(launch(&one), launch(&other));
    let key = |kernel: &dyn KernelHandle| kernel.record().data["uid"].clone();
    assert_eq!(key(&*first), key(&*second));
    assert_eq!(
        first.connection().await.unwrap().key,
        second.connection().await.unwrap().key
    );
    answers(&*first).await;
    answers(&*second).await;
    first.shutdown(Duration::from_secs(5)).await.unwrap();
    // The other gateway sees a deletion that it did not request.
    let exit = tokio::time::timeout(LONG, second.wait()).await.unwrap();
    assert_eq!(exit.cause, ExitCause::Deleted);
    common::eventually("no leftovers", async || ns.leftovers().await.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_rights_are_named() {
    let Some(ns) = TestNamespace::new().await else { return };
    // The documented rights are those that the provider uses.
    assert_eq!(missing_rights(ns.limited.clone(), &ns.name).await.unwrap(), []);
    assert!(provider_k8s::cluster_time(ns.limited.clone()).await.unwrap().is_some());
    let missing = missing_rights(ns.limited.clone(), "default").await.unwrap();
    let missing: Vec<_> = missing
        .iter()
        .map(|right| (right.verb, right.resource.as_str()))
        .collect();
    assert!(
        missing.contains(&("create", "pods")) && missing.contains(&("get", "pods/log")),
        "{missing:?}"
    );
    assert_eq!(missing.len(), 11);
}

#[tokio::test(flavor = "multi_thread")]
async fn kernels_outlive_their_gateway() {
    let Some(ns) = TestNamespace::new().await else { return };
    ns.install_ipykernel();
    let ids: BTreeSet<KernelId> = {
        let provider = ns.open(Reach::PortForward).await;
        let kernels = join_all((0..4).map(|_| launch(&provider, "python3"))).await;
        kernels.into_iter().map(|kernel| kernel.unwrap().record().id).collect()
    };
    let provider = ns.open(Reach::PortForward).await;
    let records = provider.list(&Selector::all()).await.unwrap();
    assert_eq!(records.iter().map(|record| record.id).collect::<BTreeSet<_>>(), ids);
    for record in &records {
        let kernel = provider.attach(record).await.unwrap();
        answers(&*kernel).await;
        kernel.shutdown(Duration::from_secs(5)).await.unwrap();
    }
    common::eventually("no leftovers", async || ns.leftovers().await.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_connections_do_not_prevent_new_ones() {
    let Some(ns) = TestNamespace::new().await else { return };
    ns.install_ipykernel();
    let provider = ns.open(Reach::PortForward).await;
    let kernel = launch(&provider, "python3").await.unwrap();
    let connection = kernel.connection().await.unwrap();
    // Each connection has its own port-forward.
    for _ in 0..5 {
        let client = Client::connect(&connection).await.unwrap();
        client.kernel_info().await.unwrap();
        drop(client);
    }
    let clients = join_all((0..5).map(|_| Client::connect(&connection))).await;
    for client in clients {
        client.unwrap().kernel_info().await.unwrap();
    }
    kernel.shutdown(Duration::from_secs(5)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn kernels_cannot_read_the_secrets_of_others() {
    let Some(ns) = TestNamespace::new().await else { return };
    ns.install_ipykernel();
    let provider = ns.open(Reach::PortForward).await;
    let kernel = launch(&provider, "python3").await.unwrap();
    let pod = ns.pods().get(&pod_name(&*kernel)).await.unwrap();
    let spec = pod.spec.unwrap();
    assert_eq!(spec.automount_service_account_token, Some(false));
    let token = "/var/run/secrets/kubernetes.io";
    let mounts = spec.containers[0].volume_mounts.clone().unwrap();
    assert!(mounts.iter().all(|mount| !mount.mount_path.starts_with(token)));
    let text = serde_json::to_string(&spec.containers).unwrap();
    assert!(!text.contains(kernel.connection().await.unwrap().key.expose()));
    kernel.shutdown(Duration::from_secs(5)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_kernels_share_a_volume() {
    if std::env::var_os("KERNELMUX_TEST_POD_ADDRESSES").is_none() {
        println!("skipped: needs the cluster that `make test-k8s` brings up, whose node is this machine");
        return;
    }
    let Some(ns) = TestNamespace::new().await else { return };
    ns.install_ipykernel();
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let volumes: Api<PersistentVolume> = Api::all(ns.admin.clone());
    let size = json!({"storage": "1Mi"});
    let volume = json!({"metadata": {"name": ns.name}, "spec": {
        "capacity": size, "accessModes": ["ReadWriteMany"], "hostPath": {"path": folder.path()},
        "claimRef": {"namespace": ns.name, "name": "shared"}, "storageClassName": "",
    }});
    create(&volumes, volume).await;
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(ns.admin.clone(), &ns.name);
    let claim = json!({"metadata": {"name": "shared"}, "spec": {
        "accessModes": ["ReadWriteMany"], "resources": {"requests": size}, "storageClassName": "",
        "volumeName": ns.name,
    }});
    create(&claims, claim).await;
    let mut options = ns.options(Reach::PortForward);
    options.policy = Policy::permissive();
    let provider = K8sProvider::open_with(ns.limited.clone(), options).await.unwrap();
    let kernels = join_all((0..2).map(|_| async {
        let mut request = LaunchRequest::new(KernelId::random(), "python3");
        request.timeout = LONG;
        let volumes = "[{name: 'shared', persistentVolumeClaim: {claimName: 'shared'}}]";
        request.env.insert("KERNEL_VOLUMES".to_owned(), volumes.to_owned());
        let mounts = "[{name: 'shared', mountPath: '/shared'}]";
        request.env.insert("KERNEL_VOLUME_MOUNTS".to_owned(), mounts.to_owned());
        provider.launch(request, Progress::ignored()).await.unwrap()
    }))
    .await;
    assert!(run(&*kernels[0], "open('/shared/a', 'w').write('from the other')").await);
    assert!(run(&*kernels[1], "assert open('/shared/a').read() == 'from the other'").await);
    for kernel in kernels {
        kernel.shutdown(Duration::from_secs(5)).await.unwrap();
    }
    volumes.delete(&ns.name, &DeleteParams::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn enterprise_gateway_kernelspecs_work_unchanged() {
    let Some(ns) = TestNamespace::new().await else { return };
    let kernel_json = json!({
        "language": "R",
        "display_name": "R on Kubernetes",
        "metadata": {"process_proxy": {
            "class_name": "enterprise_gateway.services.processproxies.k8s.KubernetesProcessProxy",
            "config": {"image_name": image()},
        }},
        "argv": ["python", "/usr/local/share/jupyter/kernels/r/scripts/launch_kubernetes.py", "{kernel_id}"],
    });
    let dir = ns.specs.path().join("r_kubernetes");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("kernel.json"), kernel_json.to_string()).unwrap();
    let provider = ns.open(Reach::PortForward).await;
    assert!(provider.specs().borrow().by_name.contains_key("r_kubernetes"));
    // The test image contains no R. The error shows that R's own command was run.
    let error = launch(&provider, "r_kubernetes").await.err().unwrap();
    assert!(
        matches!(&error, LaunchError::CannotStart { reason, .. } if reason.contains("StartError") && reason.contains("\"R\"")),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_the_pod_and_its_files() {
    let Some(ns) = TestNamespace::new().await else { return };
    ns.install_ipykernel();
    let provider = ns.open(Reach::PortForward).await;
    let kernel = launch(&provider, "python3").await.unwrap();
    let pod = ns.pods().get(&pod_name(&*kernel)).await.unwrap();
    // A process in its own session, like the workers of a pool started by a cell.
    let code = "import os, subprocess\nopen('/tmp/kept', 'w').write('x')\nx = 1\n\
        started = subprocess.Popen(['sleep', '1000'], start_new_session=True).pid\n\
        open('/tmp/started', 'w').write(str(started))";
    assert!(run(&*kernel, code).await);
    for (grace, announced) in [(5, false), (0, false), (5, true)] {
        if announced {
            kernel.prepare_restart().await;
            // Request the shutdown by message, as the manager does.
            let client = Client::connect(&kernel.connection().await.unwrap()).await.unwrap();
            let _ = client.shutdown(true).await;
            let exit = tokio::time::timeout(LONG, kernel.wait()).await.unwrap();
            assert_eq!(exit.cause, ExitCause::Code(0));
        }
        let grace = Duration::from_secs(grace);
        kernel.restart(grace, Progress::ignored()).await.unwrap();
        let now = ns.pods().get(&pod_name(&*kernel)).await.unwrap();
        assert_eq!(now.metadata.uid, pod.metadata.uid);
        let code = "import os\nassert 'x' not in globals() and os.path.exists('/tmp/kept')\nx = 1\n\
            assert not os.path.exists('/proc/' + open('/tmp/started').read())";
        assert!(run(&*kernel, code).await);
    }
    // Later exits are reported as usual and start no new kernel.
    run(&*kernel, "import os; os._exit(7)").await;
    let exit = tokio::time::timeout(LONG, kernel.wait()).await.unwrap();
    assert_eq!(exit.cause, ExitCause::Code(7));
    // The ended pod cannot be kept.
    kernel.restart(Duration::ZERO, Progress::ignored()).await.unwrap();
    let now = ns.pods().get(&pod_name(&*kernel)).await.unwrap();
    assert_ne!(now.metadata.uid, pod.metadata.uid);
    kernel.shutdown(Duration::from_secs(5)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_after_an_abandoned_restart_is_reported() {
    let Some(ns) = TestNamespace::new().await else { return };
    ns.install_ipykernel();
    let provider = ns.open(Reach::PortForward).await;
    let kernel = launch(&provider, "python3").await.unwrap();
    kernel.prepare_restart().await;
    // Dropping the kernel and its provider, like killing the embedder, releases the hold on the pod.
    let record = kernel.record();
    drop((kernel, provider));
    let provider = ns.open(Reach::PortForward).await;
    let kernel = provider.attach(&record).await.unwrap();
    common::eventually("the hold is released", async || {
        run(
            &*kernel,
            "import os; assert not os.path.exists('/run/kernelmux-rw/holder')",
        )
        .await
    })
    .await;
    run(&*kernel, "import os; os._exit(7)").await;
    let exit = tokio::time::timeout(LONG, kernel.wait()).await.unwrap();
    assert_eq!(exit.cause, ExitCause::Code(7));
    kernel.shutdown(Duration::ZERO).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_uses_a_new_pod_if_the_kernelspec_has_changed() {
    let Some(ns) = TestNamespace::new().await else { return };
    ns.install_ipykernel();
    let mut options = ns.options(Reach::PortForward);
    options.policy = Policy::permissive();
    let provider = K8sProvider::open_with(ns.limited.clone(), options).await.unwrap();
    let mut request = LaunchRequest::new(KernelId::random(), "python3");
    request.timeout = LONG;
    request.owner = Some("Ann Ö".to_owned());
    request
        .annotations
        .insert("of the caller".to_owned(), "kept".to_owned());
    request.working_dir = Some("/tmp".into());
    request.env.insert("MINE".to_owned(), "a b".to_owned());
    let kernel = provider.launch(request, Progress::ignored()).await.unwrap();
    let before = kernel.record();
    let argv = ["python3", "-m", "ipykernel_launcher", "-f", "{connection_file}"];
    ns.install("python3", &argv, json!({"resources": {"limits": {"memory": "777Mi"}}}));
    kernel
        .restart(Duration::from_secs(5), Progress::ignored())
        .await
        .unwrap();
    let now = kernel.record();
    assert_ne!(now.data["uid"], before.data["uid"]);
    assert_eq!((&now.owner, now.launched), (&before.owner, before.launched));
    assert_eq!(now.annotations["of the caller"], "kept");
    let pod = ns.pods().get(&pod_name(&*kernel)).await.unwrap();
    let limits = pod.spec.unwrap().containers[0].resources.clone().unwrap().limits;
    assert_eq!(limits.unwrap()["memory"].0, "777Mi");
    let code = "import os; assert os.environ['MINE'] == 'a b' and os.getcwd() == '/tmp'";
    assert!(run(&*kernel, code).await);
    kernel.shutdown(Duration::from_secs(5)).await.unwrap();
}

/// Kills a gateway during a launch, once `is_there` returns true. Stopping its runtime also stops its cleanup.
fn kill_gateway_during_launch(
    ns: &TestNamespace,
    client: Kube,
    request: LaunchRequest,
    is_there: impl AsyncFnMut() -> bool,
) {
    let killed = runtime();
    let options = ns.options(Reach::PortForward);
    killed.spawn(async move {
        let provider = K8sProvider::open_with(client, options).await.unwrap();
        provider.launch(request, Progress::ignored()).await.map(drop)
    });
    ns.block_on(common::eventually("the launch is in progress", is_there));
    killed.shutdown_background();
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap()
}

fn request() -> LaunchRequest {
    let mut request = LaunchRequest::new(KernelId::random(), "python3");
    request.timeout = LONG;
    request
}

/// Whether the namespace has a Secret.
async fn has_secret(ns: &TestNamespace) -> bool {
    !ns.leftovers().await.iter().all(|left| left.starts_with("pod"))
}

/// Opens a gateway that removes orphaned pods after one second.
async fn open_with_short_orphan_timeout(ns: &TestNamespace) -> K8sProvider {
    let mut options = ns.options(Reach::PortForward);
    options.orphaned_after = Duration::from_secs(1);
    K8sProvider::open_with(ns.limited.clone(), options).await.unwrap()
}

#[test]
fn an_orphaned_pod_without_a_secret_is_removed() {
    let tests = runtime();
    let Some(ns) = tests.block_on(TestNamespace::new()) else {
        return;
    };
    let _inside = tests.enter();
    ns.install_ipykernel();
    let calls = Arc::new(Calls::blocking(Method::POST, "/secrets"));
    let wanted = request();
    let pod = format!("kernel-{}", wanted.id);
    kill_gateway_during_launch(
        &ns,
        calls.client(ns.limited_config.clone()),
        wanted.clone(),
        async || ns.pods().get_opt(&pod).await.unwrap().is_some(),
    );
    tests.block_on(async {
        let running = launch(&ns.open(Reach::PortForward).await, "python3").await.unwrap();
        let provider = open_with_short_orphan_timeout(&ns).await;
        for record in provider.list(&Selector::all()).await.unwrap() {
            assert_eq!(provider.attach(&record).await.is_ok(), record == running.record());
        }
        // A new launch of the same kernel succeeds once the orphaned pod is removed.
        let kernel = provider.launch(wanted, Progress::ignored()).await.unwrap();
        answers(&*kernel).await;
        answers(&*running).await;
        kernel.shutdown(Duration::ZERO).await.unwrap();
        running.shutdown(Duration::ZERO).await.unwrap();
        common::eventually("no leftovers", async || ns.leftovers().await.is_empty()).await;
        drop(ns);
    });
}

#[test]
fn an_orphaned_pod_that_cannot_start_is_removed() {
    let tests = runtime();
    let Some(ns) = tests.block_on(TestNamespace::new()) else {
        return;
    };
    let _inside = tests.enter();
    let no_image = json!({"image": "localhost/kernelmux/none:dev", "image_pull_policy": "Never"});
    ns.install("no-image", &["python3", "{connection_file}"], no_image);
    let no_room = json!({"resources": {"requests": {"memory": "900Ti"}}});
    ns.install("no-room", &["python3", "{connection_file}"], no_room);
    for (name, shown) in [
        // The next gateway opens once the pod shows this text. If the text is empty, it may open before the failure.
        ("no-image", "ErrImageNeverPull"),
        ("no-room", "Unschedulable"),
        ("no-image", ""),
    ] {
        // Block deletions, because otherwise the launching gateway would remove the pod itself.
        let calls = Arc::new(Calls::blocking(Method::DELETE, "/pods"));
        let mut wanted = request();
        wanted.spec = name.to_owned();
        let pod = format!("kernel-{}", wanted.id);
        kill_gateway_during_launch(&ns, calls.client(ns.limited_config.clone()), wanted, async || {
            let pod = ns.pods().get_opt(&pod).await.unwrap();
            serde_json::to_string(&pod).unwrap().contains(shown) && has_secret(&ns).await
        });
        tests.block_on(async {
            let provider = open_with_short_orphan_timeout(&ns).await;
            for record in provider.list(&Selector::all()).await.unwrap() {
                provider.attach(&record).await.map(drop).unwrap_err();
            }
            common::eventually("no leftovers", async || ns.leftovers().await.is_empty()).await;
        });
    }
    tests.block_on(async { drop(ns) });
}

#[test]
fn a_launch_of_a_killed_gateway_is_taken_over() {
    let tests = runtime();
    let Some(ns) = tests.block_on(TestNamespace::new()) else {
        return;
    };
    let _inside = tests.enter();
    ns.install_ipykernel();
    let wanted = request();
    kill_gateway_during_launch(
        &ns,
        Kube::try_from(ns.limited_config.clone()).unwrap(),
        wanted.clone(),
        async || has_secret(&ns).await,
    );
    tests.block_on(async {
        let provider = ns.open(Reach::PortForward).await;
        let found = provider.list(&Selector::all()).await.unwrap();
        assert_eq!(found.iter().map(|record| record.id).collect::<Vec<_>>(), [wanted.id]);
        let kernel = provider.attach(&found[0]).await.unwrap();
        answers(&*kernel).await;
        kernel.shutdown(Duration::ZERO).await.unwrap();
        common::eventually("no leftovers", async || ns.leftovers().await.is_empty()).await;
        drop(ns);
    });
}
