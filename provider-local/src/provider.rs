use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use jupyter_protocol::ConnectionInfo;
use kernel_provider::agent::AgentKernels;
use kernel_provider::{
    AttachError, Exit, ExitCause, KernelHandle, KernelProvider, KernelRecord, LaunchError, LaunchRequest, LaunchStage,
    Progress, ProviderError, Selector, Specs, follow_specs,
};
use tokio::sync::watch;
use tokio_util::task::{AbortOnDrop, TaskTracker};

use crate::LocalOptions;
use crate::agents::LocalPlacement;
use crate::context::{ProviderContext, blocking};
use crate::events::Events;
use crate::kernel::{LocalKernel, LocalKernelHandle};
use crate::launch;
use crate::output;
use crate::ports::PortAllocator;
use crate::process::Process;
use crate::process::oom::OomCounter;
use crate::process::orphans;
use crate::process::stat::{Identity, find_by_argument};
use crate::registry::Registry;
use crate::salvage::{is_listened_on, salvage};
use crate::state::{KernelFiles, SavedKernel, Stage, StateDir};

/// Runs kernels as processes of this machine.
///
/// Kernels outlive the provider: they keep running when it is dropped, and however this program ends. A provider that
/// [opens](Self::open) the same state directory finds them again.
pub struct LocalProvider {
    context: Arc<ProviderContext>,
    registry: Arc<Registry>,
    agents: AgentKernels,
    specs: watch::Receiver<Arc<Specs>>,
    _tasks: Vec<AbortOnDrop>,
}

impl fmt::Debug for LocalProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalProvider").finish_non_exhaustive()
    }
}

impl LocalProvider {
    /// Opens the state directory and attaches to the kernels that are running. Must be called in a tokio runtime with
    /// I/O and time enabled.
    ///
    /// A kernel that was still being launched when the previous program ended is killed, because no caller has received
    /// it.
    ///
    /// # Errors
    /// [`ProviderError`] if the directory cannot be created or used, is accessible to others, or is in use by another
    /// provider, in this or another process; or if the system refuses file system events.
    pub async fn open(options: LocalOptions) -> Result<Self, ProviderError> {
        // Lock the directory first, so that opening a directory in use fails before anything else is allocated.
        let (options, state) = blocking("open the state directory", move || {
            let state = StateDir::open(&options.state_dir, options.socket_dir.as_deref())?;
            Ok::<_, ProviderError>((options, state))
        })
        .await??;
        let events = if options.output_pipes {
            None
        } else {
            let events = Events::new().map_err(|error| {
                let advice = format!("{error}; raise fs.inotify.max_user_instances or the limit of open files");
                ProviderError::failed("watch file system events", advice)
            })?;
            Some(Arc::new(events))
        };
        let oom = Arc::new(OomCounter::new());
        let counting = tokio::spawn(Arc::clone(&oom).follow());
        let counting = AbortOnDrop::new(counting.abort_handle());
        let registry = Arc::new(Registry::default());
        let (context, found, places) = blocking("find the running kernels", {
            let (registry, events) = (Arc::clone(&registry), events.clone());
            move || -> Result<_, ProviderError> {
                let found = Specs::find(&options.search);
                let context = Arc::new(ProviderContext {
                    ports: PortAllocator::new(options.port_range.clone()),
                    options,
                    state,
                    events,
                    copying: Mutex::default(),
                    oom,
                    pending_launches: TaskTracker::new(),
                    is_closed: AtomicBool::new(false),
                });
                recover(&context, &registry)?;
                let places = LocalPlacement::find(&context)?;
                Ok((context, found, places))
            }
        })
        .await??;
        let placement = LocalPlacement {
            context: context.clone(),
        };
        let agents = AgentKernels::new(Arc::new(placement), places);
        found.warn_of_broken(&Specs::default());
        let (sender, specs) = watch::channel(Arc::new(found));
        let follower = tokio::spawn(follow_specs(context.options.search.clone(), sender, Specs::find));
        let mut tasks = vec![AbortOnDrop::new(follower.abort_handle()), counting];
        if context.options.reap_orphans {
            let ends = orphans::child_exits()
                .map_err(|error| ProviderError::failed("watch for exits of child processes", error))?;
            let reaping = tokio::spawn(orphans::reap_orphans(ends));
            tasks.push(AbortOnDrop::new(reaping.abort_handle()));
        }
        Ok(Self {
            context,
            registry,
            agents,
            specs,
            _tasks: tasks,
        })
    }
}

/// Recovers the kernels that the previous program left in the state directory. Blocks the thread.
fn recover(context: &Arc<ProviderContext>, registry: &Arc<Registry>) -> Result<(), ProviderError> {
    let (mut intact, broken) = context.state.load()?;
    for files in broken {
        if let Some(saved) = salvage(&files, &context.options.name, &context.options.search) {
            tracing::warn!(kernel = %files.id, dir = %files.dir.display(), "rebuilt the missing or damaged record of a running kernel from its process");
            files.keep_damaged_record();
            files.save(&saved)?;
            intact.push((files, saved));
        } else if is_listened_on(&files) {
            tracing::warn!(kernel = %files.id, dir = %files.dir.display(), "a kernel seems to run, but its process is unknown; leaving it alone");
        } else {
            files.remove_all();
        }
    }
    intact.sort_by_key(|(_, saved)| saved.record.launched);
    for (files, mut saved) in intact {
        let id = saved.record.id;
        match saved.stage.clone() {
            Stage::Starting => {
                tracing::warn!(kernel = %id, "killing a kernel whose launch was never completed");
                end_orphan(saved.process.as_ref(), &files)?;
            }
            Stage::Running => {
                if let Some(process) = find(saved.process.as_ref())? {
                    let connection = ConnectionInfo::read(files.connection_file())
                        .inspect_err(|error| tracing::warn!(kernel = %id, %error, "cannot read the connection file"))
                        .ok();
                    let kernel = LocalKernel::running(context, registry, files, saved, Arc::new(process), connection);
                    registry.insert(&kernel);
                } else {
                    let output =
                        output::tail(&files.output(), saved.output_from, output::ERROR_TAIL).unwrap_or_default();
                    let cause = ExitCause::Unknown("it ended while no provider watched it".to_owned());
                    let exit = Exit::new(cause).with_output(output);
                    saved.stage = Stage::Ended(exit.clone());
                    files.remove_connection();
                    files.save(&saved)?;
                    register_ended(context, registry, files, saved, exit);
                }
            }
            Stage::Ended(exit) => register_ended(context, registry, files, saved, exit),
        }
    }
    Ok(())
}

fn register_ended(
    context: &Arc<ProviderContext>,
    registry: &Arc<Registry>,
    files: KernelFiles,
    saved: SavedKernel,
    exit: Exit,
) {
    let kernel = LocalKernel::ended(context, registry, files, saved, exit);
    if let Some(before) = registry.insert(&kernel) {
        before.discard();
    }
    registry.ended(&kernel, context.options.keep_ended);
}

fn find(identity: Option<&Identity>) -> Result<Option<Process>, ProviderError> {
    let Some(identity) = identity else {
        return Ok(None);
    };
    match Process::find(identity) {
        Ok(process) => Ok(Some(process)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ProviderError::failed(format!("watch process {}", identity.pid), error)),
    }
}

/// Kills a kernel whose launch was not completed, if its process is running, and removes its files. Blocks the thread.
fn end_orphan(identity: Option<&Identity>, files: &KernelFiles) -> Result<(), ProviderError> {
    let by_argument = || find_by_argument(&files.connection_file());
    let identity = identity.cloned().or_else(by_argument);
    if let Some(process) = find(identity.as_ref())? {
        process.kill();
        process.reap();
    }
    files.remove_all();
    Ok(())
}

#[async_trait]
impl KernelProvider for LocalProvider {
    fn name(&self) -> &str {
        &self.context.options.name
    }

    fn specs(&self) -> watch::Receiver<Arc<Specs>> {
        self.specs.clone()
    }

    async fn launch(&self, request: LaunchRequest, progress: Progress) -> Result<Arc<dyn KernelHandle>, LaunchError> {
        self.context.check_open()?;
        let launch_lock = self.registry.launch_lock(request.id);
        let _locked = launch_lock.lock.lock().await;
        if let Some(kernel) = self.registry.get(request.id).filter(|kernel| kernel.exit().is_none()) {
            progress.report(LaunchStage::Ready);
            return Ok(Arc::new(LocalKernelHandle(kernel)));
        }
        let options = &self.context.options;
        if options.agent.is_some() && options.adjust_command.is_none() || self.agents.has(request.id) {
            return self.agents.launch(&request, &progress).await;
        }
        let saved = launch::prepare(&self.context, &request).await?;
        // A local process is not scheduled, so this stage is complete at once.
        progress.report(LaunchStage::Scheduled);
        let files = self.context.state.new_kernel(request.id);
        let connection = launch::new_connection(&saved.start);
        let ready = launch::start(
            &self.context,
            &files,
            saved,
            connection,
            true,
            request.timeout,
            &progress,
        )
        .await?;
        let kernel = LocalKernel::running(
            &self.context,
            &self.registry,
            files,
            ready.saved,
            ready.process,
            Some(ready.connection),
        );
        if let Some(before) = self.registry.insert(&kernel) {
            before.discard();
        }
        progress.report(LaunchStage::Ready);
        Ok(Arc::new(LocalKernelHandle(kernel)))
    }

    async fn list(&self, selector: &Selector) -> Result<Vec<KernelRecord>, ProviderError> {
        self.context.check_open()?;
        Ok(self
            .registry
            .all()
            .into_iter()
            .filter(|kernel| kernel.exit().is_none())
            .map(|kernel| LocalKernelHandle(kernel).record())
            .chain(self.agents.records())
            .filter(|record| selector.matches(record))
            .collect())
    }

    async fn attach(&self, record: &KernelRecord) -> Result<Arc<dyn KernelHandle>, AttachError> {
        if record.provider != self.context.options.name {
            return Err(AttachError::Foreign {
                theirs: record.provider.clone(),
                ours: self.context.options.name.clone(),
            });
        }
        self.context.check_open()?;
        if self.agents.has(record.id) {
            return self.agents.attach(record.id).await;
        }
        let gone = |cause| AttachError::Gone { id: record.id, cause };
        let Some(kernel) = self.registry.get(record.id) else {
            let reason = "this provider has no record of it".to_owned();
            return Err(gone(ExitCause::Unknown(reason)));
        };
        match kernel.exit() {
            Some(exit) => Err(gone(exit.cause)),
            None => Ok(Arc::new(LocalKernelHandle(kernel))),
        }
    }

    async fn close(&self) {
        self.context.is_closed.store(true, Ordering::Release);
        self.context.pending_launches.close();
        self.context.pending_launches.wait().await;
        self.agents.close().await;
        for kernel in self.registry.all() {
            kernel.close();
        }
        self.context.state.unlock();
    }
}
