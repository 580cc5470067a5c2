//! Finds this machine's kernelspecs and follows changes to them.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jupyter_protocol::kernelspec::SearchPath;
use kernel_provider::{Specs, follow_specs};
use rustix::fs::inotify::WatchFlags;
use tokio::sync::{Notify, watch};

use crate::events::{Events, Watch};

/// All events that can add, change or remove a kernelspec or its directory.
const CHANGES: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVE)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ATTRIB);

/// Searches again after each change. Never returns.
pub(crate) async fn follow(search: SearchPath, events: Arc<Events>, specs: watch::Sender<Arc<Specs>>) {
    let wake = Arc::new(Notify::new());
    let watch = {
        let (search, wake) = (search.clone(), Arc::clone(&wake));
        move || watch_all(&search, &events, &wake)
    };
    follow_specs(specs, wake, watch, move || Specs::find(&search)).await;
}

/// Watches the kernelspec directories, each kernelspec in them, and the nearest existing parent of each missing
/// directory.
fn watch_all(search: &SearchPath, events: &Events, wake: &Arc<Notify>) -> Vec<Watch> {
    let mut watches = Vec::new();
    let mut watch = |path: &Path, name: Option<&OsStr>| match events.watch(path, name, CHANGES, wake) {
        Ok(watch) => watches.push(watch),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot watch for kernelspec changes");
        }
    };
    for dir in search.dirs() {
        if dir.is_dir() {
            watch(dir, None);
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                if entry.path().is_dir() {
                    watch(&entry.path(), None);
                }
            }
            // Replacing the directory itself is reported by `DELETE_SELF` and `MOVE_SELF`.
        } else if let Some((parent, name)) = nearest_parent(dir) {
            watch(&parent, Some(&name));
        }
    }
    watches
}

/// Returns the deepest existing directory above `dir`, and the name of the missing entry in it.
fn nearest_parent(dir: &Path) -> Option<(PathBuf, OsString)> {
    dir.ancestors()
        .zip(dir.ancestors().skip(1))
        .find(|(_, parent)| parent.is_dir())
        .and_then(|(child, parent)| Some((parent.to_owned(), child.file_name()?.to_owned())))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn install(dir: &Path, display_name: &str) {
        std::fs::create_dir_all(dir).unwrap();
        let text = format!(r#"{{"argv": ["x"], "display_name": "{display_name}", "language": "l"}}"#);
        std::fs::write(dir.join("kernel.json"), text).unwrap();
    }

    #[tokio::test]
    async fn each_kernelspec_change_is_seen() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("share/jupyter/kernels");
        let search = SearchPath::new([dir.clone()]);
        let (sender, mut specs) = watch::channel(Arc::new(Specs::find(&search)));
        let events = Arc::new(Events::new().unwrap());
        let follower = tokio::spawn(follow(search, events, sender));
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
        install(&dir.join("a"), "first");
        wait_for(&[("a", "first")]).await;
        install(&dir.join("a"), "second");
        install(&dir.join("b"), "other");
        wait_for(&[("a", "second"), ("b", "other")]).await;
        std::fs::rename(dir.join("b"), dir.join("c")).unwrap();
        std::fs::remove_dir_all(dir.join("a")).unwrap();
        wait_for(&[("c", "other")]).await;
        std::fs::remove_dir_all(root.path().join("share")).unwrap();
        wait_for(&[]).await;
        install(&dir.join("d"), "again");
        wait_for(&[("d", "again")]).await;
        follower.abort();
    }
}
