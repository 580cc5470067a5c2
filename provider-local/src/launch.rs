//! From a kernelspec to a process whose sockets can be connected to, or to the reason why not.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use jupyter_protocol::handshake::{HandshakeError, Registration};
use jupyter_protocol::kernelspec::{KernelspecError, LaunchArgs, get_kernelspec};
use jupyter_protocol::{ConnectionInfo, Key, Transport};
use kernel_provider::provider::{
    ExitCause, KernelRecord, LaunchError, LaunchRequest, LaunchStage, Progress, ProviderError,
};
use rustix::fs::inotify::WatchFlags;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::LocalConfig;
use crate::endpoints;
use crate::environment::{self, Env};
use crate::events::{Events, Watch};
use crate::output;
use crate::ports::{HeldPorts, Ports};
use crate::process::oom::OomCounter;
use crate::process::{Ended, Process};
use crate::ready;
use crate::state::{KernelFiles, Saved, Stage, Start, StateDir};

/// How often a kernel is started whose ports others took before it could.
const ATTEMPTS: usize = 4;

/// What the kernels of one provider share.
pub(crate) struct Machine {
    pub(crate) config: LocalConfig,
    pub(crate) state: StateDir,
    pub(crate) events: Arc<Events>,
    pub(crate) oom: Arc<OomCounter>,
    pub(crate) ports: Ports,
    /// What is not handed over yet, and what was given up and is not cleared away yet.
    pub(crate) unfinished: TaskTracker,
}

impl Machine {
    /// Why a process that was not asked to end has ended.
    pub(crate) fn cause(&self, ended: Ended) -> ExitCause {
        match ended {
            Ended::Code(code) => ExitCause::Code(code),
            Ended::Signal(9) | Ended::NotTold if self.oom.claim() => ExitCause::OutOfMemory,
            Ended::Signal(signal) => ExitCause::Signal(signal),
            Ended::NotTold => ExitCause::Unknown(
                "it was started by an embedder that has ended since, and the system tells only a process's parent how it \
                 ended"
                    .to_owned(),
            ),
        }
    }
}

/// Runs what blocks on a thread for that.
pub(crate) async fn blocking<T: Send + 'static>(
    action: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ProviderError> {
    tokio::task::spawn_blocking(run)
        .await
        .map_err(|error| ProviderError::failed(action, error))
}

/// A kernel that answers at its sockets.
pub(crate) struct Ready {
    pub(crate) process: Arc<Process>,
    pub(crate) connection: ConnectionInfo,
    pub(crate) saved: Saved,
}

/// A process that is not handed over yet. Dropping this ends it and all that it started.
struct Unfinished {
    process: Option<Arc<Process>>,
    files: KernelFiles,
    /// Whether the files go with it, as they do where the kernel was not there before.
    is_new: bool,
    counted: TaskTrackerToken,
}

impl Unfinished {
    /// The process has another owner.
    fn finish(mut self) {
        self.keep_files();
        self.process = None;
    }

    /// The files are needed again.
    fn keep_files(&mut self) {
        self.is_new = false;
    }

    /// Ends the process, with all that it started, and reaps it. Blocks.
    fn end(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
            process.bury();
        }
    }

    /// Does at once what dropping this does in time. Blocks.
    fn clear_away(mut self) {
        self.end();
        if self.is_new {
            self.files.remove_all();
            self.keep_files();
        }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let process = self.process.take();
        let files = self.is_new.then(|| self.files.clone());
        if let Some(process) = &process {
            // Killed before this returns, whatever becomes of this program; the rest takes a moment.
            process.kill();
        }
        if process.is_none() && files.is_none() {
            return;
        }
        let counted = self.counted.clone();
        let clear_away = move || {
            let _until_done = counted;
            if let Some(process) = process {
                process.bury();
            }
            if let Some(files) = files {
                files.remove_all();
            }
        };
        // The async runtime may be going down, so this is no task. Without threads, the next start clears the files.
        if let Err(error) = std::thread::Builder::new()
            .name("kernel-cleanup".to_owned())
            .spawn(clear_away)
        {
            tracing::warn!(%error, "a kernel that was given up is killed, but its files are left");
        }
    }
}

/// Finds out what is to be started, and where.
pub(crate) async fn prepare(machine: &Arc<Machine>, request: &LaunchRequest) -> Result<Saved, LaunchError> {
    environment::check(&request.env).map_err(LaunchError::BadRequest)?;
    let (machine, request) = (Arc::clone(machine), request.clone());
    blocking("start a kernel", move || {
        let found = get_kernelspec(&machine.config.search, &request.spec);
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
        let working_dir = working_dir(request.working_dir.as_deref(), machine.config.working_dir.as_deref())?;
        let record = KernelRecord::new(
            &machine.config.name,
            request.id,
            &installed.name,
            request.owner,
            chrono::Utc::now(),
            serde_json::Value::Null,
        );
        Ok(Saved {
            record,
            start: Start {
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

/// Where a kernel starts: where it was asked for, else where this process is.
fn working_dir(request: Option<&Path>, default: Option<&Path>) -> Result<PathBuf, LaunchError> {
    let chosen = request.or(default);
    let Some(dir) = chosen else {
        // The own directory may have been removed.
        let own = std::env::current_dir().ok().filter(|dir| dir.is_dir());
        return Ok(own.unwrap_or_else(|| PathBuf::from("/")));
    };
    let refuse = |reason: String| LaunchError::CannotStart {
        what: format!("a kernel in the directory {}", dir.display()),
        reason,
    };
    match std::fs::metadata(dir) {
        Ok(metadata) if metadata.is_dir() => std::path::absolute(dir).map_err(|error| refuse(error.to_string())),
        Ok(_) => Err(refuse("it is no directory".to_owned())),
        Err(error) => Err(refuse(format!("{error}; make it, or give another"))),
    }
}

/// What a fresh kernel's connection is before it has ports.
pub(crate) fn fresh_connection(start: &Start) -> ConnectionInfo {
    ConnectionInfo {
        key: Key::random(),
        kernel_name: start.spec_name.clone(),
        jupyter_session: start.env.get("JPY_SESSION_NAME").cloned(),
        ..ConnectionInfo::default()
    }
}

/// Starts a kernel and waits for its sockets.
///
/// `connection` has the key, and the ports that are to be taken if they are free. Where `is_new`, the files go when
/// this fails or is dropped. The process goes in any case.
pub(crate) async fn start(
    machine: &Arc<Machine>,
    files: &KernelFiles,
    saved: Saved,
    connection: ConnectionInfo,
    is_new: bool,
    timeout: Duration,
    progress: &Progress,
) -> Result<Ready, LaunchError> {
    let deadline = Instant::now() + timeout;
    let transport = blocking("start a kernel", {
        let (machine, files, start) = (Arc::clone(machine), files.clone(), saved.start.clone());
        move || {
            let Invocation {
                argv, connection_file, ..
            } = invocation(&machine, &files, &start);
            endpoints::transport(machine.config.transport, &start.spec, &argv, &connection_file)
        }
    })
    .await?;
    let mut attempt = 0;
    loop {
        attempt += 1;
        let endpoints = match transport {
            Transport::Ipc => Endpoints::Sockets,
            _ if endpoints::announces_ports(&saved.start.spec) => Endpoints::Announced(Box::new(
                Registration::bind(connection.clone())
                    .await
                    .map_err(registration_failed)?,
            )),
            _ if attempt == 1 => Endpoints::HeldPorts,
            // Ports that were not to be had are not held a second time: the kernel may be one that cannot bind what
            // is held.
            _ => Endpoints::OtherPorts,
        };
        let begun = blocking("start a kernel", {
            let (machine, saved, connection) = (Arc::clone(machine), saved.clone(), connection.clone());
            // Counted from here on: the thread goes on when this is dropped.
            let unfinished = Unfinished {
                process: None,
                files: files.clone(),
                is_new,
                counted: machine.unfinished.token(),
            };
            move || begin(&machine, unfinished, saved, connection, endpoints)
        })
        .await??;
        let Begun {
            mut unfinished,
            process,
            mut endpoint,
            saved,
        } = begun;
        progress.report(LaunchStage::Starting);
        let Some(failure) = outcome(&process, &mut endpoint, deadline).await else {
            return complete(unfinished, process, endpoint.connection, saved).await;
        };
        let id = saved.record.id;
        let machine = Arc::clone(machine);
        let failed = blocking("end a kernel that did not start", move || {
            unfinished.end();
            let connection = endpoint.connection.clone();
            drop(endpoint);
            let output =
                output::tail(&unfinished.files.output(), saved.output_from, output::EVIDENCE).unwrap_or_default();
            let error = match failure {
                Failure::TimedOut => LaunchError::TimedOut { timeout, output },
                Failure::Ended(_) if attempt < ATTEMPTS && is_port_taken(&connection, &output) => {
                    unfinished.keep_files();
                    return None;
                }
                Failure::Ended(ended) => LaunchError::died(machine.cause(ended), output),
                Failure::Lost(error) => ProviderError::failed("watch the kernel's process", error).into(),
                Failure::Handshake(error) => registration_failed(error),
            };
            unfinished.clear_away();
            Some(error)
        })
        .await?;
        match failed {
            Some(error) => return Err(error),
            None => tracing::info!(kernel = %id, attempt, "a port was taken; trying others"),
        }
    }
}

/// Where the kernel is to have its sockets.
enum Endpoints {
    /// Unix sockets.
    Sockets,
    /// TCP ports that are held until the kernel has them; those of before if they are free.
    HeldPorts,
    /// TCP ports that were free a moment ago.
    OtherPorts,
    /// TCP ports that the kernel chooses and announces here.
    Announced(Box<Registration>),
}

fn registration_failed(error: HandshakeError) -> LaunchError {
    ProviderError::failed("let the kernel announce its ports", error).into()
}

/// A process whose sockets are not open yet.
struct Begun {
    unfinished: Unfinished,
    process: Arc<Process>,
    endpoint: Endpoint,
    saved: Saved,
}

/// Where its sockets are to be, and what tells that they are.
struct Endpoint {
    connection: ConnectionInfo,
    registration: Option<Registration>,
    /// Woken when a Unix socket is made.
    made: Arc<Notify>,
    _held: HeldPorts,
    _watch: Option<Watch>,
}

fn begin(
    machine: &Machine,
    mut unfinished: Unfinished,
    saved: Saved,
    connection: ConnectionInfo,
    endpoints: Endpoints,
) -> Result<Begun, LaunchError> {
    match spawn_with(machine, &mut unfinished, saved, connection, endpoints) {
        Ok((process, endpoint, saved)) => Ok(Begun {
            unfinished,
            process,
            endpoint,
            saved,
        }),
        Err(error) => {
            unfinished.clear_away();
            Err(error)
        }
    }
}

/// Makes the files and starts the process.
fn spawn_with(
    machine: &Machine,
    unfinished: &mut Unfinished,
    mut saved: Saved,
    mut connection: ConnectionInfo,
    endpoints: Endpoints,
) -> Result<(Arc<Process>, Endpoint, Saved), LaunchError> {
    let files = &unfinished.files;
    files.make(matches!(endpoints, Endpoints::Sockets))?;
    let made = Arc::new(Notify::new());
    let (mut held, mut watch, mut registration) = (HeldPorts::default(), None, None);
    let no_port = |error: io::Error| LaunchError::NoRoom {
        reason: format!("no free TCP port: {error}"),
    };
    match endpoints {
        Endpoints::Sockets => {
            endpoints::take_sockets(&mut connection, &files.socket_dir);
            let watched = machine.events.watch(&files.socket_dir, None, WatchFlags::CREATE, &made);
            watch = Some(watched.map_err(|error| {
                ProviderError::failed(format!("watch the directory {}", files.socket_dir.display()), error)
            })?);
        }
        Endpoints::HeldPorts => held = machine.ports.take(&mut connection).map_err(no_port)?,
        Endpoints::OtherPorts => {
            endpoints::CHANNELS
                .into_iter()
                .for_each(|channel| connection.set_port(channel, 0));
            held = machine.ports.take(&mut connection).map_err(no_port)?.without_sockets();
        }
        Endpoints::Announced(bound) => {
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
    // Written before there is a process: an embedder that is killed right after it has begun leaves a trace.
    files.save(&saved)?;
    let process = Arc::new(spawn(machine, files, &saved.start)?);
    saved.process = Some(process.identity().clone());
    unfinished.process = Some(Arc::clone(&process));
    unfinished.files.save(&saved)?;
    let endpoint = Endpoint {
        connection,
        registration,
        made,
        _held: held,
        _watch: watch,
    };
    Ok((process, endpoint, saved))
}

/// How a kernel's program is called.
struct Invocation {
    argv: Vec<String>,
    env: Env,
    connection_file: String,
}

fn invocation(machine: &Machine, files: &KernelFiles, start: &Start) -> Invocation {
    let env = environment::compose(&machine.config, std::env::vars_os(), &start.spec.env, &start.env);
    let connection_file = files.connection_file().to_string_lossy().into_owned();
    let python = machine.config.python.as_ref().map(|python| python.to_string_lossy());
    let argv = start.kernelspec().argv(&LaunchArgs {
        connection_file: &connection_file,
        python: python.as_deref(),
        search_path: env.get(OsStr::new("PATH")).map(OsString::as_os_str),
        ..LaunchArgs::default()
    });
    Invocation {
        argv,
        env,
        connection_file,
    }
}

fn spawn(machine: &Machine, files: &KernelFiles, start: &Start) -> Result<Process, LaunchError> {
    let Invocation { argv, env, .. } = invocation(machine, files, start);
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
    Process::spawn(command).map_err(|error| {
        let reason = match error.kind() {
            io::ErrorKind::NotFound if !start.working_dir.is_dir() => {
                format!("its working directory {} is gone", start.working_dir.display())
            }
            io::ErrorKind::NotFound => format!(
                "there is no such program, or not the interpreter that its first line names; it was looked for in {}; \
                 install it, or correct argv in {}",
                search_path.map_or_else(
                    || "the system's directories".to_owned(),
                    |path| path.to_string_lossy().into_owned()
                ),
                start.resource_dir.join("kernel.json").display()
            ),
            io::ErrorKind::ArgumentListTooLong => "its environment or arguments are longer than the system takes (on \
                 Linux 128 KiB for one variable); shorten them"
                .to_owned(),
            _ => error.to_string(),
        };
        LaunchError::CannotStart {
            what: program.clone(),
            reason,
        }
    })
}

/// Why a process did not become a kernel.
enum Failure {
    Ended(Ended),
    TimedOut,
    Lost(io::Error),
    Handshake(HandshakeError),
}

/// Waits until the sockets can be connected to, which is no failure. A kernel that announces its ports enters them.
async fn outcome(process: &Process, endpoint: &mut Endpoint, deadline: Instant) -> Option<Failure> {
    let ready = async {
        if let Some(registration) = endpoint.registration.take() {
            let left = deadline.saturating_duration_since(Instant::now());
            match registration.accept(left).await {
                Ok(announced) => endpoint.connection = announced,
                Err(HandshakeError::Deadline { .. }) => return Some(Failure::TimedOut),
                Err(error) => return Some(Failure::Handshake(error)),
            }
        }
        ready::sockets(&endpoint.connection, &endpoint.made).await;
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

/// The kernel is there: from here on it stays, even if this program ends.
async fn complete(
    unfinished: Unfinished,
    process: Arc<Process>,
    connection: ConnectionInfo,
    mut saved: Saved,
) -> Result<Ready, LaunchError> {
    saved.stage = Stage::Running;
    blocking("start a kernel", move || {
        // A kernel that announced its ports was started with a file that has none.
        if endpoints::announces_ports(&saved.start.spec) {
            connection
                .write(unfinished.files.connection_file())
                .map_err(|error| ProviderError::failed("start a kernel", error))?;
        }
        unfinished.files.save(&saved)?;
        Ok((unfinished, connection, saved))
    })
    .await?
    .map(|(unfinished, connection, saved)| {
        // Only now, when nobody can drop this any more, is it somebody else's.
        unfinished.finish();
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
