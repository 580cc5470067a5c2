//! The task that keeps pools filled. It runs when pods or kernelspecs change, and when a pod reaches its maximum age.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use jupyter_protocol::{Backoff, InstalledKernelspec, KernelId};
use k8s_openapi::api::core::v1::Pod;
use kernel_provider::{LaunchError, Progress, ProviderError, Specs};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::pool_diff::{self, Member, MemberState, PoolDiff};
use super::{ReadyPods, WarmPod};
use crate::cluster::Cluster;
use crate::manifest::Manifest;
use crate::names;
use crate::plan;
use crate::settings::Settings;
use crate::start::{self, CreateOutcome, LaunchContext, Ready};

/// How long a pool's pod may take until its kernel accepts connections.
const START_DEADLINE: Duration = Duration::from_secs(pool_diff::START_DEADLINE.num_seconds().unsigned_abs());
/// The pauses before pods are created again after a failure.
const BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(300));
/// How long a pod that another gateway created may take to appear in the watch, before its name is tried again. Also
/// the pause before a failed deletion is retried.
const UNSEEN_TIMEOUT: Duration = Duration::from_secs(5);

/// A pool that should exist.
struct DesiredPool {
    installed: InstalledKernelspec,
    settings: Settings,
    /// No pods are created before this time.
    paused_until: Option<Instant>,
    backoff: Backoff,
}

/// Result of one of the reconciler's tasks.
enum TaskOutcome {
    /// A pod's kernel accepts connections.
    Ready(KernelId, Box<Ready>),
    /// Another gateway has created a pod with this name.
    NameTaken(KernelId),
    /// The pod was claimed or is gone.
    PodGone(KernelId),
    Failed(KernelId, LaunchError),
    /// The result of [`Cluster::delete_unchanged`] for the pod with this UID.
    Removed(String, Result<bool, ProviderError>),
    /// The task panicked, or was stopped by the runtime's shutdown.
    Aborted,
}

struct Reconciler {
    cluster: Arc<Cluster>,
    ready: Arc<ReadyPods>,
    desired: BTreeMap<String, DesiredPool>,
    /// When the set of desired pools last changed.
    since: DateTime<Utc>,
    /// The pool of each pod whose kernel this gateway is waiting for, by the id in the pod's name.
    awaited: HashMap<KernelId, String>,
    /// Pods that another gateway created and that the watch has not reported yet, with their pool and how long to wait
    /// for them.
    unseen: HashMap<KernelId, (String, Instant)>,
    /// UIDs of pods that are being removed. A failed removal has the time of its retry.
    removing: HashMap<String, Option<Instant>>,
    tasks: JoinSet<TaskOutcome>,
}

/// Keeps the pools of these kernelspecs filled. Never returns.
pub(super) async fn run(cluster: Arc<Cluster>, mut specs: watch::Receiver<Arc<Specs>>, ready: Arc<ReadyPods>) {
    let mut reconciler = Reconciler {
        cluster: Arc::clone(&cluster),
        ready,
        desired: BTreeMap::new(),
        since: Utc::now(),
        awaited: HashMap::new(),
        unseen: HashMap::new(),
        removing: HashMap::new(),
        tasks: JoinSet::new(),
    };
    specs.mark_changed();
    let mut has_specs = true;
    loop {
        if has_specs && specs.has_changed().unwrap_or(false) {
            let now = Arc::clone(&specs.borrow_and_update());
            reconciler.set_desired(&now);
        }
        let next = reconciler.reconcile();
        let sleep = async {
            match next {
                Some(next) => tokio::time::sleep_until(next).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = cluster.pod_cache.warm_pods_changed() => {}
            changed = specs.changed(), if has_specs => {
                has_specs = changed.is_ok();
                specs.mark_changed();
            }
            Some(done) = reconciler.tasks.join_next() => reconciler.on_task_done(done.unwrap_or(TaskOutcome::Aborted)),
            () = sleep => {}
        }
    }
}

impl Reconciler {
    fn set_desired(&mut self, specs: &Specs) {
        let options = &self.cluster.options;
        let mut desired = BTreeMap::new();
        for installed in specs.by_name.values() {
            // Broken kernelspecs are reported by the search for kernelspecs.
            let Ok(Some(mut settings)) = Settings::from_spec(&installed.spec, options.default_image.as_deref()) else {
                continue;
            };
            if settings.warm_pool.size == 0 {
                continue;
            }
            options.add_volumes(&mut settings);
            let pool = DesiredPool {
                installed: installed.clone(),
                settings,
                paused_until: None,
                backoff: BACKOFF,
            };
            match self.manifest(&pool, KernelId::random()) {
                Ok(manifest) => drop(desired.insert(manifest.fingerprint(), pool)),
                Err(error) => {
                    tracing::warn!(kernelspec = installed.name, error, "cannot keep a warm pool");
                }
            }
        }
        self.desired = desired;
        self.since = Utc::now();
    }

    fn manifest(&self, pool: &DesiredPool, id: KernelId) -> Result<Manifest, String> {
        plan::warm_manifest(&self.cluster.options, id, &pool.installed, pool.settings.clone())
    }

    /// Makes the changes that the pools need now. Returns when to run again if nothing changes before.
    fn reconcile(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let pods = self.cluster.pod_cache.pods();
        let names: HashSet<KernelId> = pods
            .iter()
            .filter_map(|(_, pod)| names::id_in_name(names::name(pod)))
            .collect();
        self.unseen.retain(|id, (_, until)| !names.contains(id) && *until > now);
        let uids: HashSet<&str> = pods.iter().map(|(_, pod)| names::uid(pod)).collect();
        self.removing
            .retain(|uid, again| uids.contains(uid.as_str()) && again.is_none_or(|again| again > now));
        let unclaimed: HashSet<KernelId> = pods
            .iter()
            .filter(|(_, pod)| names::pool(pod).is_some())
            .map(|(id, _)| *id)
            .collect();
        crate::lock(&self.ready.0).retain(|id, _| unclaimed.contains(id));
        let mut members: BTreeMap<String, Vec<Member>> = BTreeMap::new();
        for (id, pod) in &pods {
            let Some(pool) = names::pool(pod).filter(|_| !self.removing.contains_key(names::uid(pod))) else {
                continue;
            };
            let state = self.state(*id, pod);
            let pod = Arc::clone(pod);
            members.entry(pool.to_owned()).or_default().push(Member { pod, state });
        }
        let retries = self.removing.values().flatten().copied();
        let mut next = self.unseen.values().map(|(_, until)| *until).chain(retries).min();
        let mut look_again = |at: Instant| next = Some(next.map_or(at, |next| next.min(at)));
        let pools: Vec<String> = self.desired.keys().cloned().collect();
        for pool in pools {
            let here = members.remove(&pool).unwrap_or_default();
            let expected = self.expected(&pool, &names);
            let Some(limits) = self
                .desired
                .get(&pool)
                .map(|desired| desired.settings.warm_pool.clone())
            else {
                continue;
            };
            let changes = pool_diff::diff(&limits, &here, expected, Utc::now());
            if let Some(at) = changes.next_check {
                let after = (at - Utc::now()).to_std().unwrap_or_default();
                look_again(now + after.max(Duration::from_millis(10)));
            }
            if let Some(pause) = self.apply(&pool, changes, &names) {
                look_again(pause);
            }
        }
        // Remove pods of pools that this gateway does not have. If another running gateway still has such a pool, that
        // gateway replaces the pods.
        for member in members.into_values().flatten() {
            if pool_diff::created(&member.pod) < self.since {
                self.remove(member.pod);
            }
        }
        next
    }

    fn state(&self, id: KernelId, pod: &Pod) -> MemberState {
        if self.awaited.contains_key(&id) {
            return MemberState::Awaited;
        }
        let ready = crate::lock(&self.ready.0);
        match ready.get(&id) {
            Some(one) if names::uid(&one.ready.pod) == names::uid(pod) => MemberState::Ready,
            _ => MemberState::Found,
        }
    }

    /// Number of this pool's pods that are being created and not visible yet.
    fn expected(&self, pool: &str, seen: &HashSet<KernelId>) -> usize {
        let unseen = self.unseen.iter().map(|(id, (pool, _))| (id, pool));
        let under_way = self.awaited.iter().chain(unseen);
        under_way.filter(|(id, of)| *of == pool && !seen.contains(id)).count()
    }

    /// Applies the changes to a pool. Returns the end of the pause if pods are missing and creation is paused.
    fn apply(&mut self, pool: &str, changes: PoolDiff, names: &HashSet<KernelId>) -> Option<Instant> {
        for pod in changes.to_await {
            self.adopt(pool, pod);
        }
        for pod in changes.to_remove {
            self.remove(pod);
        }
        for pod in changes.broken {
            tracing::warn!(pod = names::name(&pod), "removing a failed warm pod");
            self.remove(pod);
            self.pause(pool);
        }
        if let Some(until) = self.desired.get(pool)?.paused_until
            && until > Instant::now()
        {
            return Some(until).filter(|_| changes.to_create > 0);
        }
        for _ in 0..changes.to_create {
            self.create_pod(pool, names);
        }
        None
    }

    /// Creates a pod.
    ///
    /// The pod gets the first free name of the pool. If two gateways create a pod at the same time, both choose the
    /// same name, and the API server refuses one of the calls.
    fn create_pod(&mut self, pool: &str, names: &HashSet<KernelId>) {
        let provider = &self.cluster.options.name;
        let is_free =
            |id: &KernelId| !names.contains(id) && !self.awaited.contains_key(id) && !self.unseen.contains_key(id);
        let Some(id) = (0..).map(|number| pool_pod_id(provider, pool, number)).find(is_free) else {
            return;
        };
        let Some(manifest) = self.desired.get(pool).map(|desired| self.manifest(desired, id)) else {
            return;
        };
        let mut manifest = match manifest {
            Ok(manifest) => manifest,
            Err(error) => {
                tracing::warn!(error, "cannot create a warm pod");
                self.pause(pool);
                return;
            }
        };
        manifest.add_to_pool(pool);
        self.awaited.insert(id, pool.to_owned());
        let cluster = Arc::clone(&self.cluster);
        self.tasks.spawn(async move {
            let progress = Progress::ignored();
            let context = launch_context(&cluster, id, &progress);
            let created = match start::create_pod(&context, manifest, None).await {
                Ok(CreateOutcome::Created(created)) => created,
                Ok(CreateOutcome::Exists | CreateOutcome::Rival) => return TaskOutcome::NameTaken(id),
                Err(error) => return TaskOutcome::Failed(id, error),
            };
            // Any gateway can claim the pod from now on, so it stays if this gateway ends.
            let (created, guard) = *created;
            guard.disarm();
            let uid = names::uid(&created.pod).to_owned();
            wait_outcome(&cluster, id, &uid, created.ready(&context).await).await
        });
    }

    /// Waits for the kernel of an existing pod.
    fn adopt(&mut self, pool: &str, pod: Arc<Pod>) {
        let Some(id) = names::kernel_id(&pod) else {
            return;
        };
        self.awaited.insert(id, pool.to_owned());
        let cluster = Arc::clone(&self.cluster);
        self.tasks.spawn(async move {
            let progress = Progress::ignored();
            let ready = start::adopt(&launch_context(&cluster, id, &progress), &pod).await;
            wait_outcome(&cluster, id, names::uid(&pod), ready).await
        });
    }

    fn remove(&mut self, pod: Arc<Pod>) {
        // The pod is no longer handed out, even if its removal fails.
        if let Some(id) = names::kernel_id(&pod) {
            crate::lock(&self.ready.0).remove(&id);
        }
        let uid = names::uid(&pod).to_owned();
        self.removing.insert(uid.clone(), None);
        let cluster = Arc::clone(&self.cluster);
        self.tasks
            .spawn(async move { TaskOutcome::Removed(uid, cluster.delete_unchanged(&pod).await) });
    }

    fn pause(&mut self, pool: &str) {
        if let Some(desired) = self.desired.get_mut(pool) {
            // Several tasks that fail together count as one failure.
            if desired.paused_until.is_some_and(|until| until > Instant::now()) {
                return;
            }
            desired.paused_until = Some(Instant::now() + desired.backoff.next_pause());
        }
    }

    fn on_task_done(&mut self, outcome: TaskOutcome) {
        match outcome {
            TaskOutcome::Ready(id, ready) => {
                let Some(pool) = self.awaited.remove(&id) else { return };
                if let Some(desired) = self.desired.get_mut(&pool)
                    && names::kernel_id(&ready.pod) == Some(id)
                {
                    desired.paused_until = None;
                    desired.backoff.reset();
                    let limits = desired.settings.warm_pool.clone();
                    let ready = *ready;
                    crate::lock(&self.ready.0).insert(id, WarmPod { pool, limits, ready });
                }
            }
            TaskOutcome::NameTaken(id) => {
                if let Some(pool) = self.awaited.remove(&id) {
                    self.unseen.insert(id, (pool, Instant::now() + UNSEEN_TIMEOUT));
                }
            }
            TaskOutcome::PodGone(id) => drop(self.awaited.remove(&id)),
            TaskOutcome::Failed(id, error) => {
                if let Some(pool) = self.awaited.remove(&id) {
                    tracing::warn!(%error, "a warm pod did not become ready");
                    self.pause(&pool);
                }
            }
            // The pod is gone or about to be.
            TaskOutcome::Removed(_, Ok(true)) | TaskOutcome::Aborted => {}
            // The pod has changed, so the next run examines it again.
            TaskOutcome::Removed(uid, Ok(false)) => drop(self.removing.remove(&uid)),
            TaskOutcome::Removed(uid, Err(error)) => {
                tracing::warn!(%error, "cannot remove a warm pod");
                self.removing.insert(uid, Some(Instant::now() + UNSEEN_TIMEOUT));
            }
        }
    }
}

/// Converts the result of waiting for a pod's kernel. Removes a pod whose kernel did not become ready, unless it was
/// claimed.
async fn wait_outcome(cluster: &Cluster, id: KernelId, uid: &str, ready: Result<Ready, LaunchError>) -> TaskOutcome {
    let error = match ready {
        Ok(ready) => match ready.route.reported_exit() {
            // A pod with an agent outlives its kernel.
            Some(exit) => LaunchError::Died { exit },
            None => {
                // Another gateway may claim the pod, and only one can be connected to the agent.
                if let Some(agent) = ready.route.agent() {
                    agent.disconnect();
                }
                return TaskOutcome::Ready(id, Box::new(ready));
            }
        },
        Err(error) => error,
    };
    let now = cluster.pod_cache.subscribe(id).borrow().present().cloned();
    let Some(now) = now.filter(|now| names::uid(now) == uid) else {
        return TaskOutcome::PodGone(id);
    };
    if let Err(error) = cluster.delete_unchanged(&now).await {
        tracing::debug!(%error, "cannot remove a warm pod that did not become ready");
    }
    TaskOutcome::Failed(id, error)
}

fn launch_context<'a>(cluster: &'a Arc<Cluster>, id: KernelId, progress: &'a Progress) -> LaunchContext<'a> {
    LaunchContext {
        cluster,
        id,
        timeout: START_DEADLINE,
        deadline: Instant::now() + START_DEADLINE,
        progress,
        may_have_rivals: false,
    }
}

/// Computes the id in the name of the pool's pod with this number. All gateways compute the same id.
fn pool_pod_id(provider: &str, pool: &str, number: u64) -> KernelId {
    let hash = Sha256::digest(format!("{provider}/{pool}/{number}"));
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid().into()
}
