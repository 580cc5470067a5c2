use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use jupyter_protocol::KernelId;
use k8s_openapi::api::core::v1::Pod;
use kernel_provider::{
    AttachError, ExitCause, KernelHandle, KernelProvider, KernelRecord, LaunchError, LaunchRequest, LaunchStage,
    Progress, ProviderError, Selector, Specs, follow_specs,
};
use kube::Client;
use std::time::Duration;
use tokio::sync::{OwnedMutexGuard, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDrop;

use crate::client::client;
use crate::cluster::Cluster;
use crate::kernel::{K8sKernel, K8sKernelHandle};
use crate::phase::{self, PodPhase};
use crate::plan::{self, Plan};
use crate::pool::{ClaimOutcome, Pools};
use crate::registry::Registry;
use crate::start::{self, LaunchContext, StartOutcome};
use crate::{K8sOptions, names, orphans, specs};

/// How long the kernel of a running pod may take to accept connections.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(30);
/// The same time limit for a pod that is still starting, which may have to pull its image first.
const STARTING_TIMEOUT: Duration = Duration::from_secs(60 * 60);
/// How long to wait for another gateway that launches the same id to remove its own pod.
const RIVAL_DEADLINE: Duration = Duration::from_secs(2);

/// Runs kernels as pods in one namespace of a Kubernetes cluster.
///
/// The cluster is the only record of which kernels run. Another provider with the same name and namespace finds the
/// same kernels, even while this one is running.
pub struct K8sProvider {
    cluster: Arc<Cluster>,
    registry: Arc<Registry>,
    specs: watch::Sender<Arc<Specs>>,
    pools: Pools,
    _tasks: [AbortOnDrop; 2],
}

impl fmt::Debug for K8sProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("K8sProvider").finish_non_exhaustive()
    }
}

fn is_ending(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

impl K8sProvider {
    /// Opens the namespace with the default credentials: `KUBECONFIG`, `~/.kube/config`, or the service account of the
    /// pod that this program runs in.
    ///
    /// # Errors
    /// [`ProviderError`] if there are no credentials, or for the reasons given at [`open_with`](Self::open_with).
    pub async fn open(options: K8sOptions) -> Result<Self, ProviderError> {
        let credentials = kube::Config::infer().await.map_err(|error| {
            let advice = format!("{error}; set KUBECONFIG, or run in a pod with a service account");
            ProviderError::failed("find the cluster", advice)
        })?;
        let client =
            client(credentials).map_err(|error| ProviderError::failed("use the cluster's credentials", error))?;
        Self::open_with(client, options).await
    }

    /// Opens the namespace with the given client.
    ///
    /// Use [`client`](crate::client) to create the client. With a client that does not detect dead connections, the
    /// ends of kernels can stay unnoticed until TCP times out. Must be called in a tokio runtime with I/O and time
    /// enabled.
    ///
    /// # Errors
    /// [`ProviderError`] if the cluster does not answer, or refuses the watch of the namespace's pods.
    pub async fn open_with(client: Client, options: K8sOptions) -> Result<Self, ProviderError> {
        let cluster = Arc::new(Cluster::open(client, options).await?);
        let found = blocking({
            let cluster = Arc::clone(&cluster);
            move || {
                let found = specs::find(&cluster.options);
                found.warn_of_broken(&Specs::default());
                found
            }
        })
        .await?;
        let specs = watch::Sender::new(Arc::new(found));
        let following = {
            let options = cluster.options.clone();
            follow_specs(options.search.clone(), specs.clone(), move |_| specs::find(&options))
        };
        let following = tokio::spawn(following);
        let cleanup = tokio::spawn(orphans::remove_orphans(Arc::clone(&cluster)));
        Ok(Self {
            _tasks: [following.abort_handle(), cleanup.abort_handle()].map(AbortOnDrop::new),
            pools: Pools::start(&cluster, specs.subscribe()),
            cluster,
            registry: Arc::default(),
            specs,
        })
    }

    /// Plans the pod for a request.
    async fn plan(&self, request: &LaunchRequest) -> Result<Plan, LaunchError> {
        let (cluster, request) = (Arc::clone(&self.cluster), request.clone());
        blocking(move || plan::plan(&cluster.options, &request)).await?
    }

    /// Claims a matching warm pod, or starts a new pod.
    async fn claim_or_start(
        &self,
        context: &LaunchContext<'_>,
        request: &LaunchRequest,
        mut launch_lock: Option<OwnedMutexGuard<()>>,
    ) -> Result<StartOutcome, LaunchError> {
        let Plan { manifest, pool } = self.plan(request).await?;
        let why = match pool {
            None => return start::start(context, manifest, launch_lock).await,
            Some(Err(why)) => why,
            Some(Ok(pool)) => match self.pools.claim(context, &pool, request, &mut launch_lock).await? {
                ClaimOutcome::Ready(ready) => return Ok(StartOutcome::Ready(ready)),
                ClaimOutcome::Rival => return Ok(StartOutcome::Rival),
                ClaimOutcome::Cold(why) => why,
            },
        };
        tracing::info!(kernel = %request.id, spec = request.spec, why, "no warm pod is used");
        context.progress.report(LaunchStage::Cold(why));
        let context = LaunchContext {
            may_have_rivals: true,
            ..*context
        };
        start::start(&context, manifest, launch_lock).await
    }

    fn register(&self, id: KernelId, ready: start::Ready) -> Arc<dyn KernelHandle> {
        let kernel = K8sKernel::running(&self.cluster, &self.registry, id, ready);
        self.registry.insert(&kernel);
        Arc::new(K8sKernelHandle(kernel))
    }
}

async fn blocking<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> Result<T, ProviderError> {
    tokio::task::spawn_blocking(run)
        .await
        .map_err(|error| ProviderError::failed("read the kernelspecs", error))
}

#[async_trait]
impl KernelProvider for K8sProvider {
    fn name(&self) -> &str {
        &self.cluster.options.name
    }

    fn specs(&self) -> watch::Receiver<Arc<Specs>> {
        self.specs.subscribe()
    }

    async fn launch(&self, request: LaunchRequest, progress: Progress) -> Result<Arc<dyn KernelHandle>, LaunchError> {
        let deadline = Instant::now() + request.timeout;
        let timed_out = || LaunchError::TimedOut {
            timeout: request.timeout,
            output: String::new(),
        };
        let id = request.id;
        let launch_lock = tokio::time::timeout_at(deadline, self.registry.launch_lock(id));
        let mut launch_lock = Some(launch_lock.await.map_err(|_| timed_out())?);
        if let Some(kernel) = self.registry.get(id).filter(|kernel| kernel.exit().is_none()) {
            progress.report(LaunchStage::Ready);
            return Ok(Arc::new(K8sKernelHandle(kernel)));
        }
        let context = LaunchContext {
            cluster: &self.cluster,
            id,
            timeout: request.timeout,
            deadline,
            progress: &progress,
            may_have_rivals: false,
        };
        let mut updates = self.cluster.pod_cache.subscribe(id);
        let ready = loop {
            let now = updates.borrow_and_update().clone();
            let Some(pod) = now.present() else {
                match self.claim_or_start(&context, &request, launch_lock.take()).await? {
                    StartOutcome::Ready(ready) => break *ready,
                    StartOutcome::Rival => {
                        // The launch lock is free once this launch's pod is removed. The other gateway may have seen
                        // that pod and be removing its own pod, so wait for that, too.
                        let relocked = tokio::time::timeout_at(deadline, self.registry.launch_lock(id));
                        launch_lock = Some(relocked.await.map_err(|_| timed_out())?);
                        let left = updates.wait_for(|cached| cached.present().is_none_or(|pod| is_ending(pod)));
                        let _ = tokio::time::timeout(RIVAL_DEADLINE, left).await;
                        continue;
                    }
                    StartOutcome::Exists => {
                        // The watch has not delivered the existing pod yet.
                        let relocked = tokio::time::timeout_at(deadline, self.registry.launch_lock(id));
                        launch_lock = Some(relocked.await.map_err(|_| timed_out())?);
                        let seen = updates.wait_for(|cached| cached.present().is_some());
                        // The pod may also be gone already.
                        let _ = tokio::time::timeout(Duration::from_secs(1), seen).await;
                        if Instant::now() >= deadline {
                            return Err(timed_out());
                        }
                        continue;
                    }
                }
            };
            if names::pool(pod).is_some() {
                let reason = format!("the id {id} belongs to an unclaimed warm pod; choose another id");
                return Err(LaunchError::BadRequest(reason));
            }
            match phase::assess(pod, &now.events_of(pod)) {
                PodPhase::Ending | PodPhase::Ended(_) | PodPhase::CannotStart(_) => {
                    // Remove the ended pod of an earlier kernel with this id.
                    let end = self.cluster.end(pod, Duration::ZERO, &mut updates);
                    tokio::time::timeout_at(deadline, end)
                        .await
                        .map_err(|_| timed_out())??;
                }
                PodPhase::Starting(_) | PodPhase::Running { .. } => {
                    // A kernel that is registered has ended, because a running one was returned above. Its pod still
                    // runs, because an agent outlives its kernel for a while.
                    let is_dead = self.registry.get(id).is_some();
                    let adopted = match is_dead {
                        true => None,
                        false => Some(start::adopt(&context, pod).await),
                    };
                    match adopted {
                        // The pod's creator removed it before its kernel was ready.
                        Some(Err(LaunchError::Died { exit })) if exit.cause == ExitCause::Deleted => continue,
                        Some(Ok(ready)) if ready.route.reported_exit().is_none() => break ready,
                        Some(Err(error)) => return Err(error),
                        Some(Ok(_)) | None => {
                            let end = self.cluster.end(pod, Duration::ZERO, &mut updates);
                            tokio::time::timeout_at(deadline, end)
                                .await
                                .map_err(|_| timed_out())??;
                        }
                    }
                }
            }
        };
        let handle = self.register(id, ready);
        progress.report(LaunchStage::Ready);
        Ok(handle)
    }

    async fn list(&self, selector: &Selector) -> Result<Vec<KernelRecord>, ProviderError> {
        let runs = |id: KernelId, pod: &_| match self.registry.get(id) {
            Some(kernel) => kernel.exit().is_none(),
            // A pod that this provider is launching is listed once its launch succeeds. A pod that another provider has
            // begun to launch is listed at once, because that provider may have been killed.
            None => {
                let phase = phase::assess(pod, &[]);
                let is_begun = matches!(phase, PodPhase::Starting(_) | PodPhase::Running { .. });
                is_begun && !self.registry.is_launching(id)
            }
        };
        let pods = self.cluster.pod_cache.pods();
        let is_claimed = |pod: &_| names::pool(pod).is_none();
        let running = pods.into_iter().filter(|(id, pod)| is_claimed(pod) && runs(*id, pod));
        let records = running.map(|(id, pod)| names::record(&self.cluster.options.name, id, &pod));
        Ok(records.filter(|record| selector.matches(record)).collect())
    }

    async fn attach(&self, record: &KernelRecord) -> Result<Arc<dyn KernelHandle>, AttachError> {
        if record.provider != self.cluster.options.name {
            return Err(AttachError::Foreign {
                theirs: record.provider.clone(),
                ours: self.cluster.options.name.clone(),
            });
        }
        let id = record.id;
        let gone = |cause| AttachError::Gone { id, cause };
        if let Some(kernel) = self.registry.get(id) {
            return match kernel.exit() {
                Some(exit) => Err(gone(exit.cause)),
                None => Ok(Arc::new(K8sKernelHandle(kernel))),
            };
        }
        let now = self.cluster.pod_cache.subscribe(id).borrow().clone();
        let Some(pod) = now.present().filter(|pod| names::pool(pod).is_none()) else {
            return Err(gone(ExitCause::Unknown("the cluster has no pod for it".to_owned())));
        };
        let timeout = match phase::assess(pod, &[]) {
            PodPhase::Ending => return Err(gone(phase::removal_cause(pod))),
            PodPhase::Ended(cause) => return Err(gone(cause)),
            PodPhase::CannotStart(failure) => {
                return Err(gone(ExitCause::Unknown(format!("it did not start: {failure}"))));
            }
            PodPhase::Starting(_) if !self.cluster.has_secret(pod).await? => {
                let reason = "its pod has no Secret yet";
                return Err(ProviderError::failed("attach to the kernel", reason).into());
            }
            PodPhase::Starting(_) => STARTING_TIMEOUT,
            PodPhase::Running { .. } => ATTACH_TIMEOUT,
        };
        let progress = Progress::ignored();
        let context = LaunchContext {
            cluster: &self.cluster,
            id,
            timeout,
            deadline: Instant::now() + timeout,
            progress: &progress,
            may_have_rivals: false,
        };
        match start::adopt(&context, pod).await {
            Ok(ready) => {
                // The kernel has ended and all of its messages are delivered, so there is nothing to attach to.
                if let (Some(exit), true) = (ready.route.reported_exit(), ready.route.is_delivered().await) {
                    return Err(gone(exit.cause));
                }
                let kernel = K8sKernel::running(&self.cluster, &self.registry, id, ready);
                Ok(Arc::new(K8sKernelHandle(self.registry.insert_or_get(kernel))))
            }
            Err(LaunchError::Died { exit }) => Err(gone(exit.cause)),
            Err(LaunchError::Provider(error)) => Err(error.into()),
            Err(error) => {
                // The pod's creator removes it too, unless that provider was killed.
                if matches!(error, LaunchError::CannotStart { .. } | LaunchError::NoRoom { .. })
                    && let Err(error) = self.cluster.delete(pod, Duration::ZERO).await
                {
                    tracing::warn!(kernel = %id, %error, "cannot remove a pod that cannot start");
                }
                Err(ProviderError::failed("attach to the kernel", error).into())
            }
        }
    }

    async fn close(&self) {
        self.cluster.stop_late_cleanup.cancel();
        self.cluster.cleanup.close();
        self.cluster.cleanup.wait().await;
    }
}
