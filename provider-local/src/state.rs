//! The state directory: everything that another provider needs to take over the kernels.
//!
//! ```text
//! STATE/lock                       locked by the provider that uses the directory
//! STATE/kernels/ID-SUFFIX/         one directory for each kernel
//!     record.json                  the kernel's record
//!     kernel-ID.json               its connection file
//!     output.log                   its standard output and error
//! STATE/s/SUFFIX/k-1 … k-5         its sockets, if it uses Unix sockets
//! STATE/agents/                    kernels under agents (see `agents/files.rs`)
//! ```
//!
//! The random SUFFIX separates the files of a cancelled launch, whose removal may still be in progress, from those of
//! the next launch with the same id. `STATE/s` is elsewhere if its path would be too long for sockets, or if
//! [`LocalOptions::socket_dir`](crate::LocalOptions::socket_dir) is set.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use jupyter_protocol::kernelspec::Kernelspec;
use jupyter_protocol::{InstalledKernelspec, KernelId};
use kernel_provider::{Exit, KernelRecord, ProviderError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::endpoints::MAX_SOCKET_PATH;
use crate::process::stat::Identity;

/// Maximum size of a record that is read, in bytes. The record includes the kernel's environment.
pub(crate) const MAX_RECORD: u64 = 16 * 1024 * 1024;

/// The contents of `record.json`. The file is private to this user, because the environment may contain secrets.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SavedKernel {
    /// The kernel's record. Its `data` is filled in when the record is returned to callers.
    pub(crate) record: KernelRecord,
    /// How the kernel was started, for restarts.
    pub(crate) start: LaunchSpec,
    /// The kernel's process, or `None` before it is spawned.
    pub(crate) process: Option<Identity>,
    /// Offset in the output file where this process's output begins. Earlier output is from before a restart.
    pub(crate) output_from: u64,
    /// The stage of the kernel's life.
    pub(crate) stage: Stage,
}

/// Everything that is needed to start a kernel.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LaunchSpec {
    /// The kernelspec's name.
    pub(crate) spec_name: String,
    /// The contents of its `kernel.json`.
    pub(crate) spec: Kernelspec,
    /// The directory of its `kernel.json`.
    pub(crate) resource_dir: PathBuf,
    /// Variables that the launch request set.
    pub(crate) env: BTreeMap<String, String>,
    /// The kernel's working directory.
    pub(crate) working_dir: PathBuf,
}

impl LaunchSpec {
    pub(crate) fn kernelspec(&self) -> InstalledKernelspec {
        InstalledKernelspec {
            name: self.spec_name.clone(),
            spec: self.spec.clone(),
            resource_dir: self.resource_dir.clone(),
        }
    }
}

/// Stages of a kernel's life.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Stage {
    /// The kernel's sockets are not open yet.
    Starting,
    /// The kernel is running.
    Running,
    /// The kernel ended by itself.
    Ended(Exit),
}

/// Paths of one kernel's files.
#[derive(Clone, Debug)]
pub(crate) struct KernelFiles {
    /// The kernel's directory.
    pub(crate) dir: PathBuf,
    /// The directory of its Unix sockets. It only exists if the kernel uses them.
    pub(crate) socket_dir: PathBuf,
    pub(crate) id: KernelId,
}

impl KernelFiles {
    pub(crate) fn connection_file(&self) -> PathBuf {
        self.dir.join(format!("kernel-{}.json", self.id))
    }

    pub(crate) fn output(&self) -> PathBuf {
        self.dir.join("output.log")
    }

    pub(crate) fn record(&self) -> PathBuf {
        self.dir.join("record.json")
    }

    /// Renames a damaged record, so that it is kept when a new one is written.
    pub(crate) fn keep_damaged_record(&self) {
        let aside = self.dir.join("record.json.damaged");
        // The record may be missing.
        let _ = fs::rename(self.record(), aside);
    }

    /// Writes the record atomically. Blocks briefly.
    pub(crate) fn save(&self, saved: &SavedKernel) -> Result<(), ProviderError> {
        save_record(&self.record(), saved)
    }

    /// Reads the record.
    ///
    /// # Errors
    /// [`io::Error`] if the file is missing, truncated or invalid.
    pub(crate) fn load(&self) -> io::Result<SavedKernel> {
        load_record(&self.record())
    }

    /// Creates the kernel's directory, and with `with_sockets` an empty socket directory.
    pub(crate) fn create_dirs(&self, with_sockets: bool) -> Result<(), ProviderError> {
        create_private_dir(&self.dir)?;
        self.remove_sockets();
        if with_sockets {
            create_private_dir(&self.socket_dir)?;
        }
        Ok(())
    }

    fn remove_sockets(&self) {
        remove(&self.socket_dir);
    }

    /// Removes what only a running kernel needs: the sockets and the connection file with its key.
    pub(crate) fn remove_connection(&self) {
        self.remove_sockets();
        let _ = fs::remove_file(self.connection_file());
    }

    /// Removes all files of the kernel.
    pub(crate) fn remove_all(&self) {
        self.remove_sockets();
        remove(&self.dir);
    }
}

/// Writes a record atomically, with mode 0600. Blocks briefly.
pub(crate) fn save_record(path: &Path, record: &impl Serialize) -> Result<(), ProviderError> {
    let write = || -> io::Result<()> {
        let dir = path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.write_all(&serde_json::to_vec(record)?)?;
        file.persist(path)?;
        Ok(())
    };
    write().map_err(|error| ProviderError::failed(format!("write {}", path.display()), error))
}

/// Reads a record of at most [`MAX_RECORD`] bytes.
///
/// # Errors
/// [`io::Error`] if the file is missing, truncated or invalid.
pub(crate) fn load_record<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    let mut text = Vec::new();
    File::open(path)?.take(MAX_RECORD).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

fn remove(dir: &Path) {
    if let Err(error) = fs::remove_dir_all(dir)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(dir = %dir.display(), %error, "cannot remove a kernel's directory");
    }
}

/// The opened state directory. No other provider can open it until this is unlocked or dropped.
#[derive(Debug)]
pub(crate) struct StateDir {
    kernels: PathBuf,
    agents: PathBuf,
    sockets: PathBuf,
    lock: File,
}

impl Drop for StateDir {
    fn drop(&mut self) {
        self.unlock();
    }
}

impl StateDir {
    /// Creates missing directories and takes the lock. Blocks briefly.
    pub(crate) fn open(dir: &Path, socket_dir: Option<&Path>) -> Result<Self, ProviderError> {
        let dir =
            std::path::absolute(dir).map_err(|error| ProviderError::failed(format!("use {}", dir.display()), error))?;
        create_private_dir(&dir)?;
        let path = dir.join("lock");
        let action = || format!("lock {}", path.display());
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| ProviderError::failed(action(), error))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => ProviderError::failed(
                format!("use the state directory {}", dir.display()),
                "another process uses it; choose another directory, or end that process first",
            ),
            TryLockError::Error(error) => ProviderError::failed(action(), error),
        })?;
        let kernels = dir.join("kernels");
        create_private_dir(&kernels)?;
        let agents = dir.join("agents");
        create_private_dir(&agents)?;
        let sockets = match socket_dir {
            Some(dir) if is_too_long(dir) => {
                return Err(ProviderError::failed(
                    format!("create sockets in {}", dir.display()),
                    format!(
                        "a socket's path is limited to {MAX_SOCKET_PATH} bytes; choose a directory with a shorter path"
                    ),
                ));
            }
            Some(dir) => dir.to_owned(),
            None => default_socket_dir(&dir),
        };
        create_private_dir(&sockets)?;
        Ok(Self {
            kernels,
            agents,
            sockets,
            lock,
        })
    }

    /// The directory that contains the agents' directories.
    pub(crate) fn agents(&self) -> &Path {
        &self.agents
    }

    /// The directory for Unix sockets.
    pub(crate) fn socket_dir(&self) -> &Path {
        &self.sockets
    }

    /// Releases the lock, so that another provider can open the directory.
    pub(crate) fn unlock(&self) {
        // Closing the file is not enough: a process that is being forked shares it until it executes its program.
        let _ = self.lock.unlock();
    }

    /// Chooses the paths for a new kernel. Creates no files.
    pub(crate) fn new_kernel(&self, id: KernelId) -> KernelFiles {
        let mut suffix = uuid::Uuid::new_v4().simple().to_string();
        suffix.truncate(8);
        self.files(id, &suffix)
    }

    fn files(&self, id: KernelId, suffix: &str) -> KernelFiles {
        KernelFiles {
            dir: self.kernels.join(format!("{id}-{suffix}")),
            socket_dir: self.sockets.join(suffix),
            id,
        }
    }

    /// Reads all records. Returns the kernels with intact records, and the files of kernels whose record is missing or
    /// damaged.
    #[allow(clippy::type_complexity)]
    pub(crate) fn load(&self) -> Result<(Vec<(KernelFiles, SavedKernel)>, Vec<KernelFiles>), ProviderError> {
        let entries = fs::read_dir(&self.kernels)
            .map_err(|error| ProviderError::failed(format!("read {}", self.kernels.display()), error))?;
        let (mut intact, mut broken) = (Vec::new(), Vec::new());
        for entry in entries.flatten() {
            let name = entry.file_name();
            let parsed = name
                .to_str()
                .and_then(|name| name.rsplit_once('-'))
                .and_then(|(id, suffix)| Some((id.parse().ok()?, suffix)));
            let Some((id, suffix)) = parsed else {
                tracing::warn!(path = %entry.path().display(), "ignoring an entry that does not belong to a kernel");
                continue;
            };
            let files = self.files(id, suffix);
            match files.load() {
                Ok(saved) if saved.record.id == id => intact.push((files, saved)),
                Ok(_) => {
                    tracing::warn!(kernel = %id, file = %files.record().display(), "the record belongs to another kernel");
                    broken.push(files);
                }
                Err(error) => {
                    tracing::warn!(kernel = %id, file = %files.record().display(), %error, "cannot read the record");
                    broken.push(files);
                }
            }
        }
        Ok((intact, broken))
    }
}

fn is_too_long(dir: &Path) -> bool {
    dir.as_os_str().len() + "/12345678/k-1".len() > MAX_SOCKET_PATH
}

/// Chooses the first candidate directory whose path is short enough for sockets.
fn default_socket_dir(state_dir: &Path) -> PathBuf {
    let of_user = format!("kernelmux-{}", rustix::process::geteuid().as_raw());
    let candidates = [
        Some(state_dir.join("s")),
        std::env::var_os("XDG_RUNTIME_DIR").map(|dir| Path::new(&dir).join("kernelmux")),
        Some(std::env::temp_dir().join(&of_user)),
    ];
    candidates
        .into_iter()
        .flatten()
        .find(|dir| dir.is_absolute() && !is_too_long(dir))
        .unwrap_or_else(|| Path::new("/tmp").join(of_user))
}

/// Creates a directory with mode 0700 and its parents, or checks that an existing one is private.
pub(crate) fn create_private_dir(dir: &Path) -> Result<(), ProviderError> {
    let fail =
        |reason: &dyn std::fmt::Display| ProviderError::failed(format!("use the directory {}", dir.display()), reason);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| fail(&error))?;
    let metadata = fs::symlink_metadata(dir).map_err(|error| fail(&error))?;
    let user = rustix::process::geteuid().as_raw();
    // In a directory that others can write to, such as `/tmp`, another user may have created it first.
    if !metadata.is_dir() || metadata.uid() != user {
        return Err(fail(&"it is not a directory owned by this user; choose another"));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(fail(
            &"others have access to it, and thus to the kernels; change its mode to 0700, or choose another",
        ));
    }
    Ok(())
}
