use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// The format of the directory. A gateway reads this one and all earlier ones.
const FORMAT: u32 = 1;

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
        check_format(&path)?;
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

/// Refuses a directory in a newer format, and records the format of a new one. Directories of versions that recorded none
/// have the first format.
fn check_format(path: &Path) -> Result<(), String> {
    let file = path.join("format");
    let failed = |error: io::Error| format!("cannot use {}: {error}", file.display());
    match std::fs::read_to_string(&file) {
        Ok(text) => match text.trim().parse::<u32>() {
            Ok(format) if format <= FORMAT => Ok(()),
            Ok(format) => Err(format!(
                "the data directory {} has the format {format} of a newer gateway, and this one knows {FORMAT}; use that \
                 version, or restore a backup from before the upgrade",
                path.display()
            )),
            Err(_) => Err(format!(
                "{} is damaged: it must contain the number of the data directory's format, such as {FORMAT}",
                file.display()
            )),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // Renamed, so that it is never there without its content.
            let new = path.join("format.new");
            let written = std::fs::write(&new, format!("{FORMAT}\n")).and_then(|()| File::open(&new)?.sync_all());
            written.and_then(|()| std::fs::rename(&new, &file)).map_err(failed)
        }
        Err(error) => Err(failed(error)),
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
    fn a_newer_format_is_refused_and_an_older_one_is_not() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().to_owned();
        drop(DataDir::take(path.clone()).unwrap());
        let file = path.join("format");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "1\n");
        drop(DataDir::take(path.clone()).unwrap());
        std::fs::write(&file, "2\n").unwrap();
        let message = DataDir::take(path.clone()).unwrap_err();
        assert!(message.contains("the format 2 of a newer gateway"), "{message}");
        for damaged in ["", "x", "-1", "1 2"] {
            std::fs::write(&file, damaged).unwrap();
            let message = DataDir::take(path.clone()).unwrap_err();
            assert!(message.contains("is damaged"), "{damaged:?}: {message}");
        }
        // A gateway that recorded no format, or was killed before it could.
        std::fs::remove_file(&file).unwrap();
        std::fs::write(path.join("format.new"), "").unwrap();
        drop(DataDir::take(path).unwrap());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "1\n");
    }

    #[test]
    fn a_path_to_a_file_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let message = DataDir::take(file.path().to_owned()).unwrap_err();
        assert!(message.contains("data directory"), "{message}");
    }
}
