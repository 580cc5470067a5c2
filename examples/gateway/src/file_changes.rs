use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tracing::warn;

use crate::replace_file::target;

/// Debounce time: a change of a file causes several events.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// How often the files are compared with their earlier state, because network file systems report no changes.
const POLL: Duration = Duration::from_secs(1);

/// Identifies a file and the time of its last change; `None` if it cannot be read, or is none, such as a pipe.
type Version = Option<(u64, u64, i64, i64)>;

/// Notices changes of files, including files that are replaced, such as those of a Secret that Kubernetes mounts.
///
/// ```
/// use kernelmux_gateway::FileChanges;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// # let folder = tempfile::tempdir()?;
/// let file = folder.path().join("settings.toml");
/// let mut changes = FileChanges::new(vec![file.clone()]).await;
/// std::fs::write(&file, "port = 8888")?;
/// changes.next().await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct FileChanges {
    files: Arc<[PathBuf]>,
    versions: Vec<Version>,
    changed: Arc<Notify>,
    _watchers: Vec<RecommendedWatcher>,
}

impl FileChanges {
    /// Notices changes of these files from now on. They need not exist.
    pub async fn new(files: Vec<PathBuf>) -> Self {
        let changed = Arc::new(Notify::new());
        let (watched, on_change) = (files.clone(), changed.clone());
        // Watched before their versions are read, so that changes in between are not missed.
        let watching = spawn_blocking(move || {
            let watchers = watched.iter().filter_map(|file| watch(file, on_change.clone()));
            let watchers = watchers.collect();
            (watchers, watched.iter().map(|file| version(file)).collect())
        });
        // It fails only if the async runtime is shutting down.
        let (watchers, versions) = watching.await.unwrap_or_default();
        Self {
            files: files.into(),
            versions,
            changed,
            _watchers: watchers,
        }
    }

    /// Waits until a file has changed since this was called last, or may have. Cancel-safe.
    pub async fn next(&mut self) {
        // An event counts even if the version is the same, because a file can change twice within a clock tick.
        while self.versions_now().await == self.versions && timeout(POLL, self.changed.notified()).await.is_err() {}
        sleep(DEBOUNCE).await;
        self.versions = self.versions_now().await;
    }

    async fn versions_now(&self) -> Vec<Version> {
        let files = self.files.clone();
        let reading = spawn_blocking(move || files.iter().map(|file| version(file)).collect());
        match reading.await {
            Ok(versions) => versions,
            // The async runtime is shutting down.
            Err(_) => std::future::pending().await,
        }
    }
}

fn version(file: &Path) -> Version {
    // Opening a pipe would wait for its writer.
    if !file.is_file() {
        return None;
    }
    // Opening a file on NFS asks the server, and its cached metadata may be old.
    let metadata = File::open(file).and_then(|file| file.metadata()).ok()?;
    Some((metadata.dev(), metadata.ino(), metadata.ctime(), metadata.ctime_nsec()))
}

/// Notifies of changes in the file's folder, because a change replaces the file, or a link in a mounted Secret. If the
/// file is a link, also watches the folder of its target.
fn watch(file: &Path, changed: Arc<Notify>) -> Option<RecommendedWatcher> {
    let folder = |file: &Path| match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    };
    let target = target(file).ok();
    let names: Vec<_> = [Some(file), target.as_deref()]
        .into_iter()
        .filter_map(|file| Some(file?.file_name()?.to_owned()))
        .collect();
    // Kubernetes replaces a link in the folder, whose name begins with two dots. Other files, such as a log, do not matter.
    let is_of_file = move |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default();
        names.iter().any(|own| own == name) || name.as_encoded_bytes().starts_with(b"..")
    };
    let on_event = move |event: notify::Result<notify::Event>| {
        if event.map_or(true, |event| {
            !event.kind.is_access() && event.paths.iter().any(&is_of_file)
        }) {
            changed.notify_one();
        }
    };
    let watched = notify::recommended_watcher(on_event).and_then(|mut watcher| {
        for file in target.as_deref().into_iter().chain([file]) {
            watcher.watch(&folder(file), RecursiveMode::NonRecursive)?;
        }
        Ok(watcher)
    });
    let watched = watched.inspect_err(|error| {
        warn!(file = %file.display(), %error, "the file cannot be watched, so changes take effect after a second");
    });
    watched.ok()
}
