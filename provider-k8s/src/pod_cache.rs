//! The newest known state of this provider's pods.
//!
//! It comes from two watches of the namespace: one of pods, and one of events about pods.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use futures::{StreamExt as _, TryStreamExt as _};
use jupyter_protocol::KernelId;
use k8s_openapi::api::core::v1::{Event, Pod};
use kernel_provider::ProviderError;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};
use tokio::sync::{Notify, watch};
use tokio_util::task::AbortOnDrop;

use crate::{api_error, names};

/// Length of one watch, in seconds. With kube's default, a dead connection would be noticed only after minutes.
const WATCH_SECONDS: u32 = 30;
/// Number of events kept per pod; older ones are dropped.
const MAX_EVENTS: usize = 16;

/// The newest known state of a kernel's pod.
#[derive(Clone, Debug)]
pub(crate) struct CachedPod {
    /// `None` if no pod of this kernel has ever been seen.
    pub(crate) pod: Option<Arc<Pod>>,
    /// Whether no pod of this kernel exists now.
    pub(crate) is_gone: bool,
    /// The newest events about the pod, oldest first.
    pub(crate) events: Arc<Vec<Event>>,
}

impl CachedPod {
    fn unknown() -> Self {
        Self {
            pod: None,
            is_gone: true,
            events: Arc::default(),
        }
    }

    /// Returns the pod if it exists.
    pub(crate) fn present(&self) -> Option<&Arc<Pod>> {
        self.pod.as_ref().filter(|_| !self.is_gone)
    }

    /// Whether no pod with this UID exists now.
    pub(crate) fn is_absent(&self, uid: &str) -> bool {
        self.present().is_none_or(|pod| names::uid(pod) != uid)
    }

    /// Returns the events about this pod, identified by its UID.
    pub(crate) fn events_of(&self, pod: &Pod) -> Vec<Event> {
        let is_of = |event: &&Event| event.involved_object.uid.as_deref() == Some(names::uid(pod));
        self.events.iter().filter(is_of).cloned().collect()
    }
}

/// The newest known pod of each kernel.
#[derive(Default)]
pub(crate) struct PodCache {
    kernels: Mutex<HashMap<KernelId, watch::Sender<CachedPod>>>,
    /// Second pods of kernels that already have one, kept until one of the two is deleted. A second pod appears when
    /// two gateways launch the same id at once and one of the gateways claims a warm pod.
    rivals: Mutex<Vec<Arc<Pod>>>,
    /// Notified on each change to a pod that is or was in a warm pool.
    warm_pods_changed: Notify,
}

impl PodCache {
    /// Starts the watches and returns once all existing pods have been listed.
    ///
    /// # Errors
    /// [`ProviderError`] if the API server cannot be reached or refuses the watch of pods.
    pub(crate) async fn open(
        client: &Client,
        namespace: &str,
        selector: &str,
    ) -> Result<(Arc<Self>, Vec<AbortOnDrop>), ProviderError> {
        let cache = Arc::new(Self::default());
        let config = watcher::Config::default().labels(selector).timeout(WATCH_SECONDS);
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        let mut stream = watcher(pods, config).default_backoff().boxed();
        let mut listed = Listed::default();
        loop {
            let next = stream.try_next().await.map_err(|error| {
                let action = format!("watch the pods of the namespace {namespace}");
                ProviderError::failed(action, api_error::watch_error_text(&error))
            })?;
            let Some(event) = next else {
                let action = format!("watch the pods of the namespace {namespace}");
                return Err(ProviderError::failed(action, "the watch ended"));
            };
            let is_first_list = matches!(event, watcher::Event::InitDone);
            cache.apply_pod_event(event, &mut listed);
            if is_first_list {
                break;
            }
        }
        let pod_task = tokio::spawn({
            let cache = Arc::clone(&cache);
            async move {
                while let Some(event) = stream.next().await {
                    match event {
                        Ok(event) => cache.apply_pod_event(event, &mut listed),
                        Err(error) => {
                            tracing::debug!(
                                error = api_error::watch_error_text(&error),
                                "restarting the watch of pods"
                            )
                        }
                    }
                }
            }
        });
        let config = watcher::Config::default()
            .fields("involvedObject.kind=Pod")
            .timeout(WATCH_SECONDS);
        let events: Api<Event> = Api::namespaced(client.clone(), namespace);
        let event_task = tokio::spawn({
            let cache = Arc::clone(&cache);
            async move {
                let mut stream = watcher(events, config).default_backoff().boxed();
                while let Some(event) = stream.next().await {
                    match event {
                        Ok(watcher::Event::Apply(event) | watcher::Event::InitApply(event)) => {
                            cache.record_event(event)
                        }
                        Ok(_) => {}
                        Err(error) => tracing::debug!(
                            error = api_error::watch_error_text(&error),
                            "the watch of events failed; reasons for failed pod starts may be missing"
                        ),
                    }
                }
            }
        });
        let tasks = [pod_task.abort_handle(), event_task.abort_handle()].map(AbortOnDrop::new);
        Ok((cache, tasks.into()))
    }

    /// Subscribes to the kernel's pod: its current state and every change.
    pub(crate) fn subscribe(&self, id: KernelId) -> watch::Receiver<CachedPod> {
        let mut kernels = crate::lock(&self.kernels);
        kernels
            .entry(id)
            .or_insert_with(|| watch::Sender::new(CachedPod::unknown()))
            .subscribe()
    }

    /// Returns all existing pods, without second pods of the same kernel.
    pub(crate) fn pods(&self) -> Vec<(KernelId, Arc<Pod>)> {
        let kernels = crate::lock(&self.kernels);
        kernels
            .iter()
            .filter_map(|(id, entry)| Some((*id, Arc::clone(entry.borrow().present()?))))
            .collect()
    }

    /// Waits for the next change to a warm pod. Returns immediately if one has changed since the last call.
    pub(crate) async fn warm_pods_changed(&self) {
        self.warm_pods_changed.notified().await;
    }

    fn apply_pod_event(&self, event: watcher::Event<Pod>, listed: &mut Listed) {
        match event {
            watcher::Event::Apply(pod) => self.upsert(pod),
            watcher::Event::Delete(pod) => self.remove(pod),
            watcher::Event::Init => listed.uids.clear(),
            watcher::Event::InitApply(pod) => {
                listed.uids.insert(names::uid(&pod).to_owned());
                self.upsert(pod);
            }
            watcher::Event::InitDone => {
                // Remove pods that were deleted while the watch was interrupted.
                let known = self.pods().into_iter().map(|(_, pod)| pod);
                let rivals = crate::lock(&self.rivals).clone();
                for pod in known.chain(rivals) {
                    if !listed.uids.contains(names::uid(&pod)) {
                        self.remove(Arc::unwrap_or_clone(pod));
                    }
                }
                listed.uids.clear();
            }
        }
    }

    pub(crate) fn upsert(&self, pod: Pod) {
        let Some(id) = names::kernel_id(&pod) else {
            return;
        };
        if names::pool(&pod).is_some() {
            self.warm_pods_changed.notify_one();
        }
        let pod = Arc::new(pod);
        let mut kernels = crate::lock(&self.kernels);
        // A claimed pod's kernel id differs from the id that it was created with.
        let original_id = names::id_in_name(names::name(&pod)).filter(|original_id| *original_id != id);
        if let Some(entry) = original_id.and_then(|original_id| kernels.get(&original_id))
            && !entry.borrow().is_absent(names::uid(&pod))
        {
            entry.send_modify(|cached| cached.is_gone = true);
            self.warm_pods_changed.notify_one();
        }
        let entry = kernels
            .entry(id)
            .or_insert_with(|| watch::Sender::new(CachedPod::unknown()));
        let has_another = entry.borrow().present().is_some_and(|now| !is_same(now, &pod));
        if has_another {
            let mut rivals = crate::lock(&self.rivals);
            rivals.retain(|rival| !is_same(rival, &pod));
            rivals.push(pod);
        } else {
            entry.send_modify(|cached| {
                cached.pod = Some(pod);
                cached.is_gone = false;
            });
        }
    }

    /// Removes a pod; `last` is its last known state.
    pub(crate) fn remove(&self, last: Pod) {
        let Some(id) = names::kernel_id(&last) else {
            return;
        };
        if names::pool(&last).is_some() {
            self.warm_pods_changed.notify_one();
        }
        let next = {
            let mut rivals = crate::lock(&self.rivals);
            rivals.retain(|rival| !is_same(rival, &last));
            let next = rivals.iter().position(|rival| names::kernel_id(rival) == Some(id));
            next.map(|next| rivals.remove(next))
        };
        let mut kernels = crate::lock(&self.kernels);
        if let Some(entry) = kernels.get(&id)
            && !entry.borrow().is_absent(names::uid(&last))
        {
            entry.send_modify(|cached| {
                cached.is_gone = next.is_none();
                cached.pod = Some(next.unwrap_or_else(|| Arc::new(last)));
            });
        } else if let Some(next) = next {
            crate::lock(&self.rivals).push(next);
        }
        // Drop entries of deleted pods without subscribers.
        kernels.retain(|_, entry| entry.receiver_count() > 0 || !entry.borrow().is_gone);
    }

    fn record_event(&self, event: Event) {
        let name = event.involved_object.name.as_deref().unwrap_or_default();
        let id = names::id_in_name(name);
        let kernels = crate::lock(&self.kernels);
        // An event can arrive before the pod that it is about. In that case, the entry exists only if a launch has
        // subscribed to it.
        if let Some(entry) = id.and_then(|id| kernels.get(&id)) {
            entry.send_modify(|cached| {
                let events = Arc::make_mut(&mut cached.events);
                events.retain(|known| known.metadata.uid != event.metadata.uid);
                events.push(event);
                let excess = events.len().saturating_sub(MAX_EVENTS);
                events.drain(..excess);
            });
        }
    }
}

fn is_same(one: &Pod, other: &Pod) -> bool {
    names::uid(one) == names::uid(other)
}

/// UIDs of the pods that the current list has returned so far.
#[derive(Default)]
struct Listed {
    uids: std::collections::HashSet<String>,
}
