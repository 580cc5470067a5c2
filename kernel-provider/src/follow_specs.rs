use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jupyter_protocol::kernelspec::SearchPath;
use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::{Notify, watch};

use super::Specs;

/// Debounce time: installing a kernelspec causes many file events.
const DEBOUNCE: Duration = Duration::from_millis(50);

/// Searches for kernelspecs after each change of their files and updates `specs`, for providers whose kernelspecs are
/// files. Updates of a mounted ConfigMap are also noticed.
///
/// `find` searches and may block. If the system refuses to watch a folder, a warning is logged and changes in that
/// folder are not noticed. The future ends only with the async runtime.
pub async fn follow_specs(
    search: SearchPath,
    specs: watch::Sender<Arc<Specs>>,
    find: impl Fn(&SearchPath) -> Specs + Clone + Send + 'static,
) {
    if search.dirs().is_empty() {
        return std::future::pending().await;
    }
    let changed = Arc::new(Notify::new());
    let mut watcher = None;
    loop {
        let again = tokio::task::spawn_blocking({
            let (search, changed, find) = (search.clone(), Arc::clone(&changed), find.clone());
            move || {
                // Watch before searching, so that changes in between are not missed.
                let fresh = watch_dirs(search.dirs(), &changed);
                drop(watcher);
                (fresh, find(&search))
            }
        });
        let found;
        (watcher, found) = match again.await {
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
        tokio::time::sleep(DEBOUNCE).await;
    }
}

/// Watches the folders, and the nearest existing parent of each missing one.
fn watch_dirs(dirs: &[PathBuf], changed: &Arc<Notify>) -> Option<RecommendedWatcher> {
    let warn = |error: notify::Error| tracing::warn!(%error, "cannot watch for kernelspec changes");
    let (watched_dirs, changed) = (dirs.to_vec(), Arc::clone(changed));
    let on_event = move |event: notify::Result<Event>| {
        if event.map_or(true, |event| is_change(&event, &watched_dirs)) {
            changed.notify_one();
        }
    };
    let mut watcher = notify::recommended_watcher(on_event).map_err(warn).ok()?;
    for dir in dirs {
        let watched = match dir.is_dir() {
            true => watcher.watch(dir, RecursiveMode::Recursive),
            false => match dir.ancestors().find(|parent| parent.is_dir()) {
                Some(parent) => watcher.watch(parent, RecursiveMode::NonRecursive),
                None => Ok(()),
            },
        };
        // If the folder was removed after the check, the next search finds it missing.
        watched.unwrap_or_else(warn);
    }
    Some(watcher)
}

/// Whether the event may have changed a kernelspec or one of the folders.
fn is_change(event: &Event, dirs: &[PathBuf]) -> bool {
    // In a missing folder's parent, only changes on the path to the folder matter.
    let is_relevant = |path: &PathBuf| dirs.iter().any(|dir| path.starts_with(dir) || dir.starts_with(path));
    // Of all accesses, only closing a written file is a change. The search's own reads must not cause another search.
    let is_read = match event.kind {
        EventKind::Access(access) => access != AccessKind::Close(AccessMode::Write),
        _ => false,
    };
    event.need_rescan() || (!is_read && event.paths.iter().any(is_relevant))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    fn install(dir: &Path, display_name: &str) {
        std::fs::create_dir_all(dir).unwrap();
        let text = format!(r#"{{"argv": ["x"], "display_name": "{display_name}", "language": "l"}}"#);
        std::fs::write(dir.join("kernel.json"), text).unwrap();
    }

    /// Replaces a mounted ConfigMap's files the way the kubelet does.
    fn mount(dir: &Path, version: &str, fill: impl FnOnce(&Path)) {
        let files = dir.join(version);
        std::fs::create_dir_all(&files).unwrap();
        fill(&files);
        symlink(version, dir.join("..data_tmp")).unwrap();
        std::fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
        for entry in std::fs::read_dir(&files).unwrap() {
            let name = entry.unwrap().file_name();
            let _ = symlink(Path::new("..data").join(&name), dir.join(&name));
        }
    }

    #[tokio::test]
    async fn each_kernelspec_change_is_seen() {
        let root = tempfile::tempdir().unwrap();
        let (plain, mounted) = (root.path().join("share/jupyter/kernels"), root.path().join("mounted"));
        std::fs::create_dir(&mounted).unwrap();
        let search = SearchPath::new([plain.clone(), mounted.clone()]);
        let (sender, mut specs) = watch::channel(Arc::new(Specs::find(&search)));
        let follower = tokio::spawn(follow_specs(search, sender, Specs::find));
        let mut wait_for = async |expected: &[(&str, &str)]| {
            let is_so = |specs: &Arc<Specs>| {
                specs
                    .by_name
                    .iter()
                    .map(|(name, spec)| (name.as_str(), spec.spec.display_name.as_str()))
                    .eq(expected.iter().copied())
            };
            let found = tokio::time::timeout(Duration::from_secs(60), specs.wait_for(is_so)).await;
            assert!(found.is_ok(), "no {expected:?}");
        };
        wait_for(&[]).await;
        install(&plain.join("a"), "first");
        wait_for(&[("a", "first")]).await;
        install(&plain.join("a"), "second");
        install(&plain.join("b"), "other");
        wait_for(&[("a", "second"), ("b", "other")]).await;
        std::fs::rename(plain.join("b"), plain.join("c")).unwrap();
        std::fs::remove_dir_all(plain.join("a")).unwrap();
        wait_for(&[("c", "other")]).await;
        mount(&mounted, "..1", |files| install(&files.join("d"), "first"));
        wait_for(&[("c", "other"), ("d", "first")]).await;
        mount(&mounted, "..2", |files| install(&files.join("d"), "second"));
        wait_for(&[("c", "other"), ("d", "second")]).await;
        std::fs::remove_dir_all(root.path().join("share")).unwrap();
        wait_for(&[("d", "second")]).await;
        install(&plain.join("a"), "again");
        wait_for(&[("a", "again"), ("d", "second")]).await;
        follower.abort();
    }
}
