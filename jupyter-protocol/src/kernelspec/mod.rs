//! Kernelspecs: which kernels are installed and how each is started.
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

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};

use self::kernel_json::Malformed;
use crate::files::{self, ReadError};

pub use launch::{LaunchArgs, expand_env};
pub use resources::ResourceError;
pub use search::{Found, SearchPath, canonical_name, find_kernelspecs, get_kernelspec};

/// The longest `kernel.json` that is read, in bytes.
pub const MAX_KERNEL_JSON: u64 = 1024 * 1024;

/// How a kernel is told to stop what it is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum InterruptMode {
    /// By a signal: SIGINT on Unix.
    #[default]
    Signal,
    /// By an `interrupt_request` on the control channel.
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

/// What a `kernel.json` holds.
///
/// Read leniently: an absent or null field is empty, and a number in `env` becomes text. Fields that the protocol does
/// not name are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernelspec {
    /// The command that starts the kernel, with templates such as `{connection_file}`: see
    /// [`InstalledKernelspec::argv`].
    #[serde(default, deserialize_with = "null_as_default")]
    pub argv: Vec<String>,
    /// Environment variables for the kernel, with `${VAR}` references: see [`expand_env`].
    #[serde(default, deserialize_with = "kernel_json::env")]
    pub env: BTreeMap<String, String>,
    /// The kernel's name for its users.
    #[serde(default, deserialize_with = "null_as_default")]
    pub display_name: String,
    /// The language's name, which notebooks are matched with.
    #[serde(default, deserialize_with = "null_as_default")]
    pub language: String,
    /// How to interrupt the kernel.
    #[serde(default)]
    pub interrupt_mode: InterruptMode,
    /// Anything else, such as `debugger`, `supported_encryption` or `kernel_provisioner`.
    #[serde(default, deserialize_with = "null_as_default")]
    pub metadata: Map<String, Value>,
    /// The version of the protocol that the kernel says it speaks; may be empty.
    #[serde(default, deserialize_with = "null_as_default")]
    pub kernel_protocol_version: String,
    /// Fields that the protocol does not name.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A kernelspec together with its name and the folder that it was found in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstalledKernelspec {
    /// The name to start it by: lower case, `[a-z0-9._-]+`.
    pub name: String,
    /// What its `kernel.json` holds.
    pub spec: Kernelspec,
    /// The folder of `kernel.json`, logos and other resources.
    pub resource_dir: PathBuf,
}

/// A kernelspec could not be used. Each names the folder or file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelspecError {
    /// No kernelspec has this name.
    #[error(
        "no kernel named {name:?}; installed are {}",
        if installed.is_empty() { "none: install one, for example with `pip install ipykernel`".to_owned() }
        else { installed.join(", ") }
    )]
    NoSuchKernel {
        /// The name that was asked for, cut off after 64 characters.
        name: String,
        /// The names that there are.
        installed: Vec<String>,
    },
    /// The folder's name cannot be a kernel's.
    #[error("{path} is passed over: a kernel's name has only letters, digits, '.', '-' and '_'; rename the folder")]
    InvalidName {
        /// The folder.
        path: PathBuf,
    },
    /// The system did not let it be read.
    #[error("cannot read {path}: {source}; check its access rights")]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It is longer than [`MAX_KERNEL_JSON`].
    #[error("{path} has more than {MAX_KERNEL_JSON} bytes, so it is no kernelspec; install the kernel again")]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// It is no JSON object, or a field has the wrong type.
    #[error("{path} is not a kernelspec: {member}{source}; correct it, or install the kernel again")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The member that is wrong, as in `env.LANG: `; empty where the file is no JSON object.
        member: String,
        /// What is wrong and where.
        source: serde_json::Error,
    },
    /// A folder of kernelspecs has more entries than are looked at.
    #[error("{path} has more than {limit} entries; the rest are passed over")]
    TooMany {
        /// The folder.
        path: PathBuf,
        /// How many entries are looked at.
        limit: usize,
    },
}

impl InstalledKernelspec {
    /// Reads the kernelspec in `resource_dir`. Blocks on the file system.
    ///
    /// # Errors
    /// [`KernelspecError::Read`], [`TooLarge`](KernelspecError::TooLarge) and
    /// [`Malformed`](KernelspecError::Malformed), each where its name says.
    pub fn read(name: impl Into<String>, resource_dir: impl Into<PathBuf>) -> Result<Self, KernelspecError> {
        let resource_dir = resource_dir.into();
        let path = resource_dir.join("kernel.json");
        let bytes = match files::read_limited(&path, MAX_KERNEL_JSON) {
            Ok(bytes) => bytes,
            Err(ReadError::TooLarge) => return Err(KernelspecError::TooLarge { path }),
            Err(ReadError::NotAFile) => {
                let source = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
                return Err(KernelspecError::Read { path, source });
            }
            Err(ReadError::Io(source)) => return Err(KernelspecError::Read { path, source }),
        };
        // Some editors put a byte order mark in front, which JSON does not allow.
        let json = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
        match kernel_json::read(json) {
            Ok(spec) => Ok(Self {
                name: name.into(),
                spec,
                resource_dir,
            }),
            Err(Malformed { member, source }) => Err(KernelspecError::Malformed { path, member, source }),
        }
    }

    /// The model that `GET /api/kernelspecs/{name}` answers: `{name, spec, resources}`.
    ///
    /// `base_url` is the server's, such as `/`. Blocks on the file system, to see which resources there are.
    #[must_use]
    pub fn model(&self, base_url: &str) -> Value {
        let base_url = base_url.trim_end_matches('/');
        let name = url_quote(&self.name);
        let resources: BTreeMap<String, String> = self
            .resources()
            .into_iter()
            .map(|(key, file)| (key, format!("{base_url}/kernelspecs/{name}/{}", url_quote(&file))))
            .collect();
        json!({ "name": self.name, "spec": self.spec, "resources": resources })
    }
}

/// The model that `GET /api/kernelspecs` answers: `{default, kernelspecs: {name: {name, spec, resources}}}`.
///
/// Blocks on the file system, to see which resources there are.
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

/// Whether `name` can name a kernel: not empty, ASCII letters, digits, `.`, `-` and `_` only.
#[must_use]
pub fn is_valid_kernel_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
}

/// Percent-encodes everything but what a URL's path may hold as it is.
fn url_quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            quoted.push(char::from(byte));
        } else {
            quoted.push_str(&format!("%{byte:02X}"));
        }
    }
    quoted
}

/// The Python prefix that a resource folder belongs to: `P` in `P/share/jupyter/kernels/NAME`.
fn prefix_of(resource_dir: &Path) -> Option<&Path> {
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
