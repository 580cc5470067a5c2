use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use kernel_provider::KernelId;
use kernel_provider::provider::{
    AttachError, ExitCause, KernelHandle, KernelProvider, KernelRecord, LaunchError, LaunchRequest, LaunchStage,
    Progress, ProviderError, Selector, Specs,
};
use kube::Client;
use std::time::Duration;
use tokio::sync::{OwnedMutexGuard, watch};
use tokio::time::Instant;

use crate::client::client;
use crate::cluster::Cluster;
use crate::kernel::{K8sKernel, K8sKernelHandle};
use crate::phase::{self, PodPhase};
use crate::plan::{self, Plan};
use crate::pool::{ClaimOutcome, Pools};
use crate::registry::Registry;
use crate::start::{self, LaunchContext, StartOutcome};
use crate::{AbortOnDrop, K8sConfig, names, orphans, specs};

/// How long a pod that was found may take until its kernel can be connected to: one that runs, and one that is still
/// being started, as whoever began that would have waited while its image is pulled.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(30);
const STARTING_TIMEOUT: Duration = Duration::from_secs(60 * 60);
/// How long another gateway may take, once it has claimed a pod or made one, to find that this one did so too.
const RIVAL_DEADLINE: Duration = Duration::from_secs(2);

/// Runs kernels as pods of a Kubernetes cluster, in one namespace.
///
/// The cluster alone knows what runs: another provider of the same name on the same namespace, also one that runs at the
/// same time, finds the same kernels.
pub struct K8sProvider {
    cluster: Arc<Cluster>,
    registry: Arc<Registry>,
    specs: watch::Sender<Arc<Specs>>,
    pools: Pools,
    _tasks: [AbortOnDrop; 2],
}

fn is_ending(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

impl K8sProvider {
    /// Opens the namespace with the credentials that there are: those of `KUBECONFIG` or `~/.kube/config`, or of the pod
    /// that this program runs in.
    ///
    /// # Errors
    /// [`ProviderError`] where there are none, or as [`open_with`](Self::open_with).
    pub async fn open(config: K8sConfig) -> Result<Self, ProviderError> {
        let credentials = kube::Config::infer().await.map_err(|error| {
            let advice = format!("{error}; set KUBECONFIG, or run in a pod with a service account");
            ProviderError::failed("find the cluster", advice)
        })?;
        let client =
            client(credentials).map_err(|error| ProviderError::failed("use the cluster's credentials", error))?;
        Self::open_with(client, config).await
    }

    /// Opens the namespace with this client, such as [`client`](crate::client) makes: one that does not notice when
    /// nobody answers any more leaves kernels unwatched for as long. Must be called in an async runtime with its I/O and
    /// time enabled.
    ///
    /// # Errors
    /// [`ProviderError`] where the cluster does not answer or does not let the namespace's pods be watched.
    pub async fn open_with(client: Client, config: K8sConfig) -> Result<Self, ProviderError> {
        let cluster = Arc::new(Cluster::open(client, config).await?);
        let found = blocking({
            let cluster = Arc::clone(&cluster);
            move || {
                let found = specs::find(&cluster.config);
                found.warn_of_broken(&Specs::default());
                found
            }
        })
        .await?;
        let specs = watch::Sender::new(Arc::new(found));
        let following = tokio::spawn(specs::follow(Arc::new(cluster.config.clone()), specs.clone()));
        let cleanup = tokio::spawn(orphans::remove_orphans(Arc::clone(&cluster)));
        Ok(Self {
            _tasks: [AbortOnDrop::new(&following), AbortOnDrop::new(&cleanup)],
            pools: Pools::start(&cluster, specs.subscribe()),
            cluster,
            registry: Arc::default(),
            specs,
        })
    }

    /// What is to be made for the request.
    async fn plan(&self, request: &LaunchRequest) -> Result<Plan, LaunchError> {
        let (cluster, request) = (Arc::clone(&self.cluster), request.clone());
        blocking(move || plan::plan(&cluster.config, &request)).await?
    }

    /// Takes a pod that is kept ready, where there is one that will do, or makes one.
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
            Some(Ok(pool)) => {
                let owner = request.owner.as_deref();
                match self.pools.claim(context, &pool, owner, &mut launch_lock).await? {
                    ClaimOutcome::Ready(ready) => return Ok(StartOutcome::Ready(ready)),
                    ClaimOutcome::Rival => return Ok(StartOutcome::Rival),
                    ClaimOutcome::Cold(why) => why,
                }
            }
        };
        tracing::info!(kernel = %request.id, spec = request.spec, why, "no pod that is kept ready is taken");
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
        &self.cluster.config.name
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
                        // Until nothing is left of this one's pod, and it is known what the other does with its own:
                        // it may have seen this one and have stepped back just so.
                        let relocked = tokio::time::timeout_at(deadline, self.registry.launch_lock(id));
                        launch_lock = Some(relocked.await.map_err(|_| timed_out())?);
                        let left = updates.wait_for(|cached| cached.present().is_none_or(|pod| is_ending(pod)));
                        let _ = tokio::time::timeout(RIVAL_DEADLINE, left).await;
                        continue;
                    }
                    StartOutcome::Exists => {
                        // Another's, which the watch has not told of yet.
                        let relocked = tokio::time::timeout_at(deadline, self.registry.launch_lock(id));
                        launch_lock = Some(relocked.await.map_err(|_| timed_out())?);
                        let seen = updates.wait_for(|cached| cached.present().is_some());
                        // Or which is gone by now.
                        let _ = tokio::time::timeout(Duration::from_secs(1), seen).await;
                        if Instant::now() >= deadline {
                            return Err(timed_out());
                        }
                        continue;
                    }
                }
            };
            if names::pool(pod).is_some() {
                let reason = format!("the id {id} is that of a pod that is kept ready; choose another");
                return Err(LaunchError::BadRequest(reason));
            }
            match phase::assess(pod, &now.events_of(pod)) {
                PodPhase::Ending | PodPhase::Ended(_) | PodPhase::CannotStart(_) => {
                    // What is left of the kernel that had this id before makes place.
                    let end = self.cluster.end(pod, Duration::ZERO, &mut updates);
                    tokio::time::timeout_at(deadline, end)
                        .await
                        .map_err(|_| timed_out())??;
                }
                PodPhase::Starting(_) | PodPhase::Running { .. } => match start::adopt(&context, pod).await {
                    // Whoever made it has not finished it.
                    Err(LaunchError::Died { exit }) if exit.cause == ExitCause::Deleted => continue,
                    adopted => break adopted?,
                },
            }
        };
        let handle = self.register(id, ready);
        progress.report(LaunchStage::Ready);
        Ok(handle)
    }

    async fn list(&self, selector: &Selector) -> Result<Vec<KernelRecord>, ProviderError> {
        let runs = |id: KernelId, pod: &_| match self.registry.get(id) {
            Some(kernel) => kernel.exit().is_none(),
            // What is being started here belongs to who starts it. What another began, and may have been killed before
            // it was done, is found too.
            None => {
                let phase = phase::assess(pod, &[]);
                let is_begun = matches!(phase, PodPhase::Starting(_) | PodPhase::Running { .. });
                is_begun && !self.registry.is_launching(id)
            }
        };
        let pods = self.cluster.pod_cache.pods();
        let is_claimed = |pod: &_| names::pool(pod).is_none();
        let running = pods.into_iter().filter(|(id, pod)| is_claimed(pod) && runs(*id, pod));
        let records = running.map(|(id, pod)| names::record(&self.cluster.config.name, id, &pod));
        Ok(records.filter(|record| selector.matches(record)).collect())
    }

    async fn attach(&self, record: &KernelRecord) -> Result<Arc<dyn KernelHandle>, AttachError> {
        if record.provider != self.cluster.config.name {
            return Err(AttachError::Foreign {
                theirs: record.provider.clone(),
                ours: self.cluster.config.name.clone(),
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
            return Err(gone(ExitCause::Unknown("the cluster has no pod of it".to_owned())));
        };
        let timeout = match phase::assess(pod, &[]) {
            PodPhase::Ending => return Err(gone(phase::removal(pod))),
            PodPhase::Ended(cause) => return Err(gone(cause)),
            PodPhase::CannotStart(failure) => {
                return Err(gone(ExitCause::Unknown(format!("it did not start: {failure:?}"))));
            }
            PodPhase::Starting(_) if !self.cluster.has_secret(pod).await? => {
                let reason = "whoever made its pod has not made its Secret";
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
                let kernel = K8sKernel::running(&self.cluster, &self.registry, id, ready);
                Ok(Arc::new(K8sKernelHandle(self.registry.insert_or_get(kernel))))
            }
            Err(LaunchError::Died { exit }) => Err(gone(exit.cause)),
            Err(LaunchError::Provider(error)) => Err(error.into()),
            Err(error) => {
                // Whoever made it removes it, unless that one was killed.
                if matches!(error, LaunchError::CannotStart { .. } | LaunchError::NoRoom { .. })
                    && let Err(error) = self.cluster.delete(pod, Duration::ZERO).await
                {
                    tracing::warn!(kernel = %id, %error, "a pod that cannot start may be left");
                }
                Err(ProviderError::failed("attach to the kernel", error).into())
            }
        }
    }

    async fn settle(&self) {
        self.cluster.stop_late_cleanup.cancel();
        self.cluster.cleanup.close();
        self.cluster.cleanup.wait().await;
    }
}
