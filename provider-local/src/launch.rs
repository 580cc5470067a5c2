//! Launches a kernel: from a kernelspec to a process whose sockets accept connections.

mod process_guard;
mod spawn;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jupyter_protocol::handshake::{HandshakeError, Registration};
use jupyter_protocol::kernelspec::{KernelspecError, get_kernelspec};
use jupyter_protocol::{ConnectionInfo, Key, Transport};
use kernel_provider::{KernelRecord, LaunchError, LaunchRequest, LaunchStage, Progress, ProviderError};
use tokio::time::Instant;

use crate::context::{ProviderContext, blocking};
use crate::process::{ExitStatus, Process};
use crate::state::{KernelFiles, LaunchSpec, SavedKernel, Stage};
use crate::{endpoints, environment, output, ready};
use process_guard::ProcessGuard;
use spawn::{Endpoint, EndpointChoice, Invocation, SpawnedKernel, invocation, spawn_or_clean_up};

/// Maximum number of attempts to start a kernel whose ports are taken by other programs.
const MAX_ATTEMPTS: usize = 4;

/// A running kernel whose sockets accept connections.
pub(crate) struct Ready {
    pub(crate) process: Arc<Process>,
    pub(crate) connection: ConnectionInfo,
    pub(crate) saved: SavedKernel,
}

/// Resolves a launch request into the record to save. Does not start anything.
pub(crate) async fn prepare(
    context: &Arc<ProviderContext>,
    request: &LaunchRequest,
) -> Result<SavedKernel, LaunchError> {
    environment::check(&request.env).map_err(LaunchError::BadRequest)?;
    let (context, request) = (Arc::clone(context), request.clone());
    blocking("start a kernel", move || {
        let given = context
            .options
            .kernelspecs
            .iter()
            .find(|given| given.name == request.spec);
        let found = match given {
            Some(given) => Ok(given.clone()),
            None => get_kernelspec(&context.options.search, &request.spec),
        };
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
        )
        .with_annotations(request.annotations);
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
            // Some kernels cannot bind a port that this process keeps bound, so later attempts do not keep the ports
            // bound.
            _ => EndpointChoice::UnreservedPorts,
        };
        let spawned = blocking("start a kernel", {
            let (context, saved, connection) = (Arc::clone(context), saved.clone(), connection.clone());
            // Closing the provider waits for this guard, because the blocking thread continues if this future is
            // dropped.
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

fn registration_failed(error: HandshakeError) -> LaunchError {
    ProviderError::failed("receive the kernel's ports", error).into()
}

/// Why a process did not become a ready kernel.
enum Failure {
    Ended(ExitStatus),
    TimedOut,
    Lost(io::Error),
    Handshake(HandshakeError),
}

/// Waits for the sockets. Returns `None` once they accept connections, or the reason why they will not.
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
        ready::wait_for_sockets(&endpoint.connection, endpoint.socket_created.as_deref()).await;
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

/// Completes the launch. Afterwards the kernel keeps running even if this program ends.
async fn finish(
    guard: ProcessGuard,
    process: Arc<Process>,
    connection: ConnectionInfo,
    mut saved: SavedKernel,
) -> Result<Ready, LaunchError> {
    saved.stage = Stage::Running;
    blocking("start a kernel", move || {
        // A kernel that announces its ports was started with a connection file without ports.
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
