//! Launches a kernel: from a kernelspec to a process whose sockets accept connections.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jupyter_protocol::handshake::{HandshakeError, Registration};
use jupyter_protocol::kernelspec::{KernelspecError, LaunchArgs, get_kernelspec};
use jupyter_protocol::{ConnectionInfo, Key, Transport};
use kernel_provider::{ExitCause, KernelRecord, LaunchError, LaunchRequest, LaunchStage, Progress, ProviderError};
use rustix::fs::inotify::WatchFlags;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::endpoints;
use crate::environment::{self, Env};
use crate::events::{Events, Watch};
use crate::output;
use crate::ports::{PortAllocator, PortReservation};
use crate::process::oom::OomCounter;
use crate::process::{ExitStatus, Process};
use crate::ready;
use crate::state::{KernelFiles, LaunchSpec, SavedKernel, Stage, StateDir};
use crate::{AdjustCommand, KernelCommand, LocalOptions};

/// How often a start is attempted if other programs take the kernel's ports.
const MAX_ATTEMPTS: usize = 4;

/// State shared by the kernels of one provider.
pub(crate) struct ProviderContext {
    pub(crate) options: LocalOptions,
    pub(crate) state: StateDir,
    pub(crate) events: Arc<Events>,
    pub(crate) oom: Arc<OomCounter>,
    pub(crate) ports: PortAllocator,
    /// Launches whose process has neither been handed over nor cleaned up yet.
    pub(crate) pending_launches: TaskTracker,
    pub(crate) is_closed: AtomicBool,
}

impl ProviderContext {
    pub(crate) fn check_open(&self) -> Result<(), ProviderError> {
        if self.is_closed.load(Ordering::Acquire) {
            return Err(ProviderError::Closed);
        }
        Ok(())
    }

    /// Determines why a process ended that the provider did not end.
    pub(crate) fn cause(&self, ended: ExitStatus) -> ExitCause {
        match ended {
            ExitStatus::Code(code) => ExitCause::Code(code),
            ExitStatus::Signal(9) | ExitStatus::Unknown if self.oom.claim() => ExitCause::OutOfMemory,
            ExitStatus::Signal(signal) => ExitCause::Signal(signal),
            ExitStatus::Unknown => ExitCause::Unknown(
                "it was started by a program that has ended since, and the system reports a process's exit status only \
                 to its parent"
                    .to_owned(),
            ),
        }
    }
}

/// Runs blocking code on tokio's thread pool for it.
pub(crate) async fn blocking<T: Send + 'static>(
    action: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ProviderError> {
    tokio::task::spawn_blocking(run)
        .await
        .map_err(|error| ProviderError::failed(action, error))
}

/// A running kernel whose sockets accept connections.
pub(crate) struct Ready {
    pub(crate) process: Arc<Process>,
    pub(crate) connection: ConnectionInfo,
    pub(crate) saved: SavedKernel,
}

/// Guards a process until its launch succeeds. Dropping it kills the process and everything that it started.
struct ProcessGuard {
    process: Option<Arc<Process>>,
    files: KernelFiles,
    /// Whether to remove the files too. Not for a restart, whose files existed before.
    is_new: bool,
    tracker_token: TaskTrackerToken,
}

impl ProcessGuard {
    /// Leaves the process to its new owner.
    fn disarm(mut self) {
        self.keep_files();
        self.process = None;
    }

    /// Keeps the files.
    fn keep_files(&mut self) {
        self.is_new = false;
    }

    /// Kills the process and everything that it started, and reaps it. Blocks.
    fn end(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
            process.reap();
        }
    }

    /// Cleans up like dropping this, but completes before it returns. Blocks.
    fn clean_up(mut self) {
        self.end();
        if self.is_new {
            self.files.remove_all();
            self.keep_files();
        }
    }
}

impl Drop for ProcessGuard {
    fn drop(&mut self) {
        let process = self.process.take();
        let files = self.is_new.then(|| self.files.clone());
        if let Some(process) = &process {
            // Kill the process before this returns, in case the program ends now. The rest of the cleanup takes a
            // moment.
            process.kill();
        }
        if process.is_none() && files.is_none() {
            return;
        }
        let tracker_token = self.tracker_token.clone();
        let clean_up = move || {
            let _until_done = tracker_token;
            if let Some(process) = process {
                process.reap();
            }
            if let Some(files) = files {
                files.remove_all();
            }
        };
        // A thread instead of a task, because the runtime may be shutting down. If no thread can be spawned, the next
        // provider that opens the directory removes the files.
        if let Err(error) = std::thread::Builder::new()
            .name("kernel-cleanup".to_owned())
            .spawn(clean_up)
        {
            tracing::warn!(%error, "killed the kernel of a cancelled launch, but cannot remove its files");
        }
    }
}

/// Resolves a launch request into the record to save. Does not start anything.
pub(crate) async fn prepare(
    context: &Arc<ProviderContext>,
    request: &LaunchRequest,
) -> Result<SavedKernel, LaunchError> {
    environment::check(&request.env).map_err(LaunchError::BadRequest)?;
    let (context, request) = (Arc::clone(context), request.clone());
    blocking("start a kernel", move || {
        let found = get_kernelspec(&context.options.search, &request.spec);
        let installed = found.map_err(|error| match error {
            KernelspecError::NoSuchKernel { name, installed } => LaunchError::NoSuchSpec {
                spec: name,
                known: installed.join(", "),
            },
            other => LaunchError::CannotStart {
                what: format!("a kernel of {}", request.spec),
                reason: other.to_string(),
            },
        })?;
        let working_dir = working_dir(request.working_dir.as_deref(), context.options.working_dir.as_deref())?;
        let record = KernelRecord::new(
            &context.options.name,
            request.id,
            &installed.name,
            request.owner,
            chrono::Utc::now(),
            serde_json::Value::Null,
        );
        Ok(SavedKernel {
            record,
            start: LaunchSpec {
                spec_name: installed.name,
                spec: installed.spec,
                resource_dir: installed.resource_dir,
                env: request.env,
                working_dir,
            },
            process: None,
            output_from: 0,
            stage: Stage::Starting,
        })
    })
    .await?
}

/// Chooses the working directory: the request's, else the configured default, else this process's.
fn working_dir(request: Option<&Path>, default: Option<&Path>) -> Result<PathBuf, LaunchError> {
    let chosen = request.or(default);
    let Some(dir) = chosen else {
        // This process's own directory may have been deleted.
        let own = std::env::current_dir().ok().filter(|dir| dir.is_dir());
        return Ok(own.unwrap_or_else(|| PathBuf::from("/")));
    };
    let refuse = |reason: String| LaunchError::CannotStart {
        what: format!("a kernel in the directory {}", dir.display()),
        reason,
    };
    match std::fs::metadata(dir) {
        Ok(metadata) if metadata.is_dir() => std::path::absolute(dir).map_err(|error| refuse(error.to_string())),
        Ok(_) => Err(refuse("it is not a directory".to_owned())),
        Err(error) => Err(refuse(format!("{error}; create it, or choose another"))),
    }
}

/// Creates connection info with a new key and without ports.
pub(crate) fn new_connection(start: &LaunchSpec) -> ConnectionInfo {
    ConnectionInfo {
        key: Key::random(),
        kernel_name: start.spec_name.clone(),
        jupyter_session: start.env.get("JPY_SESSION_NAME").cloned(),
        ..ConnectionInfo::default()
    }
}

/// Starts a kernel and waits for its sockets.
///
/// `connection` contains the key, and the ports to use if they are free. If this fails or is dropped, the process is
/// killed, and with `is_new` the kernel's files are removed.
pub(crate) async fn start(
    context: &Arc<ProviderContext>,
    files: &KernelFiles,
    saved: SavedKernel,
    connection: ConnectionInfo,
    is_new: bool,
    timeout: Duration,
    progress: &Progress,
) -> Result<Ready, LaunchError> {
    let deadline = Instant::now() + timeout;
    let transport = blocking("start a kernel", {
        let (context, files, start) = (Arc::clone(context), files.clone(), saved.start.clone());
        move || {
            let Invocation {
                argv, connection_file, ..
            } = invocation(&context, &files, &start);
            endpoints::transport(context.options.transport, &start.spec, &argv, &connection_file)
        }
    })
    .await?;
    let mut attempt = 0;
    loop {
        attempt += 1;
        let endpoints = match transport {
            Transport::Ipc => EndpointChoice::Sockets,
            _ if endpoints::announces_ports(&saved.start.spec) => EndpointChoice::Announced(Box::new(
                Registration::bind(connection.clone())
                    .await
                    .map_err(registration_failed)?,
            )),
            _ if attempt == 1 => EndpointChoice::ReservedPorts,
            // After a failed attempt the ports are no longer kept bound, because this kernel may be unable to bind
            // ports that are.
            _ => EndpointChoice::UnheldPorts,
        };
        let spawned = blocking("start a kernel", {
            let (context, saved, connection) = (Arc::clone(context), saved.clone(), connection.clone());
            // Tracked from here on, because the blocking thread continues if this future is dropped.
            let guard = ProcessGuard {
                process: None,
                files: files.clone(),
                is_new,
                tracker_token: context.pending_launches.token(),
            };
            move || spawn_or_clean_up(&context, guard, saved, connection, endpoints)
        })
        .await??;
        let SpawnedKernel {
            mut guard,
            process,
            mut endpoint,
            saved,
        } = spawned;
        progress.report(LaunchStage::Starting);
        let Some(failure) = wait_until_ready(&process, &mut endpoint, deadline).await else {
            return finish(guard, process, endpoint.connection, saved).await;
        };
        let id = saved.record.id;
        let context = Arc::clone(context);
        let failed = blocking("end a kernel that did not start", move || {
            guard.end();
            let connection = endpoint.connection.clone();
            drop(endpoint);
            let output = output::tail(&guard.files.output(), saved.output_from, output::ERROR_TAIL).unwrap_or_default();
            let error = match failure {
                Failure::TimedOut => LaunchError::TimedOut { timeout, output },
                Failure::Ended(_) if attempt < MAX_ATTEMPTS && is_port_taken(&connection, &output) => {
                    guard.keep_files();
                    return None;
                }
                Failure::Ended(ended) => LaunchError::died(context.cause(ended), output),
                Failure::Lost(error) => ProviderError::failed("watch the kernel's process", error).into(),
                Failure::Handshake(error) => registration_failed(error),
            };
            guard.clean_up();
            Some(error)
        })
        .await?;
        match failed {
            Some(error) => return Err(error),
            None => tracing::info!(kernel = %id, attempt, "a port is in use; trying others"),
        }
    }
}

/// Where the kernel creates its sockets.
enum EndpointChoice {
    /// Unix sockets.
    Sockets,
    /// TCP ports that stay bound until the kernel uses them. The previous ports are used again if they are free.
    ReservedPorts,
    /// TCP ports that were free a moment ago, but are not kept bound.
    UnheldPorts,
    /// TCP ports that the kernel chooses and announces to this listener (JEP 66).
    Announced(Box<Registration>),
}

fn registration_failed(error: HandshakeError) -> LaunchError {
    ProviderError::failed("receive the kernel's ports", error).into()
}

/// A process whose sockets are not open yet.
struct SpawnedKernel {
    guard: ProcessGuard,
    process: Arc<Process>,
    endpoint: Endpoint,
    saved: SavedKernel,
}

/// The sockets that a process is expected to open.
struct Endpoint {
    connection: ConnectionInfo,
    registration: Option<Registration>,
    /// Notified when a Unix socket is created.
    made: Arc<Notify>,
    _reservation: PortReservation,
    _watch: Option<Watch>,
}

fn spawn_or_clean_up(
    context: &ProviderContext,
    mut guard: ProcessGuard,
    saved: SavedKernel,
    connection: ConnectionInfo,
    endpoints: EndpointChoice,
) -> Result<SpawnedKernel, LaunchError> {
    match prepare_and_spawn(context, &mut guard, saved, connection, endpoints) {
        Ok((process, endpoint, saved)) => Ok(SpawnedKernel {
            guard,
            process,
            endpoint,
            saved,
        }),
        Err(error) => {
            guard.clean_up();
            Err(error)
        }
    }
}

/// Creates the files and starts the process.
fn prepare_and_spawn(
    context: &ProviderContext,
    guard: &mut ProcessGuard,
    mut saved: SavedKernel,
    mut connection: ConnectionInfo,
    endpoints: EndpointChoice,
) -> Result<(Arc<Process>, Endpoint, SavedKernel), LaunchError> {
    let files = &guard.files;
    files.create_dirs(matches!(endpoints, EndpointChoice::Sockets))?;
    let made = Arc::new(Notify::new());
    let (mut reservation, mut watch, mut registration) = (PortReservation::default(), None, None);
    let no_port = |error: io::Error| LaunchError::NoRoom {
        reason: format!("no free TCP port: {error}"),
    };
    match endpoints {
        EndpointChoice::Sockets => {
            endpoints::set_unix_sockets(&mut connection, &files.socket_dir);
            let watched = context.events.watch(&files.socket_dir, None, WatchFlags::CREATE, &made);
            watch = Some(watched.map_err(|error| {
                ProviderError::failed(format!("watch the directory {}", files.socket_dir.display()), error)
            })?);
        }
        EndpointChoice::ReservedPorts => reservation = context.ports.reserve_ports(&mut connection).map_err(no_port)?,
        EndpointChoice::UnheldPorts => {
            endpoints::CHANNELS
                .into_iter()
                .for_each(|channel| connection.set_port(channel, 0));
            reservation = context
                .ports
                .reserve_ports(&mut connection)
                .map_err(no_port)?
                .without_sockets();
        }
        EndpointChoice::Announced(bound) => {
            connection = bound.connection_info().clone();
            registration = Some(*bound);
        }
    }
    connection
        .write(files.connection_file())
        .map_err(|error| ProviderError::failed("start a kernel", error))?;
    saved.stage = Stage::Starting;
    saved.process = None;
    saved.output_from = output::length(&files.output());
    // Written before the process is spawned, so that the next provider finds the launch if this program is killed in
    // between.
    files.save(&saved)?;
    let process = Arc::new(spawn(context, files, &saved.start)?);
    saved.process = Some(process.identity().clone());
    guard.process = Some(Arc::clone(&process));
    guard.files.save(&saved)?;
    let endpoint = Endpoint {
        connection,
        registration,
        made,
        _reservation: reservation,
        _watch: watch,
    };
    Ok((process, endpoint, saved))
}

/// The command line and environment of a kernel.
struct Invocation {
    argv: Vec<String>,
    env: Env,
    connection_file: String,
}

fn invocation(context: &ProviderContext, files: &KernelFiles, start: &LaunchSpec) -> Invocation {
    let env = environment::compose(&context.options, std::env::vars_os(), &start.spec.env, &start.env);
    let connection_file = files.connection_file().to_string_lossy().into_owned();
    let python = context.options.python.as_ref().map(|python| python.to_string_lossy());
    let mut argv = context.options.command_prefix.clone();
    argv.extend(start.kernelspec().argv(&LaunchArgs {
        connection_file: &connection_file,
        python: python.as_deref(),
        search_path: env.get(OsStr::new("PATH")).map(OsString::as_os_str),
        ..LaunchArgs::default()
    }));
    Invocation {
        argv,
        env,
        connection_file,
    }
}

fn spawn(context: &ProviderContext, files: &KernelFiles, start: &LaunchSpec) -> Result<Process, LaunchError> {
    let Invocation { argv, env, .. } = invocation(context, files, start);
    let search_path = env.get(OsStr::new("PATH"));
    let Some((program, arguments)) = argv.split_first() else {
        return Err(LaunchError::CannotStart {
            what: format!("a kernel of {}", start.spec_name),
            reason: format!("{} has no argv", start.resource_dir.join("kernel.json").display()),
        });
    };
    let open = |error: io::Error| ProviderError::failed(format!("write {}", files.output().display()), error);
    let output = output::create(&files.output()).map_err(open)?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(&env)
        .current_dir(&start.working_dir)
        .stdin(Stdio::null())
        .stdout(output.try_clone().map_err(open)?)
        .stderr(output);
    if let Some(AdjustCommand(adjust)) = &context.options.adjust_command {
        let kernel = KernelCommand {
            id: files.id,
            spec: &start.spec_name,
            command: &mut command,
        };
        adjust(kernel).map_err(|error| LaunchError::CannotStart {
            what: format!("a kernel of {}", start.spec_name),
            reason: format!("its command cannot be adjusted: {error}"),
        })?;
    }
    Process::spawn(command).map_err(|error| {
        let reason = match error.kind() {
            io::ErrorKind::NotFound if !start.working_dir.is_dir() => {
                format!("its working directory {} is gone", start.working_dir.display())
            }
            io::ErrorKind::NotFound => format!(
                "there is no such program in {}, or the interpreter in the program's first line is missing; install it, \
                 or correct argv in {}",
                search_path.map_or_else(
                    || "the system's directories".to_owned(),
                    |path| path.to_string_lossy().into_owned()
                ),
                start.resource_dir.join("kernel.json").display()
            ),
            io::ErrorKind::ArgumentListTooLong => "its environment or arguments exceed the system's limit (on Linux \
                 128 KiB per variable); shorten them"
                .to_owned(),
            _ => error.to_string(),
        };
        LaunchError::CannotStart {
            what: program.clone(),
            reason,
        }
    })
}

/// Why a process did not become a ready kernel.
enum Failure {
    Ended(ExitStatus),
    TimedOut,
    Lost(io::Error),
    Handshake(HandshakeError),
}

/// Waits until the sockets accept connections. Returns `None` then, or the reason why they never will.
///
/// Stores the ports of a kernel that announces them in `endpoint`.
async fn wait_until_ready(process: &Process, endpoint: &mut Endpoint, deadline: Instant) -> Option<Failure> {
    let ready = async {
        if let Some(registration) = endpoint.registration.take() {
            let left = deadline.saturating_duration_since(Instant::now());
            match registration.accept(left).await {
                Ok(announced) => endpoint.connection = announced,
                Err(HandshakeError::Deadline { .. }) => return Some(Failure::TimedOut),
                Err(error) => return Some(Failure::Handshake(error)),
            }
        }
        ready::wait_for_sockets(&endpoint.connection, &endpoint.made).await;
        None
    };
    tokio::select! {
        biased;
        ended = process.ended() => Some(match ended {
            Ok(ended) => Failure::Ended(ended),
            Err(error) => Failure::Lost(error),
        }),
        failure = ready => failure,
        () = tokio::time::sleep_until(deadline) => Some(Failure::TimedOut),
    }
}

/// Completes the launch. From here on the kernel stays, even if this program ends.
async fn finish(
    guard: ProcessGuard,
    process: Arc<Process>,
    connection: ConnectionInfo,
    mut saved: SavedKernel,
) -> Result<Ready, LaunchError> {
    saved.stage = Stage::Running;
    blocking("start a kernel", move || {
        // The kernel's own connection file has no ports yet if it announces them.
        if endpoints::announces_ports(&saved.start.spec) {
            connection
                .write(guard.files.connection_file())
                .map_err(|error| ProviderError::failed("start a kernel", error))?;
        }
        guard.files.save(&saved)?;
        Ok((guard, connection, saved))
    })
    .await?
    .map(|(guard, connection, saved)| {
        // Disarm the guard only after the last await, so that a cancelled launch is always cleaned up.
        guard.disarm();
        Ready {
            process,
            connection,
            saved,
        }
    })
}

fn is_port_taken(connection: &ConnectionInfo, output: &str) -> bool {
    connection.transport == Transport::Tcp
        && (endpoints::is_any_taken(connection) || output.to_ascii_lowercase().contains("address already in use"))
}
