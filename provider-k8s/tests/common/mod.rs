//! What the tests share: a namespace of a real cluster, with the rights of the Role that the provider asks for, and
//! kernelspecs that are made for it.

#![allow(dead_code, reason = "each test program uses its part")]

pub(crate) mod pool;

use std::sync::Arc;
use std::time::Duration;

use jupyter_protocol::content::{ExecuteRequest, Reply};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kernel_provider::KernelId;
use kernel_provider::provider::{KernelHandle, KernelProvider as _, LaunchError, LaunchRequest, Progress};
use kube::api::{AttachParams, DeleteParams, ListParams, PostParams};
use kube::{Api, Client, Config};
use provider_k8s::{K8sConfig, K8sProvider, Reach};
use serde_json::{Value, json};

/// Far more than anything here takes.
pub(crate) const LONG: Duration = Duration::from_secs(120);
/// Whose rights the provider under test has.
const ACCOUNT: &str = "gateway";

/// The image with ipykernel that the tests use.
pub(crate) fn image() -> String {
    std::env::var("KERNELMUX_TEST_IMAGE").unwrap_or_else(|_| "localhost/kernelmux/python:dev".to_owned())
}

/// An administrator of the cluster under test.
///
/// Where there is none, says so, and the caller passes.
async fn admin() -> Option<Config> {
    if std::env::var_os("KERNELMUX_TEST_KUBERNETES").is_none() {
        println!("skipped: needs a cluster; `make test-k8s` brings one up, or uses that of KUBECONFIG");
        return None;
    }
    // Other tests' namespaces make for much traffic, and the tests' own client is not what is measured.
    Some(Config::infer().await.expect("KUBECONFIG does not name a cluster"))
}

/// A namespace of its own, with kernelspecs; removed at the end.
pub(crate) struct Place {
    pub(crate) namespace: String,
    pub(crate) admin: Client,
    pub(crate) limited: Client,
    /// What `limited` is made from.
    pub(crate) rights: Config,
    pub(crate) token: String,
    pub(crate) specs: tempfile::TempDir,
    runtime: tokio::runtime::Handle,
}

impl Place {
    /// `None` where there is no cluster to test on.
    pub(crate) async fn new() -> Option<Self> {
        let config = admin().await?;
        // Shown where a test fails.
        let _ = tracing_subscriber::fmt()
            .with_env_filter("provider_k8s=debug")
            .with_test_writer()
            .try_init();
        let admin = Client::try_from(config.clone()).unwrap();
        let random = KernelId::random().as_uuid().simple().to_string();
        let namespace = format!("kmux-test-{}", &random[..12]);
        let restricted = json!({"metadata": {"name": namespace, "labels": {
            "pod-security.kubernetes.io/enforce": "restricted", "app.kubernetes.io/part-of": "kernelmux-tests",
        }}});
        create::<Namespace>(&Api::all(admin.clone()), restricted).await;
        let accounts: Api<ServiceAccount> = Api::namespaced(admin.clone(), &namespace);
        create(&accounts, json!({"metadata": {"name": ACCOUNT}})).await;
        let rule =
            |resources: &[&str], verbs: &[&str]| json!({"apiGroups": [""], "resources": resources, "verbs": verbs});
        let role = json!({"metadata": {"name": ACCOUNT}, "rules": [
            rule(&["pods"], &["get", "list", "watch", "create", "delete", "patch"]),
            rule(&["secrets"], &["get", "create"]),
            rule(&["events"], &["list", "watch"]),
            rule(&["pods/log"], &["get"]),
            rule(&["pods/portforward", "pods/exec"], &["get", "create"]),
        ]});
        create::<Role>(&Api::namespaced(admin.clone(), &namespace), role).await;
        let binding = json!({
            "metadata": {"name": ACCOUNT},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": ACCOUNT},
            "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": namespace}],
        });
        create::<RoleBinding>(&Api::namespaced(admin.clone(), &namespace), binding).await;
        let request = TokenRequest {
            spec: TokenRequestSpec::default(),
            ..TokenRequest::default()
        };
        let params = PostParams::default();
        let token = accounts.create_token_request(ACCOUNT, &params, &request).await;
        let token = token.unwrap().status.unwrap().token;
        let limited = with_token(config, &token);
        // Pods can be made once the account is there that they run as.
        eventually("the default service account", async || {
            accounts.get("default").await.is_ok()
        })
        .await;
        Some(Self {
            namespace,
            admin,
            limited: Client::try_from(limited.clone()).unwrap(),
            rights: limited,
            token,
            specs: tempfile::tempdir().unwrap(),
            runtime: tokio::runtime::Handle::current(),
        })
    }

    pub(crate) fn config(&self, reach: Reach) -> K8sConfig {
        let mut config = K8sConfig::new(&self.namespace);
        config.search = jupyter_protocol::kernelspec::SearchPath::new([self.specs.path().to_owned()]);
        config.reach = reach;
        config
    }

    pub(crate) async fn open(&self, reach: Reach) -> K8sProvider {
        K8sProvider::open_with(self.limited.clone(), self.config(reach))
            .await
            .unwrap()
    }

    /// Waits outside of the async runtime.
    pub(crate) fn wait<T>(&self, what: impl Future<Output = T>) -> T {
        self.runtime.block_on(what)
    }

    pub(crate) fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.admin.clone(), &self.namespace)
    }

    /// Installs a kernelspec whose pods have this container command, and what is said of them beyond the image.
    pub(crate) fn install(&self, name: &str, argv: &[&str], mut kubernetes: Value) {
        if kubernetes.get("image").is_none() {
            kubernetes["image"] = json!(image());
        }
        let kernel_json = json!({
            "argv": argv, "display_name": name, "language": "python",
            "metadata": {"kernelmux": {"kubernetes": kubernetes}},
        });
        let dir = self.specs.path().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("kernel.json"), kernel_json.to_string()).unwrap();
    }

    /// Installs ipykernel as `python3`.
    pub(crate) fn install_ipykernel(&self) {
        self.install(
            "python3",
            &["python3", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            json!({}),
        );
    }

    /// Installs a shell script as a kernel; `$1` is the connection file.
    pub(crate) fn install_script(&self, name: &str, script: &str) {
        self.install(name, &["sh", "-c", script, name, "{connection_file}"], json!({}));
    }

    /// Installs a kernel that opens its sockets, greets who connects, as ZMTP has it, and can do nothing else: what
    /// starts in no time, so that many can be started.
    pub(crate) fn install_tiny(&self, name: &str) {
        let listen = "import json, socket, sys\n\
            file = json.load(open(sys.argv[1]))\n\
            ports = [value for name, value in file.items() if name.endswith('_port')]\n\
            sockets = [socket.create_server(('', port)) for port in ports]\n\
            import selectors\n\
            ready = selectors.DefaultSelector()\n\
            for one in sockets: ready.register(one, selectors.EVENT_READ)\n\
            taken = []\n\
            while True:\n\
            \x20   for key, _ in ready.select():\n\
            \x20       taken.append(key.fileobj.accept()[0])\n\
            \x20       taken[-1].send(b'\\xff' + bytes(8) + b'\\x7f')\n";
        let argv = ["python3", "-I", "-S", "-c", listen, "{connection_file}"];
        self.install(name, &argv, json!({}));
    }

    /// Runs a command in a kernel's container.
    pub(crate) async fn exec(&self, pod: &str, command: &[&str]) {
        let params = AttachParams::default().container("kernel").stderr(false);
        let mut process = self.pods().exec(pod, command.iter().copied(), &params).await.unwrap();
        let status = process.take_status().unwrap();
        status.await;
    }

    /// Pods that are there and not over, and Secrets of pods that are gone.
    pub(crate) async fn leftovers(&self) -> Vec<String> {
        let pods = self.pods().list(&ListParams::default()).await.unwrap().items;
        let is_over = |pod: &&Pod| {
            let status = pod.status.as_ref();
            pod.metadata.deletion_timestamp.is_none()
                && status
                    .and_then(|status| status.phase.as_deref())
                    .is_some_and(|phase| matches!(phase, "Failed" | "Succeeded"))
        };
        let over: Vec<_> = pods
            .iter()
            .filter(is_over)
            .map(|pod| pod.metadata.uid.clone().unwrap())
            .collect();
        let secrets: Api<Secret> = Api::namespaced(self.admin.clone(), &self.namespace);
        let secrets = secrets.list(&ListParams::default()).await.unwrap().items;
        let is_left = |secret: &&Secret| {
            let owners = secret.metadata.owner_references.iter().flatten();
            !owners.into_iter().any(|owner| over.contains(&owner.uid))
        };
        let pods = pods.iter().filter(|pod| !is_over(pod));
        let pods = pods.map(|pod| format!("pod {}", pod.metadata.name.clone().unwrap_or_default()));
        let secrets = secrets.iter().filter(is_left);
        let secrets = secrets.map(|secret| format!("secret {}", secret.metadata.name.clone().unwrap_or_default()));
        pods.chain(secrets).collect()
    }
}

/// The same cluster with these rights.
pub(crate) fn with_token(mut config: Config, token: &str) -> Config {
    config.auth_info = serde_json::from_value(json!({"token": token})).unwrap();
    config
}

impl Drop for Place {
    fn drop(&mut self) {
        let namespaces: Api<Namespace> = Api::all(self.admin.clone());
        let name = self.namespace.clone();
        tokio::task::block_in_place(|| {
            self.runtime.block_on(async move {
                let params = DeleteParams::background();
                let _ = tokio::time::timeout(LONG, namespaces.delete(&name, &params)).await;
            });
        });
    }
}

pub(crate) async fn create<K>(api: &Api<K>, object: Value)
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned + serde::Serialize,
{
    let object = serde_json::from_value(object).unwrap();
    api.create(&PostParams::default(), &object).await.unwrap();
}

/// Waits for what gives no event of its own here.
pub(crate) async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + LONG;
    while !is_so().await {
        assert!(tokio::time::Instant::now() < deadline, "{what}: not within {LONG:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) async fn launch(provider: &K8sProvider, spec: &str) -> Result<Arc<dyn KernelHandle>, LaunchError> {
    let mut request = LaunchRequest::new(KernelId::random(), spec);
    request.timeout = LONG;
    provider.launch(request, Progress::ignored()).await
}

pub(crate) fn pod_name(kernel: &dyn KernelHandle) -> String {
    kernel.record().data["pod"].as_str().unwrap().to_owned()
}

/// Whether the kernel ran this and nothing was raised; false also where it ended.
pub(crate) async fn run(kernel: &dyn KernelHandle, code: &str) -> bool {
    let client = jupyter_protocol::client::Client::connect(&kernel.connection().await.unwrap())
        .await
        .unwrap();
    client.kernel_info().await.unwrap();
    let running = client.execute(ExecuteRequest::new(code)).await.unwrap();
    tokio::select! {
        reply = running.reply() => reply.is_ok_and(|reply| matches!(reply, Reply::Ok(_))),
        _ = kernel.wait() => false,
        () = tokio::time::sleep(LONG) => panic!("it neither answers nor ends"),
    }
}
