//! Finds the kernelspecs that run in pods, and follows changes to them.

use std::path::PathBuf;
use std::sync::Arc;

use jupyter_protocol::InstalledKernelspec;
use jupyter_protocol::kernelspec::{KernelspecError, get_kernelspec};
use kernel_provider::{LaunchError, Specs, follow_specs};
use notify::{EventKind, RecursiveMode, Watcher as _};
use tokio::sync::{Notify, watch};

use crate::K8sOptions;
use crate::settings::Settings;

/// Searches for kernelspecs. Blocks on the file system.
pub(crate) fn find(config: &K8sOptions) -> Specs {
    let mut specs = Specs::find(&config.search);
    let Specs { by_name, broken } = &mut specs;
    by_name.retain(
        |name, installed| match Settings::from_spec(&installed.spec, config.default_image.as_deref()) {
            Ok(settings) => settings.is_some(),
            Err(error) => {
                let file = installed.resource_dir.join("kernel.json");
                broken.insert(name.clone(), format!("{}: {error}", file.display()));
                false
            }
        },
    );
    specs
}

/// Searches again after each change of files, including updates of a mounted ConfigMap. Never returns.
pub(crate) async fn follow(config: Arc<K8sOptions>, specs: watch::Sender<Arc<Specs>>) {
    let wake = Arc::new(Notify::new());
    let watch = {
        let (config, wake) = (Arc::clone(&config), Arc::clone(&wake));
        move || watch_all(config.search.dirs(), &wake)
    };
    follow_specs(specs, wake, watch, move || find(&config)).await;
}

/// Watches the kernelspec folders, and the nearest existing parent of each missing one.
fn watch_all(dirs: &[PathBuf], wake: &Arc<Notify>) -> Option<notify::RecommendedWatcher> {
    let warn = |error: notify::Error| tracing::warn!(%error, "cannot watch for kernelspec changes");
    let watched_dirs = dirs.to_vec();
    let wake = Arc::clone(wake);
    let on_event = move |event: notify::Result<notify::Event>| {
        // In a missing folder's parent, only changes on the path to the folder matter.
        let is_relevant = |path: &PathBuf| {
            watched_dirs
                .iter()
                .any(|dir| path.starts_with(dir) || dir.starts_with(path))
        };
        let is_change = event.map_or(true, |event| {
            event.need_rescan()
                || event.paths.iter().any(is_relevant)
                    && !matches!(event.kind, EventKind::Access(access) if !is_written(access))
        });
        if is_change {
            wake.notify_one();
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
        // If the folder was removed meanwhile, the next search finds it missing.
        watched.unwrap_or_else(warn);
    }
    Some(watcher)
}

/// Whether a file was written. Other accesses, such as the provider's own reads, are not changes.
fn is_written(access: notify::event::AccessKind) -> bool {
    use notify::event::{AccessKind, AccessMode};
    matches!(access, AccessKind::Close(AccessMode::Write))
}

/// Reads one kernelspec and its settings. Blocks on the file system.
///
/// # Errors
/// [`LaunchError::NoSuchSpec`] if there is none that runs in pods, [`LaunchError::CannotStart`] if it is invalid.
pub(crate) fn get(config: &K8sOptions, name: &str) -> Result<(InstalledKernelspec, Settings), LaunchError> {
    let cannot_start = |reason: String| LaunchError::CannotStart {
        what: format!("a kernel of {name}"),
        reason,
    };
    let no_such_spec = || LaunchError::NoSuchSpec {
        spec: name.to_owned(),
        known: find(config).by_name.into_keys().collect::<Vec<_>>().join(", "),
    };
    let installed = get_kernelspec(&config.search, name).map_err(|error| match error {
        KernelspecError::NoSuchKernel { .. } => no_such_spec(),
        other => cannot_start(other.to_string()),
    })?;
    match Settings::from_spec(&installed.spec, config.default_image.as_deref()) {
        Ok(Some(settings)) => Ok((installed, settings)),
        Ok(None) => Err(no_such_spec()),
        Err(error) => {
            let file = installed.resource_dir.join("kernel.json");
            Err(cannot_start(format!("{}: {error}", file.display())))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::Path;
    use std::time::Duration;

    use super::*;

    fn install(dir: &Path, image: &str) {
        std::fs::create_dir_all(dir).unwrap();
        let text = format!(
            r#"{{"argv": ["x"], "display_name": "x", "language": "l", "metadata": {{"kernelmux": {{"kubernetes": {{"image": "{image}"}}}}}}}}"#
        );
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
        let mut config = K8sOptions::new("n");
        config.search = jupyter_protocol::kernelspec::SearchPath::new([plain.clone(), mounted.clone()]);
        let (sender, mut specs) = watch::channel(Arc::new(find(&config)));
        let follower = tokio::spawn(follow(Arc::new(config), sender));
        let mut wait_for = async |expected: &[(&str, &str)]| {
            let image =
                |spec: &InstalledKernelspec| Settings::from_spec(&spec.spec, None).unwrap().unwrap().image.unwrap();
            let is_so = |specs: &Arc<Specs>| {
                let found: Vec<_> = specs
                    .by_name
                    .iter()
                    .map(|(name, spec)| (name.clone(), image(spec)))
                    .collect();
                found
                    .iter()
                    .map(|(name, image)| (name.as_str(), image.as_str()))
                    .eq(expected.iter().copied())
            };
            let found = tokio::time::timeout(Duration::from_secs(10), specs.wait_for(is_so)).await;
            assert!(found.is_ok(), "no {expected:?}");
        };
        wait_for(&[]).await;
        install(&plain.join("a"), "first");
        wait_for(&[("a", "first")]).await;
        install(&plain.join("a"), "second");
        wait_for(&[("a", "second")]).await;
        mount(&mounted, "..1", |files| install(&files.join("b"), "first"));
        wait_for(&[("a", "second"), ("b", "first")]).await;
        mount(&mounted, "..2", |files| install(&files.join("b"), "second"));
        wait_for(&[("a", "second"), ("b", "second")]).await;
        std::fs::remove_dir_all(root.path().join("share")).unwrap();
        wait_for(&[("b", "second")]).await;
        install(&plain.join("a"), "again");
        wait_for(&[("a", "again"), ("b", "second")]).await;
        follower.abort();
    }
}
