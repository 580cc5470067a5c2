use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// The directory for logs and the kernels' state, locked so that no other gateway uses it.
#[derive(Debug)]
pub(super) struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Creates the directory with access for this user only, if it is missing, and locks it.
    pub(super) fn take(path: PathBuf) -> Result<Self, String> {
        let failed =
            |what: &str, error: io::Error| format!("cannot {what} the data directory {}: {error}", path.display());
        // Absolute, because kernels have other working directories.
        let path = std::path::absolute(&path).map_err(|error| failed("resolve", error))?;
        create_private(&path).map_err(|error| failed("create", error))?;
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.join("gateway.lock"))
            .map_err(|error| failed("write to", error))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut pid = String::new();
            // The process id only improves the message.
            let _ = (&mut lock).take(32).read_to_string(&mut pid);
            return Err(format!(
                "another gateway (process {1}) uses the data directory {0}; stop it, or choose another --data-dir",
                path.display(),
                pid.trim()
            ));
        }
        lock.set_len(0)
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .map_err(|error| failed("write to", error))?;
        Ok(Self { path, _lock: lock })
    }

    /// Returns a subdirectory. Creates it with access for this user only, if it is missing.
    pub(super) fn folder(&self, name: &str) -> Result<PathBuf, String> {
        let folder = self.path.join(name);
        create_private(&folder).map_err(|error| format!("cannot create {}: {error}", folder.display()))?;
        Ok(folder)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

fn create_private(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// `kernelmux` in the user's data directory of the XDG base directory specification.
/// <https://specifications.freedesktop.org/basedir-spec/latest/>
pub(super) fn default_path() -> Result<PathBuf, String> {
    // The specification says to ignore relative paths.
    let is_valid = |path: &PathBuf| path.is_absolute();
    let data_home = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(is_valid);
    let data_home = data_home.or_else(|| Some(std::env::home_dir().filter(is_valid)?.join(".local/share")));
    match data_home {
        Some(data_home) => Ok(data_home.join("kernelmux")),
        None => Err("no home directory found for the data directory; set --data-dir".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_one_gateway_can_use_the_directory() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/data");
        let first = DataDir::take(path.clone()).unwrap();
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let message = DataDir::take(path.clone()).unwrap_err();
        assert!(message.contains(&std::process::id().to_string()), "{message}");
        drop(first);
        let second = DataDir::take(path).unwrap();
        assert!(second.folder("logs").unwrap().is_dir());
    }

    #[test]
    fn a_path_to_a_file_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let message = DataDir::take(file.path().to_owned()).unwrap_err();
        assert!(message.contains("data directory"), "{message}");
    }
}
