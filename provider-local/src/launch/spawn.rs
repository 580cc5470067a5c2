//! Creates a kernel's files, chooses the addresses of its sockets, and starts its process.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use jupyter_protocol::ConnectionInfo;
use jupyter_protocol::handshake::Registration;
use jupyter_protocol::kernelspec::LaunchArgs;
use kernel_provider::{LaunchError, ProviderError};
use rustix::fs::inotify::WatchFlags;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::process_guard::ProcessGuard;
use crate::context::ProviderContext;
use crate::environment::Env;
use crate::events::Watch;
use crate::output_pipe::OutputPipe;
use crate::ports::PortReservation;
use crate::process::Process;
use crate::state::{KernelFiles, LaunchSpec, SavedKernel, Stage};
use crate::{AdjustCommand, KernelCommand, endpoints, environment, output};

/// Where the kernel creates its sockets.
pub(super) enum EndpointChoice {
    /// Unix sockets.
    Sockets,
    /// TCP ports that stay bound until the kernel uses them. The previous ports are used again if they are free.
    ReservedPorts,
    /// TCP ports that were free a moment ago, but are not kept bound.
    UnreservedPorts,
    /// TCP ports that the kernel chooses and announces to this listener (JEP 66).
    Announced(Box<Registration>),
}

/// A process whose sockets are not open yet.
pub(super) struct SpawnedKernel {
    pub(super) guard: ProcessGuard,
    pub(super) process: Arc<Process>,
    pub(super) endpoint: Endpoint,
    pub(super) saved: SavedKernel,
}

/// The sockets that a process is expected to open.
pub(super) struct Endpoint {
    pub(super) connection: ConnectionInfo,
    pub(super) registration: Option<Registration>,
    /// Notified when a Unix socket is created, if files are watched.
    pub(super) socket_created: Option<Arc<Notify>>,
    _reservation: PortReservation,
    _watch: Option<Watch>,
}

pub(super) fn spawn_or_clean_up(
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
    let (mut reservation, mut socket_created, mut watch, mut registration) =
        (PortReservation::default(), None, None, None);
    let no_port = |error: io::Error| LaunchError::NoRoom {
        reason: format!("no free TCP port: {error}"),
    };
    match endpoints {
        EndpointChoice::Sockets => {
            endpoints::set_unix_sockets(&mut connection, &files.socket_dir);
            if let Some(events) = &context.events {
                let wake = socket_created.insert(Arc::new(Notify::new()));
                let watched = events.watch(&files.socket_dir, WatchFlags::CREATE, wake);
                watch = Some(watched.map_err(|error| {
                    ProviderError::failed(format!("watch the directory {}", files.socket_dir.display()), error)
                })?);
            }
        }
        EndpointChoice::ReservedPorts => reservation = context.ports.reserve_ports(&mut connection).map_err(no_port)?,
        EndpointChoice::UnreservedPorts => {
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
        socket_created,
        _reservation: reservation,
        _watch: watch,
    };
    Ok((process, endpoint, saved))
}

/// The command line and environment of a kernel.
pub(super) struct Invocation {
    pub(super) argv: Vec<String>,
    pub(super) env: Env,
    pub(super) connection_file: String,
}

pub(super) fn invocation(context: &ProviderContext, files: &KernelFiles, start: &LaunchSpec) -> Invocation {
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
    let mut command_line = context.options.launcher.iter().chain(&argv);
    let (false, Some(program)) = (argv.is_empty(), command_line.next()) else {
        return Err(LaunchError::CannotStart {
            what: format!("a kernel of {}", start.spec_name),
            reason: format!("{} has no argv", start.resource_dir.join("kernel.json").display()),
        });
    };
    let open = |error: io::Error| ProviderError::failed(format!("write {}", files.output().display()), error);
    let (stdout, stderr, pipe): (Stdio, Stdio, _) = if context.options.output_pipes {
        let (pipe, writer) = OutputPipe::create(&files.output()).map_err(open)?;
        (writer.try_clone().map_err(open)?.into(), writer.into(), Some(pipe))
    } else {
        let output = output::create(&files.output()).map_err(open)?;
        (output.try_clone().map_err(open)?.into(), output.into(), None)
    };
    let mut command = Command::new(program);
    command
        .args(command_line)
        .env_clear()
        .envs(&env)
        .current_dir(&start.working_dir)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr);
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
    let spawned = if context.options.launcher.is_empty() || is_program(&argv[0], search_path, &start.working_dir) {
        Process::spawn(command)
    } else {
        // Refuse a missing program here: the launcher would start, and then exit because it cannot run the program.
        Err(io::ErrorKind::NotFound.into())
    };
    if let Some(pipe) = &pipe {
        let mut copying = crate::lock(&context.copying);
        while copying.try_join_next().is_some() {}
        copying.spawn_on(pipe.clone().copy(), &Handle::current());
    }
    let spawned = spawned.map(|process| process.with_output(pipe));
    spawned.map_err(|error| {
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
            what: argv[0].clone(),
            reason,
        }
    })
}

/// Whether `program` is the path of a file, or the name of a file in the search path.
fn is_program(program: &str, search_path: Option<&OsString>, working_dir: &Path) -> bool {
    if program.contains('/') {
        return working_dir.join(program).is_file();
    }
    let search_path = search_path.map_or_else(|| OsString::from("/bin:/usr/bin"), Clone::clone);
    std::env::split_paths(&search_path).any(|dir| working_dir.join(dir).join(program).is_file())
}
