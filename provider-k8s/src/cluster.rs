//! The API calls that start, signal and end kernels.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jupyter_protocol::{ConnectionInfo, KernelId};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kernel_provider::ProviderError;
use kube::api::{
    AttachParams, AttachedProcess, DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams, Preconditions,
};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDrop, TaskTracker};

use crate::api_error::{CallError, call};
use crate::phase::{self, PodPhase};
use crate::pod_cache::{CachedPod, PodCache};
use crate::route::{PortForward, Route};
use crate::{K8sOptions, names};

/// Limits on the kernel output that is read, in bytes and in lines.
const OUTPUT_BYTES: i64 = 64 * 1024;
const OUTPUT_LINES: i64 = 400;
/// Time limit for reading the output that goes into an error.
const ERROR_OUTPUT_DEADLINE: Duration = Duration::from_secs(5);
/// How long a pod's deletion may take beyond its grace period.
const DELETION_DEADLINE: Duration = Duration::from_secs(30);
/// How long cleanup of a cancelled launch is retried.
const CLEANUP_DEADLINE: Duration = Duration::from_secs(600);
/// How long an unanswered call may still be carried out. An API server times out after one minute.
const LATE_CALL_WINDOW: Duration = Duration::from_secs(120);

/// Pause before a pod's creation is first retried after a concurrent change of the quota. It is doubled for each
/// further retry, up to [`LAST_CREATE_PAUSE`].
const FIRST_CREATE_PAUSE: Duration = Duration::from_millis(50);
const LAST_CREATE_PAUSE: Duration = Duration::from_secs(2);

/// Sends a signal to the processes whose command line contains the connection file's path. The brackets keep the
/// pattern from matching the script itself.
const SIGNAL: &str = r#"
found=1
for file in $(grep -sl "/run/kernelmux[-rw]*/[c]onnection\.json" /proc/[0-9]*/cmdline); do
    folder=${file%/cmdline}
    kill -s "$1" "${folder##*/}" && found=0
done
exit $found
"#;

/// A kernel's claim on a warm pod.
#[derive(Clone)]
pub(crate) struct Claim {
    pub(crate) id: KernelId,
    /// Random token of this claim. It identifies a claimed pod after the API server's answer was lost.
    pub(crate) token: String,
    pub(crate) owner: Option<String>,
}

/// State shared by the kernels of one provider.
pub(crate) struct Cluster {
    pub(crate) config: K8sOptions,
    pub(crate) pods: Api<Pod>,
    secrets: Api<Secret>,
    pub(crate) pod_cache: Arc<PodCache>,
    forwards: bool,
    /// Cleanup tasks of cancelled launches.
    pub(crate) cleanup: TaskTracker,
    /// Cancels waiting for pods that a cancelled launch may still create.
    pub(crate) stop_late_cleanup: CancellationToken,
    _watches: Vec<AbortOnDrop>,
}

impl Cluster {
    pub(crate) async fn open(client: Client, config: K8sOptions) -> Result<Self, ProviderError> {
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

    /// Opens a route to a pod that runs at this address.
    pub(crate) fn route(&self, pod: &Pod, ip: &str, file: &ConnectionInfo) -> Result<Route, ProviderError> {
        if !self.forwards {
            return Ok(Route::PodAddress(ip.to_owned()));
        }
        let name = names::name(pod);
        let forward = PortForward::open(&self.pods, name, file, self.config.socket_dir.as_deref());
        let forward = forward.map_err(|error| ProviderError::failed("create the sockets of a port-forward", error))?;
        Ok(Route::PortForward(Box::new(forward)))
    }

    /// Whether the pod's Secret exists.
    pub(crate) async fn has_secret(&self, pod: &Pod) -> Result<bool, ProviderError> {
        let name = secret_name(pod);
        match call(self.secrets.get_metadata(&name)).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error.failed(format!("look for the Secret {name}"))),
        }
    }

    /// Reads the connection file and all data from the pod's Secret.
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
        // The parse error is left out because it could reveal the key.
        let connection = file.and_then(|file| serde_json::from_slice(file).ok()).ok_or_else(|| {
            ProviderError::failed(action(), "it contains no valid connection file; shut the kernel down")
        })?;
        Ok((connection, data))
    }

    /// Whether the kernel has other starting or running pods than the one with this UID.
    ///
    /// Lists the pods, because the watch may lag behind.
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

    /// Creates a pod that carries the annotation `mark`.
    pub(crate) async fn create(pods: &Api<Pod>, pod: &Pod, mark: &(&'static str, String)) -> Result<Pod, CallError> {
        let mut pause = FIRST_CREATE_PAUSE;
        loop {
            let made = call(pods.create(&PostParams::default(), pod)).await;
            match made {
                // The client retries a call after a proxy error, and the first attempt may have created the pod.
                Err(error) if error.already_exists() => {
                    let there = call(pods.get_opt(names::name(pod))).await;
                    let own = there.ok().flatten();
                    let own = own.filter(|there| has_mark(there, mark));
                    return own.ok_or(error);
                }
                // A concurrent change of the same quota.
                Err(error) if error.is_conflict() && pause <= LAST_CREATE_PAUSE => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                made => return made,
            }
        }
    }

    /// Claims a warm pod for a kernel.
    ///
    /// The patch only succeeds while the pod is still in the pool. So a pod is handed out once, even with concurrent
    /// claims.
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

    /// Reads the end of the kernel's output.
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

    /// Reads the end of the kernel's output for an error message. Returns an empty string if it cannot be read in time.
    pub(crate) async fn output_for_error(&self, pod: &Pod) -> String {
        match tokio::time::timeout(ERROR_OUTPUT_DEADLINE, self.output(pod)).await {
            Ok(Ok(output)) => output,
            Ok(Err(error)) => {
                tracing::debug!(%error, "cannot read a kernel's output");
                String::new()
            }
            Err(_) => String::new(),
        }
    }

    /// Runs a command in the pod's container.
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
            let stderr = match process.stderr() {
                Some(stderr) => read_some(stderr).await,
                None => String::new(),
            };
            let status = match status {
                Some(status) => status.await,
                None => None,
            };
            Ok((status, stderr))
        };
        let (status, stderr) = call(signalling).await.map_err(|error| error.failed(action()))?;
        match status {
            Some(status) if status.status.as_deref() == Some("Success") => Ok(()),
            status => {
                let message = status.and_then(|status| status.message).unwrap_or_default();
                let advice = "the image must contain sh, grep and kill; interrupt_mode \"message\" needs none of them";
                Err(ProviderError::failed(
                    action(),
                    format!("{} {message} ({advice})", stderr.trim()),
                ))
            }
        }
    }

    /// Deletes the pod with this UID. Does nothing if it is gone or was replaced.
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

    /// Deletes a pod if it has not changed since `pod` was read, so a pod that was claimed since then stays.
    ///
    /// Returns whether the pod is gone or being deleted.
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

    /// Deletes the pod with this UID and waits until it is gone, that is, until its node has ended its processes.
    ///
    /// Without grace the processes are killed at once. If the node does not answer then, the pod is removed from the
    /// API only.
    pub(crate) async fn end(
        &self,
        pod: &Pod,
        grace: Duration,
        updates: &mut watch::Receiver<CachedPod>,
    ) -> Result<(), ProviderError> {
        let name = names::name(pod);
        // With a grace period of zero the pod would disappear from the API before its processes end.
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
        let reason =
            "the pod still exists; its node may be unreachable (a shutdown without grace removes the pod anyway)";
        Err(ProviderError::failed(format!("end the pod {name}"), reason))
    }

    /// Deletes the pod that a failed or cancelled launch may have left: the one with this name, if it carries `mark`.
    ///
    /// Retries failed calls for [`CLEANUP_DEADLINE`].
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
                tracing::error!(kernel = %id, %error, "cannot remove the pod of a cancelled launch");
                return;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(10));
        }
    }

    /// Deletes the pod with this name and `mark` if it appears later, after an unanswered call.
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

/// Whether the pod was created or claimed by the attempt with this mark.
fn has_mark(pod: &Pod, mark: &(&'static str, String)) -> bool {
    names::annotation(pod, mark.0) == Some(&mark.1)
}

fn secret_name(pod: &Pod) -> String {
    let attempt = names::annotation(pod, names::ATTEMPT).unwrap_or_default();
    names::secret(names::name(pod), attempt)
}

/// Reads at most 4 KiB.
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

    /// An API server that gives these answers in turn, and the methods of the requests that it received.
    fn answering(answers: Vec<(u16, Value)>) -> (Api<Pod>, Arc<Mutex<Vec<Method>>>) {
        let methods = Arc::new(Mutex::new(Vec::new()));
        let next = Arc::new(AtomicUsize::new(0));
        let service = tower::service_fn({
            let methods = Arc::clone(&methods);
            move |request: Request<Body>| {
                crate::lock(&methods).push(request.method().clone());
                let (status, body) = answers[next.fetch_add(1, Ordering::Relaxed)].clone();
                let body = Body::from(serde_json::to_vec(&body).unwrap());
                let response = Response::builder().status(status).body(body);
                async move { Ok::<_, tower::BoxError>(response.unwrap()) }
            }
        });
        (Api::namespaced(Client::new(service, "test"), "test"), methods)
    }

    fn conflict(reason: &str) -> (u16, Value) {
        (
            409,
            json!({"status": "Failure", "reason": reason, "message": reason, "code": 409}),
        )
    }

    async fn create(answers: Vec<(u16, Value)>) -> (Result<Pod, CallError>, Vec<Method>) {
        let (pods, methods) = answering(answers);
        let wanted = serde_json::from_value(pod(MARK.1)).unwrap();
        let made = Cluster::create(&pods, &wanted, &(MARK.0, MARK.1.to_owned())).await;
        let methods = crate::lock(&methods).clone();
        (made, methods)
    }

    #[tokio::test(start_paused = true)]
    async fn a_retried_create_recognizes_its_own_pod_by_its_mark() {
        let (made, methods) = create(vec![conflict("AlreadyExists"), (200, pod("mine"))]).await;
        made.unwrap();
        assert_eq!(methods, [Method::POST, Method::GET]);
        let (made, _) = create(vec![conflict("AlreadyExists"), (200, pod("another's"))]).await;
        assert!(made.unwrap_err().already_exists());
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_appears_after_its_launch_was_cancelled_is_removed() {
        let id = KernelId::random();
        let late = |attempt: &str| {
            let mut pod = pod(attempt);
            pod["metadata"]["uid"] = attempt.into();
            pod["metadata"]["labels"] = json!({ names::KERNEL_ID: id });
            pod
        };
        let seen = |attempt: &str| serde_json::from_value(late(attempt)).unwrap();
        let (pods, methods) = answering(vec![(200, late("mine")), (200, late("mine"))]);
        let pod_cache = Arc::new(PodCache::default());
        let cluster = Cluster {
            config: K8sOptions::new("test"),
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
            // A pod of the same name with another mark is not removed.
            pod_cache.upsert(seen("another's"));
            tokio::time::sleep(LATE_CALL_WINDOW / 2).await;
            assert!(crate::lock(&methods).is_empty());
            pod_cache.remove(seen("another's"));
            pod_cache.upsert(seen("mine"));
            while crate::lock(&methods).len() < 2 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            pod_cache.remove(seen("mine"));
        };
        tokio::join!(cluster.clean_up_late(id, "kernel-1", &mark), cluster_does);
        assert_eq!(*crate::lock(&methods), [Method::GET, Method::DELETE]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_create_that_conflicts_with_a_quota_update_is_retried() {
        let (made, methods) = create(vec![conflict("Conflict"), conflict("Conflict"), (201, pod("mine"))]).await;
        made.unwrap();
        assert_eq!(methods.len(), 3);
        let (made, methods) = create(vec![conflict("Conflict"); 99]).await;
        assert!(made.unwrap_err().is_conflict() && methods.len() < 10);
    }
}
