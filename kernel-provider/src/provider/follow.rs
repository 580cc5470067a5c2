use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::Specs;

/// Installing a kernelspec is many events: they are waited for, so that the search is made once.
const SETTLE: Duration = Duration::from_millis(50);

/// Searches for kernelspecs again after each change, for ever, and tells `specs` of what is another than before. For those
/// who write a provider whose kernelspecs are files.
///
/// `watch` begins to watch and returns what ends that when it is dropped; where something may have changed, `changed` is
/// notified. `find` searches. Both may block. It ends only with the async runtime.
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
                // Watched before it is searched: what changes in between is seen by the one or by the other.
                let fresh = watch();
                drop(watches);
                (Some(fresh), find())
            }
        });
        let found;
        (watches, found) = match again.await {
            Ok(done) => done,
            // The async runtime is going down.
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
