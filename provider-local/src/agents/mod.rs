//! Kernels under agents. An agent is a process that starts a kernel, records its messages, and outlives this program.

mod files;
mod place;

use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use async_trait::async_trait;
use jupyter_protocol::Transport;
use kernel_provider::agent::{Launch, Listen, Place, Placement};
use kernel_provider::{LaunchError, LaunchRequest, LaunchStage, Progress, ProviderError};
use tokio_util::task::task_tracker::TaskTrackerToken;
use uuid::Uuid;

use self::files::{AgentFiles, SavedAgent};
use self::place::LocalPlace;
use crate::TransportChoice;
use crate::context::{ProviderContext, blocking};
use crate::environment;
use crate::launch::prepare;
use crate::process::Process;
use crate::state::LaunchSpec;

/// Starts agents as processes of this machine.
pub(crate) struct LocalPlacement {
    pub(crate) context: Arc<ProviderContext>,
}

impl LocalPlacement {
    /// Finds the running agents. Kills agents whose launch was not completed, and removes the kernels and files of
    /// agents that have ended. Blocks the thread.
    pub(crate) fn find(context: &Arc<ProviderContext>) -> Result<Vec<Arc<dyn Place>>, ProviderError> {
        let mut places: Vec<Arc<dyn Place>> = Vec::new();
        for files in AgentFiles::all(&context.state)? {
            let saved = match files.load() {
                Ok(saved) => saved,
                Err(error) => {
                    tracing::warn!(dir = %files.dir.display(), %error, "cannot read the record of an agent; leaving its folder alone");
                    continue;
                }
            };
            let id = saved.record.id;
            let process = match saved.process.as_ref().map(Process::find) {
                Some(Ok(process)) => Some(process),
                Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(ProviderError::failed("watch the agent of a kernel", error));
                }
                _ => None,
            };
            match process {
                Some(process) if saved.is_confirmed => {
                    places.push(Arc::new(LocalPlace::new(context, files, saved, process)));
                }
                Some(process) => {
                    tracing::warn!(kernel = %id, "killing an agent whose launch was never completed");
                    process.kill();
                    process.reap();
                    files.end_kernel();
                    files.remove_all();
                }
                None => {
                    tracing::warn!(kernel = %id, "the agent of a kernel ended while no provider watched it");
                    files.end_kernel();
                    files.remove_all();
                }
            }
        }
        Ok(places)
    }
}

#[async_trait]
impl Placement for LocalPlacement {
    async fn place(&self, request: &LaunchRequest, progress: &Progress) -> Result<Arc<dyn Place>, LaunchError> {
        let prepared = prepare(&self.context, request).await?;
        // A local process is not scheduled, so this stage is complete at once.
        progress.report(LaunchStage::Scheduled);
        let context = self.context.clone();
        let timeout = request.timeout;
        let started = blocking("start an agent", move || {
            let files = AgentFiles::new(&context.state, prepared.record.id);
            files.create()?;
            let launch = agent_launch(&context, &files, &prepared.start, timeout);
            let saved = SavedAgent {
                record: prepared.record,
                token: launch.token.clone(),
                process: None,
                is_confirmed: false,
            };
            let prepare = || {
                files.save_launch(&launch)?;
                // Written before the agent is started, so that the next program finds and removes the launch if this
                // one is killed in between.
                files.save(&saved)
            };
            let started = match prepare() {
                Ok(()) => start_agent(&context, files.clone(), saved),
                Err(error) => Err(error.into()),
            };
            if started.is_err() {
                files.remove_all();
            }
            Ok::<_, LaunchError>(Unclaimed {
                _until_removed: context.pending_launches.token(),
                place: Some(started?),
            })
        });
        let mut unclaimed = started.await??;
        unclaimed.claim()
    }

    async fn replace(&self, gone: &dyn Place, progress: &Progress) -> Result<Arc<dyn Place>, LaunchError> {
        let id = gone.record().id;
        progress.report(LaunchStage::Scheduled);
        let context = self.context.clone();
        blocking("start an agent", move || {
            let files = AgentFiles::all(&context.state)?
                .into_iter()
                .find(|files| files.id == id);
            let Some(files) = files else {
                return Err(LaunchError::CannotStart {
                    what: format!("a new agent for the kernel {id}"),
                    reason: "its folder was removed; start a new kernel".to_owned(),
                });
            };
            let loaded = files.load();
            let saved = loaded.map_err(|error| ProviderError::failed("read the record of an agent", error))?;
            let place: Arc<dyn Place> = Arc::new(start_agent(&context, files, saved)?);
            Ok(place)
        })
        .await?
    }
}

/// Guards an agent that was just started. If the launch is cancelled, the thread that starts the agent continues, and
/// dropping this removes the agent.
struct Unclaimed {
    place: Option<LocalPlace>,
    _until_removed: TaskTrackerToken,
}

impl Unclaimed {
    fn claim(&mut self) -> Result<Arc<dyn Place>, LaunchError> {
        match self.place.take() {
            Some(place) => Ok(Arc::new(place)),
            None => Err(ProviderError::Closed.into()),
        }
    }
}

impl Drop for Unclaimed {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            place.remove_now();
        }
    }
}

/// Builds the contents of `launch.json`.
fn agent_launch(
    context: &ProviderContext,
    files: &AgentFiles,
    start: &LaunchSpec,
    timeout: std::time::Duration,
) -> Launch {
    let options = &context.options;
    Launch {
        id: files.id,
        spec_name: start.spec_name.clone(),
        spec: start.spec.clone(),
        resource_dir: start.resource_dir.clone(),
        env: start.env.clone(),
        inherit_over_kernelspec: options.inherit_over_kernelspec.clone(),
        inherit_all: false,
        working_dir: Some(start.working_dir.clone()),
        timeout,
        dir: files.dir.clone(),
        socket_dir: context.state.socket_dir().to_owned(),
        listen: Listen::Unix(files.socket.clone()),
        token: format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple()),
        transport: match options.transport {
            TransportChoice::Auto => None,
            TransportChoice::Tcp => Some(Transport::Tcp),
            TransportChoice::Ipc => Some(Transport::Ipc),
        },
        ports: options.port_range.as_ref().map(|ports| (*ports.start(), *ports.end())),
        python: options.python.clone(),
        command_prefix: options.command_prefix.clone(),
        spool_bytes: options.spool_bytes,
        orphan_timeout: options.orphan_timeout,
        linger: None,
    }
}

/// Starts an agent. Its folder must contain `launch.json`.
fn start_agent(
    context: &Arc<ProviderContext>,
    files: AgentFiles,
    mut saved: SavedAgent,
) -> Result<LocalPlace, LaunchError> {
    let agent = context
        .options
        .agent
        .as_deref()
        .unwrap_or_else(|| Path::new("kernelmux-agent"));
    let cannot = |reason: String| LaunchError::CannotStart {
        what: agent.display().to_string(),
        reason,
    };
    let failed = |error: io::Error| ProviderError::failed(format!("start {}", agent.display()), error);
    // Only inherited variables. The launch contains the kernel's own.
    let none = std::collections::BTreeMap::new();
    let env = environment::compose(&context.options, std::env::vars_os(), &none, &none);
    let launch = std::fs::File::open(files.launch()).map_err(failed)?;
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(files.agent_log())
        .map_err(failed)?;
    let mut command = Command::new(agent);
    command
        .arg("run")
        // Only identifies the agent in a list of processes.
        .arg(&files.dir)
        .env_clear()
        .envs(&env)
        .current_dir(&files.dir)
        .stdin(launch)
        .stdout(Stdio::null())
        .stderr(log);
    let process = Process::spawn(command).map_err(|error| {
        cannot(match error.kind() {
            io::ErrorKind::NotFound => {
                "there is no such program; install kernelmux-agent, or correct its path".to_owned()
            }
            _ => error.to_string(),
        })
    })?;
    saved.process = Some(process.identity().clone());
    if let Err(error) = files.save(&saved) {
        process.kill();
        process.reap();
        return Err(error.into());
    }
    Ok(LocalPlace::new(context, files, saved, process))
}
