//! Shared test setup: a namespace of a real cluster, an account with the rights that the provider documents, and
//! kernelspecs.

#![allow(dead_code, reason = "each test program uses only a part")]

pub(crate) mod pool;
pub(crate) mod tunnel;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use jupyter_protocol::KernelId;
use jupyter_protocol::content::{ExecuteRequest, Reply};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kernel_provider::{KernelHandle, KernelProvider as _, LaunchError, LaunchRequest, Progress};
use kube::api::{AttachParams, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, Config};
use provider_k8s::{K8sOptions, K8sProvider, Reach};
use serde_json::{Value, json};

/// Deadline of every wait. No wait should take nearly as long.
pub(crate) const LONG: Duration = Duration::from_secs(120);
/// The service account of the provider under test.
const ACCOUNT: &str = "gateway";

/// The test image with ipykernel.
pub(crate) fn image() -> String {
    std::env::var("KERNELMUX_TEST_IMAGE").unwrap_or_else(|_| "localhost/kernelmux/python:dev".to_owned())
}

/// The image with the program of kernels' agents, if there is one.
fn agent_image() -> Option<String> {
    std::env::var("KERNELMUX_TEST_AGENT_IMAGE").ok()
}

/// The rights that the provider documents. `called` are the resources with the rights `get` and `create`.
fn role(called: &[&str]) -> Value {
    let rule = |resources: &[&str], verbs: &[&str]| json!({"apiGroups": [""], "resources": resources, "verbs": verbs});
    json!({"metadata": {"name": ACCOUNT}, "rules": [
        rule(&["pods"], &["get", "list", "watch", "create", "delete", "patch"]),
        rule(&["secrets"], &["get", "create"]),
        rule(&["events"], &["list", "watch"]),
        rule(&["pods/log"], &["get"]),
        rule(called, &["get", "create"]),
    ]})
}

/// Returns an administrator's configuration of the cluster, or `None` if there is no cluster to test on, so that the
/// caller can skip the test.
async fn admin() -> Option<Config> {
    if std::env::var_os("KERNELMUX_TEST_KUBERNETES").is_none() {
        println!("skipped: needs a cluster; `make test-k8s` brings one up, or uses the cluster of KUBECONFIG");
        return None;
    }
    Some(Config::infer().await.expect("KUBECONFIG does not name a cluster"))
}

/// A new namespace with kernelspecs. Dropping it deletes the namespace.
pub(crate) struct TestNamespace {
    pub(crate) name: String,
    pub(crate) admin: Client,
    /// A client with the rights that the provider documents.
    pub(crate) limited: Client,
    /// The configuration of `limited`.
    pub(crate) limited_config: Config,
    pub(crate) token: String,
    pub(crate) specs: tempfile::TempDir,
    /// The image with the program of kernels' agents, for providers that use it.
    pub(crate) agent_image: Option<String>,
    tunnels: Mutex<Vec<tunnel::Tunnels>>,
    runtime: tokio::runtime::Handle,
}

impl TestNamespace {
    /// Creates the namespace. Returns `None` if there is no cluster to test on.
    pub(crate) async fn new() -> Option<Self> {
        let config = admin().await?;
        // The log is printed for failing tests.
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
        create::<Role>(
            &Api::namespaced(admin.clone(), &namespace),
            role(&["pods/portforward", "pods/exec"]),
        )
        .await;
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
        // Pods cannot be created before their service account exists.
        eventually("the default service account", async || {
            accounts.get("default").await.is_ok()
        })
        .await;
        Some(Self {
            name: namespace,
            admin,
            limited: Client::try_from(limited.clone()).unwrap(),
            limited_config: limited,
            token,
            specs: tempfile::tempdir().unwrap(),
            agent_image: None,
            tunnels: Mutex::default(),
            runtime: tokio::runtime::Handle::current(),
        })
    }

    /// Creates a namespace whose providers use agents and have no right to run commands in pods. Returns `None` if
    /// there is no cluster to test on, or no image with agents.
    pub(crate) async fn with_agents() -> Option<Self> {
        let Some(image) = agent_image() else {
            println!("skipped: needs an image with agents; `make test-k8s` builds one (KERNELMUX_TEST_AGENT_IMAGE)");
            return None;
        };
        let mut namespace = Self::new().await?;
        namespace.agent_image = Some(image);
        let roles: Api<Role> = Api::namespaced(namespace.admin.clone(), &namespace.name);
        let rules = Patch::Merge(role(&["pods/portforward"]));
        roles.patch(ACCOUNT, &PatchParams::default(), &rules).await.unwrap();
        Some(namespace)
    }

    pub(crate) fn options(&self, reach: Reach) -> K8sOptions {
        let mut options = K8sOptions::new(&self.name);
        options.search = jupyter_protocol::kernelspec::SearchPath::new([self.specs.path().to_owned()]);
        options.reach = reach;
        options.agent_image.clone_from(&self.agent_image);
        options
    }

    pub(crate) async fn open(&self, reach: Reach) -> K8sProvider {
        K8sProvider::open_with(self.limited.clone(), self.options(reach))
            .await
            .unwrap()
    }

    /// Blocks on a future from outside the async runtime.
    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    pub(crate) fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.admin.clone(), &self.name)
    }

    /// Installs a kernelspec with this command and Kubernetes metadata. The image is added if it is missing.
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

    /// Installs a kernel that only opens its sockets and sends ZMTP greetings. It starts quickly, so many can be
    /// started.
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

    /// Lists the pods that have not ended, and the Secrets that belong to no ended pod.
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
        let secrets: Api<Secret> = Api::namespaced(self.admin.clone(), &self.name);
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

/// Returns a configuration for the same cluster with this token's rights.
pub(crate) fn with_token(mut config: Config, token: &str) -> Config {
    config.auth_info = serde_json::from_value(json!({"token": token})).unwrap();
    config
}

impl Drop for TestNamespace {
    fn drop(&mut self) {
        let namespaces: Api<Namespace> = Api::all(self.admin.clone());
        let name = self.name.clone();
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

/// Polls until the condition is true. Fails after [`LONG`].
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + LONG;
    while !condition().await {
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

/// Runs code in the kernel. Returns `false` if the code raises an exception or the kernel ends.
pub(crate) async fn run(kernel: &dyn KernelHandle, code: &str) -> bool {
    let client = jupyter_protocol::client::Client::connect(&kernel.connection().await.unwrap())
        .await
        .unwrap();
    client.kernel_info().await.unwrap();
    let running = client.execute(ExecuteRequest::new(code)).await.unwrap();
    tokio::select! {
        reply = running.reply() => reply.is_ok_and(|reply| matches!(reply, Reply::Ok(_))),
        _ = kernel.wait() => false,
        () = tokio::time::sleep(LONG) => panic!("the kernel neither replies nor ends"),
    }
}
