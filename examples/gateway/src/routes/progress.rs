//! `/api/kernels/{id}/progress`: the steps of a kernel's start, and why it failed or ended.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use bytes::Bytes;
use jupyter_protocol::KernelId;
use kernel_log::{Lifecycle, Log, Origin, ReadError, Seq};
use kernel_manager::{ExecutionState, Kernel};
use kernel_provider::{ExitCause, Phase};
use tokio::sync::watch;
use tokio::time::timeout;

use super::executions::unreadable;
use super::kernels::{KernelPath, not_found};
use crate::Gateway;
use crate::authorization::{Subject, Use, permission};
use crate::error::ApiError;
use crate::identity::Caller;
use crate::launches::{KernelPhase, ProgressModel};
use crate::model::{reason_of, timestamp};

/// Idle time before a comment shows that the connection is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How many of the log's last entries are searched for the kernel's end.
const LAST_ENTRIES: u64 = 256;

/// The progress of a kernel: the steps of its start, from the request on, and why it failed or ended.
///
/// The answer is JSON, or, if the request accepts text/event-stream, an event for each step up to the last one.
#[utoipa::path(
    get, path = "/api/kernels/{id}/progress", tag = "kernels", operation_id = "get_progress", params(KernelPath),
    responses(
        (status = 200, description = "The step", body = ProgressModel),
        (status = 404, description = "There is no such kernel, log or start"),
        (status = 500, description = "The log cannot be read"),
    ),
)]
pub(super) async fn progress(
    State(gateway): State<Arc<Gateway>>,
    Extension(caller): Caller,
    Path(KernelPath { id }): Path<KernelPath>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let kernel: KernelId = id.parse().map_err(|_| not_found(&id))?;
    let wants_events = headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("text/event-stream"));
    let mut source = match source(&gateway, kernel).await? {
        Some(source) => source,
        None => return Err(not_found(&id)),
    };
    if let Source::Launch { may_read, .. } = &mut source {
        let subject = Subject::find(&gateway, kernel).await?;
        *may_read = caller.acts_for_others()
            || subject.is_some_and(|subject| permission(&gateway, &caller, &subject, Use::Read).is_some());
    }
    if !wants_events {
        return Ok(Json(source.now()).into_response());
    }
    let stream = futures::stream::unfold(Some((gateway, source, None)), next_event);
    let content_type = HeaderValue::from_static("text/event-stream");
    Ok(([(header::CONTENT_TYPE, content_type)], Body::from_stream(stream)).into_response())
}

/// Where the progress comes from.
enum Source {
    Kernel(Arc<Kernel>, watch::Receiver<ExecutionState>, watch::Receiver<Phase>),
    Launch {
        progress: watch::Receiver<ProgressModel>,
        /// Whether the client may read the kernel's output, which the reason of a failure may contain.
        may_read: bool,
    },
    Past(ProgressModel),
}

impl Source {
    fn now(&self) -> ProgressModel {
        match self {
            Self::Kernel(kernel, ..) => progress_of_kernel(kernel),
            Self::Launch { progress, may_read } => {
                let mut now = progress.borrow().clone();
                if now.phase == KernelPhase::Failed && !may_read {
                    now.reason = Some("the start failed; the kernel's owner can see the cause".to_owned());
                }
                now
            }
            Self::Past(progress) => progress.clone(),
        }
    }

    /// Waits for a change. Returns whether more can follow.
    async fn changed(&mut self) -> bool {
        match self {
            Self::Kernel(_, state, process) => tokio::select! {
                changed = state.changed() => changed.is_ok(),
                changed = process.changed() => changed.is_ok(),
            },
            Self::Launch { progress, .. } => progress.changed().await.is_ok(),
            Self::Past(_) => false,
        }
    }
}

/// Finds the source of a kernel's progress; `None` if the kernel is unknown.
async fn source(gateway: &Gateway, id: KernelId) -> Result<Option<Source>, ApiError> {
    if let Some(kernel) = gateway.manager.get(id) {
        let (state, process) = (kernel.state(), kernel.handle().phase());
        return Ok(Some(Source::Kernel(kernel, state, process)));
    }
    if let Some(launch) = gateway.launches.get(id)
        && !launch.is_ready()
    {
        return Ok(Some(Source::Launch {
            progress: launch.progress(),
            may_read: false,
        }));
    }
    match gateway.manager.logs().find(id).await? {
        Some(log) => Ok(Some(Source::Past(progress_of_past(&log).await.map_err(unreadable)?))),
        None => Ok(None),
    }
}

/// The progress of a kernel that the manager has.
pub(crate) fn progress_of_kernel(kernel: &Kernel) -> ProgressModel {
    let process = kernel.handle().phase();
    let phase = match *kernel.state().borrow() {
        ExecutionState::Dead => KernelPhase::Dead,
        ExecutionState::Starting | ExecutionState::Restarting => KernelPhase::Starting,
        // The old process reports its status until it ends.
        _ if matches!(*process.borrow(), Phase::Restarting) => KernelPhase::Starting,
        _ => KernelPhase::Ready,
    };
    let since = if phase == KernelPhase::Ready {
        kernel.launched()
    } else {
        kernel.last_activity()
    };
    let mut progress = ProgressModel::new(phase, reason_of(kernel), since);
    if let Some(ExitCause::Culled(_) | ExitCause::TooOld(_)) = kernel.end_cause() {
        progress.culled_at = Some(progress.since.clone());
    }
    progress
}

/// The end of a kernel, from its log.
async fn progress_of_past(log: &Log) -> Result<ProgressModel, ReadError> {
    // The last entry may not be readable yet.
    log.flushed().await;
    let head = log.head();
    let mut reader = log.reader(Seq(head.0.saturating_sub(LAST_ENTRIES)));
    let mut ended = ProgressModel::new(KernelPhase::Dead, None, chrono::Utc::now());
    while reader.position() < head {
        let block = match reader.next().await {
            Ok(Some(block)) => block,
            Ok(None) => break,
            Err(ReadError::Gap { .. }) => continue,
            Err(error) => return Err(error),
        };
        for entry in block.entries() {
            if ended.reason.is_none() {
                ended.since = timestamp(entry.time());
            }
            if entry.origin() == Origin::Lifecycle
                && let Some(Lifecycle::Dead { reason, .. }) = Lifecycle::from_message(&entry.message())
            {
                ended = ProgressModel::new(KernelPhase::Dead, Some(reason), entry.time());
            }
        }
    }
    if ended.reason.as_ref().is_some_and(|reason| reason.starts_with("culled")) {
        ended.culled_at = Some(ended.since.clone());
    }
    Ok(ended)
}

/// The state of an event stream, with the progress that was sent last.
type Following = (Arc<Gateway>, Source, Option<ProgressModel>);

async fn next_event(
    following: Option<Following>,
) -> Option<(Result<Bytes, std::convert::Infallible>, Option<Following>)> {
    let (gateway, mut source, sent) = following?;
    let mut now = source.now();
    // Not every change of a kernel's state is a new step.
    while sent
        .as_ref()
        .is_some_and(|sent| (sent.phase, &sent.reason) == (now.phase, &now.reason))
    {
        let changed = tokio::select! {
            biased;
            () = gateway.closing() => return None,
            changed = timeout(KEEP_ALIVE, source.changed()) => changed,
        };
        match changed {
            Err(_) => {
                let comment = Bytes::from_static(b": keep-alive\n\n");
                return Some((Ok(comment), Some((gateway, source, sent))));
            }
            Ok(false) => return None,
            Ok(true) => now = source.now(),
        }
    }
    let is_last = now.phase.is_final();
    // A `ProgressModel` always serializes.
    let json = serde_json::to_string(&now).unwrap_or_default();
    let event = format!("event: progress\ndata: {json}\n\n");
    Some((Ok(event.into()), (!is_last).then_some((gateway, source, Some(now)))))
}
