//! What the cluster says of this provider's pods: one watch of the pods of a namespace, one of the events about them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{Event, Pod};
use kernel_provider::KernelId;
use kernel_provider::provider::ProviderError;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};
use tokio::sync::{Notify, watch};

use crate::{AbortOnDrop, api_error, names};

/// How long one watch lasts, in seconds. The client's own default notices a dead connection only after minutes.
const WATCH_SECONDS: u32 = 30;
/// How many events are kept of one pod: the newest.
const MAX_EVENTS: usize = 16;

/// A kernel's pod as it was seen last.
#[derive(Clone, Debug)]
pub(crate) struct CachedPod {
    /// `None` where no pod of this kernel was ever seen.
    pub(crate) pod: Option<Arc<Pod>>,
    /// Whether it is not there (any more).
    pub(crate) is_gone: bool,
    /// The newest events about it, the eldest first.
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

    /// The pod, where it is there.
    pub(crate) fn present(&self) -> Option<&Arc<Pod>> {
        self.pod.as_ref().filter(|_| !self.is_gone)
    }

    /// Whether the pod with this UID is not there (any more).
    pub(crate) fn is_absent(&self, uid: &str) -> bool {
        self.present().is_none_or(|pod| names::uid(pod) != uid)
    }

    /// The events that are about this very pod.
    pub(crate) fn events_of(&self, pod: &Pod) -> Vec<Event> {
        let is_of = |event: &&Event| event.involved_object.uid.as_deref() == Some(names::uid(pod));
        self.events.iter().filter(is_of).cloned().collect()
    }
}

/// The pods by kernel.
#[derive(Default)]
pub(crate) struct PodCache {
    kernels: Mutex<HashMap<KernelId, watch::Sender<CachedPod>>>,
    /// Pods of kernels that have another already, until the one or the other is gone: two gateways launched the same id
    /// at once, and one of them claimed a pod.
    rivals: Mutex<Vec<Arc<Pod>>>,
    /// Told of each change to a pod that is in a warm pool, or was.
    warm_pods_changed: Notify,
}

impl PodCache {
    /// Starts to watch; returns when all pods that there are have been seen.
    ///
    /// # Errors
    /// Where the cluster cannot be asked or does not let this be watched.
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
                                "the watch of pods begins anew"
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
                            "events are not heard: less is known of why pods do not start"
                        ),
                    }
                }
            }
        });
        Ok((cache, vec![AbortOnDrop::new(&pod_task), AbortOnDrop::new(&event_task)]))
    }

    /// The kernel's pod, now and as it changes.
    pub(crate) fn subscribe(&self, id: KernelId) -> watch::Receiver<CachedPod> {
        let mut kernels = crate::lock(&self.kernels);
        kernels
            .entry(id)
            .or_insert_with(|| watch::Sender::new(CachedPod::unknown()))
            .subscribe()
    }

    /// The pods that are there.
    pub(crate) fn pods(&self) -> Vec<(KernelId, Arc<Pod>)> {
        let kernels = crate::lock(&self.kernels);
        kernels
            .iter()
            .filter_map(|(id, entry)| Some((*id, Arc::clone(entry.borrow().present()?))))
            .collect()
    }

    /// Waits for the next change to a warm pool; one that came since the last wait counts.
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
                // Those that went while nobody watched.
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
        // One that was claimed has another id than the one that it was made with.
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

    /// The pod as it was last.
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
        // What nobody looks at and is not there is forgotten.
        kernels.retain(|_, entry| entry.receiver_count() > 0 || !entry.borrow().is_gone);
    }

    fn record_event(&self, event: Event) {
        let name = event.involved_object.name.as_deref().unwrap_or_default();
        let id = names::id_in_name(name);
        let kernels = crate::lock(&self.kernels);
        // Events can come before the pod that they are about; then there is only who waits for it.
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

/// What a list that is under way has shown so far.
#[derive(Default)]
struct Listed {
    uids: std::collections::HashSet<String>,
}
