//! From a kernelspec to a process whose sockets can be connected to, or to the reason why not.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use jupyter_protocol::kernelspec::{KernelspecError, LaunchArgs, get_kernelspec};
use jupyter_protocol::{ConnectionInfo, Key, Transport};
use kernel_provider::provider::{
    ExitCause, KernelRecord, LaunchError, LaunchRequest, LaunchStage, Progress, ProviderError,
};
use rustix::fs::inotify::WatchFlags;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::LocalConfig;
use crate::endpoints::{self, Held};
use crate::environment;
use crate::events::{Events, Watch};
use crate::output;
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
    pub(crate) oom: OomCounter,
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
}

impl Unfinished {
    /// Takes the process out; it is its new owner's then.
    fn finish(mut self) -> Option<Arc<Process>> {
        self.keep_files();
        self.process.take()
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
        let clear_away = move || {
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
    let mut attempt = 0;
    loop {
        attempt += 1;
        let begun = blocking("start a kernel", {
            let (machine, files, saved, connection) =
                (Arc::clone(machine), files.clone(), saved.clone(), connection.clone());
            // Ports that were not to be had are not worth holding a second time: the kernel may be one that cannot
            // bind what is held.
            move || begin(&machine, files, saved, connection, attempt, is_new)
        })
        .await??;
        progress.report(LaunchStage::Starting);
        let Some(failure) = outcome(&begun, deadline).await else {
            return complete(begun).await;
        };
        let (mut unfinished, machine) = (begun.unfinished, Arc::clone(machine));
        let (connection, output_from, held) = (begun.connection, begun.saved.output_from, begun.held);
        let failed = blocking("end a kernel that did not start", move || {
            unfinished.end();
            drop(held);
            let output = output::tail(&unfinished.files.output(), output_from, output::EVIDENCE).unwrap_or_default();
            match failure {
                Failure::TimedOut => Some(LaunchError::TimedOut { timeout, output }),
                Failure::Ended(_) if attempt < ATTEMPTS && is_port_taken(&connection, &output) => {
                    unfinished.keep_files();
                    None
                }
                Failure::Ended(ended) => Some(LaunchError::died(machine.cause(ended), output)),
                Failure::Lost(error) => Some(ProviderError::failed("watch the kernel's process", error).into()),
            }
        })
        .await?;
        match failed {
            Some(error) => return Err(error),
            None => tracing::info!(kernel = %saved.record.id, attempt, "a port was taken; trying others"),
        }
    }
}

/// A process whose sockets are not open yet.
struct Begun {
    unfinished: Unfinished,
    process: Arc<Process>,
    connection: ConnectionInfo,
    saved: Saved,
    held: Held,
    /// Woken when a Unix socket is made.
    made: Arc<Notify>,
    _watch: Option<Watch>,
}

fn begin(
    machine: &Machine,
    files: KernelFiles,
    mut saved: Saved,
    mut connection: ConnectionInfo,
    attempt: usize,
    is_new: bool,
) -> Result<Begun, LaunchError> {
    let mut unfinished = Unfinished {
        process: None,
        files,
        is_new,
    };
    let files = &unfinished.files;
    let transport = endpoints::transport(machine.config.transport, &saved.start.spec);
    files.make(transport == Transport::Ipc)?;
    let made = Arc::new(Notify::new());
    let (mut held, mut watch) = (Held::default(), None);
    if transport == Transport::Ipc {
        endpoints::take_sockets(&mut connection, &files.socket_dir);
        let watched = machine.events.watch(&files.socket_dir, None, WatchFlags::CREATE, &made);
        watch = Some(watched.map_err(|error| {
            ProviderError::failed(format!("watch the directory {}", files.socket_dir.display()), error)
        })?);
    } else {
        if attempt > 1 {
            endpoints::CHANNELS
                .into_iter()
                .for_each(|channel| connection.set_port(channel, 0));
        }
        held = endpoints::take_ports(&mut connection).map_err(|error| LaunchError::NoRoom {
            reason: format!("no free TCP port: {error}"),
        })?;
        if attempt > 1 {
            held = Held::default();
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
    Ok(Begun {
        unfinished,
        process,
        connection,
        saved,
        held,
        made,
        _watch: watch,
    })
}

fn spawn(machine: &Machine, files: &KernelFiles, start: &Start) -> Result<Process, LaunchError> {
    let connection_file = files.connection_file();
    let connection_file = connection_file.to_string_lossy();
    let python = machine.config.python.as_ref().map(|python| python.to_string_lossy());
    let argv = start.kernelspec().argv(&LaunchArgs {
        connection_file: &connection_file,
        python: python.as_deref(),
        ..LaunchArgs::default()
    });
    let Some((program, arguments)) = argv.split_first() else {
        return Err(LaunchError::CannotStart {
            what: format!("a kernel of {}", start.spec_name),
            reason: format!("{} has no argv", start.resource_dir.join("kernel.json").display()),
        });
    };
    let env = environment::compose(
        &machine.config.inherit_env,
        std::env::vars_os(),
        &start.spec.env,
        &start.env,
    );
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
                env.get(std::ffi::OsStr::new("PATH")).map_or_else(
                    || "the system's directories".to_owned(),
                    |path| path.to_string_lossy().into_owned()
                ),
                start.resource_dir.join("kernel.json").display()
            ),
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
}

/// Waits until the sockets can be connected to, which is no failure.
async fn outcome(begun: &Begun, deadline: Instant) -> Option<Failure> {
    tokio::select! {
        biased;
        ended = begun.process.ended() => Some(match ended {
            Ok(ended) => Failure::Ended(ended),
            Err(error) => Failure::Lost(error),
        }),
        () = ready::sockets(&begun.connection, &begun.made) => None,
        () = tokio::time::sleep_until(deadline) => Some(Failure::TimedOut),
    }
}

/// The kernel is there: from here on it stays, even if this program ends.
async fn complete(begun: Begun) -> Result<Ready, LaunchError> {
    let Begun {
        unfinished,
        process,
        connection,
        mut saved,
        ..
    } = begun;
    saved.stage = Stage::Running;
    blocking("start a kernel", move || {
        unfinished.files.save(&saved)?;
        Ok((unfinished, saved))
    })
    .await?
    .map(|(unfinished, saved)| {
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
