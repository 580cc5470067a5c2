//! The calls to the cluster that kernels are started, signalled and ended with.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jupyter_protocol::ConnectionInfo;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kernel_provider::KernelId;
use kernel_provider::provider::ProviderError;
use kube::api::{
    AttachParams, AttachedProcess, DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams, Preconditions,
};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api_error::{CallError, call};
use crate::phase::{self, PodPhase};
use crate::pod_cache::{CachedPod, PodCache};
use crate::route::{PortForward, Route};
use crate::{AbortOnDrop, K8sConfig, names};

/// The most of a kernel's output that is told, in bytes and in lines.
const OUTPUT_BYTES: i64 = 64 * 1024;
const OUTPUT_LINES: i64 = 400;
/// How long the output may be waited for that an error is told with.
const ERROR_OUTPUT_DEADLINE: Duration = Duration::from_secs(5);
/// How long a pod may take to be gone beyond the grace that it has.
const DELETION_DEADLINE: Duration = Duration::from_secs(30);
/// How long it is tried to remove what a launch left that was given up.
const CLEANUP_DEADLINE: Duration = Duration::from_secs(600);
/// How long a call that was not answered may still be carried out. An API server gives up after a minute.
const LATE_CALL_WINDOW: Duration = Duration::from_secs(120);

/// How long is waited before a pod that was refused since others changed the quota is asked for again: ever longer.
const CREATE_PAUSE: Duration = Duration::from_millis(50);
const LAST_CREATE_PAUSE: Duration = Duration::from_secs(2);

/// Sends a signal to the processes that were started with the connection file. The brackets keep it from finding itself.
const SIGNAL: &str = r#"
found=1
for file in $(grep -sl "/run/kernelmux[-rw]*/[c]onnection\.json" /proc/[0-9]*/cmdline); do
    folder=${file%/cmdline}
    kill -s "$1" "${folder##*/}" && found=0
done
exit $found
"#;

/// Who claims a pod.
#[derive(Clone)]
pub(crate) struct Claim {
    pub(crate) id: KernelId,
    /// A word of this claim only, by which it is known again where the API server's answer is lost.
    pub(crate) token: String,
    pub(crate) owner: Option<String>,
}

/// What the kernels of one provider share.
pub(crate) struct Cluster {
    pub(crate) config: K8sConfig,
    pub(crate) pods: Api<Pod>,
    secrets: Api<Secret>,
    pub(crate) pod_cache: Arc<PodCache>,
    forwards: bool,
    /// What clears away after launches that were given up.
    pub(crate) cleanup: TaskTracker,
    /// Ends the wait for pods that may still come of those.
    pub(crate) stop_late_cleanup: CancellationToken,
    _watches: Vec<AbortOnDrop>,
}

impl Cluster {
    pub(crate) async fn open(client: Client, config: K8sConfig) -> Result<Self, ProviderError> {
        let (pod_cache, watches) = PodCache::open(&client, &config.namespace, &names::selector(&config.name)).await?;
        Ok(Self {
            pods: Api::namespaced(client.clone(), &config.namespace),
            secrets: Api::namespaced(client, &config.namespace),
            pod_cache,
            forwards: config.reach.forwards(),
            config,
            cleanup: TaskTracker::new(),
            stop_late_cleanup: CancellationToken::new(),
            _watches: watches,
        })
    }

    pub(crate) fn secrets(&self) -> &Api<Secret> {
        &self.secrets
    }

    /// The way to a pod that runs at this address.
    pub(crate) fn route(&self, pod: &Pod, ip: &str, file: &ConnectionInfo) -> Result<Route, ProviderError> {
        if !self.forwards {
            return Ok(Route::PodAddress(ip.to_owned()));
        }
        let name = names::name(pod);
        let forward = PortForward::open(&self.pods, name, file, self.config.socket_dir.as_deref());
        let forward = forward.map_err(|error| ProviderError::failed("make the sockets of a port-forward", error))?;
        Ok(Route::PortForward(Box::new(forward)))
    }

    /// Whether the Secret of a pod is there.
    pub(crate) async fn has_secret(&self, pod: &Pod) -> Result<bool, ProviderError> {
        let name = secret_name(pod);
        match call(self.secrets.get_metadata(&name)).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error.failed(format!("look for the Secret {name}"))),
        }
    }

    /// What the Secret of a pod holds.
    pub(crate) async fn secret_of(
        &self,
        pod: &Pod,
    ) -> Result<(ConnectionInfo, BTreeMap<String, ByteString>), ProviderError> {
        let name = secret_name(pod);
        let action = || format!("read the Secret {name}");
        let secret = call(self.secrets.get(&name))
            .await
            .map_err(|error| error.failed(action()))?;
        let data = secret.data.unwrap_or_default();
        let file = data.get(names::CONNECTION_KEY).map(|file| file.0.as_slice());
        // What is wrong with it is not told: that could show the key.
        let connection = file
            .and_then(|file| serde_json::from_slice(file).ok())
            .ok_or_else(|| ProviderError::failed(action(), "it holds no connection file; shut the kernel down"))?;
        Ok((connection, data))
    }

    /// Whether other pods of this kernel are there than this one. Asked of the API server itself: the watch may lag.
    pub(crate) async fn has_rivals(&self, id: KernelId, uid: &str) -> Result<bool, CallError> {
        let selector = format!("{},{}={id}", names::selector(&self.config.name), names::KERNEL_ID);
        let pods = call(self.pods.list(&ListParams::default().labels(&selector))).await?;
        let runs = |pod: &&Pod| {
            matches!(
                phase::assess(pod, &[]),
                PodPhase::Starting(_) | PodPhase::Running { .. }
            )
        };
        Ok(pods.items.iter().filter(runs).any(|pod| names::uid(pod) != uid))
    }

    /// Makes a pod that has this mark.
    pub(crate) async fn create(pods: &Api<Pod>, pod: &Pod, mark: &(&'static str, String)) -> Result<Pod, CallError> {
        let mut pause = CREATE_PAUSE;
        loop {
            let made = call(pods.create(&PostParams::default(), pod)).await;
            match made {
                // The client repeats a call that a proxy has answered in the API server's place: the first may have
                // made it.
                Err(error) if error.already_exists() => {
                    let there = call(pods.get_opt(names::name(pod))).await;
                    let own = there.ok().flatten();
                    let own = own.filter(|there| has_mark(there, mark));
                    return own.ok_or(error);
                }
                // Others have used the same quota just then.
                Err(error) if error.is_conflict() && pause <= LAST_CREATE_PAUSE => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                made => return made,
            }
        }
    }

    /// Makes a pod of a pool the kernel's own. The API server carries it out only if the pod is in the pool still: it is
    /// handed out once, however many ask for it.
    pub(crate) async fn claim(&self, pod: &Pod, pool: &str, claim: &Claim) -> Result<Pod, CallError> {
        let path = |kind: &str, name: &str| format!("/metadata/{kind}/{}", name.replace('/', "~1"));
        let mut steps = vec![
            json!({"op": "test", "path": "/metadata/uid", "value": names::uid(pod)}),
            json!({"op": "test", "path": path("labels", names::POOL), "value": pool}),
            json!({"op": "remove", "path": path("labels", names::POOL)}),
            json!({"op": "add", "path": path("labels", names::KERNEL_ID), "value": claim.id}),
            json!({"op": "add", "path": path("labels", names::EG_KERNEL_ID), "value": claim.id}),
            json!({"op": "add", "path": path("annotations", names::LAUNCHED), "value": names::launched_now()}),
            json!({"op": "add", "path": path("annotations", names::CLAIM), "value": claim.token}),
        ];
        if let Some(owner) = &claim.owner {
            steps.push(json!({"op": "add", "path": path("annotations", names::OWNER), "value": owner}));
        }
        let steps = serde_json::from_value(Value::Array(steps)).map_err(kube::Error::SerdeError)?;
        call(
            self.pods
                .patch(names::name(pod), &PatchParams::default(), &Patch::<()>::Json(steps)),
        )
        .await
    }

    /// The last of what the kernel wrote.
    pub(crate) async fn output(&self, pod: &Pod) -> Result<String, ProviderError> {
        let name = names::name(pod);
        let params = LogParams {
            container: Some(names::CONTAINER.to_owned()),
            tail_lines: Some(OUTPUT_LINES),
            limit_bytes: Some(OUTPUT_BYTES),
            ..LogParams::default()
        };
        call(self.pods.logs(name, &params))
            .await
            .map_err(|error| error.failed(format!("read the output of the pod {name}")))
    }

    /// The same for an error's text: empty where it cannot be had soon.
    pub(crate) async fn output_for_error(&self, pod: &Pod) -> String {
        match tokio::time::timeout(ERROR_OUTPUT_DEADLINE, self.output(pod)).await {
            Ok(Ok(output)) => output,
            Ok(Err(error)) => {
                tracing::debug!(%error, "a kernel's output is not known");
                String::new()
            }
            Err(_) => String::new(),
        }
    }

    /// Runs a command in a pod.
    pub(crate) async fn exec<const N: usize>(
        &self,
        pod: &Pod,
        command: [&str; N],
        params: &AttachParams,
    ) -> Result<AttachedProcess, ProviderError> {
        let name = names::name(pod);
        call(self.pods.exec(name, command, params))
            .await
            .map_err(|error| error.failed(format!("run a command in the pod {name}")))
    }

    /// Signals the kernel by running a command in its container.
    pub(crate) async fn signal(&self, pod: &Pod, signal: &str) -> Result<(), ProviderError> {
        let name = names::name(pod);
        let action = || format!("signal the kernel in the pod {name}");
        let params = AttachParams::default()
            .container(names::CONTAINER)
            .stdout(false)
            .stderr(true);
        let signalling = async {
            let mut process = self
                .pods
                .exec(name, ["sh", "-c", SIGNAL, "sh", signal], &params)
                .await?;
            let status = process.take_status();
            let said = match process.stderr() {
                Some(stderr) => read_some(stderr).await,
                None => String::new(),
            };
            let status = match status {
                Some(status) => status.await,
                None => None,
            };
            Ok((status, said))
        };
        let (status, said) = call(signalling).await.map_err(|error| error.failed(action()))?;
        match status {
            Some(status) if status.status.as_deref() == Some("Success") => Ok(()),
            status => {
                let told = status.and_then(|status| status.message).unwrap_or_default();
                let advice =
                    "its image must have sh, grep and kill; interrupt_mode \"message\" in kernel.json needs none";
                Err(ProviderError::failed(
                    action(),
                    format!("{} {told} ({advice})", said.trim()),
                ))
            }
        }
    }

    /// Asks for the removal of this very pod. One that is gone, or has been replaced, is no error.
    pub(crate) async fn delete(&self, pod: &Pod, grace: Duration) -> Result<(), ProviderError> {
        let name = names::name(pod);
        let seconds = u32::try_from(grace.as_millis().div_ceil(1000)).unwrap_or(u32::MAX);
        let params = DeleteParams {
            grace_period_seconds: Some(seconds),
            preconditions: Some(Preconditions {
                uid: pod.metadata.uid.clone(),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        self.delete_with(name, &params).await.map(drop)
    }

    /// Removes a pod, without grace, if nobody has changed it since it was seen: one that was claimed meanwhile stays.
    /// Whether it is being removed, or gone.
    pub(crate) async fn delete_unchanged(&self, pod: &Pod) -> Result<bool, ProviderError> {
        let params = DeleteParams {
            grace_period_seconds: Some(1),
            preconditions: Some(Preconditions {
                uid: pod.metadata.uid.clone(),
                resource_version: pod.metadata.resource_version.clone(),
            }),
            ..DeleteParams::default()
        };
        self.delete_with(names::name(pod), &params).await
    }

    async fn delete_with(&self, name: &str, params: &DeleteParams) -> Result<bool, ProviderError> {
        match call(self.pods.delete(name, params)).await {
            Err(error) if error.is_conflict() => Ok(false),
            Err(error) if !error.is_not_found() => Err(error.failed(format!("delete the pod {name}"))),
            _ => Ok(true),
        }
    }

    /// Removes this very pod and waits until it is gone, which is when its node has ended its processes. Without grace
    /// they are killed at once; a pod whose node does not answer is then given up.
    pub(crate) async fn end(
        &self,
        pod: &Pod,
        grace: Duration,
        updates: &mut watch::Receiver<CachedPod>,
    ) -> Result<(), ProviderError> {
        let name = names::name(pod);
        // With none at all the pod would be gone from the API before its processes are.
        self.delete(pod, grace.max(Duration::from_secs(1))).await?;
        let is_gone = |cached: &CachedPod| cached.is_absent(names::uid(pod));
        let within = grace.saturating_add(DELETION_DEADLINE);
        if tokio::time::timeout(within, updates.wait_for(is_gone)).await.is_ok() {
            return Ok(());
        }
        if grace.is_zero() {
            self.delete(pod, Duration::ZERO).await?;
            if tokio::time::timeout(DELETION_DEADLINE, updates.wait_for(is_gone))
                .await
                .is_ok()
            {
                return Ok(());
            }
        }
        let reason = "it is still there; its node may not answer (a shutdown without grace gives it up)";
        Err(ProviderError::failed(format!("end the pod {name}"), reason))
    }

    /// Removes the pod of this name if it has the mark: what an attempt to start a kernel left, whether it is known to
    /// have left anything or not.
    pub(crate) async fn clean_up(&self, id: KernelId, name: &str, mark: &(&'static str, String)) {
        let deadline = Instant::now() + CLEANUP_DEADLINE;
        let mut pause = Duration::from_millis(200);
        let mut updates = self.pod_cache.subscribe(id);
        loop {
            let cleared = match call(self.pods.get_opt(name)).await {
                Ok(Some(pod)) if has_mark(&pod, mark) => self.end(&pod, Duration::ZERO, &mut updates).await,
                Ok(_) => Ok(()),
                Err(error) => Err(error.failed(format!("look for the pod {name}"))),
            };
            let Err(error) = cleared else {
                return;
            };
            if Instant::now() > deadline {
                tracing::error!(kernel = %id, %error, "a launch that was given up left a pod");
                return;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(10));
        }
    }

    /// The same for a pod that is not there yet and may come: the call for it was not answered.
    pub(crate) async fn clean_up_late(&self, id: KernelId, name: &str, mark: &(&'static str, String)) {
        let mut updates = self.pod_cache.subscribe(id);
        let is_it = |pod: &Arc<Pod>| names::name(pod) == name && has_mark(pod, mark);
        let comes = async {
            let seen = tokio::time::timeout(
                LATE_CALL_WINDOW,
                updates.wait_for(|cached| cached.present().is_some_and(is_it)),
            );
            seen.await.is_ok_and(|seen| seen.is_ok())
        };
        if self.stop_late_cleanup.run_until_cancelled(comes).await == Some(true) {
            self.clean_up(id, name, mark).await;
        }
    }
}

/// Whether it is what the attempt with this mark made.
fn has_mark(pod: &Pod, mark: &(&'static str, String)) -> bool {
    names::annotation(pod, mark.0) == Some(&mark.1)
}

fn secret_name(pod: &Pod) -> String {
    let attempt = names::annotation(pod, names::ATTEMPT).unwrap_or_default();
    names::secret(names::name(pod), attempt)
}

/// At most some kilobytes of what a command says.
async fn read_some(reader: impl tokio::io::AsyncRead + Unpin) -> String {
    let mut bytes = Vec::new();
    let _ = tokio::io::AsyncReadExt::read_to_end(&mut tokio::io::AsyncReadExt::take(reader, 4096), &mut bytes).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http::{Method, Request, Response};
    use kube::client::Body;

    use super::*;

    const MARK: (&str, &str) = (names::ATTEMPT, "mine");

    fn pod(attempt: &str) -> Value {
        json!({"metadata": {"name": "kernel-1", "annotations": {names::ATTEMPT: attempt}}})
    }

    /// The pods of an API server that answers one after the other so, and what was asked of it.
    fn answering(answers: Vec<(u16, Value)>) -> (Api<Pod>, Arc<Mutex<Vec<Method>>>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let next = Arc::new(AtomicUsize::new(0));
        let service = tower::service_fn({
            let asked = Arc::clone(&asked);
            move |request: Request<Body>| {
                crate::lock(&asked).push(request.method().clone());
                let (status, body) = answers[next.fetch_add(1, Ordering::Relaxed)].clone();
                let body = Body::from(serde_json::to_vec(&body).unwrap());
                let response = Response::builder().status(status).body(body);
                async move { Ok::<_, tower::BoxError>(response.unwrap()) }
            }
        });
        (Api::namespaced(Client::new(service, "test"), "test"), asked)
    }

    fn conflict(reason: &str) -> (u16, Value) {
        (
            409,
            json!({"status": "Failure", "reason": reason, "message": reason, "code": 409}),
        )
    }

    async fn create(answers: Vec<(u16, Value)>) -> (Result<Pod, CallError>, Vec<Method>) {
        let (pods, asked) = answering(answers);
        let wanted = serde_json::from_value(pod(MARK.1)).unwrap();
        let made = Cluster::create(&pods, &wanted, &(MARK.0, MARK.1.to_owned())).await;
        let asked = crate::lock(&asked).clone();
        (made, asked)
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_a_repeated_call_finds_made_is_known_by_its_mark() {
        let (made, asked) = create(vec![conflict("AlreadyExists"), (200, pod("mine"))]).await;
        made.unwrap();
        assert_eq!(asked, [Method::POST, Method::GET]);
        let (made, _) = create(vec![conflict("AlreadyExists"), (200, pod("another's"))]).await;
        assert!(made.unwrap_err().already_exists());
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_comes_after_it_was_given_up_is_removed() {
        let id = KernelId::random();
        let late = |attempt: &str| {
            let mut pod = pod(attempt);
            pod["metadata"]["uid"] = attempt.into();
            pod["metadata"]["labels"] = json!({ names::KERNEL_ID: id });
            pod
        };
        let seen = |attempt: &str| serde_json::from_value(late(attempt)).unwrap();
        let (pods, asked) = answering(vec![(200, late("mine")), (200, late("mine"))]);
        let pod_cache = Arc::new(PodCache::default());
        let cluster = Cluster {
            config: K8sConfig::new("test"),
            secrets: Api::namespaced(pods.clone().into_client(), "test"),
            pods,
            pod_cache: pod_cache.clone(),
            forwards: false,
            cleanup: TaskTracker::new(),
            stop_late_cleanup: CancellationToken::new(),
            _watches: Vec::new(),
        };
        let mark = (MARK.0, MARK.1.to_owned());
        let cluster_does = async {
            // Another's pod of this name is not it.
            pod_cache.upsert(seen("another's"));
            tokio::time::sleep(LATE_CALL_WINDOW / 2).await;
            assert!(crate::lock(&asked).is_empty());
            pod_cache.remove(seen("another's"));
            pod_cache.upsert(seen("mine"));
            while crate::lock(&asked).len() < 2 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            pod_cache.remove(seen("mine"));
        };
        tokio::join!(cluster.clean_up_late(id, "kernel-1", &mark), cluster_does);
        assert_eq!(*crate::lock(&asked), [Method::GET, Method::DELETE]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_quota_that_others_use_too_is_asked_again() {
        let (made, asked) = create(vec![conflict("Conflict"), conflict("Conflict"), (201, pod("mine"))]).await;
        made.unwrap();
        assert_eq!(asked.len(), 3);
        let (made, asked) = create(vec![conflict("Conflict"); 99]).await;
        assert!(made.unwrap_err().is_conflict() && asked.len() < 10);
    }
}
