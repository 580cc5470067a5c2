//! Kernels in pods, on the cluster of `KUBECONFIG`, compared with the same pods without kernelmux.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::future::{join_all, try_join_all};
use futures::{StreamExt as _, TryStreamExt as _};
use jupyter_protocol::content::{ExecuteRequest, KernelInfoRequest};
use jupyter_protocol::kernelspec::SearchPath;
use jupyter_protocol::zmq::IopubSubscriber;
use jupyter_protocol::{Channel, ConnectionInfo, KernelId, Message};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Secret, ServiceAccount};
use kernel_log::{LogOptions, Logs, MemoryStore, Origin};
use kernel_manager::{AtClose, Attachment, Kernel, Manager, ManagerOptions, StartRequest};
use kernel_provider::{KernelHandle, KernelProvider as _, LaunchRequest, LaunchStage, Progress};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::client::{Body, ClientBuilder};
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, Config};
use provider_k8s::{K8sOptions, K8sProvider, Reach};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tower::util::MapRequestLayer;

use crate::by_hand::Direct;
use crate::measure::{Times, bytes, per_second, ratio, time};
use crate::report::Section;
use crate::round_trip::Shell;
use crate::setup::scaled;
use crate::{Result, process};

const DEADLINE: Duration = Duration::from_secs(120);
/// Timeout of the whole benchmark.
const TOTAL_DEADLINE: Duration = Duration::from_secs(1800);
/// Starts of each variant.
const STARTS: usize = 10;
const POOL: usize = 6;
const CLAIMS: usize = 30;
const REQUESTS: usize = 1_000;
const MESSAGES: usize = 50_000;
const AT_ONCE: usize = 50;
const MANY: usize = 1_000;
const PORTS: std::ops::RangeInclusive<u16> = 9301..=9305;
/// Interval of the fake node's status reports. The cluster marks a node as not ready after 40 s without one.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Label of the fake node.
const FAKE: &str = "kernelmux.dev/fake";

/// Runs the benchmark if `KUBECONFIG` is set.
///
/// # Errors
/// If the cluster or a kernel fails.
pub async fn run() -> Result<Section> {
    let image = std::env::var("KERNELMUX_TEST_IMAGE").unwrap_or_else(|_| "localhost/kernelmux/python:dev".to_owned());
    let mut section = Section::new(
        "Kernels in pods",
        format!(
            "On the cluster of `KUBECONFIG`, whose pods' addresses are reached from here (`make dev-cluster` gives one of \
             one node, on the same machine); the image is {image}. All through `provider-k8s`, by the pods' addresses \
             where nothing else is said, its manager with the log in memory."
        ),
    );
    // Only with an explicit cluster, because this needs an administrator's rights and creates a fake node.
    if std::env::var_os("KUBECONFIG").is_none() {
        section.note("Not measured: `KUBECONFIG` names no cluster.");
        return Ok(section);
    }
    let config = Config::infer().await?;
    let ns = BenchNamespace::new(config, image).await?;
    let measured = async {
        starts(&ns, &mut section).await?;
        claims(&ns, &mut section).await?;
        messages(&ns, &mut section).await?;
        at_once(&ns, &mut section).await?;
        many(&ns, &mut section).await
    };
    let measured = tokio::time::timeout(TOTAL_DEADLINE, measured).await;
    ns.remove().await?;
    measured??;
    Ok(section)
}

/// A new namespace with kernelspecs.
struct BenchNamespace {
    config: Config,
    client: Client,
    namespace: String,
    image: String,
    specs: tempfile::TempDir,
}

impl BenchNamespace {
    async fn new(config: Config, image: String) -> Result<Self> {
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

    async fn remove(&self) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        namespaces.delete(&self.namespace, &DeleteParams::background()).await?;
        Ok(())
    }

    /// Installs the only kernelspec and replaces the previous one.
    fn install(&self, argv: &[&str], mut kubernetes: Value) -> Result<()> {
        if let Some(settings) = kubernetes.as_object_mut() {
            settings.insert("image".to_owned(), json!(self.image));
        }
        let spec = json!({"argv": argv, "display_name": "bench", "language": "python", "interrupt_mode": "message",
            "metadata": {"kernelmux": {"kubernetes": kubernetes}}});
        let dir = self.specs.path().join("bench");
        fs::create_dir_all(&dir)?;
        Ok(fs::write(dir.join("kernel.json"), spec.to_string())?)
    }

    fn install_python(&self, kubernetes: Value) -> Result<()> {
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

    async fn open(&self, client: Client, reach: Reach) -> Result<K8sProvider> {
        let mut config = K8sOptions::new(&self.namespace);
        config.search = SearchPath::new([self.specs.path().to_owned()]);
        config.reach = reach;
        Ok(K8sProvider::open_with(client, config).await?)
    }

    async fn manager(&self, reach: Reach) -> Result<Manager> {
        let provider = self.open(self.client.clone(), reach).await?;
        let logs = Logs::new(Arc::new(MemoryStore::new()), LogOptions::default())?;
        Ok(Manager::new(vec![Arc::new(provider)], logs, ManagerOptions::default()))
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Copies the pod and the Secret that the provider created for a kernel.
    async fn manifest(&self, kernel: &dyn KernelHandle) -> Result<Manifest> {
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

/// A pod and a Secret as the provider creates them, to be created without it.
struct Manifest {
    pod: Pod,
    secret: Secret,
    /// The Secret's original name, to which the pod refers.
    secret_name: String,
}

impl Manifest {
    fn connection(&self, ip: String) -> Result<ConnectionInfo> {
        let data = self.secret.data.as_ref().and_then(|data| data.get("connection.json"));
        let mut info: ConnectionInfo = serde_json::from_slice(&data.ok_or("the Secret has no connection file")?.0)?;
        info.ip = ip;
        Ok(info)
    }

    /// Creates the pod and the Secret under another name.
    async fn create(&self, ns: &BenchNamespace, name: &str) -> Result<()> {
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
async fn ready(ns: &BenchNamespace, prefix: &str, wanted: usize) -> Result<BTreeMap<String, String>> {
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

async fn delete(ns: &BenchNamespace, names: impl Iterator<Item = String>) -> Result<()> {
    let params = DeleteParams::default().grace_period(1);
    let pods = ns.pods();
    try_join_all(names.map(|name| {
        let (pods, params) = (pods.clone(), params.clone());
        async move { pods.delete(&name, &params).await.map(drop) }
    }))
    .await?;
    Ok(())
}

async fn starts(ns: &BenchNamespace, section: &mut Section) -> Result<()> {
    ns.install_python(json!({}))?;
    let manager = ns.manager(Reach::PodAddress).await?;
    let sample = manager.start(StartRequest::new("bench")).await?;
    let raw = ns.manifest(sample.handle()).await?;
    sample.shutdown().await?;
    let (mut ours, mut theirs, mut again) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=scaled(STARTS) {
        let begun = Instant::now();
        let kernel = manager.start(StartRequest::new("bench")).await?;
        let through_us = begun.elapsed();
        let begun = Instant::now();
        kernel.restart().await?;
        let restarted = begun.elapsed();
        kernel.shutdown().await?;
        let name = format!("raw-{round}");
        let begun = Instant::now();
        raw.create(ns, &name).await?;
        let pods = ready(ns, &name, 1).await?;
        let info = raw.connection(pods.into_values().next().unwrap_or_default())?;
        loop {
            // The kernel listens some time after its pod is ready, without an event.
            if tokio::net::TcpStream::connect((info.ip.as_str(), info.shell_port))
                .await
                .is_ok()
            {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Shell::Direct(Box::new(Direct::to_shell(&info).await?)).ask().await?;
        let by_hand = begun.elapsed();
        delete(ns, [name].into_iter()).await?;
        // The first round loads the image's files into the page cache.
        if round > 0 {
            ours.push(through_us);
            theirs.push(by_hand);
            again.push(restarted);
        }
    }
    manager.close(AtClose::EndKernels).await?;
    let (ours, theirs, again) = (Times::new(ours), Times::new(theirs), Times::new(again));
    section.table(&["start to first answer (ipykernel)", "runs", "p50", "p90"]);
    for (name, times) in [
        ("the same pod and Secret made by hand: ready, and one request", &theirs),
        ("kernelmux", &ours),
        ("kernelmux, a restart in place", &again),
    ] {
        section.row([
            name.to_owned(),
            times.runs().to_string(),
            time(times.median()),
            time(times.percentile(90)),
        ]);
    }
    let against = ours.median().as_secs_f64() / theirs.median().as_secs_f64();
    section.mark(
        "start against the pod by hand, p50",
        "≤ 1.1×",
        ratio(against),
        against <= 1.1,
    );
    Ok(())
}

async fn claims(ns: &BenchNamespace, section: &mut Section) -> Result<()> {
    ns.install_python(json!({"warm_pool": {"size": POOL}}))?;
    section.table(&["warm pool", "claims", "p50", "p90"]);
    for (reach, name) in [
        (Reach::PodAddress, "by address"),
        (Reach::PortForward, "by port-forward"),
    ] {
        let provider = ns.open(ns.client.clone(), reach).await?;
        let (mut claimed, mut answered) = (Vec::new(), Vec::new());
        let wanted = scaled(CLAIMS);
        let begun = Instant::now();
        while claimed.len() < wanted {
            if begun.elapsed() > DEADLINE {
                return Err("the pool does not fill".into());
            }
            ready(ns, "kernel-", POOL).await?;
            for _ in 0..POOL / 2 {
                let was_cold = Arc::new(AtomicUsize::new(0));
                let cold = Arc::clone(&was_cold);
                let progress = Progress::new(move |stage| {
                    if matches!(stage, LaunchStage::Cold(_)) {
                        cold.store(1, Ordering::Relaxed);
                    }
                });
                let begun = Instant::now();
                let kernel = provider
                    .launch(LaunchRequest::new(KernelId::random(), "bench"), progress)
                    .await?;
                let elapsed = begun.elapsed();
                Shell::Direct(Box::new(Direct::to_shell(&kernel.connection().await?).await?))
                    .ask()
                    .await?;
                if was_cold.load(Ordering::Relaxed) == 0 {
                    claimed.push(elapsed);
                    answered.push(begun.elapsed());
                }
                kernel.shutdown(Duration::ZERO).await?;
            }
        }
        let (claimed, answered) = (Times::new(claimed), Times::new(answered));
        for (what, times) in [("a claim", &claimed), ("a claim, until its first answer", &answered)] {
            section.row([
                format!("{what}, {name}"),
                times.runs().to_string(),
                time(times.median()),
                time(times.percentile(90)),
            ]);
        }
        section.mark(
            format!("warm claim {name}, p50"),
            "≤ 150 ms",
            time(claimed.median()),
            claimed.median() <= Duration::from_millis(150),
        );
    }
    // The provider removes the pool's pods, because the kernelspec has no pool now.
    ns.install_python(json!({}))?;
    let _provider = ns.open(ns.client.clone(), Reach::PodAddress).await?;
    wait_until_empty(ns).await
}

/// Waits until the namespace has no pods.
async fn wait_until_empty(ns: &BenchNamespace) -> Result<()> {
    let begun = Instant::now();
    while !ns.pods().list_metadata(&ListParams::default()).await?.items.is_empty() {
        if begun.elapsed() > DEADLINE {
            return Err("pods remain".into());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// A client that reads a kernel's log through the manager.
struct LogClient {
    attachment: Attachment,
}

impl LogClient {
    async fn ask(&mut self) -> Result<Duration> {
        let request = Message::new(KernelInfoRequest::default(), "bench");
        let begun = Instant::now();
        self.attachment.client().send(Channel::Shell, request.to_wire()).await?;
        loop {
            let block = self.attachment.next().await?.ok_or("the log has ended")?;
            for entry in block.entries().filter(|entry| entry.channel() == Channel::Shell) {
                if entry.origin() == Origin::Kernel && *entry.message().parent_ref()?.msg_id == *request.header.msg_id {
                    return Ok(begun.elapsed());
                }
            }
        }
    }
}

async fn messages(ns: &BenchNamespace, section: &mut Section) -> Result<()> {
    ns.install_python(json!({}))?;
    let wanted = scaled(MESSAGES);
    section.table(&[
        "one pod, three ways",
        "round trip p50",
        "p99",
        "against direct at the same time",
        "messages",
        "arrived",
    ]);
    let mut known = None;
    // One after the other: a kernel has one recorder.
    for (reach, name) in [
        (Reach::PodAddress, "kernelmux by address"),
        (Reach::PortForward, "kernelmux by port-forward"),
    ] {
        let manager = ns.manager(reach).await?;
        let kernel = match &known {
            None => manager.start(StartRequest::new("bench")).await?,
            Some((id, _)) => {
                manager.restore().await;
                manager.get(*id).ok_or("the restored kernel is not found")?
            }
        };
        if known.is_none() {
            known = Some((kernel.id(), kernel.handle().connection().await?));
        }
        let (_, info) = known.as_ref().ok_or("there is no kernel")?;
        let mut direct = Shell::Direct(Box::new(Direct::to_shell(info).await?));
        let mut logged = LogClient {
            attachment: kernel.attach("bench"),
        };
        let mut times: [Vec<Duration>; 2] = Default::default();
        for round in 0..scaled(REQUESTS) + 50 {
            let measured = [direct.ask().await?, logged.ask().await?];
            if round >= 50 {
                times
                    .iter_mut()
                    .zip(measured)
                    .for_each(|(times, time)| times.push(time));
            }
        }
        let [direct, logged] = times.map(Times::new);
        let mut row = |name: &str, times: &Times, (seconds, arrived): (f64, usize)| {
            section.row([
                name.to_owned(),
                time(times.median()),
                time(times.percentile(99)),
                ratio(times.median().as_secs_f64() / direct.median().as_secs_f64()),
                per_second(arrived as u64, seconds),
                format!("{arrived} of {wanted}"),
            ]);
        };
        if reach == Reach::PodAddress {
            let rate = flood(&kernel, wanted, CountFrom::Iopub(info)).await?;
            row("direct ZeroMQ to the pod's address", &direct, rate);
        }
        row(name, &logged, flood(&kernel, wanted, CountFrom::Log(&kernel)).await?);
        if reach == Reach::PodAddress {
            manager.close(AtClose::LeaveKernels).await?;
        } else {
            manager.close(AtClose::EndKernels).await?;
        }
    }
    section.note(
        "The messages are sent by jupyter_client's session in the kernel, one by one, while kernelmux records them: the \
         rate is the kernel's unless a reader slows it down. Direct: a bare subscriber also counts them.",
    );
    Ok(())
}

/// Where messages are counted.
enum CountFrom<'a> {
    Iopub(&'a ConnectionInfo),
    Log(&'a Arc<Kernel>),
}

/// Makes the kernel send `wanted` messages. Returns the seconds from the first to the last received one, and the number
/// of received ones.
async fn flood(kernel: &Arc<Kernel>, wanted: usize, source: CountFrom<'_>) -> Result<(f64, usize)> {
    let code = format!(
        "k = get_ipython().kernel\nfor i in range({wanted}):\n    k.session.send(k.iopub_socket, 'stream', {{'name': \
         'stdout', 'text': 'x' * 200}}, parent=k.get_parent())\nprint('the last')"
    );
    let (mut arrived, mut first) = (0, None);
    // Counts the messages before the last one.
    let mut count = |message: &jupyter_protocol::WireMessage| -> Result<Option<f64>> {
        if message.header_ref()?.msg_type != "stream" {
            return Ok(None);
        }
        let begun = *first.get_or_insert_with(Instant::now);
        if message.content().windows(8).any(|text| text == b"the last") {
            return Ok(Some(begun.elapsed().as_secs_f64()));
        }
        arrived += 1;
        Ok(None)
    };
    let seconds = match source {
        CountFrom::Iopub(info) => {
            let signer = info.signer()?;
            let mut iopub = IopubSubscriber::connect(&info.address(Channel::Iopub), DEADLINE).await?;
            let mut execution = kernel.execute(ExecuteRequest::new(code)).await?;
            let seconds = loop {
                let message = iopub.recv().await?;
                message.verify(&signer)?;
                if let Some(seconds) = count(&message)? {
                    break seconds;
                }
            };
            // Waits until all messages are recorded, so that the next run does not count them.
            while execution.next().await.is_some() {}
            seconds
        }
        CountFrom::Log(logged) => {
            let mut reader = logged.log().reader(logged.log().head());
            kernel.execute(ExecuteRequest::new(code)).await?;
            'reading: loop {
                let block = reader.next().await?.ok_or("the log has ended")?;
                for entry in block.entries().filter(|entry| entry.channel() == Channel::Iopub) {
                    if entry.origin() == Origin::Kernel
                        && let Some(seconds) = count(&entry.message())?
                    {
                        break 'reading seconds;
                    }
                }
            }
        }
    };
    Ok((seconds, arrived))
}

/// A kernel that only opens its sockets, because the benchmark measures pods.
const TINY: &str = "import json, socket, sys, time\n\
    ports = [value for name, value in json.load(open(sys.argv[1])).items() if name.endswith('_port')]\n\
    sockets = [socket.create_server(('', port)) for port in ports]\n\
    time.sleep(100000)\n";

async fn at_once(ns: &BenchNamespace, section: &mut Section) -> Result<()> {
    ns.install(&["python3", "-I", "-S", "-c", TINY, "{connection_file}"], json!({}))?;
    let calls = Arc::new(AtomicUsize::new(0));
    let provider = ns.open(counting_client(&ns.config, &calls)?, Reach::PodAddress).await?;
    let launch = || provider.launch(LaunchRequest::new(KernelId::random(), "bench"), Progress::ignored());
    let sample = launch().await?;
    let raw = ns.manifest(&*sample).await?;
    sample.shutdown(Duration::ZERO).await?;
    let wanted = scaled(AT_ONCE);
    let names = || (0..wanted).map(|index| format!("once-{index}"));
    let begun = Instant::now();
    try_join_all(names().map(|name| {
        let raw = &raw;
        async move { raw.create(ns, &name).await }
    }))
    .await?;
    ready(ns, "once-", wanted).await?;
    let by_hand = begun.elapsed();
    delete(ns, names()).await?;
    wait_until_empty(ns).await?;
    calls.store(0, Ordering::Relaxed);
    let begun = Instant::now();
    let kernels = try_join_all((0..wanted).map(|_| launch())).await?;
    let ours = begun.elapsed();
    let ended = join_all(kernels.iter().map(|kernel| kernel.shutdown(Duration::ZERO))).await;
    ended.into_iter().collect::<std::result::Result<Vec<_>, _>>()?;
    let a_kernel = calls.load(Ordering::Relaxed) as f64 / wanted as f64;
    section.table(&[
        "pods at once",
        "pods",
        "until all are ready",
        "against by hand",
        "API calls a kernel, start and end",
    ]);
    section.row([
        "the same pods and Secrets made by hand".to_owned(),
        wanted.to_string(),
        time(by_hand),
        ratio(1.0),
        "–".to_owned(),
    ]);
    section.row([
        "kernelmux".to_owned(),
        wanted.to_string(),
        time(ours),
        ratio(ours.as_secs_f64() / by_hand.as_secs_f64()),
        format!("{a_kernel:.2}"),
    ]);
    section.note(
        "Their kernel is a Python that opens five sockets and can do nothing else. By hand a pod counts when the API server \
         says that it is ready, through kernelmux when its sockets are open.",
    );
    section.mark("API calls a kernel", "≤ 6", format!("{a_kernel:.2}"), a_kernel <= 6.0);
    Ok(())
}

/// Creates a client that counts its calls except watches, which all kernels share.
fn counting_client(config: &Config, calls: &Arc<AtomicUsize>) -> Result<Client> {
    let calls = Arc::clone(calls);
    let layer = MapRequestLayer::new(move |request: http::Request<Body>| {
        if !request.uri().query().is_some_and(|query| query.contains("watch=")) {
            calls.fetch_add(1, Ordering::Relaxed);
        }
        request
    });
    Ok(ClientBuilder::try_from(config.clone())?.with_layer(&layer).build())
}

/// A fake node that reports its pods as running at this machine's address.
struct FakeNode {
    nodes: Api<Node>,
    tasks: Vec<AbortHandle>,
}

impl FakeNode {
    async fn start(ns: &BenchNamespace) -> Result<Self> {
        let nodes: Api<Node> = Api::all(ns.client.clone());
        let node = json!({"metadata": {"name": ns.namespace, "labels": {FAKE: ns.namespace}}});
        nodes
            .create(&PostParams::default(), &serde_json::from_value(node)?)
            .await?;
        report_ready(&nodes, &ns.namespace).await?;
        // The cluster schedules pods to the node once it has removed the node's taints.
        let mut watch = watcher(nodes.clone(), watcher::Config::default()).boxed();
        let admitted = async {
            while let Some(event) = watch.try_next().await? {
                if let watcher::Event::Apply(node) | watcher::Event::InitApply(node) = event
                    && node.metadata.name.as_deref() == Some(&ns.namespace)
                    && node
                        .spec
                        .and_then(|spec| spec.taints)
                        .is_none_or(|taints| taints.is_empty())
                {
                    return Ok(());
                }
            }
            Result::Err("the watch ended".into())
        };
        tokio::time::timeout(DEADLINE, admitted).await??;
        let mut tasks = Vec::new();
        for port in PORTS {
            let listener = TcpListener::bind(("127.0.0.1", port)).await?;
            let serving = tokio::spawn(async move { while listener.accept().await.is_ok() {} });
            tasks.push(serving.abort_handle());
        }
        let pods = ns.pods();
        let kubelet = tokio::spawn(async move {
            let mut watch = watcher(pods.clone(), watcher::Config::default()).boxed();
            while let Ok(Some(event)) = watch.try_next().await {
                let (watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) = event else {
                    continue;
                };
                let name = pod.metadata.name.clone().unwrap_or_default();
                let is_bound = pod.spec.is_some_and(|spec| spec.node_name.is_some());
                let is_new = pod
                    .status
                    .is_none_or(|status| status.phase.as_deref() == Some("Pending"));
                if pod.metadata.deletion_timestamp.is_some() {
                    let _ = pods.delete(&name, &DeleteParams::default().grace_period(0)).await;
                } else if is_bound && is_new {
                    let now = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
                    let status = json!({"status": {"phase": "Running", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}],
                        "containerStatuses": [{"name": "kernel", "ready": true, "restartCount": 0, "image": "fake",
                            "imageID": "fake", "started": true, "state": {"running": {"startedAt": now}}}]}});
                    let _ = pods
                        .patch_status(&name, &PatchParams::default(), &Patch::Merge(status))
                        .await;
                }
            }
        });
        tasks.push(kubelet.abort_handle());
        let (alive, name) = (nodes.clone(), ns.namespace.clone());
        let heartbeat = tokio::spawn(async move {
            loop {
                tokio::time::sleep(HEARTBEAT).await;
                if report_ready(&alive, &name).await.is_err() {
                    break;
                }
            }
        });
        tasks.push(heartbeat.abort_handle());
        Ok(Self { nodes, tasks })
    }

    async fn remove(self, ns: &BenchNamespace) -> Result<()> {
        self.tasks.iter().for_each(AbortHandle::abort);
        self.nodes.delete(&ns.namespace, &DeleteParams::default()).await?;
        Ok(())
    }
}

/// Reports a node as ready and with free capacity, as a kubelet does periodically.
async fn report_ready(nodes: &Api<Node>, name: &str) -> Result<()> {
    let room = json!({"cpu": "1000", "memory": "1000Gi", "pods": "10000"});
    let now = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
    let status = json!({"status": {"capacity": room, "allocatable": room, "conditions": [
        {"type": "Ready", "status": "True", "reason": "Fake", "message": "", "lastHeartbeatTime": now,
            "lastTransitionTime": now},
    ]}});
    nodes
        .patch_status(name, &PatchParams::default(), &Patch::Merge(status))
        .await?;
    Ok(())
}

async fn many(ns: &BenchNamespace, section: &mut Section) -> Result<()> {
    let wanted = scaled(MANY);
    ns.install(
        &["kernel", "{connection_file}"],
        json!({"node_selector": {FAKE: ns.namespace}, "writable_connection_file": false}),
    )?;
    let node = FakeNode::start(ns).await?;
    let measured = async {
        let calls = Arc::new(AtomicUsize::new(0));
        let provider = ns.open(counting_client(&ns.config, &calls)?, Reach::PodAddress).await?;
        let launch = || provider.launch(LaunchRequest::new(KernelId::random(), "bench"), Progress::ignored());
        let warm = launch().await?;
        warm.shutdown(Duration::ZERO).await?;
        calls.store(0, Ordering::Relaxed);
        let before = process::memory(std::process::id())?;
        let begun = Instant::now();
        let mut kernels = Vec::new();
        while kernels.len() < wanted {
            let some = (wanted - kernels.len()).min(100);
            kernels.extend(try_join_all((0..some).map(|_| launch())).await?);
        }
        let started = begun.elapsed();
        let after = process::memory(std::process::id())?;
        let calls_each = calls.load(Ordering::Relaxed) as f64 / wanted as f64;
        // Running kernels must cause no API calls.
        calls.store(0, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(10)).await;
        let idle = calls.load(Ordering::Relaxed);
        let a_kernel = after.saturating_sub(before) / wanted as u64;
        section.table(&[
            "kernels",
            "started in",
            "API calls a kernel",
            "in 10 s while they run",
            "memory a kernel",
        ]);
        section.row([
            wanted.to_string(),
            time(started),
            format!("{calls_each:.2}"),
            idle.to_string(),
            bytes(a_kernel),
        ]);
        section.mark("API calls in 10 s while 1,000 run", "0", idle.to_string(), idle == 0);
        section.note(
            "The thousand are real pods of the real API server and scheduler, on a node that does not exist: the benchmark \
             says of them that they run. Memory is this process's resident set, which holds provider, watch and handles, \
             above what it was with one kernel; no client is connected.",
        );
        for kernels in kernels.chunks(100) {
            let ended = join_all(kernels.iter().map(|kernel| kernel.shutdown(Duration::ZERO))).await;
            ended.into_iter().collect::<std::result::Result<Vec<_>, _>>()?;
        }
        Ok(())
    };
    let measured = measured.await;
    node.remove(ns).await?;
    measured
}
