//! The content of live pages, folded once for all viewers of a kernel.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use chrono::{DateTime, Utc};
use kernel_log::{ReadError, Reader, StoreError};
use kernel_manager::{ExecutionState, Executions, Kernel, Manager};
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::task::AbortOnDrop;
use tracing::warn;

use super::cells::{Cells, ShownCell};
use crate::Gateway;
use crate::model::timestamp;
use crate::routes::OutputLimits;
use crate::shares::SharedKernel;

/// The most kernels with viewers at a time.
const MAX_PAGES: usize = 32;
/// The shortest time between two changes of a page.
const PAUSE: Duration = Duration::from_millis(250);
/// How many changed bytes lengthen the pause by another [`PAUSE`]: changed cells are sent whole.
const BYTES_PER_PAUSE: usize = 128 << 10;
/// The longest time between two changes of a page.
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// How many times a page polls for its kernel after the log was closed, before its viewers must reconnect.
const MAX_POLLS: usize = 120;

/// The content of a page at one moment.
#[derive(Default)]
pub(super) struct Snapshot {
    /// The kernel's state, as JSON.
    pub(super) state: Arc<str>,
    /// In the order in which they were requested.
    pub(super) cells: Vec<ShownCell>,
    /// Whether the kernel has ended, so that this snapshot is the last.
    pub(super) has_ended: bool,
}

impl Snapshot {
    fn has_same_content(&self, other: &Self) -> bool {
        let versions =
            |cells: &[ShownCell]| -> Vec<_> { cells.iter().map(|cell| (cell.id.clone(), cell.version)).collect() };
        self.state == other.state
            && self.has_ended == other.has_ended
            && versions(&self.cells) == versions(&other.cells)
    }
}

/// A page that is kept up to date while it has viewers.
pub(super) struct Page {
    snapshot: watch::Receiver<Arc<Snapshot>>,
    _following: AbortOnDrop,
}

impl Page {
    /// The newest snapshot. The channel closes when the viewers must reconnect, and after the kernel's end.
    pub(super) fn snapshot(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshot.clone()
    }
}

/// The pages that have viewers.
#[derive(Default)]
pub(super) struct Pages(Mutex<HashMap<SharedKernel, Weak<Page>>>);

impl Pages {
    /// The page of a kernel; `None` if too many kernels have viewers. `kernel` is `None` if the manager has none.
    pub(super) fn get(
        &self,
        gateway: &Gateway,
        shared: &SharedKernel,
        kernel: Option<Arc<Kernel>>,
        executions: Executions,
    ) -> Option<Arc<Page>> {
        let mut pages = kernel_provider::lock(&self.0);
        pages.retain(|_, page| page.strong_count() > 0);
        if let Some(page) = pages.get(shared).and_then(Weak::upgrade)
            // A page whose channel has closed is replaced, unless its kernel has ended.
            && (page.snapshot.has_changed().is_ok() || page.snapshot.borrow().has_ended)
        {
            return Some(page);
        }
        if pages.len() >= MAX_PAGES {
            return None;
        }
        let (sender, snapshot) = watch::channel(Arc::default());
        let load = Load {
            limits: gateway.output_limits.clone(),
            since: shared.launched,
        };
        let following = tokio::spawn(follow(gateway.manager.clone(), load, kernel, executions, sender));
        let page = Arc::new(Page {
            snapshot,
            _following: AbortOnDrop::new(following.abort_handle()),
        });
        pages.insert(shared.clone(), Arc::downgrade(&page));
        Some(page)
    }
}

/// The arguments for loading a page.
struct Load {
    limits: OutputLimits,
    since: DateTime<Utc>,
}

impl Load {
    async fn cells(self, executions: Executions) -> Result<Cells, ReadError> {
        let since = self.since;
        let load = move || Handle::current().block_on(Cells::load(&executions, since));
        let loaded = self.limits.run(load).await;
        loaded.unwrap_or_else(|error| Err(StoreError::failed("fold the cells of a page", error).into()))
    }
}

/// Publishes the page and its changes until the kernel has ended, or the viewers must reconnect.
async fn follow(
    manager: Manager,
    load: Load,
    kernel: Option<Arc<Kernel>>,
    executions: Executions,
    sender: watch::Sender<Arc<Snapshot>>,
) {
    if let Err(error) = follow_log(&manager, load, kernel, &executions, &sender).await {
        let kernel_id = executions.log().kernel_id();
        warn!(%kernel_id, %error, "a shared page cannot be read; its viewers reconnect");
    }
}

async fn follow_log(
    manager: &Manager,
    load: Load,
    kernel: Option<Arc<Kernel>>,
    executions: &Executions,
    sender: &watch::Sender<Arc<Snapshot>>,
) -> Result<(), ReadError> {
    let log = executions.log();
    let id = log.kernel_id();
    let mut cells = load.cells(executions.clone()).await?;
    let mut reader = log.reader(cells.read_from);
    let mut state = kernel.as_ref().map(|kernel| kernel.state());
    let mut now = state.as_mut().map(|state| *state.borrow_and_update());
    let mut since = kernel.as_ref().map_or_else(Utc::now, |kernel| kernel.last_activity());
    let mut is_closed = kernel.is_none();
    let mut polls = 0;
    let mut is_loaded = false;
    loop {
        while reader.position() < log.head() {
            if !read(&mut reader, &mut cells).await? {
                break;
            }
            tokio::task::yield_now().await;
        }
        // A log is also closed when this gateway stops, while the kernel may keep running.
        let has_ended = is_closed && !manager.may_run(id);
        if has_ended && now != Some(ExecutionState::Dead) {
            (now, since) = (Some(ExecutionState::Dead), Utc::now());
        }
        let spec = kernel.as_ref().and_then(|kernel| kernel.spec());
        let shown = State {
            state: now.map_or("unknown", ExecutionState::as_str),
            since: timestamp(since),
            kernel: spec.map(|spec| spec.spec.display_name.clone()),
        };
        let (shown_cells, changed_bytes) = cells.shown();
        let snapshot = Snapshot {
            // Texts always serialize.
            state: serde_json::to_string(&shown).unwrap_or_default().into(),
            cells: shown_cells,
            has_ended,
        };
        sender.send_if_modified(|published| {
            let is_new = !published.has_same_content(&snapshot);
            if is_new {
                *published = Arc::new(snapshot);
            }
            is_new
        });
        if has_ended {
            return Ok(());
        }
        let is_first = !std::mem::replace(&mut is_loaded, true);
        sleep(pause_after(if is_first { 0 } else { changed_bytes })).await;
        if is_closed {
            polls += 1;
            let found = manager.get(id).filter(|found| !is_same(kernel.as_ref(), found));
            if found.is_some() || polls == MAX_POLLS {
                return Ok(());
            }
            continue;
        }
        let changed = async {
            match &mut state {
                Some(state) => state.changed().await.is_ok(),
                None => false,
            }
        };
        tokio::select! {
            open = read(&mut reader, &mut cells) => is_closed = !open?,
            goes_on = changed => is_closed = !goes_on,
        }
        let newest = state.as_mut().map(|state| *state.borrow_and_update());
        if newest != now {
            (now, since) = (newest, Utc::now());
        }
    }
}

fn is_same(kernel: Option<&Arc<Kernel>>, found: &Arc<Kernel>) -> bool {
    kernel.is_some_and(|kernel| Arc::ptr_eq(kernel, found))
}

/// The pause after a change of this many bytes.
fn pause_after(bytes: usize) -> Duration {
    let steps = u32::try_from(bytes / BYTES_PER_PAUSE).unwrap_or(u32::MAX);
    PAUSE.saturating_mul(steps.saturating_add(1)).min(MAX_PAUSE)
}

/// Waits for the next entries and applies them. Returns whether the log is open.
async fn read(reader: &mut Reader, cells: &mut Cells) -> Result<bool, ReadError> {
    match reader.next().await {
        Ok(Some(block)) => block.entries().for_each(|entry| cells.apply(&entry)),
        Ok(None) => return Ok(false),
        Err(ReadError::Gap { .. }) => {}
        Err(error) => return Err(error),
    }
    Ok(true)
}

#[derive(Serialize)]
struct State {
    state: &'static str,
    since: String,
    kernel: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_changes_are_sent_less_often() {
        assert_eq!(pause_after(0), PAUSE);
        assert_eq!(pause_after(1 << 20), 9 * PAUSE);
        assert_eq!(pause_after(usize::MAX), MAX_PAUSE);
    }
}
