//! The progress of kernel starts.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use chrono::{DateTime, Utc};
use jupyter_protocol::KernelId;
use kernel_provider::LaunchStage;
use serde::Serialize;
use tokio::sync::watch;
use tracing::span::Id;
use tracing::{Span, info};
use utoipa::ToSchema;

use crate::metrics::Metrics;
use crate::model::timestamp;
use crate::traces::TRACES;

/// The most starts that are remembered. Beyond that, the oldest is forgotten.
const MAX_LAUNCHES: usize = 1_024;

/// A phase of a kernel's life cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum KernelPhase {
    /// Its start was requested.
    Queued,
    /// It has a place, such as a node.
    Scheduled,
    /// Its image is being pulled; the reason names it.
    Pulling,
    /// Its process has started, but has not answered yet.
    Starting,
    /// It has answered.
    Ready,
    /// It could not be started, for the given reason.
    Failed,
    /// It has ended, for the given reason.
    Dead,
}

impl KernelPhase {
    fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Scheduled => "scheduled",
            Self::Pulling => "pulling",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Failed => "failed",
            Self::Dead => "dead",
        }
    }

    /// Whether the stream of progress events ends with this phase.
    pub(crate) fn is_final(self) -> bool {
        matches!(self, Self::Ready | Self::Failed | Self::Dead)
    }
}

/// The progress of a kernel.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = Progress)]
pub(crate) struct ProgressModel {
    #[schema(inline)]
    pub(crate) phase: KernelPhase,
    /// The image that is pulled, why a warm kernel could not be used, or why the kernel failed or ended; null if there
    /// is no such reason, or it is unknown.
    pub(crate) reason: Option<String>,
    /// When this step began.
    #[schema(format = DateTime)]
    pub(crate) since: String,
    /// When it was culled because it was idle; null unless it was.
    #[schema(format = DateTime)]
    pub(crate) culled_at: Option<String>,
}

impl ProgressModel {
    pub(crate) fn new(phase: KernelPhase, reason: Option<String>, since: DateTime<Utc>) -> Self {
        Self {
            phase,
            reason,
            since: timestamp(since),
            culled_at: None,
        }
    }
}

/// The start of one kernel.
pub(crate) struct Launch {
    /// The kernel's owner.
    owner: Option<String>,
    progress: watch::Sender<ProgressModel>,
    /// When the current phase began.
    entered: Mutex<Instant>,
    metrics: Arc<Metrics>,
    /// The span of the start, which this does not keep open.
    span: Option<Id>,
    /// The previous start. Its own `before` is `None`, so that starts do not form a growing chain.
    before: Option<Arc<Launch>>,
}

impl Launch {
    pub(crate) fn progress(&self) -> watch::Receiver<ProgressModel> {
        self.progress.subscribe()
    }

    pub(crate) fn owner(&self) -> Option<&str> {
        self.owner.as_deref()
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.progress.borrow().phase == KernelPhase::Ready
    }

    /// Records a stage that the provider reports.
    pub(crate) fn report(&self, stage: LaunchStage) {
        match stage {
            LaunchStage::Scheduled => self.set(KernelPhase::Scheduled, None),
            LaunchStage::Pulling(what) => self.set(KernelPhase::Pulling, Some(what)),
            LaunchStage::Cold(why) => self.set(KernelPhase::Queued, Some(why)),
            // The sockets accept connections; the kernel has not answered.
            LaunchStage::Starting | LaunchStage::Ready => self.set(KernelPhase::Starting, None),
            _ => {}
        }
    }

    pub(crate) fn ready(&self) {
        self.set(KernelPhase::Ready, None);
    }

    pub(crate) fn failed(&self, reason: String) {
        self.set(KernelPhase::Failed, Some(reason));
    }

    fn set(&self, phase: KernelPhase, reason: Option<String>) {
        self.progress.send_if_modified(|progress| {
            let changed = progress.phase != phase || progress.reason != reason;
            if progress.phase != phase {
                let entered = std::mem::replace(&mut *kernel_provider::lock(&self.entered), Instant::now());
                self.metrics.start_phase(progress.phase.as_str(), entered.elapsed());
                info!(target: TRACES, parent: self.span.clone(), "{}", phase.as_str());
            }
            if changed {
                *progress = ProgressModel::new(phase, reason, Utc::now());
            }
            changed
        });
    }
}

/// The newest start of each kernel.
#[derive(Default)]
pub(crate) struct Launches(Mutex<Known>);

#[derive(Default)]
struct Known {
    by_kernel: HashMap<KernelId, Arc<Launch>>,
    in_order: VecDeque<KernelId>,
}

impl Launches {
    /// Begins a start, unless one of the same kernel is under way.
    pub(crate) fn begin(
        &self,
        kernel: KernelId,
        owner: Option<&str>,
        metrics: &Arc<Metrics>,
        span: &Span,
    ) -> Option<Arc<Launch>> {
        let mut known = kernel_provider::lock(&self.0);
        let before = match known.by_kernel.get(&kernel).cloned() {
            Some(before) if !before.progress.borrow().phase.is_final() => return None,
            before => before,
        };
        let before = before.map(|before| {
            let progress = before.progress.borrow().clone();
            Arc::new(Launch {
                owner: before.owner.clone(),
                progress: watch::Sender::new(progress),
                entered: Mutex::new(Instant::now()),
                metrics: metrics.clone(),
                span: None,
                before: None,
            })
        });
        if before.is_none() {
            known.in_order.push_back(kernel);
        }
        let launch = Arc::new(Launch {
            owner: owner.map(str::to_owned),
            progress: watch::Sender::new(ProgressModel::new(KernelPhase::Queued, None, Utc::now())),
            entered: Mutex::new(Instant::now()),
            metrics: metrics.clone(),
            span: span.id(),
            before,
        });
        known.by_kernel.insert(kernel, launch.clone());
        if known.in_order.len() > MAX_LAUNCHES
            && let Some(oldest) = known.in_order.pop_front()
        {
            known.by_kernel.remove(&oldest);
        }
        Some(launch)
    }

    /// Forgets a start that was refused before anything was started, and restores the previous one.
    pub(crate) fn withdraw(&self, kernel: KernelId, launch: &Arc<Launch>) {
        let mut known = kernel_provider::lock(&self.0);
        let is_newest = known
            .by_kernel
            .get(&kernel)
            .is_some_and(|newest| Arc::ptr_eq(newest, launch));
        if !is_newest {
            return;
        }
        match launch.before.clone() {
            Some(before) => drop(known.by_kernel.insert(kernel, before)),
            None => {
                known.by_kernel.remove(&kernel);
                known.in_order.retain(|id| *id != kernel);
            }
        }
    }

    pub(crate) fn get(&self, kernel: KernelId) -> Option<Arc<Launch>> {
        kernel_provider::lock(&self.0).by_kernel.get(&kernel).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(launches: &Launches, id: KernelId, owner: Option<&str>) -> Option<Arc<Launch>> {
        launches.begin(id, owner, &Arc::default(), &Span::none())
    }

    #[test]
    fn a_start_goes_through_its_steps_and_is_not_replaced_before_its_end() {
        let launches = Launches::default();
        let id = KernelId::random();
        let launch = begin(&launches, id, Some("ada")).unwrap();
        assert_eq!(launch.owner(), Some("ada"));
        let phase = || launch.progress().borrow().phase;
        assert_eq!(phase(), KernelPhase::Queued);
        for (stage, expected) in [
            (LaunchStage::Scheduled, KernelPhase::Scheduled),
            (LaunchStage::Pulling("image".to_owned()), KernelPhase::Pulling),
            (LaunchStage::Starting, KernelPhase::Starting),
            (LaunchStage::Ready, KernelPhase::Starting),
        ] {
            launch.report(stage);
            assert_eq!(phase(), expected);
            assert!(begin(&launches, id, Some("ada")).is_none());
        }
        launch.failed("no room".to_owned());
        assert_eq!(launch.progress().borrow().reason.as_deref(), Some("no room"));
        let refused = begin(&launches, id, Some("bob")).unwrap();
        refused.failed("too many".to_owned());
        launches.withdraw(id, &refused);
        let known = launches.get(id).unwrap().progress().borrow().reason.clone();
        assert_eq!(known.as_deref(), Some("no room"));
        assert_eq!(launches.get(id).unwrap().owner(), Some("ada"));

        let other = KernelId::random();
        let refused = begin(&launches, other, Some("ada")).unwrap();
        launches.withdraw(other, &refused);
        assert!(launches.get(other).is_none());
    }

    #[test]
    fn the_oldest_start_is_forgotten() {
        let launches = Launches::default();
        let ids: Vec<_> = (0..=MAX_LAUNCHES).map(|_| KernelId::random()).collect();
        for id in &ids {
            assert!(begin(&launches, *id, Some("ada")).is_some());
        }
        assert!(launches.get(ids[0]).is_none());
        assert!(launches.get(ids[1]).is_some());
    }
}
