//! The state directory: what the provider knows of its kernels, kept so that another embedder can go on with it.
//!
//! ```text
//! STATE/lock                       held by the embedder that uses the directory
//! STATE/kernels/ID-TOKEN/          one directory for each kernel
//!     record.json                  what is known of it
//!     kernel-ID.json               its connection file
//!     output.log                   what it wrote to standard output and error
//! STATE/s/TOKEN/k-1 … k-5          its sockets, where it has Unix sockets
//! ```
//!
//! A launch that was given up is cleared away while another of the same id may have begun: hence the token.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use jupyter_protocol::InstalledKernelspec;
use jupyter_protocol::kernelspec::Kernelspec;
use kernel_provider::KernelId;
use kernel_provider::provider::{Exit, KernelRecord, ProviderError};
use serde::{Deserialize, Serialize};

use crate::endpoints::MAX_SOCKET_PATH;
use crate::process::stat::Identity;

/// The longest record that is read, in bytes. The environment of a kernel is in it.
pub(crate) const MAX_RECORD: u64 = 16 * 1024 * 1024;

/// What `record.json` holds. It is private to this user, as the environment may hold secrets.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Saved {
    /// What identifies the kernel; its `data` is filled in when it is handed out.
    pub(crate) record: KernelRecord,
    /// How it was started, and is started again.
    pub(crate) start: Start,
    /// The process, from when there is one.
    pub(crate) process: Option<Identity>,
    /// Where in the output file the process's own output begins; before it is that of the ones before a restart.
    pub(crate) output_from: u64,
    /// How far it has come.
    pub(crate) stage: Stage,
}

/// How a kernel is started.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Start {
    /// The kernelspec's name.
    pub(crate) spec_name: String,
    /// What its `kernel.json` held.
    pub(crate) spec: Kernelspec,
    /// The folder of its `kernel.json`.
    pub(crate) resource_dir: PathBuf,
    /// What the caller asked for.
    pub(crate) env: BTreeMap<String, String>,
    /// Where it starts.
    pub(crate) working_dir: PathBuf,
}

impl Start {
    pub(crate) fn kernelspec(&self) -> InstalledKernelspec {
        InstalledKernelspec {
            name: self.spec_name.clone(),
            spec: self.spec.clone(),
            resource_dir: self.resource_dir.clone(),
        }
    }
}

/// How far a kernel has come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Stage {
    /// Its sockets were not open yet.
    Starting,
    /// It ran.
    Running,
    /// It ended by itself.
    Ended(Exit),
}

/// Where what belongs to one kernel is.
#[derive(Clone, Debug)]
pub(crate) struct KernelFiles {
    /// Its directory.
    pub(crate) dir: PathBuf,
    /// The directory of its Unix sockets; made only where it has them.
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

    /// Puts a damaged record aside.
    pub(crate) fn keep_damaged_record(&self) {
        let aside = self.dir.join("record.json.damaged");
        // It may be missing.
        let _ = fs::rename(self.record(), aside);
    }

    /// Writes the record, whole or not at all. Blocks shortly.
    pub(crate) fn save(&self, saved: &Saved) -> Result<(), ProviderError> {
        let write = || -> io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
            file.write_all(&serde_json::to_vec(saved)?)?;
            file.persist(self.record())?;
            Ok(())
        };
        write().map_err(|error| ProviderError::failed(format!("write {}", self.record().display()), error))
    }

    /// Reads the record; what is no whole record is an error.
    fn load(&self) -> io::Result<Saved> {
        let mut text = Vec::new();
        File::open(self.record())?.take(MAX_RECORD).read_to_end(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    }

    /// Makes both directories empty of sockets.
    pub(crate) fn make(&self, with_sockets: bool) -> Result<(), ProviderError> {
        make_private(&self.dir)?;
        self.remove_sockets();
        if with_sockets {
            make_private(&self.socket_dir)?;
        }
        Ok(())
    }

    fn remove_sockets(&self) {
        remove(&self.socket_dir);
    }

    /// Removes what only a running kernel needs: sockets and key.
    pub(crate) fn remove_connection(&self) {
        self.remove_sockets();
        let _ = fs::remove_file(self.connection_file());
    }

    /// Removes all.
    pub(crate) fn remove_all(&self) {
        self.remove_sockets();
        remove(&self.dir);
    }
}

fn remove(dir: &Path) {
    if let Err(error) = fs::remove_dir_all(dir)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(dir = %dir.display(), %error, "cannot be removed");
    }
}

/// The directory, which no other embedder can use as long as this is there.
#[derive(Debug)]
pub(crate) struct StateDir {
    kernels: PathBuf,
    sockets: PathBuf,
    lock: File,
}

impl Drop for StateDir {
    fn drop(&mut self) {
        // Closing the file is not enough: a process that is forked at this moment has it too, until it runs its program.
        let _ = self.lock.unlock();
    }
}

impl StateDir {
    /// Makes what is missing and takes the lock. Blocks shortly.
    pub(crate) fn open(dir: &Path, socket_dir: Option<&Path>) -> Result<Self, ProviderError> {
        let dir =
            std::path::absolute(dir).map_err(|error| ProviderError::failed(format!("use {}", dir.display()), error))?;
        make_private(&dir)?;
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
                "another process uses it; give each a directory of its own, or end the other first",
            ),
            TryLockError::Error(error) => ProviderError::failed(action(), error),
        })?;
        let kernels = dir.join("kernels");
        make_private(&kernels)?;
        let sockets = match socket_dir {
            Some(dir) if is_too_long(dir) => {
                return Err(ProviderError::failed(
                    format!("make sockets in {}", dir.display()),
                    format!("a socket's path can have {MAX_SOCKET_PATH} bytes; give a directory with a shorter path"),
                ));
            }
            Some(dir) => dir.to_owned(),
            None => default_socket_dir(&dir),
        };
        make_private(&sockets)?;
        Ok(Self { kernels, sockets, lock })
    }

    /// Names the files of a kernel that is to be launched; makes none.
    pub(crate) fn new_kernel(&self, id: KernelId) -> KernelFiles {
        let mut token = uuid::Uuid::new_v4().simple().to_string();
        token.truncate(8);
        self.files(id, &token)
    }

    fn files(&self, id: KernelId, token: &str) -> KernelFiles {
        KernelFiles {
            dir: self.kernels.join(format!("{id}-{token}")),
            socket_dir: self.sockets.join(token),
            id,
        }
    }

    /// The kernels that there are records of, and the files of those whose record is missing or cut off.
    #[allow(clippy::type_complexity)]
    pub(crate) fn load(&self) -> Result<(Vec<(KernelFiles, Saved)>, Vec<KernelFiles>), ProviderError> {
        let entries = fs::read_dir(&self.kernels)
            .map_err(|error| ProviderError::failed(format!("read {}", self.kernels.display()), error))?;
        let (mut whole, mut broken) = (Vec::new(), Vec::new());
        for entry in entries.flatten() {
            let name = entry.file_name();
            let parsed = name
                .to_str()
                .and_then(|name| name.rsplit_once('-'))
                .and_then(|(id, token)| Some((id.parse().ok()?, token)));
            let Some((id, token)) = parsed else {
                tracing::warn!(path = %entry.path().display(), "is no kernel's and is left alone");
                continue;
            };
            let files = self.files(id, token);
            match files.load() {
                Ok(saved) if saved.record.id == id => whole.push((files, saved)),
                Ok(_) => {
                    tracing::warn!(kernel = %id, file = %files.record().display(), "the record is another kernel's");
                    broken.push(files);
                }
                Err(error) => {
                    tracing::warn!(kernel = %id, file = %files.record().display(), %error, "the record cannot be read");
                    broken.push(files);
                }
            }
        }
        Ok((whole, broken))
    }
}

fn is_too_long(dir: &Path) -> bool {
    dir.as_os_str().len() + "/12345678/k-1".len() > MAX_SOCKET_PATH
}

/// Of the directories that can hold sockets the first whose path is short enough.
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

/// Makes a directory for this user only, with its parents, or checks that it is one.
fn make_private(dir: &Path) -> Result<(), ProviderError> {
    let fail =
        |reason: &dyn std::fmt::Display| ProviderError::failed(format!("use the directory {}", dir.display()), reason);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| fail(&error))?;
    let metadata = fs::symlink_metadata(dir).map_err(|error| fail(&error))?;
    let user = rustix::process::geteuid().as_raw();
    // In a directory that others can write to, such as /tmp, somebody else may have been first.
    if !metadata.is_dir() || metadata.uid() != user {
        return Err(fail(&"it is not a directory of this user; give another"));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(fail(
            &"others have access to it, and kernels' keys are kept there; give it mode 0700, or give another",
        ));
    }
    Ok(())
}
