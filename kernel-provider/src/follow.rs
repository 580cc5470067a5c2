use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::Specs;

/// Debounce time: installing a kernelspec causes many file events.
const SETTLE: Duration = Duration::from_millis(50);

/// Searches for kernelspecs after each change and updates `specs`, for providers whose kernelspecs are files.
///
/// `watch` starts a watcher, which stops when dropped, and notifies `changed` when something may have changed. `find`
/// searches. Both may block. The future ends only with the async runtime.
pub async fn follow_specs<W: Send + 'static>(
    specs: watch::Sender<Arc<Specs>>,
    changed: Arc<Notify>,
    watch: impl Fn() -> W + Clone + Send + 'static,
    find: impl Fn() -> Specs + Clone + Send + 'static,
) {
    let mut watches = None;
    loop {
        let again = tokio::task::spawn_blocking({
            let (watch, find) = (watch.clone(), find.clone());
            move || {
                // Watch before searching, so that changes in between are not missed.
                let fresh = watch();
                drop(watches);
                (Some(fresh), find())
            }
        });
        let found;
        (watches, found) = match again.await {
            Ok(done) => done,
            // The async runtime is shutting down.
            Err(_) => return,
        };
        specs.send_if_modified(|old| {
            let is_new = **old != found;
            if is_new {
                found.warn_of_broken(old);
                *old = Arc::new(found);
            }
            is_new
        });
        changed.notified().await;
        tokio::time::sleep(SETTLE).await;
    }
}
