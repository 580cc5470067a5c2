use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use jupyter_protocol::kernelspec::SearchPath;
use jupyter_protocol::paths::PathEnv;
use jupyter_protocol::{InstalledKernelspec, KernelId};

/// Options of a [`LocalProvider`](crate::LocalProvider).
///
/// ```
/// use provider_local::{LocalOptions, TransportChoice};
///
/// let options = LocalOptions::new("/var/lib/example/kernels")
///     .with_transport(TransportChoice::Tcp)
///     .with_command_prefix(["nice", "-n", "10"]);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LocalOptions {
    /// The provider's name: the part before the slash in `local/python3`.
    pub name: String,
    /// The directory for the provider's state: one directory per kernel, with its connection file, record and output.
    ///
    /// It is created with mode 0700 if it is missing. Only one provider at a time can use it.
    pub state_dir: PathBuf,
    /// Where to search for kernelspecs.
    pub search: SearchPath,
    /// The interpreter for kernelspecs whose command is just `python`, `python3` or `python3.X`. `None` uses the
    /// interpreter of the prefix in which the kernelspec is installed, or else one on the kernel's `PATH`.
    pub python: Option<PathBuf>,
    /// The transport of the kernels' sockets.
    pub transport: TransportChoice,
    /// The TCP ports that kernels may use, five each. `None` lets the system choose. A kernel that announces its ports
    /// (JEP 66) chooses them itself.
    pub port_range: Option<RangeInclusive<u16>>,
    /// The directory for Unix sockets, created with mode 0700.
    ///
    /// Unix limits a socket's path to 107 bytes, so this must be short. `None` uses a directory in `state_dir` if its
    /// path is short enough, or else one in `XDG_RUNTIME_DIR` or in the directory for temporary files.
    pub socket_dir: Option<PathBuf>,
    /// Which of this process's environment variables kernels inherit.
    pub inherit_env: InheritEnv,
    /// Inherited variables that take precedence over the kernelspec's. A launch's own variables take precedence over
    /// both.
    pub inherit_over_kernelspec: BTreeSet<String>,
    /// The working directory of kernels whose launch does not set one. `None` uses this process's.
    pub working_dir: Option<PathBuf>,
    /// Whether the provider reaps all child processes of this process, not only kernels.
    ///
    /// Set this if the program runs as process 1, as in a container, because orphaned processes of ended kernels then
    /// become its children. Do not set it if the program starts other processes itself and waits for them.
    pub reap_orphans: bool,
    /// A command that starts kernels in a container, in a sandbox or through a scheduler. Each kernel's command is
    /// appended to it. The provider treats the command's process as the kernel: it signals that process and its group,
    /// and the process must end when the kernel does. The kernels use TCP, unless [`transport`](Self::transport) or the
    /// kernelspec sets Unix sockets.
    pub command_prefix: Vec<String>,
    /// A program with its arguments, such as `nice`, that replaces itself with the kernel's command. Unlike
    /// [`command_prefix`](Self::command_prefix), it must run the kernel on this machine, so kernels may use Unix
    /// sockets. Not used for kernels with an [`agent`](Self::agent).
    pub launcher: Vec<String>,
    /// Kernelspecs in addition to those that the search finds. They take precedence.
    pub kernelspecs: Vec<InstalledKernelspec>,
    /// Changes each kernel's command before it is started.
    pub adjust_command: Option<AdjustCommand>,
    /// The program `kernelmux-agent`. If set, each new kernel gets an agent: a process that starts it, records its
    /// messages, and outlives this program. No message is lost while this program is not running. `None` starts kernels
    /// directly. Not used with [`adjust_command`](Self::adjust_command).
    pub agent: Option<PathBuf>,
    /// How many bytes of a kernel's messages its agent keeps until this program has stored them. Beyond that, a kernel
    /// that can block on its output does so. For any other kernel, the oldest messages are dropped, and a gap is
    /// reported.
    pub spool_bytes: u64,
    /// How long the agent of an idle kernel waits for a connection before it ends the kernel and itself. `None` means
    /// no limit.
    pub orphan_timeout: Option<Duration>,
    /// Whether kernels write their output to pipes, from which the provider copies it to files, instead of writing to
    /// files that the provider watches. A user may have only 128 watchers (`fs.inotify.max_user_instances`), and this
    /// needs none. After this program has ended, a kernel's writes fail. `kernelmux-agent` sets this, because its
    /// kernel ends with it.
    pub output_pipes: bool,
    /// How many kernels that ended by themselves are remembered, with their output. The oldest are forgotten first.
    pub keep_ended: usize,
}

impl LocalOptions {
    /// Creates options with this state directory, Jupyter's default kernelspec search path, and defaults for
    /// everything else.
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
            inherit_env: InheritEnv::default(),
            inherit_over_kernelspec: BTreeSet::new(),
            working_dir: None,
            reap_orphans: false,
            command_prefix: Vec::new(),
            launcher: Vec::new(),
            kernelspecs: Vec::new(),
            adjust_command: None,
            agent: None,
            spool_bytes: 1 << 30,
            orphan_timeout: None,
            output_pipes: false,
            keep_ended: 32,
        }
    }

    /// Sets the provider's name.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Sets where to search for kernelspecs.
    #[must_use]
    pub fn with_search(mut self, search: SearchPath) -> Self {
        self.search = search;
        self
    }

    /// Sets the interpreter for kernelspecs whose command is just `python`, `python3` or `python3.X`.
    #[must_use]
    pub fn with_python(mut self, python: impl Into<PathBuf>) -> Self {
        self.python = Some(python.into());
        self
    }

    /// Sets the transport of the kernels' sockets.
    #[must_use]
    pub fn with_transport(mut self, transport: TransportChoice) -> Self {
        self.transport = transport;
        self
    }

    /// Sets the TCP ports that kernels may use.
    #[must_use]
    pub fn with_port_range(mut self, port_range: RangeInclusive<u16>) -> Self {
        self.port_range = Some(port_range);
        self
    }

    /// Sets the directory for Unix sockets.
    #[must_use]
    pub fn with_socket_dir(mut self, socket_dir: impl Into<PathBuf>) -> Self {
        self.socket_dir = Some(socket_dir.into());
        self
    }

    /// Sets which of this process's environment variables kernels inherit.
    #[must_use]
    pub fn with_inherit_env(mut self, inherit_env: InheritEnv) -> Self {
        self.inherit_env = inherit_env;
        self
    }

    /// Sets the working directory of kernels whose launch does not set one.
    #[must_use]
    pub fn with_working_dir(mut self, working_dir: impl Into<PathBuf>) -> Self {
        self.working_dir = Some(working_dir.into());
        self
    }

    /// Sets whether the provider reaps all child processes of this process.
    #[must_use]
    pub fn with_reap_orphans(mut self, reap_orphans: bool) -> Self {
        self.reap_orphans = reap_orphans;
        self
    }

    /// Sets whether kernels write their output to pipes.
    #[must_use]
    pub fn with_output_pipes(mut self, output_pipes: bool) -> Self {
        self.output_pipes = output_pipes;
        self
    }

    /// Sets the command to which each kernel's command is appended.
    #[must_use]
    pub fn with_command_prefix(mut self, prefix: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.command_prefix = prefix.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the program, with its arguments, that replaces itself with each kernel's command.
    #[must_use]
    pub fn with_launcher(mut self, launcher: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.launcher = launcher.into_iter().map(Into::into).collect();
        self
    }

    /// Adds a kernelspec to those that the search finds.
    #[must_use]
    pub fn with_kernelspec(mut self, kernelspec: InstalledKernelspec) -> Self {
        self.kernelspecs.push(kernelspec);
        self
    }

    /// Sets the program `kernelmux-agent`, which then starts each new kernel.
    #[must_use]
    pub fn with_agent(mut self, agent: impl Into<PathBuf>) -> Self {
        self.agent = Some(agent.into());
        self
    }

    /// Sets a function that changes each kernel's command before it is started, on a thread where it may block. Its
    /// error fails the launch.
    #[must_use]
    pub fn with_adjust_command(
        mut self,
        adjust: impl Fn(KernelCommand<'_>) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.adjust_command = Some(AdjustCommand(Arc::new(adjust)));
        self
    }
}

/// The command of a kernel that is about to be started.
#[derive(Debug)]
#[non_exhaustive]
pub struct KernelCommand<'a> {
    /// The kernel's id.
    pub id: KernelId,
    /// The name of its kernelspec.
    pub spec: &'a str,
    /// Its command, with the environment and the working directory, and with redirected output.
    pub command: &'a mut Command,
}

/// A function that changes a kernel's command; see [`LocalOptions::with_adjust_command`].
#[derive(Clone)]
pub struct AdjustCommand(pub(crate) Arc<dyn Fn(KernelCommand<'_>) -> io::Result<()> + Send + Sync>);

impl fmt::Debug for AdjustCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdjustCommand")
    }
}

/// The transport of a kernel's sockets.
///
/// `metadata.kernelmux.transport` in a `kernel.json`, either `"tcp"` or `"ipc"`, takes precedence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum TransportChoice {
    /// Unix sockets if a Python interpreter of this machine starts ipykernel with the arguments of ipykernel's own
    /// kernelspec (`-m ipykernel_launcher -f {connection_file}`), and TCP otherwise.
    ///
    /// A wrapper command may run the kernel in a container or on another machine, where Unix sockets of this machine
    /// are not visible.
    #[default]
    Auto,
    /// TCP on the loopback address. The provider chooses the ports, unless `metadata.kernelmux.handshake` in the
    /// `kernel.json` is `true`: then the kernel chooses its ports and announces them (JEP 66).
    Tcp,
    /// Unix sockets in a directory that only this user can access. Not all kernels support them.
    Ipc,
}

/// Which of this process's environment variables a kernel inherits.
///
/// `JPY_PARENT_PID` is always set to 1. Libraries take the variable as a sign that they run in Jupyter. ipykernel exits
/// when the process ends whose id is the variable's value, unless the value is 1. Kernels must outlive their provider,
/// so the value is 1.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InheritEnv {
    /// All variables.
    All,
    /// All variables except servers' tokens: `*_AUTH_TOKEN`, `KERNELMUX_TOKEN`, `JUPYTER_TOKEN` and `JPY_API_TOKEN`. A
    /// program's own secrets, such as `DATABASE_URL` or a cloud's keys, then reach the code in its kernels.
    AllButSecrets,
    /// Only the variables with these names. Most programs need at least `PATH` and `HOME`.
    Only(BTreeSet<String>),
}

impl InheritEnv {
    /// The variables that programs need to run: paths, the user, locale and time zone, certificates, Jupyter's folders.
    pub const BASIC: &[&str] = &[
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "SHELL",
        "TZ",
        "TMPDIR",
        "LANG",
        "LANGUAGE",
        "LC_ALL",
        "LC_CTYPE",
        "LC_COLLATE",
        "LC_MESSAGES",
        "LC_MONETARY",
        "LC_NUMERIC",
        "LC_TIME",
        "LD_LIBRARY_PATH",
        "VIRTUAL_ENV",
        "CONDA_PREFIX",
        "CONDA_DEFAULT_ENV",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "XDG_RUNTIME_DIR",
        "XDG_CACHE_HOME",
        "XDG_CONFIG_HOME",
        "XDG_DATA_HOME",
        "JUPYTER_PATH",
        "JUPYTER_CONFIG_DIR",
        "JUPYTER_DATA_DIR",
        "JUPYTER_RUNTIME_DIR",
        "IPYTHONDIR",
    ];

    /// Only the [basic](Self::BASIC) variables and those with these names.
    ///
    /// ```
    /// use provider_local::{InheritEnv, LocalOptions};
    ///
    /// let options = LocalOptions::new("/var/lib/example/kernels")
    ///     .with_inherit_env(InheritEnv::basic_and(["CUDA_VISIBLE_DEVICES"]));
    /// ```
    pub fn basic_and<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let names = Self::BASIC.iter().copied().chain(names);
        Self::Only(names.map(str::to_owned).collect())
    }
}

impl Default for InheritEnv {
    /// Only the [basic](Self::BASIC) variables.
    fn default() -> Self {
        Self::basic_and([])
    }
}
