//! Kernelspecs: the installed kernels and how to start them.
//!
//! ```no_run
//! use jupyter_protocol::kernelspec::{SearchPath, find_kernelspecs};
//! use jupyter_protocol::paths::PathEnv;
//!
//! let found = find_kernelspecs(&SearchPath::from_env(&PathEnv::from_process()));
//! for (name, installed) in &found.kernelspecs {
//!     println!("{name}: {} in {}", installed.spec.display_name, installed.resource_dir.display());
//! }
//! for warning in found.broken.values().chain(&found.warnings) {
//!     eprintln!("{warning}");
//! }
//! ```
//!
//! <https://jupyter-client.readthedocs.io/en/stable/kernels.html#kernel-specs>

mod kernel_json;
mod launch;
mod resources;
mod search;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};

use self::kernel_json::Malformed;
use crate::bounded_read::{self, ReadError};

pub use launch::{LaunchArgs, expand_env};
pub use resources::ResourceError;
pub use search::{Found, SearchPath, canonical_name, find_kernelspecs, get_kernelspec};

/// Maximum size of a `kernel.json` in bytes.
pub const MAX_KERNEL_JSON: u64 = 1024 * 1024;

/// Characters to escape in a path segment: all but the unreserved ones of RFC 3986.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// How to interrupt a kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum InterruptMode {
    /// With a signal: SIGINT on Unix.
    #[default]
    Signal,
    /// With an `interrupt_request` on the control channel.
    Message,
}

impl<'de> Deserialize<'de> for InterruptMode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mode = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
        match mode.to_ascii_lowercase().as_str() {
            "" | "signal" => Ok(Self::Signal),
            "message" => Ok(Self::Message),
            _ => Err(serde::de::Error::custom(
                "interrupt_mode must be \"signal\" or \"message\"",
            )),
        }
    }
}

/// Content of a `kernel.json`.
///
/// Parsing is lenient: absent and null fields get their default, and numbers in `env` become text. Fields that the
/// protocol does not name are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernelspec {
    /// Command line that starts the kernel, with templates such as `{connection_file}`: see
    /// [`InstalledKernelspec::argv`].
    #[serde(default, deserialize_with = "null_as_default")]
    pub argv: Vec<String>,
    /// Environment variables for the kernel, with `${VAR}` references: see [`expand_env`].
    #[serde(default, deserialize_with = "kernel_json::env")]
    pub env: BTreeMap<String, String>,
    /// Display name of the kernel.
    #[serde(default, deserialize_with = "null_as_default")]
    pub display_name: String,
    /// Name of the language, by which front ends match notebooks with kernels.
    #[serde(default, deserialize_with = "null_as_default")]
    pub language: String,
    /// How to interrupt the kernel.
    #[serde(default)]
    pub interrupt_mode: InterruptMode,
    /// Further properties, such as `debugger`, `supported_encryption` or `kernel_provisioner`.
    #[serde(default, deserialize_with = "null_as_default")]
    pub metadata: Map<String, Value>,
    /// Protocol version of the kernel; may be empty.
    #[serde(default, deserialize_with = "null_as_default")]
    pub kernel_protocol_version: String,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A kernelspec with its name and folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstalledKernelspec {
    /// Name by which the kernel is started: `[a-z0-9._-]+`.
    pub name: String,
    /// Content of `kernel.json`.
    pub spec: Kernelspec,
    /// Folder of `kernel.json`, logos and other resources.
    pub resource_dir: PathBuf,
}

/// Error of finding or reading a kernelspec. Each message names the kernel, folder or file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelspecError {
    /// No kernelspec has this name.
    #[error(
        "no kernel named {name:?}; installed kernels: {}",
        if installed.is_empty() { "none. Install one, for example with `pip install ipykernel`".to_owned() }
        else { installed.join(", ") }
    )]
    NoSuchKernel {
        /// The requested name, truncated to 64 characters.
        name: String,
        /// Names of the installed kernelspecs.
        installed: Vec<String>,
    },
    /// The name of the folder is not a valid kernel name.
    #[error("ignoring {path}: a kernel name has only ASCII letters, digits, '.', '-' and '_'; rename the folder")]
    InvalidName {
        /// Path of the folder.
        path: PathBuf,
    },
    /// Reading a file or folder failed.
    #[error("cannot read {path}: {source}; check its access rights")]
    Read {
        /// Path of the file or folder.
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
    /// The file is larger than [`MAX_KERNEL_JSON`].
    #[error("{path} has more than {MAX_KERNEL_JSON} bytes, so it is not a kernelspec; reinstall the kernel")]
    TooLarge {
        /// Path of the file.
        path: PathBuf,
    },
    /// The file is not a JSON object, or a field has the wrong type.
    #[error("{path} is not a kernelspec: {member}{source}; correct it or reinstall the kernel")]
    Malformed {
        /// Path of the file.
        path: PathBuf,
        /// Path of the invalid member with a colon, such as `env.LANG: `, empty if the file is not a JSON object.
        member: String,
        /// What is wrong and where.
        source: serde_json::Error,
    },
    /// A folder of kernelspecs has more entries than are searched.
    #[error("{path} has more than {limit} entries; ignoring the rest")]
    TooMany {
        /// Path of the folder.
        path: PathBuf,
        /// Maximum number of entries that are searched.
        limit: usize,
    },
}

impl InstalledKernelspec {
    /// Reads the kernelspec in `resource_dir`. Blocks on the file system.
    ///
    /// # Errors
    /// - [`KernelspecError::Read`] if `kernel.json` cannot be read or is not a regular file.
    /// - [`KernelspecError::TooLarge`] if `kernel.json` exceeds [`MAX_KERNEL_JSON`].
    /// - [`KernelspecError::Malformed`] if `kernel.json` is not a valid kernelspec.
    pub fn read(name: impl Into<String>, resource_dir: impl Into<PathBuf>) -> Result<Self, KernelspecError> {
        let resource_dir = resource_dir.into();
        let path = resource_dir.join("kernel.json");
        let bytes = match bounded_read::read_limited(&path, MAX_KERNEL_JSON) {
            Ok(bytes) => bytes,
            Err(ReadError::TooLarge) => return Err(KernelspecError::TooLarge { path }),
            Err(ReadError::NotAFile) => {
                let source = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
                return Err(KernelspecError::Read { path, source });
            }
            Err(ReadError::Io(source)) => return Err(KernelspecError::Read { path, source }),
        };
        // Some editors prepend a byte order mark, which JSON does not allow.
        let json = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
        match kernel_json::parse(json) {
            Ok(spec) => Ok(Self {
                name: name.into(),
                spec,
                resource_dir,
            }),
            Err(Malformed { member, source }) => Err(KernelspecError::Malformed { path, member, source }),
        }
    }

    /// Returns the response model of `GET /api/kernelspecs/{name}`: `{name, spec, resources}`.
    ///
    /// `base_url` is the base URL of the server, such as `/`. Blocks on the file system to list the resources.
    #[must_use]
    pub fn model(&self, base_url: &str) -> Value {
        json!({ "name": self.name, "spec": self.spec, "resources": self.resource_urls(base_url) })
    }

    /// Returns the URLs of the resources that front ends use, as `resources` of the [`model`](Self::model).
    ///
    /// `base_url` is the base URL of the server, such as `/`. Blocks on the file system to list the resources.
    #[must_use]
    pub fn resource_urls(&self, base_url: &str) -> BTreeMap<String, String> {
        let base_url = base_url.trim_end_matches('/');
        let name = utf8_percent_encode(&self.name, ESCAPED);
        self.resources()
            .into_iter()
            .map(|(key, file)| {
                let file = utf8_percent_encode(&file, ESCAPED);
                (key, format!("{base_url}/kernelspecs/{name}/{file}"))
            })
            .collect()
    }
}

/// Returns the response model of `GET /api/kernelspecs`: `{default, kernelspecs: {name: {name, spec, resources}}}`.
///
/// `base_url` is the base URL of the server, such as `/`. Blocks on the file system to list the resources.
#[must_use]
pub fn kernelspecs_model<'a>(
    default: &str,
    kernelspecs: impl IntoIterator<Item = &'a InstalledKernelspec>,
    base_url: &str,
) -> Value {
    let kernelspecs: Map<String, Value> = kernelspecs
        .into_iter()
        .map(|installed| (installed.name.clone(), installed.model(base_url)))
        .collect();
    json!({ "default": default, "kernelspecs": kernelspecs })
}

/// Returns whether `name` is a valid kernel name: not empty, with only ASCII letters, digits, `.`, `-` and `_`.
#[must_use]
pub fn is_valid_kernel_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
}

/// Returns the Python prefix of a resource folder: `P` for `P/share/jupyter/kernels/NAME`.
fn python_prefix(resource_dir: &Path) -> Option<&Path> {
    let mut dir = resource_dir.parent()?;
    for expected in ["kernels", "jupyter", "share"] {
        if dir.file_name()? != expected {
            return None;
        }
        dir = dir.parent()?;
    }
    Some(dir)
}

fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}
