//! The handle of a kernel under an agent.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use async_trait::async_trait;
use jupyter_protocol::ConnectionInfo;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::task::{AbortOnDrop, TaskTracker};
use tracing::warn;

use super::placement::Kernels;
use super::{ANSWER_DEADLINE, Answer, CallError, Control, Link, LinkClosed, Place, Placement};
use crate::{Exit, Interrupt, KernelHandle, KernelRecord, LaunchError, Phase, Progress, ProviderError, Usage, lock};

/// How long a restarted kernel may take to accept connections: the agent's own limit of 60 s, and time for its answer.
const RESTART_DEADLINE: Duration = Duration::from_secs(70);
/// How long an agent may take to end after its kernel was shut down.
const GONE_DEADLINE: Duration = Duration::from_secs(5);

pub(super) struct AgentKernel {
    this: Weak<Self>,
    placement: Arc<dyn Placement>,
    kernels: Weak<Kernels>,
    removing: TaskTracker,
    current: Mutex<CurrentAgent>,
    phase: Arc<watch::Sender<Phase>>,
    /// Whether the caller has launched the kernel or attached to it.
    is_attached: AtomicBool,
    /// Serializes restarts and shutdown.
    operation: tokio::sync::Mutex<()>,
}

/// The current agent; a restart replaces an agent that is gone.
struct CurrentAgent {
    place: Arc<dyn Place>,
    link: Arc<Link>,
    _watching: AbortOnDrop,
}

impl CurrentAgent {
    fn of(place: Arc<dyn Place>, phase: &Arc<watch::Sender<Phase>>) -> Self {
        let link = Arc::new(Link::open(Arc::new(Arc::clone(&place))));
        let watching = tokio::spawn(watch_agent(place.clone(), link.clone(), phase.clone()));
        Self {
            place,
            link,
            _watching: AbortOnDrop::new(watching.abort_handle()),
        }
    }
}

#[async_trait]
impl super::Connect for Arc<dyn Place> {
    async fn connect(&self) -> std::io::Result<Box<dyn super::Stream>> {
        (**self).connect().await
    }

    fn token(&self) -> &str {
        (**self).token()
    }
}

/// Follows the phase that the agent reports, and the agent's end.
async fn watch_agent(place: Arc<dyn Place>, link: Arc<Link>, phase: Arc<watch::Sender<Phase>>) {
    let mut reported = link.phase();
    let following = async {
        loop {
            let now = reported.borrow_and_update().clone();
            // Before the first report there is no process.
            if now.process > 0 {
                phase.send_if_modified(|phase| {
                    let is_new = *phase != now.phase;
                    *phase = now.phase;
                    is_new
                });
            }
            // Fails once the link is closed.
            if reported.changed().await.is_err() {
                return std::future::pending::<()>().await;
            }
        }
    };
    let exit = tokio::select! {
        () = following => return,
        exit = place.gone() => exit,
    };
    link.close();
    set_exited(&phase, exit);
}

/// Reports the kernel's end, unless it is known already.
fn set_exited(phase: &watch::Sender<Phase>, exit: Exit) {
    phase.send_if_modified(|phase| {
        let is_known = matches!(phase, Phase::Exited(_));
        if !is_known {
            *phase = Phase::Exited(exit);
        }
        !is_known
    });
}

impl AgentKernel {
    pub(super) fn new(
        placement: Arc<dyn Placement>,
        place: Arc<dyn Place>,
        phase: Phase,
        kernels: Weak<Kernels>,
        removing: TaskTracker,
    ) -> Arc<Self> {
        let phase = Arc::new(watch::Sender::new(phase));
        let current = Mutex::new(CurrentAgent::of(place, &phase));
        Arc::new_cyclic(|this| Self {
            this: this.clone(),
            placement,
            kernels,
            removing,
            current,
            phase,
            is_attached: AtomicBool::new(false),
            operation: tokio::sync::Mutex::default(),
        })
    }

    fn link(&self) -> Arc<Link> {
        lock(&self.current).link.clone()
    }

    fn place(&self) -> Arc<dyn Place> {
        lock(&self.current).place.clone()
    }

    /// Records that the caller has launched the kernel or attached to it.
    pub(super) fn set_attached(&self) {
        self.is_attached.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_attached(&self) -> bool {
        self.is_attached.load(Ordering::Relaxed)
    }

    /// Whether to list the kernel. One that has ended is listed until a caller attaches to it, so that its end is
    /// reported.
    pub(super) fn is_listed(&self) -> bool {
        !self.is_attached() || !matches!(*self.phase.borrow(), Phase::Exited(_))
    }

    /// How the kernel ended, if attaching would add no information: a caller was attached before, or all entries are
    /// acknowledged. `None` if the kernel may be running or the agent does not answer.
    pub(super) async fn known_end(&self) -> Option<Exit> {
        if let Phase::Exited(exit) = &*self.phase.borrow()
            && self.is_attached()
        {
            return Some(exit.clone());
        }
        match timeout(ANSWER_DEADLINE, self.link().welcome()).await {
            Ok(Ok(welcome)) => match welcome.phase.phase {
                Phase::Exited(exit) if welcome.is_delivered => Some(exit),
                _ => None,
            },
            _ => None,
        }
    }

    /// Waits until the agent has started the kernel.
    pub(super) async fn started(&self) -> Result<(), LaunchError> {
        self.launched(Control::Started).await
    }

    async fn launched(&self, control: Control) -> Result<(), LaunchError> {
        match self.link().launched(control).await {
            Ok(launched) => launched,
            Err(LinkClosed) => Err(LaunchError::Died {
                exit: self.place().gone().await,
            }),
        }
    }

    /// Removes the agent and the files of a kernel that has ended.
    pub(super) async fn discard(&self) {
        self.place().remove().await;
    }

    fn check_running(&self) -> Result<(), ProviderError> {
        match &*self.phase.borrow() {
            Phase::Exited(exit) => Err(ProviderError::Gone(exit.cause.clone())),
            _ => Ok(()),
        }
    }

    /// The result of a request to the agent. If the agent is gone, the error has the cause.
    async fn result_of<T>(&self, called: Result<T, CallError>) -> Result<T, ProviderError> {
        match called {
            Ok(result) => Ok(result),
            Err(CallError::Closed(LinkClosed)) => Err(ProviderError::Gone(self.place().gone().await.cause)),
            Err(CallError::Failed(error)) => Err(error),
        }
    }

    /// Spawns a task that waits for the agent to deliver its last entries and end, and then removes its files.
    fn remove_once_gone(&self) {
        let (place, kernels, this) = (self.place(), self.kernels.clone(), self.this.clone());
        let id = place.record().id;
        let removing = async move {
            if timeout(GONE_DEADLINE, place.gone()).await.is_err() {
                warn!(kernel_id = %id, "the agent of a kernel that was shut down did not end; killing it");
            }
            place.remove().await;
            if let Some(kernels) = kernels.upgrade() {
                kernels.remove(id, &this);
            }
        };
        tokio::spawn(self.removing.track_future(removing));
    }
}

#[async_trait]
impl KernelHandle for AgentKernel {
    fn record(&self) -> KernelRecord {
        let mut record = self.place().record();
        let pid = self.link().phase().borrow().pid;
        if let (Some(pid), Some(data)) = (pid, record.data.as_object_mut()) {
            data.insert("pid".to_owned(), pid.into());
        }
        record
    }

    async fn connection(&self) -> Result<ConnectionInfo, ProviderError> {
        self.check_running()?;
        self.result_of(self.link().connection().await).await
    }

    fn agent(&self) -> Option<Arc<Link>> {
        Some(self.link())
    }

    fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    async fn output(&self) -> Result<String, ProviderError> {
        if let Phase::Exited(exit) = &*self.phase.borrow() {
            return Ok(exit.output.clone());
        }
        self.result_of(self.link().output().await).await
    }

    async fn usage(&self) -> Result<Option<Usage>, ProviderError> {
        self.check_running()?;
        self.result_of(self.link().usage().await).await
    }

    async fn interrupt(&self) -> Result<Interrupt, ProviderError> {
        self.check_running()?;
        self.result_of(self.link().interrupt().await).await
    }

    async fn restart(&self, grace: Duration, progress: Progress) -> Result<(), LaunchError> {
        let _operation = self.operation.lock().await;
        let place = self.place();
        let is_gone = timeout(Duration::ZERO, place.gone()).await.is_ok();
        if is_gone {
            let place = self.placement.replace(&*place, &progress).await?;
            *lock(&self.current) = CurrentAgent::of(place.clone(), &self.phase);
            let started = timeout(RESTART_DEADLINE, self.started()).await;
            started.map_err(|_| timed_out(RESTART_DEADLINE))??;
            place.confirm().await?;
            self.phase.send_replace(Phase::Running);
            return Ok(());
        }
        let deadline = RESTART_DEADLINE + grace;
        let restarted = timeout(deadline, self.launched(Control::Restart { grace })).await;
        restarted.map_err(|_| timed_out(deadline))??;
        self.phase.send_replace(Phase::Running);
        Ok(())
    }

    async fn shutdown(&self, grace: Duration) -> Result<Exit, ProviderError> {
        let _operation = self.operation.lock().await;
        let place = self.place();
        let link = self.link();
        let answer = tokio::select! {
            answer = timeout(grace + RESTART_DEADLINE, link.control(Control::Shutdown { grace })) => answer,
            exit = place.gone() => Ok(Ok(Answer::Ended(exit))),
        };
        let exit = match answer {
            Ok(Ok(Answer::Ended(exit))) => exit,
            Ok(Ok(Answer::Failed(error))) => return Err(error),
            Ok(Ok(_)) => {
                return Err(ProviderError::failed(
                    "end the kernel",
                    "its agent sent an unexpected answer",
                ));
            }
            Ok(Err(LinkClosed)) => place.gone().await,
            Err(_) => {
                // The agent does not answer.
                place.kill();
                place.gone().await
            }
        };
        set_exited(&self.phase, exit.clone());
        self.remove_once_gone();
        Ok(exit)
    }

    fn kill(&self) {
        self.place().kill();
    }
}

fn timed_out(timeout: Duration) -> LaunchError {
    LaunchError::TimedOut {
        timeout,
        output: String::new(),
    }
}
