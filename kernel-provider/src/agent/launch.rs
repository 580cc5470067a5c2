use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use jupyter_protocol::kernelspec::Kernelspec;
use jupyter_protocol::{KernelId, Transport};
use serde::{Deserialize, Serialize};

/// An agent's configuration and its kernel's launch. The agent reads it as JSON from standard input, because it
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
    /// The kernel's working directory.
    pub working_dir: PathBuf,
    /// How long the kernel may take to start.
    pub timeout: Duration,
    /// The agent's own folder, for its log and the kernel's files. It exists and is private.
    pub dir: PathBuf,
    /// The folder for Unix sockets. Its path must be short.
    pub socket_dir: PathBuf,
    /// The Unix socket on which the agent listens.
    pub listen: PathBuf,
    /// The secret that admits a connection.
    pub token: String,
    /// The transport of the kernel's sockets; `None` to let the agent choose.
    pub transport: Option<Transport>,
    /// The first and last TCP port that kernels may use; `None` for any.
    pub ports: Option<(u16, u16)>,
    /// The interpreter for kernelspecs whose command is just `python`.
    pub python: Option<PathBuf>,
    /// A command to which the kernel's command is appended as arguments.
    pub command_prefix: Vec<String>,
    /// Maximum size of the agent's log, in bytes of entries that are not acknowledged.
    pub spool_bytes: u64,
    /// How long an idle kernel's agent waits for a connection before it ends the kernel and itself; `None` for no
    /// limit.
    pub orphan_timeout: Option<Duration>,
}

impl fmt::Debug for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Launch")
            .field("id", &self.id)
            .field("spec_name", &self.spec_name)
            .finish_non_exhaustive()
    }
}
