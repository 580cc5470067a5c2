use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use jupyter_protocol::{KernelId, Kernelspec};
use serde::{Deserialize, Serialize};

/// The kernelspecs of a gateway.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Kernelspecs {
    /// The name of the default kernelspec; empty if there are no kernelspecs.
    pub default: String,
    /// The kernelspecs by name.
    pub kernelspecs: BTreeMap<String, KernelspecModel>,
    /// Kernelspecs that cannot be used, by name, with the reason.
    #[serde(default)]
    pub broken: BTreeMap<String, String>,
}

/// A kernelspec.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct KernelspecModel {
    /// Its name.
    pub name: String,
    /// The content of its kernel.json.
    pub spec: Kernelspec,
    /// The URLs of its resource files: `kernel.js` and `kernel.css` by name, and logos by name without extension.
    #[serde(default)]
    pub resources: BTreeMap<String, String>,
}

/// A kernel.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct KernelModel {
    /// Its id.
    pub id: KernelId,
    /// The name of its kernelspec.
    pub name: String,
    /// When it last sent or received a message.
    pub last_activity: DateTime<Utc>,
    /// Its state.
    pub execution_state: KernelState,
    /// The number of attached sessions.
    #[serde(default)]
    pub connections: usize,
    /// Why it is dead; `None` unless it is.
    #[serde(default)]
    pub reason: Option<String>,
}

/// The state of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum KernelState {
    /// Launched, but it has not answered yet.
    Starting,
    /// Ready for a request.
    Idle,
    /// Running a request.
    Busy,
    /// Being restarted.
    Restarting,
    /// Dead.
    Dead,
    /// A state unknown to this version.
    #[serde(other)]
    Unknown,
}

/// A kernel to start.
///
/// ```
/// use gateway_client::rest::NewKernel;
///
/// let kernel = NewKernel::new("python3").with_env("KERNEL_USERNAME", "ada").with_path("work/report.ipynb");
/// # let _ = kernel;
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct NewKernel {
    /// The name of the kernelspec; if `None`, the gateway's default kernelspec.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The path of the notebook below the gateway's working directory. The kernel starts in the notebook's folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Environment variables. The gateway passes `KERNEL_*` and the variables that its configuration names to the
    /// kernel.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// The kernel's id; a random one if `None`. With an id, the kernel can be found if the response is lost.
    #[serde(rename = "kernel_id", skip_serializing_if = "Option::is_none")]
    pub id: Option<KernelId>,
}

impl NewKernel {
    /// Creates a request for a kernel of this kernelspec.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: Some(name.into()),
            ..Self::default()
        }
    }

    /// Sets the path of the notebook.
    #[must_use]
    pub fn with_path(mut self, path: impl Into<String>) -> Self {
        self.path = Some(path.into());
        self
    }

    /// Adds an environment variable.
    #[must_use]
    pub fn with_env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Sets the kernel's id.
    #[must_use]
    pub fn with_id(mut self, id: KernelId) -> Self {
        self.id = Some(id);
        self
    }
}

impl From<&str> for NewKernel {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}
