use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use jupyter_protocol::kernelspec::SearchPath;
use jupyter_protocol::paths::PathEnv;

/// How a [`LocalProvider`](crate::LocalProvider) runs kernels.
///
/// ```
/// use provider_local::{LocalConfig, TransportChoice};
///
/// let mut config = LocalConfig::new("/var/lib/example/kernels");
/// config.transport = TransportChoice::Tcp;
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LocalConfig {
    /// The provider's name: the part before the slash in `local/python3`.
    pub name: String,
    /// Where the provider keeps what it knows of its kernels: one directory for each, with connection file, record
    /// and output. Made with mode 0700 where it is missing. One embedder at a time can use it.
    pub state_dir: PathBuf,
    /// Where kernelspecs are looked for.
    pub search: SearchPath,
    /// The interpreter for kernelspecs that name only `python`; `None` takes the one of the prefix that the
    /// kernelspec is installed in, else the first on the `PATH` of the kernel.
    pub python: Option<PathBuf>,
    /// What carries the messages.
    pub transport: TransportChoice,
    /// The ports that kernels with the transport tcp get; `None` lets the system choose. A kernel that announces its ports
    /// (JEP 66) chooses them itself. Each kernel needs five.
    pub port_range: Option<RangeInclusive<u16>>,
    /// Where the sockets of kernels with the transport ipc are made. Unix limits a socket's path to 107 bytes, so
    /// this must be short. `None` takes a directory in `state_dir` if its path is short enough, else one in
    /// `XDG_RUNTIME_DIR` or the directory for temporary files. Made with mode 0700.
    pub socket_dir: Option<PathBuf>,
    /// What of the environment of this process a kernel inherits.
    pub inherit_env: InheritEnv,
    /// The inherited variables that win over the kernelspec's of the same name. Those of a launch win over both.
    pub inherit_over_kernelspec: BTreeSet<String>,
    /// Where kernels start that were not told where to; `None` is the working directory of this process.
    pub working_dir: Option<PathBuf>,
    /// Whether the provider reaps each child of this process that is no kernel. As process 1, the one that a container
    /// starts, a program is given the processes that ended kernels leave. Not for programs that start others themselves
    /// and ask how those ended.
    pub reap_orphans: bool,
    /// How many kernels that ended by themselves are remembered, with their output, until the eldest is forgotten.
    pub keep_ended: usize,
}

impl LocalConfig {
    /// A configuration with this directory for its state, kernelspecs from where Jupyter looks for them, and
    /// defaults for all else.
    #[must_use]
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            name: "local".to_owned(),
            state_dir: state_dir.into(),
            search: SearchPath::from_env(&PathEnv::from_process()),
            python: None,
            transport: TransportChoice::Auto,
            port_range: None,
            socket_dir: None,
            inherit_env: InheritEnv::AllButSecrets,
            inherit_over_kernelspec: BTreeSet::new(),
            working_dir: None,
            reap_orphans: false,
            keep_ended: 32,
        }
    }
}

/// What carries a kernel's messages. `metadata.kernelmux.transport` in a `kernel.json`, `"tcp"` or `"ipc"`, goes over
/// this.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum TransportChoice {
    /// Unix sockets where a Python interpreter of this machine starts ipykernel with the arguments of ipykernel's own
    /// kernelspec (`-m ipykernel_launcher -f {connection_file}`), TCP for all others. A wrapper may run the kernel in a
    /// container or on another machine, where a Unix socket is not seen.
    #[default]
    Auto,
    /// TCP on the loopback address. A kernel whose `kernel.json` says `metadata.kernelmux.handshake: true` chooses its
    /// ports and announces them (JEP 66); others are told which.
    Tcp,
    /// Unix sockets, in a directory for this user only. Not every kernel takes them.
    Ipc,
}

/// What of the environment of this process a kernel inherits.
///
/// `JPY_PARENT_PID` is always 1: libraries take its presence for a sign that they run in Jupyter, and ipykernel, which
/// ends with the process that it names, never ends with process 1. Kernels are to outlive their embedder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum InheritEnv {
    /// All but the tokens of servers: `*_AUTH_TOKEN`, `KERNELMUX_TOKEN`, `JUPYTER_TOKEN`, `JPY_API_TOKEN`.
    #[default]
    AllButSecrets,
    /// Only the variables with these names. Most programs need `PATH` and `HOME` at least.
    Only(BTreeSet<String>),
}
