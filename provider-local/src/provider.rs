use std::sync::Arc;

use async_trait::async_trait;
use jupyter_protocol::ConnectionInfo;
use kernel_provider::provider::{
    AttachError, Exit, ExitCause, KernelHandle, KernelProvider, KernelRecord, LaunchError, LaunchRequest, LaunchStage,
    Progress, ProviderError, Selector, Specs,
};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::events::Events;
use crate::kernel::{LocalKernel, Shared};
use crate::launch::{self, Machine, blocking};
use crate::output;
use crate::ports::Ports;
use crate::process::Process;
use crate::process::oom::OomCounter;
use crate::process::orphans;
use crate::process::stat::{Identity, find_by_argument};
use crate::registry::Registry;
use crate::salvage::{is_listened_on, salvage};
use crate::state::{KernelFiles, Saved, Stage, StateDir};
use crate::{AbortOnDrop, LocalConfig, specs};

/// Runs kernels as processes of this machine.
///
/// Kernels outlive it: they go on when it is dropped, and when this program ends, in whatever way. Another that
/// [opens](Self::open) the same state directory finds them.
pub struct LocalProvider {
    machine: Arc<Machine>,
    registry: Arc<Registry>,
    specs: watch::Receiver<Arc<Specs>>,
    _tasks: Vec<AbortOnDrop>,
}

impl LocalProvider {
    /// Opens the state directory and takes hold of the kernels that run there. Must be called in an async runtime
    /// with its I/O and time enabled.
    ///
    /// A kernel that was still being launched when its embedder ended is ended now, since nobody was told of it.
    ///
    /// # Errors
    /// [`ProviderError`] where the directory cannot be made or used, is open to others, or another process uses it;
    /// or the system refuses file system events.
    pub async fn open(config: LocalConfig) -> Result<Self, ProviderError> {
        // Whoever tries again while another process has it takes nothing of the system.
        let (config, state) = blocking("open the state directory", move || {
            let state = StateDir::open(&config.state_dir, config.socket_dir.as_deref())?;
            Ok::<_, ProviderError>((config, state))
        })
        .await??;
        let events = Arc::new(Events::new().map_err(|error| {
            let advice = format!("{error}; raise fs.inotify.max_user_instances or the limit of open files");
            ProviderError::failed("watch file system events", advice)
        })?);
        let oom = Arc::new(OomCounter::new());
        let counting = tokio::spawn(Arc::clone(&oom).follow(Arc::clone(&events)));
        let counting = AbortOnDrop::new(&counting);
        let registry = Arc::new(Registry::default());
        let (machine, found) = blocking("find the kernels that run", {
            let (registry, events) = (Arc::clone(&registry), Arc::clone(&events));
            move || -> Result<_, ProviderError> {
                let found = Specs::find(&config.search);
                let machine = Arc::new(Machine {
                    ports: Ports::new(config.port_range.clone()),
                    config,
                    state,
                    events,
                    oom,
                    unfinished: TaskTracker::new(),
                });
                recover(&machine, &registry)?;
                Ok((machine, found))
            }
        })
        .await??;
        found.warn_of_broken(&Specs::default());
        let (sender, specs) = watch::channel(Arc::new(found));
        let follower = tokio::spawn(specs::follow(machine.config.search.clone(), events, sender));
        let mut tasks = vec![AbortOnDrop::new(&follower), counting];
        if machine.config.reap_orphans {
            let ends = orphans::ends().map_err(|error| ProviderError::failed("notice the ends of processes", error))?;
            tasks.push(AbortOnDrop::new(&tokio::spawn(orphans::reap(ends))));
        }
        Ok(Self {
            machine,
            registry,
            specs,
            _tasks: tasks,
        })
    }
}

/// Takes hold of what the embedder before left. Blocks.
fn recover(machine: &Arc<Machine>, registry: &Arc<Registry>) -> Result<(), ProviderError> {
    let (mut whole, broken) = machine.state.load()?;
    for files in broken {
        if let Some(saved) = salvage(&files, &machine.config.name, &machine.config.search) {
            tracing::warn!(kernel = %files.id, dir = %files.dir.display(), "a running kernel is known by its process alone");
            files.keep_damaged_record();
            files.save(&saved)?;
            whole.push((files, saved));
        } else if is_listened_on(&files) {
            tracing::warn!(kernel = %files.id, dir = %files.dir.display(), "a kernel seems to run whose process is not known; it is left alone");
        } else {
            files.remove_all();
        }
    }
    whole.sort_by_key(|(_, saved)| saved.record.launched);
    for (files, mut saved) in whole {
        let id = saved.record.id;
        match saved.stage.clone() {
            Stage::Starting => {
                tracing::warn!(kernel = %id, "its embedder ended while it started; it is ended");
                end_abandoned(saved.process.as_ref(), &files)?;
            }
            Stage::Running => {
                if let Some(process) = find(saved.process.as_ref())? {
                    let connection = ConnectionInfo::read(files.connection_file())
                        .inspect_err(|error| tracing::warn!(kernel = %id, %error, "its connection is not known"))
                        .ok();
                    let kernel = LocalKernel::running(machine, registry, files, saved, Arc::new(process), connection);
                    registry.insert(&kernel);
                } else {
                    let output = output::tail(&files.output(), saved.output_from, output::EVIDENCE).unwrap_or_default();
                    let cause = ExitCause::Unknown("it ended while no embedder watched it".to_owned());
                    let exit = Exit::new(cause).with_output(output);
                    saved.stage = Stage::Ended(exit.clone());
                    files.remove_connection();
                    files.save(&saved)?;
                    remember(machine, registry, files, saved, exit);
                }
            }
            Stage::Ended(exit) => remember(machine, registry, files, saved, exit),
        }
    }
    Ok(())
}

fn remember(machine: &Arc<Machine>, registry: &Arc<Registry>, files: KernelFiles, saved: Saved, exit: Exit) {
    let kernel = LocalKernel::ended(machine, registry, files, saved, exit);
    if let Some(before) = registry.insert(&kernel) {
        before.forget();
    }
    registry.ended(&kernel, machine.config.keep_ended);
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

/// Ends a kernel that nobody knows of, if it runs, and removes its files.
fn end_abandoned(identity: Option<&Identity>, files: &KernelFiles) -> Result<(), ProviderError> {
    let by_argument = || find_by_argument(&files.connection_file());
    let identity = identity.cloned().or_else(by_argument);
    if let Some(process) = find(identity.as_ref())? {
        process.kill();
        process.bury();
    }
    files.remove_all();
    Ok(())
}

#[async_trait]
impl KernelProvider for LocalProvider {
    fn name(&self) -> &str {
        &self.machine.config.name
    }

    fn specs(&self) -> watch::Receiver<Arc<Specs>> {
        self.specs.clone()
    }

    async fn launch(&self, request: LaunchRequest, progress: Progress) -> Result<Arc<dyn KernelHandle>, LaunchError> {
        let turn = self.registry.turn(request.id);
        let _turn = turn.lock.lock().await;
        if let Some(kernel) = self.registry.get(request.id).filter(|kernel| kernel.exit().is_none()) {
            progress.report(LaunchStage::Ready);
            return Ok(Arc::new(Shared(kernel)));
        }
        let saved = launch::prepare(&self.machine, &request).await?;
        // Nothing else has to be waited for on this machine.
        progress.report(LaunchStage::Scheduled);
        let files = self.machine.state.new_kernel(request.id);
        let connection = launch::fresh_connection(&saved.start);
        let ready = launch::start(
            &self.machine,
            &files,
            saved,
            connection,
            true,
            request.timeout,
            &progress,
        )
        .await?;
        let kernel = LocalKernel::running(
            &self.machine,
            &self.registry,
            files,
            ready.saved,
            ready.process,
            Some(ready.connection),
        );
        if let Some(before) = self.registry.insert(&kernel) {
            before.forget();
        }
        progress.report(LaunchStage::Ready);
        Ok(Arc::new(Shared(kernel)))
    }

    async fn list(&self, selector: &Selector) -> Result<Vec<KernelRecord>, ProviderError> {
        Ok(self
            .registry
            .all()
            .into_iter()
            .filter(|kernel| kernel.exit().is_none())
            .map(|kernel| Shared(kernel).record())
            .filter(|record| selector.matches(record))
            .collect())
    }

    async fn attach(&self, record: &KernelRecord) -> Result<Arc<dyn KernelHandle>, AttachError> {
        if record.provider != self.machine.config.name {
            return Err(AttachError::Foreign {
                theirs: record.provider.clone(),
                ours: self.machine.config.name.clone(),
            });
        }
        let gone = |cause| AttachError::Gone { id: record.id, cause };
        let Some(kernel) = self.registry.get(record.id) else {
            let known = "this provider has no record of it".to_owned();
            return Err(gone(ExitCause::Unknown(known)));
        };
        match kernel.exit() {
            Some(exit) => Err(gone(exit.cause)),
            None => Ok(Arc::new(Shared(kernel))),
        }
    }

    async fn settle(&self) {
        self.machine.unfinished.close();
        self.machine.unfinished.wait().await;
    }
}
