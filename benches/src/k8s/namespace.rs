//! The benchmark's namespace, and pods made without the provider.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use futures::{StreamExt as _, TryStreamExt as _};
use jupyter_protocol::ConnectionInfo;
use jupyter_protocol::kernelspec::SearchPath;
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret, ServiceAccount};
use kernel_log::{LogOptions, Logs, MemoryStore};
use kernel_manager::{Manager, ManagerOptions};
use kernel_provider::KernelHandle;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::client::{Body, ClientBuilder};
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, Config};
use provider_k8s::{K8sOptions, K8sProvider, Reach};
use serde_json::{Value, json};
use tower::util::MapRequestLayer;

use super::DEADLINE;
use crate::Result;

/// A new namespace with kernelspecs.
pub(super) struct BenchNamespace {
    pub(super) config: Config,
    pub(super) client: Client,
    pub(super) namespace: String,
    image: String,
    specs: tempfile::TempDir,
}

impl BenchNamespace {
    pub(super) async fn new(config: Config, image: String) -> Result<Self> {
        let client = Client::try_from(config.clone())?;
        let random = uuid::Uuid::new_v4().simple().to_string();
        let namespace = format!("kmux-bench-{}", random.get(..8).unwrap_or_default());
        let enforced = json!({"metadata": {"name": namespace, "labels": {
            "pod-security.kubernetes.io/enforce": "restricted",
        }}});
        let namespaces: Api<Namespace> = Api::all(client.clone());
        namespaces
            .create(&PostParams::default(), &serde_json::from_value(enforced)?)
            .await?;
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &namespace);
        while accounts.get_opt("default").await?.is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(Self {
            config,
            client,
            namespace,
            image,
            specs: tempfile::tempdir()?,
        })
    }

    pub(super) async fn remove(&self) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        namespaces.delete(&self.namespace, &DeleteParams::background()).await?;
        Ok(())
    }

    /// Installs a kernelspec in place of the previous one.
    pub(super) fn install(&self, argv: &[&str], mut kubernetes: Value) -> Result<()> {
        if let Some(settings) = kubernetes.as_object_mut() {
            settings.insert("image".to_owned(), json!(self.image));
        }
        let spec = json!({"argv": argv, "display_name": "bench", "language": "python", "interrupt_mode": "message",
            "metadata": {"kernelmux": {"kubernetes": kubernetes}}});
        let dir = self.specs.path().join("bench");
        fs::create_dir_all(&dir)?;
        Ok(fs::write(dir.join("kernel.json"), spec.to_string())?)
    }

    pub(super) fn install_python(&self, kubernetes: Value) -> Result<()> {
        let argv = [
            "python3",
            "-Xfrozen_modules=off",
            "-m",
            "ipykernel_launcher",
            "-f",
            "{connection_file}",
        ];
        self.install(&argv, kubernetes)
    }

    pub(super) async fn open(&self, client: Client, reach: Reach) -> Result<K8sProvider> {
        let mut options = K8sOptions::new(&self.namespace);
        options.search = SearchPath::new([self.specs.path().to_owned()]);
        options.reach = reach;
        Ok(K8sProvider::open_with(client, options).await?)
    }

    pub(super) async fn manager(&self, reach: Reach) -> Result<Manager> {
        let provider = self.open(self.client.clone(), reach).await?;
        let logs = Logs::new(Arc::new(MemoryStore::new()), LogOptions::default())?;
        Ok(Manager::new(vec![Arc::new(provider)], logs, ManagerOptions::default()))
    }

    pub(super) fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Copies the pod and the Secret that the provider created for a kernel.
    pub(super) async fn manifest(&self, kernel: &dyn KernelHandle) -> Result<Manifest> {
        let name = kernel.record().data["pod"].as_str().unwrap_or_default().to_owned();
        let mut pod = self.pods().get(&name).await?;
        let of_pod = |secret: &Secret| {
            let owners = secret.metadata.owner_references.as_deref().unwrap_or_default();
            owners.iter().any(|owner| owner.name == name)
        };
        let secrets = self.secrets().list(&ListParams::default()).await?.items;
        let mut secret = secrets.into_iter().find(of_pod).ok_or("the kernel has no Secret")?;
        pod.status = None;
        pod.metadata = serde_json::from_value(json!({"name": name}))?;
        if let Some(spec) = &mut pod.spec {
            spec.node_name = None;
        }
        let secret_name = secret.metadata.name.clone().unwrap_or_default();
        secret.metadata = serde_json::from_value(json!({"name": secret_name}))?;
        Ok(Manifest {
            pod,
            secret,
            secret_name,
        })
    }
}

/// Copies of a pod and its Secret that the provider created. `create` makes more of them without the provider.
pub(super) struct Manifest {
    pod: Pod,
    secret: Secret,
    /// The Secret's original name, to which the pod refers.
    secret_name: String,
}

impl Manifest {
    pub(super) fn connection(&self, ip: String) -> Result<ConnectionInfo> {
        let data = self.secret.data.as_ref().and_then(|data| data.get("connection.json"));
        let mut info: ConnectionInfo = serde_json::from_slice(&data.ok_or("the Secret has no connection file")?.0)?;
        info.ip = ip;
        Ok(info)
    }

    /// Creates the pod and the Secret under another name.
    pub(super) async fn create(&self, ns: &BenchNamespace, name: &str) -> Result<()> {
        let text = serde_json::to_string(&self.pod)?.replace(&self.secret_name, name);
        let mut pod: Pod = serde_json::from_str(&text)?;
        pod.metadata.name = Some(name.to_owned());
        let mut secret = self.secret.clone();
        secret.metadata.name = Some(name.to_owned());
        ns.pods().create(&PostParams::default(), &pod).await?;
        ns.secrets().create(&PostParams::default(), &secret).await?;
        Ok(())
    }
}

/// Waits until `wanted` pods with this prefix are ready, and returns their addresses.
pub(super) async fn ready(ns: &BenchNamespace, prefix: &str, wanted: usize) -> Result<BTreeMap<String, String>> {
    let mut watch = watcher(ns.pods(), watcher::Config::default()).boxed();
    let mut found = BTreeMap::new();
    let watching = async {
        while found.len() < wanted {
            let event = watch.try_next().await?.ok_or("the watch ended")?;
            let (watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) = event else {
                continue;
            };
            let status = pod.status.unwrap_or_default();
            let name = pod.metadata.name.unwrap_or_default();
            let is_ready = status.conditions.iter().flatten();
            let mut is_ready = is_ready.filter(|condition| condition.type_ == "Ready" && condition.status == "True");
            if name.starts_with(prefix)
                && is_ready.next().is_some()
                && let Some(ip) = status.pod_ip
            {
                found.insert(name, ip);
            }
        }
        Ok(found)
    };
    tokio::time::timeout(DEADLINE, watching).await?
}

pub(super) async fn delete(ns: &BenchNamespace, names: impl Iterator<Item = String>) -> Result<()> {
    let params = DeleteParams::default().grace_period(1);
    let pods = ns.pods();
    try_join_all(names.map(|name| {
        let (pods, params) = (pods.clone(), params.clone());
        async move { pods.delete(&name, &params).await.map(drop) }
    }))
    .await?;
    Ok(())
}

/// Waits until the namespace has no pods.
pub(super) async fn wait_until_empty(ns: &BenchNamespace) -> Result<()> {
    let begun = Instant::now();
    while !ns.pods().list_metadata(&ListParams::default()).await?.items.is_empty() {
        if begun.elapsed() > DEADLINE {
            return Err("pods remain".into());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// Creates a client that counts its calls except watches, which all kernels share.
pub(super) fn counting_client(config: &Config, calls: &Arc<AtomicUsize>) -> Result<Client> {
    let calls = Arc::clone(calls);
    let layer = MapRequestLayer::new(move |request: http::Request<Body>| {
        if !request.uri().query().is_some_and(|query| query.contains("watch=")) {
            calls.fetch_add(1, Ordering::Relaxed);
        }
        request
    });
    Ok(ClientBuilder::try_from(config.clone())?.with_layer(&layer).build())
}
