//! The agent runs a kernel, records its messages in a log, and lets the gateway (or another embedder) read this log
//! over a connection.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use jupyter_protocol::kernelspec::SearchPath;
use jupyter_protocol::zmq::{MAX_MESSAGE_BYTES, MessageMemory};
use jupyter_protocol::{InstalledKernelspec, Transport};
use kernel_log::{DiskOptions, DiskStore, Durability, Log, LogOptions, Logs, NewEntry, Seq, WhenFull};
use kernel_provider::agent::{Accepted, Launch, Listen, ProcessPhase};
use kernel_provider::{Exit, ExitCause, KernelHandle, KernelProvider, LaunchError, LaunchRequest, Phase, Progress};
use provider_local::{InheritEnv, LocalOptions, LocalProvider, TransportChoice};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::controls::Controls;
use crate::delivery::Delivery;
use crate::kernel_process::CurrentProcess;
use crate::listener::Listener;
use crate::server;

/// Memory for messages of more than 1 MiB until they are stored.
const MESSAGE_MEMORY: u64 = 256 << 20;
/// The most bytes that wait for the disk. Beyond that, reading from the kernel pauses.
const WAITING_BYTES: usize = 16 << 20;
/// Up to this many bytes are stored by the agent's own thread, because waking another thread takes longer.
const STORE_HERE_BYTES: usize = 16 << 10;
/// How many bytes more than its bound the spool may have: a message that was being read when the bound was reached, and
/// the messages that wait for the disk.
const SLACK_BYTES: u64 = MAX_MESSAGE_BYTES + WAITING_BYTES as u64;
/// Acknowledged entries are dropped in pieces of this size.
const SEGMENT_BYTES: u64 = 16 << 20;
/// The kernel's grace period when the agent ends it.
const GRACE: Duration = Duration::from_secs(5);
/// How long an agent waits after its kernel's end for the gateway to store the last entries, or after a failed start
/// for the gateway to read the error.
const LAST_ENTRIES_DEADLINE: Duration = Duration::from_secs(30);

/// State that the tasks of an agent share.
pub(crate) struct Agent {
    pub(crate) launch: Launch,
    pub(crate) log: Log,
    pub(crate) memory: MessageMemory,
    /// Set once the kernel has started.
    kernel: OnceLock<Arc<dyn KernelHandle>>,
    /// The result of the start; `None` until it is known.
    pub(crate) started: watch::Sender<Option<Result<(), LaunchError>>>,
    pub(crate) phase: watch::Sender<ProcessPhase>,
    pub(crate) process: CurrentProcess,
    pub(crate) delivery: Delivery,
    pub(crate) controls: Controls,
    pub(crate) accepted: watch::Sender<Accepted>,
    /// The last entry that the gateway has stored.
    pub(crate) acknowledged: watch::Sender<Seq>,
    /// Whether the kernel waits for its reader instead of dropping output, so that reading may pause.
    pub(crate) no_drop: AtomicBool,
    /// Whether the kernel's last status was idle.
    pub(crate) is_idle: watch::Sender<bool>,
    pub(crate) client: Mutex<Option<server::Client>>,
    /// Number of admitted connections.
    pub(crate) connections: watch::Sender<usize>,
    /// Cancelled once the kernel was shut down, so that the agent ends.
    pub(crate) ending: CancellationToken,
}

impl Agent {
    /// Appends entries to the log.
    pub(crate) fn append<'a>(&self, entries: impl IntoIterator<Item = NewEntry<'a>>) {
        self.log.append_unstored(entries).store_here(STORE_HERE_BYTES);
    }

    /// The kernel; `None` until it has started.
    pub(crate) fn kernel(&self) -> Option<&Arc<dyn KernelHandle>> {
        self.kernel.get()
    }
}

/// Runs the agent until its kernel has ended for good. Returns the agent's exit code.
pub(crate) async fn run(launch: Launch) -> io::Result<u8> {
    // Installed first, because process 1 of a container ignores signals without a handler.
    let mut terminate = signal(SignalKind::terminate())?;
    DirBuilder::new().recursive(true).mode(0o700).create(&launch.dir)?;
    // Bound before the kernel starts, because the gateway already tries to connect.
    let listener = Listener::bind(&launch.listen).await?;
    let logs = open_logs(&launch)?;
    let log = logs.open(launch.id).await.map_err(io::Error::other)?;
    let (delivery, deliver) = Delivery::new();
    let agent = Arc::new(Agent {
        log,
        memory: MessageMemory::new(MESSAGE_MEMORY),
        kernel: OnceLock::new(),
        started: watch::Sender::new(None),
        phase: watch::Sender::new(ProcessPhase {
            process: 0,
            pid: None,
            phase: Phase::Starting,
        }),
        process: CurrentProcess::default(),
        delivery,
        controls: Controls::default(),
        accepted: watch::Sender::new(Accepted::default()),
        acknowledged: watch::Sender::new(Seq::START),
        no_drop: AtomicBool::new(false),
        is_idle: watch::Sender::new(false),
        client: Mutex::default(),
        connections: watch::Sender::new(0),
        ending: CancellationToken::new(),
        launch,
    });
    let serving = tokio::spawn(server::serve(agent.clone(), listener));
    let delivering = deliver.spawn(&agent);
    let kernel = async {
        let provider = LocalProvider::open(options(&agent.launch)).await?;
        let request = request(&agent.launch);
        let kernel = provider.launch(request, Progress::ignored()).await?;
        Ok::<_, LaunchError>((provider, kernel))
    };
    let started = tokio::select! {
        started = kernel => started,
        _ = terminate.recv() => {
            info!("ended during the kernel's start: SIGTERM");
            return Ok(0);
        }
    };
    let _provider = match started {
        Ok((provider, kernel)) => {
            // Cannot fail, because the kernel is set only here.
            let _ = agent.kernel.set(kernel);
            agent.sync_process().await;
            agent.started.send_replace(Some(Ok(())));
            provider
        }
        Err(error) => {
            info!(%error, "the kernel did not start");
            agent.started.send_replace(Some(Err(error)));
            // The gateway reads the error and ends this agent.
            let _ = timeout(LAST_ENTRIES_DEADLINE, terminate.recv()).await;
            return Ok(1);
        }
    };
    let following = tokio::spawn(follow_phase(agent.clone()));
    let mut code = 0;
    tokio::select! {
        () = agent.ending.cancelled() => {}
        _ = terminate.recv() => agent.end_kernel("SIGTERM").await,
        () = agent.orphaned() => {
            agent.end_kernel("no gateway is connected").await;
            agent.remove_files()?;
            return Ok(0);
        }
        exit = agent.lingered() => code = exit_code(&exit),
    }
    let head = agent.log.head();
    let mut acknowledged = agent.acknowledged.subscribe();
    let delivered = timeout(LAST_ENTRIES_DEADLINE, acknowledged.wait_for(|seq| *seq >= head));
    if delivered.await.is_err() {
        warn!("no gateway has stored the last entries of the kernel");
    }
    info!("the kernel has ended; ending the agent");
    for task in [serving, following].iter().chain(&delivering) {
        task.abort();
    }
    Ok(code)
}

/// The exit code for a kernel that ended this way, by the convention of shells.
fn exit_code(exit: &Exit) -> u8 {
    let code = match exit.cause {
        ExitCause::Code(code) => code,
        ExitCause::Signal(signal) => 128 + signal,
        ExitCause::OutOfMemory => 128 + rustix::process::Signal::KILL.as_raw(),
        _ => 0,
    };
    u8::try_from(code).unwrap_or(u8::MAX)
}

impl Agent {
    /// Ends the kernel without a request from the gateway.
    async fn end_kernel(self: &Arc<Self>, why: &str) {
        info!(why, "ending the kernel");
        if let Some(kernel) = self.kernel()
            && let Err(error) = kernel.shutdown(GRACE).await
        {
            warn!(%error, "the kernel cannot be ended");
        }
        self.sync_process().await;
    }

    /// Removes the agent's own files.
    fn remove_files(&self) -> io::Result<()> {
        if let Listen::Unix(path) = &self.launch.listen {
            std::fs::remove_file(path)?;
        }
        std::fs::remove_dir_all(&self.launch.dir)
    }

    /// Waits until the kernel has been idle or gone, without a connection, for the launch's `orphan_timeout`.
    async fn orphaned(&self) {
        let Some(limit) = self.launch.orphan_timeout else {
            return std::future::pending().await;
        };
        let (mut connections, mut idle, mut phase) = (
            self.connections.subscribe(),
            self.is_idle.subscribe(),
            self.phase.subscribe(),
        );
        loop {
            let is_gone = matches!(phase.borrow_and_update().phase, Phase::Exited(_));
            let is_orphan = *connections.borrow_and_update() == 0 && (*idle.borrow_and_update() || is_gone);
            tokio::select! {
                () = sleep(limit), if is_orphan => return,
                // The agent holds the senders, so these cannot fail.
                _ = connections.changed() => {}
                _ = idle.changed() => {}
                _ = phase.changed() => {}
            }
        }
    }
}

impl Agent {
    /// Waits until the kernel has been gone, and its last entries have been acknowledged, for the launch's `linger`.
    /// Returns how the kernel ended.
    async fn lingered(&self) -> Exit {
        let Some(limit) = self.launch.linger else {
            return std::future::pending().await;
        };
        let (mut acknowledged, mut phase) = (self.acknowledged.subscribe(), self.phase.subscribe());
        loop {
            let is_delivered = *acknowledged.borrow_and_update() >= self.log.head();
            let exit = match &phase.borrow_and_update().phase {
                Phase::Exited(exit) if is_delivered => Some(exit.clone()),
                _ => None,
            };
            let over = async {
                match exit {
                    Some(exit) => {
                        sleep(limit).await;
                        exit
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                exit = over => return exit,
                // The agent holds the senders, so these cannot fail.
                _ = acknowledged.changed() => {}
                _ = phase.changed() => {}
            }
        }
    }
}

/// Calls [`Agent::sync_process`] at each change of the kernel's phase.
async fn follow_phase(agent: Arc<Agent>) {
    let Some(kernel) = agent.kernel() else { return };
    let mut phase = kernel.phase();
    loop {
        phase.borrow_and_update();
        agent.sync_process().await;
        if phase.changed().await.is_err() {
            return;
        }
    }
}

fn open_logs(launch: &Launch) -> io::Result<Logs> {
    let folder = launch.dir.join("spool");
    let segments = DiskOptions::default()
        .with_segment_bytes(SEGMENT_BYTES)
        .with_detects_machine_failure(false);
    let store = DiskStore::open_with(&folder, segments).map_err(io::Error::other)?;
    let options = LogOptions::default()
        .with_waiting_bytes(WAITING_BYTES)
        // If the kernel can wait, no entry may be dropped, even if the entries exceed the bound a little.
        .with_stored_bytes(launch.spool_bytes + SLACK_BYTES)
        .with_stored_age(None)
        .with_when_full(WhenFull::Wait)
        // The spool is useless after a failure of the machine, because the kernel is gone too.
        .with_durability(Durability::Process);
    Logs::new(Arc::new(store), options).map_err(io::Error::other)
}

fn options(launch: &Launch) -> LocalOptions {
    let mut options = LocalOptions::new(&launch.dir)
        .with_search(SearchPath::default())
        .with_socket_dir(&launch.socket_dir)
        .with_transport(match launch.transport {
            Some(Transport::Ipc) => TransportChoice::Ipc,
            Some(_) => TransportChoice::Tcp,
            None => TransportChoice::Auto,
        })
        .with_inherit_env(if launch.inherit_all {
            InheritEnv::All
        } else {
            InheritEnv::AllButSecrets
        })
        .with_command_prefix(launch.command_prefix.clone())
        .with_reap_orphans(true)
        .with_output_pipes(true)
        .with_kernelspec(InstalledKernelspec {
            name: launch.spec_name.clone(),
            spec: launch.spec.clone(),
            resource_dir: launch.resource_dir.clone(),
        });
    options
        .inherit_over_kernelspec
        .clone_from(&launch.inherit_over_kernelspec);
    options.port_range = launch.ports.map(|(first, last)| first..=last);
    options.python = launch.python.as_deref().map(find_program);
    if let Ok(this) = std::env::current_exe() {
        let this = this.to_string_lossy().into_owned();
        options = options.with_launcher([this, "exec".to_owned(), std::process::id().to_string()]);
    }
    options
}

/// The absolute path of a program that is named without a folder and is on the `PATH`; otherwise `program` itself.
fn find_program(program: &Path) -> PathBuf {
    let is_bare = program.components().count() == 1;
    let folders = std::env::var_os("PATH").filter(|_| is_bare).unwrap_or_default();
    let mut found = std::env::split_paths(&folders).map(|folder| folder.join(program));
    found
        .find(|path| path.is_absolute() && path.is_file())
        .unwrap_or_else(|| program.to_owned())
}

fn request(launch: &Launch) -> LaunchRequest {
    let mut request = LaunchRequest::new(launch.id, &launch.spec_name);
    request.env.clone_from(&launch.env);
    request.working_dir.clone_from(&launch.working_dir);
    request.timeout = launch.timeout;
    request
}
