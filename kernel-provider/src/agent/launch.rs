use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use jupyter_protocol::kernelspec::Kernelspec;
use jupyter_protocol::{KernelId, Transport};
use serde::{Deserialize, Serialize};

/// An agent's configuration and its kernel's launch. The agent reads it as JSON from standard input or a file, because it
/// contains secrets.
#[derive(Clone, Serialize, Deserialize)]
pub struct Launch {
    /// The kernel's id.
    pub id: KernelId,
    /// The kernelspec's name.
    pub spec_name: String,
    /// The contents of its `kernel.json`.
    pub spec: Kernelspec,
    /// The folder of its `kernel.json`.
    pub resource_dir: PathBuf,
    /// The kernel's environment variables, over those of its kernelspec.
    pub env: BTreeMap<String, String>,
    /// Variables of the agent's environment that take precedence over the kernelspec's.
    pub inherit_over_kernelspec: BTreeSet<String>,
    /// Whether the kernel inherits all variables of the agent's environment, as in a container that has only the
    /// kernel's variables. Otherwise it does not inherit servers' tokens, such as `JUPYTER_TOKEN`.
    #[serde(default)]
    pub inherit_all: bool,
    /// The kernel's working directory; `None` for the agent's.
    pub working_dir: Option<PathBuf>,
    /// How long the kernel may take to start.
    pub timeout: Duration,
    /// The agent's own folder, for its log and the kernel's files.
    pub dir: PathBuf,
    /// The folder for Unix sockets. Its path must be short.
    pub socket_dir: PathBuf,
    /// Where the agent listens.
    pub listen: Listen,
    /// The secret that admits a connection.
    pub token: String,
    /// The transport of the kernel's sockets; `None` to let the agent choose.
    pub transport: Option<Transport>,
    /// The first and last TCP port that kernels may use; `None` for any.
    pub ports: Option<(u16, u16)>,
    /// The interpreter for kernelspecs whose command is just `python`. A bare name is searched for on the `PATH`.
    pub python: Option<PathBuf>,
    /// A command to which the kernel's command is appended as arguments.
    pub command_prefix: Vec<String>,
    /// Maximum size of the agent's log, in bytes of entries that are not acknowledged.
    pub spool_bytes: u64,
    /// How long the agent of a kernel that is idle or has ended waits for a connection before it ends the kernel and
    /// itself; `None` for no limit.
    pub orphan_timeout: Option<Duration>,
    /// How long the agent outlives a kernel that has ended by itself, so that the kernel can be restarted; `None` for
    /// no limit. The agent stays longer if the kernel's last entries are not acknowledged yet. Its exit code is the
    /// kernel's.
    #[serde(default)]
    pub linger: Option<Duration>,
}

/// Where an agent listens.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Listen {
    /// A Unix socket at this path.
    Unix(PathBuf),
    /// TLS on a TCP port, at all addresses.
    Tls {
        /// The port.
        port: u16,
        /// The agent's certificate and key.
        identity: TlsIdentity,
    },
}

/// An agent's certificate and its private key.
///
/// In JSON, both are DER in base64; the key is PKCS #8.
#[derive(Clone, Serialize, Deserialize)]
pub struct TlsIdentity {
    #[cfg_attr(not(feature = "agent-tls"), allow(dead_code, reason = "only used with TLS"))]
    pub(super) certificate: String,
    #[cfg_attr(not(feature = "agent-tls"), allow(dead_code, reason = "only used with TLS"))]
    pub(super) key: String,
}

impl fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsIdentity").finish_non_exhaustive()
    }
}

impl fmt::Debug for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Launch")
            .field("id", &self.id)
            .field("spec_name", &self.spec_name)
            .finish_non_exhaustive()
    }
}
